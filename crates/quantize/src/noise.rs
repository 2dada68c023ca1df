//! Errors as rounding makes them, without rounding.

use half::f16;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::format::trellis::{Rate, SIDE};
use tensor::philox;

use crate::error::QuantizeError;
use crate::factor::Factor;
use crate::ldlq::multiply_upper;
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

/// A weight with errors as rounding at some distortion makes them: random ones of the size and the correlations that
/// feedback leaves. Takes a hundredth of the time of rounding.
#[derive(Clone, Debug)]
pub struct Noisy<'a> {
    weight: Weight<'a>,
    factor: &'a Factor,
    svh: Vec<f16>,
    seed: u64,
}

impl<'a> Noisy<'a> {
    /// Of a weight and the decomposed Hessian of its inputs.
    ///
    /// # Errors
    /// Weights whose scales are beyond binary16.
    ///
    /// # Panics
    /// If the weight has other inputs than the factor.
    pub fn new(weight: Weight<'a>, factor: &'a Factor, distortion: f64, seed: u64) -> Result<Noisy<'a>, QuantizeError> {
        assert_eq!(weight.inputs(), factor.inputs(), "inputs of the weight and of the factor");
        let svh = output_scales(&weight, distortion.sqrt().recip() as f32, seed)?;
        Ok(Noisy { weight, factor, svh, seed })
    }

    /// The outputs from `128 · block` with their errors, `[128, inputs]`.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn block(&self, block: usize) -> Vec<f32> {
        let mut sums = self.weight.block(block).into_owned();
        let noise = block_noise(self.factor, &self.svh[block * BLOCK..][..BLOCK], self.seed, block);
        for (output, row) in sums.chunks_exact_mut(self.factor.inputs()).enumerate() {
            row.iter_mut().enumerate().for_each(|(input, value)| *value += noise[input * BLOCK + output]);
        }
        sums
    }
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
pub(crate) fn normal(seed: u64, index: u64) -> f32 {
    let bits = philox::bits(seed, index);
    let sum: u32 = (0..4).map(|part| (bits >> (16 * part)) as u32 & 0xffff).sum();
    (sum as f32 / 65_536.0 - 2.0 + 2.0 / 65_536.0) * 3f32.sqrt()
}
