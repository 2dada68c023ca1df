//! Q5_K: 256 weights in 176 bytes, 5.5 bits per weight.
//!
//! Eight groups of 32 consecutive weights: `w = (d · s) · q − (m · z)` with `q` in 0..=31 and the group's scale `s` and
//! minimum `z` in 0..=63.

use bytemuck::{Pod, Zeroable};

use super::EncodeError;
use crate::DType;

/// Weights per block.
pub const LEN: usize = 256;

/// One block, as it lies in a file.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// `d`, a binary16.
    pub scale: [u8; 2],
    /// `m`, a binary16.
    pub minimum: [u8; 2],
    /// 6-bit `s` and `z`, see [`super::unpack_scales_and_minima`].
    pub groups: [u8; 12],
    /// Bit 4 of `q`: weight `32 · j + i` is bit `j` of byte `i`.
    pub high: [u8; 32],
    /// Bits 0–3 of `q`: weight `64 · j + i` is the low half of byte `32 · j + i`, and weight
    /// `64 · j + 32 + i` its high half.
    pub low: [u8; 128],
}

const _: () = assert!(size_of::<Block>() == 176 && align_of::<Block>() == 1);

/// Reads [`DType::Q5_K`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::Q5_K
    }

    fn name(&self) -> &'static str {
        "q5_k"
    }

    fn block_len(&self) -> usize {
        LEN
    }

    fn block_bytes(&self) -> usize {
        size_of::<Block>()
    }

    fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        for (block, values) in super::decode_blocks::<Block, LEN>(bytes, values) {
            let (scale, minimum) = (super::half_from(block.scale), super::half_from(block.minimum));
            let (scales, minima) = super::unpack_scales_and_minima(&block.groups);
            let (groups, _) = values.as_chunks_mut::<32>();
            for (group, values) in groups.iter_mut().enumerate() {
                let scale = scale * f32::from(scales[group]);
                let minimum = minimum * f32::from(minima[group]);
                let low = &block.low[group / 2 * 32..][..32];
                let shift = group % 2 * 4;
                for (value, (low, high)) in values.iter_mut().zip(low.iter().zip(&block.high)) {
                    let quant = low >> shift & 15 | (high >> group & 1) << 4;
                    *value = scale * f32::from(quant) - minimum;
                }
            }
        }
    }

    fn encode(&self, _values: &[f32], _bytes: &mut [u8]) -> Result<(), EncodeError> {
        Err(EncodeError::ReadOnly(DType::Q5_K))
    }
}
