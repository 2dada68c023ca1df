//! Attention of tiles of consecutive tokens.

use tensor::DType;

use super::super::kernel;
use super::{Addresses, AttentionShape};
use crate::dispatch::{Dispatch, Push};
use crate::features::{DeviceKind, Features};

/// Most tokens of a [`Tile`].
pub(crate) const TILE: usize = 32;

/// Consecutive tokens of one sequence: an element of the table that [`prefill`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Tile {
    /// Index of the first among the tokens of the batch.
    pub(crate) first_token: u32,
    /// Number of tokens, 1 to [`TILE`].
    pub(crate) tokens: u32,
    /// Position of the first.
    pub(crate) position: u32,
    /// Slot of the caches.
    pub(crate) sequence: u32,
}

/// The tiles of a batch.
pub(crate) fn tiles(segments: &[tensor::Segment]) -> Vec<Tile> {
    let (mut tiles, mut first_token) = (Vec::new(), 0);
    for segment in segments {
        for start in (0..segment.tokens).step_by(TILE) {
            tiles.push(Tile {
                first_token: (first_token + start) as u32,
                tokens: (segment.tokens - start).min(TILE) as u32,
                position: (segment.position + start) as u32,
                sequence: segment.sequence as u32,
            });
        }
        first_token += segment.tokens;
    }
    tiles
}

/// Attention of the `tile_count` tiles at the address `tiles`, any shape. `tokens` is their number of tokens, for the
/// report.
pub(crate) fn prefill(
    features: &Features,
    shape: &AttentionShape,
    addresses: &Addresses,
    tiles: u64,
    tile_count: usize,
    tokens: usize,
) -> Dispatch {
    let mut kernel = kernel(features, shape.cache().shader("attention_prefill"), shape.constants());
    let heads = if shape.group().is_multiple_of(2) && features.workgroup_max >= 256 { 2 } else { 1 };
    kernel.workgroup = 128 * heads;
    // Lavapipe takes seconds to compile what is written out, and gains nothing from it.
    let unroll = if features.kind == DeviceKind::Software { 1 } else { 4 };
    kernel.constants.extend([heads, unroll]);
    dispatch(kernel, shape, addresses, tiles, "prefill", [tile_count, shape.heads / heads as usize, tokens])
}

/// Positions of a block of [`prefill_matrix`]; as in the shader.
const MATRIX_KEYS: usize = 32;

/// Heads of a workgroup and groups of columns of [`prefill_matrix`]; `None` where the device or the shape has to do
/// with [`prefill`].
fn matrix_plan(features: &Features, shape: &AttentionShape) -> Option<(u32, u32)> {
    let matrix = features.matrix_f16.is_some_and(|shape| (shape.m, shape.n, shape.k) == (16, 16, 16));
    let cached = [DType::F16, DType::Q8_0].contains(&shape.cache_dtype);
    if !matrix || !cached || !shape.head_dim.is_multiple_of(16) || !(8..=64).contains(&features.subgroup) {
        return None;
    }
    let column_groups = if features.subgroup == 64 { 1 } else { 2 };
    let fits = |heads: u32| {
        let (rows, head_bytes) = (heads as usize * TILE, 2 * shape.head_dim + 16);
        let row_bytes = 2 * MATRIX_KEYS + 16 + 4 * (MATRIX_KEYS + 4) + 4 * 16;
        let shared_bytes = (rows + MATRIX_KEYS) * head_bytes + rows * row_bytes;
        let workgroup = heads * (TILE as u32 / 16) * column_groups * features.subgroup;
        shape.group().is_multiple_of(heads as usize)
            && shared_bytes <= features.shared_bytes as usize
            && workgroup <= features.workgroup_max
    };
    [2, 1].into_iter().find(|&heads| fits(heads)).map(|heads| (heads, column_groups))
}

/// As [`prefill`] with matrix instructions: queries, weights and cached rows are rounded to f16. `None` where the
/// device has none of 16×16×16, or for caches in f32 and heads that are no multiple of 16.
pub(crate) fn prefill_matrix(
    features: &Features,
    shape: &AttentionShape,
    addresses: &Addresses,
    tiles: u64,
    tile_count: usize,
    tokens: usize,
) -> Option<Dispatch> {
    let (heads, column_groups) = matrix_plan(features, shape)?;
    let mut kernel = kernel(features, shape.cache().shader("attention_prefill_matrix"), shape.constants());
    kernel.workgroup = heads * (TILE as u32 / 16) * column_groups * features.subgroup;
    kernel.constants.extend([heads, column_groups]);
    let grid = [tile_count, shape.heads / heads as usize, tokens];
    Some(dispatch(kernel, shape, addresses, tiles, "prefill_matrix", grid))
}

/// A launch over a grid of tiles and blocks of heads.
fn dispatch(
    kernel: crate::pipeline::Kernel,
    shape: &AttentionShape,
    a: &Addresses,
    tiles: u64,
    name: &str,
    [tile_count, head_blocks, tokens]: [usize; 3],
) -> Dispatch {
    let push = Push::default().address(a.query).address(a.keys).address(a.values).address(a.output).address(tiles);
    let push = push.number(shape.pitch());
    let width = shape.heads * shape.head_dim;
    Dispatch {
        kernel,
        groups: [tile_count as u32, head_blocks as u32, 1],
        push: push.number(shape.ring).number(shape.window_or_all()).float(shape.scale_log2()),
        reads: vec![a.query, a.keys, a.values, tiles],
        writes: vec![a.output],
        // Of the queries and results alone: how much of the caches is read only the device knows.
        bytes: (2 * 4 * tokens * width) as u64,
        operations: 0,
        label: shape.label(name, tokens),
        ..Dispatch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CASES, Experiment, SEGMENTS};
    use super::*;
    use crate::lab::Lab;

    #[test]
    fn tiles_are_cut_within_segments() {
        let segments = [(2, 5, 70), (0, 9, 1)];
        let segments = segments.map(|(sequence, position, tokens)| tensor::Segment { sequence, position, tokens });
        let tile = |first_token, tokens, position, sequence| Tile { first_token, tokens, position, sequence };
        let expected = [tile(0, 32, 5, 2), tile(32, 32, 37, 2), tile(64, 6, 69, 2), tile(70, 1, 9, 0)];
        assert_eq!(tiles(&segments), expected);
    }

    #[test]
    fn results_are_those_of_the_reference() {
        let Some(mut lab) = Lab::for_tests() else { return };
        for (seed, case) in CASES.iter().enumerate() {
            for segments in SEGMENTS {
                let Some(experiment) = Experiment::new(&mut lab, seed as u64, case, segments) else { continue };
                let tiles = tiles(&experiment.segments);
                let table = lab.upload(bytemuck::cast_slice(&tiles)).unwrap().address;
                let (shape, addresses) = (&experiment.shape, &experiment.addresses);
                let dispatch = prefill(lab.features(), shape, addresses, table, tiles.len(), experiment.tokens());
                lab.run(&[dispatch]).unwrap();
                experiment.check(&mut lab);
            }
        }
    }

    /// Queries, weights and rows of Q8_0 are rounded by at most 2⁻¹¹ of themselves. A score's products have standard
    /// deviations of `2 / √head_dim` and are rounded twice, independently: 7 deviations of the error are
    /// `7 · √2 · 2 · 2⁻¹¹`. A score's error moves a mean of values by at most twice that times the largest of them; the
    /// weights' and the values' own add 2⁻¹¹ each.
    const MATRIX_BOUND: f32 = 42.0 / 2048.0;

    #[test]
    fn results_with_matrices_are_those_of_the_reference() {
        let lab = Lab::for_tests_with("matrix instructions", |features| features.matrix_f16.is_some());
        let Some(mut lab) = lab else { return };
        let mut checked = 0;
        for (seed, case) in CASES.iter().enumerate() {
            for (segments, dtype) in SEGMENTS.iter().flat_map(|batch| [(batch, DType::F16), (batch, DType::Q8_0)]) {
                let experiment = Experiment::with_format(&mut lab, seed as u64, case, segments, dtype);
                let Some(experiment) = experiment else { continue };
                let tiles = tiles(&experiment.segments);
                let table = lab.upload(bytemuck::cast_slice(&tiles)).unwrap().address;
                let (shape, addresses) = (&experiment.shape, &experiment.addresses);
                let count = (tiles.len(), experiment.tokens());
                let dispatch = prefill_matrix(lab.features(), shape, addresses, table, count.0, count.1);
                let Some(dispatch) = dispatch else { continue };
                lab.run(&[dispatch]).unwrap();
                experiment.check_within(&mut lab, MATRIX_BOUND);
                checked += 1;
            }
        }
        assert!(checked > 0 || lab.features().matrix_f16.is_some_and(|shape| shape.n != 16));
    }
}
