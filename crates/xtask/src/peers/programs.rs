//! The programs that are compared, and running them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::options::Options;
use crate::metadata::cargo;

const INSTALL: &str = "\
hint: build llama.cpp on this machine, so that it uses all that the processor has, and name its programs or put them \
into the path:

  git clone https://github.com/ggml-org/llama.cpp
  cmake -S llama.cpp -B llama.cpp/build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON
  cmake --build llama.cpp/build --target llama-bench llama-perplexity
  cargo xtask bench peers --llama-bench llama.cpp/build/bin/llama-bench

-DGGML_VULKAN=ON for GPUs. Where gcc 12 makes a program that crashes on a processor with AMX, clang does not.";

/// Paths of the programs.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) lapidary: PathBuf,
    /// `llama-perplexity` for quality, else `llama-bench`.
    pub(super) llama: PathBuf,
}

impl Programs {
    /// Finds llama.cpp's, and builds ours if none is named.
    ///
    /// # Errors
    /// One that is not there, with what helps; cargo's failure.
    pub(super) fn find(root: &Path, options: &Options) -> Result<Programs> {
        let llama = match options.quality {
            Some(_) => named_or_in_path(options.llama_perplexity.as_ref(), "llama-perplexity")?,
            None => named_or_in_path(options.llama_bench.as_ref(), "llama-bench")?,
        };
        let lapidary = match &options.lapidary {
            Some(path) => named_or_in_path(Some(path), "lapidary")?,
            None => build(root)?,
        };
        Ok(Programs { lapidary, llama })
    }
}

/// The one that is named, or one in the path.
fn named_or_in_path(named: Option<&PathBuf>, name: &str) -> Result<PathBuf> {
    if let Some(path) = named {
        ensure!(path.is_file(), "there is no program `{}`\n\n{INSTALL}", path.display());
        // A name alone would be looked for in the path.
        return path.canonicalize().with_context(|| path.display().to_string());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let name = format!("{name}{}", env::consts::EXE_SUFFIX);
    let found = env::split_paths(&path).map(|folder| folder.join(&name)).find(|path| path.is_file());
    found.with_context(|| format!("`{name}` is not in the path\n\n{INSTALL}"))
}

fn build(root: &Path) -> Result<PathBuf> {
    let mut command = Command::new(cargo());
    command.args(["build", "--release", "--locked", "--package", "cli"]).current_dir(root);
    let status = command.status().context("cargo can't be run")?;
    ensure!(status.success(), "`cargo build` failed");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(root.join(target).join("release").join(format!("lapidary{}", env::consts::EXE_SUFFIX)))
}

/// What a program prints. Its messages go where ours go.
///
/// # Errors
/// It can't be started, fails, or prints something that is not UTF-8.
pub(super) fn output(program: &Path, arguments: &[String]) -> Result<String> {
    let shown = || format!("`{} {}`", program.display(), arguments.join(" "));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("{} can't be run", shown()))?;
    if !output.status.success() {
        bail!("{} failed: {}", shown(), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed something that is not UTF-8", shown()))
}
