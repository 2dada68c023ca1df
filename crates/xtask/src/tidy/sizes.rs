//! How large the code is, crate by crate.

use std::collections::BTreeMap;
use std::fmt;

use super::File;
use crate::source::{self, Function};

/// The size of one file.
#[derive(Clone, Debug, Default)]
pub struct FileSize {
    /// Lines that are compiled into the program.
    pub code_lines: usize,
    /// Lines that are compiled for tests only.
    pub test_lines: usize,
    /// Lengths of the functions that are compiled into the program.
    pub function_lines: Vec<usize>,
}

impl FileSize {
    /// Measures a file, given its text without comments and literals and the functions found in it.
    pub fn measure(file: File<'_>, masked: &str, functions: &[Function]) -> FileSize {
        let all = file.text.lines().count();
        if file.is_test() {
            return FileSize { test_lines: all, ..FileSize::default() };
        }
        let tests = source::test_lines(masked);
        let is_test = |line: usize| tests.iter().any(|lines| lines.contains(&line));
        let test_lines = (1..=all).filter(|&line| is_test(line)).count();
        let functions = functions.iter().filter(|function| !is_test(*function.lines.start()));
        FileSize { code_lines: all - test_lines, test_lines, function_lines: functions.map(Function::length).collect() }
    }
}

/// The size of a crate.
#[derive(Clone, Debug, Default)]
pub struct CrateSize {
    /// Lines of every file, without those for tests.
    pub files: Vec<usize>,
    /// Lines for tests only.
    pub test_lines: usize,
    /// Lengths of its functions, without those for tests.
    pub function_lines: Vec<usize>,
}

impl CrateSize {
    fn join(&mut self, other: &CrateSize) {
        self.files.extend(&other.files);
        self.test_lines += other.test_lines;
        self.function_lines.extend(&other.function_lines);
    }
}

/// Sizes by crate.
#[derive(Clone, Debug, Default)]
pub struct Sizes(pub BTreeMap<String, CrateSize>);

impl Sizes {
    /// Counts a file to its crate.
    pub fn add(&mut self, file: File<'_>, size: FileSize) {
        let name = file.path.strip_prefix("crates/").and_then(|path| path.split('/').next());
        let name = name.or(file.path.split('/').next()).unwrap_or_default();
        let total = self.0.entry(name.into()).or_default();
        if size.code_lines > 0 {
            total.files.push(size.code_lines);
        }
        total.test_lines += size.test_lines;
        total.function_lines.extend(size.function_lines);
    }

    /// All crates together.
    pub fn total(&self) -> CrateSize {
        let mut total = CrateSize::default();
        self.0.values().for_each(|size| total.join(size));
        total
    }
}

/// The smallest length that at least 95 of 100 functions do not pass; 0 for none.
fn percentile_95(lengths: &[usize]) -> usize {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * 95).div_ceil(100);
    rank.checked_sub(1).map_or(0, |index| sorted[index])
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "crate          files   lines   longest   functions   p95   longest   test lines")?;
        let total = self.total();
        let rows = self.0.iter().map(|(name, size)| (name.as_str(), size)).chain([("all", &total)]);
        for (name, size) in rows {
            writeln!(
                f,
                "{name:12} {:>7} {:>7} {:>9} {:>11} {:>5} {:>9} {:>12}",
                size.files.len(),
                size.files.iter().sum::<usize>(),
                size.files.iter().max().unwrap_or(&0),
                size.function_lines.len(),
                percentile_95(&size.function_lines),
                size.function_lines.iter().max().unwrap_or(&0),
                size.test_lines,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        assert_eq!(percentile_95(&[]), 0);
        assert_eq!(percentile_95(&[7]), 7);
        assert_eq!(percentile_95(&(1..=100).rev().collect::<Vec<_>>()), 95);
        assert_eq!(percentile_95(&(1..=20).collect::<Vec<_>>()), 19);
    }

    #[test]
    fn test_modules_and_test_files_count_apart() {
        let text = "fn a() {\n}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n";
        let mut sizes = Sizes::default();
        for path in ["crates/x/src/lib.rs", "crates/x/tests/y.rs"] {
            let masked = source::mask(text);
            let file = File { path, text };
            sizes.add(file, FileSize::measure(file, &masked, &source::functions(&masked)));
        }
        let size = &sizes.0["x"];
        assert_eq!((size.files.as_slice(), size.test_lines), ([2].as_slice(), 4 + 6));
        assert_eq!(size.function_lines, [2]);
    }
}
