//! [`tensor::Op::RmsNorm`] on its own.

use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

/// Normalizes each group of `group` elements of each row. `weight` is the address of its `group` factors.
pub(crate) fn rms_norm(
    features: &Features,
    input: View,
    weight: u64,
    group: usize,
    epsilon: f32,
    output: View,
    rows: usize,
) -> Dispatch {
    let mut kernel = kernel(features, "rms_norm", vec![]);
    let wanted = group.next_power_of_two().max(features.subgroup as usize) as u32;
    kernel.workgroup = kernel.workgroup.min(wanted);
    let push = Push::default().address(input.address).address(weight).address(output.address).number(input.pitch());
    Dispatch {
        groups: [(input.width / group) as u32, rows as u32, 1],
        kernel,
        push: push.number(group).float(epsilon),
        reads: vec![input.address],
        writes: vec![output.address],
        bytes: (2 * 4 * rows * input.width) as u64,
        operations: (4 * rows * input.width) as u64,
        label: format!("rms_norm {rows}×{} by {group}", input.width),
        ..Dispatch::default()
    }
}
