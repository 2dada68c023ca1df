//! `completions`: what a shell needs to complete this program's arguments.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::args::Args;
use crate::output;

/// Prints completions for a shell.
///
/// # Errors
/// A closed pipe.
pub(crate) fn run(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    generate(shell, &mut Args::command(), "lapidary", &mut script);
    Ok(output::answer(&String::from_utf8_lossy(&script))?)
}
