//! Random attention with the reference's result, for the tests of all its kernels.

use tensor::{DType, Segment};

use super::super::View;
use super::super::cache_write::cache_write;
use super::{Addresses, AttentionShape};
use crate::kernel::pitch;
use crate::lab::Lab;
use crate::memory::Slice;

/// A generator of random numbers (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// About normally distributed numbers of mean 0: sums of four uniform ones.
    pub(crate) fn normal(&mut self, len: usize, deviation: f32) -> Vec<f32> {
        let mut uniform = || (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        (0..len).map(|_| (uniform() + uniform() + uniform() + uniform()) * 3f32.sqrt() * deviation).collect()
    }
}

/// Rows as kernels expect them: padded with zeros.
pub(crate) fn rows(values: &[f32], width: usize) -> Vec<u8> {
    let mut padded = Vec::new();
    for row in values.chunks(width) {
        padded.extend_from_slice(row);
        padded.resize(padded.len().next_multiple_of(pitch(width)).max(1), 0.0);
    }
    bytemuck::cast_slice(&padded).to_vec()
}

/// The elements of padded rows, whose padding must still be zero.
pub(crate) fn unpad(bytes: &[u8], width: usize) -> Vec<f32> {
    let values: &[f32] = bytemuck::cast_slice(bytes);
    let mut unpadded = Vec::new();
    for row in values.chunks(pitch(width)) {
        unpadded.extend_from_slice(&row[..width]);
        assert!(row[width..].iter().all(|&x| x == 0.0), "the padding was written");
    }
    unpadded
}

/// The table of `{token, position, sequence, 0}` from positions and sequences.
pub(crate) fn token_table(places: &[(usize, usize)]) -> Vec<u8> {
    let rows: Vec<[u32; 4]> =
        places.iter().map(|&(position, sequence)| [7, position as u32, sequence as u32, 0]).collect();
    bytemuck::cast_slice(&rows).to_vec()
}

/// Heads, heads of keys, size of a head, window.
pub(super) type Case = (usize, usize, usize, Option<usize>);

/// Shapes of models and awkward ones.
pub(super) const CASES: &[Case] = &[
    (4, 1, 64, None),
    (4, 1, 64, Some(1)),
    (3, 3, 96, Some(33)),
    (3, 3, 96, None),
    (8, 4, 128, Some(64)),
    (4, 2, 128, None),
    (4, 1, 256, Some(200)),
    (4, 1, 256, None),
    (6, 2, 64, Some(7)),
    (5, 1, 6, Some(20)),
    (3, 1, 34, None),
];

/// Batches of `(sequence, position, tokens)`.
pub(super) const SEGMENTS: [&[(usize, usize, usize)]; 5] = [
    &[(0, 0, 5)],
    &[(0, 6, 70)],
    &[(1, 0, 17), (0, 77, 1), (2, 190, 33)],
    &[(2, 0, 1), (0, 299, 1), (1, 131, 1)],
    &[(1, 230, 65), (0, 0, 1)],
];

/// Sequences of the caches, and positions of a context.
const SEQUENCES: usize = 3;
const CONTEXT: usize = 300;

/// One batch on the device, and what should come out.
pub(super) struct Experiment {
    pub(super) shape: AttentionShape,
    pub(super) addresses: Addresses,
    pub(super) segments: Vec<Segment>,
    output: Slice,
    expected: Vec<f32>,
    bounds: Vec<f32>,
}

impl Experiment {
    /// `None` where there is no cache of that width. The format of the caches goes by the seed and the batch.
    pub(super) fn new(lab: &mut Lab, seed: u64, case: &Case, segments: &[(usize, usize, usize)]) -> Option<Experiment> {
        let formats = [DType::F32, DType::F16, DType::Q8_0];
        let mut cache_dtype = formats[(seed as usize + segments[0].2) % 3];
        if cache_dtype == DType::Q8_0 && !(case.1 * case.2).is_multiple_of(32) {
            cache_dtype = DType::F16;
        }
        Experiment::with_format(lab, seed, case, segments, cache_dtype)
    }

    /// With caches of a format.
    pub(super) fn with_format(
        lab: &mut Lab,
        seed: u64,
        &(heads, kv_heads, head_dim, window): &Case,
        segments: &[(usize, usize, usize)],
        cache_dtype: DType,
    ) -> Option<Experiment> {
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        cache_dtype.row_bytes(kv_width)?;
        let ring = window.map_or(CONTEXT, |window| (window + 69).min(CONTEXT));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = AttentionShape { heads, kv_heads, head_dim, window, scale, cache_dtype, ring };
        let segments = segments.iter().map(|&(sequence, position, tokens)| Segment { sequence, position, tokens });
        let segments: Vec<Segment> = segments.collect();
        let tokens: usize = segments.iter().map(|segment| segment.tokens).sum();
        let mut random = Random(seed);
        let query = random.normal(tokens * width, 2.0);
        let reference = tensor::reference::AttentionShape { heads, kv_heads, head_dim, window, scale };
        // What was never written must not be read: not a number in every format.
        let rows_of_caches = vec![0xff; shape.cache().bytes(SEQUENCES) as usize];
        let caches = [(); 2].map(|()| lab.upload(&rows_of_caches).unwrap().address);
        let (mut expected, mut bounds, mut token) = (vec![0.0; tokens * width], Vec::new(), 0);
        for segment in &segments {
            let positions = segment.position + segment.tokens;
            let cached = caches.map(|cache| {
                let values = random.normal(positions * kv_width, if cache == caches[0] { 1.0 } else { 4.0 });
                write(lab, &shape, &values, cache, segment.sequence);
                let mut rounded = vec![0.0; values.len()];
                tensor::reference::cache_write(&values, cache_dtype, kv_width, &mut rounded);
                rounded
            });
            let range = token * width..(token + segment.tokens) * width;
            let output = &mut expected[range.clone()];
            let query = &query[range];
            tensor::reference::attention(&reference, segment.position, query, &cached[0], &cached[1], output);
            bounds.extend(largest_values(&reference, segment, &cached[1]).into_iter().flat_map(|x| vec![x; head_dim]));
            token += segment.tokens;
        }
        let query = lab.upload(&rows(&query, width)).unwrap().address;
        let output = lab.upload(&vec![0; tokens * pitch(width) * 4]).unwrap();
        let addresses = Addresses { query, keys: caches[0], values: caches[1], output: output.address };
        Some(Experiment { shape, addresses, segments, output, expected, bounds })
    }

    /// Tokens of the batch.
    pub(super) fn tokens(&self) -> usize {
        self.segments.iter().map(|segment| segment.tokens).sum()
    }

    /// The position and the sequence of every token.
    pub(super) fn places(&self) -> Vec<(usize, usize)> {
        let positions = |segment: &Segment| segment.position..segment.position + segment.tokens;
        self.segments.iter().flat_map(|s| positions(s).map(|position| (position, s.sequence))).collect()
    }

    /// Downloads the results.
    pub(super) fn output(&self, lab: &mut Lab) -> Vec<f32> {
        let width = self.shape.heads * self.shape.head_dim;
        unpad(&lab.download(self.output, self.tokens() * pitch(width) * 4).unwrap(), width)
    }

    /// Compares with the reference: scores are sums of `head_dim` products of `|q·k|` up to about 6 · 4 / √head_dim
    /// deviations each, so that with `√head_dim` roundings of a running sum they err by less than 2⁻²⁴ · 64 in units
    /// of the exponent, which moves a mean of values by at most twice that times the largest of them; the running sum
    /// of at most 300 values in 3 deviations of its roundings, `√300 · 3`, adds as much again.
    pub(super) fn check(&self, lab: &mut Lab) {
        self.check_within(lab, 200.0 * f32::EPSILON / 2.0);
    }

    /// Compares with the reference, errors relative to the largest visible value.
    pub(super) fn check_within(&self, lab: &mut Lab, relative: f32) {
        for (index, found) in self.output(lab).into_iter().enumerate() {
            let (expected, bound) = (self.expected[index], relative * self.bounds[index]);
            assert!(
                (found - expected).abs() <= bound,
                "{:?}, {:?}: element {index} is {found}, expected {expected} ± {bound}",
                self.shape,
                self.segments
            );
        }
    }
}

/// Writes the rows of the positions from 0 on, in pieces that are shorter than the smallest ring.
fn write(lab: &mut Lab, shape: &AttentionShape, values: &[f32], cache: u64, sequence: usize) {
    let width = shape.kv_heads * shape.head_dim;
    let mut dispatches = Vec::new();
    for (index, piece) in values.chunks(50 * width).enumerate() {
        let places: Vec<_> = (0..piece.len() / width).map(|i| (index * 50 + i, sequence)).collect();
        let input = View { address: lab.upload(&rows(piece, width)).unwrap().address, width };
        let tokens = lab.upload(&token_table(&places)).unwrap().address;
        dispatches.push(cache_write(lab.features(), shape.cache(), input, cache, tokens, places.len()));
    }
    lab.run(&dispatches).unwrap();
}

/// For each token and head the largest magnitude among the visible values.
fn largest_values(shape: &tensor::reference::AttentionShape, segment: &Segment, values: &[f32]) -> Vec<f32> {
    let mut largest = Vec::new();
    for position in segment.position..segment.position + segment.tokens {
        for head in 0..shape.heads {
            let visible = shape.first_visible(position)..position + 1;
            let start = |j: usize| (j * shape.kv_heads + shape.kv_head(head)) * shape.head_dim;
            let values = visible.flat_map(|j| &values[start(j)..][..shape.head_dim]);
            largest.push(values.fold(0f32, |largest, x| largest.max(x.abs())));
        }
    }
    largest
}
