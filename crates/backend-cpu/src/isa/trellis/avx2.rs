//! AVX2: for 16 weights, 3 instructions take their states out of the words, 4 multiply, 3 add up bytes, and 2 multiply
//! with the activations and add. For single rows and up to 4 bits, 2 instructions have the mean of bytes in place of
//! their sum: it is rounded up, by ¼ on average, and its deviation of ¼ is 0.5 % of the weights' in all.
//!
//! A vector of words takes two registers: tiles 0 to 3 along the outputs, and 4 to 7.

use std::arch::x86_64::*;

use tensor::format::trellis::{Codebook, Rate};

use super::{ForRate, Kernels, Row, Sums, for_positions, for_rate};
use crate::trellis::{
    Codes, GROUPS, HALVES, LANES, POSITIONS, QUAD, UNIT, WORDS_MAX, input_of, side_of, unit_words_of,
};

/// Rows of activations that are multiplied at once: their sums fill half of the registers.
const ROWS: usize = 4;
/// 16-bit lanes of a register.
const WIDTH: usize = LANES / 2;

pub(super) fn select(rate: Rate, mul1: bool) -> Kernels {
    let kernels = Kernels { multiply: Some(multiply), ..Kernels::default() };
    if mul1 { for_rate(rate, Mul1(kernels)) } else { kernels }
}

/// Adds what is specialized for the codebook MUL1 and a rate.
struct Mul1(Kernels);

impl ForRate for Mul1 {
    type Output = Kernels;
    fn run<const H: usize>(self) -> Kernels {
        Kernels { multiply_one: Some(multiply_one::<H>), decode: Some(decode::<H>), ..self.0 }
    }
}

fn multiply_one<const H: usize>(unit: &[u16], row: &Row<'_>, sums: &mut Sums) {
    assert_eq!(unit.len(), unit_words_of(H), "words of a unit");
    // SAFETY: only selected where the processor has AVX2 and FMA; the length was checked.
    unsafe { multiply_one_unchecked::<H>(unit.as_ptr(), row, sums) }
}

fn decode<const H: usize>(unit: &[u16], group: usize, codes: &mut Codes) {
    assert!(unit.len() == unit_words_of(H) && group < GROUPS, "words of a unit, and a group of it");
    // SAFETY: as above.
    unsafe { decode_unchecked::<H>(unit.as_ptr(), group, codes) }
}

fn multiply(codes: &Codes, group: usize, rows: &[Row<'_>], sums: &mut [Sums]) {
    let (fours, rest) = rows.as_chunks::<ROWS>();
    let (four_sums, rest_sums) = sums.as_chunks_mut::<ROWS>();
    // SAFETY: only selected where the processor has AVX2 and FMA.
    unsafe {
        for (rows, sums) in fours.iter().zip(four_sums) {
            multiply_rows(codes, group, rows, sums);
        }
        for (row, sums) in rest.iter().zip(rest_sums) {
            multiply_rows(codes, group, std::array::from_ref(row), std::array::from_mut(sums));
        }
    }
}

/// # Safety
/// `unit` points to the words of a unit.
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_one_unchecked<const H: usize>(unit: *const u16, row: &Row<'_>, sums: &mut Sums) {
    for group in 0..GROUPS {
        for part in 0..2 {
            let mut totals = [_mm256_setzero_si256(); 2];
            for half in 0..HALVES {
                // SAFETY: by this function's contract.
                let words = unsafe { load_words::<H>(unit, group, half, part) };
                let quants = row.quants[half * UNIT / 2..].first_chunk().expect("half of the inputs");
                for_positions!(multiply_position::<H>(&words, quants, &mut totals));
            }
            let sums = &mut sums[group * 16 + part * 8..];
            if rounds_codes(H) {
                // Twice the sum of two means is on average one more than the code.
                let totals = totals.map(|total| _mm256_slli_epi32(total, 1));
                add_sums(totals, &Row { zero: row.zero + row.sum, ..*row }, sums);
            } else {
                add_sums(totals, row, sums);
            }
        }
    }
}

/// # Safety
/// `unit` points to the words of a unit, and `group` is below [`GROUPS`].
#[target_feature(enable = "avx2,fma")]
unsafe fn decode_unchecked<const H: usize>(unit: *const u16, group: usize, codes: &mut Codes) {
    for part in 0..2 {
        for half in 0..HALVES {
            // SAFETY: by this function's contract.
            let words = unsafe { load_words::<H>(unit, group, half, part) };
            let codes = codes[half * POSITIONS..].first_chunk_mut().expect("half of the codes");
            for_positions!(decode_position::<H>(&words, codes, part));
        }
    }
}

/// The words of a group, after the one before it.
///
/// # Safety
/// As for [`decode_unchecked`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_words<const H: usize>(unit: *const u16, group: usize, half: usize, part: usize) -> [__m256i; WORDS_MAX] {
    let vector = |group: usize, word: usize| {
        let at = ((group * HALVES + half) * H + word) * LANES + part * WIDTH;
        // SAFETY: `group` and `word` are those of a unit, by this function's contract.
        unsafe { _mm256_loadu_si256(unit.add(at).cast()) }
    };
    let mut words = [_mm256_setzero_si256(); WORDS_MAX];
    words[0] = vector((group + GROUPS - 1) % GROUPS, H - 1);
    for word in 0..H {
        words[word + 1] = vector(group, word);
    }
    words
}

#[target_feature(enable = "avx2")]
#[inline]
fn multiply_position<const H: usize, const P: usize>(
    words: &[__m256i; WORDS_MAX],
    quants: &[i16; UNIT / 2],
    totals: &mut [__m256i; 2],
) {
    let code = if rounds_codes(H) { half_code::<H, P>(words) } else { code::<H, P>(words) };
    let products = _mm256_madd_epi16(code, four_quants(quants, input_of(P)));
    totals[side_of(P)] = _mm256_add_epi32(totals[side_of(P)], products);
}

#[target_feature(enable = "avx2")]
#[inline]
fn decode_position<const H: usize, const P: usize>(
    words: &[__m256i; WORDS_MAX],
    codes: &mut [[i16; LANES]; POSITIONS],
    part: usize,
) {
    let codes: &mut [i16; WIDTH] = codes[P][part * WIDTH..].first_chunk_mut().expect("half of a vector");
    // SAFETY: the 16 codes are one register.
    unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), code::<H, P>(words)) };
}

/// Whether single rows round codes: where what quantization has lost is a hundred times as much.
const fn rounds_codes(half_bits: usize) -> bool {
    half_bits <= 8
}

/// The codes at a position, sums of bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn code<const H: usize, const P: usize>(words: &[__m256i; WORDS_MAX]) -> __m256i {
    let ([low, high], ones) = (product(state::<H, P>(words)), _mm256_set1_epi8(1));
    _mm256_add_epi16(_mm256_maddubs_epi16(low, ones), _mm256_maddubs_epi16(high, ones))
}

/// About half of the codes, and ½.
#[target_feature(enable = "avx2")]
#[inline]
fn half_code<const H: usize, const P: usize>(words: &[__m256i; WORDS_MAX]) -> __m256i {
    let [low, high] = product(state::<H, P>(words));
    _mm256_maddubs_epi16(_mm256_avg_epu8(low, high), _mm256_set1_epi8(1))
}

/// The lower and the upper halves of the states' products, of 32 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn product(state: __m256i) -> [__m256i; 2] {
    const MULTIPLIER: u32 = Codebook::Mul1.multiplier();
    let (low_factor, high_factor) =
        (_mm256_set1_epi16(MULTIPLIER as i16), _mm256_set1_epi16((MULTIPLIER >> 16) as i16));
    let high = _mm256_add_epi16(_mm256_mulhi_epu16(state, low_factor), _mm256_mullo_epi16(state, high_factor));
    [_mm256_mullo_epi16(state, low_factor), high]
}

/// The states at a position.
#[target_feature(enable = "avx2")]
#[inline]
fn state<const H: usize, const P: usize>(words: &[__m256i; WORDS_MAX]) -> __m256i {
    // In bits after the beginning of the word before the group.
    let start = (P + 1) * H / 2;
    let (word, shift) = (start / 16, start % 16);
    if shift == 0 {
        return words[word];
    }
    let high = _mm256_sll_epi16(words[word], _mm_cvtsi32_si128(shift as i32));
    let low = _mm256_srl_epi16(words[word + 1], _mm_cvtsi32_si128(16 - shift as i32));
    _mm256_or_si256(high, low)
}

/// The activations of the same input of four tiles, for each tile along the outputs.
#[target_feature(enable = "avx2")]
#[inline]
fn four_quants(quants: &[i16; UNIT / 2], input: usize) -> __m256i {
    let four: &[i16; QUAD] = quants[input * QUAD..].first_chunk().expect("four quants");
    _mm256_set1_epi64x(bytemuck::cast(*four))
}

/// Adds the sums of both sides of a group to those of the unit.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn add_sums(totals: [__m256i; 2], row: &Row<'_>, sums: &mut [f32]) {
    let sums: &mut [f32; 8] = sums.first_chunk_mut().expect("the sums of half a group");
    let total = _mm256_sub_epi32(_mm256_hadd_epi32(totals[0], totals[1]), _mm256_set1_epi32(row.zero));
    // SAFETY: 8 sums are one register.
    unsafe {
        let before = _mm256_loadu_ps(sums.as_ptr());
        let after = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(row.factor), before);
        _mm256_storeu_ps(sums.as_mut_ptr(), after);
    }
}

#[target_feature(enable = "avx2,fma")]
fn multiply_rows<const N: usize>(codes: &Codes, group: usize, rows: &[Row<'_>; N], sums: &mut [Sums; N]) {
    for part in 0..2 {
        let mut totals = [[_mm256_setzero_si256(); 2]; N];
        for half in 0..HALVES {
            for first in (0..POSITIONS).step_by(8) {
                for position in first..first + 4 {
                    // Positions 4 apart have the same input, and belong to both outputs of the group.
                    let codes = [position, position + 4].map(|position| {
                        let codes = codes[half * POSITIONS + position][part * WIDTH..].first_chunk::<WIDTH>();
                        // SAFETY: 16 codes are one register.
                        unsafe { _mm256_loadu_si256(codes.expect("half of a vector").as_ptr().cast()) }
                    });
                    for (row, totals) in rows.iter().zip(&mut totals) {
                        let quants = row.quants[half * UNIT / 2..].first_chunk().expect("half of the inputs");
                        let four = four_quants(quants, input_of(position));
                        for side in 0..2 {
                            let products = _mm256_madd_epi16(codes[side], four);
                            totals[side] = _mm256_add_epi32(totals[side], products);
                        }
                    }
                }
            }
        }
        for ((totals, row), sums) in totals.into_iter().zip(rows).zip(&mut *sums) {
            add_sums(totals, row, &mut sums[group * 16 + part * 8..]);
        }
    }
}
