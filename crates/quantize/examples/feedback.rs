//! What the feedback of errors is worth at each rate, on normal weights and activations with a decaying spectrum:
//!
//! `cargo run --release -p quantize --example feedback [INPUTS [OUTPUTS [THREADS]]]`
//!
//! The activations' variance in the `k`-th of their directions, which are random, is proportional to `1 ÷ k`, as is
//! roughly so in a language model. The proxy error is that of the layer's outputs over their size.

#![allow(clippy::print_stdout, reason = "a table for people")]

use std::time::Instant;

use quantize::{Encoder, Factor, Hessian, Settings, Weight, input_scales, quantize};
use tensor::format::trellis::{Codebook, Rate, hadamard};

fn main() {
    let argument = |index, default| std::env::args().nth(index).map_or(default, |text| text.parse().expect("a number"));
    let (inputs, outputs, threads) = (argument(1, 512), argument(2, 128), argument(3, 1));
    let values = normal(1, inputs * outputs);
    let weight = Weight::new(&values, outputs, inputs).expect("multiples of 128");

    let activations = activations(4 * inputs, inputs);
    let mut hessian = Hessian::new(inputs).expect("a multiple of 128");
    let start = Instant::now();
    hessian.add(&activations, threads).expect("finite activations");
    let products = activations.len() as f64 * inputs as f64 / 2.0;
    println!("Hessian: {:.1} billion products a second", products / start.elapsed().as_secs_f64() / 1e9);
    let suh = input_scales(&[weight], 1, 1).expect("scales");
    let start = Instant::now();
    let factor = Factor::new(&hessian, &suh, 0.025, threads).expect("a positive definite Hessian");
    println!("decomposition: {:.3} s\n", start.elapsed().as_secs_f64());

    println!(
        "| bits | proxy error, plain | with feedback | lower by | MSE, plain | with feedback | scales | tiles/s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for half_bits in [2, 3, 4, 5, 6, 7, 8] {
        let encoder = Encoder::new(Codebook::Mul1, Rate::from_half_bits(half_bits).expect("a rate"));
        let settings = Settings { threads, feedback: false, ..Settings::default() };
        let plain = quantize(&weight, &factor, &encoder, &settings).expect("a weight");
        let settings = Settings { scale: None, feedback: true, ..settings };
        let fed_back = quantize(&weight, &factor, &encoder, &settings).expect("a weight");
        // Once more, without the search.
        let start = Instant::now();
        let settings = Settings { scale: Some(fed_back.scale), ..settings };
        quantize(&weight, &factor, &encoder, &settings).expect("a weight");
        let speed = (values.len() / 256) as f64 / start.elapsed().as_secs_f64();
        let (before, after) = (plain.numbers, fed_back.numbers);
        println!(
            "| {} | {:.5} | {:.5} | {:.1} % | {:.5} | {:.5} | {:.2}, {:.2} | {speed:.0} |",
            encoder.rate(),
            before.proxy_error(),
            after.proxy_error(),
            100.0 * (1.0 - after.proxy_error() / before.proxy_error()),
            before.relative_error(),
            after.relative_error(),
            plain.scale,
            fed_back.scale,
        );
    }
}

/// Activations `[rows, inputs]`: independent numbers of falling deviation, their signs and order mixed and rotated
/// twice, so that no direction stays where it was.
fn activations(rows: usize, inputs: usize) -> Vec<f32> {
    let mut activations = normal(2, rows * inputs);
    // Multiplied by an odd number and taken modulo the size, an index has a new place that is its own.
    let place = |index: usize| (index * 101 + 7) % inputs;
    for row in activations.chunks_exact_mut(inputs) {
        row.iter_mut().enumerate().for_each(|(k, value)| *value /= ((k + 1) as f32).sqrt());
        for _ in 0..2 {
            let mut mixed = vec![0.0; inputs];
            for (index, value) in row.iter().enumerate() {
                mixed[place(index)] = if tensor::philox::bits(3, index as u64) & 1 == 0 { *value } else { -value };
            }
            hadamard::rotate(&mut mixed);
            row.copy_from_slice(&mixed);
        }
    }
    activations
}

/// Independent numbers with a unit normal distribution.
fn normal(seed: u64, count: usize) -> Vec<f32> {
    let uniform = |n| (tensor::philox::bits(seed, n) as f64 + 1.0) / 2f64.powi(64);
    let value = |n| (-2.0 * uniform(2 * n).ln()).sqrt() * (std::f64::consts::TAU * uniform(2 * n + 1)).cos();
    (0..count as u64).map(|n| value(n) as f32).collect()
}
