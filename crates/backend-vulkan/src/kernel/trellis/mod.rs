//! Weights of the trellis format (`shaders/trellis.glsl`): products straight from their tiles, and rows of a table.
//!
//! A product is `svh ∘ H (Cᵀ H (suh ∘ x))`: [`rotate`](dispatches::rotate) makes what the tiles are multiplied with,
//! [`product`](dispatches::product) multiplies few columns by them, and [`finish`](dispatches::finish) does the rest.
//! For many columns tiles are decoded, some outputs at a time, and multiplied as matrices of F16.

mod dispatches;
mod linear;
mod memory;
#[cfg(test)]
mod tests;
mod weight;

pub(crate) use dispatches::{embed, repack};
pub(crate) use linear::{Arithmetic, linear};
pub(crate) use memory::{TrellisMemory, TrellisScratch};
pub(crate) use weight::TrellisWeight;
