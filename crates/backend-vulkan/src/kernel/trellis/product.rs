//! Products of few columns straight from tiles (`shaders/trellis_matvec.comp`).

use tensor::format::trellis::hadamard::BLOCK;

use super::dispatches::{TEAM, format_constants};
use super::rotated::Rotated;
use super::weight::{TrellisWeight, UNIT_OUTPUTS};
use crate::dispatch::{Dispatch, Left, Push};
use crate::features::{DeviceKind, Features};
use crate::kernel::matvec::COLUMNS_MAX;
use crate::kernel::{View, kernel};

/// Products that one dispatch can compute.
pub(crate) const PARTS_MAX: usize = 3;

/// Most slices of the inputs.
const SLICES_MAX: usize = 12;

/// Teams side by side in a workgroup, for the units of a block.
const ABREAST: usize = BLOCK / UNIT_OUTPUTS;

/// How a product divides its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Teams of a workgroup that share the inputs of a unit.
    pub(crate) split: u32,
    /// Workgroups that share the inputs of a block.
    pub(crate) slices: usize,
}

impl Tiling {
    /// For a number of matrices whose blocks are multiplied by one workgroup (gate and up: 2), of blocks in all, and of
    /// blocks of inputs.
    ///
    /// Products are bound by arithmetic, so the processor that has most to do decides: as many teams as its workgroups
    /// have, times the blocks that a team goes through. Measured in `docs/vulkan-notes.md`.
    pub(crate) fn new(features: &Features, matrices: usize, blocks: usize, steps: usize, columns: usize) -> Tiling {
        // Fewer do not keep a processor busy.
        const TEAMS_MIN: usize = 24;
        let processors = processors(features);
        let most = slices_max(features, blocks);
        let longest = |tiling: &Tiling| {
            let split = tiling.split as usize;
            let teams = (blocks * tiling.slices).div_ceil(processors) * ABREAST * matrices * split;
            teams.max(TEAMS_MIN) * (2 * steps).div_ceil(split * tiling.slices)
        };
        let all = (1..=split_max(features, matrices, columns))
            .flat_map(|split| (1..=most).map(move |slices| Tiling { split: split as u32, slices }))
            .filter(|tiling| tiling.split as usize * tiling.slices <= steps)
            .filter(|tiling| {
                // Of large workgroups a processor holds one or two at a time, and waits for the last of them.
                let invocations = TEAM * ABREAST * matrices * tiling.split as usize;
                invocations <= 512 || blocks * tiling.slices <= processors
            });
        let best = all.min_by_key(|tiling| (longest(tiling), tiling.slices, std::cmp::Reverse(tiling.split)));
        best.expect("one team and one slice always fit")
    }

    /// For gate and up together.
    pub(crate) fn gate_up(features: &Features, gate: &TrellisWeight, columns: usize) -> Tiling {
        Tiling::new(features, 2, gate.outputs() / BLOCK, gate.inputs() / BLOCK, columns)
    }
}

/// Multiprocessors of a device, roughly: Vulkan does not tell. Too many cost little.
fn processors(features: &Features) -> usize {
    match features.kind {
        DeviceKind::Discrete | DeviceKind::Virtual => 132,
        DeviceKind::Integrated => 12,
        DeviceKind::Software => 4,
    }
}

/// Most teams of a workgroup that can share the inputs of a unit.
fn split_max(features: &Features, matrices: usize, columns: usize) -> usize {
    let invocations = features.workgroup_max as usize / (TEAM * ABREAST * matrices);
    let shared = features.shared_bytes as usize / 4 * 3 / (4 * BLOCK * matrices * columns);
    // The compiler for AMD's devices spills registers of larger ones with many columns.
    let registers = if features.is_amd() && columns > 1 { 4 / matrices } else { 8 };
    let most = match features.kind {
        // They take long to compile wide workgroups.
        DeviceKind::Software => 1,
        DeviceKind::Discrete | DeviceKind::Integrated | DeviceKind::Virtual => 8,
    };
    invocations.min(shared).min(registers).clamp(1, most)
}

/// Most slices for a number of blocks: the more blocks, the fewer.
fn slices_max(features: &Features, blocks: usize) -> usize {
    (4 * processors(features) / blocks.max(1)).clamp(1, SLICES_MAX)
}

/// Memory that workgroups of a product meet in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meeting {
    /// Address of what slices give; see [`Meeting::bytes`].
    pub(crate) partials: u64,
    /// Address of a word for each block, zero before and after.
    pub(crate) arrivals: u64,
}

impl Meeting {
    /// Bytes for all products whose largest weight has that many outputs: of partial sums, and of arrivals.
    pub(crate) fn bytes(features: &Features, outputs: usize) -> (usize, usize) {
        let blocks = outputs / BLOCK;
        let slices = slices_max(features, blocks);
        // A single slice writes nothing there.
        let sliced = if slices > 1 { slices * COLUMNS_MAX * outputs } else { 0 };
        (4 * PARTS_MAX * sliced, 4 * PARTS_MAX * blocks)
    }
}

/// What a product of gate and up gives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gated {
    /// f32 rows.
    Floats(View),
    /// Rotated for the next product, whose inputs have these scales.
    Rotated(Rotated, u64),
}

/// Multiplies up to [`PARTS_MAX`] weights of one rate, codebook and width, each with its output, by the same one to
/// eight columns.
pub(crate) fn product(
    features: &Features,
    parts: &[(TrellisWeight, View)],
    input: Rotated,
    columns: usize,
    tiling: Tiling,
    meeting: Meeting,
) -> Dispatch {
    assert!(parts.iter().all(|(weight, view)| view.width == weight.rows), "{parts:?}");
    let weights: Vec<TrellisWeight> = parts.iter().map(|(weight, _)| *weight).collect();
    let targets: Vec<u64> = parts.iter().map(|(_, view)| view.address).collect();
    let blocks: usize = weights.iter().map(|weight| weight.outputs() / BLOCK).sum();
    let left = (tiling.slices > 1 && parts.len() == 1).then(|| Left {
        target: targets[0],
        parts: tiling.slices,
        columns,
        scales: weights[0].output_scales(),
    });
    Dispatch {
        groups: [blocks as u32, tiling.slices as u32, 1],
        push: push(&weights, &targets, input, meeting, None),
        left,
        writes: [targets, meets(meeting, tiling)].concat(),
        label: label("trellis", &weights, columns),
        ..dispatch(features, &weights, input, columns, (tiling, 1, 0))
    }
}

/// `gelu_tanh(input · gateᵀ) · (input · upᵀ)` for one to eight columns.
pub(crate) fn gate_up(
    features: &Features,
    weights: [TrellisWeight; 2],
    input: Rotated,
    output: Gated,
    columns: usize,
    tiling: Tiling,
    meeting: Meeting,
) -> Dispatch {
    assert_eq!(weights[0].rows, weights[1].rows);
    let (epilogue, target, next) = match output {
        Gated::Floats(view) => (1, view.address, None),
        Gated::Rotated(rotated, scales) => (1 + rotated.form as u32, rotated.values, Some((rotated, scales))),
    };
    let targets = if next.is_some() { vec![] } else { vec![target] };
    Dispatch {
        groups: [(weights[0].outputs() / BLOCK) as u32, tiling.slices as u32, 1],
        push: push(&weights, &targets, input, meeting, next),
        writes: [vec![target], meets(meeting, tiling)].concat(),
        label: label("trellis gate_up", &weights, columns),
        ..dispatch(features, &weights, input, columns, (tiling, 2, epilogue))
    }
}

/// What both have in common; `matrices` of them are a workgroup's.
fn dispatch(
    features: &Features,
    weights: &[TrellisWeight],
    input: Rotated,
    columns: usize,
    (tiling, matrices, epilogue): (Tiling, usize, u32),
) -> Dispatch {
    let weight = weights[0];
    let same = |other: &TrellisWeight| other.decodes_like(&weight) && other.inputs() == weight.inputs();
    assert!(weights.len() <= PARTS_MAX && weights.iter().all(same), "{weights:?}");
    let mut constants = format_constants(&weight);
    constants.extend([columns as u32, tiling.split, epilogue, u32::from(features.is_amd()), 0]);
    let form = ["", "f32", "int8", "half", "splat"][input.form as usize];
    let mut kernel = kernel(features, format!("trellis_matvec.{form}"), constants);
    kernel.workgroup = tiling.split * (TEAM * ABREAST * matrices) as u32;
    let outputs: usize = weights.iter().map(TrellisWeight::outputs).sum();
    Dispatch {
        kernel,
        reads: vec![input.values],
        bytes: weights.iter().map(|weight| weight.bytes() as u64).sum(),
        operations: 2 * (columns * outputs * weight.inputs()) as u64,
        streams: weights.iter().map(|weight| (weight.address, weight.bytes() as u64)).collect(),
        ..Dispatch::default()
    }
}

/// Buffers that slices write besides their results.
fn meets(meeting: Meeting, tiling: Tiling) -> Vec<u64> {
    if tiling.slices > 1 { vec![meeting.partials] } else { vec![] }
}

fn push(
    weights: &[TrellisWeight],
    targets: &[u64],
    input: Rotated,
    meeting: Meeting,
    next: Option<(Rotated, u64)>,
) -> Push {
    let mut push = Push::default();
    for index in 0..PARTS_MAX {
        push = push.address(weights.get(index).map_or(0, |weight| weight.address));
    }
    for index in 0..PARTS_MAX {
        push = push.address(targets.get(index).copied().unwrap_or(0));
    }
    push = push.address(input.values).address(input.sums).address(meeting.partials).address(meeting.arrivals);
    let (values, sums, scales) = next.map_or((0, 0, 0), |(next, scales)| (next.values, next.sums, scales));
    push = push.address(scales).address(values).address(sums);
    for index in 0..PARTS_MAX {
        push = push.number(weights.get(index).map_or(0, TrellisWeight::outputs));
    }
    let unused = weights.iter().enumerate().map(|(index, weight)| (weight.outputs() - weight.rows) << (8 * index));
    // The highest byte of MUL1's factor.
    push.number(weights[0].groups()).number(unused.sum()).number(0x8300_0000)
}

/// Number of the constant that says whether parts are left, among the kernel's own.
const LEAVES: usize = 6;

/// Lets a product leave its parts ([`Dispatch::left`]) in memory from `room` on, and write nothing else.
pub(crate) fn leave(product: &mut Dispatch, room: u64) {
    const PARTIALS: usize = 64;
    product.kernel.constants[LEAVES] = 1;
    product.push.replace(PARTIALS, &room.to_le_bytes());
    product.writes = vec![room];
}

fn label(op: &str, weights: &[TrellisWeight], columns: usize) -> String {
    let rows: Vec<String> = weights.iter().map(|weight| weight.rows.to_string()).collect();
    let (codebook, rate) = (weights[0].format.codebook, weights[0].format.rate);
    format!("{op} {codebook} {rate} {}×{columns} [{}]", weights[0].columns, rows.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    #[test]
    fn a_large_card_gets_the_tilings_that_were_the_fastest() {
        let Some(lab) = Lab::for_tests() else { return };
        let mut features = lab.features().clone();
        (features.kind, features.workgroup_max, features.shared_bytes) = (DeviceKind::Discrete, 1024, 48 << 10);
        let tiling = |matrices, blocks, steps, columns| {
            let tiling = Tiling::new(&features, matrices, blocks, steps, columns);
            (tiling.split, tiling.slices)
        };
        // Gemma 3 27B: queries, keys and values; output; gate and up; down.
        for columns in [1, 8] {
            assert_eq!(tiling(1, 64, 42, columns), (7, 2));
            assert_eq!(tiling(1, 42, 32, columns), (8, 3));
            assert_eq!(tiling(2, 168, 42, columns), (2, 3));
            assert_eq!(tiling(1, 42, 168, columns), (8, 3));
        }
        // The head: no slices.
        assert_eq!(tiling(1, 2048, 42, 1).1, 1);
    }
}
