//! `evaluate`: how good a model is.

mod origin;
mod report;
mod saved;
mod texts;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use checkpoint::AtomicFile;
use engine::{Engine, EngineOptions, ModelSource};
use evaluate::{
    Answer, Instruction, InstructionScore, Prompting, WINDOW_TOKENS, answer_instructions, parse_instructions,
};
use serde_json::{Map, Value, json};

use self::texts::Text;
use crate::args::{DeviceArg, EvaluateArgs};
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
    let text = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Text { name, text: read(path)? })
    };
    let texts = args.text.iter().map(text).collect::<Result<Vec<_>>>()?;
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
        texts::measure(&args, &texts, &mut report).map_err(|error| texts::explain(error, &args))?;
    }
    if !instructions.is_empty() {
        let options = EngineOptions { sequences: SEQUENCES, ..args.load.engine_options() };
        let mut session = load(args.model.as_deref(), args.load.device, options)?;
        report.insert("model".into(), json!(session.name));
        let answers = measure_instructions(&mut session, &instructions)?;
        report.insert("instructions".into(), tell_instructions(&args, &answers)?);
    }
    report.insert("seconds".into(), json!(start.elapsed().as_secs_f64()));
    if args.json { Ok(output::json(&Value::Object(report))?) } else { Ok(()) }
}

fn load(argument: Option<&str>, device: DeviceArg, mut options: EngineOptions) -> Result<Session> {
    options.context = options.context.or(Some(WINDOW_TOKENS));
    let model = Model::open(argument)?;
    let vocabulary = ModelSource::open(&model.checkpoint)?.config().vocabulary;
    options.outputs_max = options.outputs_max.min(outputs_max(vocabulary));
    Session::of_model(model, &ThisMachine, device, &options)
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("can't read `{}`", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("`{}` is no text in UTF-8", path.display()))
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
    use crate::devices::fake::{Fault, Gpu, machine};

    fn session(gpus: Vec<Gpu>, options: &EngineOptions) -> (Session, &'static crate::devices::fake::FakeMachine) {
        let machine = machine(gpus);
        (Session::of_model(Model::open(None).unwrap(), machine, DeviceArg::Auto, options).unwrap(), machine)
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
