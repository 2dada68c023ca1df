//! Q6_K: 256 weights in 210 bytes, 6.5625 bits per weight.
//!
//! Sixteen groups of 16 consecutive weights: `w = (d · s) · q` with `q` in −32..=31 and the group's scale `s` in
//! −128..=127.

use bytemuck::{Pod, Zeroable};

use super::EncodeError;
use crate::DType;

/// Weights per block.
pub const LEN: usize = 256;

/// One block, as it lies in a file.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// Bits 0–3 of `q + 32`: weight `128 · half + i` is the low half of byte `64 · half + i`, and weight
    /// `128 · half + 64 + i` its high half.
    pub low: [u8; 128],
    /// Bits 4–5 of `q + 32`: weight `128 · half + 32 · j + i` is in byte `32 · half + i`, from bit `2 · j`.
    pub high: [u8; 64],
    /// `s` of every group.
    pub scales: [i8; 16],
    /// `d`, a binary16.
    pub scale: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == 210 && align_of::<Block>() == 1);

/// Reads [`DType::Q6_K`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::Q6_K
    }

    fn name(&self) -> &'static str {
        "q6_k"
    }

    fn block_len(&self) -> usize {
        LEN
    }

    fn block_bytes(&self) -> usize {
        size_of::<Block>()
    }

    fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        for (block, values) in super::decode_blocks::<Block, LEN>(bytes, values) {
            let scale = super::half_from(block.scale);
            let (groups, _) = values.as_chunks_mut::<16>();
            for (group, values) in groups.iter_mut().enumerate() {
                let scale = scale * f32::from(block.scales[group]);
                let (half, within) = (group / 8, group % 8);
                let low = &block.low[half * 64 + within % 4 * 16..][..16];
                let high = &block.high[half * 32 + within % 2 * 16..][..16];
                let (low_shift, high_shift) = (within / 4 * 4, within / 2 * 2);
                for (value, (low, high)) in values.iter_mut().zip(low.iter().zip(high)) {
                    let quant = (low >> low_shift & 15 | (high >> high_shift & 3) << 4) as i8 - 32;
                    *value = scale * f32::from(quant);
                }
            }
        }
    }

    fn encode(&self, _values: &[f32], _bytes: &mut [u8]) -> Result<(), EncodeError> {
        Err(EncodeError::ReadOnly(DType::Q6_K))
    }
}
