//! Q4_1: 32 weights in 20 bytes, 5 bits per weight.
//!
//! `w = d · q + m` with `q` in 0..=15. Encoding takes the smallest weight for `m` and a fifteenth of the range for `d`:
//! an error of at most `d / 2` plus the rounding of `d` and `m` to binary16.

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
    /// `m`, a binary16.
    pub minimum: [u8; 2],
    /// 4-bit `q`: byte `i` has weight `i` in its low half and weight `i + 16` in its high half.
    pub values: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == 20 && align_of::<Block>() == 1);

/// Reads and writes [`DType::Q4_1`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::Q4_1
    }

    fn name(&self) -> &'static str {
        "q4_1"
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
            let quants = super::unpack_nibbles(&block.values);
            for (value, quant) in values.iter_mut().zip(quants) {
                *value = scale * f32::from(quant) + minimum;
            }
        }
    }

    fn encode(&self, values: &[f32], bytes: &mut [u8]) -> Result<(), EncodeError> {
        for (block, values) in super::encode_blocks::<Block, LEN>(values, bytes) {
            let (low, high) = super::range(values);
            let scale = (high - low) / 15.0;
            let inverse = super::inverse(scale);
            let quants = values.map(|value| (((value - low) * inverse + 0.5) as u8).min(15));
            *block = Block {
                scale: super::half_to(scale),
                minimum: super::half_to(low),
                values: super::pack_nibbles(&quants),
            };
        }
        Ok(())
    }
}
