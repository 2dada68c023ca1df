//! What goes into the engine and what comes out of it.

use std::fmt;
use std::time::Duration;

use tensor::Sampling;

use crate::EngineError;

/// Names a sequence of one engine; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// A prompt and how to answer it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids, `<bos>` included.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens of the answer; `None` for as many as the context holds. With 0 the prompt is only put into the
    /// cache.
    pub max_tokens: Option<usize>,
    /// Tokens that end the answer.
    pub stop_tokens: Vec<u32>,
    /// Stay in the cache when finished, for [`crate::Engine::extend`], until [`crate::Engine::release`].
    pub keep: bool,
}

impl Request {
    /// A request with Gemma's sampling, no limit and no stop tokens, that is not kept.
    pub fn new(prompt: Vec<u32>) -> Request {
        Request { prompt, sampling: Sampling::default(), max_tokens: None, stop_tokens: Vec::new(), keep: false }
    }
}

/// Refuses numbers that make no sense.
pub(crate) fn check_sampling(sampling: &Sampling) -> Result<(), EngineError> {
    let option = |option, expected: &str, found: f32| {
        Err(EngineError::Option { option, expected: expected.into(), found: found.to_string() })
    };
    if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
        return option("temperature", "a number from 0 on", sampling.temperature);
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return option("top-p", "a number above 0 and at most 1", sampling.top_p);
    }
    if !(0.0..=1.0).contains(&sampling.min_p) {
        return option("min-p", "a number from 0 to 1", sampling.min_p);
    }
    if !(sampling.repetition_penalty > 0.0 && sampling.repetition_penalty.is_finite()) {
        return option("repetition penalty", "a number above 0", sampling.repetition_penalty);
    }
    Ok(())
}

/// Something happened to a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A part of the prompt is in the cache.
    Prefill {
        /// Whose.
        id: SequenceId,
        /// Tokens of the prompt in the cache, reused ones included.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// A token of the answer.
    Token {
        /// Whose.
        id: SequenceId,
        /// The token.
        token: u32,
    },
    /// The last event of a request.
    Finished {
        /// Whose.
        id: SequenceId,
        /// Why.
        reason: FinishReason,
        /// How long it took.
        statistics: Statistics,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model chose one of the stop tokens, which is not part of the answer.
    Stop {
        /// Which.
        token: u32,
    },
    /// The answer has as many tokens as were asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// It was cancelled.
    Cancelled,
}

/// The work for one request. A pass for several sequences counts for each of them with its whole time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens that were in the cache before.
    pub reused_tokens: usize,
    /// Tokens that went through the model before the first token of the answer.
    pub prefill_tokens: usize,
    /// Time for them, the choice of the first token included.
    pub prefill_time: Duration,
    /// Tokens of the answer after the first: passes of one token each.
    pub decode_tokens: usize,
    /// Time for them, choosing included.
    pub decode_time: Duration,
}

impl Statistics {
    /// Tokens of the prompt per second.
    pub fn prefill_rate(&self) -> Option<f64> {
        rate(self.prefill_tokens, self.prefill_time)
    }

    /// Tokens of the answer per second.
    pub fn decode_rate(&self) -> Option<f64> {
        rate(self.decode_tokens, self.decode_time)
    }
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}
