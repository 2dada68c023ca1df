//! [`tensor::Op::CacheWrite`], and how caches lie in device memory.

use tensor::DType;

use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

/// Bytes that rows of caches are padded to.
const LINE_BYTES: usize = 16;

/// The layout of the keys or the values of one layer: `[sequences][ring][row]`, position `p` in row `p % ring`.
///
/// A row is padded to 16 bytes. F32 and F16: its elements. Q8_0: all 8-bit values, then the f16 scale of each block
/// of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CacheShape {
    /// F32, F16 or Q8_0.
    pub(crate) dtype: DType,
    /// Elements of a row; in Q8_0 a multiple of 32.
    pub(crate) width: usize,
    /// Positions of a sequence that are kept.
    pub(crate) ring: usize,
}

impl CacheShape {
    /// Bytes of one position.
    ///
    /// # Panics
    /// If the format is none for caches, or the width is no multiple of its block.
    pub(crate) fn row_bytes(self) -> usize {
        assert!([DType::F32, DType::F16, DType::Q8_0].contains(&self.dtype), "a cache in {}", self.dtype);
        let bytes = self.dtype.row_bytes(self.width).expect("a width of whole blocks");
        bytes.next_multiple_of(LINE_BYTES)
    }

    /// Bytes of all positions of a number of sequences.
    pub(crate) fn bytes(self, sequences: usize) -> u64 {
        let bytes = sequences as u64 * self.ring as u64 * self.row_bytes() as u64;
        assert!(bytes / (LINE_BYTES as u64) < 1 << 31, "{bytes} bytes of one cache can't be addressed");
        bytes
    }

    /// The name of a shader's variant for the format.
    pub(super) fn shader(self, stem: &str) -> String {
        format!("{stem}.{}", self.dtype.name().to_lowercase())
    }

    /// The constants of `cache.glsl`.
    pub(super) fn constants(self) -> Vec<u32> {
        vec![self.width as u32]
    }
}

/// Writes the `rows` rows of `input` over the positions of `tokens`, the address of a `{token, position, sequence, 0}`
/// for each, in the cache at the address `cache`.
pub(crate) fn cache_write(
    features: &Features,
    shape: CacheShape,
    input: View,
    cache: u64,
    tokens: u64,
    rows: usize,
) -> Dispatch {
    assert_eq!(input.width, shape.width);
    let kernel = kernel(features, shape.shader("cache_write"), shape.constants());
    let fours = input.width.div_ceil(4);
    let push = Push::default().address(input.address).address(cache).address(tokens);
    Dispatch {
        groups: [fours.div_ceil(kernel.workgroup as usize) as u32, rows as u32, 1],
        kernel,
        push: push.number(input.pitch() / 4).number(shape.ring),
        reads: vec![input.address, tokens],
        writes: vec![cache],
        bytes: (rows * (4 * input.width + shape.row_bytes())) as u64,
        operations: 0,
        label: format!("cache_write {rows}×{} {}", input.width, shape.dtype),
        ..Dispatch::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::attention::testing::{Random, rows, token_table};
    use crate::lab::Lab;

    /// What a cache's row says.
    pub(in crate::kernel) fn decode_row(shape: CacheShape, bytes: &[u8]) -> Vec<f32> {
        let half = |at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        (0..shape.width)
            .map(|i| match shape.dtype {
                DType::F32 => f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap()),
                DType::F16 => half(2 * i),
                _ => f32::from(bytes[i] as i8) * half(shape.width + i / 32 * 2),
            })
            .collect()
    }

    #[test]
    fn rows_are_rounded_as_the_reference_rounds_them_and_nothing_else_is_written() {
        let Some(mut lab) = Lab::for_tests() else { return };
        let mut random = Random(3);
        let (sequences, ring) = (3, 7);
        for dtype in [DType::F32, DType::F16, DType::Q8_0] {
            for width in [32, 96, 288, 70] {
                if dtype.row_bytes(width).is_none() {
                    continue;
                }
                let shape = CacheShape { dtype, width, ring };
                let places = [(0, 1), (0, 2), (6, 0), (13, 2), (15, 2)];
                let values = random.normal(places.len() * width, 3.0);
                let input = View { address: lab.upload(&rows(&values, width)).unwrap().address, width };
                let bytes = shape.bytes(sequences) as usize;
                let cache = lab.upload(&vec![0x5a; bytes]).unwrap();
                let tokens = lab.upload(&token_table(&places)).unwrap();
                let dispatch = cache_write(lab.features(), shape, input, cache.address, tokens.address, places.len());
                lab.run(&[dispatch]).unwrap();
                let found = lab.download(cache, bytes).unwrap();
                let mut expected = vec![0.0; values.len()];
                tensor::reference::cache_write(&values, dtype, width, &mut expected);
                let mut written = vec![false; sequences * ring];
                for (expected, (position, sequence)) in expected.chunks(width).zip(places) {
                    let row = sequence * ring + position % ring;
                    written[row] = true;
                    let found = decode_row(shape, &found[row * shape.row_bytes()..][..shape.row_bytes()]);
                    assert_eq!(found, expected, "{dtype} {width} at {position}");
                }
                for (row, bytes) in found.chunks(shape.row_bytes()).enumerate() {
                    assert!(written[row] || bytes.iter().all(|&byte| byte == 0x5a), "{dtype} {width} row {row}");
                }
            }
        }
    }
}
