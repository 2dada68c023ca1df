//! The choice of tokens, as [`tensor::reference::sample`] defines it, without the host: what is chosen is the input of
//! the next pass. The kernels are `sample_best.comp` and `sample_draw.comp`.

use bytemuck::{Pod, Zeroable};
use tensor::Sampling;

use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;
use crate::pipeline::Kernel;

/// What stands in a result slot for a row of logits out of which nothing can be chosen.
pub(crate) const NO_TOKEN: u32 = u32::MAX;

/// Most candidates of a row, as in `sample.glsl`.
const CANDIDATES_MAX: usize = 2048;

const GREEDY: u32 = 1;
const PENALIZES: u32 = 2;
const TOP_P: u32 = 4;

/// How the tokens of a row are chosen, as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(crate) struct Settings {
    penalty: f32,
    penalty_inverse: f32,
    halvings: f32,
    distance_max: f32,
    top_p: u32,
    top_k: u32,
    flags: u32,
    seed: [u32; 2],
}

impl Settings {
    /// Of a sampling.
    pub(crate) fn new(sampling: &Sampling) -> Settings {
        let constants = sampling.constants();
        let flag = |is: bool, flag| if is { flag } else { 0 };
        Settings {
            penalty: constants.penalty,
            penalty_inverse: constants.penalty_inverse,
            halvings: constants.halvings,
            distance_max: constants.distance_max,
            // Below 2³² where the flag is set.
            top_p: constants.top_p as u32,
            top_k: sampling.top_k.try_into().unwrap_or(0),
            flags: flag(sampling.temperature == 0.0, GREEDY)
                | flag(sampling.repetition_penalty != 1.0, PENALIZES)
                | flag(sampling.top_p < 1.0, TOP_P),
            seed: [sampling.seed as u32, (sampling.seed >> 32) as u32],
        }
    }
}

/// Which kernels the rows of a pass need; a part of what a recording depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SamplePlan {
    /// Every row takes its largest logit.
    Greedy,
    /// Any settings.
    Any,
}

impl SamplePlan {
    /// For rows with these samplings.
    pub(crate) fn of<'a>(samplings: impl IntoIterator<Item = &'a Sampling>) -> SamplePlan {
        match samplings.into_iter().all(|sampling| sampling.temperature == 0.0) {
            true => SamplePlan::Greedy,
            false => SamplePlan::Any,
        }
    }
}

/// Where the tokens of the rows come from and go to: addresses in device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// [`Settings`] of each row.
    pub(crate) settings: u64,
    /// Of each row `uvec4 {token, position, sequence, 0}`: at first the token whose logits these are, afterwards the
    /// chosen one, a position further. Where none can be chosen the token stays. The draw is that of the new position.
    pub(crate) tokens: u64,
    /// Of each row a bit for each token of the vocabulary, in 32-bit words from the lowest bit on
    /// ([`occurred_words`]): those that occurred in the text. Only read and written for rows whose settings have a
    /// repetition penalty.
    pub(crate) occurred: u64,
    /// The chosen token of each row, or [`NO_TOKEN`].
    pub(crate) results: u64,
}

/// 32-bit words of a row of [`Rows::occurred`].
pub(crate) fn occurred_words(vocabulary: usize) -> usize {
    vocabulary.div_ceil(32)
}

/// Memory for the kernels' intermediate results, for one vocabulary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampler {
    vocabulary: usize,
    states: u64,
    chunks: u64,
    maxima: u64,
    candidates: u64,
}

impl Sampler {
    /// Bytes that a sampler for up to `rows` rows takes, and how many of these, from the first on, have to be zero
    /// before it runs first. Every pass leaves them zero where they have to be.
    pub(crate) fn scratch_bytes(features: &Features, rows: usize, vocabulary: usize) -> (usize, usize) {
        let sizes = sizes(features, rows, vocabulary);
        (sizes.iter().sum(), sizes[0])
    }

    /// A sampler with its memory at an address that is a multiple of 256.
    pub(crate) fn new(features: &Features, scratch: u64, rows: usize, vocabulary: usize) -> Sampler {
        let [states, chunks, maxima, _] = sizes(features, rows, vocabulary).map(|size| size as u64);
        let chunks_at = scratch + states;
        let maxima_at = chunks_at + chunks;
        Sampler { vocabulary, states: scratch, chunks: chunks_at, maxima: maxima_at, candidates: maxima_at + maxima }
    }

    /// Chooses a token from each of the first `count` rows of logits.
    ///
    /// # Panics
    /// If the logits are not those of the sampler's vocabulary.
    pub(crate) fn dispatches(
        &self,
        features: &Features,
        plan: SamplePlan,
        logits: View,
        rows: &Rows,
        count: usize,
    ) -> Vec<Dispatch> {
        assert_eq!(logits.width, self.vocabulary, "the vocabulary");
        let shaders: &[&str] = match plan {
            SamplePlan::Greedy => &["sample_best"],
            SamplePlan::Any => &["sample_best", "sample_draw"],
        };
        shaders.iter().map(|shader| self.dispatch(features, shader, logits, rows, count)).collect()
    }

    fn dispatch(&self, features: &Features, shader: &str, logits: View, rows: &Rows, count: usize) -> Dispatch {
        let push = [
            logits.address,
            rows.settings,
            rows.tokens,
            rows.occurred,
            rows.results,
            self.states,
            self.chunks,
            self.maxima,
            self.candidates,
        ];
        let push = push.into_iter().fold(Push::default(), Push::address);
        let kernel = kernel(features, shader, vec![]);
        Dispatch {
            groups: [chunks(&kernel, self.vocabulary) as u32, count as u32, 1],
            kernel,
            push: push.number(self.vocabulary).number(logits.pitch() / 4),
            reads: vec![logits.address, rows.settings, rows.tokens, rows.occurred, self.states],
            writes: vec![rows.tokens, rows.occurred, rows.results, self.states],
            bytes: (4 * count * self.vocabulary) as u64,
            operations: 0,
            label: format!("{shader} {count}×{}", self.vocabulary),
            ..Dispatch::default()
        }
    }
}

/// Workgroups of a row.
fn chunks(kernel: &Kernel, vocabulary: usize) -> usize {
    vocabulary.div_ceil(4 * kernel.workgroup as usize)
}

/// Bytes of the states, the chunks, the maxima and the candidates, padded.
fn sizes(features: &Features, rows: usize, vocabulary: usize) -> [usize; 4] {
    const STATE_BYTES: usize = 6 * 4;
    let kernel = kernel(features, "sample_best", vec![]);
    let chunks = chunks(&kernel, vocabulary);
    let maxima = chunks * kernel.workgroup as usize / 8;
    [STATE_BYTES, 8 * chunks, 4 * maxima, 8 * CANDIDATES_MAX].map(|bytes| (rows * bytes).next_multiple_of(256))
}

#[cfg(test)]
mod tests;
