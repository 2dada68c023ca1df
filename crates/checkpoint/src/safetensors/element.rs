//! What a safetensors file to be written says of its tensors.

use tensor::DType;

use crate::CheckpointError;

/// The numbers of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// 16-bit integers.
    I16,
    /// 32-bit integers.
    I32,
}

impl Element {
    /// That of a format; `None` for a block format, which safetensors files don't have.
    pub fn of(dtype: DType) -> Option<Element> {
        match dtype {
            DType::F32 => Some(Element::F32),
            DType::F16 => Some(Element::F16),
            DType::BF16 => Some(Element::BF16),
            DType::Q4_0
            | DType::Q4_1
            | DType::Q5_0
            | DType::Q5_1
            | DType::Q8_0
            | DType::Q2_K
            | DType::Q3_K
            | DType::Q4_K
            | DType::Q5_K
            | DType::Q6_K => None,
        }
    }

    /// The name in a header.
    pub fn name(self) -> &'static str {
        match self {
            Element::F32 => "F32",
            Element::F16 => "F16",
            Element::BF16 => "BF16",
            Element::I16 => "I16",
            Element::I32 => "I32",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Element::F32 | Element::I32 => 4,
            Element::F16 | Element::BF16 | Element::I16 => 2,
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its numbers.
    pub element: Element,
    /// Dimensions, outermost first; none for a single number.
    pub shape: Vec<usize>,
}

impl Declared {
    /// Its bytes.
    ///
    /// # Errors
    /// [`CheckpointError::Declaration`] if there can't be that many.
    pub fn bytes(&self) -> Result<u64, CheckpointError> {
        let product = |bytes: usize, &dimension: &usize| bytes.checked_mul(dimension);
        let bytes = self.shape.iter().try_fold(self.element.bytes(), product);
        bytes.map(|bytes| bytes as u64).ok_or_else(|| {
            let problem = format!("shape {:?} is impossible", self.shape);
            CheckpointError::Declaration { what: self.name.clone(), problem }
        })
    }
}
