//! How near the trellis comes to unit normal weights, and how fast, on one thread:
//!
//! `cargo run --release -p quantize --example distortion [TILES [CODEBOOK [BITS [SCALE]]]]`
//!
//! The scale is the deviation of the codebook over that of the weights; without one, each rate has its best of a coarse
//! search. The limit is the distortion below which no code of that rate can come, 4^(−bits).

#![allow(clippy::print_stdout, reason = "a table for people")]

use std::time::Instant;

use quantize::{Encoder, Level, Scratch};
use tensor::format::trellis::{Codebook, LEN, Rate};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tiles = arguments.first().map_or(256, |tiles| tiles.parse().expect("a number of tiles"));
    let codebooks = Codebook::ALL.into_iter().filter(|c| arguments.get(1).is_none_or(|name| c.name() == name));
    println!("{} normal weights, {}", tiles * LEN as u64, Level::detect());
    println!("| codebook | bits | scale | MSE | standard error | limit | dB above it | tiles/s | weights/s |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for codebook in codebooks {
        for rate in Rate::ALL.into_iter().filter(|r| arguments.get(2).is_none_or(|bits| *bits == r.to_string())) {
            let encoder = Encoder::new(codebook, rate);
            let mut scratch = encoder.scratch();
            let scale = match arguments.get(3) {
                Some(scale) => scale.parse().expect("a scale"),
                None => best_scale(&encoder, &mut scratch),
            };
            let start = Instant::now();
            let errors: Vec<f64> = (0..tiles).map(|seed| error(&encoder, &mut scratch, scale, seed)).collect();
            let speed = tiles as f64 / start.elapsed().as_secs_f64();
            let mean = errors.iter().sum::<f64>() / tiles as f64;
            let variance = errors.iter().map(|error| (error - mean).powi(2)).sum::<f64>() / (tiles as f64 - 1.0);
            let limit = 4f64.powf(-f64::from(rate.bits()));
            println!(
                "| {codebook} | {rate} | {scale:.2} | {mean:.6} | {:.6} | {limit:.6} | {:.2} | {speed:.0} | {:.0} |",
                (variance / tiles as f64).sqrt(),
                10.0 * (mean / limit).log10(),
                speed * LEN as f64,
            );
        }
    }
}

/// The scale of the least error of some tiles that are not measured, in steps of 0.08.
fn best_scale(encoder: &Encoder, scratch: &mut Scratch) -> f32 {
    let error_at = |step: &u32, scratch: &mut Scratch| -> f64 {
        (0..48).map(|seed| error(encoder, scratch, 0.04 * *step as f32, 1 << 40 | seed)).sum()
    };
    let errors: Vec<(u32, f64)> = (22..=46).step_by(2).map(|step| (step, error_at(&step, scratch))).collect();
    let (step, _) = errors.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are scales");
    0.04 * step as f32
}

/// The mean squared error of one tile.
fn error(encoder: &Encoder, scratch: &mut Scratch, scale: f32, seed: u64) -> f64 {
    let factor = encoder.codebook().deviation() / scale;
    let weights = normal(seed).map(|weight| weight * factor);
    let states = encoder.encode(scratch, &weights);
    let table = encoder.codebook().table();
    let squares = weights.iter().zip(states).map(|(weight, state)| {
        let difference = (weight - table[usize::from(state)]) / factor;
        f64::from(difference * difference)
    });
    squares.sum::<f64>() / LEN as f64
}

/// A tile of independent numbers with a unit normal distribution.
fn normal(seed: u64) -> [f32; LEN] {
    std::array::from_fn(|index| {
        let uniform = |n| (tensor::philox::bits(seed, 2 * index as u64 + n) as f64 + 1.0) / 2f64.powi(64);
        ((-2.0 * uniform(0).ln()).sqrt() * (std::f64::consts::TAU * uniform(1)).cos()) as f32
    })
}
