//! What can go wrong between a checkpoint and an answer.

use checkpoint::CheckpointError;
use model::ConfigError;
use tensor::program::ProgramError;
use tensor::{BackendError, DType, WeightFormat};
use thiserror::Error;

use crate::SequenceId;

/// A model can't be loaded, or a request can't be followed.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The checkpoint's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint's files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor that the model needs is not there.
    #[error("tensor `{tensor}` is missing from the checkpoint{}", stranger_hint(stranger))]
    MissingTensor {
        /// The name that was expected.
        tensor: String,
        /// A tensor that the model has no use for, which may be the missing one under another name.
        stranger: Option<String>,
    },
    /// A tensor that no Gemma 3 has: to leave it out might be wrong.
    #[error("tensor `{tensor}` is not part of the Gemma 3 model that the configuration describes")]
    UnknownTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{tensor}`: expected shape {expected:?} by the configuration, found {found:?}")]
    Shape {
        /// Its name.
        tensor: String,
        /// By the configuration.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// The device has no kernels for a tensor's format.
    #[error("tensor `{tensor}` is stored as {format}, which {device} can't use; expected one of {}", list(supported))]
    Format {
        /// Its name.
        tensor: String,
        /// Its format.
        format: WeightFormat,
        /// The device.
        device: String,
        /// What it can use.
        supported: Vec<DType>,
    },
    /// The configuration's shapes make no program.
    #[error("the model can't be built from its configuration")]
    Program(#[from] ProgramError),
    /// It does not fit.
    #[error(
        "out of memory: {} are needed ({} for weights, {} for a context of {context}, {} for activations), {} are \
         available, {} are missing{}",
        size(*weights + *caches + *scratch), size(*weights), size(*caches), size(*scratch), size(*available),
        size((*weights + *caches + *scratch).saturating_sub(*available)), fits_hint(*fits)
    )]
    OutOfMemory {
        /// Bytes of weights.
        weights: u64,
        /// Bytes of caches.
        caches: u64,
        /// Bytes of activations.
        scratch: u64,
        /// Bytes that the device has.
        available: u64,
        /// The context that was tried.
        context: usize,
        /// The longest context that fits, if any does.
        fits: Option<usize>,
    },
    /// An option makes no sense.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// Which.
        option: &'static str,
        /// What would be understood.
        expected: String,
        /// The value.
        found: String,
    },
    /// A prompt of no tokens.
    #[error("the prompt has no tokens, expected at least one")]
    EmptyPrompt,
    /// A token that the model has no embedding for.
    #[error("token {token} is not in the vocabulary of {vocabulary} entries")]
    Token {
        /// The token.
        token: u32,
        /// Number of tokens that there are.
        vocabulary: usize,
    },
    /// A prompt does not fit into the context.
    #[error("the prompt has {tokens} tokens, the context holds {context}{}", context_hint(*tokens, *limit))]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions that were loaded.
        context: usize,
        /// Positions that the model was trained for.
        limit: usize,
    },
    /// No such sequence: it never was, or it is finished and was not to be kept.
    #[error("there is no {0}")]
    UnknownSequence(SequenceId),
    /// A sequence can't be extended while it is being worked on.
    #[error("{0} is still being worked on")]
    Busy(SequenceId),
    /// All slots of the caches are taken.
    #[error("all {slots} slots for sequences are taken\n\nhint: release a kept sequence, or load with more")]
    NoSlot {
        /// Number of slots.
        slots: usize,
    },
    /// The model computed no number that could be chosen.
    #[error("the logits of position {position} are not numbers: the weights are damaged, or a sum overflowed")]
    Logits {
        /// Where.
        position: usize,
    },
    /// [`crate::InterruptHandle::interrupt`] was called.
    #[error("interrupted")]
    Interrupted,
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

fn stranger_hint(stranger: &Option<String>) -> String {
    match stranger {
        Some(name) => format!("\n\nhint: the checkpoint has `{name}`, which is no name of a Gemma 3 tensor"),
        None => String::new(),
    }
}

fn fits_hint(fits: Option<usize>) -> String {
    match fits {
        Some(context) => format!("\n\nhint: a context of {context} fits"),
        None => "\n\nhint: no context fits; use a smaller model or a format of fewer bits".into(),
    }
}

fn context_hint(tokens: usize, limit: usize) -> String {
    if tokens <= limit {
        format!("\n\nhint: load the model with a context of at least {tokens}; it allows {limit}")
    } else {
        format!("\n\nhint: shorten the prompt; the model allows no context beyond {limit}")
    }
}

fn list(dtypes: &[DType]) -> String {
    dtypes.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ")
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    if bytes >= 10_000_000_000 {
        format!("{:.1} GB", bytes as f64 / 1e9)
    } else {
        format!("{:.1} MB", bytes as f64 / 1e6)
    }
}
