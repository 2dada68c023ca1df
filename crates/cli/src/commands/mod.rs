//! The commands, one file each.

mod bench;
mod chat;
mod completions;
mod convert;
mod evaluate;
mod inspect;
mod logits;
mod quantize;
mod report;
mod run;
mod tokenize;

use anyhow::Result;

use crate::args::{Args, Command};
use crate::interrupt;

/// Does what the command line says.
///
/// # Errors
/// What the commands say; [`crate::failure`] tells people.
pub(crate) fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Run(args) => {
            interrupt::install();
            run::run(args)
        }
        Command::Chat(args) => {
            interrupt::install();
            chat::run(args)
        }
        Command::Bench(args) => {
            interrupt::install();
            bench::run(args)
        }
        Command::Inspect(args) => inspect::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Logits(args) => {
            interrupt::install();
            logits::run(args)
        }
        Command::Quantize(args) => {
            interrupt::install();
            quantize::run(args)
        }
        Command::Convert(args) => {
            interrupt::install();
            convert::run(args)
        }
        Command::Evaluate(args) => {
            interrupt::install();
            evaluate::run(args)
        }
        Command::Report(args) => report::run(args),
        Command::Completions { shell } => completions::run(shell),
    }
}
