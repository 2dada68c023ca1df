//! Q8_0: 32 weights in 34 bytes, 8.5 bits per weight.
//!
//! `w = d · q` with `q` in −128..=127; encoding makes −127..=127 from `d = max |w| / 127`, rounding halves away from
//! zero: an error of at most `d / 2` plus the rounding of `d` to binary16. Also a format of key and value caches.

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
    /// `q` of every weight.
    pub values: [i8; 32],
}

const _: () = assert!(size_of::<Block>() == 34 && align_of::<Block>() == 1);

/// Reads and writes [`DType::Q8_0`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::Q8_0
    }

    fn name(&self) -> &'static str {
        "q8_0"
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
            for (value, quant) in values.iter_mut().zip(block.values) {
                *value = scale * f32::from(quant);
            }
        }
    }

    fn encode(&self, values: &[f32], bytes: &mut [u8]) -> Result<(), EncodeError> {
        for (block, values) in super::encode_blocks::<Block, LEN>(values, bytes) {
            let scale = super::signed_max(values).abs() / 127.0;
            let inverse = super::inverse(scale);
            *block =
                Block { scale: super::half_to(scale), values: values.map(|value| (value * inverse).round() as i8) };
        }
        Ok(())
    }
}
