//! Chooses a token from logits, fast for large vocabularies: the same token as [`tensor::reference::sample`], which
//! [`mod@tensor::sampling`] explains.

use std::cmp::Ordering;

use tensor::sampling::{Constants, canonical, target, weight};

use crate::Sampling;

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    logit: f32,
    token: u32,
}

impl Candidate {
    /// Larger logits first, then lower ids. No logit is a NaN here.
    fn order(&self, other: &Candidate) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

/// The tokens of a text, each once, for the repetition penalty.
#[derive(Clone, Debug, Default)]
pub struct Occurred {
    tokens: Vec<u32>,
    /// One bit per token of the vocabulary.
    bits: Vec<u64>,
}

impl Occurred {
    /// Adds a token.
    pub fn insert(&mut self, token: u32) {
        let (word, bit) = (token as usize / 64, 1 << (token % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit == 0 {
            self.bits[word] |= bit;
            self.tokens.push(token);
        }
    }

    /// The tokens, in the order in which they first occurred.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Makes the tokens less probable for a penalty above 1.
    fn penalize(&self, logits: &mut [f32], constants: &Constants) {
        for &token in &self.tokens {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = constants.penalize(*logit);
            }
        }
    }
}

/// Chooses the token at `position` of a text; `None` if the largest logit is not a finite number. The logits are
/// overwritten.
pub fn sample(logits: &mut [f32], sampling: &Sampling, occurred: &Occurred, position: u64) -> Option<u32> {
    let constants = sampling.constants();
    logits.iter_mut().for_each(|logit| *logit = canonical(*logit));
    if sampling.repetition_penalty != 1.0 {
        occurred.penalize(logits, &constants);
    }
    let best = largest(logits)?;
    if sampling.temperature == 0.0 {
        return Some(best.token);
    }
    let mut kept = filter(logits, sampling, &constants, best.logit);
    kept.sort_unstable_by_key(|candidate| candidate.token);
    Some(draw(&kept, best.logit, &constants, sampling.seed, position))
}

/// The largest logit, with the lowest id of equal ones; `None` if it is not a finite number. NaNs are passed over.
fn largest(logits: &[f32]) -> Option<Candidate> {
    const BLOCK: usize = 1024;
    let (mut best, mut block) = (f32::NEG_INFINITY, 0);
    for (index, values) in logits.chunks(BLOCK).enumerate() {
        // Sixteen running maxima, which the compiler keeps in vector registers.
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (groups, rest) = values.as_chunks::<16>();
        for group in groups {
            for lane in 0..16 {
                lanes[lane] = if group[lane] > lanes[lane] { group[lane] } else { lanes[lane] };
            }
        }
        let most = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &value| most.max(value));
        if most > best {
            (best, block) = (most, index);
        }
    }
    let start = block * BLOCK;
    let offset = logits[start.min(logits.len())..].iter().position(|&logit| logit == best)?;
    best.is_finite().then_some(Candidate { logit: best, token: (start + offset) as u32 })
}

/// The tokens that the filters leave, in any order; the one of the `best` logit is always among them.
fn filter(logits: &[f32], sampling: &Sampling, constants: &Constants, best: f32) -> Vec<Candidate> {
    let top_k = if sampling.top_k == 0 { logits.len() } else { sampling.top_k.min(logits.len()) };
    let likely = |candidate: &Candidate| best - candidate.logit <= constants.distance_max;
    if sampling.top_p == 1.0 {
        if top_k == logits.len() {
            return candidates(logits).filter(likely).collect();
        }
        let mut kept = largest_k(logits, top_k);
        kept.retain(likely);
        return kept;
    }
    let mut kept = most_probable(logits, top_k, constants, best);
    kept.retain(likely);
    kept
}

fn candidates(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    let all = logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan());
    all.map(|(token, &logit)| Candidate { logit, token: token as u32 })
}

/// The fewest of the `top_k` largest that together have enough of the probability of these.
fn most_probable(logits: &[f32], top_k: usize, constants: &Constants, best: f32) -> Vec<Candidate> {
    let weight = |logit| u64::from(weight(best, logit, constants));
    // Mostly a few have nearly all the probability, so the sort stays small.
    let (mut count, total) = if top_k < logits.len() {
        (top_k, None)
    } else {
        (256.min(top_k), Some(logits.iter().map(|&logit| weight(logit)).sum()))
    };
    loop {
        let mut kept = largest_k(logits, count);
        kept.sort_unstable_by(Candidate::order);
        let total = total.unwrap_or_else(|| kept.iter().map(|candidate| weight(candidate.logit)).sum());
        let enough = constants.enough(total);
        let mut sum = 0;
        let position = kept.iter().position(|candidate| {
            sum += weight(candidate.logit);
            sum >= enough
        });
        match position {
            Some(last) => {
                kept.truncate(last + 1);
                return kept;
            }
            None => count = (count * 8).min(top_k),
        }
    }
}

/// The `k` largest logits in any order, of equal ones those of lower ids; one pass without sorting all.
fn largest_k(logits: &[f32], k: usize) -> Vec<Candidate> {
    const BLOCK: usize = 64;
    let mut kept = Vec::with_capacity(2 * k);
    let mut threshold = f32::NEG_INFINITY;
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        // Nearly all blocks have nothing; without a branch per logit the compiler compares them as vectors.
        if kept.len() >= k && !values.iter().fold(false, |any, &logit| any | (logit > threshold)) {
            continue;
        }
        for (offset, &logit) in values.iter().enumerate() {
            // An equal logit at the threshold has a higher id than all that are kept.
            if logit > threshold || (kept.len() < k && !logit.is_nan()) {
                kept.push(Candidate { logit, token: (block * BLOCK + offset) as u32 });
            }
            if kept.len() == 2 * k {
                let (_, worst, _) = kept.select_nth_unstable_by(k - 1, Candidate::order);
                threshold = worst.logit;
                kept.truncate(k);
            }
        }
    }
    if kept.len() > k {
        kept.select_nth_unstable_by(k - 1, Candidate::order);
        kept.truncate(k);
    }
    kept
}

/// The first candidate at which the running sum of weights passes the target of the draw.
fn draw(kept: &[Candidate], best: f32, constants: &Constants, seed: u64, position: u64) -> u32 {
    let weights: Vec<u32> = kept.iter().map(|candidate| weight(best, candidate.logit, constants)).collect();
    let target = target(seed, position, weights.iter().map(|&weight| u64::from(weight)).sum());
    let mut sum = 0;
    let index = weights.iter().position(|&weight| {
        sum += u64::from(weight);
        sum > target
    });
    kept[index.expect("the target is below the sum")].token
}

#[cfg(test)]
mod tests {
    use tensor::{philox, reference};

    use super::*;

    const OFF: Sampling =
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 };

    /// Tokens that a filter leaves, sorted.
    fn left(logits: &[f32], sampling: Sampling) -> Vec<u32> {
        let best = largest(logits).unwrap().logit;
        let mut tokens: Vec<u32> =
            filter(logits, &sampling, &sampling.constants(), best).iter().map(|candidate| candidate.token).collect();
        tokens.sort_unstable();
        tokens
    }

    /// Logits of given probabilities.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|probability| probability.ln()).collect()
    }

    fn pick(logits: &[f32], sampling: Sampling, position: u64) -> Option<u32> {
        sample(&mut logits.to_vec(), &sampling, &Occurred::default(), position)
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let greedy = Sampling::greedy();
        assert_eq!(pick(&[1.0, 3.0, 2.0, 3.0], greedy, 0), Some(1));
        assert_eq!(pick(&[f32::NAN, -1.0, f32::NEG_INFINITY], greedy, 0), Some(1));
        assert_eq!(pick(&[f32::NAN; 40], greedy, 0), None);
        assert_eq!(pick(&[f32::INFINITY, 0.0], greedy, 0), None);
        assert_eq!(pick(&[], greedy, 0), None);
        let mut many = vec![0.0; 5000];
        for token in [4999, 3000, 1023, 17] {
            many[token] = 1.0;
            assert_eq!(pick(&many, greedy, 0), Some(token as u32));
        }
    }

    #[test]
    fn top_k_keeps_the_largest_and_lower_ids_of_equals() {
        let values = [1.0, 5.0, 3.0, 5.0, 3.0, 3.0, 0.0];
        for (top_k, expected) in [(1, vec![1]), (2, vec![1, 3]), (3, vec![1, 2, 3]), (4, vec![1, 2, 3, 4])] {
            assert_eq!(left(&values, Sampling { top_k, ..OFF }), expected);
        }
        assert_eq!(left(&values, Sampling { top_k: 100, ..OFF }).len(), 7);
    }

    /// Against a full sort, with many equal values.
    #[test]
    fn top_k_is_the_start_of_the_sorted_list() {
        let values: Vec<f32> = (0..3000u64).map(|index| (philox::bits(1, index) % 50) as f32).collect();
        let mut sorted: Vec<Candidate> = candidates(&values).collect();
        sorted.sort_by(Candidate::order);
        for k in [1, 2, 7, 64, 999, 2999] {
            let mut found = largest_k(&values, k);
            found.sort_by(Candidate::order);
            assert_eq!(found, sorted[..k], "{k}");
        }
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        let values = logits(&[0.1, 0.4, 0.2, 0.3]);
        for (top_p, expected) in [(0.01, vec![1]), (0.39, vec![1]), (0.41, vec![1, 3]), (0.85, vec![1, 2, 3])] {
            assert_eq!(left(&values, Sampling { top_p, ..OFF }), expected, "{top_p}");
        }
        // After top-k the probabilities are those among the kept: 4/7 and 3/7.
        assert_eq!(left(&values, Sampling { top_p: 0.56, top_k: 2, ..OFF }), [1]);
        assert_eq!(left(&values, Sampling { top_p: 0.58, top_k: 2, ..OFF }), [1, 3]);
        // More than the 256 that are sorted first.
        assert_eq!(left(&[0.0; 1000], Sampling { top_p: 0.7, ..OFF }), (0..700).collect::<Vec<_>>());
    }

    #[test]
    fn min_p_is_a_share_of_the_largest() {
        let values = logits(&[0.1, 0.5, 0.2, 0.2]);
        assert_eq!(left(&values, Sampling { min_p: 0.39, ..OFF }), [1, 2, 3]);
        assert_eq!(left(&values, Sampling { min_p: 0.41, ..OFF }), [1]);
        assert_eq!(left(&values, Sampling { min_p: 1.0, ..OFF }), [1]);
        // The temperature acts before: at 2 the share of 0.1 is √(0.1/0.5) = 0.447.
        assert_eq!(left(&values, Sampling { min_p: 0.44, temperature: 2.0, ..OFF }).len(), 4);
        assert_eq!(left(&values, Sampling { min_p: 0.45, temperature: 2.0, ..OFF }).len(), 3);
        assert_eq!(left(&values, Sampling { min_p: 0.41, top_k: 3, top_p: 0.99, ..OFF }), [1]);
    }

    #[test]
    fn the_penalty_acts_on_both_signs() {
        let mut occurred = Occurred::default();
        for token in [0, 1, 1, 0, 900] {
            occurred.insert(token);
        }
        let mut values = [3.0, -1.0, 2.0, -1.5];
        let constants = Sampling { repetition_penalty: 2.0, ..OFF }.constants();
        occurred.penalize(&mut values, &constants);
        assert_eq!(values, [1.5, -2.0, 2.0, -1.5]);
        let greedy = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        assert_eq!(sample(&mut [3.0, -1.0, 2.0, -1.5], &greedy, &occurred, 0), Some(2));
    }

    /// Frequencies over many positions against the probabilities, at six standard deviations.
    #[test]
    fn draws_follow_the_probabilities() {
        let probabilities = [0.05f32, 0.5, 0.0, 0.25, 0.2];
        let values = logits(&probabilities);
        const DRAWS: usize = 20_000;
        let mut counts = [0; 5];
        for position in 0..DRAWS {
            counts[pick(&values, Sampling { seed: 3, ..OFF }, position as u64).unwrap() as usize] += 1;
        }
        for (count, probability) in counts.into_iter().zip(probabilities.map(f64::from)) {
            let deviation = (DRAWS as f64 * probability * (1.0 - probability)).sqrt();
            assert!((count as f64 - DRAWS as f64 * probability).abs() <= 6.0 * deviation, "{counts:?}");
        }
    }

    #[test]
    fn a_draw_depends_on_seed_and_position_alone() {
        let values: Vec<f32> = (0..500).map(|token| (token % 7) as f32 * 0.1).collect();
        let text = |seed| (0..50).map(|at| pick(&values, Sampling { seed, ..OFF }, at).unwrap()).collect::<Vec<_>>();
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
        let backwards: Vec<_> =
            (0..50).rev().map(|at| pick(&values, Sampling { seed: 1, ..OFF }, at).unwrap()).collect();
        assert!(backwards.iter().rev().eq(&text(1)));
    }

    #[test]
    fn extreme_settings_still_choose() {
        let values = [0.0, 1e30, -1e30, 3.0];
        for temperature in [1e-40, 1e-3, 1e30, f32::MAX] {
            for top_p in [1e-30, 0.5, 1.0] {
                for min_p in [0.0, 1e-30, 1.0] {
                    let sampling = Sampling { temperature, top_p, min_p, ..OFF };
                    assert!(pick(&values, sampling, 9).is_some(), "{sampling:?}");
                }
            }
        }
    }

    /// Logits with many ties and all that is special, of awkward sizes.
    fn random_logits(seed: u64) -> Vec<f32> {
        let mut count = 0;
        let mut random = move |below: u64| {
            count += 1;
            (philox::bits(seed, count) >> 32) % below
        };
        let vocabulary = [1, 2, 3, 17, 64, 65, 300, 1024, 3000][random(9) as usize];
        let (kind, steps) = (random(5), 1 + random(40));
        let special = [f32::NAN, f32::NEG_INFINITY, -0.0, 0.0, 1e-40, -1e-35, -3e38, 3e38];
        let value = |_| match (kind, random(10_000)) {
            (0, number) => (number % steps) as f32 * 0.25 - 3.0,
            (1, number) => number as f32 * 0.003 - 15.0,
            (2, number) if number < 4000 => special[number as usize % 7],
            (3, number) if number < 4000 => special[number as usize % 6],
            (_, number) => (number as f32 - 5000.0) * 0.0009,
        };
        (0..vocabulary).map(value).collect()
    }

    /// All combinations of settings on random logits.
    #[test]
    fn the_choice_is_that_of_the_reference() {
        let (mut case, mut greedy) = (0, 0);
        for temperature in [0.0, 0.2, 1.0, 30.0] {
            for top_k in [0, 1, 3, 64, 5000] {
                for top_p in [1.0, 0.95, 0.5, 1e-3] {
                    for min_p in [0.0, 0.05, 0.9, 1.0] {
                        for repetition_penalty in [1.0, 1.3, 0.5, 1e30] {
                            case += 1;
                            let sampling =
                                Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed: case };
                            let logits = random_logits(case);
                            let mut occurred = Occurred::default();
                            (0..case % 30).for_each(|index| occurred.insert((index * index) as u32));
                            let expected = reference::sample(&logits, &sampling, occurred.tokens(), case);
                            let found = sample(&mut logits.clone(), &sampling, &occurred, case);
                            assert_eq!(found, expected, "{sampling:?} {logits:?}");
                            greedy += usize::from(expected == largest(&logits).map(|best| best.token));
                        }
                    }
                }
            }
        }
        assert!(greedy < case as usize * 3 / 4, "the filters and draws hardly matter: {greedy} of {case}");
    }
}
