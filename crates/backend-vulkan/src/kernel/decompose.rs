//! The steps of the decomposition of a Hessian, but for [`rank_update`](super::rank_update).

use super::kernel;
use super::rank_update::WORKGROUP;
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;
use crate::pipeline::Kernel;

/// Rows that [`cholesky_rows`] makes.
pub(crate) const ROWS: usize = 32;

/// Columns of a workgroup of [`cholesky_rows`].
const COLUMNS: u32 = 64;

/// Inputs that are rotated together.
const BLOCK: usize = 128;

/// Rows or columns of such a block that a workgroup of [`rotate`] has.
const LINES: usize = 16;

/// Rows of a band.
const SIDE: usize = 16;

/// Addresses of a decomposition of a matrix of `size` × `size`, `size` being a multiple of 128.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// Sums of activations' products in f32, of which only the blocks of 128 × 128 on the diagonal and to the right of
    /// it are read; in the end `U`, `[size, size]`.
    pub(crate) sums: u64,
    /// Signs and scales of the inputs, in binary16.
    pub(crate) scales: u64,
    /// The matrix in f64, `[size, size]`.
    pub(crate) matrix: u64,
    /// Blocks on the diagonal, `[size / 32, 32, 32]` in f64.
    pub(crate) triangles: u64,
    /// The triangles of the bands, `[size / 16, 16, 16]` in f32.
    pub(crate) roots: u64,
    /// A [`Failure`].
    pub(crate) failure: u64,
    pub(crate) size: usize,
}

/// The first pivot that is not positive, as the device writes it.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Failure {
    pub(crate) pivot: f64,
    pub(crate) row: u32,
    /// 1 if there is one.
    pub(crate) failed: u32,
}

/// The scaled, damped and rotated matrix of the sums over `count` activations.
pub(crate) fn rotate(features: &Features, at: &Addresses, count: usize, damping: f32) -> [Dispatch; 2] {
    [0, 1].map(|columns| Dispatch {
        kernel: rotate_kernel(features, columns),
        push: Push::default()
            .address(at.sums)
            .address(at.scales)
            .address(at.matrix)
            .number(at.size)
            .number(count)
            .float(damping),
        groups: [(at.size / BLOCK) as u32, (at.size / LINES) as u32, 1],
        reads: vec![at.sums, at.scales, at.matrix],
        writes: vec![at.matrix],
        bytes: 6 * squared(at.size),
        operations: 7 * squared(at.size),
        label: format!("rotate Hessian {}", at.size),
        ..Dispatch::default()
    })
}

/// Makes the 32 rows from `first` of `R`.
pub(crate) fn cholesky_rows(features: &Features, at: &Addresses, first: usize) -> Dispatch {
    let columns = at.size - first - ROWS;
    let push = Push::default().address(at.matrix).address(at.triangles).address(at.failure);
    Dispatch {
        kernel: cholesky_kernel(features),
        push: push.number(at.size).number(first),
        groups: [(columns as u32).div_ceil(COLUMNS).max(1), 1, 1],
        reads: vec![at.matrix],
        writes: vec![at.matrix, at.triangles, at.failure],
        bytes: (16 * ROWS * (columns + ROWS)) as u64,
        operations: (ROWS * ROWS * (columns + ROWS)) as u64,
        label: format!("Cholesky {ROWS}×{columns}"),
        ..Dispatch::default()
    }
}

/// Makes `U` and the bands' triangles.
pub(crate) fn unit_bands(features: &Features, at: &Addresses) -> Dispatch {
    let push = Push::default().address(at.matrix).address(at.triangles).address(at.sums).address(at.roots);
    Dispatch {
        kernel: bands_kernel(features),
        push: push.number(at.size),
        groups: [(at.size as u32).div_ceil(WORKGROUP), (at.size / SIDE) as u32, 1],
        reads: vec![at.matrix, at.triangles],
        writes: vec![at.sums, at.roots],
        bytes: 8 * squared(at.size),
        operations: 16 * squared(at.size),
        label: format!("unit bands {}", at.size),
        ..Dispatch::default()
    }
}

/// All kernels of a decomposition but for those of rank updates.
pub(crate) fn kernels(features: &Features) -> Vec<Kernel> {
    let rotations = [0, 1].map(|columns| rotate_kernel(features, columns));
    rotations.into_iter().chain([cholesky_kernel(features), bands_kernel(features)]).collect()
}

fn rotate_kernel(features: &Features, columns: u32) -> Kernel {
    kernel(features, "hessian_rotate", vec![columns])
}

fn cholesky_kernel(features: &Features) -> Kernel {
    Kernel { workgroup: COLUMNS.max(features.subgroup), ..kernel(features, "cholesky_rows", vec![]) }
}

fn bands_kernel(features: &Features) -> Kernel {
    Kernel { workgroup: WORKGROUP, ..kernel(features, "unit_bands", vec![]) }
}

fn squared(size: usize) -> u64 {
    (size * size) as u64
}
