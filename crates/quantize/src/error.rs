//! What can be wrong with what is to be quantized.

use tensor::format::trellis::LinearError;
use tensor::format::trellis::hadamard::BLOCK;
use thiserror::Error;

/// Why a weight can't be quantized.
#[derive(Debug, Error, PartialEq)]
pub enum QuantizeError {
    /// A size that can't be rotated.
    #[error("{found} {what}, expected a multiple of {BLOCK}, and not 0\n\nhint: pad with zeros")]
    Size {
        /// `inputs` or `outputs`.
        what: &'static str,
        /// How many there are.
        found: usize,
    },
    /// Another number of elements than the sizes ask for.
    #[error("{found} numbers of {what}, expected {expected}")]
    Length {
        /// What the numbers are.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many the sizes ask for.
        expected: usize,
    },
    /// A number that is NaN or infinite.
    #[error("{what} has {value} in row {row}, column {column}, expected finite numbers")]
    NotFinite {
        /// `the weight` or `an activation`.
        what: &'static str,
        /// The output of a weight, or the token of an activation.
        row: usize,
        /// The input.
        column: usize,
        /// What it is.
        value: f32,
    },
    /// No activations, or only zeros.
    #[error("the Hessian of {0} rows is 0, expected activations\n\nhint: is there any calibration text?")]
    NoActivations(u64),
    /// A Hessian that has no Cholesky decomposition.
    #[error(
        "the Hessian is not positive definite: pivot {value} of input {input}, expected more than 0\n\n\
         hint: more damping than {damping} helps where rounding is the cause"
    )]
    NotPositiveDefinite {
        /// The input whose pivot it is, after rotation.
        input: usize,
        /// The pivot.
        value: f64,
        /// The damping that was not enough.
        damping: f32,
    },
    /// A scale beyond binary16, in which the format has it.
    #[error(
        "the scale {value} of {what} {index} is not a number in binary16 other than 0\n\n\
         hint: weights that small or large have to be rescaled first"
    )]
    Scale {
        /// `input` or `output`.
        what: &'static str,
        /// Which one.
        index: usize,
        /// The scale.
        value: f32,
    },
    /// The device that finds tiles failed.
    #[error("no tiles were found: {0}")]
    Device(String),
    /// What the format can't have.
    #[error(transparent)]
    Linear(#[from] LinearError),
}

impl QuantizeError {
    /// The same about rows that begin at `first`.
    pub(crate) fn in_rows(self, first: usize) -> QuantizeError {
        match self {
            QuantizeError::NotFinite { what, row, column, value } => {
                QuantizeError::NotFinite { what, row: row + first, column, value }
            }
            other => other,
        }
    }
}

/// Whether a size can be rotated.
pub(crate) fn check_size(what: &'static str, found: usize) -> Result<(), QuantizeError> {
    if found != 0 && found.is_multiple_of(BLOCK) { Ok(()) } else { Err(QuantizeError::Size { what, found }) }
}

/// Whether there are as many numbers as expected.
pub(crate) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), QuantizeError> {
    if found == expected { Ok(()) } else { Err(QuantizeError::Length { what, found, expected }) }
}

/// Numbers that [`check_finite`] looks at together.
const FINITE_CHUNK: usize = 4096;

/// Whether all numbers are finite.
pub(crate) fn check_finite(what: &'static str, values: &[f32], columns: usize) -> Result<(), QuantizeError> {
    // Without a branch for each number.
    let all_finite = |part: &[f32]| part.iter().fold(true, |all, value| all & value.is_finite());
    let Some(part) = values.chunks(FINITE_CHUNK).position(|part| !all_finite(part)) else { return Ok(()) };
    let first = part * FINITE_CHUNK;
    let at = first + values[first..].iter().position(|value| !value.is_finite()).expect("one is not finite");
    Err(QuantizeError::NotFinite { what, row: at / columns, column: at % columns, value: values[at] })
}
