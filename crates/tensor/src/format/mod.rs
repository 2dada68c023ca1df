//! One file per number format: layout, block, encode, decode.
//!
//! The block formats are those of GGML, as the GGUF specification's `ggml_type` numbers them and the comments of
//! GGML's `ggml-common.h` describe them. Every number in a block is little-endian and every field is an array of
//! bytes, so that a block may lie at any address.
//!
//! To add a format: a variant of [`DType`], a file here with its `Block` and a [`Codec`], and its line in `codec`.

use bytemuck::Pod;
use thiserror::Error;

use crate::DType;

pub mod bf16;
pub mod f16;
pub mod f32;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
pub mod trellis;

/// A format's encoder can't be applied.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EncodeError {
    /// The format can only be read here.
    #[error("writing {0} is not supported, only reading it")]
    ReadOnly(DType),
}

/// How a format stores a run of weights.
///
/// The length rules are the caller's to keep: `values.len()` is a multiple of [`Codec::block_len`], and
/// `bytes.len()` is the matching number of blocks × [`Codec::block_bytes`]; the functions panic otherwise.
pub trait Codec: Send + Sync {
    /// The format that this codec reads and writes.
    fn dtype(&self) -> DType;
    /// Lower-case name.
    fn name(&self) -> &'static str;
    /// Weights per block.
    fn block_len(&self) -> usize;
    /// Bytes per block.
    fn block_bytes(&self) -> usize;
    /// Decodes whole blocks into `values`.
    fn decode(&self, bytes: &[u8], values: &mut [f32]);
    /// Encodes `values` by rounding to the nearest (the simple method; no calibration), as llama.cpp's reference
    /// rounding does, so that both programs write the same bytes.
    fn encode(&self, values: &[f32], bytes: &mut [u8]) -> Result<(), EncodeError>;
}

/// The codec of a format.
pub(crate) fn codec(dtype: DType) -> &'static dyn Codec {
    match dtype {
        DType::F32 => &f32::Codec,
        DType::F16 => &f16::Codec,
        DType::BF16 => &bf16::Codec,
        DType::Q4_0 => &q4_0::Codec,
        DType::Q4_1 => &q4_1::Codec,
        DType::Q5_0 => &q5_0::Codec,
        DType::Q5_1 => &q5_1::Codec,
        DType::Q8_0 => &q8_0::Codec,
        DType::Q2_K => &q2_k::Codec,
        DType::Q3_K => &q3_k::Codec,
        DType::Q4_K => &q4_k::Codec,
        DType::Q5_K => &q5_k::Codec,
        DType::Q6_K => &q6_k::Codec,
    }
}

/// Splits bytes into blocks and values into the blocks' weights.
///
/// # Panics
/// If one of them is no whole number of blocks, or their numbers differ.
fn decode_blocks<'a, B: Pod, const N: usize>(
    bytes: &'a [u8],
    values: &'a mut [f32],
) -> impl Iterator<Item = (&'a B, &'a mut [f32; N])> {
    let blocks: &[B] = bytemuck::cast_slice(bytes);
    let (values, rest) = values.as_chunks_mut::<N>();
    assert!(rest.is_empty() && blocks.len() == values.len(), "{} blocks, {} × {N} values", blocks.len(), values.len());
    blocks.iter().zip(values)
}

/// The counterpart of [`decode_blocks`]: blocks to be written, and the weights to write.
fn encode_blocks<'a, B: Pod, const N: usize>(
    values: &'a [f32],
    bytes: &'a mut [u8],
) -> impl Iterator<Item = (&'a mut B, &'a [f32; N])> {
    let blocks: &mut [B] = bytemuck::cast_slice_mut(bytes);
    let (values, rest) = values.as_chunks::<N>();
    assert!(rest.is_empty() && blocks.len() == values.len(), "{} blocks, {} × {N} values", blocks.len(), values.len());
    blocks.iter_mut().zip(values)
}

/// A binary16 as blocks store it.
fn half_from(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

/// Rounds to the nearest binary16, ties to even.
fn half_to(value: f32) -> [u8; 2] {
    half::f16::from_f32(value).to_le_bytes()
}

/// `1 / x`, or 0 for 0: a block of equal weights has no step.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The element of the largest magnitude with its sign, the first one of equals; 0 for none.
fn signed_max(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max: f32, &value| if value.abs() > max.abs() { value } else { max })
}

/// The smallest and the largest element.
fn range(values: &[f32]) -> (f32, f32) {
    // Comparisons, because `min` and `max` leave the sign of a zero open.
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &value| {
        (if value < low { value } else { low }, if value > high { value } else { high })
    })
}

/// Packs 32 4-bit values: byte `i` has value `i` in its low half and value `i + 16` in its high half.
fn pack_nibbles(values: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|index| (values[index] & 15) | (values[index + 16] << 4))
}

/// The counterpart of [`pack_nibbles`].
fn unpack_nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|index| if index < 16 { bytes[index] & 15 } else { bytes[index - 16] >> 4 })
}

/// Packs 32 5-bit values: their low 4 bits as [`pack_nibbles`] does, and bit 4 of value `i` as bit `i` of a
/// little-endian word.
fn pack_five_bits(values: &[u8; 32]) -> ([u8; 16], [u8; 4]) {
    let high = values.iter().enumerate().fold(0, |word, (bit, &value)| word | u32::from(value >> 4 & 1) << bit);
    (pack_nibbles(values), high.to_le_bytes())
}

/// The counterpart of [`pack_five_bits`].
fn unpack_five_bits(low: &[u8; 16], high: [u8; 4]) -> [u8; 32] {
    let high = u32::from_le_bytes(high);
    let mut values = unpack_nibbles(low);
    for (bit, value) in values.iter_mut().enumerate() {
        *value |= ((high >> bit & 1) as u8) << 4;
    }
    values
}

/// The eight 6-bit scales and eight 6-bit minima of [`q4_k`] and [`q5_k`], packed in 12 bytes.
///
/// For `i` in 0..4: byte `i` has scale `i` in bits 0–5, byte `4 + i` has minimum `i` in bits 0–5, byte `8 + i` has
/// bits 0–3 of scale `4 + i` in its low half and those of minimum `4 + i` in its high half; bits 4–5 of these two are
/// bits 6–7 of byte `i` and of byte `4 + i`.
pub fn unpack_scales_and_minima(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        minima[i] = packed[4 + i] & 63;
        scales[4 + i] = packed[8 + i] & 15 | packed[i] >> 6 << 4;
        minima[4 + i] = packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4;
    }
    (scales, minima)
}
