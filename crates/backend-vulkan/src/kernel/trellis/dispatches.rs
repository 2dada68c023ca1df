//! The single kernels.

use tensor::format::trellis::hadamard::BLOCK;

use super::rotated::Rotated;
use super::weight::{TrellisWeight, UNIT_OUTPUTS};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;
use crate::kernel::{View, kernel};
use crate::pipeline::Kernel;

/// Lanes that have a block or a unit.
pub(super) const TEAM: usize = 32;

/// Constants 2 and 3 of all shaders that decode.
pub(super) fn format_constants(weight: &TrellisWeight) -> Vec<u32> {
    vec![weight.format.rate.half_bits() as u32, weight.format.codebook as u32]
}

/// A kernel whose workgroups are whole teams.
fn team_kernel(features: &Features, shader: &str, teams: usize, constants: Vec<u32>) -> Kernel {
    let mut kernel = kernel(features, shader, constants);
    let lanes = (teams * TEAM) as u32;
    kernel.workgroup = lanes.next_multiple_of(features.subgroup).min(kernel.workgroup);
    kernel
}

/// Brings the tiles of `count` groups of inputs from the `first` on, as a file has them, into units.
pub(crate) fn repack(
    features: &Features,
    source: u64,
    weight: &TrellisWeight,
    target: u64,
    first: usize,
    count: usize,
) -> Dispatch {
    let kernel = kernel(features, "trellis_repack", format_constants(weight));
    let words = count * weight.group_bytes() / 4;
    let push = Push::default().address(source).address(target).number(words).number(weight.outputs() / 16);
    Dispatch {
        groups: [words.div_ceil(kernel.workgroup as usize) as u32, 1, 1],
        kernel,
        push: push.number(first).number(weight.groups()),
        reads: vec![source],
        writes: vec![target],
        bytes: 8 * words as u64,
        operations: 0,
        label: format!("repack trellis {}×{}", weight.rows, weight.columns),
        ..Dispatch::default()
    }
}

/// Scales and rotates `rows` rows of activations for products with a weight.
pub(crate) fn rotate(
    features: &Features,
    input: View,
    weight: &TrellisWeight,
    output: Rotated,
    rows: usize,
) -> Dispatch {
    assert_eq!(input.width, weight.columns);
    let kernel = team_kernel(features, "trellis_rotate", 4, vec![output.form as u32]);
    let blocks = weight.inputs() / BLOCK;
    let push = Push::default().address(input.address).address(weight.input_scales());
    let push = push.address(output.values).address(output.sums);
    Dispatch {
        groups: [(TEAM * blocks).div_ceil(kernel.workgroup as usize) as u32, rows as u32, 1],
        kernel,
        push: push.number(input.width).number(input.pitch()).number(blocks),
        reads: vec![input.address],
        writes: vec![output.values],
        bytes: (8 * rows * input.width) as u64,
        operations: (9 * rows * input.width) as u64,
        label: format!("rotate {:?} {rows}×{}", output.form, input.width),
        ..Dispatch::default()
    }
}

/// What [`finish`] reads: f32 `[slices, columns, outputs]` for outputs of a weight from the `first` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unfinished {
    /// Its address.
    pub(crate) address: u64,
    /// To be summed.
    pub(crate) slices: usize,
    /// The first output, a multiple of 128.
    pub(crate) first: usize,
    /// How many, a multiple of 128.
    pub(crate) outputs: usize,
}

/// Sums the slices of a product, rotates and scales them, into rows of `output`, which has all outputs of the weight.
pub(crate) fn finish(
    features: &Features,
    source: Unfinished,
    weight: &TrellisWeight,
    output: View,
    columns: usize,
) -> Dispatch {
    assert_eq!(output.width, weight.rows);
    let kernel = team_kernel(features, "trellis_finish", 4, vec![]);
    let skipped = source.first as u64;
    let push = Push::default().address(source.address).address(output.address + 4 * skipped);
    let push = push.address(weight.output_scales() + 2 * skipped).number(source.slices).number(source.outputs);
    Dispatch {
        groups: [(source.outputs / 4).div_ceil(kernel.workgroup as usize) as u32, columns as u32, 1],
        kernel,
        push: push.number(output.width - source.first).number(output.pitch()),
        reads: vec![source.address],
        writes: vec![output.address],
        bytes: (4 * columns * source.outputs * (source.slices + 1)) as u64,
        operations: (columns * source.outputs * (source.slices + 8)) as u64,
        label: format!("finish {columns}×{}", source.outputs),
        ..Dispatch::default()
    }
}

/// Decodes the tiles of `outputs` outputs from the `first` on to rows of F16.
pub(crate) fn decode(
    features: &Features,
    weight: &TrellisWeight,
    target: u64,
    first: usize,
    outputs: usize,
) -> Dispatch {
    let kernel = team_kernel(features, "trellis_decode", 8, format_constants(weight));
    let units = |outputs: usize| outputs / UNIT_OUTPUTS * weight.groups();
    let push = Push::default().address(weight.address).address(target).number(units(first)).number(units(outputs));
    Dispatch {
        groups: [(TEAM * units(outputs)).div_ceil(kernel.workgroup as usize) as u32, 1, 1],
        kernel,
        push: push.number(weight.groups()),
        reads: vec![],
        writes: vec![target],
        bytes: (2 * outputs * weight.inputs()) as u64,
        operations: (4 * outputs * weight.inputs()) as u64,
        label: format!("decode trellis {outputs}×{}", weight.inputs()),
        ..Dispatch::default()
    }
}

/// `output[t] = table[token[t]] · scale`. `tokens` is the address of the batch's tokens.
pub(crate) fn embed(
    features: &Features,
    table: &TrellisWeight,
    scale: f32,
    output: View,
    tokens: u64,
    rows: usize,
) -> Dispatch {
    let kernel = team_kernel(features, "trellis_embed", 8, format_constants(table));
    assert_eq!(kernel.workgroup, 256, "the shader's workgroups are 8 teams");
    let push = Push::default().address(table.address).address(table.input_scales()).address(table.output_scales());
    let push = push.address(output.address).address(tokens).number(table.groups()).number(output.width);
    Dispatch {
        groups: [(table.inputs() / BLOCK) as u32, rows as u32, 1],
        kernel,
        push: push.number(output.pitch()).float(scale),
        reads: vec![tokens],
        writes: vec![output.address],
        bytes: (rows * BLOCK * table.inputs()) as u64 * table.format.rate.half_bits() as u64 / 16,
        operations: (4 * rows * BLOCK * table.inputs()) as u64,
        label: format!("embed trellis {rows}×{}", output.width),
        ..Dispatch::default()
    }
}
