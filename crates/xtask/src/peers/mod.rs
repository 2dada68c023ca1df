//! Lapidary beside llama.cpp: the same file, on the same machine, by turns.
//!
//! The tables go into `docs/benchmarks.md` and `docs/quality.md`, between two comments each (`block.rs`), so that a run
//! renews them and nothing else.

mod block;
mod options;
mod programs;
mod quality;
mod speed;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::root;
use options::Options;
use programs::Programs;

/// How `cargo xtask bench` is used.
pub const USAGE: &str = "\
usage: cargo xtask bench peers [OPTION VALUE]…

  --model FILE             a GGUF file that both programs run [default: random weights, see --shape]
  --shape SIZE             270m, 1b, 4b, 12b or 27b, if there is no --model [default: 1b]
  --format FORMAT          of these weights [default: q4_0]
  --prompt-tokens N,…      lengths of prompts, 0 for none [default: 128]
  --decode-tokens N,…      numbers of tokens to decode, 0 for none [default: 64]
  --depth N,…              tokens that are in the cache before [default: 0]
  --threads N              for both [default: one per processor]
  --device DEVICE          cpu, vulkan or vulkan:N; llama.cpp then puts all layers on its GPU [default: cpu]
  --rounds N               how often each program has its turn [default: 2]
  --repeat N               timed runs in a turn [default: 5]
  --llama-bench PATH       [default: `llama-bench` in the path]
  --lapidary PATH          [default: built in release mode]
  --quality ORIGINAL.gguf  instead: perplexity and KL divergence of --model from this file, by both programs
  --text FILE              the text for that
  --llama-perplexity PATH  [default: `llama-perplexity` in the path]
  --print                  print the tables, and leave the documents alone
";

/// `cargo xtask bench peers`: measures, prints the tables, and renews them in the documents.
///
/// # Errors
/// Options that make no sense, a program that is missing or fails, runs on a machine that is busy, a document without
/// its two comments.
pub fn run(arguments: &[&str]) -> Result<()> {
    run_in(&root(), arguments)
}

/// The same for a repository elsewhere.
///
/// # Errors
/// As [`run`].
pub fn run_in(root: &Path, arguments: &[&str]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let programs = Programs::find(root, &options)?;
    let model = match &options.model {
        Some(path) => path.clone(),
        None => random_model(root, &options, &programs)?,
    };
    match &options.quality {
        Some(original) => {
            let table = quality::measure(&options, &programs, &model, original)?;
            publish(root, &options, "docs/quality.md", &table)
        }
        None => publish(root, &options, "docs/benchmarks.md", &speed::measure(&options, &programs, &model)?),
    }
}

/// Prints a table, and puts it into a document.
fn publish(root: &Path, options: &Options, document: &str, table: &str) -> Result<()> {
    println!("{table}");
    if options.print {
        return Ok(());
    }
    let path = root.join(document);
    let text = fs::read_to_string(&path).context(document.to_owned())?;
    let renewed = block::renew(&text, table).context(document.to_owned())?;
    fs::write(&path, renewed).context(document.to_owned())?;
    println!("renewed in {document}");
    Ok(())
}

/// A file of random weights, kept below `target` for the next time.
fn random_model(root: &Path, options: &Options, programs: &Programs) -> Result<PathBuf> {
    let folder = root.join("target/peers");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(format!("gemma-3-{}-{}-random.gguf", options.shape, options.format));
    if !path.exists() {
        let file = path.to_str().context("the path of the repository is not UTF-8")?;
        let shape = ["bench", "--shape", &options.shape, "--format", &options.format, "--write", file];
        programs::output(&programs.lapidary, &shape.map(str::to_owned))?;
    }
    Ok(path)
}
