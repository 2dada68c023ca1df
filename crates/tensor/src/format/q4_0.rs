//! Q4_0: 32 weights in 18 bytes, 4.5 bits per weight.
//!
//! `w = d · (q − 8)` with `q` in 0..=15. Encoding takes the weight of the largest magnitude, `m`, and `d = m / −8`, so
//! that `m` itself becomes `q = 0`; a weight of equal magnitude and opposite sign is cut from 16 to 15. The error is
//! therefore at most `|d|` at that end and `|d| / 2` elsewhere, plus the rounding of `d` to binary16.

use bytemuck::{Pod, Zeroable};

use super::EncodeError;
use crate::DType;

/// Weights per block.
pub const LEN: usize = 32;

/// One block, as it lies in a file.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    /// `d`, a binary16.
    pub scale: [u8; 2],
    /// 4-bit `q`: byte `i` has weight `i` in its low half and weight `i + 16` in its high half.
    pub values: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == 18 && align_of::<Block>() == 1);

/// Reads and writes [`DType::Q4_0`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::Q4_0
    }

    fn name(&self) -> &'static str {
        "q4_0"
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
            let quants = super::unpack_nibbles(&block.values);
            for (value, quant) in values.iter_mut().zip(quants) {
                *value = scale * (f32::from(quant) - 8.0);
            }
        }
    }

    fn encode(&self, values: &[f32], bytes: &mut [u8]) -> Result<(), EncodeError> {
        for (block, values) in super::encode_blocks::<Block, LEN>(values, bytes) {
            let scale = super::signed_max(values) / -8.0;
            let inverse = super::inverse(scale);
            // The conversion to an integer cuts off, so the half rounds to the nearest.
            let quants = values.map(|value| ((value * inverse + 8.5) as u8).min(15));
            *block = Block { scale: super::half_to(scale), values: super::pack_nibbles(&quants) };
        }
        Ok(())
    }
}
