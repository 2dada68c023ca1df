//! BF16: the upper 16 bits of a binary32, little-endian: 1 sign bit, 8 exponent bits, 7 fraction bits.
//!
//! The range of binary32. Encoding rounds to the nearest, ties to even: with 8 significant bits a relative error of at
//! most 2⁻⁸ / (1 + 2⁻⁸) for normal numbers; a NaN stays one and becomes quiet.

use super::EncodeError;
use crate::DType;

/// One weight.
pub type Block = [u8; 2];

const _: () = assert!(size_of::<Block>() == 2);

/// Reads and writes [`DType::BF16`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::BF16
    }

    fn name(&self) -> &'static str {
        "bf16"
    }

    fn block_len(&self) -> usize {
        1
    }

    fn block_bytes(&self) -> usize {
        size_of::<Block>()
    }

    fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        for (block, [value]) in super::decode_blocks::<Block, 1>(bytes, values) {
            *value = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
        }
    }

    fn encode(&self, values: &[f32], bytes: &mut [u8]) -> Result<(), EncodeError> {
        for (block, [value]) in super::encode_blocks::<Block, 1>(values, bytes) {
            *block = round(*value).to_le_bytes();
        }
        Ok(())
    }
}

/// The upper half of a binary32, rounded to the nearest, ties to even.
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        // Rounding could carry a NaN over to infinity; the quiet bit keeps it what it is.
        return (bits >> 16) as u16 | 0x40;
    }
    // Just under one half, and one more where the kept part is odd. No overflow: the largest is -∞, 0xff80_0000.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
