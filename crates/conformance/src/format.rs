//! Random weights of every format, the read-only ones included.

use std::sync::Arc;

use tensor::format::trellis::Scales;
use tensor::{DType, WeightBytes};

use crate::random::Random;
use crate::trellis::Terms;

/// Where the binary16 fields of a block are, as byte offsets.
struct Fields {
    scales: &'static [usize],
    minima: &'static [usize],
}

/// The binary16 fields of a block; `None` for plain floats.
fn fields(dtype: DType) -> Option<Fields> {
    let fields = |scales, minima| Some(Fields { scales, minima });
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => None,
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => fields(&[0], &[]),
        DType::Q4_1 | DType::Q5_1 => fields(&[0], &[2]),
        DType::Q4_K | DType::Q5_K => fields(&[0], &[2]),
        DType::Q2_K => fields(&[80], &[82]),
        DType::Q3_K => fields(&[108], &[]),
        DType::Q6_K => fields(&[208], &[]),
    }
}

/// Whether a format subtracts a stored minimum: `w = d·q − m·z` for the K-formats, `w = d·q + m` for the others.
fn minimum_sign(dtype: DType) -> f32 {
    match dtype {
        DType::Q4_1 | DType::Q5_1 => 1.0,
        _ => -1.0,
    }
}

/// A random weight and what the bounds need to know of it.
#[derive(Clone, Debug)]
pub struct RandomWeight {
    /// The blocks.
    pub bytes: Vec<u8>,
    /// For every element the sum of the magnitudes of the terms that it is the sum of: `|d·q| + |m·z|`. A backend may
    /// multiply the terms on their own, and then errs in proportion to them.
    pub magnitudes: Vec<f32>,
    /// Of a trellis, whose `bytes` are its tiles.
    pub terms: Option<Arc<Terms>>,
}

impl WeightBytes for RandomWeight {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn scales(&self) -> Option<&Scales> {
        RandomWeight::scales(self)
    }
}

/// A random weight `[rows, columns]`. Values are random bits, a few blocks all of their extremes; scales are of either
/// sign and cover six powers of two.
pub fn random_weight(dtype: DType, rows: usize, columns: usize, seed: u64) -> RandomWeight {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; dtype.tensor_bytes(rows, columns).expect("whole blocks")];
    let Some(fields) = fields(dtype) else {
        let values: Vec<f32> = (0..rows * columns).map(|_| 0.1 * random.normal()).collect();
        dtype.codec().encode(&values, &mut bytes).expect("floats can be written");
        return RandomWeight {
            magnitudes: decode(dtype, &bytes).into_iter().map(f32::abs).collect(),
            bytes,
            terms: None,
        };
    };
    for (index, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
        for byte in block.iter_mut() {
            *byte = match index % 16 {
                5 => 0x80,
                11 => 0xff,
                13 => 0x7f,
                _ => random.bits() as u8,
            };
        }
        for &offset in fields.scales.iter().chain(fields.minima) {
            let magnitude = random.uniform(-9.0, -3.0).exp2();
            let scale = if random.below(2) == 0 { magnitude } else { -magnitude };
            set(block, offset, scale);
        }
    }
    let mut positive = bytes.clone();
    for block in positive.chunks_exact_mut(dtype.block_bytes()) {
        for &offset in fields.minima {
            // Quantized values with a minimum are never negative: with these signs the terms add up. Scales of the
            // other formats keep theirs, for there is one term.
            let (scale, minimum) = (get(block, fields.scales[0]), get(block, offset));
            set(block, fields.scales[0], scale.abs());
            set(block, offset, minimum.abs() * minimum_sign(dtype));
        }
    }
    RandomWeight { magnitudes: decode(dtype, &positive).into_iter().map(f32::abs).collect(), bytes, terms: None }
}

/// F32 bytes of the values.
pub fn f32_weight(values: Vec<f32>) -> RandomWeight {
    RandomWeight {
        bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        magnitudes: values.into_iter().map(f32::abs).collect(),
        terms: None,
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    dtype.codec().decode(bytes, &mut values);
    values
}

fn get(block: &[u8], offset: usize) -> f32 {
    half::f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

fn set(block: &mut [u8], offset: usize, value: f32) {
    block[offset..offset + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_weights_are_finite_and_no_larger_than_their_terms() {
        for dtype in DType::ALL {
            let weight = random_weight(dtype, 17, dtype.block_len() * 3, 1);
            let values = decode(dtype, &weight.bytes);
            assert_eq!(values.len(), weight.magnitudes.len());
            assert!(values.iter().zip(&weight.magnitudes).all(|(value, term)| value.abs() <= *term), "{dtype}");
            assert!(values.iter().any(|value| *value != 0.0) && values.iter().all(|value| value.is_finite()));
        }
    }
}
