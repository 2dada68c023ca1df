//! Products of matrices: `C += factor · Aᵀ B`, on one thread.
//!
//! Every element is summed in one order, and every multiplication is fused with its addition, so that all processors
//! find the same numbers, whatever the width of their vectors.

use std::ops::{AddAssign, Mul};

use crate::lanes::{self, Lanes};
use crate::level::{Level, WithLanes};

/// Rows of `C` that are made at once, or half of them; all counts of rows are multiples.
const ROWS: usize = 4;

/// Terms that are summed before the sum is added to `C`.
const DEPTH: usize = 256;

/// All counts of columns are multiples of it: what is made at once, at most.
const COLUMNS: usize = 16;

/// `f32` or `f64`.
pub(crate) trait Number: Copy + Default + AddAssign + Mul<Output = Self> + Send + Sync {
    /// As [`lanes::tile`].
    fn tile<S: Lanes, const R: usize, const N: usize>(lanes: S, a: &[[Self; R]], b: &[[Self; N]]) -> [[Self; N]; R];

    /// Multiplies and adds with `level`'s instructions.
    fn add_product(level: Level, product: &Product<'_, Self>, c: &mut [Self], stride: usize);
}

impl Number for f32 {
    #[inline(always)]
    fn tile<S: Lanes, const R: usize, const N: usize>(lanes: S, a: &[[f32; R]], b: &[[f32; N]]) -> [[f32; N]; R] {
        lanes::tile(lanes, a, b)
    }

    fn add_product(level: Level, product: &Product<'_, f32>, c: &mut [f32], stride: usize) {
        level.run(Run::<'_, '_, f32, COLUMNS> { product, c, stride });
    }
}

impl Number for f64 {
    #[inline(always)]
    fn tile<S: Lanes, const R: usize, const N: usize>(lanes: S, a: &[[f64; R]], b: &[[f64; N]]) -> [[f64; N]; R] {
        lanes::tile(lanes, a, b)
    }

    fn add_product(level: Level, product: &Product<'_, f64>, c: &mut [f64], stride: usize) {
        level.run(Run::<'_, '_, f64, { COLUMNS / 2 }> { product, c, stride });
    }
}

/// A factor: the element of term `k` for row or column `i` is `values[k · terms + i · step]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) terms: usize,
    pub(crate) step: usize,
}

/// What is to be added: `factor · Σ_k a[k, row] · b[k, column]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a, T> {
    pub(crate) a: Side<'a, T>,
    pub(crate) b: Side<'a, T>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) depth: usize,
    pub(crate) factor: T,
}

impl<T: Number> Product<'_, T> {
    /// Adds it to `c`, whose rows lie `stride` apart.
    pub(crate) fn add_to(&self, c: &mut [T], stride: usize) {
        debug_assert!(self.rows.is_multiple_of(ROWS) && self.columns.is_multiple_of(COLUMNS));
        T::add_product(Level::detect(), self, c, stride);
    }
}

struct Run<'p, 'c, T, const N: usize> {
    product: &'p Product<'p, T>,
    c: &'c mut [T],
    stride: usize,
}

impl<T: Number, const N: usize> WithLanes for Run<'_, '_, T, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, lanes: S) {
        // As many sums as hide the latency of an addition: where vectors are long, more rows.
        if S::WIDTH == 32 && self.product.rows.is_multiple_of(2 * ROWS) {
            self.add_rows::<S, { 2 * ROWS }>(lanes);
        } else {
            self.add_rows::<S, ROWS>(lanes);
        }
    }
}

impl<T: Number, const N: usize> Run<'_, '_, T, N> {
    /// `R` rows at a time.
    #[inline(always)]
    fn add_rows<S: Lanes, const R: usize>(self, lanes: S) {
        let Product { a, b, rows, columns, depth, factor } = *self.product;
        let mut packed_a: Vec<[T; R]> = Vec::with_capacity(rows / R * depth.min(DEPTH));
        let mut packed_b: Vec<[T; N]> = Vec::with_capacity(depth.min(DEPTH));
        for start in (0..depth).step_by(DEPTH) {
            let terms = start..depth.min(start + DEPTH);
            let length = terms.len();
            packed_a.clear();
            for row in (0..rows).step_by(R) {
                let at = |k: usize, i: usize| factor * a.values[k * a.terms + (row + i) * a.step];
                packed_a.extend(terms.clone().map(|k| std::array::from_fn(|i| at(k, i))));
            }
            for column in (0..columns).step_by(N) {
                packed_b.clear();
                packed_b.extend(terms.clone().map(|k| {
                    let from = &b.values[k * b.terms + column * b.step..];
                    if b.step == 1 { *from.first_chunk().expect("a row") } else { pick(from, b.step) }
                }));
                for (index, a) in packed_a.chunks_exact(length).enumerate() {
                    let sums = T::tile(lanes, a, &packed_b);
                    for (row, sums) in sums.into_iter().enumerate() {
                        let at = (index * R + row) * self.stride + column;
                        for (c, sum) in self.c[at..at + N].iter_mut().zip(sums) {
                            *c += sum;
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn pick<T: Number, const N: usize>(from: &[T], step: usize) -> [T; N] {
    std::array::from_fn(|index| from[index * step])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers, whose sums are exact in any order.
    fn whole(count: usize, seed: u64) -> Vec<f64> {
        (0..count as u64).map(|index| (tensor::philox::bits(seed, index) % 15) as f64 - 7.0).collect()
    }

    #[test]
    fn both_types_multiply_as_written() {
        let (rows, columns, depth, stride) = (20, 48, 300, 50);
        let (a, b, c) = (whole(rows * depth, 1), whole(depth * columns, 2), whole(rows * stride, 3));
        let mut expected = c.clone();
        for row in 0..rows {
            for column in 0..columns {
                let terms = (0..depth).map(|k| a[row * depth + k] * b[k * columns + column]);
                expected[row * stride + column] -= terms.sum::<f64>();
            }
        }
        let mut found = c.clone();
        let (terms, step) = (1, depth);
        let a_factor = Side { values: &a, terms, step };
        let b_factor = Side { values: &b, terms: columns, step: 1 };
        Product { a: a_factor, b: b_factor, rows, columns, depth, factor: -1.0 }.add_to(&mut found, stride);
        assert_eq!(found, expected);

        let [a, b, mut found] = [a, b, c].map(|values| values.iter().map(|&v| v as f32).collect::<Vec<f32>>());
        let transposed: Vec<f32> = (0..depth * columns).map(|i| b[i % depth * columns + i / depth]).collect();
        let a_factor = Side { values: &a, terms, step };
        let b_factor = Side { values: &transposed, terms, step };
        Product { a: a_factor, b: b_factor, rows, columns, depth, factor: -1.0 }.add_to(&mut found, stride);
        assert!(found.iter().zip(&expected).all(|(&found, &expected)| f64::from(found) == expected));
    }
    #[test]
    fn every_level_finds_the_same_bits() {
        let (rows, columns, depth) = (8, 32, 700);
        let thirds = |count, seed| whole(count, seed).iter().map(|value| value / 3.0).collect::<Vec<f64>>();
        let (a, b) = (thirds(depth * rows, 4), thirds(depth * columns, 5));
        let (a32, b32) =
            (a.iter().map(|&v| v as f32).collect::<Vec<_>>(), b.iter().map(|&v| v as f32).collect::<Vec<_>>());
        let results = Level::available().into_iter().map(|level| {
            let (mut c, mut c32) = (vec![0.25; rows * columns], vec![0.25; rows * columns]);
            let (a, b) = (Side { values: &a, terms: rows, step: 1 }, Side { values: &b, terms: columns, step: 1 });
            f64::add_product(level, &Product { a, b, rows, columns, depth, factor: 1.0 }, &mut c, columns);
            let (a, b) = (Side { values: &a32, terms: rows, step: 1 }, Side { values: &b32, terms: columns, step: 1 });
            f32::add_product(level, &Product { a, b, rows, columns, depth, factor: 1.0 }, &mut c32, columns);
            (c, c32)
        });
        let results: Vec<(Vec<f64>, Vec<f32>)> = results.collect();
        assert!(results.iter().all(|result| *result == results[0]));
    }
}
