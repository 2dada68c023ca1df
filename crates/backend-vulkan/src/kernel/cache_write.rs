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
        sequences as u64 * self.ring as u64 * self.row_bytes() as u64
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

    /// Rows of one block: normal ones of every size down to what f16 can't scale, some with denormals, zeros,
    /// halfway cases and a largest magnitude that is a power of two or just below one.
    fn awkward_blocks(random: &mut Random, count: usize) -> Vec<f32> {
        let mut values = random.normal(count * 32, 1.0);
        for (index, block) in values.chunks_mut(32).enumerate() {
            let size = ((index / 8 % 164) as f32 - 140.0).exp2();
            for (i, value) in block.iter_mut().enumerate() {
                *value *= if index % 8 == 1 && i % 2 == 0 { size * 1e-3 } else { size };
            }
            match index % 8 {
                2 => block[index / 8 % 32] = 127.0 * size,
                3 => block[index / 8 % 32] = -4.0 * size,
                4 => block[index / 8 % 32] = f32::from_bits((4.0 * size).to_bits() - 1),
                // Halves of the scale's steps, and their neighbours.
                5 => block.iter_mut().enumerate().for_each(|(i, x)| *x = size * (4.0 * i as f32 + 3.0) / 2.0),
                6 => block.iter_mut().enumerate().for_each(|(i, x)| {
                    let half = (block_half(i) * (size / 3.0)).to_bits();
                    *x = f32::from_bits(half.saturating_add(i as u32 % 3).saturating_sub(1));
                }),
                _ => {}
            }
        }
        values
    }

    /// Halves from 1/2 to 127, the last a whole number.
    fn block_half(i: usize) -> f32 {
        if i == 31 { 127.0 } else { 4.0 * i as f32 + 0.5 }
    }

    /// What the device makes of rows of 32 whose estimates of quotients are off by `error` units in the last place.
    fn rounded_blocks(lab: &mut Lab, values: &[f32], dtype: DType, error: i32) -> Vec<f32> {
        let rows = values.len() / 32;
        let shape = CacheShape { dtype, width: 32, ring: rows };
        let input = View { address: lab.upload(bytemuck::cast_slice(values)).unwrap().address, width: 32 };
        let cache = lab.upload(&vec![0x5a; shape.bytes(1) as usize]).unwrap();
        let places: Vec<_> = (0..rows).map(|position| (position, 0)).collect();
        let tokens = lab.upload(&token_table(&places)).unwrap();
        let mut dispatch = cache_write(lab.features(), shape, input, cache.address, tokens.address, rows);
        dispatch.kernel.constants.push(error as u32);
        lab.run(&[dispatch]).unwrap();
        let found = lab.download(cache, shape.bytes(1) as usize).unwrap();
        found.chunks(shape.row_bytes()).flat_map(|row| decode_row(shape, row)).collect()
    }

    /// A device may divide less exactly than the reference does: the result is the same.
    #[test]
    fn rounding_does_not_depend_on_the_device() {
        let Some(mut lab) = Lab::for_tests() else { return };
        let values = awkward_blocks(&mut Random(11), 8192);
        for (dtype, errors) in [(DType::Q8_0, -3..=3), (DType::F16, 0..=0)] {
            let mut expected = vec![0.0; values.len()];
            tensor::reference::cache_write(&values, dtype, 32, &mut expected);
            for error in errors {
                let found = rounded_blocks(&mut lab, &values, dtype, error);
                for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                    // A scale beyond f16 is infinite, and makes NaN of zeros.
                    let same = found == expected || (found.is_nan() && expected.is_nan());
                    let value = values[i];
                    assert!(same, "{dtype}, {error} units: {value:e} is {found:e}, not {expected:e}");
                }
            }
        }
        // These values do tell such quotients from exact ones.
        for error in [-1, 1] {
            let differ = values.chunks(32).filter(|block| careless_quants(block, error) != careless_quants(block, 0));
            assert!(differ.count() > 20, "{error} units");
        }
    }

    /// The quants of a block with an inverse that is off by some units in the last place.
    fn careless_quants(block: &[f32], error: i32) -> Vec<i8> {
        let scale = block.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
        let inverse =
            if scale > 1e-30 { f32::from_bits((1.0 / scale).to_bits().wrapping_add_signed(error)) } else { 0.0 };
        block.iter().map(|x| (x * inverse).round() as i8).collect()
    }

    /// A block with a number that is none may become anything but numbers.
    #[test]
    fn what_is_not_finite_stays_so() {
        let Some(mut lab) = Lab::for_tests() else { return };
        let mut values = Random(12).normal(4 * 32, 1.0);
        values[7] = f32::INFINITY;
        values[64 + 31] = f32::NAN;
        values[96 + 16] = -f32::NAN;
        let found = rounded_blocks(&mut lab, &values, DType::Q8_0, 0);
        for (i, x) in found.iter().enumerate() {
            assert_eq!(x.is_nan(), i / 32 != 1, "element {i} is {x}");
        }
        let found = rounded_blocks(&mut lab, &values, DType::F16, 0);
        for (i, (value, x)) in values.iter().zip(found).enumerate() {
            assert_eq!((value.is_nan(), value.is_infinite()), (x.is_nan(), x.is_infinite()), "element {i} is {x}");
        }
    }
}
