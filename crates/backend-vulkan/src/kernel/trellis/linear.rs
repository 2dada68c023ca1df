//! [`tensor::Op::Linear`] with trellis weights.

use tensor::format::trellis::Codebook;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::{DType, Precision};

use super::dispatches::{PARTS_MAX, Rotated, Tiling, Unfinished, decode, finish, product, rotate};
use super::memory::TrellisScratch;
use super::weight::{TrellisWeight, UNIT_OUTPUTS};
use crate::dispatch::Dispatch;
use crate::features::Features;
use crate::kernel::View;
use crate::kernel::matmul::{matmul, matmul_matrix, tile};
use crate::kernel::matvec::COLUMNS_MAX;
use crate::kernel::to_half::{Halves, to_half};
use crate::layout::Weight;

/// Most columns that are multiplied some at a time by tiles as they are.
pub(crate) const COLUMNS_SEPARATE_MAX: usize = 32;

/// Most slices of the inputs.
pub(crate) const SLICES_MAX: usize = 8;

/// What products may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arithmetic {
    /// As the caller asked.
    pub(crate) precision: Precision,
    /// Whether the device multiplies f16 matrices.
    pub(crate) matrices: bool,
}

/// Slices of the inputs, so that a large card is full: for outputs in all, and groups of inputs.
pub(crate) fn slices(outputs: usize, groups: usize) -> usize {
    // Teams that a large card holds at once.
    const WANTED: usize = 2048;
    let teams = outputs / UNIT_OUTPUTS * SPLIT as usize;
    // A team should have a few groups to go through.
    (WANTED.div_ceil(teams)).min(groups / (4 * SPLIT as usize)).clamp(1, SLICES_MAX)
}

/// Teams of a workgroup.
const SPLIT: u32 = 4;

/// Products of one input with weights that have the same scales of their inputs.
pub(crate) fn linear(
    features: &Features,
    parts: &[(TrellisWeight, View)],
    input: View,
    rows: usize,
    arithmetic: Arithmetic,
    scratch: &TrellisScratch,
) -> Vec<Dispatch> {
    if rows > COLUMNS_SEPARATE_MAX {
        return by_decoded(features, parts, input, rows, arithmetic, scratch);
    }
    let floats = Rotated::Floats(scratch.rotated);
    let quants = Rotated::Quants { values: scratch.quants, sums: scratch.sums };
    let form = |weight: &TrellisWeight| {
        let integers = features.integer_dot && arithmetic.precision == Precision::Fast;
        if integers && weight.format.codebook == Codebook::Mul1 { quants } else { floats }
    };
    let mut dispatches = Vec::new();
    for rotated in [quants, floats] {
        if parts.iter().any(|(weight, _)| form(weight) == rotated) {
            dispatches.push(rotate(features, input, &parts[0].0, rotated, rows));
        }
    }
    let alike = |a: &(TrellisWeight, View), b: &(TrellisWeight, View)| {
        (a.0.format.rate, a.0.format.codebook) == (b.0.format.rate, b.0.format.codebook)
    };
    for first in (0..rows).step_by(COLUMNS_MAX) {
        let columns = COLUMNS_MAX.min(rows - first);
        for parts in parts.chunk_by(alike).flat_map(|parts| parts.chunks(PARTS_MAX)) {
            dispatches.extend(some_columns(features, parts, form(&parts[0].0), (first, columns), scratch));
        }
    }
    dispatches
}

/// The rotated activations from column `first` on.
fn columns_from(rotated: Rotated, inputs: usize, first: usize) -> Rotated {
    let skipped = (first * inputs) as u64;
    match rotated {
        Rotated::Floats(address) => Rotated::Floats(address + 4 * skipped),
        Rotated::Quants { values, sums } => Rotated::Quants { values: values + skipped, sums: sums + skipped / 8 },
    }
}

/// Up to [`COLUMNS_MAX`] columns.
fn some_columns(
    features: &Features,
    parts: &[(TrellisWeight, View)],
    input: Rotated,
    (first, columns): (usize, usize),
    scratch: &TrellisScratch,
) -> Vec<Dispatch> {
    let outputs = parts.iter().map(|(weight, _)| weight.outputs()).sum();
    let tiling = Tiling { split: SPLIT, abreast: 1, slices: slices(outputs, parts[0].0.groups()) };
    let target = |index: usize| scratch.partial + index as u64 * scratch.part_bytes;
    let products: Vec<(TrellisWeight, u64)> =
        parts.iter().enumerate().map(|(index, (weight, _))| (*weight, target(index))).collect();
    let from = columns_from(input, parts[0].0.inputs(), first);
    // Hazards know buffers by where they begin.
    let reads = vec![input.address()];
    let mut dispatches = vec![Dispatch { reads, ..product(features, &products, from, columns, tiling) }];
    for ((weight, address), (_, output)) in products.into_iter().zip(parts) {
        let rows = View { address: output.address + (4 * first * output.pitch()) as u64, ..*output };
        let source = Unfinished { address, slices: tiling.slices, first: 0, outputs: weight.outputs() };
        let writes = vec![output.address];
        dispatches.push(Dispatch { writes, ..finish(features, source, &weight, rows, columns) });
    }
    dispatches
}

/// Many columns, with tiles decoded some outputs at a time.
fn by_decoded(
    features: &Features,
    parts: &[(TrellisWeight, View)],
    input: View,
    rows: usize,
    arithmetic: Arithmetic,
    scratch: &TrellisScratch,
) -> Vec<Dispatch> {
    let inputs = parts[0].0.inputs();
    let rotated = View { address: scratch.rotated, width: inputs };
    let halfs = Halves { width: inputs, ..scratch.halfs };
    let mut dispatches = vec![rotate(features, input, &parts[0].0, Rotated::Floats(rotated.address), rows)];
    if arithmetic.matrices {
        dispatches.push(to_half(features, rotated, halfs, rows));
    }
    let most = (scratch.room.0 / (2 * inputs)).min(scratch.room.1 / (4 * rows)) / BLOCK * BLOCK;
    for (weight, output) in parts {
        for first in (0..weight.outputs()).step_by(most) {
            let outputs = most.min(weight.outputs() - first);
            let decoded =
                Weight { address: scratch.decoded, dtype: DType::F16, rows: outputs, columns: weight.inputs() };
            let product = [(decoded, View { address: scratch.product, width: outputs })];
            dispatches.push(decode(features, weight, scratch.decoded, first, outputs));
            let mut multiply = match arithmetic.matrices {
                true => matmul_matrix(features, &product, halfs, rows, tile(features, DType::F16, rows), 0),
                false => vec![matmul(features, &product, rotated, rows)],
            };
            multiply.iter_mut().for_each(|dispatch| dispatch.reads.push(scratch.decoded));
            dispatches.extend(multiply);
            let source = Unfinished { address: scratch.product, slices: 1, first, outputs };
            dispatches.push(finish(features, source, weight, *output, rows));
        }
    }
    dispatches
}
