//! AVX-512: 32 lanes.

use std::arch::x86_64::*;

use super::{Lanes, riffle};

/// There is one where the processor has AVX-512 F and BW, and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Avx512> {
        let all = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        (all && is_x86_feature_detected!("fma")).then_some(Avx512(()))
    }
}

/// Lanes of two vectors by turns, beginning with those at `first`; 32 and above is the second vector.
const fn turns(first: i16) -> [i16; 32] {
    let mut lanes = [0; 32];
    let mut index = 0;
    while index < 32 {
        lanes[index] = first + index as i16 / 2 + 32 * (index as i16 % 2);
        index += 1;
    }
    lanes
}

impl Lanes for Avx512 {
    type Vector = __m512i;
    const WIDTH: usize = 32;

    #[inline(always)]
    fn splat(self, value: u16) -> __m512i {
        // SAFETY: the processor has AVX-512, as there is a `self`; so below.
        unsafe { _mm512_set1_epi16(value as i16) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u16) -> __m512i {
        // SAFETY: 32 integers can be read there.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_interleaved<const N: usize>(self, mut vectors: [__m512i; N], to: *mut u16) {
        // SAFETY: 32 · N integers can be written there.
        unsafe {
            let low = _mm512_loadu_si512(const { turns(0) }.as_ptr().cast());
            let high = _mm512_loadu_si512(const { turns(16) }.as_ptr().cast());
            for _ in 0..N.ilog2() {
                vectors = riffle(vectors, |a, b| {
                    (_mm512_permutex2var_epi16(a, low, b), _mm512_permutex2var_epi16(a, high, b))
                });
            }
            for n in 0..N {
                _mm512_storeu_si512(to.add(32 * n).cast(), vectors[n]);
            }
        }
    }

    #[inline(always)]
    fn add_cost<const DOUBLINGS: u32>(self, targets: __m512i, values: __m512i, costs: __m512i) -> __m512i {
        // SAFETY: there is a `self`.
        unsafe {
            let mut distance = _mm512_subs_epi16(targets, values);
            for _ in 0..DOUBLINGS {
                distance = _mm512_adds_epi16(distance, distance);
            }
            _mm512_adds_epu16(costs, _mm512_mulhi_epi16(distance, distance))
        }
    }

    #[inline(always)]
    fn min(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: there is a `self`.
        unsafe { _mm512_min_epu16(a, b) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the instruction does with its indices, for machines without it.
    #[test]
    fn indices_take_lanes_by_turns() {
        let permute = |a: &[u16], indices: [i16; 32], b: &[u16]| -> Vec<u16> {
            indices.iter().map(|&index| [a, b][usize::from(index & 32 != 0)][(index & 31) as usize]).collect()
        };
        let (a, b): (Vec<u16>, Vec<u16>) = ((0..32).collect(), (100..132).collect());
        let expected: Vec<u16> = (0..32).flat_map(|lane| [lane, 100 + lane]).collect();
        assert_eq!([permute(&a, turns(0), &b), permute(&a, turns(16), &b)].concat(), expected);
    }
}
