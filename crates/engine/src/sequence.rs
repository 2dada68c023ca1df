//! One text: what it is, what of it is in the caches, and what is to be done with it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tensor::Continuation;

use crate::cached::{Cached, Rings};
use crate::sample::Occurred;
use crate::schedule::Pending;
use crate::{FinishReason, Request, Sampling, SequenceId, Statistics};

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It has no slot yet.
    Waiting,
    /// It has a slot and something to do.
    Running,
    /// It is finished and keeps its slot.
    Kept,
}

/// A text on its way.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) state: State,
    /// Slot of the caches, unless it is waiting.
    pub(crate) slot: Option<usize>,
    /// The prompt and the answer so far.
    pub(crate) tokens: Vec<u32>,
    pub(crate) cached: Cached,
    /// Tokens of the answer.
    pub(crate) answered: usize,
    pub(crate) sampling: Sampling,
    pub(crate) occurred: Occurred,
    pub(crate) statistics: Statistics,
    /// Set to cancel it.
    pub(crate) cancel: Arc<AtomicBool>,
    max_tokens: Option<usize>,
    stop_tokens: Vec<u32>,
    keep: bool,
}

impl Sequence {
    /// A sequence that waits for a slot.
    pub(crate) fn new(id: SequenceId, request: Request) -> Sequence {
        let mut sequence = Sequence {
            id,
            state: State::Waiting,
            slot: None,
            tokens: Vec::new(),
            cached: Cached::default(),
            answered: 0,
            sampling: request.sampling,
            occurred: Occurred::default(),
            statistics: Statistics::default(),
            cancel: Arc::default(),
            max_tokens: None,
            stop_tokens: Vec::new(),
            keep: false,
        };
        sequence.begin(request);
        sequence
    }

    /// Takes up a request, with the tokens that are in the caches already.
    fn begin(&mut self, request: Request) {
        self.statistics = Statistics {
            prompt_tokens: request.prompt.len(),
            reused_tokens: self.cached.len(),
            ..Statistics::default()
        };
        self.occurred = Occurred::default();
        if request.sampling.repetition_penalty != 1.0 {
            request.prompt.iter().for_each(|&token| self.occurred.insert(token));
        }
        self.tokens = request.prompt;
        self.answered = 0;
        self.sampling = request.sampling;
        self.max_tokens = request.max_tokens;
        self.stop_tokens = request.stop_tokens;
        self.keep = request.keep;
        // A handle of the last request has no effect on this one.
        self.cancel = Arc::default();
    }

    /// Goes on with a new text, of which the beginning may be in the caches. At least its last token goes through the
    /// model (again), because its logits are needed.
    pub(crate) fn extend(&mut self, request: Request, rings: &Rings) {
        let same = self.tokens[..self.cached.len()].iter().zip(&request.prompt).take_while(|(old, new)| old == new);
        let reusable = same.count().min(request.prompt.len() - 1);
        self.cached.go_back(reusable, rings);
        self.state = State::Running;
        self.begin(request);
    }

    /// What there is to do. After a device has failed, an answer that has begun is a prompt once more.
    pub(crate) fn pending(&self) -> Pending {
        let tokens = self.tokens.len() - self.cached.len();
        Pending { tokens, decoding: self.answered > 0 && tokens == 1 }
    }

    /// How the device goes on with it alone.
    pub(crate) fn continuation(&self) -> Continuation<'_> {
        let position = self.cached.len();
        Continuation {
            sequence: self.slot.expect("a running sequence has a slot"),
            position,
            token: self.tokens[position],
            sampling: &self.sampling,
            occurred: self.occurred.tokens(),
            stop_tokens: &self.stop_tokens,
            tokens_max: self.max_tokens.map_or(usize::MAX, |most| most - self.answered),
        }
    }

    /// Whether the logits of its last token are wanted.
    pub(crate) fn wants_token(&self) -> bool {
        self.max_tokens != Some(0)
    }

    /// Whether it stays after it has finished.
    pub(crate) fn keep(&self) -> bool {
        self.keep
    }

    /// Takes a token of the answer. Gives whether the token belongs to it, and the reason if it was the last one.
    pub(crate) fn answer(&mut self, token: u32, context: usize) -> (bool, Option<FinishReason>) {
        if self.stop_tokens.contains(&token) {
            return (false, Some(FinishReason::Stop { token }));
        }
        self.tokens.push(token);
        self.answered += 1;
        if self.sampling.repetition_penalty != 1.0 {
            self.occurred.insert(token);
        }
        let full = self.tokens.len() > context;
        let enough = self.max_tokens.is_some_and(|most| self.answered >= most);
        let reason = match (enough, full) {
            (true, _) => Some(FinishReason::MaxTokens),
            (false, true) => Some(FinishReason::ContextFull),
            (false, false) => None,
        };
        (true, reason)
    }
}
