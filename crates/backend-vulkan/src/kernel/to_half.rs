//! f32 rows to f16 rows, the input of [`matmul_matrix`](super::matmul::matmul_matrix).

use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

/// Rows of f16 are padded with zeros to a multiple of this many elements.
pub(crate) const HALF_PADDING: usize = 64;

/// Activations as f16: `value[t, i] = scales[t] · values[t, i]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Halves {
    /// Address of the f16 rows.
    pub(crate) values: u64,
    /// Address of the rows' scales, f32: powers of two.
    pub(crate) scales: u64,
    /// Elements of a row that count.
    pub(crate) width: usize,
}

impl Halves {
    /// Elements from one row to the next.
    pub(crate) fn pitch(self) -> usize {
        self.width.next_multiple_of(HALF_PADDING)
    }
}

/// `output = input` for `rows` rows, each with a power of two as its scale, so that no value overflows.
pub(crate) fn to_half(features: &Features, input: View, output: Halves, rows: usize) -> Dispatch {
    assert_eq!(input.width, output.width);
    let push = Push::default().address(input.address).address(output.values).address(output.scales);
    Dispatch {
        groups: [1, rows as u32, 1],
        kernel: kernel(features, "to_half", vec![]),
        push: push.number(input.pitch() / 4).number(output.pitch() / 4),
        reads: vec![input.address],
        writes: vec![output.values, output.scales],
        bytes: (6 * rows * input.width) as u64,
        operations: (2 * rows * input.width) as u64,
        label: format!("to half {rows}×{}", input.width),
        ..Dispatch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    /// Rows of zeros, of numbers that f16 can't hold and of numbers that it would lose.
    #[test]
    fn rows_become_halves_without_overflow() {
        let Some(mut lab) = Lab::for_tests() else { return };
        for width in [7, 70, 1500] {
            let magnitudes = [0.0f32, 1.0, 3.0e8, 1.0e-12, 1.0e38, 1.0e-38];
            let pitch = crate::kernel::pitch(width);
            let value = |row: usize, i: usize| magnitudes[row] * ((((i * 37 + row) % 101) as f32 - 50.0) / 50.0);
            let at = |row, i| if i < width { value(row, i) } else { 0.0 };
            let values: Vec<f32> = (0..magnitudes.len() * pitch).map(|n| at(n / pitch, n % pitch)).collect();
            let input = lab.upload(bytemuck::cast_slice(&values)).unwrap();
            let half_pitch = width.next_multiple_of(HALF_PADDING);
            let halves = lab.upload(&vec![0xff; magnitudes.len() * half_pitch * 2]).unwrap();
            let scales = lab.upload(&[0; 4 * 6]).unwrap();
            let output = Halves { values: halves.address, scales: scales.address, width };
            let view = View { address: input.address, width };
            lab.run(&[to_half(lab.features(), view, output, magnitudes.len())]).unwrap();
            let halves = lab.download(halves, magnitudes.len() * half_pitch * 2).unwrap();
            let scales = lab.download(scales, 4 * 6).unwrap();
            let scales: &[f32] = bytemuck::cast_slice(&scales);
            for (row, halves) in halves.chunks(half_pitch * 2).enumerate() {
                let largest = (0..width).map(|i| value(row, i).abs()).fold(0.0, f32::max);
                for (i, bytes) in halves.chunks(2).enumerate() {
                    let half = f64::from(half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
                    let (found, expected) = (half * f64::from(scales[row]), f64::from(at(row, i)));
                    // Half a step of f16; of the largest number's, where f16 has no smaller ones; and devices may make
                    // zeros of the f32 below the normal ones.
                    let lost = f64::from(f32::MIN_POSITIVE);
                    let bound = expected.abs() * 2f64.powi(-11) + f64::from(largest) * 2f64.powi(-38) + lost;
                    assert!((found - expected).abs() <= bound, "{width}, {row}, {i}: {found} for {expected}");
                }
            }
        }
    }
}
