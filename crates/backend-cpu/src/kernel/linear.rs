//! Linear layers: `output = input · weightᵀ`.

use tensor::DType;

use crate::activations::Activations;
use crate::aligned::Aligned;
use crate::cache::{decode_halves, f16_to_f32};
use crate::isa::{self, Output};
use crate::kernel::math::dot;
use crate::kernel::trellis;
use crate::level::{Level, Vectorized, multiply_add};
use crate::pool::Pool;
use crate::trellis::Rotated;
use crate::weight::{RowMatrix, Weight};

/// One product of a group that shares its input.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a Weight,
    pub(crate) output: Output,
}

/// Bytes of weights below which taking a task costs more than waiting for the thread that has it.
const TASK_BYTES: usize = 24 << 10;

/// Weight rows that are decoded at once for floating-point products: the lanes of the sums.
const FLOAT_ROWS: usize = 16;
/// Columns of a decoded piece of these rows: 16 KiB, which stay in the first-level cache while tokens pass.
const FLOAT_COLUMNS: usize = 256;
/// Bytes of decoded weights, and of inputs of tokens, that stay in the second-level cache: for these tokens all of
/// these weights are gone through before the next come.
const FLOAT_DECODED_BYTES: usize = 128 << 10;
const FLOAT_INPUT_BYTES: usize = 128 << 10;
/// Tokens are gone through by a multiple of what any level takes at once.
const FLOAT_TOKENS: usize = 24;
/// Up to this many tokens, rearranging the decoded weights costs more than it gains.
const FLOAT_FEW: usize = 4;

/// Room for an input in the forms that weights are multiplied with.
pub(crate) struct Inputs {
    /// Rounded, for panels.
    pub(crate) activations: Activations,
    /// Rotated, for trellises.
    pub(crate) rotated: Rotated,
}

/// Multiplies one input `[rows, columns]` with several weights: trellises in one parallel region for each rotation, all
/// others in one together.
pub(crate) fn linear(
    level: Level,
    pool: &Pool,
    inputs: &mut Inputs,
    input: &[f32],
    columns: usize,
    products: &[Product<'_>],
) {
    let Inputs { activations, rotated } = inputs;
    multiply_trellises(level, pool, rotated, input, columns, products);
    if products.iter().all(|product| matches!(product.weight, Weight::Trellis(_))) {
        return;
    }
    if products.iter().any(|product| matches!(product.weight, Weight::Panels(_))) {
        activations.quantize(level, pool, input, columns);
    }
    let activations = &*activations;
    let units: Vec<usize> = products.iter().map(|product| units(product.weight)).collect();
    let count: usize = units.iter().sum();
    let bytes: usize = products.iter().map(|product| product.weight.bytes()).sum();
    let grain = (TASK_BYTES * count).div_ceil(bytes.max(1)).max(1);
    pool.for_shrinking_ranges(count, grain, &|range| {
        let mut first = 0;
        for (product, &units) in products.iter().zip(&units) {
            let part = range.start.max(first)..range.end.min(first + units);
            if !part.is_empty() {
                let part = part.start - first..part.end - first;
                match product.weight {
                    Weight::Panels(matrix) => {
                        isa::multiply_panels(level, matrix, activations, part, product.output);
                    }
                    Weight::Trellis(_) => unreachable!("trellises have no units here"),
                    Weight::Rows(matrix) => multiply_rows(level, matrix, input, part, product.output),
                }
            }
            first += units;
        }
    });
}

/// The products with trellises. Those of the same rotation share its result.
fn multiply_trellises(
    level: Level,
    pool: &Pool,
    rotated: &mut Rotated,
    input: &[f32],
    columns: usize,
    products: &[Product<'_>],
) {
    let trellises = products.iter().filter_map(|product| match product.weight {
        Weight::Trellis(matrix) => Some(trellis::Product { matrix, output: product.output }),
        Weight::Panels(_) | Weight::Rows(_) => None,
    });
    let mut left: Vec<_> = trellises.collect();
    while let Some(first) = left.first() {
        let (rotation, suh) = (first.matrix.rotation, &first.matrix.suh);
        rotated.rotate(level, pool, input, columns, suh);
        let (now, later): (Vec<_>, _) = left.into_iter().partition(|product| product.matrix.rotation == rotation);
        trellis::trellis(level, pool, rotated, &now);
        left = later;
    }
}

/// What the rows of a weight are dealt out in: panels, or groups of rows. Trellises have had their turn.
fn units(weight: &Weight) -> usize {
    match weight {
        Weight::Panels(matrix) => matrix.panels(),
        Weight::Trellis(_) => 0,
        Weight::Rows(matrix) => matrix.rows.div_ceil(FLOAT_ROWS),
    }
}

/// Floating-point products of some units of rows with all tokens.
fn multiply_rows(level: Level, matrix: &RowMatrix, input: &[f32], part: std::ops::Range<usize>, output: Output) {
    let columns = matrix.columns;
    let tokens = input.len() / columns;
    let mut row = Aligned::<f32>::new(columns);
    if tokens <= FLOAT_FEW {
        for index in part.start * FLOAT_ROWS..(part.end * FLOAT_ROWS).min(matrix.rows) {
            level.run(Decode { dtype: matrix.dtype, bytes: matrix.row(index), values: &mut row });
            for (token, input) in input.chunks_exact(columns).enumerate() {
                let sum = level.run(Dot { a: &row, b: input });
                // SAFETY: the rows of the caller's range are this thread's alone.
                unsafe { output.write(token, index, &[sum]) };
            }
        }
        return;
    }
    // `[unit][column][row]` of all columns, and `[token][row]`.
    let together = (FLOAT_DECODED_BYTES / (4 * FLOAT_ROWS * columns)).max(1);
    let block = (FLOAT_INPUT_BYTES / (4 * columns * FLOAT_TOKENS)).max(1) * FLOAT_TOKENS;
    let mut decoded = Aligned::<f32>::new(columns * FLOAT_ROWS * together.min(part.len()));
    let mut sums = vec![[0.0f32; FLOAT_ROWS]; block.min(tokens)];
    for first_unit in part.clone().step_by(together) {
        let units = first_unit..(first_unit + together).min(part.end);
        for (unit, decoded) in units.clone().zip(decoded.chunks_exact_mut(columns * FLOAT_ROWS)) {
            decode_unit(level, matrix, unit, &mut row, decoded);
        }
        for (number, input) in input.chunks(block * columns).enumerate() {
            for (unit, decoded) in units.clone().zip(decoded.chunks_exact(columns * FLOAT_ROWS)) {
                let sums = &mut sums[..input.len() / columns];
                sums.fill([0.0; FLOAT_ROWS]);
                for start in (0..columns).step_by(FLOAT_COLUMNS) {
                    let end = (start + FLOAT_COLUMNS).min(columns);
                    let weights = &decoded[start * FLOAT_ROWS..end * FLOAT_ROWS];
                    add_piece(level, weights, input, columns, start, sums);
                }
                for (token, sums) in sums.iter().enumerate() {
                    // SAFETY: the rows of the caller's range are this thread's alone; lanes past the last row are
                    // dropped.
                    unsafe { output.write(number * block + token, unit * FLOAT_ROWS, sums) };
                }
            }
        }
    }
}

/// Decodes the rows of a unit to `[column][row]`; lanes past the last row keep what they have. `row` is room for one.
fn decode_unit(level: Level, matrix: &RowMatrix, unit: usize, row: &mut [f32], decoded: &mut [f32]) {
    let first = unit * FLOAT_ROWS;
    for lane in 0..FLOAT_ROWS.min(matrix.rows - first) {
        level.run(Decode { dtype: matrix.dtype, bytes: matrix.row(first + lane), values: &mut *row });
        for (values, &value) in decoded.chunks_exact_mut(FLOAT_ROWS).zip(row.iter()) {
            values[lane] = value;
        }
    }
}

/// Decodes a row; floats in a way that becomes vectors.
struct Decode<'a> {
    dtype: DType,
    bytes: &'a [u8],
    values: &'a mut [f32],
}

impl Vectorized for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        match self.dtype {
            DType::BF16 => {
                decode_halves(self.bytes, self.values, |half| f32::from_bits(u32::from(half) << 16));
            }
            DType::F16 => decode_halves(self.bytes, self.values, f16_to_f32),
            dtype => dtype.codec().decode(self.bytes, self.values),
        }
    }
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Vectorized for Dot<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<const FMA: bool>(self) -> f32 {
        dot::<FMA>(self.a, self.b)
    }
}

/// [`AddProducts`] with as many tokens at once as keep two multiply-add units busy while their sums, with the weights
/// and an input, still fit into the registers: 32 of 16 floats (AVX-512) or of 4 (NEON), 16 of 8 (AVX2) or of 4.
fn add_piece(
    level: Level,
    weights: &[f32],
    input: &[f32],
    columns: usize,
    start: usize,
    sums: &mut [[f32; FLOAT_ROWS]],
) {
    match level {
        Level::Avx512 | Level::Amx => level.run(AddProducts::<8> { weights, input, columns, start, sums }),
        Level::Avx2 | Level::Neon => level.run(AddProducts::<6> { weights, input, columns, start, sums }),
        Level::Portable => level.run(AddProducts::<2> { weights, input, columns, start, sums }),
    }
}

/// `sums[t][r] += Σ input[t][start + k] · weights[k][r]` over a piece of the columns, `T` tokens at once.
struct AddProducts<'a, const T: usize> {
    /// `[column][row]`.
    weights: &'a [f32],
    /// `[token][columns]`.
    input: &'a [f32],
    columns: usize,
    start: usize,
    sums: &'a mut [[f32; FLOAT_ROWS]],
}

impl<const T: usize> Vectorized for AddProducts<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let (columns, start, length) = (self.columns, self.start, self.weights.len() / FLOAT_ROWS);
        for (index, sums) in self.sums.chunks_mut(T).enumerate() {
            let row = |token: usize| &self.input[(index * T + token) * columns + start..][..length];
            if let Ok(sums) = <&mut [_; T]>::try_from(&mut *sums) {
                let rows: [&[f32]; T] = std::array::from_fn(row);
                add_products::<FMA, T>(self.weights, rows, sums);
            } else {
                for (token, sums) in sums.iter_mut().enumerate() {
                    add_products::<FMA, 1>(self.weights, [row(token)], std::array::from_mut(sums));
                }
            }
        }
    }
}

#[inline(always)]
fn add_products<const FMA: bool, const T: usize>(
    weights: &[f32],
    rows: [&[f32]; T],
    sums: &mut [[f32; FLOAT_ROWS]; T],
) {
    let mut totals = *sums;
    for (column, weights) in weights.chunks_exact(FLOAT_ROWS).enumerate() {
        for token in 0..T {
            let value = rows[token][column];
            for lane in 0..FLOAT_ROWS {
                totals[token][lane] = multiply_add::<FMA>(weights[lane], value, totals[token][lane]);
            }
        }
    }
    *sums = totals;
}
