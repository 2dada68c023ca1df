//! Writing for people and for programs: answers and reports to stdout, everything else to stderr.

use std::io::{self, Write};

use serde_json::Value;

/// Writes to stdout and sends it off.
///
/// # Errors
/// A closed pipe, a full disk.
pub(crate) fn answer(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes a JSON document to stdout.
///
/// # Errors
/// As [`answer`].
pub(crate) fn json(value: &Value) -> io::Result<()> {
    answer(&format!("{value:#}\n"))
}

/// Writes a line to stderr. A closed stderr is no reason to stop.
pub(crate) fn notice(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Bytes for people: `12.3 GB`, `45.6 MB`, `7.8 kB`.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        1_000_000_000.. => format!("{:.2} GB", count as f64 / 1e9),
        1_000_000.. => format!("{:.1} MB", count as f64 / 1e6),
        1_000.. => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{count} bytes"),
    }
}

/// A large number of things for people: `32.5 M`, `1.00 G`.
pub(crate) fn count(count: u64) -> String {
    match count {
        1_000_000_000.. => format!("{:.2} billion", count as f64 / 1e9),
        1_000_000.. => format!("{:.1} million", count as f64 / 1e6),
        _ => count.to_string(),
    }
}

/// A rate for people, `-` where nothing was timed.
pub(crate) fn rate(per_second: Option<f64>) -> String {
    per_second.map_or("-".into(), |rate| format!("{rate:.1}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([bytes(999), bytes(1_500), bytes(18_300_000)], ["999 bytes", "1.5 kB", "18.3 MB"]);
        assert_eq!([count(32_500_000), count(12)], ["32.5 million", "12"]);
        assert_eq!([rate(None), rate(Some(12.34))], ["-", "12.3"]);
    }
}
