//! Gemma 3 as data: its configurations, the table of its tensors, and a layer that reads like the paper.
//!
//! The source is "Gemma 3 Technical Report" (<https://arxiv.org/abs/2503.19786>); what the report leaves open (names,
//! defaults, rounding) follows the implementation in the transformers library. This crate opens no files and holds no
//! weights: it turns metadata that others read into a [`Config`], and a [`Config`] into a [`tensor::Program`].

pub mod config;
pub mod gguf;
pub mod hugging_face;
mod layer;
pub mod parts;
pub mod program;
pub mod tensors;

pub use config::{Config, ConfigError, LayerKind, Rope};
pub use gguf::GgufValue;
pub use parts::{HeadProgram, LayerProgram, STATES, build_head_program, build_layer_program};
pub use program::{Gemma3Program, ProgramOptions, build_program};
pub use tensors::{Role, SharedInput, TensorEntry};
