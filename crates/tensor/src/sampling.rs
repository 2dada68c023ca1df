//! How a token is chosen from logits, so that every device chooses the same one.
//!
//! [`crate::reference::sample`] is the definition. Each step is one that devices repeat bit for bit: single additions,
//! subtractions and multiplications in f32, comparisons, and integers. There is no division, no exponential function
//! of a library, no sum whose result depends on the order, and no f32 result below the normal numbers that matters
//! (some devices flush those to zero). A device must not contract a multiplication and an addition to one operation.
//!
//! In order:
//! 1. **Canonical logits.** Magnitudes below 2⁻¹⁰⁰ count as 0, and -0 as 0 ([`canonical`]). NaNs are passed over.
//! 2. **Penalty.** Logits of tokens that occurred are multiplied by [`Constants::penalty_inverse`] if they are above 0
//!    and by [`Constants::penalty`] if not, and made canonical again.
//! 3. **Order.** Larger logits first, of equal ones lower ids ([`order_key`]). The first is the best; if its logit is
//!    not finite, nothing can be chosen. At temperature 0 it is the choice.
//! 4. **Weights.** A logit's [`weight`] is its probability over that of the best, in units of 2⁻³¹.
//! 5. **Top-k** keeps the first k.
//! 6. **Top-p** keeps the fewest of these, from the first on, whose weights sum to at least [`Constants::enough`] of
//!    the sum of all that top-k kept.
//! 7. **Min-p** keeps those of these that are at most [`Constants::distance_max`] below the best.
//! 8. **Draw.** Of what is left, in the order of ids, the first is taken at which the running sum of weights passes
//!    [`target`], which follows from the seed, the token's position and the sum of all that is left.
//!
//! Weights round down, so tokens of less than 2⁻³¹ of the best one's probability are never drawn. For a vocabulary of
//! 262,144 that is a probability of at most 1.3·10⁻⁴ of the best one's in all, and that only if every token is just
//! below it.

use crate::philox;

/// How a token is chosen from logits; [`mod@crate::sampling`] says in which order the fields act.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; finite, at least 0. 0 takes the largest and ignores the fields below but the penalty.
    pub temperature: f32,
    /// Only the k largest logits; 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that together have this probability, above 0; 1 for all.
    pub top_p: f32,
    /// Only tokens of at least this share of the probability of the most probable; 0 for all, at most 1.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred, the prompt's included; finite, above
    /// 0; 1 for none.
    pub repetition_penalty: f32,
    /// Same seed, same text.
    pub seed: u64,
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Sampling {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// The numbers that a device works with, computed on the host.
    pub fn constants(&self) -> Constants {
        let temperature = f64::from(self.temperature);
        let penalty = f64::from(self.repetition_penalty);
        Constants {
            penalty: factor(penalty),
            penalty_inverse: factor(1.0 / penalty),
            // At temperature 0 nothing is weighed.
            halvings: factor(std::f64::consts::LOG2_E / temperature),
            distance_max: (-temperature * f64::from(self.min_p).ln()).clamp(0.0, f64::from(f32::MAX)) as f32,
            top_p: ((f64::from(self.top_p) * 4294967296.0) as u64).clamp(1, 1 << 32),
        }
    }
}

impl Default for Sampling {
    /// What Gemma 3 is published with: temperature 1, top-k 64, top-p 0.95; seed 0.
    fn default() -> Sampling {
        Sampling { temperature: 1.0, top_k: 64, top_p: 0.95, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Rounds a positive number to a normal, finite f32.
fn factor(value: f64) -> f32 {
    value.clamp(f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)) as f32
}

/// A [`Sampling`] in the numbers that devices compute with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    /// Multiplies logits of at most 0 of tokens that occurred.
    pub penalty: f32,
    /// Multiplies logits above 0 of tokens that occurred.
    pub penalty_inverse: f32,
    /// Halvings of the probability per unit of the logit: log₂ e over the temperature.
    pub halvings: f32,
    /// How far below the best logit min-p reaches: `-temperature · ln(min_p)`.
    pub distance_max: f32,
    /// Top-p as a fixed-point number: `top_p · 2³²`, from 1 to 2³².
    pub top_p: u64,
}

impl Constants {
    /// A canonical logit of a token that occurred, penalized.
    pub fn penalize(&self, logit: f32) -> f32 {
        canonical(if logit > 0.0 { logit * self.penalty_inverse } else { logit * self.penalty })
    }

    /// The sum of weights that is enough for top-p: `⌈total · top_p / 2³²⌉`, at least 1.
    pub fn enough(&self, total: u64) -> u64 {
        (u128::from(total) * u128::from(self.top_p)).div_ceil(1 << 32) as u64
    }
}

/// A logit as it is compared and subtracted: 0 for magnitudes below 2⁻¹⁰⁰ and for -0, itself otherwise (also a NaN or
/// an infinity). Differences of canonical logits are 0 or at least 2⁻¹²³, so none is below the normal numbers.
pub fn canonical(logit: f32) -> f32 {
    const SMALLEST: u32 = (127 - 100) << 23;
    if logit.to_bits() & 0x7fff_ffff < SMALLEST { 0.0 } else { logit }
}

/// An integer that orders canonical logits as numbers: larger for a larger logit. `None` for a NaN.
pub fn order_key(logit: f32) -> Option<u32> {
    let bits = logit.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return None;
    }
    Some(if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits })
}

/// Coefficients of a polynomial that equals 2^-x for x from 0 to 1 with a relative error below 4·10⁻⁹, and of 2.1·10⁻⁷
/// as it is evaluated in f32: it goes through seven points (Chebyshev-Lobatto nodes) of it. The first is that of x⁰.
#[allow(clippy::approx_constant, reason = "the second one is near ln 2, and must not be it")]
pub const HALVING: [f32; 7] =
    [1.0, -0.693_147_1, 0.240_224_88, -0.055_492_524, 0.009_581_754, -0.001_276_392_8, 0.000_109_387_525];

/// The weight of the best logit.
pub const WEIGHT_MAX: u32 = 1 << 31;

/// The weight of a canonical logit beside the `best` of all: `2^31 · 2^-(halvings · (best - logit))`, rounded down,
/// with a relative error of 2.1·10⁻⁷ and that of the product's rounding. 2³¹ for the best, 0 for those of less than
/// 2⁻³¹ and for a NaN.
pub fn weight(best: f32, logit: f32, constants: &Constants) -> u32 {
    let halvings = (best - logit) * constants.halvings;
    if halvings < 32.0 {
        // Rounds down, since it is not negative.
        let whole = halvings as i32;
        let part = halvings - whole as f32;
        let [first, rest @ ..] = HALVING;
        let tail = rest.into_iter().rev().fold(0.0, |sum, coefficient| (sum + coefficient) * part);
        // From 2³⁰ to 2³¹, of 24 significant bits: exact.
        let fixed = ((first + tail) * 2147483648.0) as u32;
        fixed >> whole
    } else {
        // Also for a NaN.
        0
    }
}

/// Where a draw lands in the running sum of weights: below `total`. It is `total` times 64 random bits over 2⁶⁴,
/// rounded down.
pub fn target(seed: u64, position: u64, total: u64) -> u64 {
    ((u128::from(philox::bits(seed, position)) * u128::from(total)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_powers_of_two_to_seven_digits() {
        let constants = Constants { halvings: 1.0, ..Sampling::default().constants() };
        let mut last = u32::MAX;
        for step in 0..=40 << 12 {
            let distance = step as f32 / 4096.0;
            let found = weight(3.0, 3.0 - distance, &constants);
            let exact = (31.0 - f64::from(distance)).exp2();
            assert!(f64::from(found) <= exact * (1.0 + 2.1e-7), "{distance}: {found} {exact}");
            assert!(f64::from(found) > exact * (1.0 - 2.1e-7) - 1.0, "{distance}: {found} {exact}");
            assert!(found <= last, "{distance}");
            last = found;
        }
        assert_eq!(weight(3.0, 3.0, &constants), WEIGHT_MAX);
        assert_eq!(weight(3.0, -28.0, &constants), 1);
        assert_eq!(weight(3.0, -29.0, &constants), 0);
        assert_eq!(weight(3.0, f32::NEG_INFINITY, &constants), 0);
        assert_eq!(weight(3e38, -3e38, &constants), 0);
    }

    /// Other languages write them by their bits.
    #[test]
    fn coefficients_have_these_bits() {
        let bits = [0x3f800000, 0xbf317217, 0x3e75fd83, 0xbd634c21, 0x3c1cfcca, 0xbaa74ca3, 0x38e566fb];
        assert_eq!(HALVING.map(f32::to_bits), bits);
    }

    /// The temperature, over all sizes that are allowed.
    #[test]
    fn halvings_are_those_of_the_temperature() {
        for temperature in [1e-3f32, 0.7, 1.0, 2.0, 1e4] {
            let constants = Sampling { temperature, ..Sampling::default() }.constants();
            let found = f64::from(weight(temperature, 0.0, &constants)) / f64::from(WEIGHT_MAX);
            assert!((found - (-1f64).exp()).abs() < 1e-6, "{temperature}: {found}");
        }
        for temperature in [0.0, 1e-45, f32::MAX] {
            let constants = Sampling { temperature, ..Sampling::default() }.constants();
            assert!(constants.halvings.is_normal(), "{temperature}");
        }
    }

    #[test]
    fn min_p_is_a_distance() {
        let distance =
            |temperature, min_p| Sampling { temperature, min_p, ..Sampling::default() }.constants().distance_max;
        assert_eq!(distance(1.0, 1.0), 0.0);
        assert_eq!(distance(1.0, 0.0), f32::MAX);
        assert_eq!(distance(0.0, 0.5), 0.0);
        assert!((distance(2.0, 0.1) - 2.0 * 10f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn top_p_is_a_share_rounded_up() {
        let enough = |top_p, total| Sampling { top_p, ..Sampling::default() }.constants().enough(total);
        assert_eq!(enough(0.5, 10), 5);
        assert_eq!(enough(0.5, 11), 6);
        assert_eq!(enough(1.0, (1 << 63) - 1), (1 << 63) - 1);
        assert_eq!(enough(0.25, 1 << 63), 1 << 61);
        assert_eq!(enough(1e-30, 1 << 31), 1);
    }

    #[test]
    fn keys_order_canonical_logits() {
        let logits = [f32::NEG_INFINITY, f32::MIN, -2.0, -(-100f32).exp2(), 0.0, (-100f32).exp2(), 1.0, f32::INFINITY];
        for pair in logits.windows(2) {
            assert!(order_key(pair[0]) < order_key(pair[1]), "{pair:?}");
            assert_eq!(canonical(pair[0]).to_bits(), pair[0].to_bits());
        }
        for zero in [-0.0, 1e-40, -1e-40, 7.8e-31, -7.8e-31] {
            assert_eq!(canonical(zero).to_bits(), 0);
        }
        assert_eq!(order_key(f32::NAN), None);
        assert_eq!(order_key(-f32::NAN), None);
    }

    #[test]
    fn the_penalty_acts_on_both_signs() {
        let constants = Sampling { repetition_penalty: 2.0, ..Sampling::default() }.constants();
        assert_eq!([3.0, -1.0, 0.0].map(|logit| constants.penalize(logit)), [1.5, -2.0, 0.0]);
        let most = Sampling { repetition_penalty: f32::MAX, ..Sampling::default() }.constants();
        assert_eq!([3.0, -1e5].map(|logit| most.penalize(logit)), [0.0, f32::NEG_INFINITY]);
    }
}
