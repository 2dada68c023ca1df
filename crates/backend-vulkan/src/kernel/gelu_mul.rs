//! [`tensor::Op::GeluMul`] on its own.

use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

/// `output = gelu_tanh(gate) · up`.
pub(crate) fn gelu_mul(features: &Features, gate: View, up: View, output: View, rows: usize) -> Dispatch {
    let kernel = kernel(features, "gelu_mul", vec![]);
    let vectors = output.pitch() / 4;
    let push = Push::default().address(gate.address).address(up.address).address(output.address).number(vectors);
    Dispatch {
        groups: [vectors.div_ceil(kernel.workgroup as usize) as u32, rows as u32, 1],
        kernel,
        push,
        reads: vec![gate.address, up.address],
        writes: vec![output.address],
        bytes: (3 * 4 * rows * output.width) as u64,
        operations: (10 * rows * output.width) as u64,
        label: format!("gelu_mul {rows}×{}", output.width),
        ..Dispatch::default()
    }
}
