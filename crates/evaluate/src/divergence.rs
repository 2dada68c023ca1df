//! One prediction of a model beside that of the original.

use std::fmt;

/// What is kept of one prediction of both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// −ln of the probability that the model gives the token that came.
    pub nll: f64,
    /// The same of the original.
    pub original_nll: f64,
    /// Kullback-Leibler divergence of the model's distribution from the original's, in nats: Σ p ln(p / q) with p the
    /// original's probabilities.
    pub kl: f64,
    /// Whether both find the same token most probable.
    pub same_top: bool,
    /// Probability of the token that came: the model's less the original's.
    pub token_change: f64,
    /// Probability of the original's most probable token: the model's less the original's.
    pub top_change: f64,
    /// What the original's saved logits leave open; nothing where all are there.
    pub tail: Tail,
}

/// The tokens of which saved logits only have the sum of the probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tail {
    /// Their probability by the original.
    pub mass: f64,
    /// The KL divergence among them, as a sample of them estimates it: a part of [`Divergence::kl`].
    pub inside: f64,
    /// The most that it can be.
    pub inside_max: f64,
}

/// Values that are summed in f32 before the sum goes on in f64, so that the inner loop is wide.
const PART: usize = 64;

/// What a softmax needs of its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// Largest logit.
    pub largest: f32,
    /// Its first index.
    pub top: u32,
    /// ln Σ exp(logit − largest).
    pub ln_sum: f64,
}

impl Softmax {
    /// Of logits; `None` if there are none or they are not all finite.
    pub fn of(logits: &[f32]) -> Option<Softmax> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // What is not finite makes 0 · x a NaN.
        let zero: f32 = logits.chunks(PART).map(|part| part.iter().map(|logit| logit * 0.0).sum::<f32>()).sum();
        if !largest.is_finite() || zero != 0.0 {
            return None;
        }
        let part = |part: &[f32]| f64::from(part.iter().map(|logit| (logit - largest).exp()).sum::<f32>());
        let sum: f64 = logits.chunks(PART).map(part).sum();
        let top = logits.iter().position(|&logit| logit == largest)? as u32;
        Some(Softmax { largest, top, ln_sum: sum.ln() })
    }

    /// ln of the probability of a logit.
    pub fn ln_probability(&self, logit: f32) -> f64 {
        f64::from(logit) - f64::from(self.largest) - self.ln_sum
    }
}

/// Compares the logits of two models of one vocabulary about the same position, after which `token` came.
///
/// # Errors
/// Which of them has logits that are not numbers.
///
/// # Panics
/// If the lengths differ or `token` is outside.
pub fn divergence(original: &[f32], logits: &[f32], token: u32) -> Result<Divergence, NotFinite> {
    assert_eq!(original.len(), logits.len(), "rows of logits");
    let base = Softmax::of(original).ok_or(NotFinite::Original)?;
    let model = Softmax::of(logits).ok_or(NotFinite::Model)?;
    // Σ p (ln p − ln q) = Σ p (x − y) + what is the same for all: with both measured from their largest, the terms are
    // small where the models agree.
    let part = |(original, logits): (&[f32], &[f32])| {
        let term = |(x, y): (&f32, &f32)| (x - base.largest).exp() * ((x - base.largest) - (y - model.largest));
        f64::from(original.iter().zip(logits).map(term).sum::<f32>())
    };
    let sum: f64 = original.chunks(PART).zip(logits.chunks(PART)).map(part).sum();
    let kl = sum / base.ln_sum.exp() + model.ln_sum - base.ln_sum;
    let both = |token: u32| {
        let token = token as usize;
        (base.ln_probability(original[token]), model.ln_probability(logits[token]))
    };
    let ((base_token, model_token), (base_top, model_top)) = (both(token), both(base.top));
    Ok(Divergence {
        nll: -model_token,
        original_nll: -base_token,
        kl,
        same_top: base.top == model.top,
        token_change: model_token.exp() - base_token.exp(),
        top_change: model_top.exp() - base_top.exp(),
        tail: Tail::default(),
    })
}

/// Logits are not numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFinite {
    /// Those of the model.
    Model,
    /// Those of the original.
    Original,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotFinite::Model => "model",
            NotFinite::Original => "original",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(probabilities: &[f64], shift: f64) -> Vec<f32> {
        probabilities.iter().map(|probability| (probability.ln() + shift) as f32).collect()
    }

    #[test]
    fn a_divergence_by_hand() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = 1/2 ln 2 − 1/4 ln 2 = 1/4 ln 2.
        let (p, q) = (logits(&[0.5, 0.25, 0.25], 3.0), logits(&[0.25, 0.5, 0.25], -7.0));
        let found = divergence(&p, &q, 2).unwrap();
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 2e-6, "{found} {expected}");
        near(found.kl, 0.25 * 2f64.ln());
        near(found.nll, 4f64.ln());
        near(found.original_nll, 4f64.ln());
        near(found.token_change, 0.0);
        near(found.top_change, -0.25);
        assert!(!found.same_top);
        let same = divergence(&p, &p, 0).unwrap();
        assert_eq!((same.kl, same.same_top, same.token_change, same.top_change), (0.0, true, 0.0, 0.0));
    }

    #[test]
    fn small_divergences_of_large_vocabularies_are_precise() {
        // Pseudo-random logits of 20,000 tokens and a slightly different model, summed up plainly in f64.
        let random = |index: usize| ((index as f64 * 12.9898).sin() * 43758.5453).fract();
        let original: Vec<f32> = (0..20_000).map(|index| (8.0 * random(index)) as f32 + 11.0).collect();
        let logits: Vec<f32> =
            original.iter().enumerate().map(|(index, x)| x - 11.5 + (0.02 * random(index + 77)) as f32).collect();
        let ln_sum = |values: &[f32]| values.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        let (base, model) = (ln_sum(&original), ln_sum(&logits));
        let term = |(x, y): (&f32, &f32)| {
            let (p, q) = (f64::from(*x) - base, f64::from(*y) - model);
            p.exp() * (p - q)
        };
        let expected: f64 = original.iter().zip(&logits).map(term).sum();
        let found = divergence(&original, &logits, 5).unwrap().kl;
        assert!(expected > 1e-5 && (found / expected - 1.0).abs() < 1e-3, "{found} {expected}");
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let good = [0.0, 1.0, 2.0];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let bad = [0.0, bad, 2.0];
            assert_eq!(divergence(&good, &bad, 0), Err(NotFinite::Model));
            assert_eq!(divergence(&bad, &good, 0), Err(NotFinite::Original));
        }
        assert_eq!(Softmax::of(&[]), None);
    }
}
