//! How good a model is: each metric once, for commands and tests.
//!
//! Metrics are functions of an [`engine::Engine`] and data; they open no files and print nothing. Work that takes long
//! tells a `progress` closure how far it is.

use engine::{Engine, EngineError};

mod bleu;
mod check;
mod choice;
mod coherence;
mod compare;
mod divergence;
mod error;
mod instructions;
mod lines;
mod perplexity;
mod saved;
mod statistics;
mod verdict;
mod windows;

pub use bleu::{Bleu, bleu};
pub use check::{Check, Constraint, Relation, is_exact};
pub use choice::{ChoicePrompt, ChoiceQuestion, ChoiceScore, choice_positions, parse_choices, score_choices};
pub use coherence::Coherence;
pub use compare::{Side, compare};
pub use divergence::{Divergence, NotFinite, Softmax, Tail, divergence};
pub use error::EvaluateError;
pub use instructions::{
    ANSWER_TOKENS, Answer, CONSTRAINED_ANSWER_TOKENS, Instruction, InstructionScore, Instructions, Prompting,
    Unsupported, answer_instructions, bleu_of_answers, bleu_of_expected, parse_answers, parse_instructions,
};
pub use perplexity::{Perplexity, negative_log_likelihood, perplexity};
pub use saved::{Fnv, Hashes, Keep, MAGIC, SavedHeader, SavedText, compare_with_saved, save_logits};
pub use statistics::{Comparison, Estimate, KlDistribution, TailSummary, quantile};
pub use verdict::{Retained, Score, require, worst};
pub use windows::{Protocol, WINDOW_TOKENS, Windows};

/// Makes the engine work again after a pass has failed, or gives the error back: where it is not the device's, or where
/// no device is left. The pass is run once more then.
pub type Recover<'a> = &'a mut dyn FnMut(&mut Engine, EngineError) -> Result<(), EngineError>;

/// Called with the work that is done and all of it, in the metric's own units.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);
