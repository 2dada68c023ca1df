//! Checkpoints on disk: Hugging Face folders and GGUF files, memory-mapped in, written streaming.
//!
//! [`Checkpoint::open`] checks a file completely (lengths, offsets, overlaps, names) before it gives out a byte of
//! it; the bytes of a tensor then are a slice of the mapping ([`TensorData`]). [`gguf::Builder`] and
//! [`safetensors::Writer`] write through an [`AtomicFile`], so that a target is either the old file or the whole new
//! one.
//!
//! [`Checkpoint::from_static`] does the same with a folder whose files are part of the program.
//!
//! The weights of an EXL3 folder, which are several tensors each, come as one ([`exl3`]).
//!
//! This crate knows no model: names, shapes and metadata mean nothing to it.

mod atomic_file;
mod checkpoint;
mod error;
pub mod exl3;
mod folder;
pub mod gguf;
pub mod huggingface;
pub mod safetensors;
mod sniff;
mod storage;
mod stream;

pub use atomic_file::AtomicFile;
pub use checkpoint::{
    Checkpoint, Encoding, EncodingBytes, FileInfo, Metadata, RawTensor, TensorInfo, UnsupportedTensor,
};
pub use error::CheckpointError;
pub use folder::StaticFile;
pub use huggingface::HuggingFace;
pub use storage::TensorData;
