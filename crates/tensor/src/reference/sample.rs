use crate::Sampling;
use crate::sampling::{canonical, order_key, target, weight};

/// Chooses the token at `position` of a text from its logits `[vocabulary]`, as [`mod@crate::sampling`] defines it;
/// `None` if the largest of them is not a finite number. `occurred` are the tokens of the text, each once, for the
/// repetition penalty; those outside of the vocabulary are ignored.
pub fn sample(logits: &[f32], sampling: &Sampling, occurred: &[u32], position: u64) -> Option<u32> {
    let constants = sampling.constants();
    let mut logits: Vec<f32> = logits.iter().map(|&logit| canonical(logit)).collect();
    if sampling.repetition_penalty != 1.0 {
        for &token in occurred {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = constants.penalize(*logit);
            }
        }
    }

    let mut kept: Vec<usize> = (0..logits.len()).filter(|&token| !logits[token].is_nan()).collect();
    // Stable: equal logits stay in the order of ids.
    kept.sort_by_key(|&token| std::cmp::Reverse(order_key(logits[token])));
    let &first = kept.first()?;
    let best = logits[first];
    if !best.is_finite() {
        return None;
    }
    if sampling.temperature == 0.0 {
        return Some(first as u32);
    }

    let weight = |token: usize| u64::from(weight(best, logits[token], &constants));
    if sampling.top_k > 0 {
        kept.truncate(sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        let enough = constants.enough(kept.iter().map(|&token| weight(token)).sum());
        let mut sum = 0;
        let last = kept.iter().position(|&token| {
            sum += weight(token);
            sum >= enough
        });
        kept.truncate(last.expect("all together are enough") + 1);
    }
    kept.retain(|&token| best - logits[token] <= constants.distance_max);

    kept.sort_unstable();
    let target = target(sampling.seed, position, kept.iter().map(|&token| weight(token)).sum());
    let mut sum = 0;
    let token = kept.into_iter().find(|&token| {
        sum += weight(token);
        sum > target
    });
    Some(token.expect("the target is below the sum") as u32)
}
