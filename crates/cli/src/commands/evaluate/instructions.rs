//! How well a model follows instructions, alone or beside the original.

use std::path::Path;

use anyhow::{Context, Result};
use checkpoint::AtomicFile;
use engine::{Engine, EngineOptions};
use evaluate::{
    ANSWER_TOKENS, Answer, Coherence, Instruction, InstructionScore, Prompting, Unsupported, answer_instructions,
    bleu_of_answers, bleu_of_expected, parse_answers, parse_instructions,
};
use serde_json::{Map, Value, json};

use super::{load, read};
use crate::args::{DeviceArg, EvaluateArgs};
use crate::output;
use crate::progress::{Progress, Unit};
use crate::runner::{RESTARTS, Runner};
use crate::session::Session;

/// Room for a prompt.
const PROMPT_TOKENS: usize = evaluate::WINDOW_TOKENS - ANSWER_TOKENS;

/// Instructions, and the original's answers if they are in a file.
pub(super) struct Questions {
    pub(super) all: Vec<Instruction>,
    /// Lines that were left out.
    skipped: usize,
    original: Option<Vec<Answer>>,
}

/// Answers of the model and of the original.
pub(super) struct Answers {
    pub(super) model: Vec<Answer>,
    pub(super) original: Option<Vec<Answer>>,
}

impl Questions {
    /// Reads what the command line names.
    ///
    /// # Errors
    /// Files that can't be read, lines that are wrong.
    pub(super) fn read(path: &Path, args: &EvaluateArgs) -> Result<Questions> {
        let parsed = parse_instructions(&read(path)?).with_context(|| format!("`{}`", path.display()))?;
        let skipped = parsed.unsupported.len();
        if let Some(Unsupported { line, constraint }) = parsed.unsupported.first() {
            output::notice(&format!(
                "`{}`: {skipped} lines are left out, since their constraints can't be checked; the first is line \
                 {line} with `{constraint}`",
                path.display()
            ));
        }
        let mut all: Vec<Instruction> = parsed.all.into_iter().take(args.limit.unwrap_or(usize::MAX)).collect();
        if let Some(tokens) = args.answer_tokens {
            all.iter_mut().for_each(|instruction| instruction.tokens_max = tokens);
        }
        let answers = |path: &std::path::PathBuf| {
            parse_answers(&read(path)?, &all).with_context(|| format!("`{}`", path.display()))
        };
        let original = args.against_answers.as_ref().map(answers).transpose()?;
        Ok(Questions { all, skipped, original })
    }

    /// Positions that a prompt and its answer need.
    fn positions(&self) -> usize {
        PROMPT_TOKENS + self.all.iter().map(|instruction| instruction.tokens_max).max().unwrap_or(0)
    }
}

/// Lets the model answer, and the original where there is one: `instructions` of the report.
///
/// # Errors
/// Models that can't be loaded, prompts that don't fit, files that can't be written.
pub(super) fn measure(args: &EvaluateArgs, questions: &Questions, report: &mut Map<String, Value>) -> Result<Answers> {
    let ask = |argument: Option<&str>, device: DeviceArg| -> Result<(String, Vec<Answer>)> {
        let positions = questions.positions();
        let options = EngineOptions { sequences: super::sequences(positions), ..args.load.engine_options() };
        let mut session = load(argument, device, options, positions)?;
        Ok((session.name.clone(), answers(&mut session, &questions.all)?))
    };
    let (name, model) = ask(args.model.as_deref(), args.load.device)?;
    report.insert("model".into(), json!(name));
    if let Some(path) = &args.answers {
        write_answers(path, &model)?;
    }
    let original = match (&questions.original, super::original(args)) {
        (Some(answers), _) => Some(answers.clone()),
        (None, Some(argument)) => {
            let device = args.against_device.unwrap_or(args.load.device);
            let (name, answers) = ask(Some(argument), device).with_context(|| format!("the original, `{argument}`"))?;
            report.insert("against".into(), json!(name));
            Some(answers)
        }
        (None, None) => None,
    };
    let answers = Answers { model, original };
    if !args.json {
        output::answer(&text(questions, &answers))?;
    }
    report.insert("instructions".into(), json_of(questions, &answers));
    Ok(answers)
}

/// [`answer_instructions`] on whatever device is left.
fn answers(session: &mut Session, instructions: &[Instruction]) -> Result<Vec<Answer>> {
    let Session { name, runner, tokenizer, template, stop_tokens, .. } = session;
    let Runner { engine, home } = runner;
    let mut restarts = RESTARTS;
    let mut recover = |engine: &mut Engine, error| home.recover(engine, error, &mut restarts);
    let mut progress = Progress::new(name.clone(), Unit::Things("answers"), instructions.len() as u64);
    let prompting = Prompting { tokenizer, template, stop_tokens };
    let mut tell = |done: usize, _: usize| progress.set(done as u64);
    Ok(answer_instructions(engine, prompting, instructions, &mut recover, &mut tell)?)
}

fn write_answers(path: &Path, answers: &[Answer]) -> Result<()> {
    let lines = answers.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(AtomicFile::replace(path, (lines.join("\n") + "\n").as_bytes())?)
}

/// Answers that are the same to the letter.
fn same(answers: &[Answer], others: &[Answer]) -> usize {
    answers.iter().zip(others).filter(|(answer, other)| answer.answer == other.answer).count()
}

fn text(questions: &Questions, answers: &Answers) -> String {
    let InstructionScore { passed, total, families, constraints } = InstructionScore::of(&answers.model);
    let mut text = format!("instructions: {passed} of {total} right");
    if let Some(original) = &answers.original {
        text += &format!(" (original: {})", InstructionScore::of(original).passed);
    }
    text += "\n";
    for (family, [passed, total]) in &families {
        text += &format!("  {family:<12} {passed:>4} of {total:>4}\n");
    }
    if constraints[1] > 0 {
        text += &format!("  {} of {} constraints kept\n", constraints[0], constraints[1]);
    }
    let expected = |answers| bleu_of_expected(&questions.all, answers).map(|bleu| bleu.score);
    if let Some(score) = expected(&answers.model) {
        text += &format!("  BLEU against expected answers   {score:6.2}");
        let original = answers.original.as_ref().and_then(|original| expected(original));
        text += &original.map(|score| format!(" (original: {score:.2})\n")).unwrap_or("\n".into());
    }
    if let Some(original) = &answers.original {
        let (same, total) = (same(&answers.model, original), original.len());
        let score = bleu_of_answers(&answers.model, original).score;
        text += &format!("  BLEU against original's answers {score:6.2}, {same} of {total} the same\n");
    }
    text += &coherence_text("coherence", &answers.model);
    text + &answers.original.as_ref().map(|original| coherence_text("  of the original", original)).unwrap_or_default()
}

fn coherence_text(label: &str, answers: &[Answer]) -> String {
    let Coherence { words, repetition, distinct, not_stopped } = Coherence::of(answers);
    let percent = |share: Option<f64>| share.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share));
    let [one, two, three] = distinct.map(percent);
    format!(
        "  {label}: {} of 4-grams repeated, distinct words {one}, pairs {two}, triples {three} of {words} words; \
         {} did not stop\n",
        percent(repetition),
        percent(not_stopped)
    )
}

fn json_of(questions: &Questions, answers: &Answers) -> Value {
    let mut value = scores(questions, &answers.model);
    value["skipped"] = json!(questions.skipped);
    if let Some(original) = &answers.original {
        value["original"] = scores(questions, original);
        value["bleu_of_original_answers"] = json!(bleu_of_answers(&answers.model, original).score);
        value["same_answers"] = json!(same(&answers.model, original));
    }
    value
}

fn scores(questions: &Questions, answers: &[Answer]) -> Value {
    let InstructionScore { passed, total, families, constraints } = InstructionScore::of(answers);
    let Coherence { words, repetition, distinct, not_stopped } = Coherence::of(answers);
    json!({
        "passed": passed,
        "total": total,
        "families": families,
        "constraints": { "kept": constraints[0], "total": constraints[1] },
        "bleu_of_expected_answers": bleu_of_expected(&questions.all, answers).map(|bleu| bleu.score),
        "coherence": {
            "words": words,
            "repetition": repetition,
            "distinct_1": distinct[0],
            "distinct_2": distinct[1],
            "distinct_3": distinct[2],
            "not_stopped": not_stopped,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::fake::{Fault, Gpu, machine};
    use crate::model_source::Model;

    #[test]
    fn instructions_are_answered_though_the_device_is_lost() {
        let options = EngineOptions { context: Some(256), sequences: 2, ..EngineOptions::default() };
        let line = |id: u32, prompt: &str| {
            format!("{{\"id\": \"{id}\", \"family\": \"f\", \"prompt\": \"{prompt}\", \"expected\": \"early\"}}\n")
        };
        let lines = line(1, "What is the opposite of late?") + &line(2, "What is the opposite of late?");
        let instructions = parse_instructions(&lines).unwrap().all;
        for passes in [0, 1] {
            let machine = machine(vec![Gpu::failing(0, vec![Some(Fault::Pass(passes, "lost")), None])]);
            let model = Model::open(None).unwrap();
            let mut session = Session::of_model(model, machine, DeviceArg::Auto, &options).unwrap();
            let answers = answers(&mut session, &instructions).unwrap();
            let right = |answer: &Answer| answer.passed && answer.stopped == Some(true);
            assert!(answers.len() == 2 && answers.iter().all(right), "{answers:?}");
            assert_eq!(machine.told().len(), 1);
        }
    }
}
