//! Whole weights: Hessians, their decomposition, and what feedback is worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use quantize::{
    Encoder, Factor, Hessian, Job, QuantizeError, Quantized, Settings, TileDevice, TileQueue, Weight, WeightRows,
    input_scales, quantize,
};
use tensor::format::trellis::{Codebook, LEN, LinearError, Rate, SIDE, hadamard};

/// Independent numbers with a normal distribution of deviation 1.
fn normal(seed: u64, count: usize) -> Vec<f32> {
    let uniform = |n| (tensor::philox::bits(seed, n) as f64 + 1.0) / 2f64.powi(64);
    let value = |n| (-2.0 * uniform(2 * n).ln()).sqrt() * (std::f64::consts::TAU * uniform(2 * n + 1)).cos();
    (0..count as u64).map(|n| value(n) as f32).collect()
}

/// Activations `[rows, inputs]` that are a few directions for the most part, and a little of all others.
fn activations(rows: usize, inputs: usize, directions: usize) -> Vec<f32> {
    let (basis, mut all) = (normal(100, directions * inputs), normal(101, rows * inputs));
    for (row, factors) in all.chunks_exact_mut(inputs).zip(normal(102, rows * directions).chunks_exact(directions)) {
        row.iter_mut().for_each(|value| *value *= 0.5);
        for (factor, direction) in factors.iter().zip(basis.chunks_exact(inputs)) {
            for (value, part) in row.iter_mut().zip(direction) {
                *value += factor * part / 4.0;
            }
        }
    }
    all
}

fn hessian(inputs: usize) -> Hessian {
    let mut hessian = Hessian::new(inputs).expect("a size");
    hessian.add(&activations(600, inputs, inputs / 8), 2).expect("finite activations");
    hessian
}

fn encoder(half_bits: usize) -> Encoder {
    Encoder::new(Codebook::Mul1, Rate::from_half_bits(half_bits).expect("a rate"))
}

fn run(weight: &Weight<'_>, hessian: &Hessian, half_bits: usize, settings: &Settings) -> Quantized {
    let suh = input_scales(&[*weight], 1, 1).expect("scales");
    let factor = Factor::new(hessian, &suh, 0.025, settings.threads).expect("a positive definite Hessian");
    quantize(weight, &factor, &encoder(half_bits), settings).expect("a weight")
}

#[test]
fn a_hessian_is_the_sum_of_products() {
    let (inputs, rows) = (256, 300);
    let rounded: Vec<bf16> = activations(rows, inputs, 8).into_iter().map(bf16::from_f32).collect();
    let values: Vec<f32> = rounded.iter().map(|value| value.to_f32()).collect();
    let mut once = Hessian::new(inputs).expect("a size");
    once.add(&values, 1).expect("finite activations");
    let mut halves = Hessian::new(inputs).expect("a size");
    halves.add_bf16(&rounded, 3).expect("finite activations");
    let mut merged = once.clone();
    merged.merge(&once).expect("the same size");
    assert_eq!((once.count(), merged.count()), (300, 600));
    assert!(halves == once);
    assert!(Hessian::from_sums(inputs, 600, merged.sums().to_vec()).as_ref() == Ok(&merged));

    let found = once.damped(0.0).expect("activations");
    for (i, j) in [(0, 0), (3, 200), (200, 3), (255, 255), (130, 131)] {
        let terms = values.chunks_exact(inputs).map(|row| f64::from(row[i]) * f64::from(row[j]));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        // 256 roundings of sums, and one of each product.
        let bound = size * 300.0 * f64::from(f32::EPSILON) / rows as f64;
        assert!((found[i * inputs + j] - sum / rows as f64).abs() <= bound, "{i}, {j}");
    }
    let damped = once.damped(0.5).expect("activations");
    let mean = (0..inputs).map(|i| found[i * (inputs + 1)]).sum::<f64>() / inputs as f64;
    assert!((damped[0] - found[0] - 0.5 * mean).abs() < 1e-9 * mean && damped[1] == found[1]);
    assert!(once.dead_inputs().is_empty());
}

#[test]
fn the_decomposition_gives_the_rotated_hessian() {
    let inputs = 256;
    let hessian = hessian(inputs);
    let suh: Vec<f16> = (0..inputs).map(|i| f16::from_f32([0.5, -1.0, 2.0][i % 3])).collect();
    let factor = Factor::new(&hessian, &suh, 0.025, 2).expect("a positive definite Hessian");
    let one = Factor::new(&hessian, &suh, 0.025, 1).expect("a positive definite Hessian");
    assert!(factor.upper() == one.upper() && factor.suh() == suh);

    let damped = hessian.damped(0.025).expect("activations");
    let upper = factor.upper();
    // R U, whose product with its transpose is the Hessian.
    let root = |row: usize, column: usize| -> f64 {
        let parts = (row % SIDE..SIDE).map(|k| {
            let triangle = factor.root(row / SIDE)[row % SIDE * SIDE + k];
            f64::from(triangle) * f64::from(upper[(row / SIDE * SIDE + k) * inputs + column])
        });
        parts.sum()
    };
    let root: Vec<f64> = (0..inputs * inputs).map(|index| root(index / inputs, index % inputs)).collect();
    let scales: Vec<f32> = suh.iter().map(|scale| scale.to_f32()).collect();
    for column in [0, 15, 16, 127, 128, 255] {
        // H e_c → suh H e_c → Hessian → H suh
        let mut expected = vec![0.0; inputs];
        expected[column] = 1.0;
        hadamard::rotate_and_scale(&mut expected, &scales);
        let product = damped
            .chunks_exact(inputs)
            .map(|row| row.iter().zip(&expected).map(|(&a, &b)| a * f64::from(b)).sum::<f64>() as f32);
        let mut expected: Vec<f32> = product.collect();
        hadamard::scale_and_rotate(&mut expected, &scales);
        let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for row in 0..inputs {
            let found: f64 = (0..inputs).map(|k| root[k * inputs + row] * root[k * inputs + column]).sum();
            let difference = (found - f64::from(expected[row])).abs();
            assert!(difference < 1e-5 * f64::from(largest), "{row}, {column}: {found}, expected {}", expected[row]);
        }
    }
    for row in 0..inputs {
        for column in 0..(row / SIDE + 1) * SIDE {
            assert_eq!(upper[row * inputs + column], f32::from(u8::from(row == column)), "{row}, {column}");
        }
    }
}

#[test]
fn feedback_lowers_the_error_of_the_layer() {
    let (inputs, outputs) = (128, 128);
    let (values, hessian) = (normal(3, inputs * outputs), hessian(inputs));
    let weight = Weight::new(&values, outputs, inputs).expect("a weight");
    for half_bits in [4, 5, 6] {
        let settings = Settings { threads: 2, scale: Some(1.04), ..Settings::default() };
        let plain = run(&weight, &hessian, half_bits, &Settings { feedback: false, ..settings }).numbers;
        let fed_back = run(&weight, &hessian, half_bits, &settings).numbers;
        let (before, after) = (plain.proxy_error(), fed_back.proxy_error());
        assert!(after < 0.8 * before, "{half_bits} half bits: {before} → {after}");
        // What it costs: the weights themselves are less near.
        assert!(fed_back.relative_error() > plain.relative_error());
    }
}

#[test]
fn numbers_are_those_of_the_weight_that_was_made() {
    let (inputs, outputs) = (256, 128);
    let mut values = normal(4, inputs * outputs);
    for (index, value) in values.iter_mut().enumerate() {
        // Inputs and outputs of many sizes, and an output without weights.
        *value *= [0.01, 0.02, 0.07][index % inputs % 3] * [1.0, 5.0][index / inputs % 2];
        if index / inputs == 9 {
            *value = 0.0;
        }
    }
    let weight = Weight::new(&values, outputs, inputs).expect("a weight");
    let hessian = hessian(inputs);
    let damped = hessian.damped(0.025).expect("activations");
    let energy = |rows: &[f32]| -> f64 {
        let of_row = |row: &[f32]| -> f64 {
            let products = damped.chunks_exact(inputs).map(|h| h.iter().zip(row).map(|(h, &w)| h * f64::from(w)).sum());
            products.zip(row).map(|(product, &w): (f64, _)| product * f64::from(w)).sum()
        };
        rows.chunks_exact(inputs).map(of_row).sum()
    };
    let squares = |values: &[f32]| values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
    for feedback in [false, true] {
        let settings = Settings { threads: 2, scale: Some(1.0), feedback, ..Settings::default() };
        let Quantized { linear, numbers, .. } = run(&weight, &hessian, 4, &settings);
        let decoded = linear.dequantize();
        assert!(decoded[9 * inputs..10 * inputs].iter().all(|&weight| weight == 0.0));
        let errors: Vec<f32> = values.iter().zip(&decoded).map(|(weight, decoded)| weight - decoded).collect();
        for (name, found, expected) in [
            ("error", numbers.error, energy(&errors)),
            ("energy", numbers.energy, energy(&values)),
            ("squared error", numbers.squared_error, squares(&errors)),
            ("squares", numbers.squares, squares(&values)),
        ] {
            // Sums of some hundred terms in single precision.
            assert!((found / expected - 1.0).abs() < 1e-4, "{name}: {found}, expected {expected}");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (inputs, outputs) = (128, 256);
    let values = normal(5, inputs * outputs);
    let weight = Weight::new(&values, outputs, inputs).expect("a weight");
    let hessian = hessian(inputs);
    let settings = Settings { sample_tiles: 2, ..Settings::default() };
    let one = run(&weight, &hessian, 5, &settings);
    assert_eq!(run(&weight, &hessian, 5, &Settings { threads: 2, ..settings }), one);
    // Another seed has other signs.
    assert_ne!(run(&weight, &hessian, 5, &Settings { seed: 1, scale: Some(1.0), ..settings }).linear, one.linear);
}

#[test]
fn inputs_are_scaled_by_all_weights_that_share_them() {
    let (inputs, outputs) = (256, 128);
    // The sizes of inputs differ, and not in the same way; those of the outputs must not matter.
    let weight = |seed, sizes: [f32; 4], factor: f32| -> Vec<f32> {
        let values = normal(seed, inputs * outputs);
        values.iter().enumerate().map(|(index, value)| value * sizes[index % 4] * factor).collect()
    };
    let (one, two) = (weight(8, [1.0, 2.0, 1.0, 1.0], 0.01), weight(9, [1.0, 1.0, 0.0, 3.0], 4.0));
    let [one, two] = [&one, &two].map(|values| Weight::new(values, outputs, inputs).expect("a weight"));
    let scales: Vec<f32> =
        input_scales(&[one, two], 5, 1).expect("scales").iter().map(|scale| scale.to_f32()).collect();
    // The mean squares of each weight's outputs are 7/4 and 11/4.
    let expected = [(4.0 / 7.0, 4.0 / 11.0), (16.0 / 7.0, 4.0 / 11.0), (4.0 / 7.0, 0.0), (4.0 / 7.0, 36.0 / 11.0)];
    for (kind, (one, two)) in expected.into_iter().enumerate() {
        let squares = scales.iter().skip(kind).step_by(4).map(|scale| scale * scale);
        let (found, expected) = (squares.sum::<f32>() / (inputs / 4) as f32, (one + two) / 2.0);
        // 64 inputs of 256 squares each: a standard error of 1.1 %.
        assert!((found / expected - 1.0).abs() < 0.05, "{kind}: {found}, expected {expected}");
    }
    let negative = scales.iter().filter(|&&scale| scale < 0.0).count();
    assert!((80..176).contains(&negative), "{negative} of {inputs}");
}

#[test]
fn scaled_inputs_lower_the_error_where_their_weights_differ_in_size() {
    let size = 128;
    let sizes: Vec<f32> = normal(11, size).iter().map(|value| value.exp()).collect();
    let values: Vec<f32> = normal(12, size * size).iter().zip(sizes.iter().cycle()).map(|(v, size)| v * size).collect();
    let weight = Weight::new(&values, size, size).expect("a weight");
    let scales = input_scales(&[weight], 0, 1).expect("scales");
    let signs: Vec<f16> = scales.iter().map(|scale| f16::from_f32(scale.to_f32().signum())).collect();
    let settings = Settings { threads: 2, scale: Some(1.04), ..Settings::default() };
    let [unscaled, scaled] = [signs, scales].map(|suh| {
        let factor = Factor::new(&hessian(size), &suh, 0.025, 1).expect("a factor");
        quantize(&weight, &factor, &encoder(4), &settings).expect("a weight").numbers.proxy_error()
    });
    assert!(scaled < 0.85 * unscaled, "{scaled}, {unscaled} without scales");
}

#[test]
fn blocks_can_be_made_in_any_order() {
    let (inputs, outputs) = (128, 256);
    let values = normal(10, inputs * outputs);
    let weight = Weight::new(&values, outputs, inputs).expect("a weight");
    let factor = Factor::new(&hessian(inputs), &vec![f16::ONE; inputs], 0.025, 1).expect("a factor");
    let (encoder, settings) = (encoder(6), Settings { scale: Some(1.1), threads: 2, ..Settings::default() });
    let job = Job::new(weight, &factor, &encoder, &settings).expect("a weight");
    let last = job.block(1).expect("no device");
    let blocks = [job.block(0).expect("no device"), last];
    assert!(job.finish(&blocks) == quantize(&weight, &factor, &encoder, &settings).expect("a weight"));
}

/// Rows that are made when they are asked for.
struct Elsewhere(Vec<f32>, usize);

impl WeightRows for Elsewhere {
    fn read(&self, first: usize, into: &mut [f32]) {
        into.copy_from_slice(&self.0[first * self.1..][..into.len()]);
    }
}

#[test]
fn a_weight_need_not_be_in_memory() {
    let (inputs, outputs) = (128, 256);
    let values = normal(14, inputs * outputs);
    let here = Weight::new(&values, outputs, inputs).expect("a weight");
    let mut rows = Elsewhere(values.clone(), inputs);
    let elsewhere = Weight::from_rows(&rows, outputs, inputs).expect("a weight");
    let suh = input_scales(&[here], 3, 1).expect("scales");
    assert_eq!(input_scales(&[elsewhere], 3, 1).expect("scales"), suh);
    let factor = Factor::new(&hessian(inputs), &suh, 0.025, 1).expect("a factor");
    let (encoder, settings) = (encoder(6), Settings { threads: 2, ..Settings::default() });
    let quantize = |weight| quantize(&weight, &factor, &encoder, &settings).expect("a weight");
    assert!(quantize(here) == quantize(elsewhere));
    rows.0[200 * inputs + 7] = f32::NAN;
    let error = Weight::from_rows(&rows, outputs, inputs).expect_err("not finite").to_string();
    assert!(error.contains("NaN in row 200, column 7"), "{error}");
}

/// The processor as a device, for all rates but one.
struct Processor(Arc<AtomicUsize>);

impl TileDevice for Processor {
    fn supports(&self, rate: Rate) -> bool {
        rate.half_bits() != 8
    }

    fn tiles(&self) -> usize {
        16
    }

    fn search(&self, codebook: Codebook, rate: Rate, targets: &[[i16; LEN]]) -> Result<Vec<[u16; LEN]>, String> {
        self.0.fetch_add(targets.len(), Ordering::Relaxed);
        // From fixed point and back.
        let tiles: Vec<_> = targets.iter().map(|tile| tile.map(|target| f32::from(target) / 8192.0)).collect();
        Encoder::new(codebook, rate).encode_all(&mut None, &tiles).map_err(|error| error.to_string())
    }
}

#[test]
fn a_device_that_finds_tiles_changes_nothing() {
    let (inputs, outputs) = (128, 256);
    let values = normal(11, inputs * outputs);
    let weight = Weight::new(&values, outputs, inputs).expect("a weight");
    let factor = Factor::new(&hessian(inputs), &vec![f16::ONE; inputs], 0.025, 1).expect("a factor");
    let served = Arc::new(AtomicUsize::new(0));
    let queue = TileQueue::new(Box::new(Processor(served.clone())));
    for (half_bits, sample_tiles, threads) in [(5, 8, 3), (8, 8, 1)] {
        let settings = Settings { threads, sample_tiles, ..Settings::default() };
        let expected = quantize(&weight, &factor, &encoder(half_bits), &settings).expect("a weight");
        let before = served.load(Ordering::Relaxed);
        let found = quantize(&weight, &factor, &encoder(half_bits).on(&queue), &settings).expect("a weight");
        assert!(found == expected, "{half_bits} half bits");
        // All tiles and those of the search for the scale, or none.
        assert_eq!(served.load(Ordering::Relaxed) - before > 128, half_bits == 5, "{half_bits} half bits");
    }
}

#[test]
fn without_correlations_feedback_has_nothing_to_say() {
    let size = 128;
    let values = normal(6, size * size);
    let weight = Weight::new(&values, size, size).expect("a weight");
    let identity = (0..size * size).map(|index| f32::from(u8::from(index % (size + 1) == 0))).collect();
    let hessian = Hessian::from_sums(size, 1, identity).expect("a Hessian");
    let factor = Factor::new(&hessian, &vec![f16::NEG_ONE; size], 0.0, 1).expect("a positive definite Hessian");
    let settings = Settings { scale: Some(1.0), ..Settings::default() };
    let fed_back = quantize(&weight, &factor, &encoder(4), &settings).expect("a weight");
    let plain = quantize(&weight, &factor, &encoder(4), &Settings { feedback: false, ..settings }).expect("a weight");
    assert!(fed_back.linear == plain.linear);
    assert!((fed_back.numbers.error / plain.numbers.error - 1.0).abs() < 1e-4);
    assert!((fed_back.numbers.proxy_error() / fed_back.numbers.relative_error() - 1.0).abs() < 1e-4);
}

#[test]
fn the_search_finds_a_good_scale() {
    let size = 128;
    // Not normal: the tails are heavy before the rotation.
    let values: Vec<f32> = normal(7, size * size).iter().map(|value| 0.01 * value.powi(3)).collect();
    let weight = Weight::new(&values, size, size).expect("a weight");
    let hessian = hessian(size);
    let settings = Settings { threads: 2, sample_tiles: 16, ..Settings::default() };
    let found = run(&weight, &hessian, 4, &settings);
    let error = found.numbers.proxy_error();
    for factor in [0.85, 1.2] {
        let scale = Some(found.scale * factor);
        let other = run(&weight, &hessian, 4, &Settings { scale, ..settings }).numbers.proxy_error();
        assert!(error < other, "{error} at {}, {other} at {factor} of it", found.scale);
    }
}

#[test]
fn bad_input_is_an_error() {
    let size = |what, found| QuantizeError::Size { what, found };
    assert_eq!(Hessian::new(100), Err(size("inputs", 100)));
    let mut values = vec![1.0; 128 * 256];
    assert_eq!(Weight::new(&values[..128 * 200], 128, 200).err(), Some(size("inputs", 200)));
    assert_eq!(Weight::new(&values[..0], 0, 128).err(), Some(size("outputs", 0)));
    let short = QuantizeError::Length { what: "a weight", found: 128 * 256, expected: 128 * 128 };
    assert_eq!(Weight::new(&values, 128, 128).err(), Some(short));
    values[3 * 256 + 7] = f32::NAN;
    let text = Weight::new(&values, 128, 256).expect_err("not finite").to_string();
    assert_eq!(text, "the weight has NaN in row 3, column 7, expected finite numbers");

    let mut hessian = Hessian::new(128).expect("a size");
    let ones = vec![f16::ONE; 128];
    assert_eq!(Factor::new(&hessian, &ones, 0.025, 1).err(), Some(QuantizeError::NoActivations(0)));
    let mut row = vec![0.0; 256];
    row[130] = f32::INFINITY;
    let text = hessian.add(&row, 1).expect_err("not finite").to_string();
    assert_eq!(text, "an activation has inf in row 1, column 2, expected finite numbers");
    assert!(hessian.add(&row[..130], 1).is_err());
    assert_eq!(hessian.count(), 0);
    row[130] = 1.0;
    hessian.add(&row, 1).expect("finite activations");
    assert_eq!(hessian.dead_inputs().len(), 127);
    // One direction only, and no damping.
    let singular = Factor::new(&hessian, &ones, 0.0, 1).expect_err("singular");
    assert!(matches!(singular, QuantizeError::NotPositiveDefinite { damping: 0.0, .. }), "{singular}");
    assert!(Factor::new(&hessian, &ones[1..], 0.025, 1).is_err());

    let factor = Factor::new(&hessian, &ones, 0.025, 1).expect("a positive definite Hessian");
    values.fill(1.0);
    let wide = Weight::new(&values, 128, 256).expect("a weight");
    assert!(matches!(
        quantize(&wide, &factor, &encoder(4), &Settings::default()),
        Err(QuantizeError::Length { found: 256, expected: 128, .. })
    ));
    let narrow = Weight::new(&values[..128 * 128], 128, 128).expect("a weight");
    let settings = Settings { scale: Some(1.0), ..Settings::default() };
    let half_rate = Encoder::new(Codebook::Mcg, Rate::from_half_bits(5).expect("a rate"));
    let error = quantize(&narrow, &factor, &half_rate, &settings).expect_err("no half rates");
    assert!(matches!(error, QuantizeError::Linear(LinearError::HalfRate { .. })), "{error}");
    let large = vec![1e6; 128 * 128];
    let large = Weight::new(&large, 128, 128).expect("a weight");
    let error = quantize(&large, &factor, &encoder(4), &settings).expect_err("too large");
    assert!(matches!(error, QuantizeError::Scale { what: "output", index: 0, .. }), "{error}");
}
