//! The norms between the halves of layers, with the addition between them.

use super::trellis::Rotated;
use super::{Quantized, View, kernel};
use crate::dispatch::{Dispatch, Left, Push};
use crate::features::Features;

/// A norm's weight and epsilon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Address of the weight.
    pub(crate) weight: u64,
    /// Added to the mean square.
    pub(crate) epsilon: f32,
}

/// What goes out of the second norm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// The norm.
    pub(crate) scale: Scale,
    /// Where its f32 values go, if they are wanted.
    pub(crate) floats: Option<View>,
    /// Where its 8-bit values go, if they are wanted.
    pub(crate) quantized: Option<Quantized>,
    /// Where its rotated values go, if they are wanted and not 8-bit ones as they are, and the address of the scales of
    /// the inputs of the products they are for.
    pub(crate) rotated: Option<(Rotated, u64)>,
}

/// Number of the constant that says how many workgroups of the next dispatch wait, among the kernel's own.
const AWAITED: usize = 6;

/// Whether workgroups of the next dispatch can wait for it: it is about a single row.
pub(crate) fn can_announce(norm: &Dispatch) -> bool {
    norm.kernel.shader == "norm" && norm.push.bytes()[ROWS..][..4] == 1u32.to_le_bytes()
}

/// Lets `waiting` workgroups of the next dispatch go on when this one is done, by marks at an address.
pub(crate) fn announce(norm: &mut Dispatch, marks: u64, waiting: u32) {
    norm.kernel.constants[AWAITED] = waiting;
    norm.push.replace(AHEAD + 16, &marks.to_le_bytes());
    // Two that announce by the same marks are kept apart.
    norm.writes.push(marks);
}

/// Where arguments stand: those for [`touch`] behind eight addresses, those for [`add_up`] behind all of that.
const AHEAD: usize = 64;
const UPDATE_SCALES: usize = AHEAD + 24;
const TOUCHES: usize = UPDATE_SCALES + 8;
const ROWS: usize = TOUCHES + 4;

/// Numbers of constants among the kernel's own: whether there is an update, and how many parts it has.
const ADDS: usize = 1;
const LEFT: usize = 7;

/// Whether it is a norm of `rows` rows whose update is at an address.
pub(crate) fn updates_with(norm: &Dispatch, update: u64, rows: usize) -> bool {
    norm.kernel.shader == "norm"
        && norm.kernel.constants[ADDS] == 1
        && norm.push.bytes()[..8] == update.to_le_bytes()
        && norm.push.bytes()[ROWS..][..4] == (rows as u32).to_le_bytes()
}

/// Lets a norm add up, rotate and scale its update from what a product left at an address.
pub(crate) fn add_up(norm: &mut Dispatch, from: u64, left: Left) {
    norm.kernel.constants[LEFT] = left.parts as u32;
    norm.push.replace(0, &from.to_le_bytes());
    norm.push.replace(UPDATE_SCALES, &left.scales.to_le_bytes());
    for region in &mut norm.reads {
        *region = if *region == left.target { from } else { *region };
    }
}

/// Workgroups that touch all pages: several, because parts of the device have translations of their own.
const TOUCHING: u32 = 32;

/// Bytes from one touch to the next, as in the shader.
const STRIDE: u64 = 2 << 20;

/// Lets a norm's dispatch touch the pages from `address` on beside its work. `sink` is the address of a word that
/// nobody reads.
pub(crate) fn touch(norm: &mut Dispatch, address: u64, bytes: u64, sink: u64) {
    norm.push.replace(AHEAD, &address.to_le_bytes());
    norm.push.replace(AHEAD + 8, &sink.to_le_bytes());
    norm.push.replace(TOUCHES, &((bytes.div_ceil(STRIDE) - 1) as u32).to_le_bytes());
    norm.groups[0] += TOUCHING;
}

/// `residual += norm(update)` if there is an update, then `output = norm(residual)` if there is an output.
pub(crate) fn norm(
    features: &Features,
    update: Option<(View, Scale)>,
    residual: View,
    output: Option<Output>,
    rows: usize,
) -> Dispatch {
    let fours = residual.width / 4;
    let floats = output.and_then(|output| output.floats);
    let quantized = output.and_then(|output| output.quantized);
    // More subgroups take longer to add up their sums than these take to go through the row.
    let most = features.workgroup_max.min(512);
    let held = (fours as u32).div_ceil(most).max(1);
    let workgroup = (fours as u32).div_ceil(held).next_multiple_of(features.subgroup.max(32)).min(most);
    let held = (fours as u32).div_ceil(workgroup).max(1);
    let flags = [update.is_some(), floats.is_some(), quantized.is_some()].map(u32::from);
    let order = quantized.map_or(0, |quantized| quantized.arrangement.order as u32);
    let rotated = output.and_then(|output| output.rotated);
    assert!(quantized.is_none() || rotated.is_none(), "one of both forms");
    let form = rotated.map_or(0, |(rotated, _)| rotated.form as u32);
    let others = quantized.map(|quantized| (quantized.values, quantized.sums));
    let (values, sums) = others.or(rotated.map(|(rotated, _)| (rotated.values, rotated.sums))).unwrap_or_default();
    let mut kernel = kernel(features, "norm", [&[held], &flags[..], &[order, form, 0, 0]].concat());
    kernel.workgroup = workgroup;
    let none = (View { address: 0, width: 0 }, Scale { weight: 0, epsilon: 1.0 });
    let (from, first) = update.unwrap_or(none);
    let second = output.map_or(none.1, |output| output.scale);
    let push = Push::default()
        .address(from.address)
        .address(first.weight)
        .address(residual.address)
        .address(second.weight)
        .address(floats.map_or(0, |view| view.address))
        .address(values)
        .address(sums)
        .address(rotated.map_or(0, |(_, scales)| scales))
        .address(0)
        .address(0)
        .address(0)
        .address(0)
        .number(0)
        .number(rows);
    let mut writes = Vec::new();
    writes.extend(update.map(|_| residual.address));
    writes.extend(floats.map(|view| view.address));
    writes.extend((values != 0).then_some(values));
    let reads = update.map(|(view, _)| view.address).into_iter().chain([residual.address]).collect();
    let vectors = 1 + 2 * u64::from(update.is_some()) + u64::from(floats.is_some());
    Dispatch {
        groups: [rows as u32, 1, 1],
        kernel,
        push: push
            .number(fours)
            .number(residual.pitch() / 4)
            .float(1.0 / residual.width as f32)
            .float(first.epsilon)
            .float(second.epsilon),
        reads,
        writes,
        bytes: 4 * vectors * (rows * residual.width) as u64,
        operations: 8 * (rows * residual.width) as u64,
        label: format!("norm{} {rows}×{}", if update.is_some() { "_add" } else { "" }, residual.width),
        ..Dispatch::default()
    }
}
