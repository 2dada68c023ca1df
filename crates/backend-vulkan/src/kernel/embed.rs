//! [`tensor::Op::Embed`].

use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;
use crate::layout::Weight;

/// `output[t] = table[token[t]] · scale`. `tokens` is the address of the batch's tokens.
pub(crate) fn embed(
    features: &Features,
    table: &Weight,
    scale: f32,
    output: View,
    tokens: u64,
    rows: usize,
) -> Dispatch {
    let name = if table.dtype.block_len() == 1 { "embed_floats" } else { "embed" };
    let mut kernel = kernel(features, format!("{name}.{}", table.dtype), vec![]);
    kernel.workgroup = kernel.workgroup.min(64);
    let push = Push::default().address(table.address).address(output.address).address(tokens).number(table.pitch());
    Dispatch {
        groups: [table.units().div_ceil(kernel.workgroup as usize) as u32, rows as u32, 1],
        kernel,
        push: push.number(table.units()).number(output.pitch() / 4).float(scale),
        reads: vec![tokens],
        writes: vec![output.address],
        bytes: (rows * (table.row_bytes() + 4 * output.width)) as u64,
        operations: (rows * output.width) as u64,
        label: format!("embed {} {rows}×{}", table.dtype, output.width),
        ..Dispatch::default()
    }
}
