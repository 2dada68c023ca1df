//! F32: IEEE 754 binary32, little-endian.

use super::EncodeError;
use crate::DType;

/// One weight.
pub type Block = [u8; 4];

const _: () = assert!(size_of::<Block>() == 4);

/// Reads and writes [`DType::F32`]; exact.
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn name(&self) -> &'static str {
        "f32"
    }

    fn block_len(&self) -> usize {
        1
    }

    fn block_bytes(&self) -> usize {
        size_of::<Block>()
    }

    fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        for (block, [value]) in super::decode_blocks::<Block, 1>(bytes, values) {
            *value = f32::from_le_bytes(*block);
        }
    }

    fn encode(&self, values: &[f32], bytes: &mut [u8]) -> Result<(), EncodeError> {
        for (block, [value]) in super::encode_blocks::<Block, 1>(values, bytes) {
            *block = value.to_le_bytes();
        }
        Ok(())
    }
}
