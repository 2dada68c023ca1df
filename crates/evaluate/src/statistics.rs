//! Means with their errors, and quantiles.

use crate::Divergence;

/// A mean and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error, as if the values were independent; 0 for fewer than two of them.
    pub error: f64,
}

impl Estimate {
    /// The mean of values: √(variance / (n − 1)) is its error. NaN if there are none.
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Estimate {
        let count = values.clone().count() as f64;
        let value = values.clone().sum::<f64>() / count;
        let squares: f64 = values.map(|other| (other - value).powi(2)).sum();
        let error = if count > 1.0 { (squares / count / (count - 1.0)).sqrt() } else { 0.0 };
        Estimate { value, error }
    }

    /// e to it.
    pub fn exp(self) -> Estimate {
        let value = self.value.exp();
        Estimate { value, error: value * self.error }
    }

    /// Its square root.
    pub fn sqrt(self) -> Estimate {
        let value = self.value.sqrt();
        Estimate { value, error: if value > 0.0 { self.error / (2.0 * value) } else { 0.0 } }
    }
}

/// The value below which a share of sorted values is, between two of them in proportion.
///
/// # Panics
/// If there are no values.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let above = sorted[(below + 1).min(sorted.len() - 1)];
    (1.0 - part) * sorted[below] + part * above
}

/// How KL divergences are distributed, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlDistribution {
    /// Mean.
    pub mean: Estimate,
    /// Half of the predictions are below.
    pub median: f64,
    /// 90 % are below.
    pub p90: f64,
    /// 95 % are below.
    pub p95: f64,
    /// 99 % are below.
    pub p99: f64,
    /// 99.9 % are below.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl KlDistribution {
    fn of(divergences: &[Divergence]) -> KlDistribution {
        let mean = Estimate::of(divergences.iter().map(|one| one.kl));
        let mut sorted: Vec<f64> = divergences.iter().map(|one| one.kl).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        KlDistribution {
            mean,
            median: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

/// A model beside the original, over all predictions of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Predictions.
    pub predictions: usize,
    /// Perplexity of the model.
    pub perplexity: Estimate,
    /// Perplexity of the original.
    pub original_perplexity: Estimate,
    /// ln of the model's perplexity over the original's; its error is that of the mean of the differences.
    pub ln_ratio: Estimate,
    /// KL divergence of the model from the original.
    pub kl: KlDistribution,
    /// Share of predictions whose most probable token is the same.
    pub same_top: Estimate,
    /// Root of the mean square of the change of the probability of the token that came.
    pub token_change_rms: Estimate,
    /// Root of the mean square of the change of the probability of the original's most probable token.
    pub top_change_rms: Estimate,
    /// What saved logits leave open.
    pub tail: Option<TailSummary>,
}

/// What is known about the KL divergence among the tokens of which saved logits only have the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TailSummary {
    /// Mean of their probability.
    pub mass: f64,
    /// What they add to the mean KL divergence, estimated from a sample.
    pub inside: Estimate,
    /// The least that the mean KL divergence can be.
    pub kl_min: f64,
    /// The most that it can be.
    pub kl_max: f64,
}

impl TailSummary {
    fn of(divergences: &[Divergence]) -> Option<TailSummary> {
        let mean = |value: &dyn Fn(&Divergence) -> f64| Estimate::of(divergences.iter().map(value));
        let mass = mean(&|one| one.tail.mass).value;
        (mass > 0.0).then(|| TailSummary {
            mass,
            inside: mean(&|one| one.tail.inside),
            kl_min: mean(&|one| one.kl - one.tail.inside).value,
            kl_max: mean(&|one| one.kl - one.tail.inside + one.tail.inside_max).value,
        })
    }
}

impl Comparison {
    /// Sums up predictions.
    ///
    /// # Panics
    /// If there are none.
    pub fn of(divergences: &[Divergence]) -> Comparison {
        let mean = |value: &dyn Fn(&Divergence) -> f64| Estimate::of(divergences.iter().map(value));
        Comparison {
            predictions: divergences.len(),
            perplexity: mean(&|one| one.nll).exp(),
            original_perplexity: mean(&|one| one.original_nll).exp(),
            ln_ratio: mean(&|one| one.nll - one.original_nll),
            kl: KlDistribution::of(divergences),
            same_top: mean(&|one| f64::from(u8::from(one.same_top))),
            token_change_rms: mean(&|one| one.token_change.powi(2)).sqrt(),
            top_change_rms: mean(&|one| one.top_change.powi(2)).sqrt(),
            tail: TailSummary::of(divergences),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tail;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "found {found}, expected {expected}");
    }

    #[test]
    fn means_have_errors() {
        // Values 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14, variance 3.5, error √(3.5 / 3).
        let found = Estimate::of([1.0, 2.0, 3.0, 6.0].into_iter());
        near(found.value, 3.0);
        near(found.error, (3.5f64 / 3.0).sqrt());
        near(found.exp().error, 3f64.exp() * found.error);
        near(found.sqrt().error, found.error / (2.0 * 3f64.sqrt()));
        assert_eq!(Estimate::of([5.0].into_iter()), Estimate { value: 5.0, error: 0.0 });
    }

    #[test]
    fn quantiles_are_between_values() {
        let sorted = [1.0, 2.0, 4.0, 8.0, 16.0];
        near(quantile(&sorted, 0.5), 4.0);
        near(quantile(&sorted, 0.9), 0.4 * 8.0 + 0.6 * 16.0);
        near(quantile(&sorted, 0.0), 1.0);
        near(quantile(&sorted, 1.0), 16.0);
        near(quantile(&sorted[..4], 0.5), 3.0);
        near(quantile(&[7.0], 0.999), 7.0);
    }

    #[test]
    fn a_comparison_by_hand() {
        let one = |nll, original_nll, kl, same_top, change| Divergence {
            nll,
            original_nll,
            kl,
            same_top,
            token_change: change,
            top_change: 2.0 * change,
            tail: Tail { mass: 0.1, inside: 0.01, inside_max: 0.5 },
        };
        let all = [one(2.0, 1.5, 0.1, true, 0.3), one(1.0, 1.5, 0.3, false, -0.4), one(3.0, 2.4, 0.2, true, 0.0)];
        let found = Comparison::of(&all);
        near(found.perplexity.value, 2f64.exp());
        near(found.original_perplexity.value, 1.8f64.exp());
        near(found.ln_ratio.value, 0.2);
        // Differences 0.5, −0.5, 0.6 around 0.2: (0.09 + 0.49 + 0.16) / 3 / 2.
        near(found.ln_ratio.error, (0.74f64 / 6.0).sqrt());
        near(found.kl.mean.value, 0.2);
        near(found.kl.median, 0.2);
        near(found.kl.p90, 0.28);
        near(found.kl.max, 0.3);
        near(found.same_top.value, 2.0 / 3.0);
        // As llama.cpp has it: √(p (1 − p) / (n − 1)).
        near(found.same_top.error, (2.0f64 / 9.0 / 2.0).sqrt());
        near(found.token_change_rms.value, (0.25f64 / 3.0).sqrt());
        near(found.top_change_rms.value, (1.0f64 / 3.0).sqrt());
        let tail = found.tail.unwrap();
        near(tail.mass, 0.1);
        near(tail.inside.value, 0.01);
        near(tail.kl_min, 0.19);
        near(tail.kl_max, 0.69);
    }
}
