//! NEON with the dot product extension: `sdot` multiplies 4 columns of 4 rows with 4 activations.
//!
//! Stored values of up to 6 bits are positive signed bytes as they are; 8-bit ones (Q8_0) are made signed again. `sdot`
//! has no stable intrinsic, so it is one line of inline assembly.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::activations::Activations;
use crate::isa::portable::part_sum;
use crate::isa::{DotKernel, Sums, TOKENS, layout};
use crate::panel::{BLOCK, Panel, ROWS, scale_of};

/// Vectors of 4 rows in a panel.
const VECTORS: usize = ROWS / 4;

/// The kernels of this instruction set.
pub(crate) struct Neon;

impl DotKernel for Neon {
    fn dot<const D: usize>(panel: &Panel<'_>, activations: &Activations, row: usize, tokens: usize, sums: &mut Sums) {
        // SAFETY: only selected where the processor has the extension.
        unsafe {
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

#[target_feature(enable = "neon,dotprod")]
unsafe fn dot_tokens<const D: usize, const M: usize>(
    panel: &Panel<'_>,
    activations: &Activations,
    row: usize,
    sums: &mut [[f32; ROWS]],
) {
    let layout = const { layout::<D>() };
    let block_bytes = const { self::layout::<D>().block_bytes() };
    assert!(panel.values.len() >= panel.blocks * block_bytes && activations.columns == panel.blocks * BLOCK);
    // With Q8_0 the values are made signed again.
    let zero = if layout.low == 8 { 0 } else { layout.zero };
    let groups = 8 / layout.parts;
    for block in 0..panel.blocks {
        let bytes = &panel.values[block * block_bytes..];
        for part in 0..layout.parts {
            let mut scales = [(0.0, 0.0); ROWS];
            for (lane, scale) in scales.iter_mut().enumerate() {
                *scale = scale_of(panel, block, part, lane);
            }
            let mut dots = [[vdupq_n_s32(0); VECTORS]; M];
            for group in part * groups..(part + 1) * groups {
                for vector in 0..VECTORS {
                    // SAFETY: the block lies inside `values` as asserted.
                    let values = unsafe { unpack::<D>(bytes.as_ptr(), group, vector) };
                    for token in 0..M {
                        let quants = &activations.row(row + token)[block * BLOCK + group * 4..][..4];
                        let four = i32::from_ne_bytes([0, 1, 2, 3].map(|k| quants[k] as u8));
                        let four = vreinterpretq_s8_s32(vdupq_n_s32(four));
                        dots[token][vector] = multiply(dots[token][vector], values, four);
                    }
                }
            }
            for token in 0..M {
                let sum = part_sum(activations, block, part, layout.parts, row + token);
                let a_scale = activations.scales[block * activations.stride + row + token];
                let mut products = [0i32; ROWS];
                for vector in 0..VECTORS {
                    // SAFETY: 4 of the 16 integers.
                    unsafe { vst1q_s32(products.as_mut_ptr().add(vector * 4), dots[token][vector]) };
                }
                for lane in 0..ROWS {
                    let (scale, offset) = scales[lane];
                    let product = scale * (products[lane] - zero * sum) as f32;
                    sums[token][lane] += a_scale * (product + offset * sum as f32);
                }
            }
        }
    }
}

/// `sums[r] + Σ values[r][k] · quants[r][k]` over the four bytes of each lane.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn multiply(mut sums: int32x4_t, values: int8x16_t, quants: int8x16_t) -> int32x4_t {
    // SAFETY: arithmetic on registers only.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {values:v}.16b, {quants:v}.16b",
            sums = inout(vreg) sums,
            values = in(vreg) values,
            quants = in(vreg) quants,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// A quarter of the vector of one column group as signed bytes: 4 rows.
///
/// # Safety
/// A block of the format lies at `block`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn unpack<const D: usize>(block: *const u8, group: usize, vector: usize) -> int8x16_t {
    let layout = const { layout::<D>() };
    // SAFETY: by the contract, `layout.low + layout.high` vectors of 64 bytes lie there.
    let load = |plane: usize| unsafe { vld1q_u8(block.add(plane * 64 + vector * 16)) };
    if layout.low == 8 {
        return vreinterpretq_s8_u8(veorq_u8(load(group), vdupq_n_u8(0x80)));
    }
    let low = plane(load(group % layout.low), layout.low, group / layout.low * layout.low, 0);
    if layout.high == 0 {
        return vreinterpretq_s8_u8(low);
    }
    let vector = load(layout.low + group % layout.high);
    let high = plane(vector, layout.high, group / layout.high * layout.high, layout.low);
    vreinterpretq_s8_u8(vorrq_u8(low, high))
}

/// Takes `bits` bits of each byte from position `from` and puts them at position `to`.
#[target_feature(enable = "neon")]
#[inline]
fn plane(vector: uint8x16_t, bits: usize, from: usize, to: usize) -> uint8x16_t {
    let mask = vdupq_n_u8((0xff_u8 >> (8 - bits)) << to);
    vandq_u8(vshlq_u8(vector, vdupq_n_s8(to as i8 - from as i8)), mask)
}
