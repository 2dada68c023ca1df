//! The command line of `evaluate`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use super::{DeviceArg, LoadArgs, MODEL_HELP, OutputArgs, device};
use crate::failure::Usage;

/// Measure how good a model is, alone or beside the original: perplexity of texts, answers to instructions, multiple
/// choice
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Texts are cut into windows of 512 tokens, an incomplete last one is dropped. `--protocol pieces`: <bos> before each \
511 tokens, and all 511 predictions count. `--protocol llama.cpp`, as its perplexity tool does: <bos> takes the place \
of each window's first token, and the predictions after tokens 256 to 510 count.

Against the original: KL divergence (in nats, of the model's distribution from the original's), how often both find \
the same token most probable, and how much the probabilities of the text's own and of the original's most probable \
token change. Saved logits have the most probable tokens exactly, and the others as one sum and a sample: what they \
leave open is told.

Instructions: one JSON object per line with `prompt` and what makes an answer right: `expected`, compared as `check` \
says (exact, contains, regex, json or number), or the constraints of IFEval's files. The prompt is one user turn, the \
answer greedy. docs/evaluate.md has the format.

Multiple choice: the choice that the model finds most probable is its answer; it sees no examples before.

The verdict: what is retained of the original's quality is the worst of these ratios: the original's perplexity over \
the model's, for each text; the model's share of right answers over the original's; BLEU of its answers against the \
expected ones over the original's; its share of right choices above chance over the original's. KL divergence and BLEU \
against the original's own answers don't count.")]
pub(crate) struct EvaluateArgs {
    #[arg(help = MODEL_HELP)]
    pub(crate) model: Option<String>,
    /// Texts to measure the perplexity of
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) text: Vec<PathBuf>,
    /// The original, which is compared with: a model, or its saved logits (for texts alone)
    #[arg(long, value_name = "MODEL|FILE")]
    pub(crate) against: Option<String>,
    /// Where the original runs, as --device [default: the same device]
    #[arg(long, value_name = "DEVICE", requires = "against", value_parser = device)]
    pub(crate) against_device: Option<DeviceArg>,
    /// Save the model's logits, for --against; where a run was interrupted, the next one goes on
    #[arg(long, value_name = "FILE", requires = "text")]
    #[arg(conflicts_with_all = ["against", "instructions", "choices", "require", "markdown", "html", "plots"])]
    pub(crate) save_logits: Option<PathBuf>,
    /// Save all logits, and not just what fits into 2 kB per prediction
    #[arg(long, requires = "save_logits")]
    pub(crate) full: bool,
    /// Overwrite an existing file
    #[arg(long, requires = "save_logits")]
    pub(crate) force: bool,
    /// Which predictions count [default: pieces, or llama.cpp with --against and --save-logits]
    #[arg(long, value_enum, requires = "text")]
    pub(crate) protocol: Option<ProtocolArg>,
    /// Instructions to count right answers to
    #[arg(long, value_name = "FILE")]
    pub(crate) instructions: Option<PathBuf>,
    /// Write each answer as a line of JSON
    #[arg(long, value_name = "FILE", requires = "instructions")]
    pub(crate) answers: Option<PathBuf>,
    /// The original's answers, as --answers wrote them, so that it need not answer again
    #[arg(long, value_name = "FILE", requires = "instructions")]
    pub(crate) against_answers: Option<PathBuf>,
    /// Most tokens of an answer [default: what its line says; else 48, or 1280 where its form is constrained]
    #[arg(long, value_name = "N", requires = "instructions", value_parser = answer_tokens)]
    pub(crate) answer_tokens: Option<usize>,
    /// Questions with choices: CSV files of MMLU, JSON Lines of ARC
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) choices: Vec<PathBuf>,
    /// How these are put [default: letters for MMLU's, text for ARC's]
    #[arg(long, value_enum, requires = "choices")]
    pub(crate) choice_prompt: Option<ChoicePromptArg>,
    /// Fail (exit code 1) if less than so many per cent of the original's quality are retained
    #[arg(long, value_name = "PER CENT", value_parser = per_cent)]
    pub(crate) require: Option<f64>,
    /// Only the first N windows of each text, the first N instructions and the first N questions of each file
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// How questions with choices are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ChoicePromptArg {
    /// Choices after letters; the letters are compared
    Letters,
    /// The texts of the choices are compared
    Text,
    /// As a user's turn; the texts of the choices are compared
    Chat,
}

/// How a text is cut, and which predictions count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolArg {
    /// `<bos>` before each 511 tokens, all predictions
    Pieces,
    /// Windows of 512, the second half of each
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

fn answer_tokens(text: &str) -> Result<usize, Usage> {
    let number = text.parse().ok().filter(|number| (1..=1 << 20).contains(number));
    number.ok_or_else(|| Usage("expected a number from 1 to 1048576".into()))
}

fn per_cent(text: &str) -> Result<f64, Usage> {
    let number = text.trim_end_matches(['%', ' ']).parse().ok().filter(|number| (0.0..=1000.0).contains(number));
    number.ok_or_else(|| Usage("expected per cent, such as 93".into()))
}
