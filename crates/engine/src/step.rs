//! The loop's body: one pass for all sequences, or several where the device goes on alone.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tensor::{BackendError, Batch, Segment};

use crate::cached::Cached;
use crate::decode::Computed;
use crate::request::check_sampling;
use crate::sample::sample;
use crate::schedule::{Part, Pending, schedule};
use crate::sequence::{Sequence, State};
use crate::{CancelHandle, Engine, EngineError, Event, FinishReason, Request, SequenceId, Statistics};

impl Engine {
    /// Takes up a request. It begins with the next [`Engine::step`] that finds a free slot.
    ///
    /// # Errors
    /// A prompt that is empty, longer than the context, or has tokens that the model doesn't know; sampling that makes
    /// no sense.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, EngineError> {
        self.check(&request)?;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.sequences.push(Sequence::new(id, request));
        Ok(id)
    }

    /// Goes on with a kept sequence: the request's prompt is the whole new text, of which as much as possible is taken
    /// from the cache. That is all up to the first token that differs, if the caches of local layers still reach back
    /// to it, and nothing otherwise. The sequence keeps its id; cancel handles of its last request have no effect any
    /// more.
    ///
    /// # Errors
    /// As [`Engine::submit`]; a sequence that does not exist or is being worked on.
    pub fn extend(&mut self, id: SequenceId, request: Request) -> Result<(), EngineError> {
        self.check(&request)?;
        let sequence = self.sequences.iter_mut().find(|sequence| sequence.id == id);
        match sequence.ok_or(EngineError::UnknownSequence(id))? {
            sequence if sequence.state == State::Kept => sequence.extend(request, &self.rings),
            _ => return Err(EngineError::Busy(id)),
        }
        Ok(())
    }

    /// Runs one pass and says what came of it; several if the device decodes alone, for about 100 ms at most. Does
    /// nothing when there is nothing to do.
    ///
    /// # Errors
    /// A device that failed, or logits that are no numbers: the sequences stay as they were before the pass. After
    /// [`BackendError::Device`] another step may fail the same way; see [`Engine::recover`]. Requests that wait while
    /// kept sequences hold all slots.
    pub fn step(&mut self) -> Result<Vec<Event>, EngineError> {
        let mut events = Vec::new();
        self.signals.arm();
        self.retire_cancelled(&mut events);
        self.admit();
        let (indices, pending) = self.pending();
        let mut parts = schedule(&pending, &self.limits);
        parts.iter_mut().for_each(|part| part.index = indices[part.index]);
        if parts.is_empty() {
            let stuck = !self.is_idle();
            return if stuck { Err(EngineError::NoSlot { slots: self.options.sequences_max }) } else { Ok(events) };
        }
        let start = Instant::now();
        let decodes = self.device_decodes(&pending, &parts);
        self.went_on_alone = decodes;
        let computed = if decodes { self.decode(&parts) } else { self.pass(&parts) };
        match computed {
            Ok(computed) => self.advance(&parts, &computed, start.elapsed(), &mut events),
            Err(error) => {
                self.spoil(&parts, decodes, &error);
                let EngineError::Backend(BackendError::Cancelled) = error else { return Err(error) };
                self.retire_cancelled(&mut events);
            }
        }
        Ok(events)
    }

    /// Takes note of what a step that failed may have left in the caches.
    fn spoil(&mut self, parts: &[Part], decodes: bool, error: &EngineError) {
        let context = self.context();
        for part in parts {
            let cached = &mut self.sequences[part.index].cached;
            match error {
                EngineError::Backend(BackendError::Device { .. }) if decodes => *cached = Cached::default(),
                _ if decodes => cached.spoil(self.options.run_ahead_max(), context),
                _ => cached.spoil(part.tokens, context),
            }
        }
    }

    /// Whether no request is left to work on.
    pub fn is_idle(&self) -> bool {
        self.sequences.iter().all(|sequence| sequence.state == State::Kept)
    }

    /// Cancels a request; the next step finishes it. Without effect on one that is finished or unknown.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(handle) = self.cancel_handle(id) {
            handle.request.store(true, Ordering::SeqCst);
        }
    }

    /// Cancels a request from another thread; `None` if there is no such sequence.
    pub fn cancel_handle(&self, id: SequenceId) -> Option<CancelHandle> {
        let sequence = self.sequences.iter().find(|sequence| sequence.id == id)?;
        Some(CancelHandle { request: sequence.cancel.clone(), pass: self.signals.pass.clone() })
    }

    /// Drops a sequence, whatever it is doing, and frees its slot. No event follows.
    pub fn release(&mut self, id: SequenceId) {
        self.sequences.retain(|sequence| sequence.id != id);
    }

    /// How far a request is, or how a kept one went; `None` if there is no such sequence.
    pub fn statistics(&self, id: SequenceId) -> Option<Statistics> {
        self.sequences.iter().find(|sequence| sequence.id == id).map(|sequence| sequence.statistics)
    }

    /// Checks a request before any work is done for it.
    fn check(&self, request: &Request) -> Result<(), EngineError> {
        check_sampling(&request.sampling)?;
        self.check_tokens(&request.prompt)
    }

    /// Checks that a text can go through the model.
    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let vocabulary = self.config.vocabulary;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(EngineError::Token { token, vocabulary });
        }
        if tokens.len() > self.context() {
            return Err(EngineError::PromptTooLong {
                tokens: tokens.len(),
                context: self.context(),
                limit: self.config.context,
            });
        }
        Ok(())
    }

    /// Finishes the sequences that are to be cancelled.
    fn retire_cancelled(&mut self, events: &mut Vec<Event>) {
        let all = !self.is_idle() && self.signals.take_interrupt();
        let cancelled =
            |sequence: &Sequence| sequence.state != State::Kept && (all || sequence.cancel.load(Ordering::SeqCst));
        for index in (0..self.sequences.len()).rev() {
            if cancelled(&self.sequences[index]) {
                self.finish(index, FinishReason::Cancelled, events);
            }
        }
    }

    /// Gives free slots to those that wait, first come, first served.
    fn admit(&mut self) {
        for slot in 0..self.options.sequences_max {
            if self.slot_is_free(slot)
                && let Some(next) = self.sequences.iter_mut().find(|sequence| sequence.state == State::Waiting)
            {
                next.slot = Some(slot);
                next.state = State::Running;
            }
        }
    }

    /// Whether no sequence has the slot.
    pub(crate) fn slot_is_free(&self, slot: usize) -> bool {
        self.sequences.iter().all(|sequence| sequence.slot != Some(slot))
    }

    /// The running sequences' indices, and what they have to do.
    fn pending(&self) -> (Vec<usize>, Vec<Pending>) {
        let running = self.sequences.iter().enumerate().filter(|(_, sequence)| sequence.state == State::Running);
        running.map(|(index, sequence)| (index, sequence.pending())).unzip()
    }

    /// Whether a part of a pass needs logits.
    fn has_output(&self, part: &Part) -> bool {
        part.output && self.sequences[part.index].wants_token()
    }

    /// Runs the parts and chooses a token for each of those that are complete.
    fn pass(&mut self, parts: &[Part]) -> Result<Computed, EngineError> {
        let (mut tokens, mut segments, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            let sequence = &self.sequences[part.index];
            let position = sequence.cached.len();
            tokens.extend_from_slice(&sequence.tokens[position..position + part.tokens]);
            let slot = sequence.slot.expect("a running sequence has a slot");
            segments.push(Segment { sequence: slot, position, tokens: part.tokens });
            if self.has_output(part) {
                outputs.push(tokens.len() as u32 - 1);
            }
        }
        let cancel = Some(&*self.signals.pass);
        self.loaded.run(&Batch { tokens: &tokens, segments: &segments, outputs: &outputs, cancel })?;
        self.logits.resize(outputs.len() * self.config.vocabulary, 0.0);
        if !outputs.is_empty() {
            self.loaded.read(self.program.logits, &mut self.logits)?;
        }
        let mut row = 0;
        let chosen = parts.iter().map(|part| {
            let output = self.has_output(part).then_some(row);
            row += usize::from(output.is_some());
            output.map(|row| self.choose(part.index, row)).transpose()
        });
        Ok(Computed { passes: vec![chosen.collect::<Result<_, _>>()?], ahead: 0 })
    }

    /// Chooses a sequence's next token from a row of logits.
    fn choose(&mut self, index: usize, row: usize) -> Result<u32, EngineError> {
        let sequence = &self.sequences[index];
        let logits = &mut self.logits[row * self.config.vocabulary..][..self.config.vocabulary];
        let position = sequence.tokens.len();
        let token = sample(logits, &sequence.sampling, &sequence.occurred, position as u64);
        token.ok_or(EngineError::Logits { position: position - 1 })
    }

    /// Takes note of what the passes did for each part, and of the tokens that were chosen.
    fn advance(&mut self, parts: &[Part], computed: &Computed, time: Duration, events: &mut Vec<Event>) {
        let mut finished = Vec::new();
        let time = time / computed.passes.len() as u32;
        for chosen in &computed.passes {
            assert!(finished.is_empty(), "the device went on behind the end of a sequence");
            for (part, &token) in parts.iter().zip(chosen) {
                self.sequences[part.index].cached.advance(part.tokens);
                if let Some(reason) = self.note(part, token, time, events) {
                    finished.push((part.index, reason));
                }
            }
        }
        let context = self.context();
        parts.iter().for_each(|part| self.sequences[part.index].cached.spoil(computed.ahead, context));
        // From the back, so that the indices of the others stay.
        finished.sort_unstable_by_key(|&(index, _)| std::cmp::Reverse(index));
        finished.into_iter().for_each(|(index, reason)| self.finish(index, reason, events));
    }

    /// Takes note of what a pass did for one sequence; gives the reason if that was the end of it.
    fn note(
        &mut self,
        part: &Part,
        token: Option<u32>,
        time: Duration,
        events: &mut Vec<Event>,
    ) -> Option<FinishReason> {
        let context = self.context();
        let sequence = &mut self.sequences[part.index];
        let (id, statistics) = (sequence.id, &mut sequence.statistics);
        if sequence.answered > 0 {
            statistics.decode_tokens += usize::from(token.is_some());
            statistics.decode_time += time;
        } else {
            statistics.prefill_tokens += part.tokens;
            statistics.prefill_time += time;
            events.push(Event::Prefill { id, done: sequence.cached.len(), total: statistics.prompt_tokens });
        }
        let Some(token) = token else { return part.output.then_some(FinishReason::MaxTokens) };
        let (belongs, reason) = sequence.answer(token, context);
        if belongs {
            events.push(Event::Token { id, token });
        }
        reason
    }

    /// Ends a request; its sequence stays only if that was asked for and it has something in the caches.
    fn finish(&mut self, index: usize, reason: FinishReason, events: &mut Vec<Event>) {
        let sequence = &mut self.sequences[index];
        events.push(Event::Finished { id: sequence.id, reason, statistics: sequence.statistics });
        if sequence.keep() && sequence.slot.is_some() {
            sequence.state = State::Kept;
        } else {
            self.sequences.remove(index);
        }
    }
}
