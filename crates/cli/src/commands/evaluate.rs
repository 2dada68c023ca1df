//! `evaluate`: how good a model is.

mod choices;
mod instructions;
mod origin;
mod report;
mod saved;
mod texts;
mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use engine::{EngineOptions, ModelSource};
use evaluate::WINDOW_TOKENS;
use serde_json::{Map, Value, json};

use self::instructions::Questions;
use self::texts::Text;
use self::verdict::Verdict;
use super::report::Input;
use crate::args::{DeviceArg, EvaluateArgs};
use crate::devices::ThisMachine;
use crate::failure::Usage;
use crate::model_source::Model;
use crate::output;
use crate::session::{Session, outputs_max};

/// Measures what is asked for.
///
/// # Errors
/// A model that can't be loaded, files that can't be read.
pub(crate) fn run(args: EvaluateArgs) -> Result<()> {
    check(&args)?;
    // All files are read first: a wrong name should not cost minutes.
    let text = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Text { name, text: read(path)? })
    };
    let texts = args.text.iter().map(text).collect::<Result<Vec<_>>>()?;
    let questions = args.instructions.as_ref().map(|path| Questions::read(path, &args)).transpose()?;
    let choices = choices::questions(&args)?;
    let start = Instant::now();
    let (mut report, mut verdict) = (size(args.model.as_deref())?, Verdict::default());
    if !texts.is_empty() {
        texts::measure(&args, &texts, &mut report, &mut verdict).map_err(|error| texts::explain(error, &args))?;
    }
    if let Some(questions) = &questions {
        let answers = instructions::measure(&args, questions, &mut report)?;
        verdict.instructions(questions, &answers);
    }
    if !choices.is_empty() {
        verdict.choices(&choices::measure(&args, &choices, &mut report)?);
    }
    if !verdict.is_empty() || args.require.is_some() {
        report.insert("verdict".into(), verdict.json(&args));
    }
    report.insert("seconds".into(), json!(start.elapsed().as_secs_f64()));
    let report = Value::Object(report);
    if args.json {
        output::json(&report)?;
    } else {
        verdict.tell()?;
    }
    if !args.output.is_nothing() {
        super::report::write(&[Input::new("", report)?], &args.output)?;
    }
    verdict.check(&args)
}

/// The size of the model's files, and its parameters.
fn size(argument: Option<&str>) -> Result<Map<String, Value>> {
    let model = Model::open(argument)?;
    let source = ModelSource::open(&model.checkpoint)?;
    let (bytes, parameters) = (json!(model.checkpoint.file_bytes()), json!(source.config().parameters()));
    Ok(Map::from_iter([("file_bytes".into(), bytes), ("parameters".into(), parameters)]))
}

/// Loads a model with room for `positions`, less if the model has less.
fn load(argument: Option<&str>, device: DeviceArg, mut options: EngineOptions, positions: usize) -> Result<Session> {
    let model = Model::open(argument)?;
    let source = ModelSource::open(&model.checkpoint)?;
    options.context = options.context.or(Some(positions.min(source.config().context)));
    options.outputs_max = options.outputs_max.min(outputs_max(source.config().vocabulary));
    Session::of_model(model, &ThisMachine, device, &options)
}

/// How many instructions or questions of so many positions are worked on at once: caches of large models are large.
fn sequences(positions: usize) -> usize {
    (16 * WINDOW_TOKENS / positions.max(1)).clamp(1, 16)
}

/// The original that can be asked; saved logits can't.
fn original(args: &EvaluateArgs) -> Option<&str> {
    args.against.as_deref().filter(|original| !saved::is_saved(Path::new(original)))
}

/// What makes no sense together.
fn check(args: &EvaluateArgs) -> Result<()> {
    if args.text.is_empty() && args.instructions.is_none() && args.choices.is_empty() {
        let text = "nothing to measure\n\nhint: give --text FILE…, --instructions FILE or --choices FILE…";
        return Err(Usage(text.into()).into());
    }
    if args.require.is_some() && args.against.is_none() && args.against_answers.is_none() {
        return Err(Usage("--require: expected --against ORIGINAL, of whose quality so much is retained".into()).into());
    }
    let saved = args.against.as_deref().filter(|original| saved::is_saved(Path::new(original)));
    if let (Some(saved), true) = (saved, args.text.is_empty() && args.against_answers.is_none()) {
        bail!("`{saved}` has logits of texts, expected --text FILE… or a model to compare with");
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("can't read `{}`", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("`{}` is no text in UTF-8", path.display()))
}
