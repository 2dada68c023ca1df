//! F16: IEEE 754 binary16, little-endian: 1 sign bit, 5 exponent bits, 10 fraction bits.
//!
//! Magnitudes up to 65,504, normal numbers from 2⁻¹⁴, smallest step 2⁻²⁴. Encoding rounds to the nearest, ties to
//! even: a relative error of at most 2⁻¹¹ for normal numbers, else an absolute one of at most 2⁻²⁵; larger magnitudes
//! become infinite.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::EncodeError;
use crate::DType;

/// One weight.
pub type Block = [u8; 2];

const _: () = assert!(size_of::<Block>() == 2);

/// Weights that are converted at a time: enough for the vector instructions, few enough for the stack.
const CHUNK: usize = 256;

/// Reads and writes [`DType::F16`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::F16
    }

    fn name(&self) -> &'static str {
        "f16"
    }

    fn block_len(&self) -> usize {
        1
    }

    fn block_bytes(&self) -> usize {
        size_of::<Block>()
    }

    fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        let blocks: &[Block] = bytemuck::cast_slice(bytes);
        assert_eq!(blocks.len(), values.len());
        let mut halves = [f16::ZERO; CHUNK];
        for (blocks, values) in blocks.chunks(CHUNK).zip(values.chunks_mut(CHUNK)) {
            let halves = &mut halves[..blocks.len()];
            for (half, block) in halves.iter_mut().zip(blocks) {
                *half = f16::from_le_bytes(*block);
            }
            halves.convert_to_f32_slice(values);
        }
    }

    fn encode(&self, values: &[f32], bytes: &mut [u8]) -> Result<(), EncodeError> {
        let blocks: &mut [Block] = bytemuck::cast_slice_mut(bytes);
        assert_eq!(blocks.len(), values.len());
        let mut halves = [f16::ZERO; CHUNK];
        for (blocks, values) in blocks.chunks_mut(CHUNK).zip(values.chunks(CHUNK)) {
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            for (block, half) in blocks.iter_mut().zip(halves) {
                *block = half.to_le_bytes();
            }
        }
        Ok(())
    }
}
