//! Safetensors files: 8 bytes of header length, a JSON header, the tensors' bytes without gaps.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

mod element;
mod read;
mod shards;
mod write;

pub use element::{Declared, Element};
pub use read::parse;
pub use shards::ShardedWriter;
pub use write::Writer;

/// Longest header in bytes, as in the safetensors library.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
