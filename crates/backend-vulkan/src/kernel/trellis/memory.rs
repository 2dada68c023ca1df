//! Memory that products with trellis weights need besides their inputs and outputs. Products come one after the other,
//! so that all have the same.

use tensor::format::trellis::hadamard::BLOCK;
use tensor::{BackendError, BufferKind, LoadOptions, Program, WeightFormat};

use super::dispatches::PARTS_MAX;
use super::linear::{COLUMNS_SEPARATE_MAX, SLICES_MAX};
use super::weight::TrellisWeight;
use crate::features::{DeviceKind, Features};
use crate::kernel::matvec::COLUMNS_MAX;
use crate::kernel::to_half::Halves;

/// Bytes of decoded tiles: on cards with memory of their own all of the largest matrix of most models.
const DECODED_BYTES_MAX: usize = 256 << 20;
const DECODED_BYTES_MAX_SHARED: usize = 64 << 20;

/// Bytes of what comes out of a product by decoded tiles before it is finished.
const PRODUCT_BYTES_MAX: usize = 64 << 20;

/// How many bytes of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrellisMemory {
    rotated: usize,
    quants: usize,
    sums: usize,
    partial: usize,
    half_values: usize,
    half_scales: usize,
    decoded: usize,
    product: usize,
}

/// Addresses of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TrellisScratch {
    /// Rotated activations.
    pub(crate) rotated: u64,
    /// The same as integers.
    pub(crate) quants: u64,
    /// Scales and sums of these.
    pub(crate) sums: u64,
    /// What few columns give before it is finished; the parts of a product have [`TrellisScratch::part_bytes`] each.
    pub(crate) partial: u64,
    /// Bytes of a part's.
    pub(crate) part_bytes: u64,
    /// Rotated activations as f16, their width to be filled in.
    pub(crate) halfs: Halves,
    /// Decoded tiles.
    pub(crate) decoded: u64,
    /// What many columns give before it is finished.
    pub(crate) product: u64,
    /// Bytes for decoded tiles and for such products.
    pub(crate) room: (usize, usize),
}

impl TrellisMemory {
    /// For a program; nothing if it has no trellis weights.
    pub(crate) fn new(features: &Features, program: &Program, options: &LoadOptions) -> TrellisMemory {
        let weights: Vec<TrellisWeight> = program.buffers().iter().filter_map(|buffer| weight(&buffer.kind)).collect();
        let inputs = weights.iter().map(TrellisWeight::inputs).max().unwrap_or(0);
        let tokens = options.tokens_max;
        let few = tokens.min(COLUMNS_SEPARATE_MAX);
        let partial = weights.iter().map(part_bytes).max().unwrap_or(0);
        let mut memory = TrellisMemory {
            rotated: 4 * tokens * inputs,
            quants: few * inputs,
            sums: few * inputs / 8,
            partial: PARTS_MAX * partial,
            ..TrellisMemory::default()
        };
        if tokens > COLUMNS_SEPARATE_MAX {
            memory.half_values = 2 * tokens * inputs;
            memory.half_scales = 4 * tokens;
            let most = match features.kind {
                DeviceKind::Discrete => DECODED_BYTES_MAX,
                DeviceKind::Integrated | DeviceKind::Virtual | DeviceKind::Software => DECODED_BYTES_MAX_SHARED,
            };
            let largest = weights.iter().map(|weight| 2 * weight.inputs() * weight.outputs()).max().unwrap_or(0);
            let outputs = weights.iter().map(TrellisWeight::outputs).max().unwrap_or(0);
            // Of the widest weight at least one block.
            memory.decoded = largest.min(most.max(2 * inputs * BLOCK));
            memory.product = 4 * tokens * outputs.min((PRODUCT_BYTES_MAX / (4 * tokens)).max(BLOCK));
        }
        memory
    }

    /// Takes it.
    ///
    /// # Errors
    /// What `take` says.
    pub(crate) fn place(
        &self,
        mut take: impl FnMut(usize) -> Result<u64, BackendError>,
    ) -> Result<TrellisScratch, BackendError> {
        Ok(TrellisScratch {
            rotated: take(self.rotated)?,
            quants: take(self.quants)?,
            sums: take(self.sums)?,
            partial: take(self.partial)?,
            part_bytes: (self.partial / PARTS_MAX) as u64,
            halfs: Halves { values: take(self.half_values)?, scales: take(self.half_scales)?, width: 0 },
            decoded: take(self.decoded)?,
            product: take(self.product)?,
            room: (self.decoded, self.product),
        })
    }
}

/// The trellis weight that a buffer is, without an address.
fn weight(kind: &BufferKind) -> Option<TrellisWeight> {
    match *kind {
        BufferKind::Weight { format: WeightFormat::Trellis(format), rows, columns } => {
            Some(TrellisWeight { address: 0, format, rows, columns })
        }
        BufferKind::Weight { .. } | BufferKind::Scratch { .. } | BufferKind::Cache { .. } => None,
    }
}

/// Bytes of a weight's part of a product by few columns.
fn part_bytes(weight: &TrellisWeight) -> usize {
    let slices = super::linear::slices(weight.outputs(), weight.groups()).min(SLICES_MAX);
    4 * slices * COLUMNS_MAX * weight.outputs()
}
