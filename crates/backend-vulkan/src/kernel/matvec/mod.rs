//! Products of matrices with one to eight columns: decoding, where the weights' bytes are all that counts.

mod measure;
mod measure_columns;
mod measure_layer;
#[cfg(test)]
mod tests;
mod tiling;

pub use measure::measure;
pub use measure_columns::measure_columns;
pub use measure_layer::measure_layer;
pub(crate) use tiling::{
    Tiling, gated_tiling, matrix_gated_tiling, matrix_tiling, shared_tiling, tiling, uses_matrices,
};

use super::{Arrangement, Quantized, View, kernel};

use crate::dispatch::{Dispatch, Push};
use crate::features::Features;
use crate::layout::Weight;

/// Most columns that one dispatch multiplies.
pub(crate) const COLUMNS_MAX: usize = 8;

/// The activations that a product reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input {
    /// f32 rows.
    Floats(View),
    /// Rows of 8-bit integers, for integer dot products.
    Quantized(Quantized),
}

/// What a product of gate and up gives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gated {
    /// f32 rows.
    Floats(View),
    /// Rows of 8-bit integers, for the next product; by workgroups of whole blocks.
    Quantized(Quantized),
    /// Both, by workgroups of any size: the last of those that share a block of 32 quantizes it.
    Shared {
        /// Where the integers go.
        quantized: Quantized,
        /// Where the f32 values go.
        floats: View,
        /// Address of a word for each block of 32 rows, zero before and after.
        arrivals: u64,
    },
}

/// Multiplies up to three matrices of one format and width, each with its output, by the same input of `columns` rows.
pub(crate) fn matvec(
    features: &Features,
    parts: &[(Weight, View)],
    input: Input,
    columns: usize,
    tiling: Tiling,
) -> Dispatch {
    let rows: usize = parts.iter().map(|(weight, _)| weight.rows).sum();
    let groups: usize = parts.iter().map(|(weight, _)| weight.rows.div_ceil(tiling.group_rows())).sum();
    let outputs: Vec<(u64, usize)> = parts.iter().map(|(_, view)| (view.address, view.pitch())).collect();
    let weights: Vec<Weight> = parts.iter().map(|(weight, _)| *weight).collect();
    Dispatch {
        groups: [groups as u32, 1, 1],
        kernel: shader(features, &weights[0], input, columns, tiling, (0, Arrangement::default())),
        push: push(&weights, &outputs, (0, 0), input),
        reads: vec![input.address()],
        writes: outputs.iter().map(|(address, _)| *address).collect(),
        bytes: bytes(&weights) + (4 * columns * rows) as u64,
        operations: 2 * (columns * rows * weights[0].columns) as u64,
        label: label("linear", &weights, columns),
        streams: streams(&weights),
        ..Dispatch::default()
    }
}

/// `gelu_tanh(input · gateᵀ) · (input · upᵀ)`.
pub(crate) fn gate_up(
    features: &Features,
    gate: Weight,
    up: Weight,
    input: Input,
    output: Gated,
    columns: usize,
    tiling: Tiling,
) -> Dispatch {
    let integers = |quantized: Quantized| (quantized.values, gate.rows);
    let target = match output {
        Gated::Floats(_) => Arrangement::default(),
        Gated::Quantized(quantized) | Gated::Shared { quantized, .. } => quantized.arrangement,
    };
    let (epilogue, targets, sums, arrivals) = match output {
        Gated::Floats(view) => (1, vec![(view.address, view.pitch())], 0, 0),
        Gated::Quantized(quantized) => (2, vec![integers(quantized)], quantized.sums, 0),
        Gated::Shared { quantized, floats, arrivals } => {
            (3, vec![integers(quantized), (floats.address, floats.pitch())], quantized.sums, arrivals)
        }
    };
    assert!(epilogue < 3 || 32usize.is_multiple_of(tiling.group_rows()), "{tiling:?}");
    let weights = [gate, up];
    Dispatch {
        groups: [gate.rows.div_ceil(tiling.group_rows()) as u32, 1, 1],
        kernel: shader(features, &gate, input, columns, tiling, (epilogue, target)),
        push: push(&weights, &targets, (sums, arrivals), input),
        reads: vec![input.address()],
        writes: targets.iter().map(|(address, _)| *address).collect(),
        bytes: bytes(&weights) + (columns * gate.rows) as u64,
        operations: 4 * (columns * gate.rows * gate.columns) as u64,
        label: label("gate_up", &weights, columns),
        streams: streams(&weights),
        ..Dispatch::default()
    }
}

/// Number of the constant that says for how many workgroups to wait, among the kernel's own; and where the address of
/// the marks stands in the arguments.
const ANNOUNCING: usize = 10;
const MARKS: usize = 72;

/// Whether [`wait`] can be done with the product.
pub(crate) fn can_wait(product: &Dispatch) -> bool {
    const SHARES: u32 = 3;
    let shader = &product.kernel.shader;
    // Not the K formats: loading ahead takes more registers than there are (a layer of Q4_K 82.6 us, with this 89.3).
    let is_costly = shader.ends_with("_k.int8");
    !is_costly && shader.starts_with("matvec.") && shader.ends_with(".int8") && product.kernel.constants[3] != SHARES
}

/// Lets a product begin together with the dispatch before it, of `announcing` workgroups, by marks at an address.
pub(crate) fn wait(product: &mut Dispatch, marks: u64, announcing: u32) {
    product.kernel.constants[ANNOUNCING] = announcing;
    product.push.replace(MARKS, &marks.to_le_bytes());
    product.joins = true;
}

impl Input {
    /// The buffer's name in hazards.
    pub(crate) fn address(self) -> u64 {
        match self {
            Input::Floats(view) => view.address,
            Input::Quantized(quantized) => quantized.values,
        }
    }
}

fn shader(
    features: &Features,
    weight: &Weight,
    input: Input,
    columns: usize,
    tiling: Tiling,
    (epilogue, target): (u32, Arrangement),
) -> crate::pipeline::Kernel {
    let name = match (input, weight.dtype.block_len()) {
        (_, 1) => format!("matvec_floats.{}", weight.dtype),
        (Input::Floats(_), _) => format!("matvec.{}.f32", weight.dtype),
        (Input::Quantized(_), _) if tiling.matrices => format!("matvec_matrix.{}", weight.dtype),
        (Input::Quantized(_), _) => format!("matvec.{}.int8", weight.dtype),
    };
    let mut constants = vec![tiling.rows, columns as u32, tiling.split, epilogue, tiling.unroll];
    let input = match input {
        Input::Floats(_) => Arrangement::default(),
        Input::Quantized(quantized) => quantized.arrangement,
    };
    for Arrangement { order, half_scales } in [input, target] {
        constants.extend([order as u32, u32::from(half_scales)]);
    }
    constants.extend([features.subgroup / tiling.abreast, 0]);
    let mut kernel = kernel(features, name, constants);
    kernel.workgroup = tiling.subgroups * kernel.subgroup;
    kernel
}

/// The push constants of `matvec.glsl`; `targets` are addresses and pitches in floats.
fn push(weights: &[Weight], targets: &[(u64, usize)], (target_sums, arrivals): (u64, u64), input: Input) -> Push {
    let (values, sums, pitch) = match input {
        Input::Floats(view) => (view.address, 0, view.pitch() / 4),
        Input::Quantized(quantized) => (quantized.values, quantized.sums, weights[0].columns / 16),
    };
    let mut push = Push::default();
    for index in 0..3 {
        push = push.address(weights.get(index).map_or(0, |weight| weight.address));
    }
    for index in 0..3 {
        push = push.address(targets.get(index).map_or(0, |target| target.0));
    }
    push = push.address(values).address(sums).address(target_sums).address(arrivals);
    for index in 0..3 {
        push = push.number(weights.get(index).map_or(0, |weight| weight.rows));
    }
    push = push.number(weights[0].pitch()).number(weights[0].units()).number(pitch);
    for index in 0..3 {
        push = push.number(targets.get(index).map_or(0, |target| target.1));
    }
    push.number(0x6400_6400).number(0x5400_5400)
}

fn streams(weights: &[Weight]) -> Vec<(u64, u64)> {
    weights.iter().map(|weight| (weight.address, weight.bytes() as u64)).collect()
}

fn bytes(weights: &[Weight]) -> u64 {
    weights.iter().map(|weight| weight.bytes() as u64).sum()
}

fn label(op: &str, weights: &[Weight], columns: usize) -> String {
    let rows: Vec<String> = weights.iter().map(|weight| weight.rows.to_string()).collect();
    format!("{op} {} {}×{columns} [{}]", weights[0].dtype, weights[0].columns, rows.join(", "))
}
