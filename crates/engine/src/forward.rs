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

impl Engine {
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
        loop {
            self.signals.arm();
            if self.signals.take_interrupt() {
                return Err(EngineError::Interrupted);
            }
            let cancel = Some(&*self.signals.pass);
            match self.loaded.run(&Batch { tokens, segments: &segments, outputs: &rows, cancel }) {
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
