//! The command line of `report`, and of what writes reports.

use std::path::PathBuf;

use clap::Args as ClapArgs;

/// Make tables, plots and a page of measurements
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Without --markdown, --html and --plots the tables go to stdout as Markdown. The page is one file that needs no network.

Example:
  lapidary evaluate small.gguf --against original.logits --text book.txt --json > small.json
  lapidary evaluate tiny.gguf --against original.logits --text book.txt --json > tiny.json
  lapidary report small.json tiny.json --html report.html")]
pub(crate) struct ReportArgs {
    /// What `evaluate --json` and `bench --json` have printed
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Where reports go.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Reports")]
pub(crate) struct OutputArgs {
    /// Write the tables as Markdown; `-` for stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Write a page with tables and plots
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write each plot as an SVG file
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
}

impl OutputArgs {
    /// Whether nothing is asked for.
    pub(crate) fn is_nothing(&self) -> bool {
        self.markdown.is_none() && self.html.is_none() && self.plots.is_none()
    }
}
