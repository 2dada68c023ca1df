//! `sums += factor · rowsᵀ rows`, of the tiles on the diagonal and to the right of it.

use super::kernel;
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;
use crate::pipeline::Kernel;

/// Invocations of a workgroup: 16 × 16.
pub(crate) const WORKGROUP: u32 = 256;

/// Rows of `sums` that one dispatch updates at most: less than a driver's patience of work for any device.
const ROWS_MAX: usize = 4096;

/// Numbers of a kind, with what a shader's variant is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    F32,
    F64,
}

impl Number {
    /// Bytes of one.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Number::F32 => 4,
            Number::F64 => 8,
        }
    }

    fn shader(self) -> &'static str {
        match self {
            Number::F32 => "rank_update.f32",
            Number::F64 => "rank_update.f64",
        }
    }

    /// Numbers of 16 bytes.
    fn vector(self) -> usize {
        16 / self.bytes()
    }

    /// Side of a workgroup's tile.
    fn tile(self) -> usize {
        32 * self.vector()
    }
}

/// What is added to what. Rows of both matrices begin at multiples of 16 bytes, and have a multiple of four numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RankUpdate {
    pub(crate) number: Number,
    /// Address of the rows that are multiplied, `[depth, columns]`.
    pub(crate) rows: u64,
    /// Numbers from one of them to the next.
    pub(crate) rows_pitch: usize,
    /// Address of the sums, whose rows and columns have the numbers of the rows' columns.
    pub(crate) sums: u64,
    /// Numbers from one row of sums to the next.
    pub(crate) sums_pitch: usize,
    pub(crate) depth: usize,
    /// The first row that is updated, and the first column.
    pub(crate) first: usize,
    /// The end of the rows that are updated.
    pub(crate) end: usize,
    /// The end of the columns.
    pub(crate) columns: usize,
    pub(crate) factor: f32,
}

/// Updates the sums of rows `first..end` from the tiles on the diagonal on, in as many dispatches as are good.
pub(crate) fn rank_update(features: &Features, update: &RankUpdate) -> Vec<Dispatch> {
    let strips = (update.first..update.end).step_by(ROWS_MAX);
    let strip = |first: usize| RankUpdate { first, end: update.end.min(first + ROWS_MAX), ..*update };
    strips.map(|first| strip_update(features, &strip(first))).collect()
}

fn strip_update(features: &Features, update: &RankUpdate) -> Dispatch {
    let RankUpdate { number, rows, rows_pitch, sums, sums_pitch, depth, first, end, columns, factor } = *update;
    let vector = number.vector();
    assert!([rows_pitch, sums_pitch, first, columns].iter().all(|count| count.is_multiple_of(vector)), "{update:?}");
    let push = Push::default().address(rows).address(sums).number(rows_pitch / vector).number(sums_pitch / vector);
    let [across, down] = [columns - first, end - first].map(|count| count.div_ceil(number.tile()) as u32);
    Dispatch {
        kernel: kernel_of(features, number),
        push: push.number(depth).number(first).number(end).number(columns).float(factor),
        groups: [across, down, 1],
        reads: vec![rows, sums],
        writes: vec![sums],
        bytes: (number.bytes() * (2 * (end - first) + depth) * (columns - first)) as u64,
        operations: 2 * (depth * (end - first)) as u64 * (columns - first - (end - first) / 2) as u64,
        label: format!("rank update {depth}×{}×{}", end - first, columns - first),
        ..Dispatch::default()
    }
}

/// The kernel for numbers of a kind.
pub(crate) fn kernel_of(features: &Features, number: Number) -> Kernel {
    Kernel { workgroup: WORKGROUP, ..kernel(features, number.shader(), vec![]) }
}
