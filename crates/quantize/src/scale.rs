//! How large the codebook has to be for the weights of a linear layer.

use tensor::format::trellis::hadamard::BLOCK;
use tensor::format::trellis::{LEN, SIDE, tile};

use crate::encoder::Encoder;
use crate::error::QuantizeError;
use crate::parallel;
use crate::rotation::squares;

/// The first step of the search, as a factor; the search ends one step beyond the best.
const STEP: f32 = 1.06;

/// Steps in one direction, at most: a factor of about 4.
const STEPS_MAX: i32 = 24;

/// Rotated weights of a few tiles, in the order of the ring, and for how many of all tiles each stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    tiles: Vec<([f32; LEN], f64)>,
}

/// What one block of 128 outputs adds to a sample.
#[derive(Clone, Debug)]
pub(crate) struct BlockSample {
    /// Tiles from all over the block.
    spread: Vec<[f32; LEN]>,
    /// The tile with the largest weight, and that weight.
    largest: ([f32; LEN], f32),
}

impl BlockSample {
    /// Of a block `[inputs, 128]`, `count` tiles from all over it.
    pub(crate) fn new(rotated: &[f32], block: usize, count: usize) -> BlockSample {
        let rows = rotated.len() / BLOCK / SIDE;
        // A diagonal that is wrapped around the eight columns of tiles, and begins elsewhere in each block.
        let spread = (0..count).map(|index| (index * rows / count, (index + block * 3) % (BLOCK / SIDE)));
        let spread = spread.map(|(row, column)| ring_at(rotated, BLOCK, row, column)).collect();
        let weights = rotated.iter().enumerate().map(|(index, value)| (index, value.abs()));
        let (index, largest) = weights.fold((0, 0.0), |best, next| if next.1 > best.1 { next } else { best });
        let tile = ring_at(rotated, BLOCK, index / BLOCK / SIDE, index % BLOCK / SIDE);
        BlockSample { spread, largest: (tile, largest) }
    }
}

/// The tile of a matrix `[…, width]` in the order of the ring.
pub(crate) fn ring_at(matrix: &[f32], width: usize, row: usize, column: usize) -> [f32; LEN] {
    tile::to_ring(&std::array::from_fn(|index| {
        matrix[(row * SIDE + index / SIDE) * width + column * SIDE + index % SIDE]
    }))
}

impl Sample {
    /// Of all blocks of a weight with `total` tiles: those from all over, and up to `extremes` of those with the
    /// largest weights, which stand for themselves only.
    pub(crate) fn new(mut blocks: Vec<BlockSample>, total: usize, extremes: usize) -> Sample {
        blocks.sort_by(|a, b| b.largest.1.total_cmp(&a.largest.1));
        let extremes: Vec<_> = blocks.iter().take(extremes).map(|block| (block.largest.0, 1.0)).collect();
        let spread: Vec<_> = blocks.into_iter().flat_map(|block| block.spread).collect();
        let each = (total - extremes.len()) as f64 / spread.len() as f64;
        let spread = spread.into_iter().map(|tile| (tile, each));
        Sample { tiles: spread.chain(extremes).collect() }
    }

    /// The factor for the weights with which the encoder's error is least, over the factor itself. The weights'
    /// deviation is about that of the codebook.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn best_factor(&self, encoder: &Encoder, threads: usize) -> Result<f32, QuantizeError> {
        let error_at = |step: i32| self.error(encoder, power(step), threads);
        let start = start(encoder.rate().bits());
        let (mut best, mut error, mut before, mut after) = (start, error_at(start)?, None, None);
        while best < start + STEPS_MAX && best > start - STEPS_MAX {
            let low = before.map_or_else(|| error_at(best - 1), Ok)?;
            let high = after.map_or_else(|| error_at(best + 1), Ok)?;
            if low < error && low <= high {
                (best, error, before, after) = (best - 1, low, None, Some(error));
            } else if high < error {
                (best, error, before, after) = (best + 1, high, Some(error), None);
            } else {
                // The lowest point of the parabola through the three.
                let curvature = low - 2.0 * error + high;
                let offset = if curvature > 0.0 { (low - high) / (2.0 * curvature) } else { 0.0 };
                return Ok(power(best) * (1.0 + (STEP - 1.0) * offset.clamp(-0.5, 0.5) as f32));
            }
        }
        Ok(power(best))
    }

    /// The squared error of all weights, estimated from the sample: the encoder gets weights times `factor`.
    fn error(&self, encoder: &Encoder, factor: f32, threads: usize) -> Result<f64, QuantizeError> {
        let table = encoder.codebook().table();
        let chunks = self.tiles.chunks(8).collect();
        let errors = parallel::map(chunks, threads, |tiles: &[([f32; LEN], f64)]| {
            let scaled: Vec<_> = tiles.iter().map(|(weights, _)| weights.map(|weight| weight * factor)).collect();
            let found = encoder.encode_all(&mut None, &scaled)?;
            let errors = scaled.iter().zip(found).zip(tiles).map(|((scaled, states), (_, count))| {
                let differences: [f32; LEN] =
                    std::array::from_fn(|index| (scaled[index] - table[usize::from(states[index])]) / factor);
                count * squares(&differences)
            });
            Ok(errors.sum::<f64>())
        });
        errors.into_iter().sum()
    }
}

/// [`STEP`] to the power of `step`, with the same roundings on every processor.
fn power(step: i32) -> f32 {
    let power = (0..step.abs()).fold(1.0, |power, _| power * STEP);
    if step < 0 { 1.0 / power } else { power }
}

/// The step at which the search begins: the best for independent normal weights.
fn start(bits: f32) -> i32 {
    match bits {
        ..2.0 => 1,
        ..3.5 => -1,
        ..5.0 => -2,
        ..6.0 => -3,
        _ => -4,
    }
}
