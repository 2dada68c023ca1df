//! Attention of tiles of consecutive tokens.

use super::super::kernel;
use super::{Addresses, AttentionShape};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

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
    kernel.constants.push(heads);
    dispatch(kernel, shape, addresses, tiles, "prefill", [tile_count, shape.heads / heads as usize, tokens])
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
}
