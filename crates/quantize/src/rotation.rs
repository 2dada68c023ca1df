//! From weights to the numbers that tiles stand for: signs, scales and rotations of both sides.

use std::borrow::Cow;
use std::fmt;

use half::f16;
use tensor::format::trellis::hadamard::{self, BLOCK};
use tensor::philox;

use crate::error::{QuantizeError, check_finite, check_length, check_size};
use crate::parallel;

/// The least scale of an input, over the mean of all: smaller ones would make the Hessian of the rotated inputs nearly
/// singular, and save little.
const INPUT_SCALE_MIN: f64 = 1.0 / 16.0;

/// The least scale of an output that is not 0, over the mean of all: so much precision is left in binary16.
const OUTPUT_SCALE_MIN: f64 = 1.0 / 1024.0;

/// Where the random signs of inputs begin in the sequence of a seed, and those of outputs.
const INPUTS: u64 = 0;
const OUTPUTS: u64 = 1 << 32;

/// Rows of a weight that is not in memory.
pub trait WeightRows: Sync {
    /// Reads rows from `first` on, `[rows, inputs]`. All of it is filled; the same rows are the same numbers each time.
    fn read(&self, first: usize, into: &mut [f32]);
}

/// The weight of a linear layer as Hugging Face files have it, `[outputs, inputs]`, all finite.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    rows: Rows<'a>,
    outputs: usize,
    inputs: usize,
}

#[derive(Clone, Copy)]
enum Rows<'a> {
    Here(&'a [f32]),
    Elsewhere(&'a dyn WeightRows),
}

impl fmt::Debug for Weight<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight [{}, {}]", self.outputs, self.inputs)
    }
}

impl<'a> Weight<'a> {
    /// A weight `[outputs, inputs]`.
    ///
    /// # Errors
    /// If a size is no multiple of 128, `values` are not of that size, or one is not finite.
    pub fn new(values: &'a [f32], outputs: usize, inputs: usize) -> Result<Weight<'a>, QuantizeError> {
        check_length("a weight", values.len(), outputs.saturating_mul(inputs))?;
        Weight::checked(Rows::Here(values), outputs, inputs)
    }

    /// A weight of which 128 outputs are read at a time, again and again.
    ///
    /// # Errors
    /// If a size is no multiple of 128, or a number is not finite.
    pub fn from_rows(rows: &'a dyn WeightRows, outputs: usize, inputs: usize) -> Result<Weight<'a>, QuantizeError> {
        Weight::checked(Rows::Elsewhere(rows), outputs, inputs)
    }

    fn checked(rows: Rows<'a>, outputs: usize, inputs: usize) -> Result<Weight<'a>, QuantizeError> {
        check_size("inputs", inputs)?;
        check_size("outputs", outputs)?;
        let weight = Weight { rows, outputs, inputs };
        for block in 0..outputs / BLOCK {
            check_finite("the weight", &weight.block(block), inputs).map_err(|error| error.in_rows(block * BLOCK))?;
        }
        Ok(weight)
    }

    /// The outputs from `128 · block`, `[128, inputs]`.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block(&self, block: usize) -> Cow<'a, [f32]> {
        assert!(block < self.outputs / BLOCK, "no block {block} of {} outputs", self.outputs);
        match self.rows {
            Rows::Here(values) => Cow::Borrowed(&values[block * BLOCK * self.inputs..][..BLOCK * self.inputs]),
            Rows::Elsewhere(rows) => {
                let mut values = vec![0.0; BLOCK * self.inputs];
                rows.read(block * BLOCK, &mut values);
                Cow::Owned(values)
            }
        }
    }

    /// Length of an input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Length of an output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// How many elements there are.
    pub(crate) fn count(&self) -> usize {
        self.outputs * self.inputs
    }

    /// All blocks in order.
    fn blocks(&self) -> impl Iterator<Item = Cow<'a, [f32]>> {
        (0..self.outputs / BLOCK).map(|block| self.block(block))
    }

    /// The root mean square of each output's weights.
    fn output_norms(&self) -> Vec<f64> {
        let norms = |block: Cow<'_, [f32]>| {
            let rows = block.chunks_exact(self.inputs);
            rows.map(norm).collect::<Vec<_>>()
        };
        self.blocks().flat_map(norms).collect()
    }
}

/// Signs and scales for the inputs that `weights` share: the root mean square of an input's weights over all outputs,
/// each output's divided by their own root mean square. Signs are random ones of the seed.
///
/// With scales in proportion to the weights, all rotated weights have the same variance, and so all of them get as much
/// as they can from the same number of bits.
///
/// The result does not depend on the number of threads.
///
/// # Errors
/// If there is no weight, or one has another number of inputs than the first.
pub fn input_scales(weights: &[Weight<'_>], seed: u64, threads: usize) -> Result<Vec<f16>, QuantizeError> {
    let inputs = weights.first().map_or(0, Weight::inputs);
    check_size("inputs", inputs)?;
    let (mut squares, mut outputs) = (vec![0.0; inputs], 0);
    for weight in weights {
        check_length("an output's weights", weight.inputs, inputs)?;
        let blocks = (0..weight.outputs / BLOCK).collect();
        for (of_block, count) in
            parallel::map(blocks, threads, |block| normalized_squares(&weight.block(block), inputs))
        {
            outputs += count;
            squares.iter_mut().zip(of_block).for_each(|(square, of_block)| *square += of_block);
        }
    }
    if outputs == 0 {
        return to_halves("input", signs(seed, INPUTS, inputs).map(|sign| sign as f32));
    }
    let norms: Vec<f64> = squares.into_iter().map(|square| (square / f64::from(outputs)).sqrt()).collect();
    let least = norms.iter().sum::<f64>() / inputs as f64 * INPUT_SCALE_MIN;
    let scales = norms.iter().map(|norm| norm.max(least));
    to_halves("input", scales.zip(signs(seed, INPUTS, inputs)).map(|(scale, sign)| (scale * sign) as f32))
}

/// The squares of each input's weights in some outputs, each divided by its root mean square, and how many outputs are
/// not 0.
fn normalized_squares(rows: &[f32], inputs: usize) -> (Vec<f64>, u32) {
    let (mut sums, mut outputs) = (vec![0.0; inputs], 0);
    for row in rows.chunks_exact(inputs) {
        let norm = norm(row);
        if norm > 0.0 {
            outputs += 1;
            for (sum, &value) in sums.iter_mut().zip(row) {
                let value = f64::from(value) / norm;
                *sum += value * value;
            }
        }
    }
    (sums, outputs)
}

/// The root mean square.
fn norm(row: &[f32]) -> f64 {
    (squares(row) / row.len() as f64).sqrt()
}

/// Signs and scales for the outputs of a weight: the root mean square of an output's weights, divided by `deviation`,
/// which is that of the tiles' values. An output whose weights are all 0 has a scale of 0.
///
/// # Errors
/// If weights are too large or too small for scales in binary16.
pub(crate) fn output_scales(weight: &Weight<'_>, deviation: f32, seed: u64) -> Result<Vec<f16>, QuantizeError> {
    let norms = weight.output_norms();
    let least = norms.iter().sum::<f64>() / norms.len() as f64 * OUTPUT_SCALE_MIN;
    let scales = norms.iter().map(|&norm| if norm > 0.0 { norm.max(least) / f64::from(deviation) } else { 0.0 });
    to_halves("output", scales.zip(signs(seed, OUTPUTS, norms.len())).map(|(scale, sign)| (scale * sign) as f32))
}

fn to_halves(what: &'static str, scales: impl Iterator<Item = f32>) -> Result<Vec<f16>, QuantizeError> {
    let halve = |(index, value): (usize, f32)| {
        let half = f16::from_f32(value);
        let fits = half.is_finite() && (half != f16::ZERO || value == 0.0);
        if fits { Ok(half) } else { Err(QuantizeError::Scale { what, index, value }) }
    };
    scales.enumerate().map(halve).collect()
}

/// Random signs, 1 or −1, of positions of the generator from `first`.
fn signs(seed: u64, first: u64, count: usize) -> impl Iterator<Item = f64> {
    (first..first + count as u64).map(move |index| if philox::bits(seed, index) & 1 == 0 { 1.0 } else { -1.0 })
}

/// `H · diag(1 ÷ suh) · W · diag(1 ÷ svh) · H` for the outputs from `128 · block`, `[inputs, 128]`. An output with a
/// scale of 0 counts as 0.
pub(crate) fn rotated_block(weight: &Weight<'_>, suh: &[f16], svh: &[f16], block: usize) -> Vec<f32> {
    let inputs = weight.inputs;
    let inverse = |scale: &f16| if *scale == f16::ZERO { 0.0 } else { scale.to_f32().recip() };
    let input_factors: Vec<f32> = suh.iter().map(inverse).collect();
    let mut rotated = vec![0.0; BLOCK * inputs];
    let mut row = vec![0.0; inputs];
    for (output, weights) in weight.block(block).chunks_exact(inputs).enumerate() {
        let factor = inverse(&svh[block * BLOCK + output]);
        row.copy_from_slice(weights);
        for (value, input_factor) in row.iter_mut().zip(&input_factors) {
            *value *= factor * input_factor;
        }
        hadamard::rotate(&mut row);
        for (input, &value) in row.iter().enumerate() {
            rotated[input * BLOCK + output] = value;
        }
    }
    for outputs in rotated.chunks_exact_mut(BLOCK) {
        hadamard::rotate(outputs);
    }
    rotated
}

/// Makes of `[inputs, 128]` rotated errors those of the weights themselves: the way back from [`rotated_block`].
pub(crate) fn rotate_back(errors: &mut [f32], suh: &[f16], svh: &[f16]) {
    for rows in errors.chunks_exact_mut(BLOCK * BLOCK) {
        hadamard::rotate_rows(rows, BLOCK);
    }
    let svh: Vec<f32> = svh.iter().map(|scale| scale.to_f32()).collect();
    for (outputs, suh) in errors.chunks_exact_mut(BLOCK).zip(suh) {
        hadamard::rotate_and_scale(outputs, &svh);
        outputs.iter_mut().for_each(|value| *value *= suh.to_f32());
    }
}

/// All blocks of a weight, of which each thread has one at a time.
pub(crate) fn map_blocks<R: Send>(
    weight: &Weight<'_>,
    suh: &[f16],
    svh: &[f16],
    threads: usize,
    work: impl Fn(usize, Vec<f32>) -> R + Sync,
) -> Vec<R> {
    let blocks = (0..weight.outputs() / BLOCK).collect();
    parallel::map(blocks, threads, |block| work(block, rotated_block(weight, suh, svh, block)))
}

/// The sum of the squares. Not by `powi`, which is not the same on every processor.
pub(crate) fn squares(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}
