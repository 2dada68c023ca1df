//! Perplexity of a text.

use engine::Engine;

use crate::{EvaluateError, Progress, Recover};

/// Tokens of one piece: with `<bos>` a context of 512.
pub const PIECE_TOKENS: usize = 511;

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// Tokens of the text, without `<bos>`.
    pub tokens: usize,
    /// Pieces that were scored.
    pub pieces: usize,
    /// Mean over all predictions of −ln of the probability of the token that came.
    pub mean_nll: f64,
}

impl Perplexity {
    /// e to the mean.
    pub fn perplexity(&self) -> f64 {
        self.mean_nll.exp()
    }
}

/// The perplexity of `tokens`: cut into pieces of [`PIECE_TOKENS`], `<bos>` before each, all predictions of a piece
/// scored, an incomplete last piece dropped. Progress counts pieces.
///
/// The engine must have a free slot and a context of at least [`PIECE_TOKENS`] + 1; more `outputs_max` make it faster.
///
/// # Errors
/// A text that is shorter than one piece, a context that is too short, what `recover` gives back.
pub fn perplexity(
    engine: &mut Engine,
    tokens: &[u32],
    bos: u32,
    recover: Recover<'_>,
    progress: Progress<'_>,
) -> Result<Perplexity, EvaluateError> {
    let needed = PIECE_TOKENS + 1;
    if engine.context() < needed {
        return Err(EvaluateError::ContextTooShort { context: engine.context(), needed });
    }
    let pieces = tokens.len() / PIECE_TOKENS;
    if pieces == 0 {
        return Err(EvaluateError::TextTooShort { tokens: tokens.len(), needed: PIECE_TOKENS });
    }
    let mut sum = 0.0;
    for (index, piece) in tokens.chunks_exact(PIECE_TOKENS).enumerate() {
        let mut window = Vec::with_capacity(needed);
        window.push(bos);
        window.extend_from_slice(piece);
        let mut scored = 0;
        while scored < PIECE_TOKENS {
            let result = engine.forward(&window, scored..PIECE_TOKENS, &mut |row| {
                sum += negative_log_likelihood(row.logits, window[row.position + 1]);
                scored = row.position + 1;
            });
            result.or_else(|error| recover(engine, error))?;
        }
        progress(index + 1, pieces);
    }
    Ok(Perplexity { tokens: tokens.len(), pieces, mean_nll: sum / (pieces * PIECE_TOKENS) as f64 })
}

/// −ln of the softmax of `logits` at `token`.
///
/// # Panics
/// If `token` is outside.
pub fn negative_log_likelihood(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Short sums in f32, so that the loop is wide, and long ones in f64.
    let sum: f64 =
        logits.chunks(64).map(|part| f64::from(part.iter().map(|logit| (logit - largest).exp()).sum::<f32>())).sum();
    sum.ln() + f64::from(largest) - f64::from(logits[token as usize])
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
            assert!((negative_log_likelihood(&logits, token as u32) - expected).abs() < 1e-6);
        }
        // A shift changes nothing, even one that would overflow the exponential.
        let shifted = logits.map(|logit| logit + 1000.0);
        assert!((negative_log_likelihood(&shifted, 1) - negative_log_likelihood(&logits, 1)).abs() < 1e-3);
    }

    #[test]
    fn a_uniform_distribution_has_the_perplexity_of_its_size() {
        let mean_nll = negative_log_likelihood(&vec![0.5; 8192], 77);
        assert!((Perplexity { tokens: 0, pieces: 0, mean_nll }.perplexity() - 8192.0).abs() < 1e-2);
    }
}
