//! From the words of a unit to states, and from states to codes or values, in plain code.

use tensor::format::trellis::{Codebook, Rate};

use super::{GROUPS, HALVES, LANES, POSITIONS, VECTORS};
use crate::cache::f16_to_f32;
use crate::level::Vectorized;

/// The codes of a group: `[half · 32 + position][lane]`, the weights are `factor · code + offset`.
pub(crate) type Codes = [[i16; LANES]; VECTORS];
/// The exact values of a group, in the same order.
pub(crate) type Values = [[f32; LANES]; VECTORS];

/// Steps of a code in 1: sums of two halves are below 4, and binary16 has these steps from 2 on.
const STEPS: f32 = 512.0;

/// How codes stand for weights: `factor · (code − zero) + offset`, where the sums of `code − zero` are exact.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affine {
    pub(crate) factor: f32,
    pub(crate) zero: i32,
    pub(crate) offset: f32,
}

impl Affine {
    /// For MUL1 the code is the sum of the four bytes; the weights' rounding to binary16, at most 2⁻¹⁰, is left out.
    /// For the others it is the weight in steps of 2⁻⁹.
    pub(crate) fn of(codebook: Codebook) -> Affine {
        match codebook {
            // Factor and offset are the binary16 numbers of the format: `(1024 + sum) · factor − 10.3828125`.
            Codebook::Mul1 => {
                let factor = 0.006_767_273;
                Affine { factor, zero: 510, offset: (1024.0 + 510.0) * factor - 10.382_812_5 }
            }
            Codebook::ThreeInst | Codebook::Mcg => Affine { factor: 1.0 / STEPS, zero: 0, offset: 0.0 },
        }
    }
}

/// Calls `take` with the states of each vector of a group, and its index in [`Codes`].
#[inline(always)]
pub(crate) fn for_each_state(rate: Rate, unit: &[u16], group: usize, mut take: impl FnMut(usize, &[u16; LANES])) {
    let half_bits = rate.half_bits();
    let vectors: &[[u16; LANES]] = unit.as_chunks().0;
    for half in 0..HALVES {
        let before = ((group + GROUPS - 1) % GROUPS * HALVES + half) * half_bits + half_bits - 1;
        let first = (group * HALVES + half) * half_bits;
        for position in 0..POSITIONS {
            // In bits after the beginning of the word before the group.
            let start = rate.end(position);
            let word = |index: usize| if index == 0 { &vectors[before] } else { &vectors[first + index - 1] };
            let (high, shift) = (word(start / 16), start % 16);
            if shift == 0 {
                take(half * POSITIONS + position, high);
                continue;
            }
            let (low, mut states) = (word(start / 16 + 1), [0; LANES]);
            for lane in 0..LANES {
                states[lane] = high[lane] << shift | low[lane] >> (16 - shift);
            }
            take(half * POSITIONS + position, &states);
        }
    }
}

/// Makes the codes of a group.
pub(crate) struct DecodeCodes<'a> {
    pub(crate) rate: Rate,
    pub(crate) codebook: Codebook,
    pub(crate) unit: &'a [u16],
    pub(crate) group: usize,
    pub(crate) codes: &'a mut Codes,
}

impl Vectorized for DecodeCodes<'_> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let DecodeCodes { rate, codebook, unit, group, codes } = self;
        match codebook {
            Codebook::Mul1 => for_each_state(rate, unit, group, |index, states| codes[index] = byte_sums(states)),
            Codebook::Mcg => for_each_state(rate, unit, group, |index, states| {
                codes[index] = sums_of_halves(states, Codebook::Mcg.multiplier(), 0);
            }),
            Codebook::ThreeInst => for_each_state(rate, unit, group, |index, states| {
                codes[index] = sums_of_halves(states, Codebook::ThreeInst.multiplier(), 64_248_484);
            }),
        }
    }
}

/// The sums of the four bytes of the products, from both halves of each product.
#[inline(always)]
fn byte_sums(states: &[u16; LANES]) -> [i16; LANES] {
    const MULTIPLIER: u32 = Codebook::Mul1.multiplier();
    let mut codes = [0; LANES];
    for lane in 0..LANES {
        let state = states[lane];
        let low = state.wrapping_mul(MULTIPLIER as u16);
        let carry = (u32::from(state) * (MULTIPLIER & 0xffff)) >> 16;
        let high = state.wrapping_mul((MULTIPLIER >> 16) as u16).wrapping_add(carry as u16);
        codes[lane] = ((low & 0xff) + (low >> 8) + (high & 0xff) + (high >> 8)) as i16;
    }
    codes
}

/// The sums of both halves of the products as binary16 numbers, in steps of 2⁻⁹.
#[inline(always)]
fn sums_of_halves(states: &[u16; LANES], multiplier: u32, addend: u32) -> [i16; LANES] {
    // Beside 1.5 · 2²³ a float has no room for a fraction.
    const MAGIC: f32 = 12_582_912.0;
    let mut codes = [0; LANES];
    for lane in 0..LANES {
        let product = u32::from(states[lane]).wrapping_mul(multiplier).wrapping_add(addend);
        let bits = (product & 0x8fff_8fff) ^ 0x3b60_3b60;
        let sum = f16_to_f32(bits as u16) + f16_to_f32((bits >> 16) as u16);
        codes[lane] = ((sum * STEPS + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits())) as i16;
    }
    codes
}

/// Looks up the exact values of a group.
pub(crate) struct DecodeValues<'a> {
    pub(crate) rate: Rate,
    pub(crate) codebook: Codebook,
    pub(crate) unit: &'a [u16],
    pub(crate) group: usize,
    pub(crate) values: &'a mut Values,
}

impl Vectorized for DecodeValues<'_> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let table = self.codebook.table();
        for_each_state(self.rate, self.unit, self.group, |index, states| {
            self.values[index] = states.map(|state| table[usize::from(state)]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_for_the_values_of_their_states() {
        for codebook in Codebook::ALL {
            let (affine, table) = (Affine::of(codebook), codebook.table());
            for first in (0..=u16::MAX).step_by(LANES) {
                let states = std::array::from_fn(|lane| first + lane as u16);
                let codes = match codebook {
                    Codebook::Mul1 => byte_sums(&states),
                    Codebook::Mcg => sums_of_halves(&states, codebook.multiplier(), 0),
                    Codebook::ThreeInst => sums_of_halves(&states, codebook.multiplier(), 64_248_484),
                };
                for (code, state) in codes.into_iter().zip(states) {
                    let value = affine.factor * (i32::from(code) - affine.zero) as f32 + affine.offset;
                    let error = (value - table[usize::from(state)]).abs();
                    // MUL1: the rounding to binary16 below 4; the others: that, and half a step.
                    let bound = if codebook == Codebook::Mul1 { 1.0 / 1024.0 + 1e-6 } else { 1.5 / 1024.0 };
                    assert!(error <= bound, "{codebook}: state {state} is off by {error}");
                }
            }
        }
    }
}
