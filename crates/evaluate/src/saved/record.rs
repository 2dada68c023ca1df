//! One prediction of the original in a few bytes, and a model's logits beside it.

use crate::saved::Keep;
use crate::windows::Output;
use crate::{Divergence, NotFinite, Softmax, Tail};

/// Little-endian numbers.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
}

/// The record of a row of logits; `None` if they are not all finite.
pub(super) fn encode(logits: &[f32], output: &Output, keep: Keep) -> Option<Vec<u8>> {
    let softmax = Softmax::of(logits)?;
    match keep {
        Keep::Full => Some(logits.iter().flat_map(|logit| logit.to_le_bytes()).collect()),
        Keep::Top { entries, samples } => {
            Some(Record::of(logits, &softmax, output, entries, samples).to_bytes(entries + samples))
        }
    }
}

/// What is kept of a prediction.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// Probability of all tokens that are not among the most probable ones.
    mass: f32,
    /// ln of the probability of the token that came.
    token: f32,
    /// The most probable tokens, falling: id, ln of its probability.
    top: Vec<(u32, f32)>,
    /// Some of the others, drawn with their probabilities.
    sample: Vec<(u32, f32)>,
}

impl Record {
    fn of(logits: &[f32], softmax: &Softmax, output: &Output, entries: usize, samples: usize) -> Record {
        let ln = |id: u32| softmax.ln_probability(logits[id as usize]) as f32;
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let falling =
            |one: &u32, other: &u32| logits[*other as usize].total_cmp(&logits[*one as usize]).then(one.cmp(other));
        let (top, _, _) = ids.select_nth_unstable_by(entries, falling);
        top.sort_unstable_by(falling);
        let top = top.iter().map(|&id| (id, ln(id))).collect();
        // In the order of ids: neighbours have much in common, and a sample at equal steps has all kinds.
        let others = &mut ids[entries..];
        others.sort_unstable();
        let probabilities: Vec<f64> = others.iter().map(|&id| f64::from(ln(id)).exp()).collect();
        let mass: f64 = probabilities.iter().sum();
        let chosen = systematic(&probabilities, mass, samples, start(output.index as u64));
        let sample = chosen.into_iter().map(|place| (others[place], ln(others[place]))).collect();
        Record { mass: mass as f32, token: ln(output.token), top, sample }
    }

    fn to_bytes(&self, entries: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + 7 * entries);
        bytes.extend(self.mass.to_le_bytes());
        bytes.extend(self.token.to_le_bytes());
        let all = || self.top.iter().chain(&self.sample);
        bytes.extend(all().flat_map(|(id, _)| id.to_le_bytes().into_iter().take(3)));
        bytes.extend(all().flat_map(|(_, ln)| ln.to_le_bytes()));
        bytes
    }

    /// Reads a record; `None` if it makes no sense.
    pub(super) fn read(bytes: &[u8], entries: usize, samples: usize, vocabulary: usize) -> Option<Record> {
        let head = floats(&bytes[..8]);
        let (ids, lns) = bytes[8..].split_at(3 * (entries + samples));
        let ids = ids.chunks_exact(3).map(|three| u32::from_le_bytes([three[0], three[1], three[2], 0]));
        let mut all: Vec<(u32, f32)> = ids.zip(floats(lns)).collect();
        // Rounding may take the logarithm of a probability a little above 0.
        let is_ln = |ln: f32| ln.is_finite() && ln < 1e-3;
        let sound = all.iter().all(|&(id, ln)| (id as usize) < vocabulary && is_ln(ln));
        let falling = all[..entries].is_sorted_by(|one, other| one.1 >= other.1);
        if !sound || !falling || !is_ln(head[1]) || !(0.0..1.001).contains(&head[0]) {
            return None;
        }
        let sample = all.split_off(entries);
        Some(Record { mass: head[0], token: head[1], top: all, sample })
    }

    /// The model's logits beside it. The KL divergence is that with the other tokens as one mass, and the sample's
    /// estimate of what it is among them.
    pub(super) fn divergence(&self, logits: &[f32], token: u32) -> Result<Divergence, NotFinite> {
        let model = Softmax::of(logits).ok_or(NotFinite::Model)?;
        let ln = |id: u32| model.ln_probability(logits[id as usize]);
        let mut others = logits.to_vec();
        self.top.iter().for_each(|&(id, _)| others[id as usize] = f32::NEG_INFINITY);
        let others_sum: f64 = others.iter().map(|&logit| f64::from((logit - model.largest).exp())).sum();
        let mass = f64::from(self.mass);
        let (ln_mass, ln_model_mass) = (mass.ln(), others_sum.ln() - model.ln_sum);
        let one_mass = if mass > 0.0 { mass * (ln_mass - ln_model_mass) } else { 0.0 };
        let term = |&(id, ln_p): &(u32, f32)| f64::from(ln_p).exp() * (f64::from(ln_p) - ln(id));
        let kl = self.top.iter().map(term).sum::<f64>() + one_mass;
        let mean = self.sample.iter().map(|&(id, ln_p)| f64::from(ln_p) - ln(id)).sum::<f64>();
        let inside = mass * mean / self.sample.len() as f64 - one_mass;
        let most = self.inside_max(&mut others, &model, one_mass);
        let ((top, base_top), base_token) = (self.top[0], f64::from(self.token));
        let token_ln = ln(token);
        Ok(Divergence {
            nll: -token_ln,
            original_nll: -base_token,
            kl: kl + inside,
            same_top: top == model.top,
            token_change: token_ln.exp() - base_token.exp(),
            top_change: ln(top).exp() - f64::from(base_top).exp(),
            tail: Tail { mass, inside, inside_max: most },
        })
    }

    /// The most that the divergence among the other tokens can be: none of them is more probable than the last of the
    /// most probable ones, and the worst is if all probability is where the model has the least.
    fn inside_max(&self, others: &mut [f32], model: &Softmax, one_mass: f64) -> f64 {
        let (mass, ln_most) = (f64::from(self.mass), f64::from(self.top[self.top.len() - 1].1));
        let most = ln_most.exp();
        let whole = ((mass / most) as usize).min(others.len() - self.top.len());
        // Those that are not among them are the smallest, and to be passed over.
        others.iter_mut().for_each(|logit| *logit = if *logit == f32::NEG_INFINITY { f32::INFINITY } else { *logit });
        let last = whole.min(others.len() - 1);
        others.select_nth_unstable_by(last, f32::total_cmp);
        let ln = |logit: f32| model.ln_probability(logit);
        let full: f64 = others[..last].iter().map(|&logit| most * (ln_most - ln(logit))).sum();
        let rest = (mass - last as f64 * most).max(0.0);
        let part = if rest > 0.0 && others[last].is_finite() { rest * (rest.ln() - ln(others[last])) } else { 0.0 };
        (full + part - one_mass).max(0.0)
    }
}

/// Places drawn with their probabilities: where `count` points of equal distance lie on the line of all probabilities,
/// the first at `start` of the distance.
fn systematic(probabilities: &[f64], mass: f64, count: usize, start: f64) -> Vec<usize> {
    let step = mass / count as f64;
    let (mut chosen, mut sum) = (Vec::with_capacity(count), 0.0);
    for (place, probability) in probabilities.iter().enumerate() {
        sum += probability;
        while chosen.len() < count && (start + chosen.len() as f64) * step < sum {
            chosen.push(place);
        }
    }
    // Rounding of the sum.
    chosen.resize(count, probabilities.len() - 1);
    chosen
}

/// A number from 0 to 1 for each prediction, without a pattern (the finalizer of MurmurHash3 with Stafford's
/// constants).
fn start(index: u64) -> f64 {
    let mut mixed = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::divergence;

    const VOCABULARY: usize = 2_000;
    const KEEP: Keep = Keep::Top { entries: 50, samples: 32 };

    /// Pseudo-random logits, and those of a slightly different model.
    fn logits(index: usize) -> (Vec<f32>, Vec<f32>) {
        let random = |place: u64| start(place + (index * 4 * VOCABULARY) as u64) as f32;
        let original: Vec<f32> = (0..VOCABULARY as u64).map(|id| 6.0 * random(id) + 3.0 * random(id + 9_000)).collect();
        let model = original.iter().zip(0u64..).map(|(x, id)| x + 0.6 * random(id + 20_000)).collect();
        (original, model)
    }

    fn output(index: usize) -> Output {
        Output { index, window: 0, position: index, token: (index * 37 % VOCABULARY) as u32 }
    }

    fn read(bytes: &[u8]) -> Option<Record> {
        Record::read(bytes, 50, 32, VOCABULARY)
    }

    #[test]
    fn a_record_is_like_all_logits_within_its_bounds() {
        let (mut differences, mut estimated, mut exact_sum) = (Vec::new(), 0.0, 0.0);
        for index in 0..300 {
            let ((original, model), output) = (logits(index), output(index));
            let exact = divergence(&original, &model, output.token).unwrap();
            let bytes = encode(&original, &output, KEEP).unwrap();
            assert_eq!(bytes.len(), KEEP.record_bytes(VOCABULARY));
            let found = read(&bytes).unwrap().divergence(&model, output.token).unwrap();
            let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            near(found.nll, exact.nll);
            near(found.original_nll, exact.original_nll);
            near(found.token_change, exact.token_change);
            near(found.top_change, exact.top_change);
            assert_eq!(found.same_top, exact.same_top);
            let least = found.kl - found.tail.inside;
            assert!(least <= exact.kl + 1e-6 && exact.kl <= least + found.tail.inside_max + 1e-6);
            assert!(found.tail.mass > 0.1 && exact.kl - least > 1e-4, "{} {least}", exact.kl);
            differences.push(found.kl - exact.kl);
            estimated += found.tail.inside;
            exact_sum += exact.kl - least;
        }
        // No bias, and little noise.
        let mean = crate::Estimate::of(differences.iter().copied());
        assert!(mean.value.abs() < 4.0 * mean.error && mean.error < 0.002, "{mean:?}");
        assert!((estimated / exact_sum - 1.0).abs() < 0.2, "{estimated} {exact_sum}");
        let (original, _) = logits(0);
        let same = read(&encode(&original, &output(0), KEEP).unwrap()).unwrap().divergence(&original, 5).unwrap();
        assert!(same.kl.abs() < 1e-6 && same.same_top, "{same:?}");
    }

    #[test]
    fn the_bound_is_the_worst_that_can_be() {
        // Others: q = 0.1, 0.2, 0.3 of the model; p has 0.25 for them, at most 0.15 each: worst is 0.15 where q is 0.1,
        // and 0.1 where it is 0.2.
        let record = Record { mass: 0.25, token: 0.75f32.ln(), top: vec![(0, 0.15f32.ln())], sample: vec![] };
        let logits = [0.4f32, 0.3, 0.1, 0.2].map(f32::ln);
        let model = Softmax::of(&logits).unwrap();
        let mut others = [f32::NEG_INFINITY, logits[1], logits[2], logits[3]];
        let one_mass = 0.25 * (0.25f64 / 0.6).ln();
        let found = record.inside_max(&mut others, &model, one_mass);
        let expected = 0.15 * 1.5f64.ln() + 0.1 * 0.5f64.ln() - one_mass;
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }

    #[test]
    fn samples_lie_at_equal_steps() {
        let probabilities = [0.1, 0.4, 0.0, 0.3, 0.2];
        assert_eq!(systematic(&probabilities, 1.0, 5, 0.25), [0, 1, 1, 3, 4]);
        assert_eq!(systematic(&probabilities, 1.0, 2, 0.999), [1, 4]);
        // The mass is a little more than the sum.
        assert_eq!(systematic(&[0.5, 0.5], 1.0 + 1e-6, 2, 0.9999999), [1, 1]);
    }

    #[test]
    fn damaged_records_are_found() {
        let good = encode(&logits(0).0, &output(0), KEEP).unwrap();
        assert!(read(&good).is_some());
        let damaged = |change: &dyn Fn(&mut [u8])| {
            let mut bytes = good.clone();
            change(&mut bytes);
            read(&bytes)
        };
        let lns = 8 + 3 * 82;
        assert_eq!(damaged(&|bytes| bytes[8..11].fill(0xff)), None);
        assert_eq!(damaged(&|bytes| bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes())), None);
        assert_eq!(damaged(&|bytes| bytes[4..8].copy_from_slice(&1f32.to_le_bytes())), None);
        assert_eq!(damaged(&|bytes| bytes[lns..lns + 4].copy_from_slice(&(-50f32).to_le_bytes())), None);
        assert_eq!(damaged(&|bytes| bytes[lns + 4..lns + 8].fill(0xff)), None);
        assert_eq!(encode(&[f32::NAN; 3], &output(0), KEEP), None);
    }
}
