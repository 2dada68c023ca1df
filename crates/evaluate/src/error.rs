//! What can go wrong while a model is measured.

use engine::EngineError;
use text::TextError;
use thiserror::Error;

/// A metric can't be computed.
#[derive(Debug, Error)]
pub enum EvaluateError {
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A prompt can't be made.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The text is shorter than one piece.
    #[error("the text has {tokens} tokens, expected at least {needed}: one piece")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of one piece.
        needed: usize,
    },
    /// The model's context is shorter than one piece with its `<bos>`.
    #[error("the context holds {context} tokens, expected at least {needed}")]
    ContextTooShort {
        /// Positions that were loaded.
        context: usize,
        /// Positions that are needed.
        needed: usize,
    },
    /// A line of a file of instructions is not what it should be.
    #[error("line {line}: expected an object with `id`, `family`, `prompt` and `expected`")]
    Instruction {
        /// The line's number, from 1.
        line: usize,
        /// What the JSON reader says.
        #[source]
        source: serde_json::Error,
    },
    /// There is nothing to measure.
    #[error("there are no instructions in the file, expected one JSON object per line")]
    NoInstructions,
    /// The work was cancelled from outside.
    #[error("interrupted")]
    Interrupted,
}
