//! Matrices in the trellis format, multiplied straight from their tiles.
//!
//! # What is computed
//! `output = svh ∘ H (Cᵀ H (suh ∘ input))`: the input is scaled and rotated once for all weights that share `suh`
//! ([`Rotated`]), multiplied with the values `C` of the tiles, and the sums of 128 outputs are rotated back. A state of
//! 16 bits becomes a *code*, a 16-bit integer, and the weight is `factor · code + offset` ([`Codes`]); the rotated
//! input is rounded to 14 bits and a sign, so that one instruction multiplies two codes with two activations and adds
//! them to 32 bits. With `Precision::F32` states become the exact values, and nothing is rounded.
//!
//! # Layout
//! All lanes of a vector do the same at the same time: they are the tiles of 128 outputs and 64 inputs, 8 × 4, and have
//! the same position of their rings, so that all shifts are constants. The tiles of 128 × 128 weights are a *unit*,
//! whose 16-bit words (the ring's bits from the highest) lie as
//!
//! ```text
//! [group 8][half of the inputs 2][word of the group 2 · bits][tile along the outputs 8][tile along the inputs 4]
//! ```
//!
//! Each group is 32 positions of a ring, all 16 inputs of two outputs: `group` and `group + 8`. Its states begin among
//! the last 16 bits of the group before it. The units of the same outputs follow each other. No bit is added or lost.

mod rotated;
mod value;

use tensor::format::trellis::{Codebook, Rate, SIDE};

use crate::aligned::Aligned;
use crate::level::Level;
use crate::pool::Pool;

pub(crate) use rotated::{Rotated, RotatedBytes, rotate_block};

/// Whether a level's kernels for one row may take activations of 8 bits.
pub(crate) fn takes_bytes(level: Level) -> bool {
    matches!(level, Level::Avx512 | Level::Amx)
}

pub(crate) use value::{Affine, Codes, DecodeCodes, DecodeValues, Values};

/// Inputs and outputs of a unit: what one rotation spans.
pub(crate) const UNIT: usize = 128;
/// Groups of positions of a ring.
pub(crate) const GROUPS: usize = 8;
/// Positions of a group.
pub(crate) const POSITIONS: usize = 32;
/// 16-bit lanes of a vector: `[tile along the outputs 8][tile along the inputs 4]`.
pub(crate) const LANES: usize = 32;
/// Tiles along the inputs of a vector.
pub(crate) const QUAD: usize = 4;
/// Vectors of inputs of a unit.
pub(crate) const HALVES: usize = 2;
/// States of a group in a unit, as vectors: `[half][position]`.
pub(crate) const VECTORS: usize = HALVES * POSITIONS;
/// Words of a group at 8 bits, with the one before it.
pub(crate) const WORDS_MAX: usize = 17;

/// A matrix `[rows, columns]` of tiles, rearranged.
pub(crate) struct TrellisMatrix {
    pub(crate) rate: Rate,
    pub(crate) codebook: Codebook,
    /// Weights with the same number have the same `suh`.
    pub(crate) rotation: u32,
    /// Outputs, without padding.
    pub(crate) rows: usize,
    /// Inputs, without padding.
    pub(crate) columns: usize,
    /// Signs and scales of the inputs, padding included.
    pub(crate) suh: Vec<f32>,
    /// Signs and scales of the outputs, padding included.
    pub(crate) svh: Vec<f32>,
    words: Aligned<u16>,
}

/// What the tiles of a matrix are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrellisShape {
    pub(crate) rate: Rate,
    pub(crate) codebook: Codebook,
    pub(crate) rotation: u32,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl TrellisMatrix {
    /// Rearranges the tiles of a file, `[inputs / 16, outputs / 16]`. `release` is told which bytes of `tiles` are no
    /// longer needed.
    ///
    /// # Panics
    /// If the lengths are not those of the shape, padded to multiples of 128.
    pub(crate) fn pack(
        shape: TrellisShape,
        tiles: &[u8],
        (suh, svh): (Vec<f32>, Vec<f32>),
        release: &(dyn Fn(std::ops::Range<usize>) + Sync),
        pool: &Pool,
    ) -> TrellisMatrix {
        let TrellisShape { rate, codebook, rotation, rows, columns } = shape;
        let (inputs, outputs) = (columns.next_multiple_of(UNIT), rows.next_multiple_of(UNIT));
        assert_eq!((suh.len(), svh.len()), (inputs, outputs), "a scale for each input and output");
        assert_eq!(tiles.len(), inputs / SIDE * (outputs / SIDE) * rate.tile_bytes(), "bytes of all tiles");
        let mut words = Aligned::<u16>::new(tiles.len() / 2);
        let band_bytes = tiles.len() / (inputs / UNIT);
        let target = Target(words.as_mut_ptr());
        pool.for_ranges(inputs / UNIT, 1, &|range| {
            for input in range {
                let band = &tiles[input * band_bytes..(input + 1) * band_bytes];
                for output in 0..outputs / UNIT {
                    let at = (output * (inputs / UNIT) + input) * unit_words(rate);
                    // SAFETY: each unit is written by the one call that has its inputs, and lies inside `words`.
                    let unit = unsafe { std::slice::from_raw_parts_mut(target.at(at), unit_words(rate)) };
                    pack_unit(rate, band, (output, outputs / SIDE), unit);
                }
                release(input * band_bytes..(input + 1) * band_bytes);
            }
        });
        TrellisMatrix { rate, codebook, rotation, rows, columns, suh, svh, words }
    }

    /// Inputs, padding included.
    pub(crate) fn inputs(&self) -> usize {
        self.suh.len()
    }

    /// Blocks of 128 outputs.
    pub(crate) fn blocks(&self) -> usize {
        self.svh.len() / UNIT
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        2 * self.words.len() + 4 * (self.suh.len() + self.svh.len())
    }

    /// The units of some inputs, `128 · inputs`, of a block of outputs.
    pub(crate) fn units(&self, block: usize, inputs: std::ops::Range<usize>) -> &[u16] {
        let (units, words) = (self.inputs() / UNIT, unit_words(self.rate));
        &self.words[(block * units + inputs.start) * words..(block * units + inputs.end) * words]
    }
}

/// Where units go: threads write different ones.
struct Target(*mut u16);
// SAFETY: used by `TrellisMatrix::pack` alone, which gives each unit to one thread.
unsafe impl Sync for Target {}

impl Target {
    fn at(&self, index: usize) -> *mut u16 {
        self.0.wrapping_add(index)
    }
}

/// 16-bit words of a unit.
pub(crate) const fn unit_words_of(half_bits: usize) -> usize {
    GROUPS * HALVES * half_bits * LANES
}

/// 16-bit words of a unit.
pub(crate) fn unit_words(rate: Rate) -> usize {
    unit_words_of(rate.half_bits())
}

/// Rearranges 8 × 8 tiles. `band` are those of 128 inputs and all outputs, `tiles` in a row.
fn pack_unit(rate: Rate, band: &[u8], (output, tiles): (usize, usize), unit: &mut [u16]) {
    let (half_bits, tile_bytes) = (rate.half_bits(), rate.tile_bytes());
    for (index, vector) in unit.chunks_exact_mut(LANES).enumerate() {
        let (word, half, group) = (index % half_bits, index / half_bits % HALVES, index / half_bits / HALVES);
        // Words are stored in pairs, the second one first: the ring's bits count from the highest of 32.
        let word = (group * half_bits + word) ^ 1;
        for (lane, value) in vector.iter_mut().enumerate() {
            let tile = (half * QUAD + lane % QUAD) * tiles + output * (UNIT / SIDE) + lane / QUAD;
            let at = tile * tile_bytes + 2 * word;
            *value = u16::from_le_bytes([band[at], band[at + 1]]);
        }
    }
}

/// The input of a position in its tile, 0 to 15.
pub(crate) const fn input_of(position: usize) -> usize {
    let (thread, j) = (position / 8 % 4, position % 8);
    2 * thread + j % 2 + 8 * (j / 2 % 2)
}

/// Which of the two outputs of a group a position belongs to.
pub(crate) const fn side_of(position: usize) -> usize {
    position / 4 % 2
}

/// Where the sum of an output of a unit is kept: kernels make them in the order `[group][half of the tiles][pair of
/// tiles][side][tile of the pair]`. Gives the output, 0 to 127.
pub(crate) const fn output_of(sum: usize) -> usize {
    let (group, tile, side) = (sum / 16, sum / 8 % 2 * 4 + sum / 4 % 2 * 2 + sum % 2, sum / 2 % 2);
    tile * SIDE + side * 8 + group
}

#[cfg(test)]
mod tests {
    use tensor::format::trellis::tile::RING;

    use super::*;

    #[test]
    fn positions_have_the_inputs_and_outputs_of_the_format() {
        for (position, &index) in RING.iter().enumerate() {
            let (group, index) = (position / POSITIONS, usize::from(index));
            assert_eq!(input_of(position), index / SIDE, "{position}");
            assert_eq!(group + 8 * side_of(position), index % SIDE, "{position}");
        }
        let mut outputs: Vec<usize> = (0..UNIT).map(output_of).collect();
        outputs.sort_unstable();
        assert!(outputs.into_iter().eq(0..UNIT));
    }
}
