//! Q3_K: 256 weights in 110 bytes, 3.4375 bits per weight.
//!
//! Sixteen groups of 16 consecutive weights: `w = (d · s) · q` with `q` in −4..=3 and the group's scale `s` in
//! −32..=31. `q` is its low 2 bits, less 4 where its high bit is **not** set.

use bytemuck::{Pod, Zeroable};

use super::EncodeError;
use crate::DType;

/// Weights per block.
pub const LEN: usize = 256;

/// One block, as it lies in a file.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// High bits of `q`: weight `32 · j + i` is bit `j` of byte `i`.
    pub high: [u8; 32],
    /// Low 2 bits of `q`: weight `128 · half + 32 · j + i` is in byte `32 · half + i`, from bit `2 · j`.
    pub low: [u8; 64],
    /// 6-bit `s + 32`, see [`unpack_scales`].
    pub groups: [u8; 12],
    /// `d`, a binary16.
    pub scale: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == 110 && align_of::<Block>() == 1);

/// The 16 scales of a block, −32..=31.
///
/// Bits 0–3 of scale `i` are the low half of byte `i` for `i < 8` and the high half of byte `i − 8` else; bits 4–5 are
/// in byte `8 + i % 4`, from bit `2 · (i / 4)`.
pub fn unpack_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|i| {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// Reads [`DType::Q3_K`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::Q3_K
    }

    fn name(&self) -> &'static str {
        "q3_k"
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
            let scales = unpack_scales(&block.groups);
            let (groups, _) = values.as_chunks_mut::<16>();
            for (group, values) in groups.iter_mut().enumerate() {
                let scale = scale * f32::from(scales[group]);
                let first = group % 2 * 16;
                let low = &block.low[group / 8 * 32 + first..][..16];
                let high = &block.high[first..][..16];
                let (low_shift, high_shift) = (group / 2 % 4 * 2, group / 2);
                for (value, (low, high)) in values.iter_mut().zip(low.iter().zip(high)) {
                    let quant = (low >> low_shift & 3 | (high >> high_shift & 1) << 2) as i8 - 4;
                    *value = scale * f32::from(quant);
                }
            }
        }
    }

    fn encode(&self, _values: &[f32], _bytes: &mut [u8]) -> Result<(), EncodeError> {
        Err(EncodeError::ReadOnly(DType::Q3_K))
    }
}
