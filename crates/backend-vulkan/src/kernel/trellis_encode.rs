//! The search for trellis tiles, as [`tensor::format::trellis::search`] defines it.

use std::ops::Range;

use tensor::format::trellis::search::{CUT, Metric};
use tensor::format::trellis::{Codebook, LEN, Rate};

use super::kernel;
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;
use crate::pipeline::Kernel;

/// Most invocations of a workgroup, where a device and a rate have that many.
pub(crate) const WORKGROUP: u32 = 512;

/// Costs in a vector of shared memory.
const VECTOR: usize = 8;

/// Most vectors that an invocation has, as in the shader.
const HELD_MAX: usize = 8;

/// Bytes of shared memory that the way back needs.
const TRACE_BYTES: usize = 3072;

/// Bytes of shared memory that are used beside the costs where there are that many.
const SPARE_BYTES: usize = 16;

/// Addresses of a search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// The value of each state in the fixed point of the [`Metric`], `[65536]` of 16 bits.
    pub(crate) table: u64,
    /// Likewise, the weights: `[tiles, 256]`.
    pub(crate) targets: u64,
    /// The states that are found: `[tiles, 256]` of 16 bits.
    pub(crate) states: u64,
    /// Memory of each workgroup for the costs before each period of steps but the first.
    pub(crate) kept: u64,
}

/// Whether the costs of a rate fit into the device's shared memory.
pub(crate) fn supports(features: &Features, rate: Rate) -> bool {
    let fits = features.shared_bytes as usize >= shared_bytes(rate);
    let workgroup = workgroup(features, rate, WORKGROUP);
    // A vector has states of two nodes at most.
    rate.new_bits(0) >= 2 && fits && workgroup >= features.subgroup && held(rate, workgroup) <= HELD_MAX
}

/// Bytes of device memory that a workgroup needs: the costs before each period of steps but the first.
#[cfg(test)]
pub(crate) fn kept_bytes(metric: &Metric) -> usize {
    (LEN / metric.period() - 1) * 2 * nodes(metric.rate(), CUT)
}

/// Searches for a range of tiles with so many workgroups of up to `wanted` invocations.
///
/// # Panics
/// If the device doesn't support the rate, or that is too few.
pub(crate) fn trellis_encode(
    features: &Features,
    metric: &Metric,
    wanted: u32,
    addresses: Addresses,
    tiles: Range<usize>,
    groups: u32,
) -> Dispatch {
    let rate = metric.rate();
    assert!(supports(features, rate), "{rate} bits on {}", features.name);
    let spare = u32::from(features.shared_bytes as usize >= shared_bytes(rate) + SPARE_BYTES);
    let (odd, even) = (rate.new_bits(CUT) as u32, rate.new_bits(0) as u32);
    let constants = vec![odd, even, metric.period() as u32, metric.doublings(), spare];
    let mut kernel = kernel(features, "trellis_encode", constants);
    kernel.workgroup = workgroup(features, rate, wanted);
    assert!(held(rate, kernel.workgroup) <= HELD_MAX, "{wanted} invocations at {rate} bits");
    let Addresses { table, targets, states, kept } = addresses;
    let push = [table, targets, states, kept].into_iter().fold(Push::default(), Push::address);
    Dispatch {
        kernel,
        push: push.number(tiles.start).number(tiles.end),
        groups: [groups, 1, 1],
        reads: vec![targets],
        writes: vec![states, kept],
        bytes: (4 * LEN * tiles.len()) as u64,
        operations: (2 * LEN * tiles.len()) as u64 * 65_536,
        label: format!("trellis encode {}×{rate}", tiles.len()),
        ..Dispatch::default()
    }
}

/// The kernels of the rates that models are quantized at.
pub(crate) fn kernels(features: &Features) -> Vec<Kernel> {
    let rates = Rate::ALL.into_iter().filter(|rate| rate.half_bits() <= 8 && supports(features, *rate));
    let addresses = Addresses { table: 0, targets: 0, states: 0, kept: 0 };
    let metrics = rates.map(|rate| Metric::new(Codebook::Mul1, rate));
    metrics.map(|metric| trellis_encode(features, &metric, WORKGROUP, addresses, 0..1, 1).kernel).collect()
}

/// Invocations: each has a vector of costs or more.
fn workgroup(features: &Features, rate: Rate, wanted: u32) -> u32 {
    wanted.min(features.workgroup_max).min((nodes(rate, CUT) / VECTOR) as u32)
}

/// Vectors of costs that an invocation has at most.
fn held(rate: Rate, workgroup: u32) -> usize {
    nodes(rate, 0) / VECTOR / workgroup as usize
}

fn shared_bytes(rate: Rate) -> usize {
    (2 * nodes(rate, 0)).max(TRACE_BYTES)
}

/// Nodes before a position of the ring.
fn nodes(rate: Rate, position: usize) -> usize {
    1 << (16 - rate.new_bits(position))
}
