//! Continuous integration: the same steps on a developer's machine and on a server, one after the other, up to the
//! first that fails.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::metadata::{self, cargo};
use crate::{Problem, lavapipe, licences, picture, radv, root, tidy};

/// The machines besides the developer's own that the code has to compile for.
const TARGETS: [&str; 5] = [
    "x86_64-pc-windows-gnu",
    "x86_64-pc-windows-msvc",
    "x86_64-apple-darwin",
    "aarch64-apple-darwin",
    "aarch64-unknown-linux-gnu",
];

/// The two commands that the README begins with.
const README_RUN: &str = r#"cargo run --release -- run "Tell me a story about a ship.""#;
const README_CI: &str = "cargo xtask ci";

struct Step {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<()>,
}

/// Cheap steps first.
const STEPS: [Step; 11] = [
    Step { name: "format", what: "rustfmt would change nothing", run: format },
    Step { name: "tidy", what: "house rules, the picture of the dependencies, licences", run: tidy },
    Step { name: "clippy", what: "lints of all crates and their tests; a warning is an error", run: clippy },
    Step { name: "lavapipe", what: "a Vulkan driver for the tests where there is no GPU", run: lavapipe },
    Step { name: "test", what: "all tests", run: test },
    Step { name: "radv", what: "no compute pipeline spills registers on AMD's gfx1103", run: radv::run_check },
    Step { name: "doc-test", what: "the examples in the documentation", run: doc_test },
    Step { name: "doc", what: "the documentation builds, and its links lead somewhere", run: documentation },
    Step { name: "target", what: "the code compiles for other systems", run: other_targets },
    Step { name: "fuzz", what: "the fuzz targets compile", run: fuzz_targets },
    Step { name: "release", what: "the README's first command answers", run: readme_command },
];

/// Runs the named steps, or all of them if no name is given; `list` only names them.
///
/// # Errors
/// The first step that fails, or a name that no step has.
pub fn run(names: &[&str]) -> Result<()> {
    if names == ["list"] {
        STEPS.iter().for_each(|step| println!("{:10} {}", step.name, step.what));
        return Ok(());
    }
    for name in names {
        let known: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        ensure!(known.contains(name), "expected a step, one of `{}`, found `{name}`", known.join("`, `"));
    }
    let mut times = Vec::new();
    for step in STEPS.iter().filter(|step| names.is_empty() || names.contains(&step.name)) {
        println!("\n=== {}: {}", step.name, step.what);
        let start = Instant::now();
        let result = (step.run)();
        let time = start.elapsed();
        result.with_context(|| {
            let name = step.name;
            format!("step `{name}` failed after {:.1} s; `cargo xtask ci {name}` repeats it", time.as_secs_f64())
        })?;
        println!("=== {}: passed in {:.1} s", step.name, time.as_secs_f64());
        times.push((step.name, time));
    }
    println!("\npassed:");
    for (name, time) in &times {
        println!("  {name:10} {:8.1} s", time.as_secs_f64());
    }
    println!("  {:10} {:8.1} s", "together", times.iter().map(|(_, time)| time).sum::<Duration>().as_secs_f64());
    Ok(())
}

/// Runs `cargo` in the root with its output on the terminal.
fn run_cargo(arguments: &[&str]) -> Result<()> {
    run_command(Command::new(cargo()).args(arguments))
}

fn run_command(command: &mut Command) -> Result<()> {
    command.current_dir(root());
    let line = command_line(command);
    println!("$ {line}");
    let status = command.status().with_context(|| format!("`{line}` can't be run"))?;
    ensure!(status.success(), "`{line}` failed: {status}");
    Ok(())
}

fn command_line(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let program = program.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn format() -> Result<()> {
    run_cargo(&["fmt", "--all", "--check"])
}

/// Checks the house rules and prints the table of sizes.
///
/// # Errors
/// If a rule is broken, or the files can't be read.
pub fn tidy() -> Result<()> {
    let root = root();
    let packages = metadata::packages(&root)?;
    let mut report = tidy::check(&root)?;
    report.problems.extend(picture::check(&root, &packages)?);
    report.problems.extend(licences::check(&packages));
    report.problems.extend(tidy::unused_dependencies(&root, &packages)?);
    print!("{}", report.sizes);
    report.warnings.iter().for_each(|warning| println!("warning: {warning}"));
    report.problems.iter().for_each(|problem: &Problem| println!("error: {problem}"));
    let count = report.problems.len();
    ensure!(count == 0, "{count} broken rule{}", if count == 1 { "" } else { "s" });
    Ok(())
}

fn clippy() -> Result<()> {
    run_cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"])
}

fn lavapipe() -> Result<()> {
    lavapipe::provide();
    Ok(())
}

/// Runs the tests under nextest where it is installed: it runs the tests of all crates side by side. Lavapipe is asked
/// for machine code without optimizations: compiling hundreds of kernels takes longer than running them.
fn test() -> Result<()> {
    let mut command = Command::new(cargo());
    if succeeds(Command::new(cargo()).args(["nextest", "--version"])) {
        command.args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
    } else {
        println!("cargo-nextest is not installed, so `cargo test` runs the tests: the same ones, only slower");
        command.args(["test", "--workspace", "--locked", "--no-fail-fast", "--lib", "--bins", "--tests"]);
    }
    run_command(command.env("GALLIVM_PERF", "nopt").envs(lavapipe::environment()))
}

fn doc_test() -> Result<()> {
    run_cargo(&["test", "--workspace", "--locked", "--doc", "--quiet"])
}

fn documentation() -> Result<()> {
    let arguments = ["doc", "--workspace", "--no-deps", "--locked", "--quiet"];
    run_command(Command::new(cargo()).args(arguments).env("RUSTDOCFLAGS", "--deny warnings"))
}

fn other_targets() -> Result<()> {
    for target in TARGETS {
        if standard_library(target) {
            run_cargo(&["check", "--workspace", "--all-targets", "--locked", "--quiet", "--target", target])?;
        } else {
            eprintln!("skipped: {target}: its standard library is not installed; `rustup target add {target}`");
        }
    }
    Ok(())
}

/// Whether the standard library of a target is there, installed now if rustup can.
fn standard_library(target: &str) -> bool {
    let installed = || {
        let output = quiet(Command::new("rustup").args(["target", "list", "--installed"])).ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().any(|line| line == target))
    };
    match installed() {
        Some(true) => true,
        Some(false) => succeeds(Command::new("rustup").args(["target", "add", target])),
        // No rustup: the toolchain's own folder says what there is.
        None => quiet(Command::new("rustc").args(["--print", "target-libdir", "--target", target]))
            .is_ok_and(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).is_dir()),
    }
}

/// The fuzz targets are a workspace of their own, so that only those who fuzz need the fuzzer.
fn fuzz_targets() -> Result<()> {
    if !root().join("fuzz/Cargo.toml").is_file() {
        println!("there are none");
        return Ok(());
    }
    run_cargo(&["check", "--manifest-path", "fuzz/Cargo.toml", "--locked", "--target-dir", "target/fuzz", "--quiet"])
}

/// Does what the README says that a newcomer should do first.
fn readme_command() -> Result<()> {
    let readme = fs::read_to_string(root().join("README.md")).context("README.md can't be read")?;
    for command in [README_RUN, README_CI] {
        ensure!(readme.lines().any(|line| line == command), "README.md has no line `{command}`");
    }
    run_cargo(&["build", "--release", "--locked"])?;
    println!("$ {README_RUN}");
    let output = quiet(
        Command::new(cargo())
            .args(["run", "--release", "--locked", "--quiet", "--", "run", "Tell me a story about a ship."])
            .current_dir(root()),
    )?;
    let notices = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the program failed: {}\n{notices}", output.status);
    let answer = String::from_utf8(output.stdout).context("the answer is not UTF-8")?;
    println!("{}\n{}", answer.trim_end(), notices.trim_end());
    check_answer(&answer, &notices)
}

/// An answer is several words of text; the speed is told beside it.
fn check_answer(answer: &str, notices: &str) -> Result<()> {
    let words = answer.split_whitespace().count();
    ensure!(words >= 5, "expected an answer of several words, found {words}");
    ensure!(!answer.contains(char::REPLACEMENT_CHARACTER), "the answer has a broken character");
    if !notices.contains("tokens/s") {
        bail!("expected a line with tokens/s beside the answer, found `{}`", notices.trim_end());
    }
    Ok(())
}

fn succeeds(command: &mut Command) -> bool {
    quiet(command).is_ok_and(|output| output.status.success())
}

pub(crate) fn quiet(command: &mut Command) -> Result<Output> {
    let line = command_line(command);
    command.stdin(Stdio::null()).output().with_context(|| format!("`{line}` can't be run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_step_is_named() {
        let error = run(&["format", "lint"]).expect_err("no such step").to_string();
        assert!(error.contains("`clippy`") && error.ends_with("found `lint`"), "{error}");
    }

    #[test]
    fn answers() {
        let check = |answer: &str, notices: &str| check_answer(answer, notices).is_ok();
        assert!(check("Once there was a ship.", "prefill 100 tokens/s"));
        assert!(!check("", "prefill 100 tokens/s"));
        assert!(!check("Once there was a \u{fffd}.", "prefill 100 tokens/s"));
        assert!(!check("Once there was a ship.", ""));
    }
}
