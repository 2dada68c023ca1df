//! A model that is ready to answer: engine, tokenizer, chat template and the defaults of its files.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use checkpoint::{Checkpoint, Metadata};
use engine::{EngineOptions, Sampling};
use serde::Deserialize;
use text::{ChatTemplate, Tokenizer};

use crate::args::{DeviceArg, LoadArgs, SamplingArgs};
use crate::devices::{Machine, ThisMachine};
use crate::model_source::Model;
use crate::runner::Runner;
use crate::{gguf_text, interrupt};

/// Bytes of logits that a pass for many outputs may have.
const LOGITS_BYTES: usize = 64 << 20;

/// A loaded model.
pub(crate) struct Session {
    /// What to call the model.
    pub(crate) name: String,
    /// Runs it.
    pub(crate) runner: Runner,
    /// Its tokenizer.
    pub(crate) tokenizer: Tokenizer,
    /// Its chat template, or Gemma's.
    pub(crate) template: ChatTemplate,
    /// All tokens that end an answer.
    pub(crate) stop_tokens: Vec<u32>,
    /// How its makers sample.
    pub(crate) generation: GenerationConfig,
    /// From the open files to here.
    pub(crate) load_time: Duration,
}

impl Session {
    /// Loads a model; the tokenizer is read while the weights are.
    ///
    /// # Errors
    /// Whatever is wrong with the files, options that make no sense, memory that is not there.
    pub(crate) fn load(argument: Option<&str>, args: &LoadArgs) -> Result<Session> {
        Session::of_model(Model::open(argument)?, &ThisMachine, args.device, &args.engine_options())
    }

    /// Loads a model whose files are open.
    ///
    /// # Errors
    /// As [`Session::load`].
    pub(crate) fn of_model(
        model: Model,
        machine: &'static dyn Machine,
        device: DeviceArg,
        options: &EngineOptions,
    ) -> Result<Session> {
        let start = Instant::now();
        let Model { name, checkpoint } = model;
        let (runner, texts) = thread::scope(|scope| {
            let texts = scope.spawn(|| Ok::<_, anyhow::Error>((tokenizer(&checkpoint)?, template(&checkpoint)?)));
            (Runner::load(&checkpoint, machine, device, options), texts.join())
        });
        // A file that is wrong for the engine too is best explained by the engine.
        let mut runner = runner?;
        let (tokenizer, template) = texts.map_err(|_| anyhow!("reading the tokenizer failed"))??;
        let engine = &runner.engine;
        let vocabulary = engine.config().vocabulary;
        if tokenizer.bos().is_some_and(|bos| bos as usize >= vocabulary) {
            bail!(
                "the tokenizer has {} entries, the model {vocabulary}: they don't belong together",
                tokenizer.vocabulary_len()
            );
        }
        let mut stop_tokens = engine.config().stop_tokens.clone();
        stop_tokens.extend(tokenizer.eos());
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        let generation = GenerationConfig::of(&checkpoint)?;
        interrupt::watch(engine.interrupt_handle());
        runner.keep(checkpoint);
        Ok(Session { name, runner, tokenizer, template, stop_tokens, generation, load_time: start.elapsed() })
    }

    /// How to sample: what the command line says, then the model's files, then Gemma's defaults.
    pub(crate) fn sampling(&self, args: &SamplingArgs) -> Sampling {
        let GenerationConfig { temperature, top_k, top_p, min_p, repetition_penalty, do_sample } = self.generation;
        let default = Sampling::default();
        let own_temperature = if do_sample == Some(false) { Some(0.0) } else { temperature };
        Sampling {
            temperature: args.temperature.or(own_temperature).unwrap_or(default.temperature),
            top_k: args.top_k.or(top_k).unwrap_or(default.top_k),
            top_p: args.top_p.or(top_p).unwrap_or(default.top_p),
            min_p: args.min_p.or(min_p).unwrap_or(default.min_p),
            repetition_penalty: args.repetition_penalty.or(repetition_penalty).unwrap_or(default.repetition_penalty),
            seed: args.seed.unwrap_or_else(seed_of_now),
        }
    }
}

/// Rows of logits that a pass may have without taking much memory.
pub(crate) fn outputs_max(vocabulary: usize) -> usize {
    (LOGITS_BYTES / (4 * vocabulary)).clamp(1, 512)
}

/// Another one each time.
fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 ^ u64::from(std::process::id()) << 32
}

/// What a model's makers say about sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct GenerationConfig {
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    do_sample: Option<bool>,
}

impl GenerationConfig {
    /// From a checkpoint's `generation_config.json`; GGUF files have none.
    fn of(checkpoint: &Checkpoint) -> Result<GenerationConfig> {
        match checkpoint.metadata() {
            Metadata::HuggingFace(files) => {
                let config = files.generation_config.as_deref().map(serde_json::from_str).transpose();
                Ok(config.context("`generation_config.json` is not valid")?.unwrap_or_default())
            }
            Metadata::Gguf(_) => Ok(GenerationConfig::default()),
        }
    }
}

/// The tokenizer of a checkpoint: `tokenizer.json`, `tokenizer.model`, or the GGUF file's vocabulary.
///
/// # Errors
/// None of them is there, or it is not valid.
pub(crate) fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer> {
    if let Metadata::Gguf(metadata) = checkpoint.metadata() {
        let vocabulary = gguf_text::read_vocabulary(metadata).context(
            "the file has no vocabulary (`tokenizer.ggml.tokens`)\n\nhint: convert the model again, with its tokenizer",
        )?;
        return Ok(Tokenizer::from_vocabulary(vocabulary)?);
    }
    if let Some(bytes) = checkpoint.read_file("tokenizer.json")? {
        return Ok(Tokenizer::from_json(&bytes)?);
    }
    if let Some(bytes) = checkpoint.read_file("tokenizer.model")? {
        return Ok(Tokenizer::from_sentencepiece(&bytes)?);
    }
    bail!(
        "{} has neither tokenizer.json nor tokenizer.model\n\nhint: download the tokenizer of the model into the same \
         folder",
        checkpoint.folder().map_or("the model".into(), |folder| format!("`{}`", folder.display()))
    )
}

/// The chat template of a checkpoint, or Gemma's where it has none.
///
/// # Errors
/// A template that is not valid.
pub(crate) fn template(checkpoint: &Checkpoint) -> Result<ChatTemplate> {
    if let Metadata::Gguf(metadata) = checkpoint.metadata() {
        let source = gguf_text::read_template(metadata);
        return Ok(source.map(ChatTemplate::from_text).transpose()?.unwrap_or_else(ChatTemplate::gemma));
    }
    if let Some(bytes) = checkpoint.read_file("chat_template.jinja")? {
        let source = str::from_utf8(&bytes).context("`chat_template.jinja` is no text in UTF-8")?;
        return Ok(ChatTemplate::from_text(source)?);
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        // Both have a field `chat_template`.
        let found = checkpoint.read_file(name)?.map(|bytes| ChatTemplate::from_tokenizer_config(&bytes)).transpose();
        if let Some(template) = found.with_context(|| format!("`{name}` can't be used"))?.flatten() {
            return Ok(template);
        }
    }
    Ok(ChatTemplate::gemma())
}
