//! The compute pipelines of `backend-vulkan` as the compiler for AMD's GPUs sees them, without such a GPU.
//!
//! RADV compiles for any GPU of its family on a device that does not exist. The example `pipelines` of the crate
//! creates every pipeline there and prints what the driver says of it, a JSON object in each line:
//!
//! ```json
//! {"name": "matvec.q4_0", "specialization": {"SUBGROUP": 32}, "subgroup": 32, "declared_waves": 8,
//!  "statistics": {"VGPRs": 64, "Spilled VGPRs": 0}, "hot_loop": true, "weights_per_iteration": 32, "assembly": "…"}
//! ```
//!
//! `statistics` has all that the driver reports; `hot_loop` marks shaders that decode weights, `_matrix` in the name
//! those that have to use matrix instructions: only these need `assembly`. `hot_loop` and `weights_per_iteration`, the
//! weights that one lane decodes in an iteration, may be left out.

mod assembly;
mod pipeline;
mod table;

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::metadata::cargo;
use crate::{lavapipe, root};
use pipeline::Pipeline;

const DOCUMENT: &str = "docs/vulkan-gfx1103.md";
const EXAMPLE: &str = "crates/backend-vulkan/examples/pipelines.rs";
/// RADV's name for the family that gfx1103 is of.
const FAMILY: &str = "phoenix";

#[cfg(test)]
const SAMPLE: &str = include_str!("../../tests/data/radv/pipelines.jsonl");

/// `cargo xtask radv`: compiles the pipelines and writes the document with their tables. Where that is impossible, a
/// line with `skipped:` says why.
///
/// # Errors
/// If a pipeline does not compile, spills, uses scratch memory or has a lower occupancy than it declares.
pub fn run() -> Result<()> {
    let Some((text, pipelines)) = compile()? else { return Ok(()) };
    fs::write(root().join(DOCUMENT), text).context(DOCUMENT)?;
    println!("{} pipelines in {DOCUMENT}", pipelines.len());
    check(&pipelines)
}

/// The same without writing: only notes that the document is not up to date, because another version of the driver
/// gives other numbers.
///
/// # Errors
/// As [`run`].
pub fn run_check() -> Result<()> {
    let Some((text, pipelines)) = compile()? else { return Ok(()) };
    if fs::read_to_string(root().join(DOCUMENT)).ok().as_ref() != Some(&text) {
        println!("warning: {DOCUMENT} has other numbers; `cargo xtask radv` writes it");
    }
    println!("{} pipelines", pipelines.len());
    check(&pipelines)
}

/// The document and what is in it; nothing where RADV or the pipelines are missing.
fn compile() -> Result<Option<(String, Vec<Pipeline>)>> {
    if !root().join(EXAMPLE).is_file() {
        eprintln!("skipped: radv: there is no `{EXAMPLE}` yet");
        return Ok(None);
    }
    let Some(radv) = lavapipe::radv() else { return Ok(None) };
    let arguments = ["run", "--locked", "--quiet", "--package", "backend-vulkan", "--example", "pipelines"];
    let mut command = Command::new(cargo());
    command.args(arguments).args(["--", "--assembly"]).current_dir(root());
    command.envs(radv.environment).env("RADV_FORCE_FAMILY", FAMILY);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cargo can't be run")?;
    ensure!(output.status.success(), "the example `pipelines` failed: {}", output.status);
    let text = String::from_utf8(output.stdout).context("the pipelines are not UTF-8")?;
    let pipelines = Pipeline::parse_lines(&text)?;
    Ok(Some((table::document(&radv.version, &pipelines), pipelines)))
}

fn check(pipelines: &[Pipeline]) -> Result<()> {
    let problems: Vec<String> = pipelines.iter().flat_map(Pipeline::problems).collect();
    problems.iter().for_each(|problem| println!("error: {problem}"));
    let count = problems.len();
    ensure!(count == 0, "{count} problem{} of {} pipelines", if count == 1 { "" } else { "s" }, pipelines.len());
    Ok(())
}
