//! Keys or values of one layer for all sequences.

use tensor::DType;

use crate::aligned::Aligned;

/// `[sequence][position modulo capacity][width]` in F32, F16 or Q8_0: a local layer's cache is a ring that holds its
/// window and one batch.
pub(crate) struct Cache {
    dtype: DType,
    width: usize,
    capacity: usize,
    row_bytes: usize,
    bytes: Aligned<u8>,
}

impl Cache {
    /// An empty cache; `None` if the format can't store rows of this width or the size overflows.
    pub(crate) fn new(dtype: DType, width: usize, capacity: usize, sequences: usize) -> Option<Self> {
        let row_bytes = dtype.row_bytes(width)?;
        let bytes = row_bytes.checked_mul(capacity)?.checked_mul(sequences)?;
        Some(Cache { dtype, width, capacity, row_bytes, bytes: Aligned::new(bytes) })
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Elements per position.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    fn offset(&self, sequence: usize, position: usize) -> usize {
        (sequence * self.capacity + position % self.capacity) * self.row_bytes
    }

    /// Stores a position's row, rounded to the cache's format.
    pub(crate) fn write(&mut self, sequence: usize, position: usize, values: &[f32]) {
        let offset = self.offset(sequence, position);
        let target = &mut self.bytes[offset..offset + self.row_bytes];
        self.dtype.codec().encode(values, target).expect("the formats of caches can be written");
    }

    /// Decodes `columns` of a position's row, starting at a multiple of the format's block.
    #[inline(always)]
    pub(crate) fn read(&self, sequence: usize, position: usize, column: usize, values: &mut [f32]) {
        let offset = self.offset(sequence, position);
        let row = &self.bytes[offset..offset + self.row_bytes];
        match self.dtype {
            DType::F16 => {
                decode_halves(&row[column * 2..][..values.len() * 2], values, f16_to_f32);
            }
            dtype => {
                let bytes = dtype.row_bytes(column).expect("heads are whole blocks")
                    ..dtype.row_bytes(column + values.len()).expect("heads are whole blocks");
                dtype.codec().decode(&row[bytes], values);
            }
        }
    }
}

/// Decodes little-endian 16-bit numbers. Where they lie at even addresses, as they almost always do, they are read as
/// such: the compiler doesn't make good vectors of pairs of bytes.
#[inline(always)]
pub(crate) fn decode_halves(bytes: &[u8], values: &mut [f32], decode: impl Fn(u16) -> f32) {
    if let Ok(halves) = bytemuck::try_cast_slice::<u8, u16>(bytes) {
        for (value, half) in values.iter_mut().zip(halves) {
            *value = decode(u16::from_le(*half));
        }
    } else {
        for (value, half) in values.iter_mut().zip(bytes.chunks_exact(2)) {
            *value = decode(u16::from_le_bytes([half[0], half[1]]));
        }
    }
}

/// f16 to f32 with operations that vector units have (infinities and NaN become large numbers): the bits are moved to
/// where an f32 has them, and a multiplication corrects the exponent's bias, also for subnormals.
#[inline(always)]
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    let half = u32::from(half);
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((254 - 15) << 23);
    f32::from_bits(magnitude.to_bits() | (half & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_finite_half_is_exact() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits);
            if expected.is_finite() {
                assert_eq!(super::f16_to_f32(bits).to_bits(), expected.to_f32().to_bits(), "{bits:#06x}");
            }
        }
    }
}
