//! Sums of activations' products and the decomposition of Hessians on a GPU, beside the processor's.

use std::sync::Arc;

use backend_vulkan::{HessianSums, VulkanBackend};
use conformance::random::Random;
use half::f16;
use quantize::{Factor, Hessian};
use tensor::{
    Backend, Batch, DType, LoadOptions, Op, Precision, ProgramBuilder, Rows, Scalar, Segment, WeightBytes, WeightError,
    WeightFormat, WeightSource,
};

/// The best device of this machine, or the one that `LAPIDARY_VULKAN_DEVICE` numbers.
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn device() -> Option<VulkanBackend> {
    let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
    VulkanBackend::open(index).inspect_err(|error| eprintln!("skipped: {error}")).ok()
}

/// One table of f32.
struct Table(Vec<f32>);

impl WeightSource for Table {
    fn open(&self, _: &str, _: WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError> {
        Ok(Arc::new(self.0.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()))
    }
}

/// Correlated activations `[rows, width]`, of which some are 0.
fn activations(rows: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut all = Vec::with_capacity(rows * width);
    for _ in 0..rows {
        let common = random.normal();
        all.extend((0..width).map(|i| if i % 50 == 49 { 0.0 } else { random.normal() + common * (i % 3) as f32 }));
    }
    all
}

#[test]
fn sums_are_those_of_the_processor() {
    let Some(backend) = device() else { return };
    if !backend.capabilities().grams {
        return;
    }
    // Widths that fill up their last tile, and such that don't even have whole vectors.
    for (width, rows) in [(256, 40), (300, 77), (130, 3)] {
        let values = activations(rows, width, width as u64);
        let mut builder = ProgramBuilder::new();
        let table = builder.weight("table", DType::F32, rows, width);
        let output = builder.scratch("rows", Rows::Tokens, width);
        builder.push(Op::Embed { table, scale: Scalar(1.0), output });
        let program = builder.build().expect("a program");
        let options = LoadOptions {
            tokens_max: rows,
            outputs_max: rows,
            sequences_max: 1,
            context_max: rows,
            cache_dtype: DType::F32,
            precision: Precision::F32,
            threads: None,
        };
        let mut loaded = backend.load(&program, &Table(values.clone()), &options).expect("a loaded program");
        let tokens: Vec<u32> = (0..rows as u32).collect();
        let segments = [Segment { sequence: 0, position: 0, tokens: rows }];
        loaded.run(&Batch { tokens: &tokens, segments: &segments, outputs: &[], cancel: None }).expect("a pass");
        // All rows, then some of them again.
        let again = rows.div_ceil(2);
        loaded.add_gram(output, rows).expect("sums");
        loaded.add_gram(output, again).expect("sums");
        let found = loaded.take_gram(output).expect("sums");

        let side = width.next_multiple_of(128);
        assert_eq!(found.len(), side * side);
        for i in 0..side {
            for j in i / 128 * 128..side {
                let sum = |rows: usize| -> f64 {
                    let at = |row: usize, i: usize| f64::from(values[row * width + i]);
                    (0..rows).map(|row| at(row, i) * at(row, j)).sum()
                };
                let expected = if i < width && j < width { sum(rows) + sum(again) } else { 0.0 };
                let difference = (f64::from(found[i * side + j]) - expected).abs();
                assert!(difference <= 1e-4 * rows as f64, "{width}: {i}, {j} is off by {difference}");
            }
        }
        // They begin anew.
        loaded.add_gram(output, again).expect("sums");
        let anew = loaded.take_gram(output).expect("sums");
        let expected: f32 = (0..again).map(|row| values[row * width] * values[row * width]).sum();
        assert!((anew[0] - expected).abs() <= 1e-3 * expected.abs(), "{} for {expected}", anew[0]);
    }
}

/// A Hessian of few activations, signs and scales.
fn hessian(inputs: usize, rows: usize) -> (Hessian, Vec<f16>) {
    let mut hessian = Hessian::new(inputs).expect("a size");
    hessian.add(&activations(rows, inputs, 9), 2).expect("finite activations");
    let mut random = Random::new(10);
    let scales = (0..inputs).map(|_| f16::from_f32(random.normal().signum() * (1.0 + 0.3 * random.normal().abs())));
    (hessian, scales.collect())
}

#[test]
fn decompositions_are_those_of_the_processor() {
    let Some(backend) = device() else { return };
    if !backend.decomposes() {
        return;
    }
    for (inputs, rows, damping) in [(128, 300, 0.025), (384, 100, 0.01), (640, 20, 0.025)] {
        let (hessian, scales) = hessian(inputs, rows);
        let expected = Factor::new(&hessian, &scales, damping, 2).expect("a positive definite matrix");
        let trace: f64 = (0..inputs).map(|i| f64::from(hessian.sums()[i * inputs + i])).sum();
        let added = f64::from(damping) * trace / rows as f64 / inputs as f64;
        let sums = HessianSums { sums: hessian.sums(), count: rows, scales: &scales, damping: added as f32 };
        let found = backend.decompose(&sums).expect("a device that works").expect("a positive definite matrix");
        let off = |expected: &[f32], found: &[f32]| {
            assert_eq!(expected.len(), found.len());
            let pairs = expected.iter().zip(found);
            pairs.map(|(a, b)| (a - b).abs() / a.abs().max(1e-2)).fold(0.0, f32::max)
        };
        let upper = off(expected.upper(), &found.upper);
        let roots: Vec<f32> = (0..inputs / 16).flat_map(|band| *expected.root(band)).collect();
        let roots = off(&roots, &found.roots);
        assert!(upper < 1e-4 && roots < 1e-5, "{inputs} inputs: {upper}, {roots}");
    }
}

#[test]
fn what_is_not_positive_definite_is_told() {
    let Some(backend) = device() else { return };
    if !backend.decomposes() {
        return;
    }
    let (inputs, scales) = (256, vec![f16::ONE; 256]);
    let mut sums = vec![0.0; inputs * inputs];
    // Every block is a multiple of 1, and so are the rotated ones.
    (0..inputs).for_each(|i| sums[i * inputs + i] = if i < 128 { 1.0 } else { -2.0 });
    let decompose = |damping| {
        let hessian = HessianSums { sums: &sums, count: 1, scales: &scales, damping };
        backend.decompose(&hessian).expect("a device that works")
    };
    let failure = decompose(0.5).expect_err("no positive definite matrix");
    assert_eq!((failure.row, (failure.pivot * 1e6).round()), (128, -1.5e6));
    assert!(decompose(2.5).is_ok());
}
