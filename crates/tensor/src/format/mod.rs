//! One file per number format: layout, block, encode, decode.

use thiserror::Error;

use crate::DType;

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
pub(crate) fn codec(_dtype: DType) -> &'static dyn Codec {
    unreachable!("written next")
}
