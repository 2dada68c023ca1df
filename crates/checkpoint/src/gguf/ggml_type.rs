//! Numbers of the tensor types in GGUF files (`enum ggml_type` of the ggml project).

use tensor::DType;

/// What a type number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GgmlType {
    /// Number in the file.
    pub(super) id: u32,
    /// Name in ggml.
    pub(super) name: &'static str,
    /// Weights per block.
    pub(super) block_len: usize,
    /// Bytes per block.
    pub(super) block_bytes: usize,
    /// The format here, if it can be read.
    pub(super) dtype: Option<DType>,
}

/// A type that can be read.
const fn read(id: u32, name: &'static str, block_len: usize, block_bytes: usize, dtype: DType) -> GgmlType {
    GgmlType { id, name, block_len, block_bytes, dtype: Some(dtype) }
}

/// A type whose size is known, so that files with it can be checked and listed.
const fn known(id: u32, name: &'static str, block_len: usize, block_bytes: usize) -> GgmlType {
    GgmlType { id, name, block_len, block_bytes, dtype: None }
}

/// All types of ggml that files have, without the removed ones.
pub(super) const TYPES: [GgmlType; 33] = [
    read(0, "F32", 1, 4, DType::F32),
    read(1, "F16", 1, 2, DType::F16),
    read(2, "Q4_0", 32, 18, DType::Q4_0),
    read(3, "Q4_1", 32, 20, DType::Q4_1),
    read(6, "Q5_0", 32, 22, DType::Q5_0),
    read(7, "Q5_1", 32, 24, DType::Q5_1),
    read(8, "Q8_0", 32, 34, DType::Q8_0),
    known(9, "Q8_1", 32, 36),
    read(10, "Q2_K", 256, 84, DType::Q2_K),
    read(11, "Q3_K", 256, 110, DType::Q3_K),
    read(12, "Q4_K", 256, 144, DType::Q4_K),
    read(13, "Q5_K", 256, 176, DType::Q5_K),
    read(14, "Q6_K", 256, 210, DType::Q6_K),
    known(15, "Q8_K", 256, 292),
    known(16, "IQ2_XXS", 256, 66),
    known(17, "IQ2_XS", 256, 74),
    known(18, "IQ3_XXS", 256, 98),
    known(19, "IQ1_S", 256, 50),
    known(20, "IQ4_NL", 32, 18),
    known(21, "IQ3_S", 256, 110),
    known(22, "IQ2_S", 256, 82),
    known(23, "IQ4_XS", 256, 136),
    known(24, "I8", 1, 1),
    known(25, "I16", 1, 2),
    known(26, "I32", 1, 4),
    known(27, "I64", 1, 8),
    known(28, "F64", 1, 8),
    known(29, "IQ1_M", 256, 56),
    read(30, "BF16", 1, 2, DType::BF16),
    known(34, "TQ1_0", 256, 54),
    known(35, "TQ2_0", 256, 66),
    known(39, "MXFP4", 32, 17),
    known(40, "NVFP4", 64, 36),
];

/// The type of that number.
pub(super) fn of_id(id: u32) -> Option<&'static GgmlType> {
    TYPES.iter().find(|ggml_type| ggml_type.id == id)
}

/// Names of types that ggml had once and removed.
pub(super) fn removed(id: u32) -> Option<&'static str> {
    match id {
        4 => Some("Q4_2"),
        5 => Some("Q4_3"),
        31 => Some("Q4_0_4_4"),
        32 => Some("Q4_0_4_8"),
        33 => Some("Q4_0_8_8"),
        36 => Some("IQ4_NL_4_4"),
        37 => Some("IQ4_NL_4_8"),
        38 => Some("IQ4_NL_8_8"),
        _ => None,
    }
}

/// The number of a format.
pub(super) fn id_of(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q5_0 => 6,
        DType::Q5_1 => 7,
        DType::Q8_0 => 8,
        DType::Q2_K => 10,
        DType::Q3_K => 11,
        DType::Q4_K => 12,
        DType::Q5_K => 13,
        DType::Q6_K => 14,
        DType::BF16 => 30,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_the_formats() {
        for dtype in DType::ALL {
            let ggml_type = of_id(id_of(dtype)).expect("every format has a number");
            assert_eq!(ggml_type.dtype, Some(dtype));
            assert_eq!(ggml_type.block_len, dtype.block_len(), "{dtype}");
            assert_eq!(ggml_type.block_bytes, dtype.block_bytes(), "{dtype}");
            assert_eq!(ggml_type.name.to_lowercase(), dtype.name());
        }
        assert!(TYPES.iter().all(|ggml_type| removed(ggml_type.id).is_none()));
        assert!(TYPES.windows(2).all(|pair| pair[0].id < pair[1].id));
    }
}
