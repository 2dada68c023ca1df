use super::super::to_half::{Halves, to_half};
use super::measure::{Random, random_weight};
use super::*;
use crate::context::Context;
use crate::lab::Lab;
use crate::layout::{repack, row_bytes};
use crate::pipeline::Pipelines;

const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
const UNIT_F16: f64 = 1.0 / (1 << 11) as f64;

/// Rows of activations: zeros, numbers beyond f16, tiny ones, ordinary ones.
fn activations(tokens: usize, columns: usize) -> Vec<f32> {
    let mut random = Random::new(7);
    let magnitude = |token: usize| [1.0, 0.0, 1e6, 1e-7, 30.0][token % 5];
    (0..tokens * columns).map(|i| magnitude(i / columns) * random.uniform(-1.0, 1.0)).collect()
}

/// Sizes of the terms of each weight: where a weight is the sum of two, both.
fn terms(dtype: DType, bytes: &[u8], columns: usize) -> Vec<f32> {
    let (scale, minimum, sign) = match dtype {
        DType::Q4_1 | DType::Q5_1 => (0, 2, 1.0),
        DType::Q4_K | DType::Q5_K => (0, 2, -1.0),
        DType::Q2_K => (80, 82, -1.0),
        DType::F32 | DType::F16 | DType::BF16 | DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => return values(dtype, bytes),
        DType::Q3_K | DType::Q6_K => return values(dtype, bytes),
    };
    let mut positive = bytes.to_vec();
    for block in positive.chunks_exact_mut(dtype.block_bytes()) {
        for (at, sign) in [(scale, 1.0), (minimum, sign)] {
            let value = half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(sign * value.abs()).to_le_bytes());
        }
    }
    assert_eq!(bytes.len() % dtype.row_bytes(columns).unwrap(), 0);
    values(dtype, &positive)
}

fn values(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    dtype.codec().decode(bytes, &mut values);
    values
}

struct Setup {
    lab: Lab,
    dtype: DType,
    columns: usize,
    tokens: usize,
    input: Vec<f32>,
}

impl Setup {
    fn upload_input(&mut self) -> View {
        let pitch = crate::kernel::pitch(self.columns);
        let mut padded = vec![0.0; self.tokens * pitch];
        for (padded, row) in padded.chunks_mut(pitch).zip(self.input.chunks(self.columns)) {
            padded[..self.columns].copy_from_slice(row);
        }
        let slice = self.lab.upload(bytemuck::cast_slice(&padded)).unwrap();
        View { address: slice.address, width: self.columns }
    }

    fn upload_weight(&mut self, bytes: &[u8], rows: usize) -> Weight {
        let source = self.lab.upload(bytes).unwrap();
        // What is behind the weights must not matter.
        let target = self.lab.upload(&vec![0xff; rows * row_bytes(self.dtype, self.columns) + 64]).unwrap();
        let dispatch = repack(self.lab.features(), source.address, target.address, self.dtype, rows, self.columns);
        self.lab.run(&[dispatch]).unwrap();
        Weight { address: target.address, dtype: self.dtype, rows, columns: self.columns }
    }

    /// The products by one path, compared with the reference.
    fn check(&mut self, path: Path, rows: &[usize]) {
        let tokens = self.tokens;
        let input = self.upload_input();
        let bytes: Vec<Vec<u8>> =
            rows.iter().map(|&rows| random_weight(self.dtype, rows, self.columns, rows as u64)).collect();
        let mut outputs = Vec::new();
        let (mut products, mut scratch) = (Vec::new(), 0);
        for (bytes, &rows) in bytes.iter().zip(rows) {
            let weight = self.upload_weight(bytes, rows);
            let output = self.lab.upload(&vec![0; tokens * crate::kernel::pitch(rows) * 4]).unwrap();
            products.push((weight, View { address: output.address, width: rows }));
            outputs.push(output);
        }
        let features = self.lab.features().clone();
        match path {
            Path::Plain => self.lab.run(&[matmul(&features, &products, input, tokens)]).unwrap(),
            Path::Matrix => {
                let mut halves = Halves { values: 0, scales: 0, width: self.columns };
                halves.values = self.lab.upload(&vec![0xff; tokens * halves.pitch() * 2]).unwrap().address;
                halves.scales = self.lab.upload(&vec![0; tokens * 4]).unwrap().address;
                let mut tile = tile(&features, self.dtype, tokens);
                if let [rows] = *rows {
                    tile.slices = 2;
                    scratch = self.lab.upload(&vec![0; 2 * tokens * crate::kernel::pitch(rows) * 4]).unwrap().address;
                }
                let convert = to_half(&features, input, halves, tokens);
                let mut dispatches = vec![convert];
                dispatches.extend(matmul_matrix(&features, &products, halves, tokens, tile, scratch));
                self.lab.run(&dispatches).unwrap();
            }
        }
        for ((bytes, &rows), output) in bytes.iter().zip(rows).zip(outputs) {
            let found = self.lab.download(output, tokens * crate::kernel::pitch(rows) * 4).unwrap();
            self.compare(path, rows, bytes, bytemuck::cast_slice(&found));
        }
    }

    fn compare(&self, path: Path, rows: usize, bytes: &[u8], found: &[f32]) {
        let (weights, terms) = (values(self.dtype, bytes), terms(self.dtype, bytes, self.columns));
        let mut expected = vec![0.0; self.tokens * rows];
        tensor::reference::linear(&weights, &self.input, self.columns, &mut expected);
        let n = self.columns as f64;
        // In f32, and for f16: the input, scale, offset and sum of a weight; matrix instructions may cut off.
        let relative = match path {
            Path::Plain => UNIT * (n + 4.0),
            Path::Matrix => 4.01 * UNIT_F16 + 4.0 * UNIT * (n + 4.0),
        };
        let pitch = crate::kernel::pitch(rows);
        for token in 0..self.tokens {
            let x = &self.input[token * self.columns..][..self.columns];
            let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            for row in 0..pitch {
                let found = f64::from(found[token * pitch + row]);
                if row >= rows {
                    assert_eq!(found, 0.0, "the padding");
                    continue;
                }
                let terms = &terms[row * self.columns..][..self.columns];
                let size: f64 = x.iter().zip(terms).map(|(&x, &term)| f64::from(x.abs()) * f64::from(term.abs())).sum();
                let sum: f64 = terms.iter().map(|&term| f64::from(term.abs()) + 1.0).sum();
                // Where f16 has no smaller steps: weights of less than 2^-14, inputs of 2^-28 of the row's largest.
                let tiny = if path == Path::Matrix { sum * f64::from(largest) * 2f64.powi(-25) } else { 0.0 };
                let expected = f64::from(expected[token * rows + row]);
                assert!(
                    (found - expected).abs() <= relative * size + tiny,
                    "{path:?} {} [{token}, {row}] of {}×{}→{rows}: {found} for {expected}",
                    self.dtype,
                    self.tokens,
                    self.columns
                );
            }
        }
    }
}

/// All formats at sizes around those of tiles, blocks and vectors.
fn check(precision: Precision) {
    let Some(mut lab) = Lab::for_tests() else { return };
    for dtype in DType::ALL {
        let columns: &[usize] = match dtype.block_len() {
            1 => &[7, 33, 100, 256],
            32 => &[32, 96, 352],
            _ => &[256, 768],
        };
        for (index, &columns) in columns.iter().enumerate() {
            let tokens = [9, 17, 70, 130][index % 4];
            let input = activations(tokens, columns);
            let path = path(lab.features(), precision, dtype);
            let mut setup = Setup { lab, dtype, columns, tokens, input };
            for rows in [&[130][..], &[1, 3, 17], &[70, 64]] {
                setup.check(path, rows);
            }
            lab = setup.lab;
        }
    }
}

#[test]
fn products_in_f32_equal_the_reference() {
    check(Precision::F32);
}

#[test]
fn fast_products_equal_the_reference() {
    check(Precision::Fast);
}

#[test]
fn formats_without_room_for_f16_stay_in_f32() {
    let Some(lab) = Lab::for_tests() else { return };
    let mut features = lab.features().clone();
    features.matrix_f16 = Some(crate::features::MatrixShape { m: 16, n: 16, k: 16 });
    (features.subgroup, features.subgroup_range, features.workgroup_max) = (32, (32, 32), 1024);
    for dtype in DType::ALL {
        let expected = if dtype == DType::F32 { Path::Plain } else { Path::Matrix };
        assert_eq!(path(&features, Precision::Fast, dtype), expected, "{dtype}");
        assert_eq!(path(&features, Precision::F32, dtype), Path::Plain, "{dtype}");
    }
}

/// Also on a device that only compiles, as Mesa's null device does.
#[test]
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
fn every_kernel_compiles() {
    let Ok(context) = Context::open(None) else { return eprintln!("skipped: no device") };
    let pipelines = Pipelines::new(&context).unwrap();
    let features = context.features();
    for dtype in DType::ALL {
        let columns = 256;
        let weight = Weight { address: 0, dtype, rows: 130, columns };
        let product = (weight, View { address: 0, width: 130 });
        let input = View { address: 0, width: columns };
        pipelines.get(&matmul(features, &[product], input, 9).kernel).unwrap();
        if path(features, Precision::Fast, dtype) == Path::Matrix {
            for tokens in [9, 512] {
                let input = Halves { values: 0, scales: 0, width: columns };
                let dispatches =
                    matmul_matrix(features, &[product], input, tokens, tile(features, product.0.dtype, tokens), 0);
                pipelines.get(&dispatches[0].kernel).unwrap();
            }
        }
    }
}
