//! Activations rounded to 8 bits.

use super::{Quantized, View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

/// Rounds rows of a width that is a multiple of 32.
pub(crate) fn quantize(features: &Features, input: View, output: Quantized, rows: usize) -> Dispatch {
    let kernel = kernel(features, "quantize", vec![]);
    let fours = input.width / 4;
    let push = Push::default().address(input.address).address(output.values).address(output.sums).number(fours);
    Dispatch {
        groups: [fours.div_ceil(kernel.workgroup as usize) as u32, rows as u32, 1],
        kernel,
        push,
        reads: vec![input.address],
        writes: vec![output.values],
        bytes: (rows * (4 * input.width + input.width + input.width / 2)) as u64,
        operations: (4 * rows * input.width) as u64,
        label: format!("quantize {rows}×{}", input.width),
        ..Dispatch::default()
    }
}
