//! Decomposes Hessians on a device, in double precision.

use std::sync::Arc;

use half::f16;
use tensor::BackendError;

use crate::commands::{Commands, record_dispatches};
use crate::context::Context;
use crate::dispatch::Dispatch;
use crate::features::Features;
use crate::kernel::decompose::{Addresses, Failure, ROWS, cholesky_rows, rotate, unit_bands};
use crate::kernel::rank_update::{Number, RankUpdate, WORKGROUP, rank_update};
use crate::memory::{Arena, Place, Slice};
use crate::pace::Pace;
use crate::pipeline::Pipelines;
use crate::transfer::{receive, send};

/// Rows of the panels by which a matrix is decomposed, and what its size is a multiple of.
const PANEL: usize = 128;

/// Sums of activations' products, and how they become a Hessian.
#[derive(Clone, Copy, Debug)]
pub struct HessianSums<'a> {
    /// `[inputs, inputs]`, `inputs` being a multiple of 128; only the blocks of 128 × 128 on the diagonal and to the
    /// right of it are read.
    pub sums: &'a [f32],
    /// How many activations were summed up, at least 1.
    pub count: usize,
    /// Signs and scales of the inputs.
    pub scales: &'a [f16],
    /// What is added to the diagonal after the division by `count`.
    pub damping: f32,
}

/// `Uᵀ D U`: a Hessian that is scaled, damped and rotated by blocks of 128 from both sides.
#[derive(Clone, Debug)]
pub struct Decomposed {
    /// `U`, `[inputs, inputs]`, with ones on the diagonal and zeros below it within blocks of 16 columns.
    pub upper: Vec<f32>,
    /// Triangles `R`, `[inputs / 16, 16, 16]`, with `D = Rᵀ R`.
    pub roots: Vec<f32>,
}

/// A matrix is not positive definite: the first row with such a pivot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotPositive {
    /// The row.
    pub row: usize,
    /// What its pivot would be.
    pub pivot: f64,
}

/// Whether a device has all that decompositions need.
pub(crate) fn supports(features: &Features) -> bool {
    features.float64 && features.workgroup_max >= WORKGROUP
}

/// Decomposes a Hessian. Takes `12 · inputs²` bytes of the device's memory.
pub(crate) fn decompose(
    context: &Arc<Context>,
    pipelines: &Pipelines,
    hessian: &HessianSums<'_>,
) -> Result<Result<Decomposed, NotPositive>, BackendError> {
    let size = hessian.scales.len();
    assert!(size.is_multiple_of(PANEL) && hessian.sums.len() == size * size, "{} sums", hessian.sums.len());
    let mut memory = Arena::new(context, Place::Device, 0);
    let mut allocate = |bytes: usize| memory.allocate(bytes as u64, "the decomposition of a Hessian");
    let (matrix, sums) = (allocate(8 * size * size)?, allocate(4 * size * size)?);
    let triangles = allocate(8 * ROWS * size)?;
    let (roots, scales) = (allocate(4 * 16 * size)?, allocate(2 * size)?);
    let failure = allocate(size_of::<Failure>())?;
    let mut commands = Commands::new(context, &context.queue)?;
    send(context, &mut commands, bytemuck::cast_slice(hessian.sums), sums)?;
    let bytes: Vec<u8> = hessian.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    send(context, &mut commands, &bytes, scales)?;
    send(context, &mut commands, bytemuck::bytes_of(&Failure::default()), failure)?;
    let address = |slice: Slice| slice.address;
    let at = Addresses {
        sums: address(sums),
        scales: address(scales),
        matrix: address(matrix),
        triangles: address(triangles),
        roots: address(roots),
        failure: address(failure),
        size,
    };
    let dispatches = dispatches(context.features(), &at, hessian);
    for piece in Pace::new(context.features().kind).pieces(&dispatches) {
        commands.once(|buffer| record_dispatches(context, pipelines, buffer, &dispatches[piece], &mut None))?;
    }
    let failure = receive::<Failure>(context, &mut commands, failure, 1)?[0];
    if failure.failed != 0 {
        return Ok(Err(NotPositive { row: failure.row as usize, pivot: failure.pivot }));
    }
    let upper = receive(context, &mut commands, sums, size * size)?;
    let roots = receive(context, &mut commands, roots, 16 * size)?;
    Ok(Ok(Decomposed { upper, roots }))
}

/// Panels of 128 rows are made 32 rows at a time, and then taken off all rows below.
fn dispatches(features: &Features, at: &Addresses, hessian: &HessianSums<'_>) -> Vec<Dispatch> {
    let mut all: Vec<Dispatch> = rotate(features, at, hessian.count, hessian.damping).into();
    for panel in (0..at.size).step_by(PANEL) {
        let end = panel + PANEL;
        for first in (panel..end).step_by(ROWS) {
            all.push(cholesky_rows(features, at, first));
            all.extend(take_off(features, at, first..first + ROWS, first + ROWS..end));
        }
        all.extend(take_off(features, at, panel..end, end..at.size));
    }
    all.push(unit_bands(features, at));
    all
}

/// Takes the products of some finished rows off others, as far as these are not below the diagonal.
fn take_off(
    features: &Features,
    at: &Addresses,
    rows: std::ops::Range<usize>,
    from: std::ops::Range<usize>,
) -> Vec<Dispatch> {
    let update = RankUpdate {
        number: Number::F64,
        rows: at.matrix + (8 * rows.start * at.size) as u64,
        rows_pitch: at.size,
        sums: at.matrix,
        sums_pitch: at.size,
        depth: rows.len(),
        first: from.start,
        end: from.end,
        columns: at.size,
        factor: -1.0,
    };
    // They are parts of the same matrix: whoever waits for one waits for the other.
    let region = |dispatch: Dispatch| Dispatch { reads: vec![at.matrix], ..dispatch };
    rank_update(features, &update).into_iter().map(region).collect()
}
