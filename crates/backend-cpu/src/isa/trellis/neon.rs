//! NEON: for 8 weights, 2 instructions take their states out of the words, 5 multiply, 2 add up bytes, and 2 multiply
//! with the activations and add.
//!
//! A vector of words takes four registers, each for two tiles along the outputs.

use std::arch::aarch64::*;

use tensor::format::trellis::{Codebook, Rate};

use super::{ForRate, Kernels, Row, Sums, for_positions, for_rate};
use crate::trellis::{
    Codes, GROUPS, HALVES, LANES, POSITIONS, QUAD, UNIT, WORDS_MAX, input_of, side_of, unit_words_of,
};

/// Rows of activations that are multiplied at once: their sums fill half of the registers.
const ROWS: usize = 4;
/// 16-bit lanes of a register.
const WIDTH: usize = 8;
/// Registers of a vector.
const PARTS: usize = LANES / WIDTH;

/// Sums of one side of a group: for both tiles of a register, one for each tile along the inputs.
type Totals = [int32x4_t; 2];

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
    for group in 0..GROUPS {
        for part in 0..PARTS {
            let mut totals = [[zero(); 2]; 2];
            for half in 0..HALVES {
                // SAFETY: the length was checked.
                let words = unsafe { load_words::<H>(unit.as_ptr(), group, half, part) };
                let quants = row.quants[half * UNIT / 2..].first_chunk().expect("half of the inputs");
                for_positions!(multiply_position::<H>(&words, quants, &mut totals));
            }
            add_sums(totals, row, &mut sums[group * 16 + part * 4..]);
        }
    }
}

fn decode<const H: usize>(unit: &[u16], group: usize, codes: &mut Codes) {
    assert!(unit.len() == unit_words_of(H) && group < GROUPS, "words of a unit, and a group of it");
    for part in 0..PARTS {
        for half in 0..HALVES {
            // SAFETY: the length and the group were checked.
            let words = unsafe { load_words::<H>(unit.as_ptr(), group, half, part) };
            let codes = codes[half * POSITIONS..].first_chunk_mut().expect("half of the codes");
            for_positions!(decode_position::<H>(&words, codes, part));
        }
    }
}

fn multiply(codes: &Codes, group: usize, rows: &[Row<'_>], sums: &mut [Sums]) {
    let (fours, rest) = rows.as_chunks::<ROWS>();
    let (four_sums, rest_sums) = sums.as_chunks_mut::<ROWS>();
    for (rows, sums) in fours.iter().zip(four_sums) {
        multiply_rows(codes, group, rows, sums);
    }
    for (row, sums) in rest.iter().zip(rest_sums) {
        multiply_rows(codes, group, std::array::from_ref(row), std::array::from_mut(sums));
    }
}

#[inline(always)]
fn zero() -> int32x4_t {
    // SAFETY: NEON is part of the base instruction set of aarch64.
    unsafe { vdupq_n_s32(0) }
}

/// The words of a group, after the one before it.
///
/// # Safety
/// `unit` points to the words of a unit, and `group` is below [`GROUPS`].
#[inline(always)]
unsafe fn load_words<const H: usize>(
    unit: *const u16,
    group: usize,
    half: usize,
    part: usize,
) -> [uint16x8_t; WORDS_MAX] {
    let vector = |group: usize, word: usize| {
        let at = ((group * HALVES + half) * H + word) * LANES + part * WIDTH;
        // SAFETY: `group` and `word` are those of a unit, by this function's contract.
        unsafe { vld1q_u16(unit.add(at)) }
    };
    let mut words = [vector((group + GROUPS - 1) % GROUPS, H - 1); WORDS_MAX];
    for word in 0..H {
        words[word + 1] = vector(group, word);
    }
    words
}

#[inline(always)]
fn multiply_position<const H: usize, const P: usize>(
    words: &[uint16x8_t; WORDS_MAX],
    quants: &[i16; UNIT / 2],
    totals: &mut [Totals; 2],
) {
    let totals = &mut totals[side_of(P)];
    *totals = multiply_add(*totals, code::<H, P>(words), four_quants(quants, input_of(P)));
}

#[inline(always)]
fn decode_position<const H: usize, const P: usize>(
    words: &[uint16x8_t; WORDS_MAX],
    codes: &mut [[i16; LANES]; POSITIONS],
    part: usize,
) {
    let codes: &mut [i16; WIDTH] = codes[P][part * WIDTH..].first_chunk_mut().expect("a part of a vector");
    // SAFETY: 8 codes are one register.
    unsafe { vst1q_s16(codes.as_mut_ptr(), code::<H, P>(words)) };
}

/// The codes at a position, sums of bytes.
#[inline(always)]
fn code<const H: usize, const P: usize>(words: &[uint16x8_t; WORDS_MAX]) -> int16x8_t {
    const MULTIPLIER: u32 = Codebook::Mul1.multiplier();
    let state = state::<H, P>(words);
    // SAFETY: NEON is part of the base instruction set of aarch64.
    unsafe {
        let (low_factor, high_factor) = (vdupq_n_u16(MULTIPLIER as u16), vdupq_n_u16((MULTIPLIER >> 16) as u16));
        let low = vmulq_u16(state, low_factor);
        let first = vmull_u16(vget_low_u16(state), vget_low_u16(low_factor));
        let second = vmull_high_u16(state, low_factor);
        let carry = vuzp2q_u16(vreinterpretq_u16_u32(first), vreinterpretq_u16_u32(second));
        let high = vmlaq_u16(carry, state, high_factor);
        let sums = vpaddlq_u8(vreinterpretq_u8_u16(low));
        vreinterpretq_s16_u16(vpadalq_u8(sums, vreinterpretq_u8_u16(high)))
    }
}

/// The states at a position.
#[inline(always)]
fn state<const H: usize, const P: usize>(words: &[uint16x8_t; WORDS_MAX]) -> uint16x8_t {
    // In bits after the beginning of the word before the group.
    let start = (P + 1) * H / 2;
    let (word, shift) = (start / 16, (start % 16) as i16);
    if shift == 0 {
        return words[word];
    }
    // SAFETY: NEON is part of the base instruction set of aarch64. A negative shift is one to the right.
    unsafe {
        let high = vshlq_u16(words[word], vdupq_n_s16(shift));
        vorrq_u16(high, vshlq_u16(words[word + 1], vdupq_n_s16(shift - 16)))
    }
}

/// The activations of the same input of four tiles, twice.
#[inline(always)]
fn four_quants(quants: &[i16; UNIT / 2], input: usize) -> int16x8_t {
    let four: &[i16; QUAD] = quants[input * QUAD..].first_chunk().expect("four quants");
    // SAFETY: NEON is part of the base instruction set of aarch64.
    unsafe { vreinterpretq_s16_u64(vdupq_n_u64(bytemuck::cast(*four))) }
}

/// Adds the products of the codes of two tiles.
#[inline(always)]
fn multiply_add(totals: Totals, codes: int16x8_t, quants: int16x8_t) -> Totals {
    // SAFETY: NEON is part of the base instruction set of aarch64.
    unsafe {
        [vmlal_s16(totals[0], vget_low_s16(codes), vget_low_s16(quants)), vmlal_high_s16(totals[1], codes, quants)]
    }
}

/// Adds the sums of both sides of two tiles to those of the unit.
#[inline(always)]
fn add_sums(totals: [Totals; 2], row: &Row<'_>, sums: &mut [f32]) {
    let sums: &mut [f32; 4] = sums.first_chunk_mut().expect("the sums of two tiles");
    // SAFETY: NEON is part of the base instruction set of aarch64; 4 sums are one register.
    unsafe {
        let pairs = totals.map(|[first, second]| vpaddq_s32(first, second));
        let total = vsubq_s32(vpaddq_s32(pairs[0], pairs[1]), vdupq_n_s32(row.zero));
        let after = vfmaq_n_f32(vld1q_f32(sums.as_ptr()), vcvtq_f32_s32(total), row.factor);
        vst1q_f32(sums.as_mut_ptr(), after);
    }
}

fn multiply_rows<const N: usize>(codes: &Codes, group: usize, rows: &[Row<'_>; N], sums: &mut [Sums; N]) {
    for part in 0..PARTS {
        let mut totals = [[[zero(); 2]; 2]; N];
        for half in 0..HALVES {
            for first in (0..POSITIONS).step_by(8) {
                for position in first..first + 4 {
                    // Positions 4 apart have the same input, and belong to both outputs of the group.
                    let codes = [position, position + 4].map(|position| {
                        let codes = codes[half * POSITIONS + position][part * WIDTH..].first_chunk::<WIDTH>();
                        // SAFETY: 8 codes are one register.
                        unsafe { vld1q_s16(codes.expect("a part of a vector").as_ptr()) }
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
        for ((totals, row), sums) in totals.into_iter().zip(rows).zip(&mut *sums) {
            add_sums(totals, row, &mut sums[group * 16 + part * 4..]);
        }
    }
}
