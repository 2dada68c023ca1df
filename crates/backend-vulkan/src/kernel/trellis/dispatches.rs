//! The single kernels.

use tensor::format::trellis::hadamard::BLOCK;

use super::weight::{TrellisWeight, UNIT_OUTPUTS};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;
use crate::kernel::{View, kernel};
use crate::pipeline::Kernel;

/// Lanes that have a block or a unit.
const TEAM: usize = 32;

/// Products that one dispatch can compute.
pub(crate) const PARTS_MAX: usize = 3;

/// Rotated activations: what products read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotated {
    /// f32 rows of whole blocks of 128, at an address.
    Floats(u64),
    /// 8-bit integers, and their scales and sums.
    Quants {
        /// Address of the integers, rows of whole blocks.
        values: u64,
        /// Address of `{scale, scale · sum}` for each 64 of them.
        sums: u64,
    },
}

impl Rotated {
    /// The buffer's name in hazards.
    pub(crate) fn address(self) -> u64 {
        match self {
            Rotated::Floats(address) => address,
            Rotated::Quants { values, .. } => values,
        }
    }
}

/// How [`product`] divides its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Teams of a workgroup, which share the inputs.
    pub(crate) split: u32,
    /// Units side by side: 1, 2 or 4.
    pub(crate) abreast: u32,
    /// Slices of the inputs, for workgroups of their own.
    pub(crate) slices: usize,
}

/// Constants 2 and 3 of all shaders that decode.
fn format_constants(weight: &TrellisWeight) -> Vec<u32> {
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
    let (form, floats, quants, sums) = match output {
        Rotated::Floats(address) => ("f32", address, 0, 0),
        Rotated::Quants { values, sums } => ("int8", 0, values, sums),
    };
    let kernel = team_kernel(features, &format!("trellis_rotate.{form}"), 4, vec![]);
    let blocks = weight.inputs() / BLOCK;
    let push = Push::default().address(input.address).address(weight.input_scales());
    let push = push.address(floats).address(quants).address(sums);
    Dispatch {
        groups: [(TEAM * blocks).div_ceil(kernel.workgroup as usize) as u32, rows as u32, 1],
        kernel,
        push: push.number(input.width).number(input.pitch()).number(blocks),
        reads: vec![input.address],
        writes: vec![output.address()],
        bytes: (8 * rows * input.width) as u64,
        operations: (9 * rows * input.width) as u64,
        label: format!("rotate {form} {rows}×{}", input.width),
        ..Dispatch::default()
    }
}

/// Multiplies the tiles of up to [`PARTS_MAX`] weights of one rate, codebook and width by the same one to eight
/// columns. The result of each, f32 `[slices, columns, outputs]`, is to be finished.
pub(crate) fn product(
    features: &Features,
    parts: &[(TrellisWeight, u64)],
    input: Rotated,
    columns: usize,
    tiling: Tiling,
) -> Dispatch {
    let weight = parts[0].0;
    assert!(parts.len() <= PARTS_MAX);
    let same = |(other, _): &(TrellisWeight, u64)| {
        let formats = (other.format.rate, other.format.codebook) == (weight.format.rate, weight.format.codebook);
        formats && other.inputs() == weight.inputs()
    };
    assert!(parts.iter().all(same), "{parts:?}");
    let (form, values, sums) = match input {
        Rotated::Floats(address) => ("f32", address, 0),
        Rotated::Quants { values, sums } => ("int8", values, sums),
    };
    let mut constants = format_constants(&weight);
    constants.extend([columns as u32, tiling.split, tiling.abreast]);
    let mut kernel = kernel(features, format!("trellis_matvec.{form}"), constants);
    kernel.workgroup = tiling.split * TEAM as u32;
    let part = |index: usize| parts.get(index);
    let mut push = Push::default();
    for index in 0..PARTS_MAX {
        push = push.address(part(index).map_or(0, |(weight, _)| weight.address));
    }
    for index in 0..PARTS_MAX {
        push = push.address(part(index).map_or(0, |(_, target)| *target));
    }
    push = push.address(values).address(sums);
    for index in 0..PARTS_MAX {
        push = push.number(part(index).map_or(0, |(weight, _)| weight.outputs()));
    }
    let outputs: usize = parts.iter().map(|(weight, _)| weight.outputs()).sum();
    Dispatch {
        groups: [(outputs / UNIT_OUTPUTS) as u32 / tiling.abreast, tiling.slices as u32, 1],
        kernel,
        push: push.number(weight.groups()),
        reads: vec![input.address()],
        writes: parts.iter().map(|(_, target)| *target).collect(),
        bytes: parts.iter().map(|(weight, _)| weight.bytes() as u64).sum(),
        operations: 2 * (columns * outputs * weight.inputs()) as u64,
        label: label(parts, columns),
        streams: parts.iter().map(|(weight, _)| (weight.address, weight.bytes() as u64)).collect(),
    }
}

fn label(parts: &[(TrellisWeight, u64)], columns: usize) -> String {
    let rows: Vec<String> = parts.iter().map(|(weight, _)| weight.rows.to_string()).collect();
    let (weight, _) = parts[0];
    let (codebook, rate) = (weight.format.codebook, weight.format.rate);
    format!("trellis {codebook} {rate} {}×{columns} [{}]", weight.columns, rows.join(", "))
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
