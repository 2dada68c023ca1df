//! Rotated activations: what trellis products read (`shaders/rotated.glsl`).

use tensor::format::trellis::Codebook;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::{Precision, TrellisFormat};

/// How rotated activations are written; the numbers are the shaders'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RotatedForm {
    /// f32.
    Floats = 1,
    /// 8-bit integers with a scale for each block of 128, for integer dot products.
    Integers = 2,
    /// f16 with a scale for each block of 128, for matrix instructions.
    Halfs = 3,
    /// [`RotatedForm::Integers`], each in all four bytes of a word, for devices that take long to copy bytes.
    Splats = 4,
}

/// What products of few columns may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arithmetic {
    /// As the caller asked.
    pub(crate) precision: Precision,
    /// Whether the device has integer dot products.
    pub(crate) integer_dot: bool,
    /// Whether matrix instructions can take weights from where lanes decode them.
    pub(crate) matrix_layout: bool,
    /// Whether integers are better read four times than copied.
    pub(crate) splats: bool,
}

impl Arithmetic {
    /// The form for products with weights of a format: matrix instructions multiply up to eight columns in the time of
    /// one, but for one column a weight need not even be made.
    pub(crate) fn form(self, format: TrellisFormat, columns: usize) -> RotatedForm {
        let fast = self.precision == Precision::Fast && self.integer_dot;
        let integers = if self.splats { RotatedForm::Splats } else { RotatedForm::Integers };
        match format.codebook {
            Codebook::Mul1 if fast && columns == 1 => integers,
            _ if fast && self.matrix_layout => RotatedForm::Halfs,
            Codebook::Mul1 if fast => integers,
            _ => RotatedForm::Floats,
        }
    }
}

/// Rotated activations in device memory, rows of whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rotated {
    /// How they are written.
    pub(crate) form: RotatedForm,
    /// Their address: also their name in hazards.
    pub(crate) values: u64,
    /// Address of `{scale, scale · sum}` for each 64 of them, if they are no floats.
    pub(crate) sums: u64,
}

impl Rotated {
    /// Bytes that `rows` rows of `width` elements need in any form: of values, and of sums.
    pub(crate) fn bytes(rows: usize, width: usize) -> (usize, usize) {
        let padded = width.next_multiple_of(BLOCK);
        (4 * rows * padded, rows * padded / 8)
    }

    /// The rows behind the first `first` ones, of `inputs` elements each.
    pub(crate) fn skip_rows(self, first: usize, inputs: usize) -> Rotated {
        let bytes = match self.form {
            RotatedForm::Floats | RotatedForm::Splats => 4,
            RotatedForm::Integers => 1,
            RotatedForm::Halfs => 2,
        };
        let skipped = (first * inputs) as u64;
        Rotated { values: self.values + bytes * skipped, sums: self.sums + skipped / 8, ..self }
    }
}
