//! The house rules that can be read from the files alone.

mod markdown;
mod rules;
mod sizes;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Problem;
use crate::metadata::Package;
use crate::source;
pub use sizes::{CrateSize, Sizes};

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// What has to change.
    pub problems: Vec<Problem>,
    /// What should.
    pub warnings: Vec<Problem>,
    /// How large the crates are.
    pub sizes: Sizes,
}

/// A file to check.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Path from the root of the repository, with `/` between its parts.
    pub path: &'a str,
    /// The whole text.
    pub text: &'a str,
}

impl File<'_> {
    /// The ending of the name, without its dot; of a name without one, nothing.
    pub fn extension(&self) -> &str {
        Path::new(self.path).extension().and_then(|extension| extension.to_str()).unwrap_or_default()
    }

    /// Whether all of the file is compiled for tests or benchmarks only.
    pub fn is_test(&self) -> bool {
        let mut parts = self.path.split('/');
        parts.any(|part| matches!(part, "tests" | "tests.rs" | "benches" | "fuzz"))
    }
}

/// Checks every file that git tracks or would track.
///
/// # Errors
/// If git can't list the files, or one can't be read.
pub fn check(root: &Path) -> Result<Report> {
    let mut report = Report::default();
    for path in files(root)? {
        let bytes = match fs::read(root.join(&path)) {
            Ok(bytes) => bytes,
            // Deleted, and the deletion is not committed yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| path),
        };
        report.problems.extend(rules::file_bytes(&path, bytes.len()));
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let file = File { path: &path, text };
            check_text(file, &mut report);
            report.problems.extend(markdown::dead_paths(root, file));
        }
    }
    report.problems.sort();
    report.warnings.sort();
    Ok(report)
}

/// Checks one text file.
pub fn check_text(file: File<'_>, report: &mut Report) {
    if !rules::is_written_here(file) {
        return;
    }
    report.problems.extend(rules::text(file));
    if file.extension() == "rs" {
        let masked = source::mask(file.text);
        let functions = source::functions(&masked);
        report.problems.extend(rules::rust(file, &masked));
        report.problems.extend(rules::function_lengths(file, &functions));
        let size = sizes::FileSize::measure(file, &masked, &functions);
        report.problems.extend(rules::file_length(file, size.code_lines));
        report.warnings.extend(rules::long_file(file, size.code_lines));
        report.sizes.add(file, size);
    }
}

/// The paths that git tracks or would track.
fn files(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git can't be run, and the house rules are for the files that it lists")?;
    ensure!(output.status.success(), "`git ls-files` failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    Ok(list.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

/// Dependencies that no file of their crate names.
///
/// # Errors
/// If a crate's files can't be listed or read.
pub fn unused_dependencies(root: &Path, packages: &[Package]) -> Result<Vec<Problem>> {
    let files = files(root)?;
    let mut problems = Vec::new();
    for package in packages.iter().filter(|package| package.ours) {
        let folder = format!("crates/{}/", package.name);
        let mut code = String::new();
        for path in files.iter().filter(|path| path.starts_with(&folder) && path.ends_with(".rs")) {
            code += &source::mask(&fs::read_to_string(root.join(path)).with_context(|| path.clone())?);
        }
        let unused = package.dependencies.iter().filter(|d| source::words(&code, &d.code_name).next().is_none());
        let manifest = format!("{folder}Cargo.toml");
        problems.extend(unused.map(|d| Problem::of_file(&manifest, format!("`{}` is not used", d.name))));
    }
    Ok(problems)
}
