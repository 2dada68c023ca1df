//! AVX2: a block's bytes are multiplied in pairs to 16 bits and added to 32.
//!
//! `maddubs` multiplies unsigned with signed bytes and adds pairs with saturation at 16 bits. Stored values of up to 6
//! bits are far from it (2 · 63 · 127); 8-bit ones (Q8_0) are made signed again and multiplied as |w| · sign(w)·a, at
//! most 2 · 128 · 127.

use std::arch::x86_64::*;

use crate::activations::Activations;
use crate::isa::portable::part_sum;
use crate::isa::{DotKernel, Sums, TOKENS, layout};
use crate::panel::{BLOCK, Panel, ROWS, scale_of};

/// The kernels of this instruction set.
pub(crate) struct Avx2;

impl DotKernel for Avx2 {
    fn dot<const D: usize>(panel: &Panel<'_>, activations: &Activations, row: usize, tokens: usize, sums: &mut Sums) {
        // SAFETY: only selected where the processor has these features.
        unsafe {
            // Two tokens' sums (4 vectors) and the unpacked values (4 at a time) fit the 16 registers.
            let mut done = 0;
            while done + 2 <= tokens.min(TOKENS) {
                dot_tokens::<D, 2>(panel, activations, row + done, &mut sums[done..done + 2]);
                done += 2;
            }
            if done < tokens {
                dot_tokens::<D, 1>(panel, activations, row + done, &mut sums[done..done + 1]);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_tokens<const D: usize, const M: usize>(
    panel: &Panel<'_>,
    activations: &Activations,
    row: usize,
    sums: &mut [[f32; ROWS]],
) {
    let layout = const { layout::<D>() };
    let block_bytes = const { self::layout::<D>().block_bytes() };
    assert!(panel.values.len() >= panel.blocks * block_bytes && activations.columns == panel.blocks * BLOCK);
    let groups = 8 / layout.parts;
    let mut totals = [[_mm256_setzero_ps(); 2]; M];
    for block in 0..panel.blocks {
        let bytes = &panel.values[block * block_bytes..];
        for part in 0..layout.parts {
            let (scale, offset) = scales::<D>(panel, block, part);
            let mut dots = [[_mm256_setzero_si256(); 2]; M];
            for group in part * groups..(part + 1) * groups {
                for half in 0..2 {
                    // SAFETY: the block lies inside `values` as asserted.
                    let values = unsafe { unpack::<D>(bytes.as_ptr(), group, half) };
                    for token in 0..M {
                        let quants = &activations.row(row + token)[block * BLOCK + group * 4..][..4];
                        // SAFETY: 4 bytes, as just sliced.
                        let four = unsafe { quants.as_ptr().cast::<i32>().read_unaligned() };
                        let products = multiply::<D>(values, _mm256_set1_epi32(four));
                        dots[token][half] = _mm256_add_epi32(dots[token][half], products);
                    }
                }
            }
            for token in 0..M {
                let sum = part_sum(activations, block, part, layout.parts, row + token);
                let a_scale = activations.scales[block * activations.stride + row + token];
                // With Q8_0 the values were made signed again.
                let zero = if layout.low == 8 { 0 } else { layout.zero };
                let correction = _mm256_set1_epi32(zero * sum);
                let shift = _mm256_set1_ps(a_scale * sum as f32);
                for half in 0..2 {
                    let dot = _mm256_cvtepi32_ps(_mm256_sub_epi32(dots[token][half], correction));
                    let product = _mm256_mul_ps(scale[half], _mm256_set1_ps(a_scale));
                    let total = _mm256_fmadd_ps(dot, product, totals[token][half]);
                    totals[token][half] =
                        if layout.has_offset() { _mm256_fmadd_ps(offset[half], shift, total) } else { total };
                }
            }
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        let (low, high) = sums.split_at_mut(8);
        // SAFETY: each half of a row of sums is 8 floats.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), totals[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), totals[1]);
        }
    }
}

/// Sums over the four bytes of each 32-bit lane of `values · quants`.
#[target_feature(enable = "avx2")]
#[inline]
fn multiply<const D: usize>(values: __m256i, quants: __m256i) -> __m256i {
    let pairs = if const { layout::<D>().low == 8 } {
        let signed = _mm256_xor_si256(values, _mm256_set1_epi8(-128));
        _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(quants, signed))
    } else {
        _mm256_maddubs_epi16(values, quants)
    };
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// Half of the vector of one column group as bytes: rows 0–7 or 8–15.
///
/// # Safety
/// A block of the format lies at `block`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn unpack<const D: usize>(block: *const u8, group: usize, half: usize) -> __m256i {
    let layout = const { layout::<D>() };
    // SAFETY: by the contract, `layout.low + layout.high` vectors of 64 bytes lie there.
    let load = |vector: usize| unsafe { _mm256_loadu_si256(block.add(vector * 64 + half * 32).cast()) };
    let low = plane(load(group % layout.low), layout.low, group / layout.low * layout.low, 0);
    if layout.high == 0 {
        return low;
    }
    let vector = load(layout.low + group % layout.high);
    _mm256_or_si256(low, plane(vector, layout.high, group / layout.high * layout.high, layout.low))
}

/// Takes `bits` bits of each byte from position `from` and puts them at position `to`.
#[target_feature(enable = "avx2")]
#[inline]
fn plane(vector: __m256i, bits: usize, from: usize, to: usize) -> __m256i {
    if bits == 8 {
        return vector;
    }
    let mask = _mm256_set1_epi8(((0xff_u8 >> (8 - bits)) << to) as i8);
    let shifted = if from >= to {
        _mm256_srl_epi16(vector, _mm_cvtsi32_si128((from - to) as i32))
    } else {
        _mm256_sll_epi16(vector, _mm_cvtsi32_si128((to - from) as i32))
    };
    _mm256_and_si256(shifted, mask)
}

/// Scales and offsets of 16 rows for one part of a block.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn scales<const D: usize>(panel: &Panel<'_>, block: usize, part: usize) -> ([__m256; 2], [__m256; 2]) {
    let layout = const { layout::<D>() };
    if matches!(layout.scales, crate::panel::Scales::Half) {
        let bytes = &panel.scales[block * 2 * ROWS..][..2 * ROWS];
        // SAFETY: two times 16 bytes, as just sliced.
        let halves =
            unsafe { [_mm_loadu_si128(bytes.as_ptr().cast()), _mm_loadu_si128(bytes.as_ptr().add(16).cast())] };
        return (halves.map(|half| _mm256_cvtph_ps(half)), [_mm256_setzero_ps(); 2]);
    }
    let mut scales = [0.0f32; ROWS];
    let mut offsets = [0.0f32; ROWS];
    for lane in 0..ROWS {
        (scales[lane], offsets[lane]) = scale_of(panel, block, part, lane);
    }
    // SAFETY: arrays of two times 8 floats.
    let load =
        |values: &[f32; ROWS]| unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))] };
    (load(&scales), load(&offsets))
}
