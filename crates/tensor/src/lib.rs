//! The words of the system: number formats, ops, programs and the contract of a backend.
//!
//! A model is turned into a [`Program`]: a list of [`Op`]s over numbered buffers. A [`Backend`] takes a program
//! and the bytes of its weights, and runs it on batches of tokens. [`mod@reference`] holds one plain `f32` function per
//! op: the oracle that every backend is compared with. [`mod@sampling`] says how a token is chosen from logits.
//!
//! This crate has no threads, no files and no devices.

pub mod backend;
pub mod dtype;
pub mod format;
pub mod op;
pub mod philox;
pub mod program;
pub mod reference;
pub mod sampling;
mod weight_format;

pub use backend::{
    Backend, BackendError, Batch, Capabilities, Continuation, LoadOptions, Loaded, MemoryUse, Precision, Segment,
    TraceSpan, WeightBytes, WeightError, WeightSource,
};
pub use dtype::DType;
pub use op::{Op, Scalar};
pub use program::{Buffer, BufferId, BufferKind, Program, ProgramBuilder, Rows};
pub use sampling::Sampling;
pub use weight_format::{TrellisFormat, WeightFormat};
