//! Products of a 27B model's shapes by several tiles: for choosing among them on a device.

use std::io::Write;
use std::time::Duration;

use tensor::{BackendError, DType};

use super::super::to_half::{Halves, to_half};
use super::{Tile, matmul, matmul_matrix, sum};
use crate::dispatch::Dispatch;
use crate::kernel::{View, pitch};
use crate::lab::Lab;
use crate::layout::{Weight, repack};
use crate::memory::Slice;

/// Columns and outputs of the products of a layer that share an input.
const SHAPES: [(usize, &[usize]); 4] =
    [(5376, &[4096, 2048, 2048]), (4096, &[5376]), (5376, &[21504, 21504]), (21504, &[5376])];

const FORMATS: [DType; 3] = [DType::Q4_0, DType::Q4_K, DType::F16];

const fn variant(tokens: usize, outputs: usize, step: usize, sub: (usize, usize), buffers: usize) -> Tile {
    Tile { tokens, outputs, step, sub, buffers, slices: 1 }
}

/// For subgroups of 32.
const TILES: [Tile; 12] = [
    variant(128, 128, 32, (64, 32), 2),
    variant(128, 128, 32, (32, 64), 2),
    variant(128, 128, 64, (64, 32), 1),
    variant(128, 128, 32, (64, 64), 2),
    variant(128, 96, 64, (32, 48), 1),
    variant(128, 96, 32, (32, 48), 2),
    variant(128, 256, 32, (64, 64), 1),
    variant(256, 128, 32, (64, 64), 1),
    variant(64, 128, 64, (32, 32), 1),
    variant(128, 64, 64, (32, 32), 1),
    Tile { slices: 2, ..variant(128, 128, 32, (64, 32), 2) },
    Tile { slices: 3, ..variant(128, 128, 32, (64, 32), 2) },
];

/// The same for few tokens, as single products.
const NARROW_SHAPES: [(usize, &[usize]); 4] = [(5376, &[8192]), (4096, &[5376]), (5376, &[43_008]), (21504, &[5376])];

const fn narrow(outputs: usize, step: usize, sub_outputs: usize, buffers: usize, slices: usize) -> Tile {
    Tile { tokens: 16, outputs, step, sub: (16, sub_outputs), buffers, slices }
}

/// For at most 16 tokens, for subgroups of 32.
const NARROW: [Tile; 16] = [
    narrow(64, 64, 16, 1, 1),
    narrow(64, 64, 16, 2, 1),
    narrow(64, 64, 16, 1, 2),
    narrow(64, 64, 16, 1, 4),
    narrow(64, 64, 16, 1, 8),
    narrow(64, 64, 16, 1, 16),
    narrow(64, 64, 16, 2, 4),
    narrow(128, 64, 16, 1, 1),
    narrow(128, 64, 16, 1, 2),
    narrow(128, 64, 16, 1, 4),
    narrow(128, 64, 16, 1, 8),
    narrow(128, 64, 16, 2, 4),
    narrow(128, 64, 32, 1, 4),
    narrow(128, 32, 16, 1, 4),
    narrow(32, 64, 16, 1, 8),
    narrow(256, 64, 32, 1, 4),
];

const TO_HALF: &str = "to half";

/// Numbers by counter.
pub(in crate::kernel) struct Random(u64);

impl Random {
    pub(in crate::kernel) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    pub(in crate::kernel) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(in crate::kernel) fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.bits() >> 40) as f32 / (1 << 24) as f32
    }
}

/// Random weights as a file has them: any quants, scales of both signs in 2^-9 … 2^-3.
pub(in crate::kernel) fn random_weight(dtype: DType, rows: usize, columns: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut words: Vec<u64> = vec![0; dtype.tensor_bytes(rows, columns).expect("whole blocks").div_ceil(8)];
    words.iter_mut().for_each(|word| *word = random.bits());
    let mut bytes: Vec<u8> = bytemuck::cast_slice(&words).to_vec();
    bytes.truncate(dtype.tensor_bytes(rows, columns).expect("whole blocks"));
    let scales: &[usize] = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => &[],
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
    };
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        // Sign and fraction stay, the exponent is chosen.
        let set = |byte: &mut u8, keep: u8, exponent: u8| *byte = *byte & keep | exponent;
        match dtype {
            DType::F32 => set(&mut block[3], 0x80, 0x3d),
            DType::F16 => set(&mut block[1], 0x83, 0x2c),
            DType::BF16 => set(&mut block[1], 0x80, 0x3d),
            _ => {}
        }
        for &at in scales {
            let exponent = 6 + block[at] % 6;
            block[at + 1] = block[at + 1] & 0x83 | exponent << 2;
        }
    }
    bytes
}

/// What is measured: the products of one shape in one format.
struct Bench {
    dtype: DType,
    columns: usize,
    tokens: usize,
    files: Vec<Vec<u8>>,
    activations: Vec<f32>,
    products: Vec<(Weight, View)>,
    outputs: Vec<Slice>,
    input: View,
    halves: Halves,
}

impl Bench {
    fn new(lab: &mut Lab, dtype: DType, columns: usize, rows: &[usize], tokens: usize) -> Result<Bench, BackendError> {
        let mut random = Random::new(1);
        let activations: Vec<f32> = (0..tokens * columns).map(|_| random.uniform(-1.0, 1.0)).collect();
        // The columns of these shapes need no padding.
        assert_eq!(pitch(columns), columns);
        let input = View { address: lab.upload(bytemuck::cast_slice(&activations))?.address, width: columns };
        let mut halves = Halves { values: 0, scales: 0, width: columns };
        halves.values = lab.upload(&vec![0; tokens * halves.pitch() * 2])?.address;
        halves.scales = lab.upload(&vec![0; tokens * 4])?.address;
        let (mut files, mut products, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for (seed, &rows) in rows.iter().enumerate() {
            let file = random_weight(dtype, rows, columns, seed as u64 + 3);
            let source = lab.upload(&file)?.address;
            let mut weight = Weight { address: 0, dtype, rows, columns };
            weight.address = lab.upload(&vec![0; weight.bytes()])?.address;
            lab.run(&[repack(lab.features(), source, weight.address, dtype, rows, columns)])?;
            let output = lab.upload(&vec![0; tokens * pitch(rows) * 4])?;
            products.push((weight, View { address: output.address, width: rows }));
            outputs.push(output);
            files.push(file);
        }
        Ok(Bench { dtype, columns, tokens, files, activations, products, outputs, input, halves })
    }

    /// The largest error of a sample of outputs, as a fraction of `√Σ (x·w)²`.
    fn error(&self, lab: &mut Lab) -> Result<f64, BackendError> {
        let mut worst = 0f64;
        let mut random = Random::new(9);
        for ((file, (weight, _)), &output) in self.files.iter().zip(&self.products).zip(&self.outputs) {
            let rows = weight.rows;
            let found = lab.download(output, self.tokens * pitch(rows) * 4)?;
            let found: &[f32] = bytemuck::cast_slice(&found);
            let row_bytes = self.dtype.row_bytes(self.columns).expect("whole blocks");
            let mut weights = vec![0.0; self.columns];
            for _ in 0..48 {
                let (row, token) = (random.bits() as usize % rows, random.bits() as usize % self.tokens);
                self.dtype.codec().decode(&file[row * row_bytes..][..row_bytes], &mut weights);
                let x = &self.activations[token * self.columns..][..self.columns];
                let terms = x.iter().zip(&weights).map(|(&x, &w)| f64::from(x) * f64::from(w));
                let (sum, squares) = terms.fold((0.0, 0.0), |(sum, squares), term| (sum + term, squares + term * term));
                let error = (f64::from(found[token * pitch(rows) + row]) - sum).abs() / squares.sqrt();
                // A NaN is the worst.
                worst = if error <= worst { worst } else { error };
            }
        }
        Ok(worst)
    }

    fn line(
        &self,
        lab: &mut Lab,
        name: &str,
        dispatches: &[Dispatch],
        out: &mut dyn Write,
    ) -> Result<(), BackendError> {
        let repeat = if name == "plain" { 2 } else { 20 };
        let operations = dispatches[0].operations;
        // A kernel that writes nothing must not find the last one's results.
        let clear = self.products.iter().map(|&(_, output)| sum(lab.features(), 0, 0, output, self.tokens));
        lab.run(&clear.collect::<Vec<_>>())?;
        let time = lab.time(dispatches, repeat)? / repeat;
        let error = if name == TO_HALF { 0.0 } else { self.error(lab)? };
        let rate = operations as f64 / time.as_secs_f64() / 1e12;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let rows: Vec<String> = self.products.iter().map(|(weight, _)| weight.rows.to_string()).collect();
        let shape = format!("{}→{}", self.columns, rows.join("+"));
        let _ = writeln!(
            out,
            "{:5} {shape:18} {name:26} {:8.3} ms {rate:7.1} TFLOP/s  error {error:.1e}",
            self.dtype.to_string(),
            milliseconds(time)
        );
        let _ = out.flush();
        Ok(())
    }
}

/// Prints a table of errors and speeds for `tokens` tokens. With `plain`, the f32 kernel too.
///
/// # Errors
/// A device that fails.
pub fn measure(index: Option<usize>, tokens: usize, plain: bool, out: &mut dyn Write) -> Result<(), BackendError> {
    let features = Lab::open(index)?.features().clone();
    let _ = writeln!(out, "{features:?}");
    for &dtype in if tokens <= 16 { &FORMATS[..2] } else { &FORMATS[..] } {
        for (columns, rows) in if tokens <= 16 { NARROW_SHAPES } else { SHAPES } {
            // A lab for each, because its memory is freed as a whole.
            let mut lab = Lab::open(index)?;
            let bench = Bench::new(&mut lab, dtype, columns, rows, tokens)?;
            let convert = to_half(&features, bench.input, bench.halves, tokens);
            bench.line(&mut lab, TO_HALF, &[convert], out)?;
            let tiles = if tokens <= 16 { &NARROW[..] } else { &TILES[..] };
            for &tile in tiles {
                let fits = tile.shared_bytes() <= features.shared_bytes as usize;
                if features.matrix_f16.is_none() || !fits || tile.slices > 1 && rows.len() > 1 {
                    continue;
                }
                let scratch = lab.upload(&vec![0; tile.slices * tokens * pitch(rows[0]) * 4])?.address;
                let dispatches = matmul_matrix(&features, &bench.products, bench.halves, tokens, tile, scratch);
                let Tile { tokens, outputs, step, sub, buffers, slices } = tile;
                let name = format!("{tokens}×{outputs}×{step} {}×{} {buffers} {slices}", sub.0, sub.1);
                bench.line(&mut lab, &name, &dispatches, out)?;
            }
            if plain {
                let dispatch = matmul(&features, &bench.products, bench.input, tokens);
                bench.line(&mut lab, "plain", &[dispatch], out)?;
            }
        }
    }
    Ok(())
}
