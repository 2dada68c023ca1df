//! How failures are told: a message with its causes and hints on stderr, and an exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Error;

/// What messages put before a hint.
const HINT: &str = "\n\nhint: ";

/// The command line asks for something that makes no sense: exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Prints a failure and gives the exit code: 2 for a wrong command line, 1 for all else. A closed pipe is no failure:
/// whoever reads has enough.
pub(crate) fn report(error: &Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    // Where stderr is closed too there is nobody to tell.
    let _ = io::stderr().lock().write_all(message(error).as_bytes());
    if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// `error: …`, the causes, then all hints.
fn message(error: &Error) -> String {
    let (mut text, mut hints) = (String::new(), Vec::new());
    let mut last = String::new();
    for (depth, cause) in error.chain().enumerate() {
        let whole = cause.to_string();
        let (what, hint) = whole.split_once(HINT).map_or((whole.as_str(), None), |(what, hint)| (what, Some(hint)));
        hints.extend(hint.map(str::to_owned));
        if depth == 0 {
            text += &format!("error: {what}\n");
        } else if !last.contains(what) {
            // Some messages have that of their cause inside already.
            text += &format!("  because: {what}\n");
        }
        last = what.to_owned();
    }
    for hint in hints {
        text += &format!("hint: {hint}\n");
    }
    text
}

fn is_broken_pipe(error: &Error) -> bool {
    let io = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<io::Error>().map(io::Error::kind);
    error.chain().any(|cause| io(cause) == Some(io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn hints_come_last_and_causes_once() {
        let error = anyhow!("disk full: 3 bytes\n\nhint: delete something").context("can't write").context("failed: x");
        assert_eq!(
            message(&error),
            "error: failed: x\n  because: can't write\n  because: disk full: 3 bytes\nhint: delete something\n"
        );
        let error = anyhow!("line 3").context("not JSON: line 3");
        assert_eq!(message(&error), "error: not JSON: line 3\n");
    }

    #[test]
    fn a_closed_pipe_is_found_in_the_chain() {
        let error = Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert!(is_broken_pipe(&error) && !is_broken_pipe(&anyhow!("x")));
    }
}
