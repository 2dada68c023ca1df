//! The Vulkan backend's search for trellis tiles beside the processor's: the same bits at all rates that it supports
//! and in all codebooks.

use std::sync::Mutex;

use backend_vulkan::{TrellisEncoder, VulkanBackend};
use conformance::random::Random;
use half::f16;
use quantize::{Encoder, Factor, Hessian, Settings, TileDevice, TileQueue, Weight, input_scales, quantize};
use tensor::format::trellis::search::{Metric, close};
use tensor::format::trellis::{Codebook, LEN, Rate};

/// An encoder on the best device of this machine, or the one that `LAPIDARY_VULKAN_DEVICE` numbers.
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn device() -> Option<TrellisEncoder> {
    let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
    match VulkanBackend::open(index) {
        Ok(backend) => Some(backend.trellis_encoder().expect("an encoder")),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Tiles as they are, and such whose costs become so high that they saturate.
fn tiles(seed: u64) -> Vec<[f32; LEN]> {
    let mut random = Random::new(seed);
    let normal: [f32; LEN] = std::array::from_fn(|_| random.normal());
    let wide = normal.map(|weight| 3.0 * weight);
    let alternating: [f32; LEN] = std::array::from_fn(|at| if at % 2 == 0 { 9.0 } else { -9.0 });
    vec![normal, wide, alternating, [0.0; LEN]]
}

/// Encodes in both places.
fn check(half_bits: &[usize], codebooks: &[Codebook]) {
    let Some(mut device) = device() else { return };
    for &half_bits in half_bits {
        let rate = Rate::from_half_bits(half_bits).expect("a rate");
        if !device.supports(rate) {
            // Devices with subgroups of 64 lack 8 bits, and those with little shared memory low rates.
            assert!(half_bits < 6 || half_bits == 16, "{rate} bits on {}", device.device().features.name);
            continue;
        }
        for &codebook in codebooks {
            let (encoder, metric) = (Encoder::new(codebook, rate), Metric::new(codebook, rate));
            let (tiles, mut scratch) = (tiles(half_bits as u64), encoder.scratch());
            let targets: Vec<_> = tiles.iter().map(|tile| tile.map(|weight| metric.target(weight))).collect();
            let mut found = device.encode(codebook, rate, &targets).expect("a device that works");
            found.iter_mut().for_each(|states| close(rate, states));
            assert_eq!(found.len(), tiles.len());
            for (index, (tile, found)) in tiles.iter().zip(found).enumerate() {
                let expected = encoder.encode(&mut scratch, tile);
                let differ = (0..LEN).filter(|&at| expected[at] != found[at]).count();
                assert_eq!(differ, 0, "states of tile {index} at {rate} bits in {codebook}");
            }
        }
    }
}

#[test]
fn two_bits() {
    check(&[4], &Codebook::ALL);
}

#[test]
fn two_and_a_half_bits() {
    check(&[5], &Codebook::ALL);
}

#[test]
fn three_bits() {
    check(&[6], &Codebook::ALL);
}

#[test]
fn three_and_a_half_bits() {
    check(&[7], &[Codebook::Mul1, Codebook::Mcg]);
}

#[test]
fn four_bits() {
    check(&[8], &[Codebook::Mul1, Codebook::ThreeInst]);
}

#[test]
fn more_bits() {
    check(&[10, 12], &[Codebook::Mul1]);
}

#[test]
fn many_bits() {
    check(&[14, 16], &[Codebook::Mcg]);
}

#[test]
fn low_rates_are_left_to_the_processor() {
    let Some(device) = device() else { return };
    let supported = Rate::ALL.into_iter().filter(|&rate| device.supports(rate)).map(Rate::half_bits);
    assert!(supported.clone().all(|half_bits| half_bits >= 4) && supported.count() >= 6);
}

/// The device behind a queue.
struct Device(Mutex<TrellisEncoder>);

impl TileDevice for Device {
    fn supports(&self, rate: Rate) -> bool {
        self.0.lock().expect("no panics").supports(rate)
    }

    fn tiles(&self) -> usize {
        self.0.lock().expect("no panics").tiles()
    }

    fn search(&self, codebook: Codebook, rate: Rate, targets: &[[i16; LEN]]) -> Result<Vec<[u16; LEN]>, String> {
        self.0.lock().expect("no panics").encode(codebook, rate, targets).map_err(|error| error.to_string())
    }
}

#[test]
fn a_layer_is_the_same_with_the_device_and_without() {
    let Some(device) = device() else { return };
    let rate = Rate::from_half_bits(5).expect("a rate");
    let (inputs, outputs, mut random) = (128, 256, Random::new(3));
    let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| random.normal()).collect() };
    let values = numbers(inputs * outputs);
    let weight = Weight::new(&values, outputs, inputs).expect("multiples of 128");
    let mut hessian = Hessian::new(inputs).expect("a multiple of 128");
    hessian.add(&numbers(inputs * 300), 1).expect("finite numbers");
    let suh: Vec<f16> = input_scales(&[weight], 1, 1).expect("scales");
    let factor = Factor::new(&hessian, &suh, 0.025, 1).expect("a positive definite matrix");
    let settings = Settings { threads: 2, scale: Some(1.1), ..Settings::default() };
    let encoder = Encoder::new(Codebook::Mul1, rate);
    let on_device = encoder.clone().on(&TileQueue::new(Box::new(Device(Mutex::new(device)))));
    let expected = quantize(&weight, &factor, &encoder, &settings).expect("a layer");
    let found = quantize(&weight, &factor, &on_device, &settings).expect("a layer");
    assert!(found == expected);
    assert!(found.numbers.proxy_error() < 0.05, "{:?}", found.numbers);
}
