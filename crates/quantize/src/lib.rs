//! Makes small weights of large ones.
//!
//! A tile: [`tensor::format::trellis::search`] defines which one is nearest to 256 weights and takes its time; an
//! [`Encoder`] finds the same one, to the bit, with the vector instructions of the processor. It works on one tile at a
//! time and has no threads: callers share an encoder among theirs, with a [`Scratch`] for each. A [`TileQueue`] gives
//! the tiles of many threads to a device instead.
//!
//! A weight: a [`Hessian`] sums up the activations that it gets, [`input_scales`] makes its inputs alike, a [`Factor`]
//! says how the error of some inputs can be made good by others, and [`quantize()`] or a [`Job`] rounds it that way.
//! All results are the same for any number of threads, and on any processor.
//!
//! A model: [`pipeline`] goes from an open checkpoint to a folder of small weights, layer by layer. All else knows
//! neither files nor models.

mod device;
mod encoder;
mod error;
mod factor;
mod hessian;
mod lanes;
mod ldlq;
mod level;
mod noise;
mod parallel;
pub mod pipeline;
mod product;
mod rotation;
mod scale;
mod step;
mod trace;
mod walk;

pub use device::{Decomposition, HessianDevice, ScaledSums, TileDevice, TileQueue};
pub use encoder::{Encoder, Scratch};
pub use error::QuantizeError;
pub use factor::Factor;
pub use hessian::Hessian;
pub use ldlq::{Block, Job, Numbers, Quantized, Settings, quantize};
pub use level::Level;
pub use noise::{Noisy, distortion};
pub use rotation::{Weight, WeightRows, input_scales};
