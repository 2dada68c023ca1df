//! AVX-512 with VNNI: one instruction multiplies 4 columns of 16 rows with 4 activations.
//!
//! For a block of 32 columns: load the planes, unpack them to 8 vectors of bytes with shifts and masks, and for each
//! token start 16 sums at `−zero · Σa`, add the 8 dot products with the token's activations (broadcast from memory, 4
//! bytes at a time), convert to float and add `scale · a.scale ·` that. The unpacking is shared by up to 8 tokens.

use std::arch::x86_64::*;

use crate::activations::Activations;
use crate::isa::{DotKernel, Sums, TOKENS, layout};
use crate::panel::{BLOCK, Panel, ROWS, SUPER, Scales, Sections};

/// The kernels of this instruction set.
pub(crate) struct Avx512;

impl DotKernel for Avx512 {
    fn dot<const D: usize>(panel: &Panel<'_>, activations: &Activations, row: usize, tokens: usize, sums: &mut Sums) {
        // SAFETY: only selected where the processor has these features; each call is given as many sums as it writes.
        unsafe {
            match tokens {
                1 => dot_tokens::<D, 1>(panel, activations, row, sums),
                2 => dot_tokens::<D, 2>(panel, activations, row, sums),
                3 => dot_tokens::<D, 3>(panel, activations, row, sums),
                4 => dot_tokens::<D, 4>(panel, activations, row, sums),
                5 => dot_tokens::<D, 5>(panel, activations, row, sums),
                6 => dot_tokens::<D, 6>(panel, activations, row, sums),
                7 => dot_tokens::<D, 7>(panel, activations, row, sums),
                _ => dot_tokens::<D, TOKENS>(panel, activations, row, sums),
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn dot_tokens<const D: usize, const M: usize>(
    panel: &Panel<'_>,
    activations: &Activations,
    row: usize,
    sums: &mut Sums,
) {
    let layout = const { layout::<D>() };
    let sections = panel.sections();
    let block_bytes = const { self::layout::<D>().block_bytes() };
    let blocks = panel.blocks;
    assert!(panel.values.len() >= blocks * block_bytes && activations.columns == blocks * BLOCK);
    assert!(row + M <= activations.stride && activations.scales.len() >= blocks * activations.stride);
    assert!(activations.quants.len() >= (row + M) * activations.columns);
    assert!(activations.sums.len() >= 2 * blocks * activations.stride);
    let mut totals = [_mm512_setzero_ps(); M];
    for block in 0..blocks {
        prefetch(panel, block, block_bytes);
        // SAFETY: the block lies inside `values` as asserted.
        let values = unsafe { unpack::<D>(panel.values.as_ptr().add(block * block_bytes)) };
        for part in 0..layout.parts {
            let (scale, offset) = scales::<D>(&sections, block, part);
            for (token, total) in totals.iter_mut().enumerate() {
                // SAFETY: the row and the block lie inside the activations as asserted.
                let (a_scale, sum, dots) = unsafe {
                    let a_scale = *activations.scales.as_ptr().add(block * activations.stride + row + token);
                    let sum = part_sum_unchecked(activations, block, part, layout.parts, row + token);
                    let quants = activations.quants.as_ptr().add((row + token) * activations.columns + block * BLOCK);
                    (a_scale, sum, dot_part(&values, quants, part, layout.parts, -layout.zero * sum))
                };
                let product = _mm512_mul_ps(scale, _mm512_set1_ps(a_scale));
                *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), product, *total);
                if layout.has_offset() {
                    *total = _mm512_fmadd_ps(offset, _mm512_set1_ps(a_scale * sum as f32), *total);
                }
            }
        }
    }
    for (total, sums) in totals.into_iter().zip(sums) {
        // SAFETY: a row of sums is 16 floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
    }
}

/// `start + Σ values · quants` over the groups of one part, in two chains of dependent instructions.
///
/// # Safety
/// The 32 quants of the block lie at `quants`.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn dot_part(values: &[__m512i; 8], quants: *const i8, part: usize, parts: usize, start: i32) -> __m512i {
    let groups = 8 / parts;
    let mut chains = [_mm512_set1_epi32(start), _mm512_setzero_si512()];
    for group in 0..groups {
        let group = part * groups + group;
        // SAFETY: a group is 4 of the 32 bytes.
        let four = unsafe { quants.add(group * 4).cast::<i32>().read_unaligned() };
        chains[group % 2] = _mm512_dpbusd_epi32(chains[group % 2], values[group], _mm512_set1_epi32(four));
    }
    _mm512_add_epi32(chains[0], chains[1])
}

/// [`crate::isa::portable::part_sum`] without checks.
///
/// # Safety
/// `row` and `block` lie inside the activations.
#[inline(always)]
unsafe fn part_sum_unchecked(activations: &Activations, block: usize, part: usize, parts: usize, row: usize) -> i32 {
    // SAFETY: by the contract.
    let half = |half: usize| unsafe { *activations.sums.as_ptr().add((2 * block + half) * activations.stride + row) };
    if parts == 2 { half(part) } else { half(0) + half(1) }
}

/// Bytes ahead of the values in use that are asked for, into the second-level cache, which waits for more lines at once
/// than the first. The processor's own prefetching stops at every 4 KiB.
const AHEAD: usize = 8192;

/// Asks for the values some blocks ahead and for the next panel's scales. The addresses may lie outside of the matrix:
/// prefetching never faults.
#[target_feature(enable = "avx512f")]
#[inline]
fn prefetch(panel: &Panel<'_>, block: usize, block_bytes: usize) {
    let ahead = panel.values.as_ptr().wrapping_add(block * block_bytes + AHEAD);
    for line in (0..block_bytes).step_by(64) {
        _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line).cast());
    }
    let stride = panel.values.len() + panel.scales.len();
    if block.is_multiple_of(2) {
        _mm_prefetch::<_MM_HINT_T1>(panel.scales.as_ptr().wrapping_add(stride + block * 2 * ROWS).cast());
    }
}

/// The 8 vectors of a block as bytes.
///
/// # Safety
/// A block of the format lies at `block`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(crate) unsafe fn unpack<const D: usize>(block: *const u8) -> [__m512i; 8] {
    let layout = const { layout::<D>() };
    // SAFETY: by the contract, `layout.low + layout.high` vectors of 64 bytes lie there.
    let load = |vector: usize| unsafe { _mm512_loadu_si512(block.add(vector * 64).cast()) };
    let mut values = [_mm512_setzero_si512(); 8];
    for (group, value) in values.iter_mut().enumerate() {
        *value = plane(load(group % layout.low), layout.low, group / layout.low * layout.low, 0);
        if layout.high > 0 {
            let vector = load(layout.low + group % layout.high);
            let high = plane(vector, layout.high, group / layout.high * layout.high, layout.low);
            *value = _mm512_or_si512(*value, high);
        }
    }
    values
}

/// Takes `bits` bits of each byte from position `from` and puts them at position `to`. Shifts are of 16-bit lanes; the
/// mask drops what crossed from the neighbouring byte.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn plane(vector: __m512i, bits: usize, from: usize, to: usize) -> __m512i {
    if bits == 8 {
        return vector;
    }
    let mask = _mm512_set1_epi8(((0xff_u8 >> (8 - bits)) << to) as i8);
    let shifted = if from >= to {
        _mm512_srl_epi16(vector, _mm_cvtsi32_si128((from - to) as i32))
    } else {
        _mm512_sll_epi16(vector, _mm_cvtsi32_si128((to - from) as i32))
    };
    _mm512_and_si512(shifted, mask)
}

/// Scale and offset of 16 rows for one part of a block.
#[target_feature(enable = "avx2,f16c,avx512f")]
#[inline]
pub(crate) fn scales<const D: usize>(sections: &Sections<'_>, block: usize, part: usize) -> (__m512, __m512) {
    let layout = const { layout::<D>() };
    let half = |section: &[u8], index: usize| {
        let bytes = &section[index * 2 * ROWS..][..2 * ROWS];
        // SAFETY: 32 bytes, as just sliced.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
    };
    let byte = |section: &[u8]| {
        let bytes = &section[(block * layout.parts + part) * ROWS..][..ROWS];
        // SAFETY: 16 bytes, as just sliced.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    let unsigned = |bytes: __m128i| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
    let super_block = block / (SUPER / BLOCK);
    let zero = _mm512_setzero_ps();
    match layout.scales {
        Scales::Half => (half(sections.half_scales, block), zero),
        Scales::HalfOffset => (half(sections.half_scales, block), half(sections.half_offsets, block)),
        Scales::SignedByte => {
            let scale = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(byte(sections.byte_scales)));
            (_mm512_mul_ps(half(sections.half_scales, super_block), scale), zero)
        }
        Scales::ByteMinimum => {
            let minimum = _mm512_mul_ps(half(sections.half_offsets, super_block), unsigned(byte(sections.byte_minima)));
            let scale = _mm512_mul_ps(half(sections.half_scales, super_block), unsigned(byte(sections.byte_scales)));
            (scale, _mm512_sub_ps(zero, minimum))
        }
        Scales::Nibbles => {
            let bytes = _mm512_cvtepu8_epi32(byte(sections.byte_scales));
            let scale = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)));
            let minimum = _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes));
            let minimum = _mm512_mul_ps(half(sections.half_offsets, super_block), minimum);
            (_mm512_mul_ps(half(sections.half_scales, super_block), scale), _mm512_sub_ps(zero, minimum))
        }
    }
}
