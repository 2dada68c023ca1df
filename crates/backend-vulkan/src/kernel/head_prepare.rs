//! What happens to the heads between the projections and attention, in one launch: [`tensor::Op::RmsNorm`] and
//! [`tensor::Op::Rope`] of queries and keys, and [`tensor::Op::CacheWrite`] of keys and values.

use tensor::DType;

use super::cache_write::CacheShape;
use super::rope::RopeAddresses;
use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

/// Heads of a workgroup, one subgroup each.
const HEADS: u32 = 4;

/// What [`head_prepare`] works on; all but the views are addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadPrepare {
    /// `[rows, heads · head_dim]`, normalized and turned in place.
    pub(crate) query: View,
    /// `[rows, kv_heads · head_dim]`, only read.
    pub(crate) key: View,
    /// `[rows, kv_heads · head_dim]`, only read.
    pub(crate) value: View,
    /// f32 `[head_dim]`.
    pub(crate) query_weight: u64,
    /// f32 `[head_dim]`.
    pub(crate) key_weight: u64,
    /// Added to the mean square.
    pub(crate) epsilon: f32,
    /// Size of one head.
    pub(crate) head_dim: usize,
    /// Tables of angles.
    pub(crate) tables: RopeAddresses,
    /// A `{token, position, sequence, 0}` for each row.
    pub(crate) tokens: u64,
    /// Layout of both caches.
    pub(crate) cache: CacheShape,
    /// The cache of keys.
    pub(crate) keys: u64,
    /// The cache of values.
    pub(crate) values: u64,
}

/// Whether [`head_prepare`] can work with heads of that size.
pub(crate) fn supports(head_dim: usize, dtype: DType) -> bool {
    head_dim.is_multiple_of(if dtype == DType::Q8_0 { 32 } else { 4 })
}

/// Prepares the heads of `rows` tokens.
///
/// # Panics
/// If the sizes don't fit, or [`supports`] says no.
pub(crate) fn head_prepare(features: &Features, a: &HeadPrepare, rows: usize) -> Dispatch {
    assert!(supports(a.head_dim, a.cache.dtype), "heads of {} in {}", a.head_dim, a.cache.dtype);
    assert!(a.key.width == a.cache.width && a.value.width == a.cache.width);
    let (heads, kv_heads) = (a.query.width / a.head_dim, a.key.width / a.head_dim);
    let mut kernel = kernel(features, a.cache.shader("head_prepare"), a.cache.constants());
    kernel.constants.extend([a.head_dim as u32, heads as u32, kv_heads as u32]);
    kernel.workgroup = (HEADS * kernel.subgroup).min(kernel.workgroup);
    let heads_per_group = (kernel.workgroup / kernel.subgroup) as usize;
    let push = Push::default().address(a.query.address).address(a.key.address).address(a.value.address);
    let push = push.address(a.query_weight).address(a.key_weight).address(a.tables.fine);
    let push = push.address(a.tokens).address(a.keys).address(a.values);
    let push = push.number(a.query.pitch()).number(a.key.pitch()).number(a.value.pitch()).number(a.cache.ring);
    Dispatch {
        kernel,
        push: push.float(a.epsilon),
        groups: [(heads + 2 * kv_heads).div_ceil(heads_per_group) as u32, rows as u32, 1],
        reads: vec![a.query.address, a.key.address, a.value.address, a.tokens],
        writes: vec![a.query.address, a.keys, a.values],
        bytes: (rows * (4 * (2 * a.query.width + 2 * a.key.width) + 2 * a.cache.row_bytes())) as u64,
        operations: (rows * 8 * (a.query.width + a.key.width)) as u64,
        label: format!("head_prepare {rows}×({heads} + 2·{kv_heads})×{}", a.head_dim),
        ..Dispatch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::attention::testing::{Random, rows, token_table, unpad};
    use crate::kernel::cache_write::tests::decode_row;
    use crate::kernel::rope::RopeTables;
    use crate::lab::Lab;

    const EPSILON: f32 = 1e-6;
    const RING: usize = 9;
    /// Positions and sequences.
    const PLACES: [(usize, usize); 4] = [(0, 0), (8, 1), (700, 0), (5000, 1)];
    /// Unit roundoffs of a normalized and turned element, relative to the pair's length. Of the sum of at most 256
    /// squares 20 (in lanes, then a tree), of its division by their number 5 (2.5 units in the last place) and of
    /// adding epsilon 1, all of which the root halves; of the root 9, as it may be the inverse of a root that is exact
    /// to 2 such units; of its inverse 5 and of two products 2; then 10 of the rotation.
    const ROUNDINGS: f32 = 39.0;

    /// The rows of queries and keys after norm and rope, from the reference.
    fn prepared(values: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut output = vec![0.0; values.len()];
        tensor::reference::rms_norm(values, weight, EPSILON, &mut output);
        let positions = PLACES.map(|(position, _)| position);
        tensor::reference::rope(&mut output, &positions, weight.len(), 10_000.0, 1.0);
        output
    }

    /// The largest difference of an element with this value and its partner's before the cache rounds it.
    fn bound(expected: &[f32], head_dim: usize, index: usize) -> f32 {
        let (head, i) = (index / head_dim * head_dim, index % (head_dim / 2));
        ROUNDINGS * f32::EPSILON / 2.0 * expected[head + i].hypot(expected[head + i + head_dim / 2])
    }

    /// What rounding to the format adds for keys: half a step on both sides.
    fn cache_bound(dtype: DType, block: &[f32], value: f32) -> f32 {
        let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        match dtype {
            DType::F16 => value.abs() / 1024.0 + 1e-7,
            // One step where the two round to different sides.
            DType::Q8_0 => largest / 127.0 * 1.01 + value.abs() / 1024.0,
            _ => 0.0,
        }
    }

    #[test]
    fn heads_are_as_after_the_single_ops() {
        let Some(mut lab) = Lab::for_tests() else { return };
        let mut random = Random(5);
        for dtype in [DType::F32, DType::F16, DType::Q8_0] {
            for (head_dim, heads, kv_heads) in [(64, 4, 1), (96, 3, 3), (256, 4, 1), (128, 6, 2), (36, 3, 1)] {
                if supports(head_dim, dtype) {
                    check(&mut lab, &mut random, dtype, head_dim, heads, kv_heads);
                }
            }
        }
    }

    fn check(lab: &mut Lab, random: &mut Random, dtype: DType, head_dim: usize, heads: usize, kv_heads: usize) {
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let query = random.normal(PLACES.len() * width, 4.0);
        let (key, value) = (random.normal(PLACES.len() * kv_width, 9.0), random.normal(PLACES.len() * kv_width, 2.0));
        let weights = [random.normal(head_dim, 1.0), random.normal(head_dim, 2.0)];
        let mut upload = |bytes: &[u8]| lab.upload(bytes).unwrap();
        let cache = CacheShape { dtype, width: kv_width, ring: RING };
        let tables = RopeTables::new(10_000.0, 1.0, head_dim, 5001);
        let query_slice = upload(&rows(&query, width));
        let caches = [(); 2].map(|()| upload(&vec![0; cache.bytes(2) as usize]));
        let arguments = HeadPrepare {
            query: View { address: query_slice.address, width },
            key: View { address: upload(&rows(&key, kv_width)).address, width: kv_width },
            value: View { address: upload(&rows(&value, kv_width)).address, width: kv_width },
            query_weight: upload(bytemuck::cast_slice(&weights[0])).address,
            key_weight: upload(bytemuck::cast_slice(&weights[1])).address,
            epsilon: EPSILON,
            head_dim,
            tables: RopeAddresses::new(upload(&tables.bytes()).address, head_dim),
            tokens: upload(&token_table(&PLACES)).address,
            cache,
            keys: caches[0].address,
            values: caches[1].address,
        };
        let dispatch = head_prepare(lab.features(), &arguments, PLACES.len());
        lab.run(&[dispatch]).unwrap();

        let found = lab.download(query_slice, PLACES.len() * arguments.query.pitch() * 4).unwrap();
        let expected = prepared(&query, &weights[0]);
        for (index, found) in unpad(&found, width).into_iter().enumerate() {
            let (expected, bound) = (expected[index], bound(&expected, head_dim, index));
            assert!((found - expected).abs() <= bound, "query {head_dim} {index}: {found}, expected {expected}");
        }
        let key = prepared(&key, &weights[1]);
        // Values are only rounded, as the reference rounds them.
        let mut rounded = vec![0.0; value.len()];
        tensor::reference::cache_write(&value, dtype, kv_width, &mut rounded);
        for (slice, expected, is_key) in [(caches[0], key, true), (caches[1], rounded, false)] {
            let bytes = lab.download(slice, cache.bytes(2) as usize).unwrap();
            for (index, &x) in expected.iter().enumerate() {
                let (position, sequence) = PLACES[index / kv_width];
                let row = (sequence * RING + position % RING) * cache.row_bytes();
                let found = decode_row(cache, &bytes[row..][..cache.row_bytes()])[index % kv_width];
                let block = &expected[index / 32 * 32..expected.len().min(index / 32 * 32 + 32)];
                let bound = if is_key { bound(&expected, head_dim, index) + cache_bound(dtype, block, x) } else { 0.0 };
                assert!((found - x).abs() <= bound, "{dtype} {head_dim} {is_key} {index}: {found}, expected {x}");
            }
        }
    }
}
