//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), the halves of a head as pairs.

use crate::level::{Level, Vectorized};
use crate::pool::Pool;

/// Cosines and sines for the positions of one batch.
pub(crate) struct RopeTable {
    base: f32,
    divisor: f32,
    head_dim: usize,
    /// `[token][head_dim / 2]` pairs of cosine and sine, the cosines first.
    values: Vec<f32>,
}

impl RopeTable {
    /// An empty table with room for `tokens` tokens.
    pub(crate) fn new(base: f32, divisor: f32, head_dim: usize, tokens: usize) -> Self {
        RopeTable { base, divisor, head_dim, values: Vec::with_capacity(tokens * head_dim) }
    }

    /// Whether the table is for these constants.
    pub(crate) fn is_for(&self, base: f32, divisor: f32, head_dim: usize) -> bool {
        (self.base, self.divisor, self.head_dim) == (base, divisor, head_dim)
    }

    /// Computes the table, in double precision: positions times frequencies lose digits otherwise.
    pub(crate) fn fill(&mut self, positions: impl Iterator<Item = usize>) {
        let half = self.head_dim / 2;
        let exponent = |i: usize| -2.0 * i as f64 / self.head_dim as f64;
        let frequencies: Vec<f64> =
            (0..half).map(|i| f64::from(self.base).powf(exponent(i)) / f64::from(self.divisor)).collect();
        self.values.clear();
        for position in positions {
            let angles = frequencies.iter().map(|frequency| position as f64 * frequency);
            self.values.extend(angles.clone().map(|angle| angle.cos() as f32));
            self.values.extend(angles.map(|angle| angle.sin() as f32));
        }
    }
}

struct Rope<'a> {
    table: &'a [f32],
    values: &'a mut [f32],
    head_dim: usize,
    width: usize,
}

impl Vectorized for Rope<'_> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let half = self.head_dim / 2;
        for (row, table) in self.values.chunks_exact_mut(self.width).zip(self.table.chunks_exact(self.head_dim)) {
            let (cosines, sines) = table.split_at(half);
            for head in row.chunks_exact_mut(self.head_dim) {
                let (first, second) = head.split_at_mut(half);
                for i in 0..half {
                    let (a, b) = (first[i], second[i]);
                    first[i] = a * cosines[i] - b * sines[i];
                    second[i] = b * cosines[i] + a * sines[i];
                }
            }
        }
    }
}

/// Rotates each head of `values` `[tokens, width]` in place.
pub(crate) fn rope(level: Level, pool: &Pool, values: &mut [f32], width: usize, table: &RopeTable) {
    let head_dim = table.head_dim;
    super::for_rows(pool, values, width, &|rows, values| {
        level.run(Rope { table: &table.values[rows.start * head_dim..rows.end * head_dim], values, head_dim, width });
    });
}
