//! How often a model chooses rightly, alone or beside the original.

use anyhow::{Context, Result};
use backend_cpu::physical_cores;
use engine::{Engine, EngineOptions};
use evaluate::{
    ChoicePrompt, ChoiceQuestion, ChoiceScore, Prompting, Side, choice_positions, parse_choices, score_choices,
};
use serde_json::{Map, Value, json};

use super::{load, read};
use crate::args::{ChoicePromptArg, DeviceArg, EvaluateArgs};
use crate::model_source::Model;
use crate::output;
use crate::progress::{Progress, Unit};
use crate::runner::{RESTARTS, Runner};
use crate::session::{self, Session};

/// Scores of the model and of the original.
pub(super) struct Scores {
    pub(super) model: ChoiceScore,
    pub(super) original: Option<ChoiceScore>,
}

/// Reads all files that the command line names.
///
/// # Errors
/// Files that can't be read, lines that are wrong.
pub(super) fn questions(args: &EvaluateArgs) -> Result<Vec<ChoiceQuestion>> {
    let mut all = Vec::new();
    for path in &args.choices {
        let questions = parse_choices(&read(path)?).with_context(|| format!("`{}`", path.display()))?;
        all.extend(questions.into_iter().take(args.limit.unwrap_or(usize::MAX)));
    }
    if let Some(prompt) = args.choice_prompt {
        let prompt = match prompt {
            ChoicePromptArg::Letters => ChoicePrompt::Letters,
            ChoicePromptArg::Text => ChoicePrompt::Text,
            ChoicePromptArg::Chat => ChoicePrompt::Chat,
        };
        all.iter_mut().for_each(|question| question.prompt = prompt);
    }
    Ok(all)
}

/// Lets the model choose, and the original where there is one: `choices` of the report.
///
/// # Errors
/// Models that can't be loaded, questions that don't fit.
pub(super) fn measure(
    args: &EvaluateArgs,
    questions: &[ChoiceQuestion],
    report: &mut Map<String, Value>,
) -> Result<Scores> {
    let ask = |argument: Option<&str>, device: DeviceArg| -> Result<(String, ChoiceScore)> {
        let positions = positions(argument, questions)?;
        let sequences = super::sequences(positions);
        let options = EngineOptions { sequences, outputs_max: 512, ..args.load.engine_options() };
        let mut session = load(argument, device, options, positions)?;
        let threads = args.load.threads.unwrap_or_else(physical_cores);
        Ok((session.name.clone(), choose(&mut session, questions, threads)?))
    };
    let (name, model) = ask(args.model.as_deref(), args.load.device)?;
    report.insert("model".into(), json!(name));
    let mut value = json_of(&model);
    let mut text = text("multiple choice", &model);
    let mut original = None;
    if let Some(argument) = super::original(args) {
        let device = args.against_device.unwrap_or(args.load.device);
        let (name, score) = ask(Some(argument), device).with_context(|| format!("the original, `{argument}`"))?;
        report.insert("against".into(), json!(name));
        value["original"] = json_of(&score);
        text += &self::text("  original", &score);
        original = Some(score);
    }
    if !args.json {
        output::answer(&text)?;
    }
    report.insert("choices".into(), value);
    Ok(Scores { model, original })
}

/// What the longest question needs, known before the model is loaded.
fn positions(argument: Option<&str>, questions: &[ChoiceQuestion]) -> Result<usize> {
    let checkpoint = Model::open(argument)?.checkpoint;
    let (tokenizer, template) = (session::tokenizer(&checkpoint)?, session::template(&checkpoint)?);
    let prompting = Prompting { tokenizer: &tokenizer, template: &template, stop_tokens: &[] };
    Ok(choice_positions(prompting, questions)?)
}

/// [`score_choices`] on whatever device is left.
fn choose(session: &mut Session, questions: &[ChoiceQuestion], threads: usize) -> Result<ChoiceScore> {
    let Session { name, runner, tokenizer, template, stop_tokens, .. } = session;
    let Runner { engine, home } = runner;
    let mut restarts = RESTARTS;
    let mut recover = |engine: &mut Engine, error| home.recover(engine, error, &mut restarts);
    let mut progress = Progress::new(name.clone(), Unit::Things("questions"), questions.len() as u64);
    let prompting = Prompting { tokenizer, template, stop_tokens };
    let side = Side { engine, recover: &mut recover };
    Ok(score_choices(side, prompting, questions, threads, &mut |done, _| progress.set(done as u64))?)
}

fn text(label: &str, score: &ChoiceScore) -> String {
    let right = score.right.iter().filter(|right| **right).count();
    format!(
        "{label}: {right} of {} right, {:.1} % (by length {:.1} %, by chance {:.1} %)\n",
        score.right.len(),
        100.0 * score.accuracy(),
        100.0 * score.accuracy_normalized(),
        100.0 * score.chance
    )
}

fn json_of(score: &ChoiceScore) -> Value {
    json!({
        "right": score.right.iter().filter(|right| **right).count(),
        "total": score.right.len(),
        "accuracy": score.accuracy(),
        "accuracy_normalized": score.accuracy_normalized(),
        "chance": score.chance,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::fake::{Fault, Gpu, machine};

    #[test]
    fn questions_are_answered_though_the_device_is_lost() {
        let options = EngineOptions { context: Some(256), sequences: 2, outputs_max: 4, ..EngineOptions::default() };
        let question = |question: &str, choices: [&str; 2], answer| ChoiceQuestion {
            question: question.into(),
            choices: choices.map(Into::into).into(),
            answer,
            prompt: ChoicePrompt::Chat,
        };
        let questions = [
            question("What is the opposite of late?", ["early", "a sentence of many words"], 0),
            question("Which day comes after Thursday?", ["Monday", "Friday"], 1),
        ];
        let chosen = |gpus: Vec<Gpu>| {
            let (machine, model) = (machine(gpus), Model::open(None).unwrap());
            let mut session = Session::of_model(model, machine, DeviceArg::Auto, &options).unwrap();
            (choose(&mut session, &questions, 2).unwrap(), machine.told().len())
        };
        let (expected, _) = chosen(vec![]);
        assert_eq!(expected.right, [true, true]);
        for passes in [0, 2] {
            let gpus = vec![Gpu::failing(0, vec![Some(Fault::Pass(passes, "lost")), None])];
            assert_eq!(chosen(gpus), (expected.clone(), 1));
        }
    }
}
