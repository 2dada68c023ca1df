//! The command line as clap reads it. What it means is decided where it is used.

mod bench;
mod evaluate;
mod report;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use engine::EngineOptions;
use quantize::pipeline::{Allocation, Layout};
use tensor::format::trellis::Rate;
use tensor::{DType, Precision};

pub(crate) use bench::{BenchArgs, BenchCommand, BenchCompareArgs};
pub(crate) use evaluate::{ChoicePromptArg, EvaluateArgs, ProtocolArg};
pub(crate) use report::{OutputArgs, ReportArgs};

use crate::failure::Usage;

const MODEL_HELP: &str = "A folder with config.json and *.safetensors, a .gguf file, or owner/repo[:QUANT] from the \
                          local Hugging Face cache; without it the small model that is built in";

const DEVICE_HELP: &str = "Where it runs: auto, cpu, vulkan or vulkan:N; `lapidary inspect devices` lists them. auto \
                           takes the best GPU that the model fits into, else the CPU";

/// Runs Gemma 3 on this machine
#[derive(Debug, Parser)]
#[command(name = "lapidary", version, max_term_width = 100, disable_help_subcommand = false)]
#[command(after_help = "Only answers and reports go to stdout. Exit codes: 0 done, 1 failed, 2 wrong usage.")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Chat(ChatArgs),
    Bench(BenchArgs),
    Inspect(InspectArgs),
    Tokenize(TokenizeArgs),
    Logits(LogitsArgs),
    Quantize(QuantizeArgs),
    Convert(ConvertArgs),
    Evaluate(EvaluateArgs),
    Report(ReportArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// How a model is loaded.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Loading")]
pub(crate) struct LoadArgs {
    /// Positions per conversation; by default the smaller of 8192 and what fits
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<usize>,
    /// Format of cached keys and values: f16, q8_0 or f32
    #[arg(long, value_name = "TYPE", value_parser = cache_type)]
    pub(crate) cache_type: Option<DType>,
    /// How products are computed; f32 is slow and for comparing
    #[arg(long, value_enum, default_value_t = PrecisionArg::Fast)]
    pub(crate) precision: PrecisionArg,
    /// Threads; by default one per physical core
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    #[arg(long, default_value = "auto", value_parser = device, help = DEVICE_HELP)]
    pub(crate) device: DeviceArg,
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceArg {
    /// The best one that the model fits into.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of a number, or the best one.
    Vulkan(Option<usize>),
}

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionArg {
    /// Activations are rounded to 8 bits
    Fast,
    /// Nothing is rounded
    F32,
}

impl LoadArgs {
    /// The engine's options.
    pub(crate) fn engine_options(&self) -> EngineOptions {
        EngineOptions {
            context: self.context,
            cache_dtype: self.cache_type,
            precision: self.precision.into(),
            threads: self.threads,
            ..EngineOptions::default()
        }
    }
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Precision {
        match precision {
            PrecisionArg::Fast => Precision::Fast,
            PrecisionArg::F32 => Precision::F32,
        }
    }
}

/// How tokens are chosen; what is not given comes from the model's generation_config.json, then from Gemma's defaults.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 always takes the most probable token [default: 1, or the model's own]
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// Only the K most probable tokens; 0 for all [default: 64, or the model's own]
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Only the most probable tokens that together have probability P [default: 0.95, or the model's own]
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Only tokens of at least this share of the most probable one's probability
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f32>,
    /// Makes tokens that occurred less probable; 1 for not at all
    #[arg(long, value_name = "R")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Same seed, same text; by default another one each time
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// Limits and texts of an answer.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Answer")]
pub(crate) struct AnswerArgs {
    /// An instruction before the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Most tokens of an answer; by default what the context holds
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Ends the answer before this text; can be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Let special tokens such as <start_of_turn> in the prompt be special tokens
    #[arg(long)]
    pub(crate) special: bool,
}

/// Answer a prompt
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
If only one argument is given, it is the model if it looks like one (something that exists, *.gguf, owner/repo), and \
the prompt otherwise. With two or more, the first is the model and the others are the prompt. Without a prompt, or \
where it is `-`, it is read from stdin.

Examples:
  lapidary run \"Tell me a story about a ship.\"
  lapidary run gemma-3-1b-it --temperature 0 \"Name three gems.\"
  cat notes.txt | lapidary run gemma-3-1b-it \"Summarise this:\" -")]
pub(crate) struct RunArgs {
    /// The model, if any, and the prompt
    #[arg(value_name = "[MODEL] PROMPT", allow_hyphen_values = false)]
    pub(crate) words: Vec<String>,
    /// Without the chat template: the prompt is the beginning of a text
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Print one JSON object with the answer and its statistics
    #[arg(long)]
    pub(crate) json: bool,
}

/// Have a conversation
#[derive(Debug, ClapArgs)]
pub(crate) struct ChatArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

/// Show what is in a checkpoint; `inspect devices` shows what models can run on here
#[derive(Debug, ClapArgs)]
pub(crate) struct InspectArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: Option<String>,
    /// List all tensors
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print the token ids of a text, without `<bos>`
#[derive(Debug, ClapArgs)]
#[command(after_help = "With --json: one array of numbers, such as [2364, 107].")]
pub(crate) struct TokenizeArgs {
    /// The text
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub(crate) text: Option<String>,
    /// A file with the text, `-` for stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[arg(long, help = MODEL_HELP)]
    pub(crate) model: Option<String>,
    /// Let special tokens such as <start_of_turn> in the text be special tokens
    #[arg(long)]
    pub(crate) special: bool,
    /// Put `<bos>` before the text
    #[arg(long)]
    pub(crate) bos: bool,
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write the logits after each token of a text to a safetensors file
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
The file has `logits` as F32 [tokens, vocabulary]; with --hidden also F32 [tokens, hidden] each: `hidden00` (the \
scaled embeddings), `hidden01`, … (the residual stream after each layer, the last one after the final norm). No <bos> \
is added.")]
pub(crate) struct LogitsArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: Option<String>,
    /// The tokens
    #[arg(long, value_name = "ID,…", value_delimiter = ',', required = true)]
    pub(crate) token_ids: Vec<u32>,
    /// The file to write; replaced if it is there
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// With the hidden states
    #[arg(long)]
    pub(crate) hidden: bool,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Print what was written as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a model smaller: a folder of trellis weights (EXL3), or a GGUF file in a rounding format
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
With --bpw or --size: a folder of trellis weights that a calibration text decides on, layer by layer. Each weight gets \
as many bits as its errors cost. The folder appears when it is complete; after an interruption the same command goes \
on where it was (.DIR.partial), and finds the same.

With --format: a GGUF file. Norms stay F32. It has all that llama.cpp needs: vocabulary and chat template too.

Examples:
  lapidary quantize gemma-3-27b-it --size 9GB --output gemma-3-27b-9GB
  lapidary quantize gemma-3-1b-it --format q4_0 --output gemma-3-1b-q4_0.gguf")]
pub(crate) struct QuantizeArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: String,
    /// Bits per weight of the result, everything counted
    #[arg(long, value_name = "BITS", conflicts_with_all = ["size", "format"], value_parser = bits)]
    pub(crate) bpw: Option<f64>,
    /// Bytes of all weight files of the result: 9GB, 700MB
    #[arg(long, value_name = "SIZE", conflicts_with = "format", value_parser = size)]
    pub(crate) size: Option<u64>,
    /// A GGUF file in q8_0, q4_0, f16 or bf16
    #[arg(long, value_parser = output_format)]
    pub(crate) format: Option<DType>,
    /// The folder or file to write
    #[arg(long, value_name = "PATH", required_unless_present = "estimate")]
    pub(crate) output: Option<PathBuf>,
    /// Overwrite what is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Threads; by default one per physical core
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,
    /// Print what was written as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) trellis: TrellisArgs,
    /// Format of the token embedding, which is also the head; also q5_0, q5_1 [default: q8_0 for q4_0, else the same]
    #[arg(long, value_name = "FORMAT", value_parser = embedding_format, requires = "format", help_heading = "GGUF")]
    pub(crate) embedding_format: Option<DType>,
}

/// How a folder of trellis weights is made.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Trellis weights")]
pub(crate) struct TrellisArgs {
    /// Say size, memory and time, and write nothing
    #[arg(long, conflicts_with = "format")]
    pub(crate) estimate: bool,
    /// Bits per weight of the head; by default what its errors cost decides
    #[arg(long, value_name = "BITS", conflicts_with = "format", value_parser = rate)]
    pub(crate) head_bits: Option<Rate>,
    /// compact has one copy of embedding and head; exllamav3 has the embedding as it was beside it
    #[arg(long, value_enum, default_value_t = LayoutArg::Compact, conflicts_with = "format")]
    pub(crate) layout: LayoutArg,
    /// A text in UTF-8 that is like what the model will be used for, instead of the one that is built in
    #[arg(long, value_name = "FILE", conflicts_with = "format")]
    pub(crate) calibration: Option<PathBuf>,
    /// Most tokens of it, from all over the text
    #[arg(long, value_name = "N", default_value_t = 131_072, conflicts_with = "format")]
    pub(crate) calibration_tokens: usize,
    /// How bits are divided: by what the errors of each weight cost (measured), an estimate of it that takes less time
    /// and memory, or all the same
    #[arg(long, value_enum, default_value_t = AllocationArg::Measured, conflicts_with = "format")]
    pub(crate) allocation: AllocationArg,
    /// Seed of signs and of errors for trial
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "format")]
    pub(crate) seed: u64,
    /// Where the calibration text runs and, on a GPU, tiles are searched for: cpu, auto, vulkan or vulkan:N
    #[arg(long, default_value = "cpu", value_parser = device, conflicts_with = "format")]
    pub(crate) device: DeviceArg,
    /// Rates to choose from
    #[arg(long, value_name = "BITS,…", value_delimiter = ',', value_parser = rate, hide = true)]
    pub(crate) rates: Vec<Rate>,
    /// Each weight is rounded for itself
    #[arg(long, hide = true)]
    pub(crate) no_feedback: bool,
    /// What is added to the diagonal of a Hessian, over its mean
    #[arg(long, value_name = "D", default_value_t = 0.025, hide = true)]
    pub(crate) damping: f32,
    /// Tokens that costs are measured on
    #[arg(long, value_name = "N", default_value_t = 1024, hide = true)]
    pub(crate) probe_tokens: usize,
    /// Tokens of a sequence of calibration
    #[arg(long, value_name = "N", default_value_t = 1024, hide = true)]
    pub(crate) sequence_tokens: usize,
}

/// Change the layout of a folder of trellis weights (EXL3)
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
All trellises, scales and norms keep their bits, and so does everything else in the folder.

compact has one copy of embedding and head, which are the same weights in Gemma 3. exllamav3 has an embedding in 16 \
bits beside it: what the head is decoded to, if the source is compact. On the way back that is recognized and left \
out. An embedding with other rows (that of the original, which `quantize --layout exllamav3` keeps) is only given up \
with --drop-embedding.

Example:
  lapidary convert gemma-3-27b-9GB --layout exllamav3 --output gemma-3-27b-exl3")]
pub(crate) struct ConvertArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: String,
    /// The layout of the new folder
    #[arg(long, value_enum)]
    pub(crate) layout: LayoutArg,
    /// The folder to write
    #[arg(long, value_name = "PATH")]
    pub(crate) output: PathBuf,
    /// Overwrite what is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Give up an embedding that is not what the head is decoded to
    #[arg(long)]
    pub(crate) drop_embedding: bool,
    /// Threads; by default one per physical core
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,
    /// Print what was written as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What stands beside the trellises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutArg {
    /// The head is the embedding
    Compact,
    /// The embedding as it was
    Exllamav3,
}

/// How bits are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AllocationArg {
    /// All the same
    Uniform,
    /// By an estimate
    Estimated,
    /// By measurements
    Measured,
}

impl From<LayoutArg> for Layout {
    fn from(layout: LayoutArg) -> Layout {
        match layout {
            LayoutArg::Compact => Layout::Compact,
            LayoutArg::Exllamav3 => Layout::Exllamav3,
        }
    }
}

impl From<AllocationArg> for Allocation {
    fn from(allocation: AllocationArg) -> Allocation {
        match allocation {
            AllocationArg::Uniform => Allocation::Uniform,
            AllocationArg::Estimated => Allocation::Estimated,
            AllocationArg::Measured => Allocation::Measured,
        }
    }
}

fn format_among(name: &str, formats: &[DType]) -> Result<DType, Usage> {
    let found = DType::from_name(name).filter(|dtype| formats.contains(dtype));
    found.ok_or_else(|| Usage(format!("expected {}", listed(formats))))
}

fn listed(formats: &[DType]) -> String {
    let names: Vec<_> = formats.iter().map(|dtype| dtype.name()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

fn cache_type(name: &str) -> Result<DType, Usage> {
    format_among(name, &[DType::F16, DType::Q8_0, DType::F32])
}

fn output_format(name: &str) -> Result<DType, Usage> {
    format_among(name, &[DType::Q8_0, DType::Q4_0, DType::F16, DType::BF16])
}

fn embedding_format(name: &str) -> Result<DType, Usage> {
    format_among(name, &[DType::Q8_0, DType::Q5_1, DType::Q5_0, DType::Q4_0, DType::F16, DType::BF16])
}

fn threads(text: &str) -> Result<usize, Usage> {
    let number = text.parse().ok().filter(|number| (1..=1024).contains(number));
    number.ok_or_else(|| Usage("expected a number from 1 to 1024".into()))
}

/// Bits per weight of a whole model.
fn bits(text: &str) -> Result<f64, Usage> {
    let number = text.parse().ok().filter(|number: &f64| (0.5..=16.0).contains(number));
    number.ok_or_else(|| Usage("expected a number from 0.5 to 16".into()))
}

/// Bits per weight of one weight.
fn rate(text: &str) -> Result<Rate, Usage> {
    let known = Rate::ALL.into_iter().find(|rate| text.parse().is_ok_and(|bits: f32| bits == rate.bits()));
    known.ok_or_else(|| {
        let names: Vec<String> = Rate::ALL.iter().map(ToString::to_string).collect();
        Usage(format!("expected one of {}", names.join(", ")))
    })
}

/// Bytes: `9GB`, `8.5 GiB`, `700MB`, `123456`.
fn size(text: &str) -> Result<u64, Usage> {
    let wrong = || Usage("expected a size such as 9GB, 8.5GiB or 700MB".into());
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

fn device(name: &str) -> Result<DeviceArg, Usage> {
    const EXPECTED: &str = "expected auto, cpu, vulkan or vulkan:N";
    match name {
        "auto" => Ok(DeviceArg::Auto),
        "cpu" => Ok(DeviceArg::Cpu),
        "vulkan" => Ok(DeviceArg::Vulkan(None)),
        "npu" => Err(Usage(format!("npu is not supported yet; {EXPECTED}"))),
        _ => {
            let number = name.strip_prefix("vulkan:").and_then(|number| number.parse().ok());
            number.map(|number| DeviceArg::Vulkan(Some(number))).ok_or_else(|| Usage(EXPECTED.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn formats_and_devices_are_read() {
        assert_eq!(output_format("Q8_0").unwrap(), DType::Q8_0);
        assert_eq!(output_format("q6_k").unwrap_err().to_string(), "expected q8_0, q4_0, f16 or bf16");
        assert_eq!(device("auto").unwrap(), DeviceArg::Auto);
        assert_eq!(device("vulkan").unwrap(), DeviceArg::Vulkan(None));
        assert_eq!(device("vulkan:1").unwrap(), DeviceArg::Vulkan(Some(1)));
        assert!(device("npu").unwrap_err().to_string().contains("not supported yet"));
        assert!(["tpu", "vulkan:", "vulkan:x", "vulkan:-1"].iter().all(|name| device(name).is_err()));
        assert!(threads("0").is_err());
    }

    #[test]
    fn sizes_and_rates_are_read() {
        assert_eq!(size("9GB").unwrap(), 9_000_000_000);
        assert_eq!(size("1.5 MiB").unwrap(), 3 << 19);
        assert!(["", "GB", "9XB", "-1GB", "0"].iter().all(|text| size(text).is_err()));
        assert_eq!(rate("2.5").unwrap().half_bits(), 5);
        assert!(rate("4.5").unwrap_err().to_string().contains("3.5, 4, 5"));
        assert!(bits("0").is_err() && bits("2.57").is_ok());
    }
}
