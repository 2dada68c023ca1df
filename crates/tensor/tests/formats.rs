//! The codecs against the `gguf` Python package, and the error of a round trip against its derivation.

use proptest::prelude::*;
use std::path::Path;
use tensor::DType;
use tensor::format::EncodeError;

/// Formats that can be written.
const WRITTEN: [DType; 8] =
    [DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0];

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/formats").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn golden_values(name: &str) -> Vec<f32> {
    golden(name).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xaa; dtype.row_bytes(values.len()).expect("whole blocks")];
    dtype.codec().encode(values, &mut bytes).expect("a format that can be written");
    bytes
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![f32::NAN; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    dtype.codec().decode(bytes, &mut values);
    values
}

#[test]
fn decoding_equals_gguf_bit_for_bit() {
    for dtype in DType::ALL {
        let expected = golden_values(&format!("{dtype}.decoded.bin"));
        let found = decode(dtype, &golden(&format!("{dtype}.blocks.bin")));
        assert_eq!(found.len(), expected.len(), "{dtype}");
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{dtype} weight {index}: {found} instead of {expected}");
        }
    }
}

#[test]
fn encoding_equals_gguf_byte_for_byte() {
    let values = golden_values("values.bin");
    for dtype in WRITTEN {
        let expected = golden(&format!("{dtype}.encoded.bin"));
        let found = encode(dtype, &values);
        assert_eq!(found.len(), expected.len(), "{dtype}");
        for (block, (found, expected)) in
            found.chunks(dtype.block_bytes()).zip(expected.chunks(dtype.block_bytes())).enumerate()
        {
            let values = &values[block * dtype.block_len()..][..dtype.block_len()];
            assert_eq!(found, expected, "{dtype} block {block} of {values:?}");
        }
    }
}

#[test]
fn k_formats_are_read_only() {
    for dtype in DType::ALL.into_iter().filter(|dtype| !WRITTEN.contains(dtype)) {
        let (values, mut bytes) = (vec![0.0; dtype.block_len()], vec![0; dtype.block_bytes()]);
        assert_eq!(dtype.codec().encode(&values, &mut bytes), Err(EncodeError::ReadOnly(dtype)));
    }
}

#[test]
fn codecs_are_listed_under_their_own_names() {
    for dtype in DType::ALL {
        assert_eq!(dtype.codec().dtype(), dtype);
        assert_eq!(format!("{dtype:?}").to_lowercase(), dtype.name());
        assert_eq!(DType::from_name(&dtype.name().to_uppercase()), Some(dtype));
    }
    assert_eq!(DType::from_name("q4"), None);
}

#[test]
fn sizes_never_overflow() {
    assert_eq!(DType::Q4_0.row_bytes(33), None);
    assert_eq!(DType::Q6_K.tensor_bytes(3, 512), Some(3 * 2 * 210));
    assert_eq!(DType::F32.row_bytes(usize::MAX), None);
    assert_eq!(DType::Q8_0.tensor_bytes(usize::MAX, 32), None);
}

#[test]
fn every_binary16_and_bfloat16_survives() {
    for dtype in [DType::F16, DType::BF16] {
        for bits in 0..=u16::MAX {
            let value = decode(dtype, &bits.to_le_bytes())[0];
            if !value.is_nan() {
                assert_eq!(encode(dtype, &[value]), bits.to_le_bytes(), "{dtype} {bits:#x}");
            }
        }
    }
    assert!(decode(DType::BF16, &encode(DType::BF16, &[f32::from_bits(0x7f80_0001)]))[0].is_nan());
    assert!(decode(DType::F16, &encode(DType::F16, &[f32::from_bits(0x7f80_0001)]))[0].is_nan());
}

#[test]
#[should_panic(expected = "2 blocks, 1 × 32 values")]
fn wrong_lengths_panic() {
    DType::Q8_0.codec().decode(&[0; 68], &mut [0.0; 32]);
}

/// The largest error of a round trip in binary16, for a number of magnitude `x`.
fn half_error(x: f32) -> f32 {
    x.abs() / 2048.0 + 2f32.powi(-25)
}

/// The largest error that writing `block` in `dtype` may leave in one of its elements, with a little for the f32
/// arithmetic of the encoder.
fn error_bound(dtype: DType, block: &[f32], value: f32) -> f32 {
    let magnitude = block.iter().fold(0f32, |max, value| max.max(value.abs()));
    let low = block.iter().copied().fold(f32::INFINITY, f32::min);
    let high = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let bound = match dtype {
        DType::F32 => return 0.0,
        DType::F16 => half_error(value),
        DType::BF16 => value.abs() / 256.0 + 2f32.powi(-134),
        // A whole step at the end that the odd one out of 2^n values is missing from, and n steps' scale error.
        DType::Q4_0 => magnitude / 8.0 + 8.0 * half_error(magnitude / 8.0),
        DType::Q5_0 => magnitude / 16.0 + 16.0 * half_error(magnitude / 16.0),
        DType::Q4_1 => (high - low) / 30.0 + 15.0 * half_error((high - low) / 15.0) + half_error(low),
        DType::Q5_1 => (high - low) / 62.0 + 31.0 * half_error((high - low) / 31.0) + half_error(low),
        DType::Q8_0 => magnitude / 254.0 + 127.0 * half_error(magnitude / 127.0),
        DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::Q5_K | DType::Q6_K => unreachable!("read-only"),
    };
    bound + 4.0 * f32::EPSILON * magnitude
}

proptest! {
    #[test]
    fn a_round_trip_stays_within_the_derived_bound(
        block in prop::collection::vec(-1f32..1.0, 32),
        exponent in -30i32..12,
        offset in -2f32..2.0,
    ) {
        let values: Vec<f32> = block.iter().map(|value| (value + offset) * 2f32.powi(exponent)).collect();
        for dtype in WRITTEN {
            for (index, decoded) in decode(dtype, &encode(dtype, &values)).into_iter().enumerate() {
                let bound = error_bound(dtype, &values, values[index]);
                prop_assert!((decoded - values[index]).abs() <= bound,
                    "{dtype} {index}: {} became {decoded}, bound {bound}", values[index]);
            }
        }
    }

    #[test]
    fn any_numbers_can_be_written(bits in prop::collection::vec(any::<u32>(), 32)) {
        let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        for dtype in WRITTEN {
            prop_assert_eq!(decode(dtype, &encode(dtype, &values)).len(), values.len());
        }
    }

    #[test]
    fn any_bytes_can_be_read(seed in prop::collection::vec(any::<u8>(), 210)) {
        for dtype in DType::ALL {
            prop_assert_eq!(decode(dtype, &seed[..dtype.block_bytes()]).len(), dtype.block_len());
        }
    }

    #[test]
    fn writing_again_what_was_read_changes_nothing_in_q8_0(
        scale in 0.01f32..1.0,
        quants in prop::collection::vec(-127i32..=127, 31),
    ) {
        let scale = half::f16::from_f32(scale).to_f32();
        let values: Vec<f32> = quants.into_iter().chain([127]).map(|quant| quant as f32 * scale).collect();
        prop_assert_eq!(decode(DType::Q8_0, &encode(DType::Q8_0, &values)), values);
    }
}
