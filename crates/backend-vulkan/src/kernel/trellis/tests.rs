use half::f16;
use tensor::format::trellis::{Codebook, Linear, Rate, Scales, hadamard};
use tensor::{LoadOptions, Precision, ProgramBuilder, Rows, TrellisFormat, WeightFormat};

use super::product::product;
use super::*;
use crate::features::Features;
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

/// Memory for products with the weights of a program for them alone.
fn scratch(lab: &mut Lab, weights: &[TrellisWeight], tokens: usize) -> TrellisScratch {
    let mut builder = ProgramBuilder::new();
    let input = builder.scratch("input", Rows::Tokens, weights[0].columns);
    for (index, weight) in weights.iter().enumerate() {
        let format = WeightFormat::Trellis(weight.format);
        let weight_buffer = builder.weight(format!("matrix {index}"), format, weight.rows, weight.columns);
        let output = builder.scratch(format!("output {index}"), Rows::Tokens, weight.rows);
        builder.push(tensor::Op::Linear { weight: weight_buffer, input, output });
    }
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

fn arithmetic(features: &Features, precision: Precision) -> Arithmetic {
    let Features { integer_dot, matrix_layout, .. } = *features;
    Arithmetic { precision, integer_dot, matrix_layout, splats: features.is_amd() }
}

/// Also what is chosen for AMD's devices.
fn check_linear(lab: &mut Lab, format: TrellisFormat, sizes: &[usize], columns: usize, tokens: usize) {
    let made: Vec<Made> =
        sizes.iter().enumerate().map(|(index, &rows)| make(lab, format, rows, columns, 5 + index as u64)).collect();
    let input = Random(9).normal(tokens * columns, 1.0);
    let view = upload_rows(lab, tokens, columns, &input);
    let weights: Vec<TrellisWeight> = made.iter().map(|made| made.weight).collect();
    let scratch = scratch(lab, &weights, tokens);
    let matrices = lab.features().matrix_f16.is_some();
    let mut amd = lab.features().clone();
    amd.subgroup_range = (32, 64);
    let kinds = [lab.features().clone(), amd];
    for (features, precision) in
        [(&kinds[0], Precision::F32), (&kinds[0], Precision::Fast), (&kinds[1], Precision::Fast)]
    {
        let outputs: Vec<Slice> =
            sizes.iter().map(|&rows| lab.upload(&vec![0xff; 4 * tokens * pitch(rows)]).unwrap()).collect();
        let parts: Vec<(TrellisWeight, View)> = made
            .iter()
            .zip(&outputs)
            .map(|(made, slice)| (made.weight, View { address: slice.address, width: made.weight.rows }))
            .collect();
        let dispatches = linear(features, &parts, view, tokens, (arithmetic(features, precision), matrices), &scratch);
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

/// Rotated rows as f32, in the order of the inputs.
fn rotated_values(lab: &mut Lab, form: RotatedForm, values: Slice, sums: Slice, count: usize) -> Vec<f32> {
    let bytes = lab.download(values, 4 * count).unwrap();
    let sums = lab.download(sums, count / 8).unwrap();
    let scale = |index: usize| bytemuck::cast_slice::<u8, [f32; 2]>(&sums)[index / 64][0];
    let read = |index: usize| match form {
        RotatedForm::Floats => bytemuck::cast_slice::<u8, f32>(&bytes)[index],
        RotatedForm::Integers => f32::from(bytes[index] as i8),
        RotatedForm::Splats => f32::from(bytes[4 * index] as i8),
        RotatedForm::Halfs => f16::from_bits(bytemuck::cast_slice::<u8, u16>(&bytes)[index]).to_f32(),
    };
    let place = |index: usize| match (form, index % 16) {
        (RotatedForm::Floats, _) => index,
        (_, input) => index / 16 * 16 + input % 8 / 2 * 4 + input / 8 * 2 + input % 2,
    };
    let factor = |index: usize| if form == RotatedForm::Floats { 1.0 } else { scale(index) };
    (0..count).map(|index| factor(index) * read(place(index))).collect()
}

#[test]
fn activations_are_rotated_in_all_forms() {
    let Some(mut lab) = Lab::for_tests() else { return };
    let (rows, columns) = (3, 200);
    let made = make(&mut lab, format(4, Codebook::Mul1), 128, columns, 1);
    // Sizes that halves alone could not hold.
    let mut input = Random(4).normal(rows * columns, 1.0);
    input.iter_mut().enumerate().for_each(|(index, x)| *x *= [1e-9, 1.0, 1e9][index / columns]);
    let view = upload_rows(&mut lab, rows, columns, &input);
    let scales = Random(77).normal(256, 1.0).into_iter().map(|x| f16::from_f32(x + 0.1f32.copysign(x)).to_f32());
    let scales: Vec<f32> = scales.collect();
    for (form, steps) in [
        (RotatedForm::Floats, 1e6),
        (RotatedForm::Integers, 250.0),
        (RotatedForm::Halfs, 2000.0),
        (RotatedForm::Splats, 250.0),
    ] {
        let (bytes, sum_bytes) = Rotated::bytes(rows, columns);
        let (values, sums) = (lab.upload(&vec![0xff; bytes]).unwrap(), lab.upload(&vec![0xff; sum_bytes]).unwrap());
        let target = Rotated { form, values: values.address, sums: sums.address };
        let dispatch = rotate(lab.features(), view, &made.weight, target, rows);
        lab.run(&[dispatch]).unwrap();
        let found = rotated_values(&mut lab, form, values, sums, rows * 256);
        for (input, found) in input.chunks(columns).zip(found.chunks(256)) {
            let mut expected = vec![0.0; 256];
            expected.iter_mut().zip(input.iter().zip(&scales)).for_each(|(into, (x, scale))| *into = x * scale);
            hadamard::rotate(&mut expected);
            for (found, expected) in found.chunks(128).zip(expected.chunks(128)) {
                let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    assert!((found - expected).abs() <= largest / steps, "{form:?}: {found}, {expected}");
                }
            }
        }
    }
}

/// Gate and up together give what their products and GELU give one by one, whatever form it goes out in.
#[test]
fn gate_and_up_go_out_in_all_forms() {
    let Some(mut lab) = Lab::for_tests() else { return };
    let features = lab.features().clone();
    let [gate, up] = [5, 6].map(|seed| make(&mut lab, format(5, Codebook::Mul1), 300, 384, seed));
    let down = make(&mut lab, format(4, Codebook::Mul1), 128, 300, 7);
    for tokens in [1, 3] {
        let input = Random(9).normal(tokens * 384, 1.0);
        let view = upload_rows(&mut lab, tokens, 384, &input);
        let (bytes, sum_bytes) = Rotated::bytes(tokens, 384);
        let (values, sums) = (lab.allocate(bytes).unwrap(), lab.allocate(sum_bytes).unwrap());
        let rotated = Rotated { form: RotatedForm::Floats, values, sums };
        let turn = rotate(&features, view, &gate.weight, rotated, tokens);
        let scratch = scratch(&mut lab, &[gate.weight, up.weight], tokens);
        let weights = [gate.weight, up.weight];
        let tiling = Tiling::gate_up(&features, &gate.weight, tokens);
        let run = |lab: &mut Lab, target: Gated| {
            let product = gate_up(&features, weights, rotated, target, tokens, tiling, scratch.meeting);
            lab.run(&[turn.clone(), product.clone(), product]).unwrap();
        };
        let output = lab.upload(&vec![0xff; 4 * tokens * pitch(300)]).unwrap();
        run(&mut lab, Gated::Floats(View { address: output.address, width: 300 }));
        let rows = lab.download(output, 4 * tokens * pitch(300)).unwrap();
        let rows: &[f32] = bytemuck::cast_slice(&rows);
        for (token, input) in input.chunks(384).enumerate() {
            let dot = |made: &Made, row: usize| -> f32 {
                made.values[384 * row..][..384].iter().zip(input).map(|(w, x)| w * x).sum()
            };
            for row in 0..300 {
                let (x, factor) = (dot(&gate, row), dot(&up, row));
                let gelu = 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh());
                let found = rows[token * pitch(300) + row];
                assert!((found - gelu * factor).abs() <= 1e-3 * (1.0 + x.abs() + factor.abs()), "{row}: {found}");
            }
            assert!(rows[token * pitch(300)..][300..pitch(300)].iter().all(|&x| x == 0.0));
        }
        let view = View { address: output.address, width: 300 };
        for (form, steps) in [(RotatedForm::Floats, 1e6), (RotatedForm::Integers, 120.0), (RotatedForm::Halfs, 1000.0)]
        {
            let (bytes, sum_bytes) = Rotated::bytes(tokens, 300);
            let found = [false, true].map(|fused| {
                let values = lab.upload(&vec![0xff; bytes]).unwrap();
                let sums = lab.upload(&vec![0xff; sum_bytes]).unwrap();
                let target = Rotated { form, values: values.address, sums: sums.address };
                match fused {
                    true => run(&mut lab, Gated::Rotated(target, down.weight.input_scales())),
                    false => lab.run(&[rotate(&features, view, &down.weight, target, tokens)]).unwrap(),
                }
                rotated_values(&mut lab, form, values, sums, tokens * 384)
            });
            let largest = found[0].iter().fold(0f32, |most, x| most.max(x.abs()));
            for (apart, fused) in found[0].iter().zip(&found[1]) {
                assert!((apart - fused).abs() <= largest / steps, "{form:?}: {fused}, {apart}");
            }
        }
    }
}

/// A norm that adds up what a product left gives what it gives behind a product that is whole.
#[test]
fn norms_add_up_what_products_leave() {
    let Some(mut lab) = Lab::for_tests() else { return };
    let features = lab.features().clone();
    let (width, columns) = (300, 640);
    let made = make(&mut lab, format(5, Codebook::Mul1), width, columns, 5);
    for tokens in [1, 3] {
        let input = Random(9).normal(tokens * columns, 1.0);
        let view = upload_rows(&mut lab, tokens, columns, &input);
        let scratch = scratch(&mut lab, &[made.weight], tokens);
        let rotated = Rotated { form: RotatedForm::Floats, values: scratch.rotated, sums: scratch.sums };
        let ones = upload_rows(&mut lab, 1, width, &Random(3).normal(width, 1.0));
        let scale = crate::kernel::norm::Scale { weight: ones.address, epsilon: 1e-6 };
        let before = Random(4).normal(tokens * width, 1.0);
        let found = [false, true].map(|leaves| {
            let residual = upload_rows(&mut lab, tokens, width, &before);
            let update = lab.upload(&vec![0xff; 4 * tokens * pitch(width)]).unwrap();
            let update = View { address: update.address, width };
            let output = lab.upload(&vec![0xff; 4 * tokens * pitch(width)]).unwrap();
            let floats = Some(View { address: output.address, width });
            let result = crate::kernel::norm::Output { scale, floats, quantized: None, rotated: None };
            let tiling = Tiling { split: 1, slices: 2 };
            let mut dispatches = vec![
                rotate(&features, view, &made.weight, rotated, tokens),
                product(&features, &[(made.weight, update)], rotated, tokens, tiling, scratch.meeting),
                crate::kernel::norm::norm(&features, Some((update, scale)), residual, Some(result), tokens),
            ];
            if leaves {
                crate::leave::insert(scratch.left, &mut dispatches);
                assert_eq!(dispatches[1].writes, [scratch.left]);
                assert_eq!(dispatches[2].reads, [scratch.left, residual.address]);
            }
            lab.run(&dispatches).unwrap();
            let bytes = lab.download(output, 4 * tokens * pitch(width)).unwrap();
            let rows = bytemuck::cast_slice::<u8, f32>(&bytes).chunks(pitch(width));
            rows.flat_map(|row| row[..width].to_vec()).collect::<Vec<f32>>()
        });
        for (whole, left) in found[0].iter().zip(&found[1]) {
            assert!((whole - left).abs() <= 1e-5 * (1.0 + whole.abs()), "{left} for {whole}");
        }
        assert!(found[0].iter().any(|value| value.abs() > 1.0));
    }
}
