//! Activations rounded to 8 bits.

use super::{Quantized, View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

/// Rounds rows of a width that is a multiple of 32.
pub(crate) fn quantize(features: &Features, input: View, output: Quantized, rows: usize) -> Dispatch {
    let kernel = kernel(features, "quantize", vec![output.arrangement.order as u32]);
    let fours = input.width / 4;
    let push = Push::default().address(input.address).address(output.values).address(output.sums).number(fours);
    Dispatch {
        groups: [fours.div_ceil(kernel.workgroup as usize) as u32, rows as u32, 1],
        kernel,
        push,
        reads: vec![input.address],
        writes: vec![output.values],
        bytes: (rows * (4 * input.width + input.width + input.width / 2)) as u64,
        operations: (4 * rows * input.width) as u64,
        label: format!("quantize {rows}×{}", input.width),
        ..Dispatch::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::attention::testing::Random;
    use crate::lab::Lab;

    /// Checks 8-bit values, with `{scale, scale · sum}` for each 16 of them, against what they stand for.
    ///
    /// A quotient is exact to 2.5 units in the last place and a product to 1, each at most `f32::EPSILON` of it. So a
    /// scale errs by 2.5 of these, and a value of up to 127 steps is off its nearest step by half of one and 127 times
    /// what quotient, product and scale err by.
    pub(in crate::kernel) fn check(values: &[f32], quants: &[i8], sums: &[[f32; 2]]) {
        assert!(values.len() == quants.len() && values.len() == sums.len() * 16);
        for (index, &[scale, weighted]) in sums.iter().enumerate() {
            let block = &values[index / 2 * 32..][..32];
            let exact = block.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
            assert!((scale - exact).abs() <= 3.0 * f32::EPSILON * exact, "scale {index} is {scale}, not {exact}");
            let quants = &quants[index * 16..][..16];
            for (&quant, &value) in quants.iter().zip(&values[index * 16..]) {
                let error = (f64::from(value) - f64::from(scale) * f64::from(quant)).abs();
                let most = f64::from(scale) * (0.5 + 127.0 * 6.0 * f64::from(f32::EPSILON));
                assert!(error <= most && quant != -128, "{quant} · {scale} for {value}");
            }
            let sum: i32 = quants.iter().map(|&quant| i32::from(quant)).sum();
            let error = (weighted - scale * sum as f32).abs();
            assert!(error <= f32::EPSILON * weighted.abs(), "{weighted} is not {scale} · {sum}");
        }
    }

    /// What the device makes of a row.
    fn quantized(lab: &mut Lab, values: &[f32]) -> (Vec<i8>, Vec<[f32; 2]>) {
        let width = values.len();
        let input = View { address: lab.upload(bytemuck::cast_slice(values)).unwrap().address, width };
        let quants = lab.upload(&vec![0x5a; width]).unwrap();
        let sums = lab.upload(&vec![0x5a; width / 2]).unwrap();
        let output = Quantized { values: quants.address, sums: sums.address, ..Quantized::default() };
        lab.run(&[quantize(lab.features(), input, output, 1)]).unwrap();
        let (quants, sums) = (lab.download(quants, width).unwrap(), lab.download(sums, width / 2).unwrap());
        in_order(bytemuck::cast_slice(&quants), bytemuck::cast_slice(&sums))
    }

    /// A row with its halves in the order of its elements again, from that of units of two halves.
    pub(in crate::kernel) fn in_order(quants: &[i8], sums: &[[f32; 2]]) -> (Vec<i8>, Vec<[f32; 2]>) {
        let halves = sums.len();
        let places: Vec<usize> = (0..halves).map(|half| half % 2 * (halves / 2) + half / 2).collect();
        let quants = places.iter().flat_map(|&place| &quants[16 * place..][..16]).copied().collect();
        (quants, places.iter().map(|&place| sums[place]).collect())
    }

    #[test]
    fn values_are_rounded_to_the_nearest_step() {
        let Some(mut lab) = Lab::for_tests() else { return };
        let mut values = Random(21).normal(32 * 2000, 1.0);
        for (index, block) in values.chunks_mut(32).enumerate() {
            let size = ((index % 200) as f32 - 90.0).exp2();
            block.iter_mut().for_each(|x| *x *= size);
            // The largest one has to fit whatever the rounding of scale and inverse.
            block[index % 32] = [-1.0, 1.0, 1.7, 1.999_999_9][index % 4] * 8.0 * size;
        }
        values[..32].fill(0.0);
        let (quants, sums) = quantized(&mut lab, &values);
        check(&values, &quants, &sums);
    }

    /// Products with a block that has an infinity or a NaN must not look like results.
    #[test]
    fn what_is_not_finite_stays_so() {
        let Some(mut lab) = Lab::for_tests() else { return };
        let mut values = Random(22).normal(32 * 6, 1.0);
        values[5] = f32::NAN;
        values[64 + 31] = f32::NEG_INFINITY;
        values[128 + 16] = -f32::NAN;
        values[160] = f32::MAX;
        let (_, sums) = quantized(&mut lab, &values);
        for (index, [scale, weighted]) in sums.into_iter().enumerate() {
            let lost = [true, false, true, false, true, true][index / 2];
            assert_eq!([scale.is_nan(), weighted.is_nan()], [lost; 2], "{index}: {scale}, {weighted}");
        }
    }
}
