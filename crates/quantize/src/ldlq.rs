//! Rounding to the trellis with feedback: what one band of inputs gets wrong, the next ones make good where they can.
//!
//! The method is LDLQ of "QuIP: 2-Bit Quantization of Large Language Models With Guarantees" (Chee et al. 2023), for
//! bands of 16 inputs as in QTIP and exllamav3. Bands are rounded from the last to the first; all outputs are
//! independent of each other, so that threads share blocks of 128 outputs and need not wait.

use half::f16;
use tensor::format::trellis::hadamard::{self, BLOCK};
use tensor::format::trellis::{LEN, Linear, Rate, SIDE, tile};

use crate::encoder::{Encoder, Scratch};
use crate::error::{QuantizeError, check_length};
use crate::factor::Factor;
use crate::noise::{distortion, normal};
use crate::parallel;
use crate::product::{Product, Side};
use crate::rotation::{Weight, map_blocks, output_scales, rotate_back, rotated_block, squares};
use crate::scale::{BlockSample, Sample, ring_at};

/// Tiles with the largest weights that a scale search looks at.
const EXTREME_TILES: usize = 16;

/// A scale search looks at no more than one of so many tiles, so that a small weight takes no longer than to round it.
const SAMPLE_SHARE: usize = 8;

/// Outputs that get random errors for trial, to see by how much the feedback widens the weights.
const TRIAL_OUTPUTS: usize = 32;

/// Of these errors.
const TRIAL_SEED: u64 = 1;

/// How a weight is quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How many threads work on it. The result does not depend on it.
    pub threads: usize,
    /// Whether errors are fed back to the other inputs. Without, each tile is the nearest to its own weights.
    pub feedback: bool,
    /// The deviation of the codebook over that of the weights, more than 0; `None` to search for the best.
    pub scale: Option<f32>,
    /// Whether [`Numbers`] are wanted: they take as long as the feedback.
    pub numbers: bool,
    /// About how many tiles such a search encodes at each scale, besides those with the largest weights; at most an
    /// eighth of all.
    pub sample_tiles: usize,
    /// Of the outputs' signs.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { threads: 1, feedback: true, scale: None, numbers: true, sample_tiles: 64, seed: 0 }
    }
}

/// How near a quantized weight is. All are sums over its outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Numbers {
    /// `tr(Δ H Δᵀ)` for the errors `Δ` and the damped Hessian: the mean square of the layer's error.
    pub error: f64,
    /// `tr(W H Wᵀ)`: the mean square of what the layer computes.
    pub energy: f64,
    /// The squared errors of the weights.
    pub squared_error: f64,
    /// The weights' squares.
    pub squares: f64,
}

impl Numbers {
    /// The proxy error, `tr(Δ H Δᵀ) / tr(W H Wᵀ)`.
    pub fn proxy_error(&self) -> f64 {
        if self.energy == 0.0 { 0.0 } else { self.error / self.energy }
    }

    /// The mean squared error of the weights over their mean square.
    pub fn relative_error(&self) -> f64 {
        if self.squares == 0.0 { 0.0 } else { self.squared_error / self.squares }
    }

    fn add(&mut self, other: &Numbers) {
        self.error += other.error;
        self.energy += other.energy;
        self.squared_error += other.squared_error;
        self.squares += other.squares;
    }
}

/// A quantized weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// The weight.
    pub linear: Linear<'static>,
    /// How near it is; zeros if that was not wanted.
    pub numbers: Numbers,
    /// The deviation of the codebook over that of the weights, as it was found or given.
    pub scale: f32,
}

/// Rounds a weight to the trellis. The bits are the same for any number of threads.
///
/// # Errors
/// As [`Job::new`].
pub fn quantize(
    weight: &Weight<'_>,
    factor: &Factor,
    encoder: &Encoder,
    settings: &Settings,
) -> Result<Quantized, QuantizeError> {
    let job = Job::new(*weight, factor, encoder, settings)?;
    let blocks = parallel::map((0..job.blocks()).collect(), settings.threads, |block| job.block(block));
    Ok(job.finish(&blocks.into_iter().collect::<Result<Vec<_>, _>>()?))
}

/// A weight that is quantized block after block, in any order: for whoever has threads of his own, shows how far it
/// has come, or wants to stop in between.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    weight: Weight<'a>,
    factor: &'a Factor,
    encoder: &'a Encoder,
    feedback: bool,
    numbers: bool,
    scale: f32,
    /// With all scales, and tiles that are still 0.
    linear: Linear<'static>,
}

/// 128 outputs of a quantized weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The tiles, `[inputs / 16, 8]`.
    pub tiles: Vec<u8>,
    /// How near they are, if that is wanted.
    pub numbers: Numbers,
}

impl<'a> Job<'a> {
    /// Finds the scales, if the settings don't have them, with the threads of the settings.
    ///
    /// # Errors
    /// If the weight has another number of inputs than the Hessian, or the format can't have its scales or the
    /// encoder's rate and codebook; a device that fails.
    pub fn new(
        weight: Weight<'a>,
        factor: &'a Factor,
        encoder: &'a Encoder,
        settings: &Settings,
    ) -> Result<Job<'a>, QuantizeError> {
        check_length("an output's weights", weight.inputs(), factor.inputs())?;
        let deviation = encoder.codebook().deviation();
        let linear = |scale: f32| {
            let svh = output_scales(&weight, deviation / scale, settings.seed)?;
            Ok::<_, QuantizeError>(Linear::new(encoder.rate(), encoder.codebook(), factor.suh().to_vec(), svh)?)
        };
        let scale = match settings.scale {
            Some(scale) => scale,
            None => search_scale(&weight, factor, encoder, linear(1.0)?.svh(), settings)?,
        };
        let Settings { feedback, numbers, .. } = *settings;
        Ok(Job { weight, factor, encoder, feedback, numbers, scale, linear: linear(scale)? })
    }

    /// How many blocks of 128 outputs there are.
    pub fn blocks(&self) -> usize {
        self.weight.outputs() / BLOCK
    }

    /// Length of an input.
    pub fn inputs(&self) -> usize {
        self.weight.inputs()
    }

    /// Quantizes the outputs from `128 · block`.
    ///
    /// # Errors
    /// A device that fails.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block(&self, block: usize) -> Result<Block, QuantizeError> {
        assert!(block < self.blocks(), "no block {block} of {}", self.blocks());
        let svh = &self.linear.svh()[block * BLOCK..][..BLOCK];
        let rotated = rotated_block(&self.weight, self.factor.suh(), self.linear.svh(), block);
        let mut tiles = vec![0; self.factor.inputs() / SIDE * (BLOCK / SIDE) * self.encoder.rate().tile_bytes()];
        let mut error = 0.0;
        let strip = Strip { weights: &rotated, width: BLOCK, factor: self.factor, feedback: self.feedback };
        let mut scratch = None;
        let errors = strip.round(|band, targets| {
            let (values, bytes) = encode_band(self.encoder, &mut scratch, BLOCK, targets)?;
            if self.numbers {
                let lacks: Vec<f32> = targets.iter().zip(&values).map(|(target, value)| target - value).collect();
                error += band_energy(self.factor.root(band), &lacks, svh);
            }
            tiles[band * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
            Ok(values)
        })?;
        let numbers =
            if self.numbers { self.block_numbers(block, &rotated, errors, error) } else { Numbers::default() };
        Ok(Block { tiles, numbers })
    }

    /// The numbers of a block of weights and their errors, both rotated. `error` is the layer's with feedback.
    fn block_numbers(&self, block: usize, rotated: &[f32], mut errors: Vec<f32>, error: f64) -> Numbers {
        let svh = &self.linear.svh()[block * BLOCK..][..BLOCK];
        let error = if self.feedback { error } else { energy(&errors, self.factor, svh) };
        let energy = energy(rotated, self.factor, svh);
        rotate_back(&mut errors, self.factor.suh(), svh);
        let weights = squares(&self.weight.block(block));
        Numbers { error, energy, squared_error: squares(&errors), squares: weights }
    }

    /// Puts the blocks together.
    ///
    /// # Panics
    /// If they are not all blocks of this job, in order.
    pub fn finish(self, blocks: &[Block]) -> Quantized {
        assert_eq!(blocks.len(), self.blocks(), "blocks of 128 outputs");
        let (mut linear, mut numbers) = (self.linear, Numbers::default());
        let row_bytes = BLOCK / SIDE * self.encoder.rate().tile_bytes();
        for (block, Block { tiles, numbers: block_numbers }) in blocks.iter().enumerate() {
            assert_eq!(tiles.len(), self.factor.inputs() / SIDE * row_bytes, "bytes of block {block}");
            numbers.add(block_numbers);
            for (index, bytes) in tiles.chunks_exact(self.encoder.rate().tile_bytes()).enumerate() {
                let (row, column) = (index / (BLOCK / SIDE), index % (BLOCK / SIDE));
                linear.tile_mut(row, block * BLOCK / SIDE + column).copy_from_slice(bytes);
            }
        }
        Quantized { linear, numbers, scale: self.scale }
    }
}

/// The deviation of the codebook over that of the weights with the least error.
///
/// Some tiles are encoded at several scales; `svh` are the outputs' scales for a scale of 1. Feedback adds the errors
/// of other inputs to the weights: by how much it widens them, a few outputs show that get errors for trial.
fn search_scale(
    weight: &Weight<'_>,
    factor: &Factor,
    encoder: &Encoder,
    svh: &[f16],
    settings: &Settings,
) -> Result<f32, QuantizeError> {
    let blocks = weight.outputs() / BLOCK;
    let total = weight.count() / LEN;
    let each = settings.sample_tiles.min(total / SAMPLE_SHARE).div_ceil(blocks).max(1);
    let samples = map_blocks(weight, factor.suh(), svh, settings.threads, |block, rotated| {
        BlockSample::new(&rotated, block, each)
    });
    let best = Sample::new(samples, total, EXTREME_TILES).best_factor(encoder, settings.threads)?;
    if !settings.feedback {
        return Ok(best.recip());
    }
    let rotated = rotated_block(weight, factor.suh(), svh, blocks / 2);
    let trial: Vec<f32> = rotated.chunks_exact(BLOCK).flat_map(|row| &row[..TRIAL_OUTPUTS]).map(|w| w * best).collect();
    let strip = Strip { weights: &trial, width: TRIAL_OUTPUTS, factor, feedback: true };
    Ok(widening(&strip, |band, targets| Ok(with_random_errors(encoder.rate(), band, targets)))? / best)
}

/// The deviation of what gets rounded over that of the weights, where errors in a band count as they do in the layer's
/// error. `round` as of [`Strip::round`].
fn widening(
    strip: &Strip<'_>,
    mut round: impl FnMut(usize, &[f32]) -> Result<Vec<f32>, QuantizeError>,
) -> Result<f32, QuantizeError> {
    let (mut with, mut without) = (0.0, 0.0);
    strip.round(|band, targets| {
        let importance = squares(strip.factor.root(band));
        with += importance * squares(targets);
        without += importance * squares(&strip.weights[band * SIDE * strip.width..][..targets.len()]);
        round(band, targets)
    })?;
    Ok(if without > 0.0 { (with / without).sqrt() as f32 } else { 1.0 })
}

/// A band with random numbers for what tiles of a rate lack: nothing is rounded, so that no band has to wait for a
/// device.
fn with_random_errors(rate: Rate, band: usize, targets: &[f32]) -> Vec<f32> {
    let deviation = (distortion(rate) * squares(targets) / targets.len() as f64).sqrt() as f32;
    let first = (band * targets.len()) as u64;
    (first..).zip(targets).map(|(index, target)| target + deviation * normal(TRIAL_SEED, index)).collect()
}

/// Some outputs of a rotated weight that are rounded together, `[inputs, width]`, where `width` is a multiple of 16.
#[derive(Clone, Copy)]
struct Strip<'a> {
    weights: &'a [f32],
    width: usize,
    factor: &'a Factor,
    feedback: bool,
}

impl Strip<'_> {
    /// Rounds everything from the last band to the first, and gives what the weights have more than they became,
    /// `[inputs, width]`. `round` gets a band's weights with the errors of those before fed back, `[16, width]`, and
    /// gives what becomes of them.
    fn round(
        &self,
        mut round: impl FnMut(usize, &[f32]) -> Result<Vec<f32>, QuantizeError>,
    ) -> Result<Vec<f32>, QuantizeError> {
        let (inputs, width) = (self.factor.inputs(), self.width);
        let mut errors = vec![0.0; self.weights.len()];
        for first in (0..inputs).step_by(BLOCK).rev() {
            let mut group = self.weights[first * width..][..BLOCK * width].to_vec();
            self.feed_back(&errors, &mut group, first, first + BLOCK..inputs);
            for row in (first..first + BLOCK).step_by(SIDE).rev() {
                let targets = &mut group[(row - first) * width..][..SIDE * width];
                self.feed_back(&errors, targets, row, row + SIDE..first + BLOCK);
                let rounded = round(row / SIDE, targets)?;
                let at = row * width..(row + SIDE) * width;
                let weights = self.weights[at.clone()].iter().zip(rounded);
                errors[at].iter_mut().zip(weights).for_each(|(error, (weight, value))| *error = weight - value);
            }
        }
        Ok(errors)
    }

    /// Adds to the rows from `first` the errors of the rows `from`, as far as `U` says.
    fn feed_back(&self, errors: &[f32], rows: &mut [f32], first: usize, from: std::ops::Range<usize>) {
        if self.feedback {
            multiply_upper(self.factor, first, from, errors, self.width, rows);
        }
    }
}

/// Encodes a band of weights `[16, width]`: what they become, and the tiles' bytes.
fn encode_band(
    encoder: &Encoder,
    scratch: &mut Option<Scratch>,
    width: usize,
    targets: &[f32],
) -> Result<(Vec<f32>, Vec<u8>), QuantizeError> {
    let (rate, table) = (encoder.rate(), encoder.codebook().table());
    let (mut values, mut bytes) = (vec![0.0; targets.len()], vec![0; width / SIDE * rate.tile_bytes()]);
    let rings: Vec<_> = (0..width / SIDE).map(|column| ring_at(targets, width, 0, column)).collect();
    let found = encoder.encode_all(scratch, &rings)?;
    for (column, (bytes, states)) in bytes.chunks_exact_mut(rate.tile_bytes()).zip(found).enumerate() {
        tile::pack(rate, &states, bytes);
        for (&index, state) in tile::RING.iter().zip(states) {
            let (row, output) = (usize::from(index) / SIDE, usize::from(index) % SIDE);
            values[row * width + column * SIDE + output] = table[usize::from(state)];
        }
    }
    Ok((values, bytes))
}

/// Adds `U[first.., from] · values[from]` to `rows`, `[…, width]`.
pub(crate) fn multiply_upper(
    factor: &Factor,
    first: usize,
    from: std::ops::Range<usize>,
    values: &[f32],
    width: usize,
    rows: &mut [f32],
) {
    if from.is_empty() {
        return;
    }
    let inputs = factor.inputs();
    let a = Side { values: &factor.upper()[first * inputs + from.start..], terms: 1, step: inputs };
    let b = Side { values: &values[from.start * width..], terms: width, step: 1 };
    Product { a, b, rows: rows.len() / width, columns: width, depth: from.len(), factor: 1.0 }.add_to(rows, width);
}

/// `tr(Vᵀ Uᵀ D U V)` for a block of rotated weights or errors `V`, `[inputs, 128]`, in the units of the outputs.
fn energy(values: &[f32], factor: &Factor, svh: &[f16]) -> f64 {
    let inputs = factor.inputs();
    let groups = (0..inputs).step_by(BLOCK).map(|first| {
        let mut rows = vec![0.0; BLOCK * BLOCK];
        multiply_upper(factor, first, first..inputs, values, BLOCK, &mut rows);
        let bands = rows.chunks_exact(SIDE * BLOCK).enumerate();
        bands.map(|(band, rows)| band_energy(factor.root(first / SIDE + band), rows, svh)).sum::<f64>()
    });
    groups.sum()
}

/// The squares of `R · rows · H · diag(svh)` for a band `[16, 128]`.
fn band_energy(root: &[f32; SIDE * SIDE], rows: &[f32], svh: &[f16]) -> f64 {
    let energies = root.chunks_exact(SIDE).map(|factors| {
        let mut sums = [0.0; BLOCK];
        for (factor, row) in factors.iter().zip(rows.chunks_exact(BLOCK)) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += factor * value;
            }
        }
        hadamard::rotate(&mut sums);
        sums.iter_mut().zip(svh).for_each(|(sum, svh)| *sum *= svh.to_f32());
        squares(&sums)
    });
    energies.sum()
}

#[cfg(test)]
mod tests {
    use tensor::format::trellis::Codebook;

    use super::*;
    use crate::hessian::Hessian;

    /// Activations with a part that all inputs share, so that feedback has something to do.
    fn factor(inputs: usize, shared: f32) -> Factor {
        let number = |row: usize, input: usize| normal(5, (row * inputs + input) as u64);
        let row = |row| (0..inputs).map(move |input| number(row, input) + shared * number(row, input / 48));
        let rows: Vec<f32> = (0..2 * inputs).flat_map(row).collect();
        let mut hessian = Hessian::new(inputs).expect("a size");
        hessian.add(&rows, 1).expect("finite activations");
        Factor::new(&hessian, &vec![f16::ONE; inputs], 0.025, 1).expect("a positive definite Hessian")
    }

    #[test]
    fn random_errors_widen_weights_as_rounding_does() {
        let (inputs, width) = (384, 32);
        for (half_bits, shared) in [(4, 0.5), (4, 3.0), (5, 1.5), (8, 3.0)] {
            let rate = Rate::from_half_bits(half_bits).expect("a rate");
            let encoder = Encoder::new(Codebook::Mul1, rate);
            let (factor, deviation) = (factor(inputs, shared), encoder.codebook().deviation());
            let weights: Vec<f32> =
                (0..(inputs * width) as u64).map(|index| 0.9 * deviation * normal(6, index)).collect();
            let strip = Strip { weights: &weights, width, factor: &factor, feedback: true };
            let mut scratch = None;
            let rounded = |_, targets: &[f32]| Ok(encode_band(&encoder, &mut scratch, width, targets)?.0);
            let expected = widening(&strip, rounded).expect("tiles");
            let found = widening(&strip, |band, targets| Ok(with_random_errors(rate, band, targets)));
            let found = found.expect("random numbers");
            assert!((found / expected - 1.0).abs() < 0.02, "{rate} bits, {shared}: {found}, rounding has {expected}");
        }
    }
}
