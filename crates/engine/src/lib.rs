//! Runs requests on a loaded model.
//!
//! [`Engine::load`] turns a checkpoint into a program on a device. Work is then handed in as [`Request`]s and done in
//! [`Engine::step`]s, each of which is one pass over the weights for all sequences that have something to do: one token
//! for each that is generating, and a chunk of a prompt. Where the device chooses tokens itself and no prompt waits, a
//! step is several passes. [`Engine::forward`] runs a text and gives the logits of its positions. [`Engine::recover`]
//! goes on after a device has failed.
//!
//! ```no_run
//! # fn example(backend: &dyn tensor::Backend) -> Result<(), Box<dyn std::error::Error>> {
//! use engine::{Engine, EngineOptions, Event, Request};
//!
//! let checkpoint = checkpoint::Checkpoint::open("gemma-3-1b-it".as_ref())?;
//! let mut engine = Engine::load(&checkpoint, backend, &EngineOptions::default())?;
//! engine.submit(Request { stop_tokens: vec![1, 106], ..Request::new(vec![2, 105, 2364]) })?;
//! while !engine.is_idle() {
//!     for event in engine.step()? {
//!         if let Event::Token { token, .. } = event {
//!             // hand it to a streaming detokenizer
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! This crate knows token ids only: no strings, no JSON, and of the devices only [`tensor::Backend`].

mod cached;
mod cancel;
mod decode;
mod dequantize;
mod error;
mod forward;
mod load;
mod memory;
mod options;
mod recover;
mod request;
pub mod sample;
pub mod schedule;
mod sequence;
mod source;
mod step;
mod trace;

pub use cancel::{CancelHandle, InterruptHandle};
pub use error::EngineError;
pub use forward::{PassLimits, Row, TextPart};
pub use load::Engine;
pub use options::EngineOptions;
pub use request::{Event, FinishReason, Request, SequenceId, Statistics};
pub use source::{ModelSource, SourceTensor};
pub use tensor::Sampling;
