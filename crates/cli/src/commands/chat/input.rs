//! What the user types: lines, and  of several lines.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result};

use crate::interrupt;

const QUOTES: &str = "\"\"\"";

/// Reads messages from stdin: with a prompt on a terminal, without on a pipe. The terminal's own line editing is used.
pub(super) struct Lines {
    terminal: bool,
}

impl Lines {
    /// From stdin.
    pub(super) fn new() -> Lines {
        Lines { terminal: io::stdin().is_terminal() }
    }

    /// Whether a person types.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The next message or command; `None` when nothing more will come.
    ///
    /// # Errors
    /// Input that is no UTF-8.
    pub(super) fn read(&mut self) -> Result<Option<String>> {
        let mut stdin = io::stdin().lock();
        if !self.terminal {
            return assemble(&mut |_| line(&mut stdin, ""));
        }
        interrupt::while_waiting(|| assemble(&mut |first| line(&mut stdin, if first { ">>> " } else { "... " })))
    }
}

/// A line without its end; `None` at the end of the input.
fn line(from: &mut impl BufRead, prompt: &str) -> Result<Option<String>> {
    // On stderr: stdout is for answers.
    let _ = io::stderr().lock().write_all(prompt.as_bytes());
    let mut line = String::new();
    let count = from.read_line(&mut line).context("can't read from stdin")?;
    if count == 0 {
        return Ok(None);
    }
    let end = line.trim_end_matches(['\n', '\r']).len();
    line.truncate(end);
    Ok(Some(line))
}

/// Puts lines together that belong together. `next` gets whether it is the first line of a message.
fn assemble(next: &mut dyn FnMut(bool) -> Result<Option<String>>) -> Result<Option<String>> {
    let mut text = String::new();
    let mut quoted = false;
    let mut first = true;
    loop {
        let Some(line) = next(first)? else { return Ok((!first).then_some(text)) };
        let mut rest = line.as_str();
        if first && let Some(after) = rest.trim_start().strip_prefix(QUOTES) {
            quoted = true;
            rest = after;
        }
        first = false;
        if quoted {
            if let Some(before) = rest.trim_end().strip_suffix(QUOTES) {
                return Ok(Some(text + before));
            }
            // Nothing behind the opening quotes is no line.
            if !(text.is_empty() && rest.is_empty()) {
                text = text + rest + "\n";
            }
        } else if let Some(before) = rest.strip_suffix('\\') {
            text = text + before + "\n";
        } else {
            return Ok(Some(text + rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &str) -> Vec<String> {
        let mut lines = input.lines();
        let mut next = |_| Ok(lines.next().map(str::to_owned));
        std::iter::from_fn(|| assemble(&mut next).unwrap()).collect()
    }

    #[test]
    fn messages_of_several_lines() {
        assert_eq!(read("a\nb\n"), ["a", "b"]);
        assert_eq!(read("a\\\nb\\\nc\nd"), ["a\nb\nc", "d"]);
        assert_eq!(read("\"\"\"\na\n b\n\"\"\"\nc"), ["a\n b\n", "c"]);
        assert_eq!(read("\"\"\"a\nb\"\"\"\n\"\"\"one\"\"\""), ["a\nb", "one"]);
        assert_eq!(read("a\\"), ["a\n"]);
    }
}
