//! From a state of 16 bits to a weight.

use std::fmt;
use std::sync::OnceLock;

use half::f16;

/// How a state becomes a weight: a few integer instructions that scatter the 65,536 states over a bell curve.
///
/// The products are modulo 2³², and every weight is a binary16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Codebook {
    /// QTIP's: `x = 89226354 · state + 64248484`, and both halves of `(x & 0x8fff8fff) ^ 0x3b603b60` are numbers in
    /// binary16 whose sum is the weight. Checkpoints without a mark have it.
    ThreeInst,
    /// The same with `x = 0xcbac1fed · state`.
    Mcg,
    /// The sum of the four bytes of `0x83dcd12d · state`, minus 510, times 0.0067673 (about 1 ÷ 147.8). What exllamav3
    /// writes since July 2026, and the one that half rates exist for.
    Mul1,
}

impl Codebook {
    /// All of them, in the order of the declaration.
    pub const ALL: [Codebook; 3] = [Codebook::ThreeInst, Codebook::Mcg, Codebook::Mul1];

    /// Lower-case name, as exllamav3 writes it in `quantization_config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Codebook::ThreeInst => "3inst",
            Codebook::Mcg => "mcg",
            Codebook::Mul1 => "mul1",
        }
    }

    /// What the states are multiplied with.
    pub const fn multiplier(self) -> u32 {
        match self {
            Codebook::ThreeInst => 89_226_354,
            Codebook::Mcg => 0xcbac_1fed,
            Codebook::Mul1 => 0x83dc_d12d,
        }
    }

    /// The standard deviation of all values.
    pub fn deviation(self) -> f32 {
        let squares: f64 = self.table().iter().map(|&value| f64::from(value) * f64::from(value)).sum();
        (squares / 65_536.0).sqrt() as f32
    }

    /// The weight of a state.
    pub fn value(self, state: u16) -> f16 {
        let product = u32::from(state).wrapping_mul(self.multiplier());
        match self {
            Codebook::ThreeInst => sum_of_halves(product.wrapping_add(64_248_484)),
            Codebook::Mcg => sum_of_halves(product),
            Codebook::Mul1 => byte_sum(product),
        }
    }

    /// The weights of all states, computed once.
    pub fn table(self) -> &'static [f32; 65_536] {
        static TABLES: [OnceLock<Box<[f32; 65_536]>>; 3] = [const { OnceLock::new() }; 3];
        TABLES[self as usize].get_or_init(|| {
            let values: Vec<f32> = (0..=u16::MAX).map(|state| self.value(state).to_f32()).collect();
            values.into_boxed_slice().try_into().expect("one value for each state")
        })
    }
}

impl fmt::Display for Codebook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Keeps sign, two bits of the exponent and the fraction of both halves, and flips bits so that their magnitudes lie
/// between 2⁻³ and 2. The sum is rounded to binary16.
fn sum_of_halves(product: u32) -> f16 {
    let bits = (product & 0x8fff_8fff) ^ 0x3b60_3b60;
    f16::from_bits(bits as u16) + f16::from_bits((bits >> 16) as u16)
}

/// `(1024 + sum) · k + b` with one rounding, as a fused multiply-add in binary16 does it.
fn byte_sum(product: u32) -> f16 {
    let sum: u16 = product.to_le_bytes().into_iter().map(u16::from).sum();
    let (k, b) = (f16::from_bits(0x1eee).to_f32(), f16::from_bits(0xc931).to_f32());
    // The product has 22 bits, and with `b` still has: a multiple of 2⁻¹⁸ below 16. So binary32 is exact.
    f16::from_f32(f32::from(1024 + sum) * k + b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_spread_like_a_normal_distribution() {
        for (codebook, deviation) in [(Codebook::ThreeInst, 1.2437), (Codebook::Mcg, 1.2437), (Codebook::Mul1, 1.0)] {
            let table = codebook.table();
            let mean = table.iter().map(|&value| f64::from(value)).sum::<f64>() / 65_536.0;
            let within = table.iter().filter(|value| value.abs() < codebook.deviation()).count() as f64 / 65_536.0;
            assert!(mean.abs() < 0.02, "{codebook}: mean {mean}");
            assert!((codebook.deviation() - deviation).abs() < 0.02, "{codebook}: {}", codebook.deviation());
            // 68.27 % of a normal distribution.
            assert!((within - 0.6827).abs() < 0.015, "{codebook}: {within} within one standard deviation");
        }
    }

    #[test]
    fn mul1_is_affine_in_the_sum_of_bytes() {
        let table = Codebook::Mul1.table();
        for (state, &value) in table.iter().enumerate() {
            let sum: u32 = (state as u32).wrapping_mul(0x83dc_d12d).to_le_bytes().into_iter().map(u32::from).sum();
            let exact = (f64::from(sum) - 510.0) / 147.77;
            // Half a step of `b` and of the result, and the relative error of `k` over 1,534 steps.
            assert!((f64::from(value) - exact).abs() < 0.0035 + 0.002, "state {state}: {value} instead of {exact}");
        }
    }
}
