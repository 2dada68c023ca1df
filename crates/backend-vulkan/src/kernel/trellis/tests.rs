use half::f16;
use tensor::format::trellis::{Codebook, Linear, Rate, Scales};
use tensor::{LoadOptions, Precision, ProgramBuilder, Rows, TrellisFormat, WeightFormat};

use super::*;
use crate::kernel::attention::testing::Random;
use crate::kernel::{View, pitch};
use crate::lab::Lab;
use crate::memory::Slice;

/// A weight of random tiles, on the device and as f32 `[rows, columns]`.
struct Made {
    weight: TrellisWeight,
    values: Vec<f32>,
}

fn format(half_bits: usize, codebook: Codebook) -> TrellisFormat {
    TrellisFormat { rate: Rate::from_half_bits(half_bits).unwrap(), codebook, rotation: 0 }
}

fn make(lab: &mut Lab, format: TrellisFormat, rows: usize, columns: usize, seed: u64) -> Made {
    let mut weight = TrellisWeight { address: 0, format, rows, columns };
    let mut random = Random(seed);
    let scales = |random: &mut Random, count: usize| -> Vec<f16> {
        random.normal(count, 1.0).into_iter().map(|x| f16::from_f32(x + 0.1f32.copysign(x))).collect()
    };
    // The scales of inputs are those of all weights of a test.
    let scales = Scales { suh: scales(&mut Random(77), weight.inputs()), svh: scales(&mut random, weight.outputs()) };
    let words = random.normal(weight.tile_bytes(), 1000.0);
    let bytes: Vec<u8> = words.into_iter().map(|x| x as i32 as u8).collect();
    let linear = Linear::from_tiles(format.rate, format.codebook, scales.clone(), &bytes).unwrap();
    let all = linear.dequantize();
    let values = all.chunks(weight.inputs()).take(rows).flat_map(|row| &row[..columns]).copied().collect();
    // What is behind the weights must not matter.
    let mut all = vec![0xff; weight.bytes() + 256];
    let halves = scales.suh.iter().chain(&scales.svh).flat_map(|scale| scale.to_le_bytes());
    all[weight.tile_bytes()..].iter_mut().zip(halves).for_each(|(into, byte)| *into = byte);
    weight.address = lab.upload(&all).unwrap().address;
    let source = lab.upload(&bytes).unwrap().address;
    // In two pieces, as a large one is.
    let first = weight.groups() / 2;
    let mut move_groups = |from: usize, count: usize| {
        let source = source + (from * weight.group_bytes()) as u64;
        let dispatch = repack(lab.features(), source, &weight, weight.address, from, count);
        lab.run(&[dispatch]).unwrap();
    };
    move_groups(0, first);
    move_groups(first, weight.groups() - first);
    Made { weight, values }
}

fn upload_rows(lab: &mut Lab, rows: usize, width: usize, values: &[f32]) -> View {
    let mut padded = vec![0.0; rows * pitch(width)];
    for (padded, row) in padded.chunks_mut(pitch(width)).zip(values.chunks(width)) {
        padded[..width].copy_from_slice(row);
    }
    View { address: lab.upload(bytemuck::cast_slice(&padded)).unwrap().address, width }
}

/// The largest errors of rows of `found`, relative to the root of the sum of squares of the products.
fn check(made: &Made, input: &[f32], found: &[f32], most: f64) {
    let TrellisWeight { rows, columns, .. } = made.weight;
    for (token, input) in input.chunks(columns).enumerate() {
        for (row, weights) in made.values.chunks(columns).enumerate() {
            let products = weights.iter().zip(input).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let (sum, squares) = products.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
            let value = f64::from(found[token * pitch(rows) + row]);
            // Rotations spread the largest weights and activations of a block over all of it.
            let error = (value - sum).abs() / squares.sqrt();
            assert!(error <= most, "{:?}, token {token}, row {row}: {value} for {sum}, {error}", made.weight);
        }
    }
}

/// Memory for products with a weight of a program for it alone.
fn scratch(lab: &mut Lab, weight: &TrellisWeight, tokens: usize) -> TrellisScratch {
    let mut builder = ProgramBuilder::new();
    let matrix = builder.weight("matrix", WeightFormat::Trellis(weight.format), weight.rows, weight.columns);
    let input = builder.scratch("input", Rows::Tokens, weight.columns);
    let output = builder.scratch("output", Rows::Tokens, weight.rows);
    builder.push(tensor::Op::Linear { weight: matrix, input, output });
    let program = builder.build().unwrap();
    let options = LoadOptions {
        tokens_max: tokens,
        outputs_max: tokens,
        sequences_max: 1,
        context_max: tokens,
        cache_dtype: tensor::DType::F32,
        precision: Precision::Fast,
        threads: None,
    };
    let memory = TrellisMemory::new(lab.features(), &program, &options);
    memory.place(|bytes| lab.allocate(bytes.max(4))).unwrap()
}

fn check_linear(lab: &mut Lab, format: TrellisFormat, sizes: &[usize], columns: usize, tokens: usize) {
    let made: Vec<Made> =
        sizes.iter().enumerate().map(|(index, &rows)| make(lab, format, rows, columns, 5 + index as u64)).collect();
    let input = Random(9).normal(tokens * columns, 1.0);
    let view = upload_rows(lab, tokens, columns, &input);
    let largest = made.iter().max_by_key(|made| made.weight.rows).unwrap();
    let scratch = scratch(lab, &largest.weight, tokens);
    let matrices = lab.features().matrix_f16.is_some();
    for precision in [Precision::F32, Precision::Fast] {
        let outputs: Vec<Slice> =
            sizes.iter().map(|&rows| lab.upload(&vec![0xff; 4 * tokens * pitch(rows)]).unwrap()).collect();
        let parts: Vec<(TrellisWeight, View)> = made
            .iter()
            .zip(&outputs)
            .map(|(made, slice)| (made.weight, View { address: slice.address, width: made.weight.rows }))
            .collect();
        let arithmetic = Arithmetic { precision, matrices: matrices && precision == Precision::Fast };
        let dispatches = linear(&lab.features().clone(), &parts, view, tokens, arithmetic, &scratch);
        lab.run(&dispatches).unwrap();
        for (made, slice) in made.iter().zip(outputs) {
            let bytes = lab.download(slice, 4 * tokens * pitch(made.weight.rows)).unwrap();
            let most = if precision == Precision::F32 { 2e-5 } else { 0.1 };
            check(made, &input, bytemuck::cast_slice(&bytes), most);
        }
    }
}

#[test]
fn products_of_all_rates_and_codebooks() {
    let Some(mut lab) = Lab::for_tests() else { return };
    for rate in Rate::ALL {
        for codebook in Codebook::ALL.into_iter().filter(|&codebook| codebook == Codebook::Mul1 || !rate.is_half()) {
            check_linear(&mut lab, format(rate.half_bits(), codebook), &[128], 256, 1);
        }
    }
}

#[test]
fn products_of_several_weights_and_columns() {
    let Some(mut lab) = Lab::for_tests() else { return };
    for (codebook, half_bits) in [(Codebook::Mul1, 5), (Codebook::Mcg, 4)] {
        // Padding, more parts than a dispatch has, and columns that are no multiple of 8.
        for (sizes, columns, tokens) in
            [(&[100usize, 300, 128, 200][..], 200, 1), (&[384], 1152, 2), (&[130, 260], 384, 11), (&[300], 200, 70)]
        {
            check_linear(&mut lab, format(half_bits, codebook), sizes, columns, tokens);
        }
    }
}

#[test]
fn rows_of_a_table() {
    let Some(mut lab) = Lab::for_tests() else { return };
    for (half_bits, codebook) in [(5, Codebook::Mul1), (12, Codebook::Mcg), (2, Codebook::ThreeInst)] {
        let made = make(&mut lab, format(half_bits, codebook), 300, 200, 3);
        let ids = [0u32, 5, 127, 128, 299, 77];
        let tokens: Vec<[u32; 4]> = ids.iter().map(|&id| [id, 0, 0, 0]).collect();
        let tokens = lab.upload(bytemuck::cast_slice(&tokens)).unwrap();
        let target = lab.upload(&vec![0xff; ids.len() * pitch(200) * 4]).unwrap();
        let output = View { address: target.address, width: 200 };
        let dispatch = embed(lab.features(), &made.weight, 3.0, output, tokens.address, ids.len());
        lab.run(&[dispatch]).unwrap();
        let bytes = lab.download(target, ids.len() * pitch(200) * 4).unwrap();
        let found: &[f32] = bytemuck::cast_slice(&bytes);
        for (&id, found) in ids.iter().zip(found.chunks(pitch(200))) {
            let expected = &made.values[id as usize * 200..][..200];
            let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (&found, &expected) in found.iter().zip(expected) {
                assert!((found - 3.0 * expected).abs() <= 2e-6 * 3.0 * largest, "{id}: {found}, {expected}");
            }
        }
    }
}
