//! The command line of `bench`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use tensor::DType;

use super::{DEVICE_HELP, DeviceArg, MODEL_HELP, PrecisionArg, cache_type, device, listed};
use crate::failure::Usage;
use crate::random_model::RandomFormat;

/// Time prefill and decode; `bench compare` puts two measurements beside each other
#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,
    #[arg(help = MODEL_HELP, conflicts_with = "shape")]
    pub(crate) model: Option<String>,
    /// Random weights in the shape of a published size: 270m, 1b, 4b, 12b or 27b
    #[arg(long, value_name = "SIZE")]
    pub(crate) shape: Option<String>,
    /// Only the first N layers of the shape
    #[arg(long, value_name = "N", requires = "shape", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) layers: Option<u32>,
    /// Format of the random weights: one of GGUF files, or trellis:BITS
    #[arg(long, value_name = "FORMAT", default_value = "q4_0", value_parser = weight_format)]
    pub(crate) format: RandomFormat,
    /// Write the random model to a GGUF file that llama.cpp loads, and time nothing
    #[arg(long, value_name = "FILE", requires = "shape")]
    pub(crate) write: Option<PathBuf>,
    /// Overwrite an existing file
    #[arg(long, requires = "write")]
    pub(crate) force: bool,
    /// Lengths of prompts, 0 for none
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "128")]
    pub(crate) prompt_tokens: Vec<usize>,
    /// Numbers of tokens to decode, 0 for none
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "64")]
    pub(crate) decode_tokens: Vec<usize>,
    /// Tokens that are in the cache before
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "0")]
    pub(crate) depth: Vec<usize>,
    /// Numbers of conversations that are decoded at once
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) sequences: Vec<u32>,
    /// Decode for so long, and tell tokens/s, temperatures and power over time; Ctrl-C ends it earlier
    #[arg(long, value_name = "N", conflicts_with_all = ["prompt_tokens", "repeat", "trace", "write"],
        value_parser = minutes)]
    pub(crate) minutes: Option<f64>,
    /// Write what the device did, for chrome://tracing or Perfetto
    #[arg(long, value_name = "FILE", conflicts_with = "write")]
    pub(crate) trace: Option<PathBuf>,
    /// Numbers of threads; by default one per physical core
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub(crate) threads: Vec<usize>,
    /// Timed runs of each test
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,
    /// Runs of each test before those, and more until 0.3 s are over; none with 0
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) warmup: u32,
    /// Seed of weights, prompts and sampling
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Tokens of a prompt in one pass
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) chunk: usize,
    /// Format of cached keys and values: f16, q8_0 or f32
    #[arg(long, value_name = "TYPE", value_parser = cache_type)]
    pub(crate) cache_type: Option<DType>,
    /// How products are computed
    #[arg(long, value_enum, default_value_t = PrecisionArg::Fast)]
    pub(crate) precision: PrecisionArg,
    #[arg(long, default_value = "auto", value_parser = device, help = DEVICE_HELP)]
    pub(crate) device: DeviceArg,
    /// Where Linux tells energy and temperatures
    #[arg(long, value_name = "DIR", default_value = "/sys", hide = true)]
    pub(crate) sysfs: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `bench` does besides timing.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    Compare(BenchCompareArgs),
}

/// Tell how much faster a second measurement is; those of different settings or cases are refused
#[derive(Debug, ClapArgs)]
pub(crate) struct BenchCompareArgs {
    /// What `bench --json` printed before
    #[arg(value_name = "BEFORE")]
    pub(crate) before: PathBuf,
    /// What it printed after
    #[arg(value_name = "AFTER")]
    pub(crate) after: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn minutes(text: &str) -> Result<f64, Usage> {
    let number = text.parse().ok().filter(|number: &f64| (0.01..=10_000.0).contains(number));
    number.ok_or_else(|| Usage("expected a number from 0.01 to 10000".into()))
}

fn weight_format(name: &str) -> Result<RandomFormat, Usage> {
    let expected = || Usage(format!("expected {}, or trellis:2.5 and the like", listed(&DType::ALL)));
    RandomFormat::from_name(name).ok_or_else(expected)
}
