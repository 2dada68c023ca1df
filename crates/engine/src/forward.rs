//! Runs a text and gives the logits of its positions, without choosing anything.

use std::ops::Range;

use tensor::{BackendError, Batch, BufferId, Segment};

use crate::{Engine, EngineError};

/// What the model computed for one position.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Position in the text.
    pub position: usize,
    /// `[vocabulary]`: about the token after it.
    pub logits: &'a [f32],
    /// `[layers + 1]` of `[hidden]`: the scaled embedding, the residual stream after each layer but the last, and that
    /// of the last after the final norm. Empty unless [`crate::EngineOptions::hidden`] asked for them.
    pub hidden: &'a [&'a [f32]],
}

/// Consecutive tokens of a text, as a part of one pass.
#[derive(Clone, Debug)]
pub struct TextPart<'a> {
    /// Slot of the caches, below [`crate::EngineOptions::sequences`]; it must be free. Each part has its own.
    pub slot: usize,
    /// Position of the first token. What was last run in the slot must be the positions before it.
    pub position: usize,
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// The logits of which of them are wanted: indices into `tokens`.
    pub outputs: Range<usize>,
}

/// What one pass of [`Engine::forward_parts`] can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassLimits {
    /// Texts.
    pub parts: usize,
    /// Tokens of all parts.
    pub tokens: usize,
    /// Rows of logits of all parts.
    pub outputs: usize,
}

impl Engine {
    /// What [`Engine::forward_parts`] takes at once.
    pub fn pass_limits(&self) -> PassLimits {
        PassLimits {
            parts: self.options.sequences_max,
            tokens: self.limits.chunk.min(self.limits.tokens_max),
            outputs: self.limits.outputs_max,
        }
    }

    /// Runs parts of several texts in one pass; [`Engine::pass_logits`] then has the logits that are wanted. The texts
    /// go on in the next call, or others begin at position 0.
    ///
    /// # Errors
    /// As [`Engine::submit`]; an interruption; a device that failed: all texts have to begin again then.
    ///
    /// # Panics
    /// If the parts are more than [`Engine::pass_limits`] allows, or a slot is not free.
    pub fn forward_parts(&mut self, parts: &[TextPart<'_>]) -> Result<(), EngineError> {
        let (mut tokens, mut segments, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            assert!(self.slot_is_free(part.slot), "slot {} is taken", part.slot);
            self.check_tokens(part.tokens)?;
            let start = tokens.len();
            rows.extend(part.outputs.clone().map(|output| (start + output) as u32));
            segments.push(Segment { sequence: part.slot, position: part.position, tokens: part.tokens.len() });
            tokens.extend_from_slice(part.tokens);
        }
        self.run_pass(&tokens, &segments, &rows)?;
        self.logits.resize(rows.len() * self.config.vocabulary, 0.0);
        if !rows.is_empty() {
            self.loaded.read(self.program.logits, &mut self.logits)?;
        }
        Ok(())
    }

    /// The logits `[outputs, vocabulary]` of the last [`Engine::forward_parts`], in the order of the parts.
    pub fn pass_logits(&self) -> &[f32] {
        &self.logits
    }

    /// Runs `tokens` from position 0 and gives a row for each position of `outputs`, in order. What comes after the
    /// last of these is not run; without outputs all is.
    ///
    /// # Errors
    /// As [`Engine::submit`]; no slot that is free for it; an interruption; a device that failed.
    ///
    /// # Panics
    /// If `outputs` ends after the last token.
    pub fn forward(
        &mut self,
        tokens: &[u32],
        outputs: Range<usize>,
        on_row: &mut dyn FnMut(Row<'_>),
    ) -> Result<(), EngineError> {
        assert!(outputs.end <= tokens.len(), "outputs {outputs:?} of {} tokens", tokens.len());
        self.check_tokens(tokens)?;
        let slots = self.options.sequences_max;
        let slot = (0..slots).find(|&slot| self.slot_is_free(slot)).ok_or(EngineError::NoSlot { slots })?;
        let end = if outputs.is_empty() { tokens.len() } else { outputs.end };
        let mut position = 0;
        while position < end {
            let count = self.count(position, end, &outputs);
            let wanted = outputs.start.clamp(position, position + count)..outputs.end.clamp(position, position + count);
            self.run_part(slot, position, &tokens[position..position + count], wanted.clone())?;
            self.give_rows(wanted, on_row)?;
            position += count;
        }
        Ok(())
    }

    /// How many tokens go into the next pass, so that their outputs have rows.
    fn count(&self, position: usize, end: usize, outputs: &Range<usize>) -> usize {
        let before = outputs.start.saturating_sub(position);
        let rows = if outputs.is_empty() { usize::MAX } else { before + self.limits.outputs_max };
        (end - position).min(rows).min(self.limits.chunk.min(self.limits.tokens_max))
    }

    /// Runs one pass of [`Engine::forward`] for the positions from `position` on.
    fn run_part(
        &mut self,
        slot: usize,
        position: usize,
        tokens: &[u32],
        wanted: Range<usize>,
    ) -> Result<(), EngineError> {
        let segments = [Segment { sequence: slot, position, tokens: tokens.len() }];
        let rows: Vec<u32> = wanted.map(|wanted| (wanted - position) as u32).collect();
        self.run_pass(tokens, &segments, &rows)
    }

    /// Runs one pass, unless an interruption was asked for.
    fn run_pass(&mut self, tokens: &[u32], segments: &[Segment], rows: &[u32]) -> Result<(), EngineError> {
        loop {
            self.signals.arm();
            if self.signals.take_interrupt() {
                return Err(EngineError::Interrupted);
            }
            let cancel = Some(&*self.signals.pass);
            match self.loaded.run(&Batch { tokens, segments, outputs: rows, cancel }) {
                Ok(()) => return Ok(()),
                // Somebody else's handle: try again.
                Err(BackendError::Cancelled) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads what the last pass computed for the positions `wanted`.
    fn give_rows(&mut self, wanted: Range<usize>, on_row: &mut dyn FnMut(Row<'_>)) -> Result<(), EngineError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let (rows, width) = (wanted.len(), self.config.hidden);
        self.logits.resize(rows * self.config.vocabulary, 0.0);
        self.loaded.read(self.program.logits, &mut self.logits)?;
        let hidden = self.program.hidden.clone();
        let hidden = hidden.into_iter().map(|id| self.read(id, rows * width)).collect::<Result<Vec<_>, _>>()?;
        for (row, position) in wanted.enumerate() {
            let hidden: Vec<&[f32]> = hidden.iter().map(|values| &values[row * width..][..width]).collect();
            let logits = &self.logits[row * self.config.vocabulary..][..self.config.vocabulary];
            on_row(Row { position, logits, hidden: &hidden });
        }
        Ok(())
    }

    fn read(&mut self, buffer: BufferId, len: usize) -> Result<Vec<f32>, BackendError> {
        let mut values = vec![0.0; len];
        self.loaded.read(buffer, &mut values)?;
        Ok(values)
    }
}
