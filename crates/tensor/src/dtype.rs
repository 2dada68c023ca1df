//! The number formats that tensors are stored in.

use std::fmt;

use crate::format;

/// How the numbers of a tensor are stored.
///
/// Block formats keep a fixed number of consecutive weights of a row (`block_len`) in a fixed number of bytes
/// (`block_bytes`); rows are padded to nothing: a row's length is a multiple of `block_len`. Every format has one
/// file in [`crate::format`] that documents its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, reason = "the formats' names in the GGUF specification")]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// 32 weights: f16 scale, 4-bit values minus 8.
    Q4_0,
    /// 32 weights: f16 scale and minimum, 4-bit values.
    Q4_1,
    /// 32 weights: f16 scale, 5-bit values minus 16.
    Q5_0,
    /// 32 weights: f16 scale and minimum, 5-bit values.
    Q5_1,
    /// 32 weights: f16 scale, signed 8-bit values.
    Q8_0,
    /// 256 weights: 2-bit values, 4-bit scales and minima per 16.
    Q2_K,
    /// 256 weights: 3-bit values, 6-bit scales per 16.
    Q3_K,
    /// 256 weights: 4-bit values, 6-bit scales and minima per 32.
    Q4_K,
    /// 256 weights: 5-bit values, 6-bit scales and minima per 32.
    Q5_K,
    /// 256 weights: 6-bit values, 8-bit scales per 16.
    Q6_K,
}

impl DType {
    /// Every format, in the order of the declaration.
    pub const ALL: [DType; 13] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
    ];

    /// The codec of this format.
    pub fn codec(self) -> &'static dyn format::Codec {
        format::codec(self)
    }

    /// Weights per block; 1 for plain floats.
    pub fn block_len(self) -> usize {
        self.codec().block_len()
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.codec().block_bytes()
    }

    /// The format's name in lower case, as the command line takes it: `q4_0`, `bf16`, `q6_k`.
    pub fn name(self) -> &'static str {
        self.codec().name()
    }

    /// The format of that name, in any case.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `columns` weights, or `None` if `columns` is no multiple of `block_len` or the size
    /// overflows.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        if !columns.is_multiple_of(self.block_len()) {
            return None;
        }
        (columns / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bytes of a tensor `[rows, columns]`, or `None` as [`DType::row_bytes`].
    pub fn tensor_bytes(self, rows: usize, columns: usize) -> Option<usize> {
        self.row_bytes(columns)?.checked_mul(rows)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
