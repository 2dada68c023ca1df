//! The block LDL decomposition of a Hessian: how an error in some weights can be made good by others.

use half::f16;
use tensor::format::trellis::SIDE;
use tensor::format::trellis::hadamard::{self, BLOCK};

use crate::device::{Decomposition, HessianDevice, ScaledSums};
use crate::error::{QuantizeError, check_finite, check_length};
use crate::hessian::Hessian;
use crate::parallel;
use crate::product;

/// `Uᵀ D U`, the damped Hessian of the rotated inputs `H (suh · x)`, in blocks of 16 inputs: `U` has ones on the
/// diagonal and zeros below it within the blocks' columns, `D` has blocks of 16 × 16.
///
/// With rotated weights `C` and their errors `E`, `[inputs, outputs]`, the squared error of the outputs is
/// `tr(Eᵀ Uᵀ D U E)`. So the bands of 16 inputs are independent of each other if each, from the last to the first, is
/// rounded not from `C` but from `C + (U − 1) E`.
#[derive(Clone, Debug)]
pub struct Factor {
    suh: Vec<f16>,
    /// `U`, `[inputs, inputs]`.
    upper: Vec<f32>,
    /// Triangles `R`, `[inputs / 16, 16, 16]`, with `D = Rᵀ R`.
    roots: Vec<f32>,
}

impl Factor {
    /// Bytes for each pair of inputs.
    pub(crate) const BYTES: u64 = 4;

    /// The same while the Hessian is decomposed, the result included.
    pub(crate) const BYTES_MEANWHILE: u64 = 12;

    /// Decomposes the damped Hessian of the inputs with these signs and scales. Takes up to `12 · inputs²` bytes at a
    /// time, and `4 · inputs²` in the end. The result does not depend on the number of threads.
    ///
    /// # Errors
    /// If there are not as many scales as inputs, no activation was other than 0, or damping did not make the Hessian
    /// positive definite.
    pub fn new(hessian: &Hessian, suh: &[f16], damping: f32, threads: usize) -> Result<Factor, QuantizeError> {
        let inputs = hessian.inputs();
        check_length("input scales", suh.len(), inputs)?;
        let mut root = hessian.damped(damping)?;
        rotate(&mut root, suh, threads);
        cholesky(&mut root, inputs, threads).map_err(|(input, value)| QuantizeError::NotPositiveDefinite {
            input,
            value,
            damping,
        })?;
        let mut upper = vec![0.0; inputs * inputs];
        let bands = root.chunks_exact_mut(SIDE * inputs).zip(upper.chunks_exact_mut(SIDE * inputs)).enumerate();
        let roots = parallel::map(bands.collect(), threads, |(band, (rows, upper)): (_, (&mut [f64], &mut [f32]))| {
            let root = unit_band(band * SIDE, rows, inputs);
            upper.iter_mut().zip(rows).for_each(|(upper, value)| *upper = *value as f32);
            root
        });
        Ok(Factor { suh: suh.to_vec(), upper, roots: roots.concat() })
    }

    /// As [`Factor::new`], by a device if it has room; the result is the same but for roundings.
    ///
    /// # Errors
    /// As [`Factor::new`], and a device that fails.
    pub fn new_on(
        device: Option<&dyn HessianDevice>,
        hessian: &Hessian,
        suh: &[f16],
        damping: f32,
        threads: usize,
    ) -> Result<Factor, QuantizeError> {
        let Some(device) = device else { return Factor::new(hessian, suh, damping, threads) };
        let inputs = hessian.inputs();
        check_length("input scales", suh.len(), inputs)?;
        let added = hessian.added_by(damping)? as f32;
        let scaled = ScaledSums { sums: hessian.sums(), count: hessian.count(), suh, damping: added };
        match device.decompose(&scaled).map_err(QuantizeError::Device)? {
            Decomposition::Done { upper, roots } => {
                check_length("a decomposition", upper.len(), inputs * inputs)?;
                check_length("a decomposition's triangles", roots.len(), SIDE * inputs)?;
                check_finite("the decomposition", &upper, inputs)?;
                Ok(Factor { suh: suh.to_vec(), upper, roots })
            }
            Decomposition::NotPositiveDefinite { input, value } => {
                Err(QuantizeError::NotPositiveDefinite { input, value, damping })
            }
            Decomposition::NoRoom => Factor::new(hessian, suh, damping, threads),
        }
    }

    /// Length of an input.
    pub fn inputs(&self) -> usize {
        self.suh.len()
    }

    /// The signs and scales of the inputs.
    pub fn suh(&self) -> &[f16] {
        &self.suh
    }

    /// `U`, `[inputs, inputs]`.
    pub fn upper(&self) -> &[f32] {
        &self.upper
    }

    /// The triangle `R`, `[16, 16]`, of the band of inputs from `16 · band`, with `D = Rᵀ R`.
    ///
    /// # Panics
    /// If there is no such band.
    pub fn root(&self, band: usize) -> &[f32; SIDE * SIDE] {
        self.roots.as_chunks().0.get(band).expect("a band of 16 inputs")
    }
}

/// `H suh · matrix · suh H`.
fn rotate(matrix: &mut [f64], suh: &[f16], threads: usize) {
    let inputs = suh.len();
    let strips = matrix.chunks_exact_mut(BLOCK * inputs).zip(suh.chunks_exact(BLOCK)).collect();
    parallel::map(strips, threads, |(strip, scales): (&mut [f64], &[f16])| {
        for (row, scale) in strip.chunks_exact_mut(inputs).zip(scales) {
            for (value, other) in row.iter_mut().zip(suh) {
                *value *= scale.to_f64() * other.to_f64();
            }
            for block in row.chunks_exact_mut(BLOCK) {
                rotate_rows(block, 1);
            }
        }
        rotate_rows(strip, inputs);
    });
}

/// [`tensor::format::trellis::hadamard::rotate_rows`] in double precision: a Hessian's directions may differ by more
/// than single precision can add up.
fn rotate_rows(values: &mut [f64], width: usize) {
    hadamard::sum_and_subtract_rows(values, width);
    let scale = (BLOCK as f64).sqrt().recip();
    values.iter_mut().for_each(|value| *value *= scale);
}

/// Makes of a matrix the upper triangle `R` with `Rᵀ R = matrix`. What is below is not looked at. The error is the row
/// whose pivot is not positive, and the pivot.
fn cholesky(matrix: &mut [f64], size: usize, threads: usize) -> Result<(), (usize, f64)> {
    for first in (0..size).step_by(BLOCK) {
        let (done, rest) = matrix.split_at_mut((first + BLOCK) * size);
        let panel = &mut done[first * size..];
        triangle(panel, first, size)?;

        // The rows of the panel to the right of the triangle, in columns of 128.
        let starts = (first + BLOCK..size).step_by(BLOCK).collect();
        let solved = parallel::map(starts, threads, |start| solve(panel, first, start, size));
        for (index, block) in solved.into_iter().enumerate() {
            for (row, values) in block.chunks_exact(BLOCK).enumerate() {
                let at = row * size + first + (index + 1) * BLOCK;
                panel[at..at + BLOCK].copy_from_slice(values);
            }
        }

        let strips = rest.chunks_exact_mut(BLOCK * size).enumerate().collect();
        parallel::map(strips, threads, |(index, strip): (usize, &mut [f64])| {
            let start = first + (index + 1) * BLOCK;
            let factor = product::Side { values: &panel[start..], terms: size, step: 1 };
            let (rows, columns, depth) = (BLOCK, size - start, BLOCK);
            product::Product { a: factor, b: factor, rows, columns, depth, factor: -1.0 }
                .add_to(&mut strip[start..], size);
        });
    }
    Ok(())
}

/// The Cholesky decomposition of the 128 rows `panel` within the columns from `first`.
fn triangle(panel: &mut [f64], first: usize, size: usize) -> Result<(), (usize, f64)> {
    for k in 0..BLOCK {
        let (above, below) = panel.split_at_mut((k + 1) * size);
        let row = &mut above[k * size + first..][..BLOCK];
        let pivot = row[k];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return Err((first + k, pivot));
        }
        let root = pivot.sqrt();
        row[k..].iter_mut().for_each(|value| *value /= root);
        for (index, other) in below.chunks_exact_mut(size).enumerate() {
            let i = k + 1 + index;
            let factor = row[i];
            for (value, term) in other[first + i..first + BLOCK].iter_mut().zip(&row[i..]) {
                *value -= factor * term;
            }
        }
    }
    Ok(())
}

/// `T⁻ᵀ B`, for the triangle `T` of a panel and its 128 columns `B` from `start`.
fn solve(panel: &[f64], first: usize, start: usize, size: usize) -> Vec<f64> {
    let mut block: Vec<f64> = panel.chunks_exact(size).flat_map(|row| &row[start..start + BLOCK]).copied().collect();
    for k in 0..BLOCK {
        let (above, below) = block.split_at_mut((k + 1) * BLOCK);
        let row = &mut above[k * BLOCK..];
        let triangle = &panel[k * size + first..][..BLOCK];
        row.iter_mut().for_each(|value| *value /= triangle[k]);
        for (other, factor) in below.chunks_exact_mut(BLOCK).zip(&triangle[k + 1..]) {
            for (value, term) in other.iter_mut().zip(&*row) {
                *value -= factor * term;
            }
        }
    }
    block
}

/// Makes 16 rows of `U` of those of `R`, and gives the triangle on the diagonal by which they differ.
fn unit_band(first: usize, rows: &mut [f64], size: usize) -> Vec<f32> {
    let mut triangle = [[0.0; SIDE]; SIDE];
    for (row, factors) in triangle.iter_mut().enumerate() {
        factors[row..].copy_from_slice(&rows[row * size + first + row..][..SIDE - row]);
    }
    let rest = first + SIDE;
    for row in (0..SIDE).rev() {
        let (above, below) = rows.split_at_mut((row + 1) * size);
        let above = &mut above[row * size..];
        for (other, factor) in below.chunks_exact(size).zip(&triangle[row][row + 1..]) {
            for (value, term) in above[rest..].iter_mut().zip(&other[rest..]) {
                *value -= factor * term;
            }
        }
        above[rest..].iter_mut().for_each(|value| *value /= triangle[row][row]);
        above[..rest].fill(0.0);
        above[first + row] = 1.0;
    }
    triangle.iter().flatten().map(|&value| value as f32).collect()
}
