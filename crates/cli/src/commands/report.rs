//! `report`: tables, plots and a page of what `evaluate --json` and `bench --json` have printed.

mod input;
mod page;
mod pictures;
mod tables;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use checkpoint::AtomicFile;
use serde_json::Value;

pub(crate) use input::{Bench, Input, Speed};

use crate::args::{OutputArgs, ReportArgs};
use crate::output;
use crate::plot::Plot;

/// Reads measurements and writes what is asked for; by default the tables as Markdown to stdout.
///
/// # Errors
/// Files that are something else, or can't be written.
pub(crate) fn run(args: ReportArgs) -> Result<()> {
    let read = |path: &std::path::PathBuf| -> Result<Input> {
        let text = fs::read_to_string(path).with_context(|| format!("can't read `{}`", path.display()))?;
        let value: Value =
            serde_json::from_str(&text).with_context(|| format!("`{}` is not valid JSON", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Input::new(&name, value).with_context(|| format!("`{}`", path.display()))
    };
    let mut inputs = args.files.iter().map(read).collect::<Result<Vec<_>>>()?;
    input::name_apart(&mut inputs);
    if args.output.is_nothing() {
        return Ok(output::answer(&tables::markdown(&inputs))?);
    }
    write(&inputs, &args.output)
}

/// Writes the files that are asked for.
///
/// # Errors
/// What the system says.
pub(crate) fn write(inputs: &[Input], output: &OutputArgs) -> Result<()> {
    let replace = |path: &Path, text: &str| -> Result<()> { Ok(AtomicFile::replace(path, text.as_bytes())?) };
    if let Some(path) = &output.markdown {
        let text = tables::markdown(inputs);
        if path.as_os_str() == "-" { output::answer(&text)? } else { replace(path, &text)? }
    }
    if output.html.is_none() && output.plots.is_none() {
        return Ok(());
    }
    let plots: Vec<Plot> = pictures::all(inputs);
    if let Some(path) = &output.html {
        replace(path, &page::html(inputs, &plots))?;
    }
    if let Some(folder) = &output.plots {
        fs::create_dir_all(folder).with_context(|| format!("can't make the folder `{}`", folder.display()))?;
        for plot in &plots {
            replace(&folder.join(format!("{}.svg", plot.name)), &plot.svg(true))?;
        }
        if plots.is_empty() {
            output::notice("there is nothing to plot: no size with a score of the original beside it, no speed");
        }
    }
    Ok(())
}
