//! The weights of a loaded program.

use std::sync::Arc;

use tensor::{BackendError, DType, Precision, TrellisFormat, WeightBytes, WeightError, WeightFormat, WeightSource};

use crate::kernel::trellis::decode_row;
use crate::level::Level;
use crate::panel::{BLOCK, PanelMatrix};
use crate::pool::Pool;
use crate::trellis::{TrellisMatrix, TrellisShape};

/// A weight in the form that its ops read.
pub(crate) enum Weight {
    /// A quantized matrix for integer dot products.
    Panels(PanelMatrix),
    /// Tiles of the trellis format, multiplied as they are.
    Trellis(TrellisMatrix),
    /// A matrix as the checkpoint stores it, row after row; often a mapped file.
    Rows(RowMatrix),
}

/// A matrix `[rows, columns]` in its format's own bytes.
pub(crate) struct RowMatrix {
    pub(crate) dtype: DType,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) bytes: Arc<dyn WeightBytes>,
}

impl RowMatrix {
    /// The stored bytes of one row.
    pub(crate) fn row(&self, index: usize) -> &[u8] {
        let row_bytes = self.bytes.bytes().len() / self.rows;
        &self.bytes.bytes()[index * row_bytes..(index + 1) * row_bytes]
    }
}

impl Weight {
    /// Opens a weight and rearranges it if that pays.
    pub(crate) fn load(
        name: &str,
        (format, rows, columns): (WeightFormat, usize, usize),
        source: &dyn WeightSource,
        precision: Precision,
        pool: &Pool,
    ) -> Result<Weight, BackendError> {
        let failed = |source| BackendError::Weight { name: name.to_owned(), source };
        let bytes = source.open(name, format).map_err(failed)?;
        let expected = format.data_bytes(rows, columns);
        if expected != Some(bytes.bytes().len()) {
            let found = bytes.bytes().len();
            return Err(failed(
                format!("expected {expected:?} bytes of {format} {rows} × {columns}, found {found}").into(),
            ));
        }
        let dtype = match format {
            WeightFormat::Blocks(dtype) => dtype,
            WeightFormat::Trellis(format) => {
                return load_trellis(format, (rows, columns), &*bytes, pool).map(Weight::Trellis).map_err(failed);
            }
        };
        if precision == Precision::Fast && columns.is_multiple_of(BLOCK) {
            let release = |range| bytes.release(range);
            if let Some(matrix) = PanelMatrix::pack(dtype, rows, columns, bytes.bytes(), &release, pool) {
                return Ok(Weight::Panels(matrix));
            }
        }
        Ok(Weight::Rows(RowMatrix { dtype, rows, columns, bytes }))
    }

    /// Rows: a linear layer's outputs.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Weight::Panels(matrix) => matrix.rows,
            Weight::Trellis(matrix) => matrix.rows,
            Weight::Rows(matrix) => matrix.rows,
        }
    }

    /// Bytes that a pass reads.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Weight::Panels(matrix) => matrix.bytes(),
            Weight::Trellis(matrix) => matrix.bytes(),
            Weight::Rows(matrix) => matrix.bytes.bytes().len(),
        }
    }

    /// Decodes one row.
    pub(crate) fn decode_row(&self, level: Level, row: usize, values: &mut [f32]) {
        match self {
            Weight::Panels(matrix) => matrix.decode_row(row, values),
            Weight::Trellis(matrix) => decode_row(level, matrix, row, values),
            Weight::Rows(matrix) => matrix.dtype.codec().decode(matrix.row(row), values),
        }
    }
}

/// Checks the tiles and scales of a weight `[rows, columns]`, and rearranges the tiles.
fn load_trellis(
    format: TrellisFormat,
    (rows, columns): (usize, usize),
    data: &dyn WeightBytes,
    pool: &Pool,
) -> Result<TrellisMatrix, WeightError> {
    let linear = format.linear(rows, columns, data)?;
    let TrellisFormat { rate, codebook, rotation } = format;
    let shape = TrellisShape { rate, codebook, rotation, rows, columns };
    let scales = |scales: &[half::f16]| scales.iter().map(|scale| scale.to_f32()).collect();
    let scales = (scales(linear.suh()), scales(linear.svh()));
    Ok(TrellisMatrix::pack(shape, linear.trellis(), scales, &|range| data.release(range), pool))
}
