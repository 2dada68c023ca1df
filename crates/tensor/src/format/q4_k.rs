//! Q4_K: 256 weights in 144 bytes, 4.5 bits per weight.
//!
//! Eight groups of 32 consecutive weights: `w = (d · s) · q − (m · z)` with `q` in 0..=15 and the group's scale `s` and
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
    /// 4-bit `q`: weight `64 · j + i` is the low half of byte `32 · j + i`, and weight
    /// `64 · j + 32 + i` its high half.
    pub values: [u8; 128],
}

const _: () = assert!(size_of::<Block>() == 144 && align_of::<Block>() == 1);

/// Reads [`DType::Q4_K`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::Q4_K
    }

    fn name(&self) -> &'static str {
        "q4_k"
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
                let bytes = &block.values[group / 2 * 32..][..32];
                let shift = group % 2 * 4;
                for (value, byte) in values.iter_mut().zip(bytes) {
                    *value = scale * f32::from(byte >> shift & 15) - minimum;
                }
            }
        }
    }

    fn encode(&self, _values: &[f32], _bytes: &mut [u8]) -> Result<(), EncodeError> {
        Err(EncodeError::ReadOnly(DType::Q4_K))
    }
}
