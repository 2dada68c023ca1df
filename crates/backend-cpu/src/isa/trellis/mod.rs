//! Inner loops over tiles of the trellis format. [`crate::trellis`] says how they lie.
//!
//! A state `s` becomes the product `s · 0x83dcd12d` in two halves of 16 bits, by three multiplications of 16 bits; the
//! sum of its four bytes is the code. That is as many instructions as with products of 32 bits, which have half as many
//! lanes, and leaves 16 bits for the activation.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use std::ops::Range;

use tensor::format::trellis::{Codebook, Rate};

use crate::level::Level;
use crate::trellis::{
    Affine, Codes, DecodeCodes, DecodeValues, GROUPS, Rotated, RotatedBytes, TrellisMatrix, UNIT, Values,
};
use crate::trellis::{LANES, VECTORS, unit_words};

/// Sums of a unit's outputs for one row, in the order of [`crate::trellis::output_of`].
pub(crate) type Sums = [f32; UNIT];

/// One unit times one row of activations, codes and sums in one loop.
type MultiplyOne = fn(unit: &[u16], row: &Row<'_>, sums: &mut Sums);
/// The codes of one group of a unit.
type Decode = fn(unit: &[u16], group: usize, codes: &mut Codes);
/// The codes of a group times rows of activations.
type Multiply = fn(codes: &Codes, group: usize, rows: &[Row<'_>], sums: &mut [Sums]);

/// A row's activations for one unit: `sums += factor · (Σ code · quant − zero)`.
#[derive(Clone, Copy)]
struct Row<'a> {
    quants: &'a [i16; UNIT],
    /// Of the quants.
    sum: i32,
    zero: i32,
    factor: f32,
}

/// The hand-written kernels of a level; what it lacks is plain code.
#[derive(Clone, Copy, Default)]
struct Kernels {
    multiply_one: Option<MultiplyOne>,
    /// The same with activations of 8 bits, each in both bytes of its quant.
    multiply_bytes: Option<MultiplyOne>,
    decode: Option<Decode>,
    multiply: Option<Multiply>,
}

/// Calls `$step::<H, position>` for all positions of a group: every shift is a constant.
macro_rules! for_positions {
    ($step:ident::<$h:ident>($($argument:expr),*)) => {
        for_positions!(
            @ $step $h ($($argument),*)
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        )
    };
    (@ $step:ident $h:ident $arguments:tt $($position:literal)*) => {
        $(for_positions!(@@ $step::<$h, $position> $arguments);)*
    };
    (@@ $step:ident::<$h:ident, $position:literal> ($($argument:expr),*)) => {
        $step::<$h, $position>($($argument),*)
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use for_positions;

/// Code that is specialized for the bits per weight.
trait ForRate {
    /// What it gives.
    type Output;
    /// Runs it for `H / 2` bits.
    fn run<const H: usize>(self) -> Self::Output;
}

/// The one table from rates to code that is specialized for them.
fn for_rate<F: ForRate>(rate: Rate, code: F) -> F::Output {
    match rate.half_bits() {
        2 => code.run::<2>(),
        3 => code.run::<3>(),
        4 => code.run::<4>(),
        5 => code.run::<5>(),
        6 => code.run::<6>(),
        7 => code.run::<7>(),
        8 => code.run::<8>(),
        10 => code.run::<10>(),
        12 => code.run::<12>(),
        14 => code.run::<14>(),
        16 => code.run::<16>(),
        other => unreachable!("no rate has {other} half bits"),
    }
}

/// The kernels of a level.
fn select(level: Level, rate: Rate, codebook: Codebook) -> Kernels {
    let mul1 = codebook == Codebook::Mul1;
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => avx512::select(rate, mul1),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::select(rate, mul1),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => neon::select(rate, mul1),
        _ => Kernels::default(),
    }
}

/// `sums[row] += activations[row] · values` for the 128 outputs of `block` and the inputs of some units.
pub(crate) fn add_products(
    level: Level,
    matrix: &TrellisMatrix,
    rotated: &Rotated,
    rows: Range<usize>,
    (block, inputs): (usize, Range<usize>),
    sums: &mut [Sums],
) {
    let units = matrix.units(block, inputs.clone()).chunks_exact(unit_words(matrix.rate)).zip(inputs.clone());
    if rotated.is_exact() {
        let mut values: Box<Values> = Box::new([[0.0; LANES]; VECTORS]);
        for (unit, input) in units {
            add_exact(level, matrix, unit, (rotated, rows.clone(), input), &mut values, sums);
        }
        return;
    }
    let (kernels, affine) = (select(level, matrix.rate, matrix.codebook), Affine::of(matrix.codebook));
    if let (Some(multiply), Some(bytes)) = (kernels.multiply_bytes, rotated.as_bytes()) {
        return add_bytes(multiply, (matrix, block), bytes, inputs, affine, &mut sums[0]);
    }
    let mut codes: Codes = [[0; LANES]; VECTORS];
    let mut unit_rows: Vec<Row<'_>> = Vec::with_capacity(rows.len());
    for (unit, input) in units {
        unit_rows.clear();
        unit_rows.extend(rows.clone().map(|row| row_of(rotated, row * rotated.blocks + input, affine)));
        match (kernels.multiply_one, &unit_rows[..]) {
            (Some(multiply_one), [row]) => multiply_one(unit, row, &mut sums[0]),
            _ => add_codes(level, matrix, kernels, unit, &unit_rows, &mut codes, sums),
        }
    }
    for (row, sums) in rows.zip(sums) {
        let indices = inputs.clone().map(|input| row * rotated.blocks + input);
        let activations: f32 = indices.map(|index| rotated.scales[index] * rotated.sums[index] as f32).sum();
        sums.iter_mut().for_each(|sum| *sum += affine.offset * activations);
    }
}

/// A row of 8-bit activations.
fn add_bytes(
    multiply: MultiplyOne,
    (matrix, block): (&TrellisMatrix, usize),
    bytes: &RotatedBytes,
    inputs: Range<usize>,
    affine: Affine,
    sums: &mut Sums,
) {
    let mut activations = 0.0;
    for (unit, input) in matrix.units(block, inputs.clone()).chunks_exact(unit_words(matrix.rate)).zip(inputs) {
        let quants = bytes.quants[input * UNIT..][..UNIT].try_into().expect("a block of quants");
        let (scale, sum) = (bytes.scales[input], bytes.sums[input]);
        multiply(unit, &Row { quants, sum, zero: affine.zero * sum, factor: affine.factor * scale }, sums);
        activations += scale * sum as f32;
    }
    sums.iter_mut().for_each(|sum| *sum += affine.offset * activations);
}

fn row_of(rotated: &Rotated, index: usize, affine: Affine) -> Row<'_> {
    let quants = rotated.quants[index * UNIT..][..UNIT].try_into().expect("a block of quants");
    let sum = rotated.sums[index];
    Row { quants, sum, zero: affine.zero * sum, factor: affine.factor * rotated.scales[index] }
}

/// One unit, whose codes are made once for all rows.
fn add_codes(
    level: Level,
    matrix: &TrellisMatrix,
    kernels: Kernels,
    unit: &[u16],
    rows: &[Row<'_>],
    codes: &mut Codes,
    sums: &mut [Sums],
) {
    let (rate, codebook) = (matrix.rate, matrix.codebook);
    for group in 0..GROUPS {
        match kernels.decode {
            Some(decode) => decode(unit, group, codes),
            None => level.run(DecodeCodes { rate, codebook, unit, group, codes: &mut *codes }),
        }
        match kernels.multiply {
            Some(multiply) => multiply(codes, group, rows, sums),
            None => level.run(portable::Multiply { codes, group, rows, sums: &mut *sums }),
        }
    }
}

/// One unit with exact values.
fn add_exact(
    level: Level,
    matrix: &TrellisMatrix,
    unit: &[u16],
    (rotated, rows, input): (&Rotated, Range<usize>, usize),
    values: &mut Values,
    sums: &mut [Sums],
) {
    let (rate, codebook) = (matrix.rate, matrix.codebook);
    for group in 0..GROUPS {
        level.run(DecodeValues { rate, codebook, unit, group, values: &mut *values });
        for (row, sums) in rows.clone().zip(&mut *sums) {
            let activations = &rotated.values[(row * rotated.blocks + input) * UNIT..][..UNIT];
            level.run(portable::MultiplyExact { values, group, activations, sums });
        }
    }
}
