//! [`tensor::Op::Linear`], in every format.

use tensor::{BufferId, DType, Op, Precision, Rows, Scalar};

use crate::bound::{UNIT, UNIT_BF16, sum_of_roundings, sum_roundings};
use crate::setup::{Outputs, PRECISIONS, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[
    Case { name: "linear/f32", work: Work::Compare(|visit| run(DType::F32, visit)) },
    Case { name: "linear/f16", work: Work::Compare(|visit| run(DType::F16, visit)) },
    Case { name: "linear/bf16", work: Work::Compare(|visit| run(DType::BF16, visit)) },
    Case { name: "linear/q4_0", work: Work::Compare(|visit| run(DType::Q4_0, visit)) },
    Case { name: "linear/q4_1", work: Work::Compare(|visit| run(DType::Q4_1, visit)) },
    Case { name: "linear/q5_0", work: Work::Compare(|visit| run(DType::Q5_0, visit)) },
    Case { name: "linear/q5_1", work: Work::Compare(|visit| run(DType::Q5_1, visit)) },
    Case { name: "linear/q8_0", work: Work::Compare(|visit| run(DType::Q8_0, visit)) },
    Case { name: "linear/q2_k", work: Work::Compare(|visit| run(DType::Q2_K, visit)) },
    Case { name: "linear/q3_k", work: Work::Compare(|visit| run(DType::Q3_K, visit)) },
    Case { name: "linear/q4_k", work: Work::Compare(|visit| run(DType::Q4_K, visit)) },
    Case { name: "linear/q5_k", work: Work::Compare(|visit| run(DType::Q5_K, visit)) },
    Case { name: "linear/q6_k", work: Work::Compare(|visit| run(DType::Q6_K, visit)) },
    Case { name: "linear/tall", work: Work::Compare(tall) },
    Case { name: "linear/mixed", work: Work::Compare(mixed) },
];

/// Columns that share a scale when activations are rounded to 8 bits.
pub(crate) const INTEGER_BLOCK: usize = 32;

/// The largest error of each element from rounding an input for a product with weights of a format, as
/// [`Precision::Fast`] allows: half a step of `max|x| / 127` over its block for integer products, `2⁻⁸·|x|` for bf16
/// (which 16-bit weights may be multiplied in), none for f32.
pub(crate) fn input_rounding(precision: Precision, dtype: DType, columns: usize, x: &[f32], e: &[f64]) -> Vec<f64> {
    match (precision, dtype) {
        (Precision::F32, _) | (_, DType::F32) => vec![0.0; x.len()],
        (Precision::Fast, DType::BF16 | DType::F16) => {
            x.iter().zip(e).map(|(&x, e)| UNIT_BF16 * (f64::from(x).abs() + e)).collect()
        }
        (Precision::Fast, _) => {
            x.chunks(columns).zip(e.chunks(columns)).flat_map(|(x, e)| integer_rounding(x, e)).collect()
        }
    }
}

/// Half a step of each block of a row, and a thousandth of it for the f32 arithmetic of scale and quotient (which move
/// a value of 127 steps by up to 127·4u, far less than that).
pub(crate) fn integer_rounding(x: &[f32], e: &[f64]) -> Vec<f64> {
    let mut rounding = Vec::with_capacity(x.len());
    for (x, e) in x.chunks(INTEGER_BLOCK).zip(e.chunks(INTEGER_BLOCK)) {
        let largest = x.iter().zip(e).map(|(&x, e)| f64::from(x).abs() + e).fold(0.0, f64::max);
        rounding.extend(std::iter::repeat_n(1.001 * largest / 254.0, x.len()));
    }
    rounding
}

/// With `m ≥ |w|` the magnitude of a weight's terms and `r` the roundings of the input: what came in, `m·e`, and the
/// roundings, `m·r`, both as sums of independent terms, and the running error of the sum, relative to `Σ m·(|x| + e)`.
/// That what came in is no worst case here is due to the weights: their signs are random, and were not known when the
/// errors were made.
pub(crate) fn error(magnitudes: &[f32], columns: usize, x: &[f32], e: &[f64], rounding: &[f64]) -> Vec<f64> {
    let unit = UNIT * sum_roundings(columns);
    let mut errors = Vec::with_capacity(x.len() / columns * (magnitudes.len() / columns));
    for row in 0..x.len() / columns {
        let range = row * columns..(row + 1) * columns;
        let (e, rounding) = (&e[range.clone()], &rounding[range.clone()]);
        let size: Vec<f64> = x[range].iter().zip(e).map(|(&x, e)| f64::from(x).abs() + e).collect();
        let (come_in, rounded) = (e.iter().any(|&e| e > 0.0), rounding.iter().any(|&r| r > 0.0));
        for magnitudes in magnitudes.chunks_exact(columns) {
            let mut error = unit * sums(magnitudes, &size).0;
            for (errors, any) in [(e, come_in), (rounding, rounded)] {
                if any {
                    let (sum, squares) = sums(magnitudes, errors);
                    error += sum_of_roundings(sum, squares);
                }
            }
            errors.push(error);
        }
    }
    errors
}

/// `Σ m·c` and `Σ (m·c)²`, in eight sums side by side so that the compiler can use vector instructions.
pub(crate) fn sums(magnitudes: &[f32], errors: &[f64]) -> (f64, f64) {
    const LANES: usize = 8;
    let (mut sum, mut squares) = ([0f64; LANES], [0f64; LANES]);
    let (ms, ms_rest) = magnitudes.as_chunks::<LANES>();
    let (cs, cs_rest) = errors.as_chunks::<LANES>();
    for (m, c) in ms.iter().zip(cs) {
        for lane in 0..LANES {
            let term = f64::from(m[lane]) * c[lane];
            sum[lane] += term;
            squares[lane] += term * term;
        }
    }
    for (lane, (&m, c)) in ms_rest.iter().zip(cs_rest).enumerate() {
        let term = f64::from(m) * c;
        sum[lane] += term;
        squares[lane] += term * term;
    }
    (sum.iter().sum(), squares.iter().sum())
}

/// Output sizes around the 16 rows that kernels like to take at once.
const OUT: [usize; 6] = [1, 3, 16, 17, 63, 130];

/// Numbers of tokens around the sizes of tiles.
const TOKENS: [usize; 11] = [1, 2, 3, 5, 7, 8, 15, 16, 17, 33, 70];

fn run(dtype: DType, visit: Visit<'_>) -> Result<(), Failure> {
    let columns: &[usize] = match dtype.block_len() {
        1 => &[1, 7, 33, 100, 256],
        32 => &[32, 64, 96, 160, 352],
        _ => &[256, 512, 768],
    };
    for (index, &columns) in columns.iter().enumerate() {
        let mut setup = Setup::new(index as u64 ^ 0x11);
        let input = setup.input(columns, if index == 1 { Values::Normal(1.0) } else { Values::Awkward });
        for out in OUT {
            let weight = setup.weight(dtype, out, columns);
            let output = setup.scratch(Rows::Tokens, out);
            setup.push(Op::Linear { weight, input, output });
            setup.read(output);
        }
        // The head: only rows whose output is wanted.
        let (selected, output) = (setup.scratch(Rows::Outputs, columns), setup.scratch(Rows::Outputs, 35));
        let weight = setup.weight(dtype, 35, columns);
        setup.push(Op::SelectOutputs { input, output: selected });
        setup.push(Op::Linear { weight, input: selected, output });
        setup.read(output);
        for (index, &tokens) in TOKENS.iter().enumerate() {
            let outputs = [Outputs::All, Outputs::Last, Outputs::Third, Outputs::None][index % 4];
            setup.pass(&[(0, 0, tokens)], outputs);
        }
        visit(&setup.finish(format!("linear {dtype} [{OUT:?}, {columns}]"), PRECISIONS))?;
    }
    large(dtype, visit)
}

/// A product that is large enough to be divided among threads in several ways.
fn large(dtype: DType, visit: Visit<'_>) -> Result<(), Failure> {
    const SHAPE: (usize, usize) = (259, 1280);
    let mut setup = Setup::new(0x1a);
    let input = setup.input(SHAPE.1, Values::Normal(1.0));
    let (weight, output) = (setup.weight(dtype, SHAPE.0, SHAPE.1), setup.scratch(Rows::Tokens, SHAPE.0));
    setup.push(Op::Linear { weight, input, output });
    setup.read(output);
    setup.passes_of(&[1, 4, 34]);
    visit(&setup.finish(format!("linear {dtype} {SHAPE:?}"), PRECISIONS))
}

/// Weights of several formats that multiply the same activations: what a norm gives, and what gate and up give. A
/// backend may arrange these for the format that comes first.
fn mixed(visit: Visit<'_>) -> Result<(), Failure> {
    const FORMATS: [DType; 5] = [DType::Q4_0, DType::Q4_K, DType::Q6_K, DType::Q2_K, DType::Q8_0];
    const WIDTHS: (usize, usize) = (512, 768);
    for first in 0..FORMATS.len() {
        let formats: Vec<DType> = FORMATS.iter().cycle().skip(first).take(FORMATS.len()).copied().collect();
        let mut setup = Setup::new(first as u64 ^ 0x3d);
        let input = setup.input(WIDTHS.0, Values::Normal(1.0));
        let (weight, normed) = (setup.norm_weight(WIDTHS.0), setup.scratch(Rows::Tokens, WIDTHS.0));
        setup.push(Op::RmsNorm { input, weight, epsilon: Scalar(1e-6), output: normed });
        products(&mut setup, normed, WIDTHS.0, &formats);
        let [gate, up, gated] = [(); 3].map(|()| setup.scratch(Rows::Tokens, WIDTHS.1));
        for output in [gate, up] {
            let weight = setup.weight(formats[1], WIDTHS.1, WIDTHS.0);
            setup.push(Op::Linear { weight, input: normed, output });
        }
        setup.push(Op::GeluMul { gate, up, output: gated });
        products(&mut setup, gated, WIDTHS.1, &formats);
        setup.passes_of(&[1, 2, 7]);
        visit(&setup.finish(format!("linear {formats:?} {WIDTHS:?}"), PRECISIONS))?;
    }
    Ok(())
}

/// A product with each of the formats, all of them read.
fn products(setup: &mut Setup, input: BufferId, width: usize, formats: &[DType]) {
    for &dtype in formats {
        let (weight, output) = (setup.weight(dtype, 65, width), setup.scratch(Rows::Tokens, 65));
        setup.push(Op::Linear { weight, input, output });
        setup.read(output);
    }
}

/// Products of so many rows that a backend may take several at a time: `(rows, columns)` and numbers of tokens.
fn tall(visit: Visit<'_>) -> Result<(), Failure> {
    const BLOCKS_OF_32: [((usize, usize), &[usize]); 3] =
        [((16_403, 256), &[1, 4, 5]), ((8_197, 288), &[1]), ((4_099, 8_224), &[1])];
    const BLOCKS_OF_256: [((usize, usize), &[usize]); 2] = [((16_403, 256), &[1, 4, 5]), ((8_197, 512), &[1])];
    for dtype in [DType::Q4_0, DType::Q4_K, DType::Q6_K] {
        let shapes = if dtype.block_len() == 32 { &BLOCKS_OF_32[..] } else { &BLOCKS_OF_256[..] };
        for &((rows, columns), tokens) in shapes {
            let mut setup = Setup::new(rows as u64 ^ 0x7a);
            let input = setup.input(columns, Values::Normal(1.0));
            let (weight, output) = (setup.weight(dtype, rows, columns), setup.scratch(Rows::Tokens, rows));
            setup.push(Op::Linear { weight, input, output });
            setup.read(output);
            setup.passes_of(tokens);
            visit(&setup.finish(format!("linear {dtype} [{rows}, {columns}]"), PRECISIONS))?;
        }
    }
    Ok(())
}
