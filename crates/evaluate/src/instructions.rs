//! Instructions with answers that can be checked.

mod parse;

use std::collections::{BTreeMap, HashMap};

use engine::{Engine, Event, FinishReason, Request, Sampling, SequenceId};
use serde::Serialize;
use text::{ChatTemplate, Message, Special, Tokenizer, encode_chat};

pub use parse::parse_instructions;

use crate::check::Check;
use crate::{Bleu, EvaluateError, Progress, Recover, bleu, lines};

/// Tokens that an answer may have, if its line does not say.
pub const ANSWER_TOKENS: usize = 48;
/// The same where the answer's form is constrained: as in the usual harness for IFEval.
pub const CONSTRAINED_ANSWER_TOKENS: usize = 1280;

/// An instruction, and what makes an answer right.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Its name.
    pub id: String,
    /// The kind of task: `add`, `sort`, ….
    pub family: String,
    /// What the user says.
    pub prompt: String,
    /// A good answer, for BLEU.
    pub reference: Option<String>,
    /// An answer is right if it meets all of them.
    pub checks: Vec<Check>,
    /// Tokens that the answer may have.
    pub tokens_max: usize,
}

/// A file of instructions.
#[derive(Clone, Debug, Default)]
pub struct Instructions {
    /// Those that can be checked, in order.
    pub all: Vec<Instruction>,
    /// Why others were left out.
    pub unsupported: Vec<Unsupported>,
}

/// A constraint that can't be checked, for which an instruction was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The line, from 1.
    pub line: usize,
    /// The constraint's name.
    pub constraint: String,
}

/// What a model answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The instruction's name.
    pub id: String,
    /// The kind of task.
    pub family: String,
    /// The answer without special tokens.
    pub answer: String,
    /// Whether it meets all checks.
    pub passed: bool,
    /// Constraints on its form that it keeps, and all of them.
    pub constraints: [usize; 2],
    /// Whether the model ended it itself, within the tokens it may have; `None` in files that don't tell.
    pub stopped: Option<bool>,
}

/// Right answers, all together and per family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstructionScore {
    /// Right answers.
    pub passed: usize,
    /// All answers.
    pub total: usize,
    /// Right ones and all of each family, by name.
    pub families: BTreeMap<String, [usize; 2]>,
    /// Constraints that are kept, and all of them.
    pub constraints: [usize; 2],
}

/// What turns text into prompts and answers into text.
#[derive(Clone, Copy, Debug)]
pub struct Prompting<'a> {
    /// Text to ids.
    pub tokenizer: &'a Tokenizer,
    /// Messages to text.
    pub template: &'a ChatTemplate,
    /// Tokens that end an answer.
    pub stop_tokens: &'a [u32],
}

impl Instruction {
    /// Looks at an answer.
    pub fn judge(&self, answer: String, stopped: Option<bool>) -> Answer {
        let is_constraint = |check: &&Check| matches!(check, Check::Constraint(_));
        let constraints = self.checks.iter().filter(is_constraint);
        let kept = constraints.clone().filter(|check| check.passes(&answer)).count();
        Answer {
            id: self.id.clone(),
            family: self.family.clone(),
            passed: self.checks.iter().all(|check| check.passes(&answer)),
            constraints: [kept, constraints.count()],
            answer,
            stopped,
        }
    }
}

impl InstructionScore {
    /// Counts answers.
    pub fn of(answers: &[Answer]) -> InstructionScore {
        let mut score = InstructionScore::default();
        for answer in answers {
            let passed = usize::from(answer.passed);
            score.passed += passed;
            score.total += 1;
            let family = score.families.entry(answer.family.clone()).or_default();
            family[0] += passed;
            family[1] += 1;
            score.constraints = [0, 1].map(|index| score.constraints[index] + answer.constraints[index]);
        }
        score
    }
}

/// BLEU of answers against the good ones that the instructions know; `None` if they know none.
pub fn bleu_of_expected(instructions: &[Instruction], answers: &[Answer]) -> Option<Bleu> {
    let pair = |(instruction, answer)| -> Option<(&str, &str)> {
        let (instruction, answer): (&Instruction, &Answer) = (instruction, answer);
        Some((answer.answer.as_str(), instruction.reference.as_deref()?))
    };
    let mut pairs = instructions.iter().zip(answers).filter_map(pair).peekable();
    pairs.peek().is_some().then(|| bleu(pairs))
}

/// BLEU of answers against those of another model to the same instructions.
pub fn bleu_of_answers(answers: &[Answer], others: &[Answer]) -> Bleu {
    bleu(answers.iter().zip(others).map(|(answer, other)| (answer.answer.as_str(), other.answer.as_str())))
}

/// Reads answers as they were written before, and judges them anew: one for each instruction, in their order.
///
/// # Errors
/// A line that is no answer, an instruction without an answer.
pub fn parse_answers(jsonl: &str, instructions: &[Instruction]) -> Result<Vec<Answer>, EvaluateError> {
    let mut found = HashMap::new();
    for line in lines::read(jsonl) {
        let line = line?;
        let id = line.text("id")?;
        let id = id.ok_or_else(|| line.required("id").err().unwrap_or(EvaluateError::NoInstructions))?;
        let stopped = line.get("stopped").and_then(serde_json::Value::as_bool);
        found.insert(id, (line.required_text("answer")?, stopped));
    }
    let answer = |instruction: &Instruction| {
        let missing = || EvaluateError::NoAnswer { id: instruction.id.clone() };
        let (answer, stopped) = found.get(&instruction.id).ok_or_else(missing)?;
        Ok(instruction.judge(answer.clone(), *stopped))
    };
    instructions.iter().map(answer).collect()
}

/// Lets the model answer each instruction, as the only user turn of a conversation: always the most probable token.
/// Answers come in the order of the instructions; progress counts finished ones.
///
/// As many are worked on at once as the engine has slots, which must all be free.
///
/// # Errors
/// A prompt that doesn't fit into the context, what `recover` gives back, an interruption.
pub fn answer_instructions(
    engine: &mut Engine,
    prompting: Prompting<'_>,
    instructions: &[Instruction],
    recover: Recover<'_>,
    progress: Progress<'_>,
) -> Result<Vec<Answer>, EvaluateError> {
    let mut running: HashMap<SequenceId, (usize, Vec<u32>)> = HashMap::new();
    for (index, instruction) in instructions.iter().enumerate() {
        let id = engine.submit(request(&prompting, instruction)?)?;
        running.insert(id, (index, Vec::new()));
    }
    let mut answers: Vec<Option<Answer>> = vec![None; instructions.len()];
    let mut done = 0;
    while !engine.is_idle() {
        let events = match engine.step() {
            Ok(events) => events,
            Err(error) => {
                recover(engine, error)?;
                continue;
            }
        };
        for event in events {
            match event {
                Event::Prefill { .. } => {}
                Event::Token { id, token } => {
                    if let Some((_, tokens)) = running.get_mut(&id) {
                        tokens.push(token);
                    }
                }
                Event::Finished { reason: FinishReason::Cancelled, .. } => return Err(EvaluateError::Interrupted),
                Event::Finished { id, reason, .. } => {
                    if let Some((index, tokens)) = running.remove(&id) {
                        let stopped = matches!(reason, FinishReason::Stop { .. });
                        let answer = prompting.tokenizer.decode(&tokens, true);
                        answers[index] = Some(instructions[index].judge(answer, Some(stopped)));
                        done += 1;
                        progress(done, instructions.len());
                    }
                }
            }
        }
    }
    Ok(answers.into_iter().flatten().collect())
}

fn request(prompting: &Prompting<'_>, instruction: &Instruction) -> Result<Request, EvaluateError> {
    let messages = [Message::user(instruction.prompt.as_str())];
    let prompt = encode_chat(prompting.tokenizer, prompting.template, &messages, true, Special::Text)?;
    Ok(Request {
        sampling: Sampling::greedy(),
        max_tokens: Some(instruction.tokens_max),
        stop_tokens: prompting.stop_tokens.to_vec(),
        ..Request::new(prompt)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"id": "a-1", "family": "a", "prompt": "Say yes.", "expected": "yes"}
{"id": "b-1", "family": "b", "prompt": "Say no.", "expected": "no",
 "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"], "kwargs": [{}, {}]}
"#;

    fn instructions() -> Vec<Instruction> {
        parse_instructions(&LINES.replace(",\n", ",")).unwrap().all
    }

    #[test]
    fn scores_are_counted_per_family() {
        let judge = |one: &Instruction, answer: &str| one.judge(answer.into(), None);
        let all = instructions();
        let answers: Vec<Answer> =
            all.iter().flat_map(|one| [judge(one, "yes"), judge(one, "no "), judge(one, "No,")]).collect();
        let score = InstructionScore::of(&answers);
        assert_eq!((score.passed, score.total, score.constraints), (2, 6, [4, 6]));
        assert_eq!((score.families["a"], score.families["b"]), ([1, 3], [1, 3]));
        assert_eq!(InstructionScore::of(&[judge(&all[0], "no")]).families["a"], [0, 1]);
    }

    #[test]
    fn answers_are_read_and_judged_again() {
        let lines = "{\"id\": \"b-1\", \"answer\": \"no\", \"passed\": false}\n\n{\"id\": \"a-1\", \"answer\": \"no\", \
                     \"stopped\": true}\n{\"id\": \"c\", \"answer\": \"\"}\n";
        let answers = parse_answers(lines, &instructions()).unwrap();
        let found: Vec<_> = answers.iter().map(|one| (one.id.as_str(), one.passed, one.stopped)).collect();
        assert_eq!(found, [("a-1", false, Some(true)), ("b-1", true, None)]);
        let error = parse_answers("{\"id\": \"a-1\", \"answer\": \"no\"}\n", &instructions()).unwrap_err();
        assert!(error.to_string().contains("`b-1`"), "{error}");
        let error = parse_answers("{\"id\": \"a-1\"}\n", &instructions()).unwrap_err().to_string();
        assert!(error.contains("line 1: expected the field `answer`, found `id`"), "{error}");
        let error = parse_answers("{\"answer\": \"x\"}\n", &instructions()).unwrap_err().to_string();
        assert!(error.contains("expected the field `id`"), "{error}");
    }
}
