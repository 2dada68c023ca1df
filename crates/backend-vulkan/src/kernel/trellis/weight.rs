//! Where the parts of a trellis weight lie.

use tensor::TrellisFormat;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::format::trellis::{LEN, SIDE};

/// Inputs of a unit of `shaders/trellis.glsl`.
pub(crate) const UNIT_INPUTS: usize = 4 * SIDE;

/// Outputs of a unit.
pub(crate) const UNIT_OUTPUTS: usize = 2 * SIDE;

/// A trellis weight in device memory: units, then the scales of inputs and of outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TrellisWeight {
    /// Address of the units.
    pub(crate) address: u64,
    /// Rate and codebook.
    pub(crate) format: TrellisFormat,
    /// Outputs that count.
    pub(crate) rows: usize,
    /// Inputs that count.
    pub(crate) columns: usize,
}

impl TrellisWeight {
    /// Whether tiles of both are decoded in the same way.
    pub(crate) fn decodes_like(&self, other: &TrellisWeight) -> bool {
        (self.format.rate, self.format.codebook) == (other.format.rate, other.format.codebook)
    }

    /// Inputs with padding.
    pub(crate) fn inputs(&self) -> usize {
        self.columns.next_multiple_of(BLOCK)
    }

    /// Outputs with padding.
    pub(crate) fn outputs(&self) -> usize {
        self.rows.next_multiple_of(BLOCK)
    }

    /// Groups of [`UNIT_INPUTS`] inputs.
    pub(crate) fn groups(&self) -> usize {
        self.inputs() / UNIT_INPUTS
    }

    /// Bytes of the tiles of one group of inputs.
    pub(crate) fn group_bytes(&self) -> usize {
        UNIT_INPUTS * self.outputs() / LEN * self.format.rate.tile_bytes()
    }

    /// Bytes of all tiles.
    pub(crate) fn tile_bytes(&self) -> usize {
        self.groups() * self.group_bytes()
    }

    /// Bytes of tiles and scales.
    pub(crate) fn bytes(&self) -> usize {
        self.tile_bytes() + 2 * (self.inputs() + self.outputs())
    }

    /// Address of the scales of the inputs, binary16.
    pub(crate) fn input_scales(&self) -> u64 {
        self.address + self.tile_bytes() as u64
    }

    /// Address of the scales of the outputs.
    pub(crate) fn output_scales(&self) -> u64 {
        self.input_scales() + 2 * self.inputs() as u64
    }
}
