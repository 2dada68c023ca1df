//! Folders of exllamav3, EXL3: those of Hugging Face, with linear layers as trellises
//! ([`trellis`](tensor::format::trellis)).
//!
//! In the place of a matrix `NAME.weight` there are `NAME.trellis`, its tiles; `NAME.suh` and `NAME.svh`, scales of
//! inputs and outputs, or `NAME.su` and `NAME.sv`, signs only, in the oldest files; and `NAME.mcg` or `NAME.mul1`, if
//! the codebook is one of these. All else is as it was. [`Checkpoint`](crate::Checkpoint) puts them together again:
//! [`TrellisInfo`].
//!
//! `config.json` has a `quantization_config` more ([`QuantizationConfig`]). Of what it says nothing is needed to read
//! the weights, but a version or a codebook that is not known here means that they may not be what they look like.

mod config;
mod read;
mod write;

pub use config::QuantizationConfig;
pub use read::TrellisInfo;
pub(crate) use read::take;
pub use write::{LinearTensors, SHARD_BYTES};
