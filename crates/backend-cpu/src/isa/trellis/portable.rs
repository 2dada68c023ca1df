//! Products of codes and values in plain Rust: what the other instruction sets' files compute, written down simply.

use super::{Row, Sums};
use crate::level::{Vectorized, multiply_add};
use crate::trellis::{Codes, HALVES, LANES, POSITIONS, QUAD, UNIT, Values, input_of, side_of};

/// `sums[row] += factor · (Σ code · quant − zero)` for the 16 outputs of a group.
pub(super) struct Multiply<'a> {
    pub(super) codes: &'a Codes,
    pub(super) group: usize,
    pub(super) rows: &'a [Row<'a>],
    pub(super) sums: &'a mut [Sums],
}

impl Vectorized for Multiply<'_> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (row, sums) in self.rows.iter().zip(self.sums) {
            let mut totals = [[0i32; LANES]; 2];
            for half in 0..HALVES {
                for position in 0..POSITIONS {
                    let codes = &self.codes[half * POSITIONS + position];
                    let four = &row.quants[(half * UNIT / 2 + input_of(position) * QUAD)..][..QUAD];
                    let totals = &mut totals[side_of(position)];
                    for lane in 0..LANES {
                        totals[lane] += i32::from(codes[lane]) * i32::from(four[lane % QUAD]);
                    }
                }
            }
            for (index, sum) in sums[self.group * 16..][..16].iter_mut().enumerate() {
                let (side, tile) = (index / 2 % 2, index / 4 * 2 + index % 2);
                let total: i32 = totals[side][tile * QUAD..][..QUAD].iter().sum();
                *sum += row.factor * (total - row.zero) as f32;
            }
        }
    }
}

/// `sums += Σ value · activation` for the 16 outputs of a group and one row.
pub(super) struct MultiplyExact<'a> {
    pub(super) values: &'a Values,
    pub(super) group: usize,
    /// Of the unit's inputs.
    pub(super) activations: &'a [f32],
    pub(super) sums: &'a mut Sums,
}

impl Vectorized for MultiplyExact<'_> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let mut totals = [[0.0f32; LANES]; 2];
        for half in 0..HALVES {
            for position in 0..POSITIONS {
                let values = &self.values[half * POSITIONS + position];
                let four = &self.activations[(half * UNIT / 2 + input_of(position) * QUAD)..][..QUAD];
                let totals = &mut totals[side_of(position)];
                for lane in 0..LANES {
                    totals[lane] = multiply_add::<FMA>(values[lane], four[lane % QUAD], totals[lane]);
                }
            }
        }
        for (index, sum) in self.sums[self.group * 16..][..16].iter_mut().enumerate() {
            let (side, tile) = (index / 2 % 2, index / 4 * 2 + index % 2);
            let four = &totals[side][tile * QUAD..][..QUAD];
            *sum += (four[0] + four[1]) + (four[2] + four[3]);
        }
    }
}
