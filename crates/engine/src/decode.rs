//! Decoding on the device: several tokens per call.

use tensor::{BackendError, Continuation};

use crate::schedule::{Part, Pending};
use crate::{Engine, EngineError};

/// What was computed for the parts of a step.
pub(crate) struct Computed {
    /// For each pass, and in it for each part, the token that was chosen.
    pub(crate) passes: Vec<Vec<Option<u32>>>,
    /// Positions behind the last pass that may have been written to the caches.
    pub(crate) ahead: usize,
}

impl Engine {
    /// Whether the device can go on alone: if it chooses tokens itself, and nobody has more to do than the token that
    /// was chosen last. A prompt in between would have to wait.
    pub(crate) fn device_decodes(&self, pending: &[Pending], parts: &[Part]) -> bool {
        self.decodes && parts.len() == pending.len() && pending.iter().all(|work| work.decoding)
    }

    /// Lets the device go on with the sequences.
    pub(crate) fn decode(&mut self, parts: &[Part]) -> Result<Computed, EngineError> {
        let continuations: Vec<Continuation<'_>> =
            parts.iter().map(|part| self.sequences[part.index].continuation()).collect();
        let chosen = self.loaded.decode(self.program.logits, &continuations, Some(&self.signals.pass));
        let chosen = chosen.map_err(|error| match error {
            BackendError::Logits { position, .. } => EngineError::Logits { position },
            other => other.into(),
        })?;
        let passes = chosen[0].len();
        assert!(
            passes > 0 && chosen.iter().all(|tokens| tokens.len() == passes),
            "as many tokens for each: {chosen:?}"
        );
        let pass = |pass| chosen.iter().map(|tokens: &Vec<u32>| Some(tokens[pass])).collect();
        Ok(Computed { passes: (0..passes).map(pass).collect(), ahead: self.options.run_ahead_max() })
    }
}
