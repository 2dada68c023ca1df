//! Which directions of an input matter: the second moments of a layer's activations.

use half::bf16;
use tensor::format::trellis::hadamard::BLOCK;

use crate::error::{QuantizeError, check_finite, check_length, check_size};
use crate::parallel;
use crate::product::{Product, Side};

/// Rows of activations that are converted and multiplied at once.
const ROWS: usize = 256;

/// `Σ x xᵀ` over the activations `x` that a linear layer gets: half the second derivative of the squared error of its
/// outputs by the weights of one output.
///
/// Sums are `f32`: those of 256 rows are added up before they join the others, so that after hundreds of thousands of
/// rows an element is off by some 10⁻⁶ of `√(H[i][i] · H[j][j])`.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    inputs: usize,
    count: u64,
    /// `[inputs, inputs]`, of which only the blocks of 128 × 128 on the diagonal and above are kept up.
    sums: Vec<f32>,
}

impl Hessian {
    /// Of no activations yet. Takes `4 · inputs²` bytes.
    ///
    /// # Errors
    /// If `inputs` is no multiple of 128.
    pub fn new(inputs: usize) -> Result<Hessian, QuantizeError> {
        check_size("inputs", inputs)?;
        Ok(Hessian { inputs, count: 0, sums: vec![0.0; inputs * inputs] })
    }

    /// What [`Hessian::sums`] and [`Hessian::count`] were, for example out of a file.
    ///
    /// # Errors
    /// If `inputs` is no multiple of 128, or the sums are not `inputs²` finite numbers.
    pub fn from_sums(inputs: usize, count: u64, sums: Vec<f32>) -> Result<Hessian, QuantizeError> {
        check_size("inputs", inputs)?;
        check_length("a Hessian", sums.len(), inputs * inputs)?;
        check_finite("the Hessian", &sums, inputs)?;
        Ok(Hessian { inputs, count, sums })
    }

    /// Adds activations `[rows, inputs]`.
    ///
    /// # Errors
    /// If they are no whole number of rows, or one is not finite; then nothing is added.
    pub fn add(&mut self, activations: &[f32], threads: usize) -> Result<(), QuantizeError> {
        let expected = activations.len() / self.inputs * self.inputs;
        check_length("activations", activations.len(), expected)?;
        check_finite("an activation", activations, self.inputs)?;
        for rows in activations.chunks(ROWS * self.inputs) {
            self.add_rows(rows, threads);
        }
        Ok(())
    }

    /// Adds activations `[rows, inputs]` in bfloat16.
    ///
    /// # Errors
    /// As [`Hessian::add`], except that rows before the one that is not finite may have been added.
    pub fn add_bf16(&mut self, activations: &[bf16], threads: usize) -> Result<(), QuantizeError> {
        let expected = activations.len() / self.inputs * self.inputs;
        check_length("activations", activations.len(), expected)?;
        for rows in activations.chunks(ROWS * self.inputs) {
            self.add(&rows.iter().map(|value| value.to_f32()).collect::<Vec<f32>>(), threads)?;
        }
        Ok(())
    }

    /// Adds at most 256 rows.
    fn add_rows(&mut self, rows: &[f32], threads: usize) {
        let (inputs, depth) = (self.inputs, rows.len() / self.inputs);
        let strips = self.sums.chunks_exact_mut(BLOCK * inputs).enumerate().collect();
        parallel::map(strips, threads, |(block, strip): (usize, &mut [f32])| {
            let first = block * BLOCK;
            // All terms of an element at once, but few columns at a time: the strip of the sums is read once.
            let b = Side { values: &rows[first..], terms: inputs, step: 1 };
            Product { a: b, b, rows: BLOCK, columns: inputs - first, depth, factor: 1.0 }
                .add_to(&mut strip[first..], inputs);
        });
        self.count += depth as u64;
    }

    /// Adds what was summed elsewhere.
    ///
    /// # Errors
    /// If it has another number of inputs.
    pub fn merge(&mut self, other: &Hessian) -> Result<(), QuantizeError> {
        check_length("a Hessian", other.sums.len(), self.sums.len())?;
        self.count += other.count;
        for (sum, other) in self.sums.iter_mut().zip(&other.sums) {
            *sum += other;
        }
        Ok(())
    }

    /// Length of an activation.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How many activations were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sums `[inputs, inputs]`, to be kept in a file. Below the blocks of 128 × 128 on the diagonal they are 0.
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// The inputs that were 0 in every activation. Their weights don't matter to the calibration text; damping keeps
    /// them near to what they were.
    pub fn dead_inputs(&self) -> Vec<usize> {
        (0..self.inputs).filter(|&input| self.sums[input * self.inputs + input] == 0.0).collect()
    }

    /// `H / count + damping · mean(diagonal) · 1`, in full, `[inputs, inputs]`. With a damping of 0.025, as exllamav3
    /// has it, rounding a weight costs at least 2.5 % of what it costs on average.
    ///
    /// # Errors
    /// If no activation was other than 0.
    pub fn damped(&self, damping: f32) -> Result<Vec<f64>, QuantizeError> {
        let (inputs, count) = (self.inputs, self.count as f64);
        let added = self.added_by(damping)?;
        let mut damped: Vec<f64> = self.sums.iter().map(|&sum| f64::from(sum) / count).collect();
        for row in 0..inputs {
            damped[row * inputs + row] += added;
            for column in 0..row {
                damped[row * inputs + column] = damped[column * inputs + row];
            }
        }
        Ok(damped)
    }

    /// What damping adds to the diagonal of `H / count`.
    pub(crate) fn added_by(&self, damping: f32) -> Result<f64, QuantizeError> {
        let inputs = self.inputs;
        let trace: f64 = (0..inputs).map(|input| f64::from(self.sums[input * inputs + input])).sum();
        if self.count == 0 || trace == 0.0 {
            return Err(QuantizeError::NoActivations(self.count));
        }
        Ok(f64::from(damping) * trace / self.count as f64 / inputs as f64)
    }
}
