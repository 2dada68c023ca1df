//! Q2_K: 256 weights in 84 bytes, 2.625 bits per weight.
//!
//! Sixteen groups of 16 consecutive weights: `w = (d · s) · q − (m · z)` with `q` in 0..=3 and the group's scale `s`
//! and minimum `z` in 0..=15.

use bytemuck::{Pod, Zeroable};

use super::EncodeError;
use crate::DType;

/// Weights per block.
pub const LEN: usize = 256;

/// One block, as it lies in a file.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Per group of 16 weights: `s` in the low half, `z` in the high half.
    pub groups: [u8; 16],
    /// 2-bit `q`: weight `128 · half + 32 · j + i` is in byte `32 · half + i`, from bit `2 · j`.
    pub values: [u8; 64],
    /// `d`, a binary16.
    pub scale: [u8; 2],
    /// `m`, a binary16.
    pub minimum: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == 84 && align_of::<Block>() == 1);

/// Reads [`DType::Q2_K`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::Q2_K
    }

    fn name(&self) -> &'static str {
        "q2_k"
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
            let (groups, _) = values.as_chunks_mut::<16>();
            for (group, values) in groups.iter_mut().enumerate() {
                let packed = block.groups[group];
                let scale = scale * f32::from(packed & 15);
                let minimum = minimum * f32::from(packed >> 4);
                // Groups 2j and 2j + 1 of a half are the same 2 bits of its lower and upper 16 bytes.
                let bytes = &block.values[group / 8 * 32 + group % 2 * 16..][..16];
                let shift = group / 2 % 4 * 2;
                for (value, byte) in values.iter_mut().zip(bytes) {
                    *value = scale * f32::from(byte >> shift & 3) - minimum;
                }
            }
        }
    }

    fn encode(&self, _values: &[f32], _bytes: &mut [u8]) -> Result<(), EncodeError> {
        Err(EncodeError::ReadOnly(DType::Q2_K))
    }
}
