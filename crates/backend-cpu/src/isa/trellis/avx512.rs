//! AVX-512 with VNNI: the instructions of AVX2 on twice the lanes, and the products with the activations are added in
//! the same instruction. With VBMI2 (Zen 4, Ice Lake) a state is taken out of two words by one instruction instead of
//! three.

use std::arch::asm;
use std::arch::x86_64::*;

use tensor::format::trellis::{Codebook, Rate};

use super::{ForRate, Kernels, Row, Sums, for_positions, for_rate};
use crate::trellis::{
    Codes, GROUPS, HALVES, LANES, POSITIONS, QUAD, UNIT, WORDS_MAX, input_of, side_of, unit_words_of,
};

/// Rows of activations that are multiplied at once: their sums fill half of the registers.
const ROWS: usize = 8;

pub(super) fn select(rate: Rate, mul1: bool) -> Kernels {
    let kernels = Kernels { multiply: Some(multiply), ..Kernels::default() };
    match (mul1, is_x86_feature_detected!("avx512vbmi2")) {
        (false, _) => kernels,
        (true, true) => for_rate(rate, Vbmi2(kernels)),
        (true, false) => for_rate(rate, Mul1(kernels)),
    }
}

/// Adds what is specialized for the codebook MUL1 and a rate.
struct Mul1(Kernels);

impl ForRate for Mul1 {
    type Output = Kernels;
    fn run<const H: usize>(self) -> Kernels {
        // SAFETY: only selected where the processor has these features; the words are those of a unit.
        let multiply_one: super::MultiplyOne =
            |unit, row, sums| unsafe { plain::multiply_one::<H>(checked::<H>(unit), row, sums) };
        // SAFETY: as above.
        let multiply_bytes: super::MultiplyOne =
            |unit, row, sums| unsafe { plain::multiply_bytes::<H>(checked::<H>(unit), row, sums) };
        // SAFETY: as above.
        let decode: super::Decode =
            |unit, group, codes| unsafe { plain::decode::<H>(checked::<H>(unit), group % GROUPS, codes) };
        Kernels {
            multiply_one: Some(multiply_one),
            multiply_bytes: Some(multiply_bytes),
            decode: Some(decode),
            ..self.0
        }
    }
}

/// The same with VBMI2.
struct Vbmi2(Kernels);

impl ForRate for Vbmi2 {
    type Output = Kernels;
    fn run<const H: usize>(self) -> Kernels {
        // SAFETY: as above.
        let multiply_one: super::MultiplyOne =
            |unit, row, sums| unsafe { vbmi2::multiply_one::<H>(checked::<H>(unit), row, sums) };
        // SAFETY: as above.
        let multiply_bytes: super::MultiplyOne =
            |unit, row, sums| unsafe { vbmi2::multiply_bytes::<H>(checked::<H>(unit), row, sums) };
        // SAFETY: as above.
        let decode: super::Decode =
            |unit, group, codes| unsafe { vbmi2::decode::<H>(checked::<H>(unit), group % GROUPS, codes) };
        Kernels {
            multiply_one: Some(multiply_one),
            multiply_bytes: Some(multiply_bytes),
            decode: Some(decode),
            ..self.0
        }
    }
}

/// The words of a unit, as many as there have to be.
fn checked<const H: usize>(unit: &[u16]) -> *const u16 {
    assert_eq!(unit.len(), unit_words_of(H), "words of a unit");
    unit.as_ptr()
}

fn multiply(codes: &Codes, group: usize, rows: &[Row<'_>], sums: &mut [Sums]) {
    let (eights, rest) = rows.as_chunks::<ROWS>();
    let (eight_sums, rest_sums) = sums.as_chunks_mut::<ROWS>();
    // SAFETY: only selected where the processor has AVX-512 with VNNI.
    unsafe {
        for (rows, sums) in eights.iter().zip(eight_sums) {
            multiply_rows(codes, group, rows, sums);
        }
        let (pairs, rest) = rest.as_chunks::<2>();
        let (pair_sums, rest_sums) = rest_sums.as_chunks_mut::<2>();
        for (rows, sums) in pairs.iter().zip(pair_sums) {
            multiply_rows(codes, group, rows, sums);
        }
        for (row, sums) in rest.iter().zip(rest_sums) {
            multiply_rows(codes, group, std::array::from_ref(row), std::array::from_mut(sums));
        }
    }
}

/// The kernels that take states out of words, once for each set of features.
macro_rules! kernels {
    ($features:literal, $join:ident) => {
        use super::*;

        /// # Safety
        /// `unit` points to the words of a unit.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn multiply_one<const H: usize>(unit: *const u16, row: &Row<'_>, sums: &mut Sums) {
            for group in 0..GROUPS {
                let mut totals = [_mm512_setzero_si512(); 2];
                for half in 0..HALVES {
                    // SAFETY: by this function's contract.
                    let words = unsafe { load_words::<H>(unit, group, half) };
                    let quants = row.quants[half * UNIT / 2..].first_chunk().expect("half of the inputs");
                    for_positions!(multiply_position::<H>(&words, quants, &mut totals));
                }
                add_sums(totals, row, &mut sums[group * 16..]);
            }
        }

        /// With activations in bytes codes need not be summed up: four bytes of two of them times two activations,
        /// twice each, are one instruction.
        ///
        /// # Safety
        /// `unit` points to the words of a unit.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn multiply_bytes<const H: usize>(unit: *const u16, row: &Row<'_>, sums: &mut Sums) {
            for group in 0..GROUPS {
                // Of the lower and of the upper halves of products: chains of their own.
                let mut totals = [[_mm512_setzero_si512(); 2]; 2];
                for half in 0..HALVES {
                    // SAFETY: by this function's contract.
                    let words = unsafe { load_words::<H>(unit, group, half) };
                    let quants = row.quants[half * UNIT / 2..].first_chunk().expect("half of the inputs");
                    for_positions!(multiply_bytes_position::<H>(&words, quants, &mut totals));
                }
                let [low, high] = totals;
                let totals = [_mm512_add_epi32(low[0], high[0]), _mm512_add_epi32(low[1], high[1])];
                add_sums(totals, row, &mut sums[group * 16..]);
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn multiply_bytes_position<const H: usize, const P: usize>(
            words: &[__m512i; WORDS_MAX],
            quants: &[i16; UNIT / 2],
            totals: &mut [[__m512i; 2]; 2],
        ) {
            let [low, high] = product(state::<H, P>(words));
            let four = four_quants(quants, input_of(P));
            totals[0][side_of(P)] = multiply_add_bytes(totals[0][side_of(P)], low, four);
            totals[1][side_of(P)] = multiply_add_bytes(totals[1][side_of(P)], high, four);
        }

        /// # Safety
        /// `unit` points to the words of a unit, and `group` is below [`GROUPS`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn decode<const H: usize>(unit: *const u16, group: usize, codes: &mut Codes) {
            for half in 0..HALVES {
                // SAFETY: by this function's contract.
                let words = unsafe { load_words::<H>(unit, group, half) };
                let codes = codes[half * POSITIONS..].first_chunk_mut().expect("half of the codes");
                for_positions!(decode_position::<H>(&words, codes));
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn multiply_position<const H: usize, const P: usize>(
            words: &[__m512i; WORDS_MAX],
            quants: &[i16; UNIT / 2],
            totals: &mut [__m512i; 2],
        ) {
            let codes = code(state::<H, P>(words));
            totals[side_of(P)] = multiply_add(totals[side_of(P)], codes, four_quants(quants, input_of(P)));
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn decode_position<const H: usize, const P: usize>(
            words: &[__m512i; WORDS_MAX],
            codes: &mut [[i16; LANES]; POSITIONS],
        ) {
            // SAFETY: 32 codes are one register.
            unsafe { _mm512_storeu_si512(codes[P].as_mut_ptr().cast(), code(state::<H, P>(words))) };
        }

        /// The states at a position.
        #[target_feature(enable = $features)]
        #[inline]
        fn state<const H: usize, const P: usize>(words: &[__m512i; WORDS_MAX]) -> __m512i {
            // In bits after the beginning of the word before the group.
            let start = (P + 1) * H / 2;
            let (word, shift) = (start / 16, start % 16);
            if shift == 0 { words[word] } else { $join(words[word], words[word + 1], shift as i16) }
        }
    };
}

mod plain {
    kernels!("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni", join_by_shifts);
}

mod vbmi2 {
    kernels!("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi2", join_at_once);
}

/// The 16 bits after the first `shift` ones of `high` and `low`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn join_by_shifts(high: __m512i, low: __m512i, shift: i16) -> __m512i {
    let high = _mm512_sll_epi16(high, _mm_cvtsi32_si128(i32::from(shift)));
    let low = _mm512_srl_epi16(low, _mm_cvtsi32_si128(16 - i32::from(shift)));
    _mm512_or_si512(high, low)
}

/// The same in one instruction.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
#[inline]
fn join_at_once(high: __m512i, low: __m512i, shift: i16) -> __m512i {
    _mm512_shldv_epi16(high, low, _mm512_set1_epi16(shift))
}

/// The words of a group, after the one before it.
///
/// # Safety
/// `unit` points to the words of a unit, and `group` is below [`GROUPS`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_words<const H: usize>(unit: *const u16, group: usize, half: usize) -> [__m512i; WORDS_MAX] {
    let vector = |group: usize, word: usize| {
        // SAFETY: `group` and `word` are those of a unit, by this function's contract.
        unsafe { _mm512_loadu_si512(unit.add(((group * HALVES + half) * H + word) * LANES).cast()) }
    };
    let mut words = [_mm512_setzero_si512(); WORDS_MAX];
    words[0] = vector((group + GROUPS - 1) % GROUPS, H - 1);
    for word in 0..H {
        words[word + 1] = vector(group, word);
    }
    words
}

/// Products of states with the factor, their lower and their upper halves.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn product(state: __m512i) -> [__m512i; 2] {
    const MULTIPLIER: u32 = Codebook::Mul1.multiplier();
    let (low_factor, high_factor) =
        (_mm512_set1_epi16(MULTIPLIER as i16), _mm512_set1_epi16((MULTIPLIER >> 16) as i16));
    let low = _mm512_mullo_epi16(state, low_factor);
    let high = _mm512_add_epi16(_mm512_mulhi_epu16(state, low_factor), _mm512_mullo_epi16(state, high_factor));
    [low, high]
}

/// Codes of states, sums of bytes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn code(state: __m512i) -> __m512i {
    let [low, high] = product(state);
    let ones = _mm512_set1_epi8(1);
    _mm512_add_epi16(_mm512_maddubs_epi16(low, ones), _mm512_maddubs_epi16(high, ones))
}

/// The activations of the same input of four tiles, for each tile along the outputs.
#[target_feature(enable = "avx512f")]
#[inline]
fn four_quants(quants: &[i16; UNIT / 2], input: usize) -> __m512i {
    let four: &[i16; QUAD] = quants[input * QUAD..].first_chunk().expect("four quants");
    _mm512_set1_epi64(bytemuck::cast(*four))
}

/// `totals[l] + Σ codes[l][k] · quants[l][k]` over the two words of each lane. The compiler makes two instructions of
/// the intrinsic, so that the next one waits less; here others are never waited for, and their number counts.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn multiply_add(mut totals: __m512i, codes: __m512i, quants: __m512i) -> __m512i {
    // SAFETY: arithmetic on registers only.
    unsafe {
        asm!(
            "vpdpwssd {totals}, {codes}, {quants}",
            totals = inout(zmm_reg) totals,
            codes = in(zmm_reg) codes,
            quants = in(zmm_reg) quants,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    totals
}

/// `totals[l] + Σ products[l][k] · quants[l][k]` over the four bytes of each lane, unsigned and signed ones.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn multiply_add_bytes(mut totals: __m512i, products: __m512i, quants: __m512i) -> __m512i {
    // SAFETY: arithmetic on registers only.
    unsafe {
        asm!(
            "vpdpbusd {totals}, {products}, {quants}",
            totals = inout(zmm_reg) totals,
            products = in(zmm_reg) products,
            quants = in(zmm_reg) quants,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    totals
}

/// Adds the sums of both sides of a group to those of the unit.
#[target_feature(enable = "avx2,fma,avx512f")]
#[inline]
fn add_sums(totals: [__m512i; 2], row: &Row<'_>, sums: &mut [f32]) {
    let sums: &mut [f32; 16] = sums.first_chunk_mut().expect("the sums of a group");
    for (part, sums) in sums.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let half = |total: __m512i| match part {
            0 => _mm512_castsi512_si256(total),
            _ => _mm512_extracti64x4_epi64::<1>(total),
        };
        let total = _mm256_sub_epi32(_mm256_hadd_epi32(half(totals[0]), half(totals[1])), _mm256_set1_epi32(row.zero));
        // SAFETY: 8 sums are one register.
        unsafe {
            let before = _mm256_loadu_ps(sums.as_ptr());
            let after = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(row.factor), before);
            _mm256_storeu_ps(sums.as_mut_ptr(), after);
        }
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply_rows<const N: usize>(codes: &Codes, group: usize, rows: &[Row<'_>; N], sums: &mut [Sums; N]) {
    let mut totals = [[_mm512_setzero_si512(); 2]; N];
    for half in 0..HALVES {
        for first in (0..POSITIONS).step_by(8) {
            for position in first..first + 4 {
                // Positions 4 apart have the same input, and belong to both outputs of the group.
                let codes = [position, position + 4].map(|position| {
                    // SAFETY: 32 codes are one register.
                    unsafe { _mm512_loadu_si512(codes[half * POSITIONS + position].as_ptr().cast()) }
                });
                for (row, totals) in rows.iter().zip(&mut totals) {
                    let quants = row.quants[half * UNIT / 2..].first_chunk().expect("half of the inputs");
                    let four = four_quants(quants, input_of(position));
                    for side in 0..2 {
                        totals[side] = multiply_add(totals[side], codes[side], four);
                    }
                }
            }
        }
    }
    for ((totals, row), sums) in totals.into_iter().zip(rows).zip(sums) {
        add_sums(totals, row, &mut sums[group * 16..]);
    }
}
