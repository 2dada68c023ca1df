//! Weights of the trellis format (`shaders/trellis.glsl`): products straight from their tiles, and rows of a table.
//!
//! A product is `svh ∘ H (Cᵀ H (suh ∘ x))`. What tiles are multiplied with is made where the input is written, if that
//! can be, else by [`rotate`]; [`product`] and [`gate_up`] do the rest for few columns. For many columns tiles are
//! decoded, some outputs at a time, and multiplied as matrices of F16.

mod dispatches;
pub(crate) mod layout;
mod linear;
mod measure;
mod memory;
mod product;
mod rotated;
#[cfg(test)]
mod tests;
mod weight;

pub use measure::measure;

pub(crate) use dispatches::{embed, repack, rotate};
pub(crate) use linear::{linear, rotated_linear};
pub(crate) use memory::{TrellisMemory, TrellisScratch};
pub(crate) use product::{Gated, Tiling, gate_up, leave};
pub(crate) use rotated::{Arithmetic, Rotated, RotatedForm};
pub(crate) use weight::TrellisWeight;
