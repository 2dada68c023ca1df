//! The device's tiles beside those of the definition; the crate `conformance` has more of them.

use tensor::format::trellis::search;
use tensor::philox;

use super::*;
use crate::VulkanBackend;
use crate::kernel::trellis_encode::{WORKGROUP, kept_bytes};

/// An encoder on the best device, or `None` and a word about it where there is none.
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn encoder() -> Option<TrellisEncoder> {
    let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
    match VulkanBackend::open(index) {
        Ok(backend) => Some(backend.trellis_encoder_with(WORKGROUP / 2).expect("an encoder")),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Weights between ± `size`.
fn weights(seed: u64, size: f32) -> [f32; LEN] {
    std::array::from_fn(|at| size * ((philox::bits(seed, at as u64) >> 40) as f32 / 8_388_608.0 - 1.0))
}

#[test]
fn tiles_are_those_of_the_definition() {
    let Some(mut encoder) = encoder() else { return };
    let rate = Rate::from_half_bits(5).expect("a rate");
    let metric = Metric::new(Codebook::Mul1, rate);
    // So many that a workgroup takes several, and some have to go in another submission; two of them are compared.
    let tiles: Vec<_> = (0..3).map(|tile| weights(tile, 1.7)).collect();
    let targets: Vec<_> = tiles.iter().map(|tile| tile.map(|weight| metric.target(weight))).collect();
    encoder.groups = 2;
    let mut found = encoder.encode(Codebook::Mul1, rate, &targets).expect("tiles");
    found.iter_mut().for_each(|states| search::close(rate, states));
    assert_eq!(found.len(), 3);
    for tile in [0, 2] {
        assert!(found[tile] == search::encode(Codebook::Mul1, rate, &tiles[tile]), "tile {tile}");
    }
}

#[test]
fn a_workgroup_has_room_for_the_costs_of_every_rate() {
    for rate in Rate::ALL.into_iter().filter(|rate| rate.half_bits() >= 4) {
        let bytes = kept_bytes(&Metric::new(Codebook::Mul1, rate)) as u64;
        assert!(bytes <= KEPT_BYTES_MAX, "{rate} bits: {bytes}");
    }
}

#[test]
fn submissions_become_as_large_as_the_device_is_fast() {
    let Some(mut encoder) = encoder() else { return };
    let rate = Rate::from_half_bits(4).expect("a rate");
    let first = encoder.tiles_at_once(rate);
    encoder.learn(rate, SUBMISSION / 100.5);
    assert!(first < 100 && encoder.tiles_at_once(rate) == 100);
    // A few tiles take longer, each, than many.
    encoder.learn(rate, SUBMISSION);
    assert_eq!(encoder.tiles_at_once(rate), 100);
    encoder.learn(rate, 1e-9);
    assert_eq!(encoder.tiles_at_once(rate), TILES_MAX);
}
