//! Progress of long work on stderr: a bar on a terminal, lines now and then on a pipe.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two lines on a pipe.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Between two drawings on a terminal.
const DRAW_EVERY: Duration = Duration::from_millis(100);
const WIDTH: usize = 24;

/// How far some work is.
pub(crate) struct Progress {
    label: String,
    /// Names the amounts: gives `12 of 600`, or bytes.
    unit: Unit,
    total: u64,
    /// What was done before it began.
    before: u64,
    start: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes.
    Bytes,
    /// Things of that name.
    Things(&'static str),
    /// Weights, of which there are many.
    Weights,
}

impl Progress {
    /// Work of a known amount that begins now.
    pub(crate) fn new(label: impl Into<String>, unit: Unit, total: u64) -> Progress {
        Progress::from(label, unit, total, 0)
    }

    /// The same, of which some was done before.
    pub(crate) fn from(label: impl Into<String>, unit: Unit, total: u64, before: u64) -> Progress {
        let terminal = io::stderr().is_terminal();
        Progress { label: label.into(), unit, total, before, start: Instant::now(), shown: None, terminal }
    }

    /// Says how much is done.
    pub(crate) fn set(&mut self, done: u64) {
        let every = if self.terminal { DRAW_EVERY } else { LINE_EVERY };
        let since = self.shown.unwrap_or(self.start).elapsed();
        if since >= every {
            self.shown = Some(Instant::now());
            let line = self.line(done);
            let _ = if self.terminal {
                write!(io::stderr().lock(), "\r{line}\x1b[K")
            } else {
                writeln!(io::stderr().lock(), "{line}")
            };
        }
    }

    fn line(&self, done: u64) -> String {
        let seconds = self.start.elapsed().as_secs_f64();
        let share = done as f64 / self.total.max(1) as f64;
        let rate = done.saturating_sub(self.before) as f64 / seconds.max(1e-9);
        let left = if done > self.before { (self.total.saturating_sub(done)) as f64 / rate } else { f64::INFINITY };
        let amounts = match self.unit {
            Unit::Bytes => {
                let [done, total] = [done, self.total].map(crate::output::bytes);
                format!("{done} of {total}, {}/s", crate::output::bytes(rate as u64))
            }
            Unit::Weights => {
                let [done, total] = [done, self.total].map(crate::output::count);
                format!("{done} of {total} weights, {}/s", crate::output::count(rate as u64))
            }
            Unit::Things(name) => format!("{done} of {} {name}, {rate:.1}/s", self.total),
        };
        let bar = if self.terminal {
            let full = ((share * WIDTH as f64) as usize).min(WIDTH);
            format!(" [{}{}]", "#".repeat(full), " ".repeat(WIDTH - full))
        } else {
            String::new()
        };
        format!("{}{bar} {:3.0} %, {amounts}, {} left", self.label, share * 100.0, time(left))
    }
}

impl Drop for Progress {
    /// Takes the bar away: what comes next says how it went.
    fn drop(&mut self) {
        if self.terminal && self.shown.is_some() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

/// Seconds for people.
fn time(seconds: f64) -> String {
    match seconds {
        seconds if !seconds.is_finite() => "?".into(),
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_share_rate_and_time_left() {
        let start = Instant::now() - Duration::from_secs(10);
        let mut progress = Progress::new("counting", Unit::Things("beans"), 200);
        (progress.start, progress.terminal) = (start, false);
        let line = progress.line(50);
        assert!(line.starts_with("counting  25 %, 50 of 200 beans, 5.0/s, 30 s left"), "{line}");
        progress.unit = Unit::Bytes;
        assert!(progress.line(0).ends_with("? left"));
        progress.terminal = true;
        assert!(progress.line(100).contains("[############            ]"));
    }
}
