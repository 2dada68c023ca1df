//! What can go wrong while a model is measured.

use engine::EngineError;
use text::TextError;
use thiserror::Error;

use crate::NotFinite;

/// A metric can't be computed.
#[derive(Debug, Error)]
pub enum EvaluateError {
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A prompt can't be made.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The text is shorter than one window.
    #[error("the text has {tokens} tokens, expected at least {needed}: one window")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of one window, without `<bos>`.
        needed: usize,
    },
    /// The model's context is shorter than one window.
    #[error("the context holds {context} tokens, expected at least {needed}")]
    ContextTooShort {
        /// Positions that were loaded.
        context: usize,
        /// Positions that are needed.
        needed: usize,
    },
    /// Two models that can't be compared.
    #[error("the model's vocabulary has {model} entries, the original's {original}: they can't be compared")]
    Vocabulary {
        /// Entries of the model's.
        model: usize,
        /// Entries of the original's.
        original: usize,
    },
    /// Logits that are not numbers.
    #[error(
        "the logits of the {of} are not numbers: they begin after {after} tokens of the text (window {window}, \
         position {position})"
    )]
    Logits {
        /// Whose they are.
        of: NotFinite,
        /// The first window with such logits, from 0.
        window: usize,
        /// The first position in it, from 0.
        position: usize,
        /// Tokens of the text before the prediction.
        after: usize,
        /// The window's tokens up to the position.
        tokens: Vec<u32>,
    },
    /// Saved logits that can't be used.
    #[error("the saved logits can't be used: {problem}")]
    Saved {
        /// Why.
        problem: String,
    },
    /// The header of saved logits.
    #[error("the header of the saved logits is not valid")]
    SavedHeader {
        /// What the JSON reader says.
        #[source]
        source: serde_json::Error,
    },
    /// A file of saved logits can't be read or written.
    #[error("the saved logits: {0}")]
    Io(#[from] std::io::Error),
    /// A line of a file is not what it should be.
    #[error("line {line}: {problem}")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// What was expected and what was found.
        problem: String,
    },
    /// An answer is missing.
    #[error("there is no answer to the instruction `{id}`, expected a line for each instruction")]
    NoAnswer {
        /// The instruction's name.
        id: String,
    },
    /// There is nothing to measure.
    #[error("there are no instructions in the file, expected one JSON object per line")]
    NoInstructions,
    /// The same, of a file of questions.
    #[error("there are no questions in the file, expected lines of CSV or JSON")]
    NoQuestions,
    /// Logits that are not numbers, about a choice.
    #[error("the logits about question {question} are not numbers")]
    ChoiceLogits {
        /// The question, from 1.
        question: usize,
    },
    /// Less quality is left than was required.
    #[error("{found:.1} % of the quality is retained ({score}), {required} % is required")]
    Verdict {
        /// What is left, in per cent.
        found: f64,
        /// What was required, in per cent.
        required: f64,
        /// The score of which least is left.
        score: String,
    },
    /// Nothing has been compared with the original.
    #[error("no score of the model can be compared with the original's, so nothing is known about the quality")]
    NoVerdict,
    /// The work was cancelled from outside.
    #[error("interrupted")]
    Interrupted,
}
