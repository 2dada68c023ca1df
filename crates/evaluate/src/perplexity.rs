//! Perplexity of a text.

use crate::compare::{Side, in_parallel, limits, not_finite, run};
use crate::windows::{Output, Walk};
use crate::{Estimate, EvaluateError, NotFinite, Progress, Softmax, Windows};

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// Predictions that were scored.
    pub predictions: usize,
    /// Mean over all predictions of −ln of the probability of the token that came.
    pub nll: Estimate,
}

impl Perplexity {
    /// e to the mean.
    pub fn perplexity(&self) -> Estimate {
        self.nll.exp()
    }
}

/// The perplexity of a text. `threads` look at the logits; progress counts predictions. More `outputs_max` of the
/// engine make it faster.
///
/// # Errors
/// A context that is too short, logits that are not numbers, what `recover` gives back.
pub fn perplexity(
    mut model: Side<'_>,
    windows: &Windows,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Perplexity, EvaluateError> {
    let limits = limits(model.engine)?;
    let vocabulary = model.engine.config().vocabulary;
    let mut walk = Walk::new(windows, 0, windows.len(), limits);
    let mut done: Vec<f64> = Vec::with_capacity(windows.predictions());
    while walk.advance() {
        let Some(logits) = run(&mut walk, &mut model)? else { continue };
        // After a failure a window begins again: what is done is not done twice.
        let outputs: Vec<(usize, Output)> =
            walk.outputs().enumerate().filter(|(_, output)| output.index >= done.len()).collect();
        let found = in_parallel(&outputs, threads, &|(index, output)| {
            negative_log_likelihood(&logits[index * vocabulary..][..vocabulary], output.token)
        });
        for (found, (_, output)) in found.into_iter().zip(&outputs) {
            done.push(found.ok_or_else(|| not_finite(NotFinite::Model, windows, output))?);
        }
        progress(done.len(), windows.predictions());
    }
    Ok(Perplexity { predictions: done.len(), nll: Estimate::of(done.iter().copied()) })
}

/// −ln of the softmax of `logits` at `token`; `None` if the logits are not all finite.
///
/// # Panics
/// If `token` is outside.
pub fn negative_log_likelihood(logits: &[f32], token: u32) -> Option<f64> {
    Some(-Softmax::of(logits)?.ln_probability(logits[token as usize]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likelihood_is_that_of_the_softmax() {
        let logits = [1.0f32, -2.0, 3.5, 0.0];
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        for (token, &logit) in logits.iter().enumerate() {
            let expected = sum.ln() - f64::from(logit);
            assert!((negative_log_likelihood(&logits, token as u32).unwrap() - expected).abs() < 1e-6);
        }
        // A shift changes nothing, even one that would overflow the exponential.
        let shifted = logits.map(|logit| logit + 1000.0);
        let (found, expected) = (negative_log_likelihood(&shifted, 1), negative_log_likelihood(&logits, 1));
        assert!((found.unwrap() - expected.unwrap()).abs() < 1e-3);
        assert_eq!(negative_log_likelihood(&[0.0, f32::NAN], 0), None);
    }

    #[test]
    fn a_uniform_distribution_has_the_perplexity_of_its_size() {
        let nll = negative_log_likelihood(&vec![0.5; 8192], 77).unwrap();
        let nll = Estimate { value: nll, error: 0.0 };
        assert!((Perplexity { predictions: 1, nll }.perplexity().value - 8192.0).abs() < 1e-2);
    }
}
