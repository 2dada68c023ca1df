//! What a caller decides before a model is loaded.

use model::Config;
use tensor::{DType, LoadOptions, Precision};

use crate::EngineError;

/// How a model is loaded. The defaults are for one conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Positions per sequence; `None` for the smallest of 8,192, the model's limit and what fits into memory.
    pub context: Option<usize>,
    /// Where `context` is `None`, the shortest one that is worth loading; less if the model's limit is.
    pub context_min: usize,
    /// Format of cached keys and values: F32, F16 or Q8_0; `None` for F16, or F32 with [`Precision::F32`].
    pub cache_dtype: Option<DType>,
    /// How products are computed.
    pub precision: Precision,
    /// Threads; `None` for one per physical core.
    pub threads: Option<usize>,
    /// Tokens of prompts in one pass.
    pub chunk: usize,
    /// Sequences that can be in the caches at once.
    pub sequences: usize,
    /// Rows of logits in one pass; at least one for each sequence is there anyway. More than that makes
    /// [`crate::Engine::forward`] faster, at 1 MB each for Gemma's vocabulary.
    pub outputs_max: usize,
    /// Keep hidden states for [`crate::Engine::forward`].
    pub hidden: bool,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            context: None,
            context_min: 1,
            cache_dtype: None,
            precision: Precision::Fast,
            threads: None,
            chunk: 512,
            sequences: 1,
            outputs_max: 1,
            hidden: false,
        }
    }
}

/// The context that is asked for where nobody says otherwise.
pub(crate) const CONTEXT_DEFAULT: usize = 8192;

impl EngineOptions {
    /// Refuses numbers that make no sense for a model.
    ///
    /// # Errors
    /// The first of them.
    pub(crate) fn check(&self, config: &Config) -> Result<(), EngineError> {
        let positive = [("threads", self.threads.unwrap_or(1)), ("chunk", self.chunk), ("sequences", self.sequences)];
        for (option, value) in positive {
            if value == 0 || value > 1 << 20 {
                let expected = "a number from 1 to 1048576".into();
                return Err(EngineError::Option { option, expected, found: value.to_string() });
            }
        }
        match self.context {
            Some(context) if context == 0 || context > config.context => Err(EngineError::Option {
                option: "context",
                expected: format!("a number from 1 to {}, the model's limit", config.context),
                found: context.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// What the device is told, for a context.
    pub(crate) fn load_options(&self, context: usize) -> LoadOptions {
        // A whole chunk fits beside one token of every other sequence.
        let tokens_max = self.chunk.min(context) + self.sequences - 1;
        let default = match self.precision {
            Precision::Fast => DType::F16,
            Precision::F32 => DType::F32,
        };
        LoadOptions {
            tokens_max,
            outputs_max: self.outputs_max.max(self.sequences).min(tokens_max),
            sequences_max: self.sequences,
            context_max: context,
            cache_dtype: self.cache_dtype.unwrap_or(default),
            precision: self.precision,
            threads: self.threads,
        }
    }
}
