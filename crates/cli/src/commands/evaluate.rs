//! `evaluate`: how good a model is.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use checkpoint::AtomicFile;
use engine::{Engine, EngineOptions, ModelSource};
use evaluate::{
    Answer, Instruction, InstructionScore, PIECE_TOKENS, Perplexity, Prompting, answer_instructions,
    parse_instructions, perplexity,
};
use serde_json::{Map, Value, json};
use text::Special;

use crate::args::EvaluateArgs;
use crate::devices::ThisMachine;
use crate::failure::Usage;
use crate::model_source::Model;
use crate::output;
use crate::progress::{Progress, Unit};
use crate::runner::{RESTARTS, Runner};
use crate::session::{Session, outputs_max};

/// Instructions that are worked on at once.
const SEQUENCES: usize = 16;

/// Measures what is asked for.
///
/// # Errors
/// A model that can't be loaded, files that can't be read.
pub(crate) fn run(args: EvaluateArgs) -> Result<()> {
    if args.text.is_empty() && args.instructions.is_none() {
        return Err(Usage("nothing to measure\n\nhint: give --text FILE…, --instructions FILE or both".into()).into());
    }
    // All files are read first: a wrong name should not cost minutes.
    let texts = args.text.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    let instructions = match &args.instructions {
        Some(path) => {
            let parsed = parse_instructions(&read(path)?).with_context(|| format!("`{}`", path.display()))?;
            parsed.into_iter().take(args.limit.unwrap_or(usize::MAX)).collect()
        }
        None => Vec::new(),
    };
    let start = Instant::now();
    let mut report = Map::new();
    if !texts.is_empty() {
        // The logits of all positions are wanted: room for many rows.
        let options = EngineOptions { outputs_max: 512, ..args.load.engine_options() };
        let mut session = load(&args, options)?;
        report.insert("model".into(), json!(session.name));
        report.insert("text".into(), measure_texts(&mut session, &args, &texts)?);
    }
    if !instructions.is_empty() {
        let mut session = load(&args, EngineOptions { sequences: SEQUENCES, ..args.load.engine_options() })?;
        report.insert("model".into(), json!(session.name));
        let answers = measure_instructions(&mut session, &instructions)?;
        report.insert("instructions".into(), tell_instructions(&args, &answers)?);
    }
    report.insert("seconds".into(), json!(start.elapsed().as_secs_f64()));
    if args.json { Ok(output::json(&Value::Object(report))?) } else { Ok(()) }
}

fn load(args: &EvaluateArgs, mut options: EngineOptions) -> Result<Session> {
    options.context = options.context.or(Some(PIECE_TOKENS + 1));
    let model = Model::open(args.model.as_deref())?;
    let vocabulary = ModelSource::open(&model.checkpoint)?.config().vocabulary;
    options.outputs_max = options.outputs_max.min(outputs_max(vocabulary));
    Session::of_model(model, &ThisMachine, args.load.device, &options)
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("can't read `{}`", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("`{}` is no text in UTF-8", path.display()))
}

fn measure_texts(session: &mut Session, args: &EvaluateArgs, texts: &[String]) -> Result<Value> {
    let bos = session.tokenizer.bos().context("the tokenizer has no <bos>, which perplexity is measured with")?;
    let mut results = Map::new();
    for (path, text) in args.text.iter().zip(texts) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let start = Instant::now();
        let tokens = session.tokenizer.encode(text, Special::Text);
        let scored = &tokens[..tokens.len().min(args.limit.unwrap_or(usize::MAX).saturating_mul(PIECE_TOKENS))];
        let pieces = (scored.len() / PIECE_TOKENS) as u64;
        let mut progress = Progress::new(&name, Unit::Things("pieces"), pieces);
        let result = score(&mut session.runner, scored, bos, &mut |done, _| progress.set(done as u64));
        drop(progress);
        let result = result.with_context(|| format!("`{}`", path.display()))?;
        let Perplexity { pieces, mean_nll, .. } = result;
        let rate = (pieces * PIECE_TOKENS) as f64 / start.elapsed().as_secs_f64();
        if !args.json {
            output::answer(&format!(
                "{name}: perplexity {:.3} ({} tokens, {pieces} pieces, {rate:.0} tokens/s)\n",
                result.perplexity(),
                tokens.len()
            ))?;
        }
        results.insert(
            name,
            json!({
                "tokens": tokens.len(),
                "pieces": pieces,
                "mean_nll": mean_nll,
                "perplexity": result.perplexity(),
                "tokens_per_second": rate,
            }),
        );
    }
    Ok(Value::Object(results))
}

/// [`perplexity`] on whatever device is left.
fn score(runner: &mut Runner, tokens: &[u32], bos: u32, progress: evaluate::Progress<'_>) -> Result<Perplexity> {
    let Runner { engine, home } = runner;
    let mut restarts = RESTARTS;
    let mut recover = |engine: &mut Engine, error| home.recover(engine, error, &mut restarts);
    Ok(perplexity(engine, tokens, bos, &mut recover, progress)?)
}

/// [`answer_instructions`] on whatever device is left.
fn answer(
    runner: &mut Runner,
    prompting: Prompting<'_>,
    instructions: &[Instruction],
    progress: evaluate::Progress<'_>,
) -> Result<Vec<Answer>> {
    let Runner { engine, home } = runner;
    let mut restarts = RESTARTS;
    let mut recover = |engine: &mut Engine, error| home.recover(engine, error, &mut restarts);
    Ok(answer_instructions(engine, prompting, instructions, &mut recover, progress)?)
}

fn measure_instructions(session: &mut Session, instructions: &[Instruction]) -> Result<Vec<Answer>> {
    let Session { runner, tokenizer, template, stop_tokens, .. } = session;
    let mut progress = Progress::new("instructions", Unit::Things("answers"), instructions.len() as u64);
    let prompting = Prompting { tokenizer, template, stop_tokens };
    answer(runner, prompting, instructions, &mut |done, _| progress.set(done as u64))
}

fn tell_instructions(args: &EvaluateArgs, answers: &[Answer]) -> Result<Value> {
    if let Some(path) = &args.answers {
        write_answers(path, answers)?;
    }
    let InstructionScore { exact, total, families } = InstructionScore::of(answers);
    if !args.json {
        let mut text = format!("instructions: {exact} of {total} exact\n");
        for (family, [exact, total]) in &families {
            text += &format!("  {family:<10} {exact:>4} of {total:>4}\n");
        }
        output::answer(&text)?;
    }
    Ok(json!({ "exact": exact, "total": total, "families": families }))
}

fn write_answers(path: &Path, answers: &[Answer]) -> Result<()> {
    let lines = answers.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(AtomicFile::replace(path, (lines.join("\n") + "\n").as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::DeviceArg;
    use crate::devices::fake::{Fault, Gpu, machine};

    fn session(gpus: Vec<Gpu>, options: &EngineOptions) -> (Session, &'static crate::devices::fake::FakeMachine) {
        let machine = machine(gpus);
        (Session::of_model(Model::open(None).unwrap(), machine, DeviceArg::Auto, options).unwrap(), machine)
    }

    #[test]
    fn a_text_is_scored_once_though_the_device_is_lost() {
        let options = EngineOptions { context: Some(PIECE_TOKENS + 1), outputs_max: 128, ..EngineOptions::default() };
        let measure = |gpus| {
            let (mut session, machine) = session(gpus, &options);
            let tokens: Vec<u32> = (0..PIECE_TOKENS as u32).map(|token| 300 + token * 7 % 1000).collect();
            let bos = session.tokenizer.bos().unwrap();
            let found = score(&mut session.runner, &tokens, bos, &mut |_, _| ()).unwrap();
            (found.mean_nll, machine.told().len())
        };
        let (expected, _) = measure(vec![]);
        let lost = |passes| vec![Gpu::failing(0, vec![Some(Fault::Pass(passes, "lost")), None])];
        assert_eq!(measure(lost(2)), (expected, 1));
    }

    #[test]
    fn instructions_are_answered_though_the_device_is_lost() {
        let options = EngineOptions { context: Some(256), sequences: 2, ..EngineOptions::default() };
        let line = |id: u32, prompt: &str| {
            format!("{{\"id\": \"{id}\", \"family\": \"f\", \"prompt\": \"{prompt}\", \"expected\": \"early\"}}\n")
        };
        let lines = line(1, "What is the opposite of late?") + &line(2, "What is the opposite of late?");
        let instructions = parse_instructions(&lines).unwrap();
        for passes in [0, 1] {
            let gpus = vec![Gpu::failing(0, vec![Some(Fault::Pass(passes, "lost")), None])];
            let (mut session, machine) = session(gpus, &options);
            let answers = measure_instructions(&mut session, &instructions).unwrap();
            assert!(answers.len() == 2 && answers.iter().all(|answer| answer.exact), "{answers:?}");
            assert_eq!(machine.told().len(), 1);
        }
    }
}
