//! The encoder against its definition, and how near its tiles come.

use half::f16;
use proptest::prelude::*;
use quantize::{Encoder, Level};
use tensor::format::trellis::{Codebook, LEN, Linear, Rate, SIDE, hadamard, search, tile};

/// Independent numbers with a normal distribution of the deviation `deviation`.
fn normal(seed: u64, deviation: f32) -> [f32; LEN] {
    std::array::from_fn(|index| {
        let uniform = |n| (tensor::philox::bits(seed, 2 * index as u64 + n) as f64 + 1.0) / 2f64.powi(64);
        let value = (-2.0 * uniform(0).ln()).sqrt() * (std::f64::consts::TAU * uniform(1)).cos();
        deviation * value as f32
    })
}

fn rate(half_bits: usize) -> Rate {
    Rate::from_half_bits(half_bits).expect("a rate")
}

#[test]
fn every_level_finds_what_the_definition_finds() {
    for (index, rate) in Rate::ALL.into_iter().enumerate() {
        for seed in 0..2 {
            let codebook = Codebook::ALL[(index + seed) % 3];
            // The second time with weights beyond the codebook, whose costs saturate.
            let weights = normal(seed as u64, [0.9, 4.0][seed]);
            let expected = search::encode(codebook, rate, &weights);
            for level in Level::available() {
                let encoder = Encoder::with_level(codebook, rate, level);
                let found = encoder.encode(&mut encoder.scratch(), &weights);
                assert_eq!(found, expected, "{codebook}, {rate} bits, {level}, seed {seed}");
            }
        }
    }
}

/// The mean squared error of tiles of unit normal weights, and its standard error. The codebook's deviation is `scale`
/// times that of the weights.
fn distortion(codebook: Codebook, rate: Rate, scale: f32, tiles: u64) -> (f64, f64) {
    let encoder = Encoder::new(codebook, rate);
    let mut scratch = encoder.scratch();
    let factor = codebook.deviation() / scale;
    let errors: Vec<f64> = (0..tiles)
        .map(|seed| {
            let weights = normal(seed, factor);
            let states = encoder.encode(&mut scratch, &weights);
            let values = states.map(|state| codebook.table()[usize::from(state)]);
            let squares =
                weights.iter().zip(values).map(|(weight, value)| f64::from((weight - value) / factor).powi(2));
            squares.sum::<f64>() / LEN as f64
        })
        .collect();
    let mean = errors.iter().sum::<f64>() / tiles as f64;
    let variance = errors.iter().map(|error| (error - mean).powi(2)).sum::<f64>() / (tiles - 1) as f64;
    (mean, (variance / tiles as f64).sqrt())
}

/// `examples/distortion.rs` measures more tiles; these are as many as a test can wait for.
#[test]
fn distortion_comes_near_to_the_limit() {
    for (half_bits, scale, bar) in [(4, 1.02, 0.0690), (5, 1.06, 0.0355), (6, 1.04, 0.0176), (8, 1.12, 0.0046)] {
        let (error, deviation) = distortion(Codebook::Mul1, rate(half_bits), scale, 24);
        let limit = 4f64.powf(-f64::from(rate(half_bits).bits()));
        assert!(error < bar + 2.0 * deviation, "{} bits: {error} ± {deviation}", rate(half_bits));
        assert!(error > limit - 4.0 * deviation, "{} bits: {error} below the limit {limit}", rate(half_bits));
    }
}

#[test]
fn more_bits_always_help() {
    for codebook in Codebook::ALL {
        // The more bits, the more it costs to have no values for the largest weights.
        let errors = Rate::ALL.map(|rate| distortion(codebook, rate, 1.0 + 0.08 * rate.bits(), 4).0);
        for (pair, rates) in errors.windows(2).zip(Rate::ALL.windows(2)) {
            // A half bit divides the error by 2, a whole one by 4.
            let factor = 4f64.powf(f64::from(rates[1].bits() - rates[0].bits()));
            let found = pair[0] / pair[1];
            assert!(found > 0.7 * factor && found < 1.6 * factor, "{codebook} {}: {errors:?}", rates[1]);
        }
    }
}

#[test]
fn one_large_weight_does_not_spoil_the_others() {
    for half_bits in [4, 8, 12, 16] {
        let encoder = Encoder::new(Codebook::Mul1, rate(half_bits));
        let mut weights = normal(5, 0.8);
        weights[100] = 9.0;
        let states = encoder.encode(&mut encoder.scratch(), &weights);
        let values = states.map(|state| Codebook::Mul1.table()[usize::from(state)]);
        assert!(values[100] > 2.0, "{half_bits} half bits: {}", values[100]);
        let others = (0..LEN).filter(|index| *index != 100);
        let error = others.map(|index| (values[index] - weights[index]).powi(2)).sum::<f32>() / (LEN - 1) as f32;
        // At most a third more than a tile of its own has.
        let limit = 0.64 * 4f32.powf(-rate(half_bits).bits());
        assert!(error < 2.2 * limit, "{half_bits} half bits: {error}, limit {limit}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_weights_become_a_ring(
        seed in any::<u64>(),
        index in 0usize..11,
        deviation in 0f32..100.0,
        nan in any::<bool>(),
    ) {
        let rate = Rate::ALL[index];
        let encoder = Encoder::new(Codebook::Mul1, rate);
        let mut weights = normal(seed, deviation);
        if nan {
            weights[..4].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0]);
        }
        let states = encoder.encode(&mut encoder.scratch(), &weights);
        let mut bytes = vec![0; rate.tile_bytes()];
        tile::pack(rate, &states, &mut bytes);
        prop_assert_eq!(tile::unpack(rate, &bytes), states);
    }
}

/// `H · diag(1 ÷ suh) · W · diag(1 ÷ svh) · H` of a weight `[inputs, outputs]`.
fn rotate(weight: &[f32], suh: &[f16], svh: &[f16]) -> Vec<f32> {
    let outputs = svh.len();
    let mut rotated = weight.to_vec();
    for (row, suh) in rotated.chunks_exact_mut(outputs).zip(suh) {
        for (value, svh) in row.iter_mut().zip(svh) {
            *value /= suh.to_f32() * svh.to_f32();
        }
        hadamard::rotate(row);
    }
    for rows in rotated.chunks_exact_mut(128 * outputs) {
        hadamard::rotate_rows(rows, outputs);
    }
    rotated
}

#[test]
fn a_weight_with_outliers_comes_back_as_near_as_a_normal_one() {
    let (inputs, outputs, rate) = (256, 128, rate(6));
    let mut weight: Vec<f32> = (0..inputs * outputs / LEN).flat_map(|seed| normal(seed as u64, 0.02)).collect();
    // What makes weights hard: some inputs with large ones, and single large ones.
    for (index, value) in weight.iter_mut().enumerate() {
        *value *= if index / outputs % 50 == 7 { 6.0 } else { 1.0 } * if index % 997 == 0 { 8.0 } else { 1.0 };
    }
    let energy = |values: &[f32]| values.iter().map(|value| f64::from(value * value)).sum::<f64>();
    let deviation = (energy(&weight) / weight.len() as f64).sqrt() as f32;
    let sign = |stream, index| if tensor::philox::bits(stream, index as u64) & 1 == 0 { 1.0 } else { -1.0 };
    let scale = |index| f16::from_f32(sign(1, index) * deviation * 1.04);
    let (suh, svh): (Vec<f16>, Vec<f16>) =
        ((0..inputs).map(scale).collect(), (0..outputs).map(|index| f16::from_f32(sign(2, index))).collect());

    let rotated = rotate(&weight, &suh, &svh);
    let mut linear = Linear::new(rate, Codebook::Mul1, suh, svh).expect("a layer");
    let encoder = Encoder::new(Codebook::Mul1, rate);
    let mut scratch = encoder.scratch();
    for row in 0..inputs / SIDE {
        for column in 0..outputs / SIDE {
            let at = |index: usize| rotated[(row * SIDE + index / SIDE) * outputs + column * SIDE + index % SIDE];
            let weights = tile::to_ring(&std::array::from_fn(at));
            tile::pack(rate, &encoder.encode(&mut scratch, &weights), linear.tile_mut(row, column));
        }
    }
    let decoded = linear.dequantize();
    let difference: Vec<f32> =
        (0..weight.len()).map(|index| weight[index] - decoded[index % outputs * inputs + index / outputs]).collect();
    // 128 tiles have a standard error of about 1 % of a tile's error, which is 0.0173 of its energy.
    let error = energy(&difference) / energy(&weight);
    assert!((0.0156..0.0185).contains(&error), "{error}");
}
