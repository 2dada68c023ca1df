//! [`tensor::Op::SelectOutputs`].

use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

/// Copies the rows whose numbers are at the address `outputs`.
pub(crate) fn select_outputs(features: &Features, input: View, output: View, outputs: u64, rows: usize) -> Dispatch {
    let kernel = kernel(features, "select_outputs", vec![]);
    let vectors = output.pitch() / 4;
    let push = Push::default().address(input.address).address(output.address).address(outputs).number(vectors);
    Dispatch {
        groups: [vectors.div_ceil(kernel.workgroup as usize) as u32, rows as u32, 1],
        kernel,
        push,
        reads: vec![input.address, outputs],
        writes: vec![output.address],
        bytes: (2 * 4 * rows * output.width) as u64,
        operations: 0,
        label: format!("select_outputs {rows}×{}", output.width),
        ..Dispatch::default()
    }
}
