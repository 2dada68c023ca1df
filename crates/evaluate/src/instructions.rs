//! Instructions with one right answer each.

use std::collections::{BTreeMap, HashMap};

use engine::{Engine, Event, FinishReason, Request, Sampling, SequenceId};
use serde::{Deserialize, Serialize};
use text::{ChatTemplate, Message, Special, Tokenizer, encode_chat};

use crate::{EvaluateError, Progress, Recover};

/// Tokens that an answer may have.
pub const ANSWER_TOKENS_MAX: usize = 48;

/// An instruction and its right answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Instruction {
    /// Its name.
    pub id: String,
    /// The kind of task: `add`, `sort`, ….
    pub family: String,
    /// What the user says.
    pub prompt: String,
    /// What the model should answer.
    pub expected: String,
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
    /// Whether it is the right one.
    pub exact: bool,
}

/// Exact answers, all together and per family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstructionScore {
    /// Right answers.
    pub exact: usize,
    /// All answers.
    pub total: usize,
    /// Right ones and all of each family, by name.
    pub families: BTreeMap<String, [usize; 2]>,
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

impl InstructionScore {
    /// Counts answers.
    pub fn of(answers: &[Answer]) -> InstructionScore {
        let mut score = InstructionScore::default();
        for answer in answers {
            let exact = usize::from(answer.exact);
            score.exact += exact;
            score.total += 1;
            let family = score.families.entry(answer.family.clone()).or_default();
            family[0] += exact;
            family[1] += 1;
        }
        score
    }
}

/// Whether an answer is the expected one: equal but for white space around it.
pub fn is_exact(answer: &str, expected: &str) -> bool {
    answer.trim() == expected.trim()
}

/// Reads instructions: one JSON object per line, empty lines are passed over.
///
/// # Errors
/// A line that is no such object; no lines at all.
pub fn parse_instructions(jsonl: &str) -> Result<Vec<Instruction>, EvaluateError> {
    let lines = jsonl.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|source| EvaluateError::Instruction { line: index + 1, source })
    };
    let instructions = lines.map(parse).collect::<Result<Vec<_>, _>>()?;
    if instructions.is_empty() { Err(EvaluateError::NoInstructions) } else { Ok(instructions) }
}

/// Lets the model answer each instruction, as the only user turn of a conversation: always the most probable token, at
/// most [`ANSWER_TOKENS_MAX`]. Answers come in the order of the instructions; progress counts finished ones.
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
                Event::Finished { id, .. } => {
                    if let Some((index, tokens)) = running.remove(&id) {
                        answers[index] = Some(judge(&instructions[index], prompting.tokenizer.decode(&tokens, true)));
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
        max_tokens: Some(ANSWER_TOKENS_MAX),
        stop_tokens: prompting.stop_tokens.to_vec(),
        ..Request::new(prompt)
    })
}

fn judge(instruction: &Instruction, answer: String) -> Answer {
    let exact = is_exact(&answer, &instruction.expected);
    Answer { id: instruction.id.clone(), family: instruction.family.clone(), answer, exact }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"id": "a-1", "family": "a", "prompt": "Say yes.", "expected": "yes"}

{"id": "b-1", "family": "b", "prompt": "Say no.", "expected": "no", "more": 1}
"#;

    #[test]
    fn instructions_are_read_line_by_line() {
        let instructions = parse_instructions(LINES).unwrap();
        assert_eq!(instructions.len(), 2);
        assert_eq!((instructions[1].family.as_str(), instructions[1].expected.as_str()), ("b", "no"));
        let error = parse_instructions(&format!("{LINES}{{\"id\": 3}}\n")).unwrap_err();
        assert!(error.to_string().starts_with("line 4: "), "{error}");
        assert!(matches!(parse_instructions("\n \n"), Err(EvaluateError::NoInstructions)));
    }

    #[test]
    fn answers_are_exact_but_for_white_space_around_them() {
        assert!(is_exact(" yes\n", "yes") && is_exact("a b", "a b\n"));
        assert!(!is_exact("Yes", "yes") && !is_exact("a  b", "a b") && !is_exact("yes.", "yes"));
    }

    #[test]
    fn scores_are_counted_per_family() {
        let instructions = parse_instructions(LINES).unwrap();
        let answers: Vec<Answer> =
            instructions.iter().flat_map(|one| [judge(one, "yes".into()), judge(one, "no ".into())]).collect();
        let score = InstructionScore::of(&answers);
        assert_eq!((score.exact, score.total), (2, 4));
        assert_eq!(score.families["a"], [1, 2]);
        let wrong = judge(&instructions[0], "no".into());
        assert_eq!(InstructionScore::of(&[wrong]).families["a"], [0, 1]);
    }
}
