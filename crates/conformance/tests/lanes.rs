//! The shaders that multiply matrices, with subgroups of 32 and 64 lanes as AMD's RDNA 3 has them: their loads and
//! stores as they are written there, by [`conformance::lanes`].

use backend_vulkan::{DeviceKind, Features, MatrixShape, matrix_constants};
use conformance::lanes::{Layout, Matrix, SIZE, Shared, Use};
use tensor::DType;

fn features(subgroup: u32) -> Features {
    Features {
        name: "gfx1103".into(),
        driver: "none".into(),
        kind: DeviceKind::Integrated,
        subgroup,
        subgroup_range: (32, 64),
        integer_dot: true,
        float64: true,
        matrix_f16: Some(MatrixShape { m: 16, n: 16, k: 16 }),
        matrix_i8: None,
        matrix_16x8: false,
        matrix_layout: false,
        begins_in_order: false,
        pipeline_statistics: false,
        memory_budget: true,
        shared_bytes: 64 << 10,
        workgroup_max: 1024,
        timestamp_nanoseconds: Some(10),
        allocation_max: 1 << 32,
        memory_bytes: 1 << 34,
        pci_address: None,
    }
}

/// Small whole numbers: sums of their products are exact.
fn number(row: usize, column: usize, seed: usize) -> f32 {
    ((row * 37 + column * 11 + row * column + seed) % 19) as f32 - 9.0
}

fn product(columns: usize, left: impl Fn(usize) -> f32, right: impl Fn(usize) -> f32) -> f32 {
    (0..columns).map(|column| left(column) * right(column)).sum()
}

/// `matmul_matrix.comp`: one step of a workgroup's tile.
fn multiply(lanes: usize, constants: [u32; 6]) {
    let [tokens, outputs, step, sub_tokens, sub_outputs, buffers] = constants.map(|constant| constant as usize);
    let vectors = step / 8;
    let stride = vectors + 1;
    let weight_rows = tokens * stride;
    let buffer = (tokens + outputs) * stride;
    // In the last of the buffers, whose end is that of the array.
    let current = (buffers - 1) * buffer;
    let mut tile = Shared::new(buffers * buffer, 8);
    for (first, rows, seed) in [(0, tokens, 1), (weight_rows, outputs, 2)] {
        for (row, column) in (0..rows * step).map(|i| (i / step, i % step)) {
            tile.values[(current + first + row * stride) * 8 + column] = number(row, column, seed);
        }
    }
    let mut seen = vec![0; tokens * outputs];
    for subgroup in 0..tokens / sub_tokens * (outputs / sub_outputs) {
        let sub_token = subgroup / (outputs / sub_outputs) * sub_tokens;
        let sub_output = subgroup % (outputs / sub_outputs) * sub_outputs;
        for (m, n) in (0..sub_tokens / SIZE).flat_map(|m| (0..sub_outputs / SIZE).map(move |n| (m, n))) {
            let mut sums = Matrix::of(Use::Accumulator, lanes, |_, _| 0.0);
            for k in 0..step / SIZE {
                let at = current + (sub_token + m * SIZE) * stride + 2 * k;
                let left = Matrix::load(Use::A, lanes, &tile, (at, stride, Layout::RowMajor));
                let at = current + weight_rows + (sub_output + n * SIZE) * stride + 2 * k;
                let right = Matrix::load(Use::B, lanes, &tile, (at, stride, Layout::ColumnMajor));
                sums = Matrix::multiply_add(&left, &right, &sums);
            }
            // `store_result`: the array's elements are four f32 there.
            let (stride, mut staging) = (SIZE / 4 + 1, Shared::new(buffers * buffer, 4));
            let start = subgroup * SIZE * stride;
            sums.store(&mut staging, (start, stride, Layout::RowMajor));
            for i in 0..SIZE * SIZE / 4 {
                let (row, vector) = (i / (SIZE / 4), i % (SIZE / 4));
                let values = &staging.values[(start + row * stride + vector) * 4..][..4];
                for (j, &found) in values.iter().enumerate() {
                    let (token, output) = (sub_token + m * SIZE + row, sub_output + n * SIZE + vector * 4 + j);
                    let expected = product(step, |k| number(token, k, 1), |k| number(output, k, 2));
                    assert_eq!(found, expected, "{lanes} lanes, {constants:?}: {token}, {output}");
                    seen[token * outputs + output] += 1;
                }
            }
        }
    }
    assert!(seen.iter().all(|&count| count == 1), "{lanes} lanes, {constants:?}");
}

#[test]
fn products_of_matrices() {
    for lanes in [32, 64] {
        for tokens in [1, 16, 17, 64, 65, 512] {
            for dtype in [DType::F16, DType::Q4_0, DType::Q4_K, DType::Q6_K] {
                let (subgroup, constants) = matrix_constants(&features(lanes), dtype, tokens);
                assert_eq!(subgroup, lanes);
                multiply(lanes as usize, constants);
            }
        }
    }
}

/// The constants of `attention_prefill_matrix.comp`.
#[derive(Clone, Copy, Debug)]
struct Attention {
    lanes: usize,
    heads: usize,
    column_groups: usize,
    head_dim: usize,
}

const KEYS: usize = 32;

impl Attention {
    fn rows(self) -> usize {
        self.heads * 32
    }

    /// A matrix of f16 in shared memory, rows 16 bytes apart.
    fn halves(rows: usize, columns: usize, seed: usize) -> (Shared, usize) {
        let stride = columns / 4 + 2;
        let mut shared = Shared::new(rows * stride, 4);
        for (row, column) in (0..rows * columns).map(|i| (i / columns, i % columns)) {
            shared.values[row * stride * 4 + column] = number(row, column, seed);
        }
        (shared, stride)
    }

    fn subgroups(self) -> impl Iterator<Item = (usize, usize, usize)> {
        let row_tiles = self.rows() / 16;
        (0..row_tiles * self.column_groups).map(move |subgroup| (subgroup, subgroup % row_tiles, subgroup / row_tiles))
    }

    /// `compute_scores`.
    fn scores(self) {
        let (queries, stride) = Attention::halves(self.rows(), self.head_dim, 3);
        let (cached, _) = Attention::halves(KEYS, self.head_dim, 4);
        let score_stride = KEYS + 4;
        let mut scores = Shared::new(self.rows() * score_stride, 1);
        for (_, row_tile, column_group) in self.subgroups() {
            for i in 0..KEYS / 16 / self.column_groups {
                let key_tile = i * self.column_groups + column_group;
                let mut score = Matrix::of(Use::Accumulator, self.lanes, |_, _| 0.0);
                for k in 0..self.head_dim / 16 {
                    let at = (row_tile * 16 * stride + k * 4, stride, Layout::RowMajor);
                    let a = Matrix::load(Use::A, self.lanes, &queries, at);
                    let at = (key_tile * 16 * stride + k * 4, stride, Layout::ColumnMajor);
                    let b = Matrix::load(Use::B, self.lanes, &cached, at);
                    score = Matrix::multiply_add(&a, &b, &score);
                }
                let at = (row_tile * 16 * score_stride + key_tile * 16, score_stride, Layout::RowMajor);
                score.store(&mut scores, at);
            }
        }
        for (row, column) in (0..self.rows() * score_stride).map(|i| (i / score_stride, i % score_stride)) {
            let found = scores.values[row * score_stride + column];
            let expected = product(self.head_dim, |k| number(row, k, 3), |k| number(column, k, 4));
            assert!(if column < KEYS { found == expected } else { found.is_nan() }, "{self:?}: {row}, {column}");
        }
    }

    /// `add_values` to results that were `number(…, 7)`, then the stores of `write_result`.
    fn results(self) {
        let (weights, weight_stride) = Attention::halves(self.rows(), KEYS, 5);
        let (cached, stride) = Attention::halves(KEYS, self.head_dim, 6);
        let mut factors = Shared::new(self.rows() * 16, 1);
        (0..self.rows() * 16).for_each(|i| factors.values[i] = (i / 16 % 5) as f32);
        let mut seen = vec![0; self.rows() * self.head_dim];
        for (subgroup, row_tile, column_group) in self.subgroups() {
            let at = (row_tile * 16 * 16, 16, Layout::RowMajor);
            let row_factors = Matrix::load(Use::Accumulator, self.lanes, &factors, at);
            for i in 0..(self.head_dim / 16).div_ceil(self.column_groups) {
                let column_tile = i * self.column_groups + column_group;
                if column_tile >= self.head_dim / 16 {
                    continue;
                }
                let before = |row, column| number(row_tile * 16 + row, column_tile * 16 + column, 7);
                let mut result = Matrix::of(Use::Accumulator, self.lanes, before).times(&row_factors);
                for k in 0..KEYS / 16 {
                    let at = (row_tile * 16 * weight_stride + k * 4, weight_stride, Layout::RowMajor);
                    let a = Matrix::load(Use::A, self.lanes, &weights, at);
                    let at = (k * 16 * stride + column_tile * 4, stride, Layout::RowMajor);
                    let b = Matrix::load(Use::B, self.lanes, &cached, at);
                    result = Matrix::multiply_add(&a, &b, &result);
                }
                let mut scores = Shared::new(self.rows() * (KEYS + 4), 1);
                let staging = subgroup * 256;
                result.store(&mut scores, (staging, 16, Layout::RowMajor));
                for j in 0..256 {
                    let (row, column) = (row_tile * 16 + j / 16, column_tile * 16 + j % 16);
                    let added = product(KEYS, |k| number(row, k, 5), |k| number(k, column, 6));
                    let expected = number(row, column, 7) * (row % 5) as f32 + added;
                    assert_eq!(scores.values[staging + j], expected, "{self:?}: {row}, {column}");
                    seen[row * self.head_dim + column] += 1;
                }
            }
        }
        assert!(seen.iter().all(|&count| count == 1), "{self:?}");
    }
}

#[test]
fn attention_over_many_tokens() {
    for (lanes, column_groups) in [(32, 2), (64, 1)] {
        for (heads, head_dim) in [(1, 64), (2, 64), (1, 80), (2, 128), (1, 256), (2, 256)] {
            let attention = Attention { lanes, heads, column_groups, head_dim };
            attention.scores();
            attention.results();
        }
    }
}
