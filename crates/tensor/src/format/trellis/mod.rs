//! The trellis format of exllamav3, EXL3: tiles of 16 × 16 weights at 1 to 8 bits each.
//!
//! A tile is a ring of 256 weights. Each weight has a *state* of 16 bits, and the weight is what the [`Codebook`] makes
//! of its state. Neighbours share most of their states: the state of the next weight is this one's, shifted left by the
//! few bits that the [`Rate`] says, with new bits below. Only the new bits are stored, so that a weight costs them
//! only, and yet is one of 65,536 values. The ring is closed: the first state goes on from the last ([`tile`]).
//!
//! An encoder looks for the ring whose values are nearest to the weights. [`search`] defines how, to the bit, and is
//! written to be read; the crate `quantize` does the same quickly.
//!
//! There are no scales in a tile. A whole [`Linear`] weight is rotated on both sides by Hadamard matrices
//! ([`hadamard`]), which makes any weights look like independent normal ones, and has a scale for each of its inputs
//! and outputs. It lies in a file as several tensors, which is why this format is no [`DType`](crate::DType) with
//! blocks along a row.
//!
//! Sources: the layout of exllamav3 1.6.5 (MIT); "QTIP: Quantization with Trellises and Incoherence Processing", Tseng
//! et al. 2024, for the trellis and for 3INST.

mod codebook;
pub mod hadamard;
mod linear;
mod rate;
mod scales;
pub mod search;
pub mod tile;

pub use codebook::Codebook;
pub use linear::{Linear, LinearError, Parts, StoredKind, StoredTensor};
pub use rate::Rate;
pub use scales::Scales;

/// Rows and columns of a tile.
pub const SIDE: usize = 16;

/// Weights of a tile.
pub const LEN: usize = SIDE * SIDE;
