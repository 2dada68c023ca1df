//! The command behind `cargo xtask`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to the terminal")]

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  ci             everything that a change has to pass; `cargo xtask ci list` names the steps,
                 `cargo xtask ci STEP…` runs only those
  tidy           house rules: sizes, names, paths, dependencies, licences; prints the table of sizes
  lavapipe       Mesa's Vulkan driver for the processor, fetched into `target/lavapipe` where there is no GPU;
                 `eval \"$(cargo xtask lavapipe --print-env)\"` makes the shell use it
  radv           compiles the compute pipelines for AMD's gfx1103 and writes docs/vulkan-gfx1103.md
  bench peers    measures llama.cpp and Lapidary by turns and renews the tables of docs/benchmarks.md;
                 `cargo xtask bench help` has its options
  dependencies   the edges between the crates, as ARCHITECTURE.md should have them
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["ci", steps @ ..] => xtask::ci::run(steps),
        ["tidy"] => xtask::ci::tidy(),
        ["lavapipe", arguments @ ..] => xtask::lavapipe::run(arguments),
        ["radv"] => xtask::radv::run(),
        ["bench", "help" | "--help" | "-h"] | ["bench", "peers", "help" | "--help" | "-h"] => {
            print!("{}", xtask::peers::USAGE);
            return ExitCode::SUCCESS;
        }
        ["bench", "peers", arguments @ ..] => xtask::peers::run(arguments),
        ["dependencies"] => xtask::picture::print(),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
