//! Errors as rounding makes them, without rounding.

use half::f16;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::format::trellis::{Rate, SIDE};
use tensor::philox;

use crate::error::QuantizeError;
use crate::factor::Factor;
use crate::ldlq::multiply_upper;
use crate::parallel;
use crate::rotation::{Weight, output_scales, rotate_back};

/// The mean squared error of unit normal weights at each rate of [`Rate::ALL`], in the codebook MUL1.
const DISTORTION: [f64; 11] = [
    0.271_605, 0.136_921, 0.068_296, 0.034_508, 0.017_401, 0.008_825, 0.004_454, 0.001_163, 0.000_308, 0.000_081,
    0.000_021,
];

/// The mean squared error of unit normal weights that are rounded to the trellis.
pub fn distortion(rate: Rate) -> f64 {
    let index = Rate::ALL.iter().position(|&other| other == rate).expect("one of all rates");
    DISTORTION[index]
}

/// What rounding at that distortion would add to a weight, `[outputs, inputs]`: random errors of the size and the
/// correlations that feedback leaves. Takes a hundredth of the time of rounding.
///
/// # Errors
/// Weights whose scales are beyond binary16.
///
/// # Panics
/// If the weight has other inputs than the factor.
pub fn noise(
    weight: &Weight<'_>,
    factor: &Factor,
    distortion: f64,
    seed: u64,
    threads: usize,
) -> Result<Vec<f32>, QuantizeError> {
    let inputs = factor.inputs();
    assert_eq!(weight.inputs(), inputs, "inputs of the weight and of the factor");
    let svh = output_scales(weight, distortion.sqrt().recip() as f32, seed)?;
    let mut errors = vec![0.0; weight.values().len()];
    let blocks = errors.chunks_exact_mut(BLOCK * inputs).enumerate().collect();
    parallel::map(blocks, threads, |(block, rows): (usize, &mut [f32])| {
        let noise = block_noise(factor, &svh[block * BLOCK..][..BLOCK], seed, block);
        for (output, row) in rows.chunks_exact_mut(inputs).enumerate() {
            row.iter_mut().enumerate().for_each(|(input, value)| *value = noise[input * BLOCK + output]);
        }
    });
    Ok(errors)
}

/// `U⁻¹ N` for independent unit normal `N`, rotated back, `[inputs, 128]`.
fn block_noise(factor: &Factor, svh: &[f16], seed: u64, block: usize) -> Vec<f32> {
    let inputs = factor.inputs();
    let mut errors = vec![0.0; inputs * BLOCK];
    let first_number = (block * inputs * BLOCK) as u64;
    for first in (0..inputs).step_by(BLOCK).rev() {
        let mut group = vec![0.0; BLOCK * BLOCK];
        multiply_upper(factor, first, first + BLOCK..inputs, &errors, BLOCK, &mut group);
        for row in (first..first + BLOCK).step_by(SIDE).rev() {
            let fed_back = &mut group[(row - first) * BLOCK..][..SIDE * BLOCK];
            multiply_upper(factor, row, row + SIDE..first + BLOCK, &errors, BLOCK, fed_back);
            for (index, fed_back) in fed_back.iter().enumerate() {
                let at = row * BLOCK + index;
                errors[at] = normal(seed, first_number + at as u64) - fed_back;
            }
        }
    }
    rotate_back(&mut errors, factor.suh(), svh);
    errors
}

/// A number of about a unit normal distribution: the sum of four of a uniform one, the same on every processor.
fn normal(seed: u64, index: u64) -> f32 {
    let bits = philox::bits(seed, index);
    let sum: u32 = (0..4).map(|part| (bits >> (16 * part)) as u32 & 0xffff).sum();
    (sum as f32 / 65_536.0 - 2.0 + 2.0 / 65_536.0) * 3f32.sqrt()
}
