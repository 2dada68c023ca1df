//! [`tensor::Op::Linear`] and [`tensor::Op::Embed`] with trellis weights, of all rates and codebooks.
//!
//! `y = svh ∘ H Cᵀ z` with `z = H (suh ∘ x)`, as [`tensor::format::trellis::Linear`] has it. What is rounded to 8 bits
//! is `z`, so that the errors are those of sums over the inputs of `z` and not of `x`.

use std::sync::Arc;

use half::f16;
use tensor::format::trellis::hadamard::{BLOCK, sum_and_subtract_rows};
use tensor::format::trellis::{Codebook, Linear, Rate, SIDE, Scales, tile};
use tensor::{BufferId, DType, Op, Precision, Rows, Scalar, TrellisFormat, WeightFormat};

use crate::bound::{UNIT, sum_of_roundings, sum_roundings};
use crate::format::RandomWeight;
use crate::layer;
use crate::linear::sums;
use crate::random::Random;
use crate::setup::{Outputs, PRECISIONS, Setup, VOCABULARY, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[
    Case { name: "trellis/linear/3inst", work: Work::Compare(|visit| linear(Codebook::ThreeInst, visit)) },
    Case { name: "trellis/linear/mcg", work: Work::Compare(|visit| linear(Codebook::Mcg, visit)) },
    Case { name: "trellis/linear/mul1", work: Work::Compare(|visit| linear(Codebook::Mul1, visit)) },
    Case { name: "trellis/large", work: Work::Compare(large) },
    Case { name: "trellis/embed", work: Work::Compare(embed) },
    Case { name: "trellis/shared", work: Work::Compare(shared) },
    Case { name: "trellis/feed_forward", work: Work::Compare(feed_forward) },
    Case { name: "trellis/model", work: Work::Compare(|visit| layer::layers_in(format(5, Codebook::Mul1, 0), visit)) },
];

/// Roundings of an f32 that goes through a rotation, relative to the magnitudes of the block that it is a sum of: a
/// product, seven sums, the scale, and one more.
const ROTATION: f64 = 10.0 * UNIT;

/// The same for a weight that goes through both rotations, relative to its scales: sums of 128 × 128 values of size 1,
/// whose roundings grow as the sums do. Four times what is expected of the fourteen sums.
const DEQUANTIZED: f64 = 64.0 * UNIT;

/// The largest error of a value of a codebook under [`Precision::Fast`]: half of the last place of a binary16 from 2 to
/// 4, which no value is beyond.
const CODE: f64 = 1.0 / (1 << 10) as f64;

/// Under [`Precision::Fast`] a value may be multiplied as the sum of two terms; the magnitude that they have more than
/// it, about: the offset of MUL1.
const TERM: f64 = 3.5;

/// What the bounds need to know of a trellis weight. The padded sizes count.
#[derive(Clone, Debug)]
pub struct Terms {
    scales: Scales,
    /// The tiles' values, `[outputs, inputs]`.
    values: Vec<f32>,
    /// The magnitudes of the same, rotated along the outputs and times their scales.
    rotated: Vec<f32>,
}

impl Terms {
    fn new(linear: &Linear<'_>) -> Terms {
        let (inputs, outputs) = (linear.inputs(), linear.outputs());
        let mut values = vec![0.0; inputs * outputs];
        for row in 0..inputs / SIDE {
            for column in 0..outputs / SIDE {
                let decoded = tile::decode(linear.codebook(), linear.rate(), linear.tile(row, column));
                for (index, value) in decoded.into_iter().enumerate() {
                    values[(column * SIDE + index % SIDE) * inputs + row * SIDE + index / SIDE] = value;
                }
            }
        }
        let mut rotated = values.clone();
        let blocks = rotated.chunks_exact_mut(BLOCK * inputs).zip(linear.svh().chunks_exact(BLOCK));
        for (rows, svh) in blocks {
            sum_and_subtract_rows(rows, inputs);
            for (row, svh) in rows.chunks_exact_mut(inputs).zip(svh) {
                row.iter_mut().for_each(|value| *value = (*value * svh.to_f32()).abs() / (BLOCK as f32).sqrt());
            }
        }
        Terms { scales: Scales::from(linear), values, rotated }
    }

    fn inputs(&self) -> usize {
        self.scales.suh.len()
    }

    /// The inputs `z` of a row of activations, and for each block the sum of magnitudes that its rotation adds up.
    fn rotate(&self, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let suh = self.scales.suh.iter().map(|scale| scale.to_f64());
        let x = x.iter().map(|&x| f64::from(x)).chain(std::iter::repeat(0.0));
        let mut z: Vec<f64> = suh.zip(x).map(|(scale, x)| scale * x).collect();
        let mut spreads = Vec::new();
        for block in z.chunks_exact_mut(BLOCK) {
            spreads.push(block.iter().map(|value| value.abs()).sum::<f64>() * root());
            sum_and_subtract_rows(block, 1);
            block.iter_mut().for_each(|value| *value *= root());
        }
        (z, spreads)
    }
}

fn root() -> f64 {
    1.0 / (BLOCK as f64).sqrt()
}

/// A random weight `[rows, columns]`: tiles of random bits, some of them all ones or zeros; scales of either sign,
/// those of the inputs the same for the same rotation.
pub fn random_trellis(format: TrellisFormat, rows: usize, columns: usize, seed: u64) -> RandomWeight {
    let (inputs, outputs) = TrellisFormat::padded(rows, columns).expect("a small weight");
    let scales = |seed: u64, count: usize, low: f32, high: f32| -> Vec<f16> {
        let mut random = Random::new(seed);
        let mut scale = || random.uniform(low, high).exp2() * if random.below(2) == 0 { 1.0 } else { -1.0 };
        (0..count).map(|_| f16::from_f32(scale())).collect()
    };
    let suh = scales(u64::from(format.rotation), inputs, -1.0, 1.0);
    let svh = scales(seed ^ 1, outputs, -6.0, -4.0);
    let mut random = Random::new(seed);
    let mut linear = Linear::new(format.rate, format.codebook, suh, svh).expect("a rate of the codebook");
    for row in 0..inputs / SIDE {
        for column in 0..outputs / SIDE {
            let bytes = linear.tile_mut(row, column);
            match random.below(64) {
                0 => bytes.fill(0),
                1 => bytes.fill(0xff),
                _ => bytes.iter_mut().for_each(|byte| *byte = random.bits() as u8),
            }
        }
    }
    let mut magnitudes = vec![0.0; rows * columns];
    linear.dequantize_unpadded(columns, &mut magnitudes);
    magnitudes.iter_mut().for_each(|value| *value = value.abs());
    let terms = Some(Arc::new(Terms::new(&linear)));
    RandomWeight { bytes: linear.trellis().to_vec(), magnitudes, terms }
}

impl RandomWeight {
    /// The scales, if it is a trellis.
    pub fn scales(&self) -> Option<&Scales> {
        self.terms.as_ref().map(|terms| &terms.scales)
    }
}

/// The errors of the outputs. What came in goes through the whole weight, as for other formats; then come, from the
/// inside out: the roundings of `z`, independent of each other, through the rotated tiles; the running errors of the
/// sums over the inputs, and under [`Precision::Fast`] the roundings of the tiles' values, through the rotation of the
/// outputs; that rotation's own; and those of the reference's weights.
pub(crate) fn error(weight: &RandomWeight, precision: Precision, columns: usize, x: &[f32], e: &[f64]) -> Vec<f64> {
    let terms = weight.terms.as_ref().expect("a trellis");
    let rows = x.chunks_exact(columns).zip(e.chunks_exact(columns));
    rows.flat_map(|(x, e)| row_error(weight, terms, precision, x, e)).collect()
}

fn row_error(weight: &RandomWeight, terms: &Terms, precision: Precision, x: &[f32], e: &[f64]) -> Vec<f64> {
    let inputs = terms.inputs();
    let fast = precision == Precision::Fast;
    let (z, spreads) = terms.rotate(x);
    let came_in = terms.rotate(&e.iter().map(|&e| e as f32).collect::<Vec<_>>()).1;
    let (mut roundings, mut sizes) = (Vec::with_capacity(inputs), Vec::with_capacity(inputs));
    for ((z, spread), came_in) in z.chunks_exact(BLOCK).zip(&spreads).zip(came_in) {
        let largest = z.iter().fold(0.0, |largest: f64, z| largest.max(z.abs())) + came_in;
        // Half a step of 8 bits, and a thousandth of it for the arithmetic of the scale.
        let rounding = ROTATION * spread + if fast { 1.001 * largest / 254.0 } else { 0.0 };
        roundings.extend([rounding; BLOCK]);
        sizes.extend(z.iter().map(|z| z.abs() + came_in + rounding));
    }
    let unit = UNIT * sum_roundings(inputs);
    let (all, squares) = sizes.iter().fold((0.0, 0.0), |(sum, squares), size| (sum + size, squares + size * size));
    let terms_size = if fast { TERM } else { 0.0 };
    let codes = if fast { sum_of_roundings(CODE * all, CODE * CODE * squares) } else { 0.0 };
    let inner: Vec<(f64, f64)> = terms
        .values
        .chunks_exact(inputs)
        .map(|values| {
            let running = unit * (sums_of_magnitudes(values, &sizes) + terms_size * all);
            let sum: f64 = values.iter().zip(&z).map(|(&value, z)| f64::from(value) * z).sum();
            (running + codes, sum.abs())
        })
        .collect();
    let columns = x.len();
    let decoded = terms.scales.suh.iter().zip(x).map(|(suh, &x)| (suh.to_f64() * f64::from(x)).powi(2)).sum::<f64>();
    (0..weight.magnitudes.len() / columns)
        .map(|output| {
            let block = &inner[output / BLOCK * BLOCK..][..BLOCK];
            let (sum, squares) = block.iter().fold((0.0, 0.0), |(sum, squares), (e, _)| (sum + e, squares + e * e));
            let outer = sum_of_roundings(sum, squares) + ROTATION * block.iter().map(|(_, c)| c).sum::<f64>();
            let (svh, rotated) = (terms.scales.svh[output].to_f64().abs(), &terms.rotated[output * inputs..][..inputs]);
            let own = DEQUANTIZED * sum_of_roundings(f64::INFINITY, decoded);
            let mut error = svh * (outer * root() + own);
            for (magnitudes, errors) in
                [(rotated, &roundings[..]), (&weight.magnitudes[output * columns..][..columns], e)]
            {
                let (sum, squares) = sums(magnitudes, errors);
                error += sum_of_roundings(sum, squares);
            }
            error
        })
        .collect()
}

/// `Σ |v|·c`.
fn sums_of_magnitudes(values: &[f32], sizes: &[f64]) -> f64 {
    values.iter().zip(sizes).map(|(&value, size)| f64::from(value.abs()) * size).sum()
}

/// The errors of rows of a table: those of the reference and of the backend, and under [`Precision::Fast`] the
/// roundings of 128 × 128 values.
pub(crate) fn embed_error(
    weight: &RandomWeight,
    precision: Precision,
    hidden: usize,
    tokens: &[u32],
    scale: f32,
) -> Vec<f64> {
    let scales = weight.scales().expect("a trellis");
    let codes = if precision == Precision::Fast { sum_of_roundings(f64::INFINITY, CODE * CODE) } else { 0.0 };
    let factor = f64::from(scale.abs()) * (2.0 * sum_of_roundings(f64::INFINITY, DEQUANTIZED * DEQUANTIZED) + codes);
    let element =
        |token: u32, column: usize| factor * (scales.svh[token as usize].to_f64() * scales.suh[column].to_f64()).abs();
    tokens.iter().flat_map(|&token| (0..hidden).map(move |column| element(token, column))).collect()
}

fn format(half_bits: usize, codebook: Codebook, rotation: u32) -> TrellisFormat {
    TrellisFormat { rate: Rate::from_half_bits(half_bits).expect("a rate"), codebook, rotation }
}

/// The rates that a codebook has.
fn rates(codebook: Codebook) -> impl Iterator<Item = Rate> {
    Rate::ALL.into_iter().filter(move |rate| !rate.is_half() || codebook == Codebook::Mul1)
}

/// Sizes that are padded and sizes that are not, with all rates.
fn linear(codebook: Codebook, visit: Visit<'_>) -> Result<(), Failure> {
    for rate in rates(codebook) {
        let columns = if rate.is_half() { 256 } else { 200 };
        let mut setup = Setup::new(rate.half_bits() as u64);
        let input = setup.input(columns, Values::Awkward);
        for (rotation, out) in [(0, 130), (1, 128), (0, 7)] {
            let weight = setup.weight(TrellisFormat { rate, codebook, rotation }, out, columns);
            let output = setup.scratch(Rows::Tokens, out);
            setup.push(Op::Linear { weight, input, output });
            setup.read(output);
        }
        let (selected, output) = (setup.scratch(Rows::Outputs, columns), setup.scratch(Rows::Outputs, 61));
        let weight = setup.weight(TrellisFormat { rate, codebook, rotation: 2 }, 61, columns);
        setup.push(Op::SelectOutputs { input, output: selected });
        setup.push(Op::Linear { weight, input: selected, output });
        setup.read(output);
        for (index, tokens) in [1, 2, 3, 5, 8, 9, 17, 33].into_iter().enumerate() {
            let outputs = [Outputs::All, Outputs::Last, Outputs::Third, Outputs::None][index % 4];
            setup.pass(&[(0, 0, tokens)], outputs);
        }
        visit(&setup.finish(format!("linear {codebook} {rate} [130, {columns}]"), PRECISIONS))?;
    }
    Ok(())
}

/// Products that are divided among threads and workgroups in several ways.
fn large(visit: Visit<'_>) -> Result<(), Failure> {
    for (rows, columns) in [(515, 1280), (1152, 384), (128, 4224)] {
        let mut setup = Setup::new(rows as u64);
        let input = setup.input(columns, Values::Normal(1.0));
        let weight = setup.weight(format(5, Codebook::Mul1, 0), rows, columns);
        let output = setup.scratch(Rows::Tokens, rows);
        setup.push(Op::Linear { weight, input, output });
        setup.read(output);
        setup.passes_of(&[1, 2, 4, 8, 34]);
        visit(&setup.finish(format!("linear mul1 2.5 [{rows}, {columns}]"), PRECISIONS))?;
    }
    Ok(())
}

fn embed(visit: Visit<'_>) -> Result<(), Failure> {
    for codebook in Codebook::ALL {
        for rate in rates(codebook).step_by(2) {
            let hidden = if rate.half_bits() % 4 == 0 { 384 } else { 200 };
            let mut setup = Setup::new(rate.half_bits() as u64 ^ 0xe3);
            let table = setup.weight(TrellisFormat { rate, codebook, rotation: 0 }, VOCABULARY, hidden);
            let output = setup.scratch(Rows::Tokens, hidden);
            setup.push(Op::Embed { table, scale: Scalar((hidden as f32).sqrt()), output });
            setup.read(output);
            setup.passes_of(&[1, 2, 17, 70]);
            visit(&setup.finish(format!("embed {codebook} {rate} [{VOCABULARY}, {hidden}]"), PRECISIONS))?;
        }
    }
    Ok(())
}

/// What a norm gives, multiplied with weights of the same rotation and of others, of several rates, and of a block
/// format in between.
fn shared(visit: Visit<'_>) -> Result<(), Failure> {
    const WIDTH: usize = 512;
    let mul1 = |half_bits, rotation| WeightFormat::Trellis(format(half_bits, Codebook::Mul1, rotation));
    let groups: [&[WeightFormat]; 4] = [
        &[mul1(5, 0), mul1(5, 0), mul1(5, 0)],
        &[mul1(4, 0), mul1(7, 0), mul1(5, 1), mul1(5, 0)],
        &[mul1(5, 0), DType::Q4_0.into(), mul1(6, 0), DType::Q6_K.into(), mul1(6, 0)],
        &[mul1(6, 0), format(6, Codebook::Mcg, 0).into(), format(6, Codebook::ThreeInst, 0).into()],
    ];
    for (index, formats) in groups.into_iter().enumerate() {
        let mut setup = Setup::new(index as u64 ^ 0x5a);
        let input = setup.input(WIDTH, Values::Awkward);
        let normed = setup.scratch(Rows::Tokens, WIDTH);
        layer::norm(&mut setup, input, WIDTH, normed);
        for (number, &format) in formats.iter().enumerate() {
            product(&mut setup, format, normed, ([256, 128, 128][number % 3], WIDTH));
        }
        setup.passes_of(&[1, 2, 8, 17]);
        visit(&setup.finish(format!("norm and linear, {formats:?}"), PRECISIONS))?;
    }
    Ok(())
}

fn product(setup: &mut Setup, format: WeightFormat, input: BufferId, (rows, columns): (usize, usize)) {
    let (weight, output) = (setup.weight(format, rows, columns), setup.scratch(Rows::Tokens, rows));
    setup.push(Op::Linear { weight, input, output });
    setup.read(output);
}

/// Gate and up with the same rotation, with different ones, and of different rates; then down.
fn feed_forward(visit: Visit<'_>) -> Result<(), Failure> {
    const SIZES: (usize, usize) = (256, 640);
    for (gate, up) in [((5, 0), (5, 0)), ((5, 0), (5, 1)), ((4, 0), (6, 0))] {
        let mut setup = Setup::new(gate.0 as u64);
        let input = setup.input(SIZES.0, Values::Normal(8.0));
        let [gated, upped] = [gate, up].map(|(half_bits, rotation)| {
            let weight = setup.weight(format(half_bits, Codebook::Mul1, rotation), SIZES.1, SIZES.0);
            let output = setup.scratch(Rows::Tokens, SIZES.1);
            setup.push(Op::Linear { weight, input, output });
            output
        });
        setup.push(Op::GeluMul { gate: gated, up: upped, output: gated });
        product(&mut setup, format(5, Codebook::Mul1, 2).into(), gated, (SIZES.0, SIZES.1));
        setup.passes_of(&[1, 2, 8, 17]);
        visit(&setup.finish(format!("feed-forward, gate {gate:?} and up {up:?}"), PRECISIONS))?;
    }
    Ok(())
}
