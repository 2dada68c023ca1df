//! GGUF, the file format of llama.cpp: versions 2 and 3, little-endian, single or split into several files.
//!
//! Layout (`docs/gguf.md` of the ggml project): magic `GGUF`, version, counts of tensors and of metadata entries, the
//! entries (key, type, value), the tensors' names, dimensions (innermost first), types and offsets, then the tensors'
//! bytes, each at a multiple of `general.alignment` (32 when absent).

mod ggml_type;
mod read;
mod split;
mod value;
mod write;

pub use read::{File, parse};
pub(crate) use split::open;
pub use value::{Array, Metadata, StringArray, Value};
pub use write::{Builder, Writer};

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Multiple at which tensors start when `general.alignment` is absent.
pub const ALIGNMENT_DEFAULT: u64 = 32;

/// Most metadata entries that a file may have; published files have about fifty.
pub const ENTRIES_MAX: u64 = 16_384;

/// Most tensors that a file may have; Gemma 3 27B has 808.
pub const TENSORS_MAX: u64 = 262_144;
