//! One plain function per op: the oracle that every backend is compared with.
//!
//! Slices are row-major f32; a function's result is that of real arithmetic up to a few roundings, because sums,
//! powers and transcendental functions are computed in f64. Lengths are the caller's to keep, as
//! [`crate::ProgramBuilder::build`] checks them; the functions panic on others.
//!
//! [`sample`] chooses a token from logits; there devices have to agree to the bit.
//!
//! [`ReferenceBackend`] runs whole programs with them.

mod add;
mod attention;
mod backend;
mod cache_write;
mod embed;
mod gelu_mul;
mod linear;
mod rms_norm;
mod rope;
mod sample;
mod select_outputs;

pub use add::add;
pub use attention::{AttentionShape, attention};
pub use backend::{ReferenceBackend, ReferenceLoaded};
pub use cache_write::cache_write;
pub use embed::embed;
pub use gelu_mul::{gelu_mul, gelu_tanh};
pub use linear::linear;
pub use rms_norm::rms_norm;
pub use rope::{rope, rope_angle};
pub use sample::sample;
pub use select_outputs::select_outputs;
