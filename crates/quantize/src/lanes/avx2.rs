//! AVX2: 16 lanes.

use std::arch::x86_64::*;

use super::{Lanes, riffle};

/// There is one where the processor has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Avx2> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }
}

impl Lanes for Avx2 {
    type Vector = __m256i;
    const WIDTH: usize = 16;

    #[inline(always)]
    fn splat(self, value: u16) -> __m256i {
        // SAFETY: the processor has AVX2, as there is a `self`; so below.
        unsafe { _mm256_set1_epi16(value as i16) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u16) -> __m256i {
        // SAFETY: 16 integers can be read there.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_interleaved<const N: usize>(self, mut vectors: [__m256i; N], to: *mut u16) {
        // SAFETY: 16 · N integers can be written there.
        unsafe {
            // These instructions work on the halves of a vector separately, so the result is the lower halves of all
            // vectors, then the upper ones.
            for _ in 0..N.ilog2() {
                vectors = riffle(vectors, |a, b| (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)));
            }
            if N == 1 {
                _mm256_storeu_si256(to.cast(), vectors[0]);
            }
            for pair in 0..N / 2 {
                let (a, b) = (vectors[2 * pair], vectors[2 * pair + 1]);
                _mm256_storeu_si256(to.add(16 * pair).cast(), _mm256_permute2x128_si256::<0x20>(a, b));
                _mm256_storeu_si256(to.add(16 * (N / 2 + pair)).cast(), _mm256_permute2x128_si256::<0x31>(a, b));
            }
        }
    }

    #[inline(always)]
    fn add_cost<const DOUBLINGS: u32>(self, targets: __m256i, values: __m256i, costs: __m256i) -> __m256i {
        // SAFETY: there is a `self`.
        unsafe {
            let mut distance = _mm256_subs_epi16(targets, values);
            for _ in 0..DOUBLINGS {
                distance = _mm256_adds_epi16(distance, distance);
            }
            _mm256_adds_epu16(costs, _mm256_mulhi_epi16(distance, distance))
        }
    }

    #[inline(always)]
    fn min(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: there is a `self`.
        unsafe { _mm256_min_epu16(a, b) }
    }
}
