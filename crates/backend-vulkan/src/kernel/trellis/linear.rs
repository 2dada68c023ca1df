//! [`tensor::Op::Linear`] with trellis weights.

use tensor::DType;
use tensor::format::trellis::hadamard::BLOCK;

use super::dispatches::{Unfinished, decode, finish, rotate};
use super::memory::TrellisScratch;
use super::product::{PARTS_MAX, Tiling, product};
use super::rotated::{Arithmetic, Rotated, RotatedForm};
use super::weight::TrellisWeight;
use crate::dispatch::Dispatch;
use crate::features::Features;
use crate::kernel::View;
use crate::kernel::matmul::{matmul, matmul_matrix, tile};
use crate::kernel::matvec::COLUMNS_MAX;
use crate::kernel::to_half::{Halves, to_half};
use crate::layout::Weight;
use tensor::Precision;

/// Most columns that are multiplied some at a time by tiles as they are.
pub(crate) const COLUMNS_SEPARATE_MAX: usize = 32;

/// Products of one input of f32 rows with weights that have the same scales of their inputs. `matrices`: whether the
/// device multiplies f16 matrices.
pub(crate) fn linear(
    features: &Features,
    parts: &[(TrellisWeight, View)],
    input: View,
    rows: usize,
    (arithmetic, matrices): (Arithmetic, bool),
    scratch: &TrellisScratch,
) -> Vec<Dispatch> {
    if rows > COLUMNS_SEPARATE_MAX {
        return by_decoded(features, parts, input, rows, matrices && arithmetic.precision == Precision::Fast, scratch);
    }
    let mut dispatches = Vec::new();
    let form = |weight: &TrellisWeight| arithmetic.form(weight.format, rows);
    let forms = [RotatedForm::Floats, RotatedForm::Integers, RotatedForm::Halfs, RotatedForm::Splats];
    for form_of_parts in forms {
        let parts: Vec<_> = parts.iter().filter(|(weight, _)| form(weight) == form_of_parts).copied().collect();
        let Some((weight, _)) = parts.first() else { continue };
        let rotated = Rotated { form: form_of_parts, values: scratch.rotated, sums: scratch.sums };
        dispatches.push(rotate(features, input, weight, rotated, rows));
        dispatches.extend(rotated_linear(features, &parts, rotated, rows, scratch));
    }
    dispatches
}

/// Products of one rotated input with weights that have the same scales of their inputs, eight columns at a time.
pub(crate) fn rotated_linear(
    features: &Features,
    parts: &[(TrellisWeight, View)],
    input: Rotated,
    rows: usize,
    scratch: &TrellisScratch,
) -> Vec<Dispatch> {
    let mut dispatches = Vec::new();
    for first in (0..rows).step_by(COLUMNS_MAX) {
        let columns = COLUMNS_MAX.min(rows - first);
        for parts in parts.chunk_by(|(a, _), (b, _)| a.decodes_like(b)).flat_map(|parts| parts.chunks(PARTS_MAX)) {
            let blocks = parts.iter().map(|(weight, _)| weight.outputs() / BLOCK).sum();
            let weight = parts[0].0;
            let tiling = Tiling::new(features, 1, blocks, weight.inputs() / BLOCK, columns);
            let from = input.skip_rows(first, weight.inputs());
            let skipped = |view: &View| View { address: view.address + (4 * first * view.pitch()) as u64, ..*view };
            let moved: Vec<_> = parts.iter().map(|(weight, view)| (*weight, skipped(view))).collect();
            let mut dispatch = product(features, &moved, from, columns, tiling, scratch.meeting);
            // Hazards know buffers by where they begin.
            dispatch.reads = vec![input.values];
            dispatch.writes.extend(parts.iter().map(|(_, view)| view.address));
            dispatches.push(dispatch);
        }
    }
    dispatches
}

/// Many columns, with tiles decoded some outputs at a time.
fn by_decoded(
    features: &Features,
    parts: &[(TrellisWeight, View)],
    input: View,
    rows: usize,
    matrices: bool,
    scratch: &TrellisScratch,
) -> Vec<Dispatch> {
    let inputs = parts[0].0.inputs();
    let rotated = View { address: scratch.rotated, width: inputs };
    let halfs = Halves { width: inputs, ..scratch.halfs };
    let target = Rotated { form: RotatedForm::Floats, values: rotated.address, sums: 0 };
    let mut dispatches = vec![rotate(features, input, &parts[0].0, target, rows)];
    if matrices {
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
            let mut multiply = match matrices {
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
