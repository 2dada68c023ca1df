//! How the weights of a program are stored.

use std::fmt;

use crate::format::trellis::hadamard::BLOCK;
use crate::format::trellis::{Codebook, LEN, Linear, Rate};
use crate::{DType, WeightBytes, WeightError};

/// How a weight `[rows, columns]` is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// Row after row, each in blocks of neighbouring columns.
    Blocks(DType),
    /// A trellis, in tiles of 16 columns and 16 rows.
    Trellis(TrellisFormat),
}

/// What the tiles of a trellis weight are, as a [`Linear`](crate::format::trellis::Linear) has them: its inputs are the
/// columns and its outputs the rows of the weight, both rounded up to a multiple of 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrellisFormat {
    /// Bits per weight.
    pub rate: Rate,
    /// What makes weights of states.
    pub codebook: Codebook,
    /// Weights of a program with the same number have the same scales of the inputs, to the bit, so that an activation
    /// is scaled and rotated once for all of them.
    pub rotation: u32,
}

impl TrellisFormat {
    /// Inputs and outputs of the tiles of a weight `[rows, columns]`; `None` if there are no such numbers.
    pub fn padded(rows: usize, columns: usize) -> Option<(usize, usize)> {
        Some((columns.checked_next_multiple_of(BLOCK)?, rows.checked_next_multiple_of(BLOCK)?))
    }

    /// The weight `[rows, columns]` that a source gave. Its tiles are not copied.
    ///
    /// # Errors
    /// If it has no scales, or scales or tiles of another size.
    pub fn linear<'a>(self, rows: usize, columns: usize, data: &'a dyn WeightBytes) -> Result<Linear<'a>, WeightError> {
        let scales = data.scales().ok_or("a trellis weight without scales")?;
        let found = (scales.suh.len(), scales.svh.len());
        if Some(found) != TrellisFormat::padded(rows, columns) {
            let problem = format!("scales of {} inputs and {} outputs for [{rows}, {columns}]", found.0, found.1);
            return Err(problem.into());
        }
        Ok(Linear::from_tiles(self.rate, self.codebook, scales.clone(), data.bytes())?)
    }
}

impl WeightFormat {
    /// The block format, if it is one.
    pub fn blocks(self) -> Option<DType> {
        match self {
            WeightFormat::Blocks(dtype) => Some(dtype),
            WeightFormat::Trellis(_) => None,
        }
    }

    /// What the number of columns has to be a multiple of. Trellises are padded.
    pub fn block_len(self) -> usize {
        match self {
            WeightFormat::Blocks(dtype) => dtype.block_len(),
            WeightFormat::Trellis(_) => 1,
        }
    }

    /// What [`WeightBytes::bytes`](crate::WeightBytes::bytes) of a weight `[rows, columns]` are: its blocks, or its
    /// tiles without the scales. `None` if its rows are not whole blocks, or the number overflows.
    pub fn data_bytes(self, rows: usize, columns: usize) -> Option<usize> {
        match self {
            WeightFormat::Blocks(dtype) => dtype.tensor_bytes(rows, columns),
            WeightFormat::Trellis(TrellisFormat { rate, .. }) => {
                let (inputs, outputs) = TrellisFormat::padded(rows, columns)?;
                Some((inputs.checked_mul(outputs)? / LEN).checked_mul(rate.tile_bytes())?)
            }
        }
    }

    /// Bytes of a weight `[rows, columns]` with its scales. `None` as [`WeightFormat::data_bytes`].
    pub fn tensor_bytes(self, rows: usize, columns: usize) -> Option<usize> {
        let data = self.data_bytes(rows, columns)?;
        match self {
            WeightFormat::Blocks(_) => Some(data),
            WeightFormat::Trellis(_) => {
                let (inputs, outputs) = TrellisFormat::padded(rows, columns)?;
                data.checked_add(inputs.checked_add(outputs)?.checked_mul(2)?)
            }
        }
    }
}

impl From<DType> for WeightFormat {
    fn from(dtype: DType) -> WeightFormat {
        WeightFormat::Blocks(dtype)
    }
}

impl From<TrellisFormat> for WeightFormat {
    fn from(format: TrellisFormat) -> WeightFormat {
        WeightFormat::Trellis(format)
    }
}

impl fmt::Display for WeightFormat {
    /// `q4_0`, or `mul1 2.5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightFormat::Blocks(dtype) => dtype.fmt(f),
            WeightFormat::Trellis(TrellisFormat { rate, codebook, .. }) => write!(f, "{codebook} {rate}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_weights_count_the_padding_and_the_scales() {
        let rate = Rate::from_half_bits(5).unwrap();
        let format = WeightFormat::Trellis(TrellisFormat { rate, codebook: Codebook::Mul1, rotation: 0 });
        // 256 outputs and 128 inputs, at 2.5 bits.
        assert_eq!(format.data_bytes(129, 100), Some(256 * 128 * 5 / 16));
        assert_eq!(format.tensor_bytes(129, 100), Some(256 * 128 * 5 / 16 + 2 * (256 + 128)));
        assert_eq!(format.data_bytes(usize::MAX, 100), None);
        assert_eq!(format.data_bytes(usize::MAX / 4, 16), None);
        assert_eq!(format.to_string(), "mul1 2.5");
        assert_eq!(WeightFormat::from(DType::Q4_0).tensor_bytes(2, 33), None);
        assert_eq!(WeightFormat::from(DType::Q4_0).tensor_bytes(2, 64), Some(2 * 36));
    }
}
