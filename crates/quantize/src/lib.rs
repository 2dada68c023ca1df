//! Makes small weights of large ones.
//!
//! So far: the encoder of trellis tiles. [`tensor::format::trellis::search`] defines which tile is nearest to 256
//! weights and takes its time; an [`Encoder`] finds the same one, to the bit, with the vector instructions of the
//! processor. It works on one tile at a time and has no threads: callers share an encoder among theirs, with a
//! [`Scratch`] for each.

mod encoder;
mod lanes;
mod level;
mod step;
mod trace;
mod walk;

pub use encoder::{Encoder, Scratch};
pub use level::Level;
