//! Memory that products with trellis weights need besides their inputs and outputs. Products come one after the other,
//! so that all have the same.

use tensor::format::trellis::hadamard::BLOCK;
use tensor::{BackendError, BufferKind, LoadOptions, Program, WeightFormat};

use super::linear::COLUMNS_SEPARATE_MAX;
use super::product::Meeting;
use super::rotated::Rotated;
use super::weight::TrellisWeight;
use crate::features::{DeviceKind, Features};
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
    sums: usize,
    partials: usize,
    arrivals: usize,
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
    /// Scales and sums of these, where they are no floats.
    pub(crate) sums: u64,
    /// Where workgroups of a product meet.
    pub(crate) meeting: Meeting,
    /// What products leave to the norms behind them.
    pub(crate) left: u64,
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
        let outputs = weights.iter().map(TrellisWeight::outputs);
        let meetings = outputs.map(|outputs| Meeting::bytes(features, outputs));
        let (partials, arrivals) = meetings.fold((0, 0), |most, found| (most.0.max(found.0), most.1.max(found.1)));
        let mut memory = TrellisMemory {
            rotated: 4 * tokens * inputs,
            sums: Rotated::bytes(tokens.min(COLUMNS_SEPARATE_MAX), inputs).1,
            partials,
            arrivals,
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
            sums: take(self.sums)?,
            meeting: Meeting { partials: take(self.partials)?, arrivals: take(self.arrivals)? },
            left: take(self.partials)?,
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
