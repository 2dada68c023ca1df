//! The trellis format against its transcription to NumPy, and what has to hold for all tiles and weights.

use half::f16;
use proptest::prelude::*;
use std::path::Path;
use tensor::format::trellis::{
    Codebook, LEN, Linear, LinearError, Parts, Rate, StoredKind, hadamard,
    search::{self, Metric},
    tile,
};

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/trellis").join(format!("{name}.bin"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn golden_words(name: &str) -> Vec<u16> {
    golden(name).as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect()
}

fn rate(half_bits: usize) -> Rate {
    Rate::from_half_bits(half_bits).expect("a rate")
}

/// A tile with its states and its weights in binary16.
struct GoldenTile {
    codebook: Codebook,
    rate: Rate,
    bytes: Vec<u8>,
    states: Vec<u16>,
    decoded: Vec<u16>,
}

fn golden_tiles() -> Vec<GoldenTile> {
    let (packed, states, decoded) =
        (golden("tiles.packed"), golden_words("tiles.states"), golden_words("tiles.decoded"));
    let (mut packed, mut rings) = (packed.as_slice(), states.chunks(LEN).zip(decoded.chunks(LEN)));
    let mut tiles = Vec::new();
    for codebook in Codebook::ALL {
        for rate in Rate::ALL.into_iter().flat_map(|rate| [rate; 2]) {
            let (bytes, rest) = packed.split_at(rate.tile_bytes());
            let (states, decoded) = rings.next().expect("as many rings as tiles");
            let (bytes, states, decoded) = (bytes.to_vec(), states.to_vec(), decoded.to_vec());
            tiles.push(GoldenTile { codebook, rate, bytes, states, decoded });
            packed = rest;
        }
    }
    assert!(packed.is_empty() && rings.next().is_none());
    tiles
}

#[test]
fn codebooks_equal_numpy() {
    for codebook in Codebook::ALL {
        let values = golden_words(&format!("{codebook}.values"));
        for (&state, bits) in golden_words(&format!("{codebook}.states")).iter().zip(values) {
            assert_eq!(codebook.value(state).to_bits(), bits, "{codebook} state {state}");
        }
    }
}

#[test]
fn tiles_equal_numpy() {
    for GoldenTile { codebook, rate, bytes, states, decoded } in golden_tiles() {
        assert_eq!(tile::unpack(rate, &bytes)[..], states[..], "{codebook}, {rate} bits");
        let values = tile::decode(codebook, rate, &bytes);
        assert_eq!(values.map(|value| f16::from_f32(value).to_bits())[..], decoded[..], "{codebook}, {rate} bits");
        let mut packed = vec![0xaa; bytes.len()];
        tile::pack(rate, &states.try_into().expect("256 states"), &mut packed);
        assert_eq!(packed, bytes, "{codebook}, {rate} bits");
    }
}

/// The parts of a layer of the goldens that have whole bytes for scales.
fn whole<'a>(bytes: &'a [Vec<u8>; 4]) -> Parts<'a> {
    Parts {
        trellis_shape: [8, 16, 40],
        trellis: &bytes[0],
        suh: Some(&bytes[1]),
        svh: Some(&bytes[2]),
        bias: Some(&bytes[3]),
        mul1: Some(&[0x2d, 0xd1, 0xdc, 0x83]),
        ..Parts::default()
    }
}

fn whole_bytes() -> [Vec<u8>; 4] {
    ["trellis", "suh", "svh", "bias"].map(|suffix| golden(&format!("whole.{suffix}")))
}

/// Compares some rows of a weight with the goldens.
fn compare_weight(name: &str, linear: &Linear<'_>) {
    let expected: Vec<f32> =
        golden(&format!("{name}.weight")).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let (weight, inputs) = (linear.dequantize(), linear.inputs());
    let largest = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
    // Two rotations are 14 additions and 2 products in a row, each with half a unit of the largest sum so far, which is
    // at most √128 times the largest result.
    let bound = 16.0 * largest * 128f32.sqrt() * f32::EPSILON;
    for (row, expected) in [0, 1, 37, 64, 127].into_iter().zip(expected.chunks(inputs)) {
        for (column, (found, expected)) in weight[row * inputs..].iter().zip(expected).enumerate() {
            assert!((found - expected).abs() <= bound, "{name} {row}, {column}: {found} instead of {expected}");
        }
    }
}

#[test]
fn linear_layers_equal_numpy() {
    let bytes = whole_bytes();
    let linear = Linear::from_parts(whole(&bytes)).expect("a layer");
    assert_eq!((linear.inputs(), linear.outputs()), (128, 256));
    assert_eq!((linear.rate(), linear.codebook()), (rate(5), Codebook::Mul1));
    compare_weight("whole", &linear);

    let (trellis, su, sv) = (golden("legacy.trellis"), golden("legacy.su"), golden("legacy.sv"));
    let parts = Parts { trellis_shape: [16, 8, 48], trellis: &trellis, ..Parts::default() };
    let linear = Linear::from_parts(Parts { su: Some(&su), sv: Some(&sv), ..parts }).expect("a layer");
    assert_eq!((linear.rate(), linear.codebook()), (rate(6), Codebook::ThreeInst));
    compare_weight("legacy", &linear);
}

#[test]
fn what_is_written_is_what_was_read() {
    let bytes = whole_bytes();
    let linear = Linear::from_parts(whole(&bytes)).expect("a layer");
    let tensors = linear.tensors();
    let found: Vec<_> = tensors.iter().map(|tensor| (tensor.suffix, tensor.kind, tensor.shape.as_slice())).collect();
    let expected: [(_, _, &[usize]); 5] = [
        ("suh", StoredKind::F16, &[128]),
        ("svh", StoredKind::F16, &[256]),
        ("trellis", StoredKind::I16, &[8, 16, 40]),
        ("bias", StoredKind::F16, &[256]),
        ("mul1", StoredKind::I32, &[]),
    ];
    assert_eq!(found, expected);
    for (tensor, bytes) in tensors.iter().zip([&bytes[1], &bytes[2], &bytes[0], &bytes[3]]) {
        assert_eq!(&tensor.bytes[..], bytes, "{}", tensor.suffix);
    }
    assert_eq!(tensors[4].bytes[..], 0x83dc_d12d_u32.to_le_bytes());
}

#[test]
fn a_layer_is_written_tile_by_tile() {
    let bytes = whole_bytes();
    let read = Linear::from_parts(whole(&bytes)).expect("a layer");
    let mut written =
        Linear::new(read.rate(), read.codebook(), read.suh().to_vec(), read.svh().to_vec()).expect("a layer");
    for row in 0..8 {
        for column in 0..16 {
            written.tile_mut(row, column).copy_from_slice(read.tile(row, column));
        }
    }
    let written = written.with_bias(read.bias().expect("a bias").to_vec()).expect("a bias that fits");
    assert_eq!(written, read);
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let bytes = whole_bytes();
    let parts = whole(&bytes);
    let error = |parts| Linear::from_parts(parts).expect_err("an error");
    assert_eq!(error(Parts { trellis_shape: [8, 16, 41], ..parts }), LinearError::Rate(41));
    assert_eq!(error(Parts { trellis_shape: [7, 16, 40], ..parts }), LinearError::Sizes(112, 256));
    assert_eq!(error(Parts { trellis_shape: [0, 16, 40], ..parts }), LinearError::Sizes(0, 256));
    let huge = [usize::MAX / 8 - 7, 16, 40];
    assert!(matches!(
        error(Parts { trellis_shape: huge, ..parts }),
        LinearError::Sizes(..) | LinearError::Length { .. }
    ));
    assert_eq!(error(Parts { mcg: Some(&[0; 4]), ..parts }), LinearError::TwoCodebooks);
    let half_rate = LinearError::HalfRate { rate: rate(5), codebook: Codebook::ThreeInst };
    assert_eq!(error(Parts { mul1: None, ..parts }), half_rate);
    assert_eq!(error(Parts { svh: None, ..parts }), LinearError::NoScales("svh", "sv"));
    let length = |name, found, expected| LinearError::Length { name, found, expected };
    assert_eq!(error(Parts { mul1: Some(&[0; 8]), ..parts }), length("mul1", 8, 4));
    let mark = LinearError::Mark { name: "mul1", found: 0x83dc_d12e, expected: 0x83dc_d12d };
    assert_eq!(error(Parts { mul1: Some(&[0x2e, 0xd1, 0xdc, 0x83]), ..parts }), mark);
    assert_eq!(error(Parts { trellis: &bytes[0][1..], ..parts }), length("trellis", 10_239, 10_240));
    assert_eq!(error(Parts { suh: Some(&bytes[2]), ..parts }), length("suh", 512, 256));
    assert_eq!(error(Parts { suh: None, su: Some(&[0; 15]), ..parts }), length("su", 15, 16));
    let mut infinite = bytes[1].clone();
    infinite[2 * 9..2 * 9 + 2].copy_from_slice(&[0x00, 0x7c]);
    let found = error(Parts { suh: Some(&infinite), ..parts });
    assert_eq!(found, LinearError::NotFinite { name: "suh", index: 9, value: f16::INFINITY });
}

#[test]
fn a_product_with_rotated_activations_equals_that_with_the_weight() {
    let bytes = whole_bytes();
    let linear = Linear::from_parts(whole(&bytes)).expect("a layer");
    let input: Vec<f32> = (0..128).map(|index| ((index * 53 % 97) as f32 - 48.0) / 30.0).collect();
    let suh: Vec<f32> = linear.suh().iter().map(|scale| scale.to_f32()).collect();
    let svh: Vec<f32> = linear.svh().iter().map(|scale| scale.to_f32()).collect();
    let mut rotated = input.clone();
    hadamard::scale_and_rotate(&mut rotated, &suh);
    let mut output = vec![0.0; 256];
    for row in 0..8 {
        for column in 0..16 {
            let values = tile::decode(linear.codebook(), linear.rate(), linear.tile(row, column));
            for (index, value) in values.into_iter().enumerate() {
                output[column * 16 + index % 16] += rotated[row * 16 + index / 16] * value;
            }
        }
    }
    hadamard::rotate_and_scale(&mut output, &svh);
    for (row, (weights, found)) in linear.dequantize().chunks(128).zip(output).enumerate() {
        let products = weights.iter().zip(&input).map(|(weight, input)| f64::from(weight * input));
        let (sum, magnitude) = products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()));
        // 128 products, four rotations of 7 additions, and cancellation by at most √128 in each of two rotations.
        let bound = 160.0 * 128.0 * magnitude.max(0.01) * f64::from(f32::EPSILON);
        assert!((f64::from(found) - sum).abs() <= bound, "output {row}: {found} instead of {sum}");
    }
}

/// Independent numbers with a normal distribution.
fn normal(seed: u64, count: usize) -> Vec<f32> {
    (0..count as u64)
        .map(|index| {
            let uniform = |n| (tensor::philox::bits(seed, 2 * index + n) as f64 + 1.0) / 2f64.powi(64);
            ((-2.0 * uniform(0).ln()).sqrt() * (std::f64::consts::TAU * uniform(1)).cos()) as f32
        })
        .collect()
}

#[test]
fn the_search_finds_a_ring_that_is_nearer_than_scalar_rounding() {
    // The best scalar quantizer of 3 bits leaves 0.03455 of a unit normal's energy (Max 1960), the theoretical limit is
    // 0.015625 at 3 bits and 0.03125 at 2.5. One tile has a standard error of about 9 %.
    for (half_bits, low, high) in [(6, 0.012, 0.024), (5, 0.024, 0.047)] {
        let weights: [f32; LEN] = normal(3, LEN).try_into().expect("256 weights");
        let states = search::encode(Codebook::Mul1, rate(half_bits), &weights);
        let mut bytes = vec![0; rate(half_bits).tile_bytes()];
        tile::pack(rate(half_bits), &states, &mut bytes);
        assert_eq!(tile::unpack(rate(half_bits), &bytes), states);
        let table = Codebook::Mul1.table();
        let squares = weights.iter().zip(states).map(|(weight, state)| (weight - table[usize::from(state)]).powi(2));
        let error = squares.sum::<f32>() / LEN as f32;
        assert!((low..high).contains(&error), "{half_bits} half bits: {error}");
    }
}

#[test]
fn costs_are_squares_in_fixed_point() {
    let metric = |half_bits| Metric::new(Codebook::Mul1, rate(half_bits));
    assert_eq!(metric(4).cost(8192, 0), 1024);
    assert_eq!(metric(4).cost(-8192, 24_000), 15_813);
    assert_eq!(metric(4).cost(-32_000, 32_000), 16_384);
    assert_eq!(metric(12).cost(1024, 0), 256);
    assert_eq!(metric(16).cost(0, 8192), 16_384);
    assert_eq!(metric(4).target(f32::NAN), 0);
    let largest = Codebook::Mul1.table().iter().fold(0f32, |max, &value| max.max(value));
    assert_eq!(metric(4).target(f32::INFINITY), metric(4).target(largest));
}

proptest! {
    #[test]
    fn any_bits_are_a_ring(seed in any::<u64>(), index in 0usize..11) {
        let rate = Rate::ALL[index];
        let bytes: Vec<u8> = (0..rate.tile_bytes() as u64).map(|at| tensor::philox::bits(seed, at) as u8).collect();
        let mut states = tile::unpack(rate, &bytes);
        let mut packed = vec![0; bytes.len()];
        tile::pack(rate, &states, &mut packed);
        prop_assert_eq!(&packed, &bytes);
        // Closing a ring changes nothing, and makes a ring of anything.
        let ring = states;
        search::close(rate, &mut states);
        prop_assert_eq!(states, ring);
        let mut anything: [u16; LEN] = std::array::from_fn(|at| tensor::philox::bits(seed, at as u64) as u16);
        search::close(rate, &mut anything);
        tile::pack(rate, &anything, &mut packed);
        prop_assert_eq!(tile::unpack(rate, &packed), anything);
    }

    #[test]
    fn rotations_keep_lengths_and_angles(seed in any::<u64>(), blocks in 1usize..4) {
        let (a, b) = (normal(seed, 128 * blocks), normal(seed.wrapping_add(1), 128 * blocks));
        let (mut x, mut y) = (a.clone(), b.clone());
        hadamard::rotate(&mut x);
        hadamard::rotate(&mut y);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        // Seven additions and a product for each element, and elements of a size of at most √128 times the largest.
        let bound = |a: &[f32], b: &[f32]| 8.0 * f64::from(f32::EPSILON) * (dot(a, a) * dot(b, b)).sqrt() * 4.0;
        prop_assert!((dot(&x, &y) - dot(&a, &b)).abs() <= bound(&a, &b));
        prop_assert!((dot(&x, &x) - dot(&a, &a)).abs() <= bound(&a, &a));
        hadamard::rotate(&mut x);
        let difference: Vec<f32> = x.iter().zip(&a).map(|(x, a)| x - a).collect();
        prop_assert!(dot(&difference, &difference).sqrt() <= 16.0 * f64::from(f32::EPSILON) * dot(&a, &a).sqrt());
    }
}
