//! NEON, which every 64-bit ARM has: 8 lanes.

use std::arch::aarch64::*;

use super::{Lanes, riffle};

/// NEON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon;

impl Lanes for Neon {
    type Vector = uint16x8_t;
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(self, value: u16) -> uint16x8_t {
        // SAFETY: NEON is part of the base instruction set of aarch64; so below.
        unsafe { vdupq_n_u16(value) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u16) -> uint16x8_t {
        // SAFETY: 8 integers can be read there.
        unsafe { vld1q_u16(from) }
    }

    #[inline(always)]
    unsafe fn store_interleaved<const N: usize>(self, mut vectors: [uint16x8_t; N], to: *mut u16) {
        // SAFETY: 8 · N integers can be written there.
        unsafe {
            for _ in 0..N.ilog2() {
                vectors = riffle(vectors, |a, b| (vzip1q_u16(a, b), vzip2q_u16(a, b)));
            }
            for n in 0..N {
                vst1q_u16(to.add(8 * n), vectors[n]);
            }
        }
    }

    #[inline(always)]
    fn add_cost<const DOUBLINGS: u32>(self, targets: uint16x8_t, values: uint16x8_t, costs: uint16x8_t) -> uint16x8_t {
        // SAFETY: NEON is there.
        unsafe {
            let mut distance = vqsubq_s16(vreinterpretq_s16_u16(targets), vreinterpretq_s16_u16(values));
            for _ in 0..DOUBLINGS {
                distance = vqaddq_s16(distance, distance);
            }
            let low = vmull_s16(vget_low_s16(distance), vget_low_s16(distance));
            let high = vmull_high_s16(distance, distance);
            // The upper halves of the 32-bit squares are their odd 16-bit lanes.
            let squares = vuzp2q_u16(vreinterpretq_u16_s32(low), vreinterpretq_u16_s32(high));
            vqaddq_u16(costs, squares)
        }
    }

    #[inline(always)]
    fn min(self, a: uint16x8_t, b: uint16x8_t) -> uint16x8_t {
        // SAFETY: NEON is there.
        unsafe { vminq_u16(a, b) }
    }
}
