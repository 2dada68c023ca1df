//! What can go wrong with a checkpoint.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A checkpoint can't be read or written. Messages name the file, what was expected and what was found.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// There is nothing at the path.
    #[error("`{}` does not exist", path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("can't {action} `{}`", path.display())]
    Io {
        /// What was tried: `open`, `map`, `write`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file has no bytes.
    #[error("`{file}` is empty\n\nhint: download it again")]
    Empty {
        /// The file.
        file: String,
    },
    /// The file is something else than its place or name says.
    #[error("`{file}` is not {expected}: it looks like {found}{}", hint_of(hint))]
    WrongKind {
        /// The file.
        file: String,
        /// What it should be, with an article.
        expected: &'static str,
        /// What its first bytes say, with an article.
        found: String,
        /// What to do, or empty.
        hint: &'static str,
    },
    /// The file ends before something that it announces.
    #[error(
        "`{file}` is cut off or damaged: {what} needs {needed} bytes, {available} are there ({} are missing)\n\n\
         hint: download it again",
        needed.saturating_sub(*available)
    )]
    Truncated {
        /// The file.
        file: String,
        /// What doesn't fit.
        what: String,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are left.
        available: u64,
    },
    /// The file breaks the rules of its format.
    #[error("`{file}` is damaged: {problem}")]
    Invalid {
        /// The file.
        file: String,
        /// Which rule, what was expected and found.
        problem: String,
    },
    /// The file is sound but of a kind that is not read here.
    #[error("`{file}` can't be read: {problem}")]
    Unsupported {
        /// The file.
        file: String,
        /// What it is.
        problem: String,
    },
    /// A folder lacks a file that makes it a checkpoint.
    #[error("`{}` is not a checkpoint: {what} is missing{}", folder.display(), hint_of(hint))]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// What is missing.
        what: String,
        /// What to do, or empty.
        hint: String,
    },
    /// Shards that the index or the numbering asks for are not there.
    #[error(
        "`{}` is incomplete: missing {}\n\nhint: download the missing files into the same folder",
        folder.display(),
        missing.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    )]
    MissingShards {
        /// The folder.
        folder: PathBuf,
        /// Their names.
        missing: Vec<String>,
    },
    /// No tensor has this name.
    #[error("the checkpoint has no tensor `{name}`")]
    MissingTensor {
        /// The name asked for.
        name: String,
    },
    /// The tensor is there, in a format that is not read here.
    #[error("tensor `{name}` is stored as {dtype}, which is not supported yet")]
    UnsupportedDType {
        /// The tensor.
        name: String,
        /// The format's name in the file.
        dtype: String,
    },
    /// The tensors of a trellis weight don't fit together, or one is not there.
    #[error("trellis weight `{name}`: {problem}")]
    Trellis {
        /// What their names begin with.
        name: String,
        /// Which of them, what was expected and found, and maybe a hint.
        problem: String,
    },
    /// The disk filled up while a file was written; what was written of it is gone again.
    #[error("no space left on the disk: `{}` could not be written beyond {written} bytes", path.display())]
    DiskFull {
        /// The target.
        path: PathBuf,
        /// Bytes that went well.
        written: u64,
    },
    /// What should be written doesn't fit the format or the declaration.
    #[error("can't write `{what}`: {problem}")]
    Declaration {
        /// The tensor or metadata key.
        what: String,
        /// What was expected and found.
        problem: String,
    },
}

impl CheckpointError {
    /// Wraps an error of the operating system; a missing file and a full disk get their own variants.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> CheckpointError {
        match source.kind() {
            io::ErrorKind::NotFound => CheckpointError::NotFound { path: path.to_owned() },
            _ => CheckpointError::Io { action, path: path.to_owned(), source },
        }
    }

    /// The file breaks a rule of its format.
    pub(crate) fn invalid(file: &str, problem: impl Into<String>) -> CheckpointError {
        CheckpointError::Invalid { file: file.to_owned(), problem: problem.into() }
    }

    /// The file is of a kind that is not read here.
    pub(crate) fn unsupported(file: &str, problem: impl Into<String>) -> CheckpointError {
        CheckpointError::Unsupported { file: file.to_owned(), problem: problem.into() }
    }
}

/// The end of a message: nothing, or the hint after a blank line.
fn hint_of(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("\n\nhint: {hint}") }
}
