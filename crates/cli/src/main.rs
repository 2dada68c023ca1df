//! `lapidary`: Gemma 3 on the machine in front of you.
//!
//! Each command has a file in `commands/`; `args` says what the command line looks like. This is the one crate that
//! names backends.

mod args;
mod commands;
mod devices;
mod failure;
mod gguf_text;
mod interrupt;
mod model_source;
mod output;
mod plot;
mod progress;
mod random_model;
mod resident;
mod runner;
mod sensors;
mod session;
mod stream;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
