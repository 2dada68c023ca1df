//! What developers run on the project itself: continuous integration and the house rules.
//!
//! Everything here is also a test (`tests/house_rules.rs`), so that `cargo test` alone finds a broken rule.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to the terminal")]

pub mod ci;
pub mod lavapipe;
pub mod licences;
pub mod metadata;
pub mod peers;
pub mod picture;
pub mod radv;
pub mod source;
pub mod tidy;

use std::fmt;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").components().collect()
}

/// A place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Path from the root of the repository, with `/` between its parts.
    pub path: String,
    /// Line, counted from 1; 0 for the whole file.
    pub line: usize,
    /// What was expected and found.
    pub message: String,
}

impl Problem {
    /// A problem of a whole file.
    pub fn of_file(path: &str, message: impl Into<String>) -> Problem {
        Problem { path: path.into(), line: 0, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}
