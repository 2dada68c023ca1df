//! What can go wrong between a model and a smaller one.

use std::io;
use std::path::{Path, PathBuf};

use checkpoint::CheckpointError;
use engine::EngineError;
use tensor::program::ProgramError;
use tensor::{BackendError, WeightError};
use thiserror::Error;

use crate::QuantizeError;

/// Why a model can't be quantized.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// The source, or the files of the result.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The source is no model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The configuration's shapes make no program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A weight can't be read.
    #[error("weight `{name}` can't be read")]
    Weight {
        /// Its name in the checkpoint.
        name: String,
        /// Why.
        #[source]
        source: WeightError,
    },
    /// A weight, or the activations that it gets, can't be used.
    #[error("{what} can't be quantized")]
    Quantize {
        /// A weight's name in the checkpoint, or a layer.
        what: String,
        /// Why.
        #[source]
        source: QuantizeError,
    },
    /// The source has no `config.json` to take over.
    #[error(
        "the model is a GGUF file, expected a folder with config.json and *.safetensors\n\nhint: quantize the \
         checkpoint that the file was made of"
    )]
    NotAFolder,
    /// There is nothing to convert.
    #[error("the model is no folder of trellis weights (EXL3)\n\nhint: `quantize` makes one of the original")]
    NotTrellis,
    /// There is nothing to do.
    #[error("the model has the layout {} already", .0.name())]
    SameLayout(super::Layout),
    /// A model whose head is no copy of its embedding.
    #[error(
        "the model has a head of its own (`tie_word_embeddings` is false), expected one with the embedding's weights \
         for the layout compact"
    )]
    OwnHead,
    /// An embedding that would be lost.
    #[error(
        "the layout compact has no embedding, and `{name}` is not what the head is decoded to: {different} of {rows} \
         rows differ, by {:.2} % of their size\n\nhint: --drop-embedding gives it up for the head's rows, as \
         `quantize --layout compact` does", 100.0 * error
    )]
    OtherEmbedding {
        /// Its name in the checkpoint.
        name: String,
        /// Rows that differ.
        different: usize,
        /// Of so many.
        rows: usize,
        /// The root mean square of the difference of these rows over that of the embedding's.
        error: f64,
    },
    /// Not enough text.
    #[error(
        "the calibration text has {tokens} tokens, expected at least {needed}\n\nhint: the more, and the more like \
         what the model will be used for, the better"
    )]
    TextTooShort {
        /// How many there are.
        tokens: usize,
        /// How many there must be.
        needed: usize,
    },
    /// A size that no choice of rates reaches.
    #[error(
        "{wanted} bytes ({:.3} bits per weight) can't be met: the least possible is {least} bytes ({:.3} bits per \
         weight)", bits_of(*wanted, *parameters), bits_of(*least, *parameters)
    )]
    Budget {
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes at the lowest rates.
        least: u64,
        /// Weights of the model.
        parameters: u64,
    },
    /// The target is there.
    #[error("`{}` exists already\n\nhint: --force overwrites it", .0.display())]
    Exists(PathBuf),
    /// Another run works on the same target.
    #[error("`{}` is in use by another run", .0.display())]
    InUse(PathBuf),
    /// What an interrupted run left was made with other settings.
    #[error(
        "`{}` has the work of an interrupted run with other settings: {difference}\n\nhint: give the same settings to \
         go on, or delete the folder to begin again", folder.display()
    )]
    OtherSettings {
        /// Where it is.
        folder: PathBuf,
        /// What differs.
        difference: String,
    },
    /// The operating system refused.
    #[error("can't {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// [`super::Observer::cancelled`].
    #[error("interrupted\n\nhint: the same command goes on where it was")]
    Cancelled,
}

impl PipelineError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PipelineError {
        let path = path.to_owned();
        move |source| PipelineError::Io { action, path, source }
    }

    pub(super) fn quantize(what: impl Into<String>) -> impl FnOnce(QuantizeError) -> PipelineError {
        let what = what.into();
        move |source| PipelineError::Quantize { what, source }
    }
}

fn bits_of(bytes: u64, parameters: u64) -> f64 {
    8.0 * bytes as f64 / parameters as f64
}
