//! Linear layers: `output = input · weightᵀ`.

use tensor::DType;

use crate::activations::Activations;
use crate::aligned::Aligned;
use crate::cache::{decode_halves, f16_to_f32};
use crate::isa::{self, Output};
use crate::kernel::math::reduce;
use crate::level::{Level, Vectorized, multiply_add};
use crate::pool::Pool;
use crate::weight::{RowMatrix, Weight};

/// One product of a group that shares its input.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a Weight,
    pub(crate) output: Output,
}

/// Bytes of weights below which taking a task costs more than waiting for the thread that has it.
const TASK_BYTES: usize = 24 << 10;

/// Weight rows that are decoded at once in the floating-point way.
const FLOAT_ROWS: usize = 4;
/// Tokens that share a pass over decoded rows.
const FLOAT_TOKENS: usize = 2;

/// Multiplies one input `[rows, columns]` with several weights in one parallel region.
pub(crate) fn linear(
    level: Level,
    pool: &Pool,
    activations: &mut Activations,
    input: &[f32],
    columns: usize,
    products: &[Product<'_>],
) {
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
                    Weight::Rows(matrix) => multiply_rows(level, matrix, input, part, product.output),
                }
            }
            first += units;
        }
    });
}

/// What the rows of a weight are dealt out in: panels, or groups of rows.
fn units(weight: &Weight) -> usize {
    match weight {
        Weight::Panels(matrix) => matrix.panels(),
        Weight::Rows(matrix) => matrix.rows.div_ceil(FLOAT_ROWS),
    }
}

/// The floating-point way: decode some rows, multiply them with all tokens.
fn multiply_rows(level: Level, matrix: &RowMatrix, input: &[f32], part: std::ops::Range<usize>, output: Output) {
    let columns = matrix.columns;
    let mut decoded = Aligned::<f32>::new(FLOAT_ROWS * columns);
    for unit in part {
        let first = unit * FLOAT_ROWS;
        let rows = FLOAT_ROWS.min(matrix.rows - first);
        for row in 0..rows {
            let values = &mut decoded[row * columns..(row + 1) * columns];
            level.run(Decode { dtype: matrix.dtype, bytes: matrix.row(first + row), values });
        }
        for (index, tokens) in input.chunks(FLOAT_TOKENS * columns).enumerate() {
            let sums = level.run(DotRows { weights: &decoded, tokens, columns });
            for token in 0..tokens.len() / columns {
                // SAFETY: the rows of the caller's range are this thread's alone.
                unsafe { output.write(index * FLOAT_TOKENS + token, first, &sums[token][..rows]) };
            }
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

/// Dot products of [`FLOAT_ROWS`] weight rows with up to [`FLOAT_TOKENS`] tokens.
struct DotRows<'a> {
    weights: &'a [f32],
    tokens: &'a [f32],
    columns: usize,
}

impl Vectorized for DotRows<'_> {
    type Output = [[f32; FLOAT_ROWS]; FLOAT_TOKENS];
    #[inline(always)]
    fn run<const FMA: bool>(self) -> Self::Output {
        if self.tokens.len() == self.columns {
            let [only] = dot_rows::<FMA, 1>(self.weights, self.tokens, self.columns);
            [only, [0.0; FLOAT_ROWS]]
        } else {
            dot_rows::<FMA, FLOAT_TOKENS>(self.weights, self.tokens, self.columns)
        }
    }
}

#[inline(always)]
fn dot_rows<const FMA: bool, const T: usize>(
    weights: &[f32],
    tokens: &[f32],
    columns: usize,
) -> [[f32; FLOAT_ROWS]; T] {
    let mut sums = [[[0.0f32; 16]; FLOAT_ROWS]; T];
    let vectors = columns / 16;
    for vector in 0..vectors {
        for row in 0..FLOAT_ROWS {
            let weight: &[f32; 16] = weights[row * columns + vector * 16..][..16].try_into().expect("16 floats");
            for token in 0..T {
                let input: &[f32; 16] = tokens[token * columns + vector * 16..][..16].try_into().expect("16 floats");
                for lane in 0..16 {
                    sums[token][row][lane] = multiply_add::<FMA>(weight[lane], input[lane], sums[token][row][lane]);
                }
            }
        }
    }
    let mut result = [[0.0; FLOAT_ROWS]; T];
    for token in 0..T {
        for row in 0..FLOAT_ROWS {
            let mut tail = 0.0;
            for column in vectors * 16..columns {
                tail += weights[row * columns + column] * tokens[token * columns + column];
            }
            result[token][row] = reduce(sums[token][row]) + tail;
        }
    }
    result
}
