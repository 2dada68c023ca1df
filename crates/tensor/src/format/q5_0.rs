//! Q5_0: 32 weights in 22 bytes, 5.5 bits per weight.
//!
//! `w = d · (q − 16)` with `q` in 0..=31. Encoded as [`super::q4_0`] is, with `d = m / −16`.

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
    /// Bit 4 of every `q`: bit `i` of this little-endian word belongs to weight `i`.
    pub high: [u8; 4],
    /// Bits 0–3 of every `q`: byte `i` has weight `i` in its low half and weight `i + 16` in its high half.
    pub low: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == 22 && align_of::<Block>() == 1);

/// Reads and writes [`DType::Q5_0`].
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl super::Codec for Codec {
    fn dtype(&self) -> DType {
        DType::Q5_0
    }

    fn name(&self) -> &'static str {
        "q5_0"
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
            let quants = super::unpack_five_bits(&block.low, block.high);
            for (value, quant) in values.iter_mut().zip(quants) {
                *value = scale * (f32::from(quant) - 16.0);
            }
        }
    }

    fn encode(&self, values: &[f32], bytes: &mut [u8]) -> Result<(), EncodeError> {
        for (block, values) in super::encode_blocks::<Block, LEN>(values, bytes) {
            let scale = super::signed_max(values) / -16.0;
            let inverse = super::inverse(scale);
            let quants = values.map(|value| ((value * inverse + 16.5) as u8).min(31));
            let (low, high) = super::pack_five_bits(&quants);
            *block = Block { scale: super::half_to(scale), high, low };
        }
        Ok(())
    }
}
