//! Multiple choice by likelihood: the choice that the model finds most probable is its answer.

mod parse;
mod score;

use text::{Message, Special, encode_chat};

pub use parse::parse_choices;
pub use score::{choice_positions, score_choices};

use crate::{EvaluateError, Prompting};

/// How a question is put. There are no examples before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChoicePrompt {
    /// The question, the choices after `A.`, `B.`, … and `Answer:`; the letters are compared. The usual way of MMLU.
    Letters,
    /// `Question: … Answer:`; the texts of the choices are compared. The usual way of ARC.
    Text,
    /// The question is a user turn, and the texts of the choices are compared as answers.
    Chat,
}

/// A question with one right choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceQuestion {
    /// The question.
    pub question: String,
    /// Two or more.
    pub choices: Vec<String>,
    /// Which of them is right.
    pub answer: usize,
    /// How it is put.
    pub prompt: ChoicePrompt,
}

/// What a model chose.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoiceScore {
    /// Whether the most probable choice of each question is the right one.
    pub right: Vec<bool>,
    /// The same with ln of each probability divided by the characters of the choice, so that long ones have a chance.
    pub right_normalized: Vec<bool>,
    /// Share of right choices that guesses would have.
    pub chance: f64,
}

impl ChoiceScore {
    /// From ln of the probability of each choice of each question.
    fn of(questions: &[ChoiceQuestion], ln_probabilities: &[Vec<f64>]) -> ChoiceScore {
        let pairs = || questions.iter().zip(ln_probabilities);
        let plain = |(question, scores): (&ChoiceQuestion, &Vec<f64>)| first_best(scores) == question.answer;
        let normalized = |(question, scores): (&ChoiceQuestion, &Vec<f64>)| {
            let chars = question.choices.iter().map(|choice| choice.chars().count().max(1) as f64);
            let scores: Vec<f64> = scores.iter().zip(chars).map(|(score, chars)| score / chars).collect();
            first_best(&scores) == question.answer
        };
        let chance = questions.iter().map(|question| 1.0 / question.choices.len() as f64).sum::<f64>();
        ChoiceScore {
            right: pairs().map(plain).collect(),
            // Letters are all of one length.
            right_normalized: pairs()
                .map(|(question, scores)| match question.prompt {
                    ChoicePrompt::Letters => plain((question, scores)),
                    ChoicePrompt::Text | ChoicePrompt::Chat => normalized((question, scores)),
                })
                .collect(),
            chance: chance / questions.len().max(1) as f64,
        }
    }

    /// Share of right choices; NaN without questions.
    pub fn accuracy(&self) -> f64 {
        share(&self.right)
    }

    /// The same by ln of the probability per character.
    pub fn accuracy_normalized(&self) -> f64 {
        share(&self.right_normalized)
    }
}

fn share(right: &[bool]) -> f64 {
    right.iter().filter(|right| **right).count() as f64 / right.len() as f64
}

/// The first of the largest.
fn first_best(scores: &[f64]) -> usize {
    (1..scores.len()).fold(0, |best, index| if scores[index] > scores[best] { index } else { best })
}

/// The tokens of a question with each of its choices, and where the choice begins.
fn sequences(prompting: &Prompting<'_>, question: &ChoiceQuestion) -> Result<Vec<(Vec<u32>, usize)>, EvaluateError> {
    let tokenizer = prompting.tokenizer;
    let encode = |text: &str| {
        let tokens = tokenizer.encode(text, Special::Text);
        tokenizer.bos().into_iter().chain(tokens).collect::<Vec<u32>>()
    };
    let after = |context: &str, choice: &str| {
        let start = encode(context).len();
        (encode(&format!("{context} {choice}")), start)
    };
    let letter = |index: usize| char::from(b'A' + index as u8).to_string();
    let stem = question.question.trim();
    let choices = question.choices.iter().map(|choice| choice.trim());
    Ok(match question.prompt {
        ChoicePrompt::Letters => {
            let lines = choices.clone().enumerate().map(|(index, choice)| format!("{}. {choice}\n", letter(index)));
            let context = format!("{stem}\n{}Answer:", lines.collect::<String>());
            (0..choices.len()).map(|index| after(&context, &letter(index))).collect()
        }
        ChoicePrompt::Text => {
            let context = format!("Question: {stem}\nAnswer:");
            choices.map(|choice| after(&context, choice)).collect()
        }
        ChoicePrompt::Chat => {
            let messages = [Message::user(stem)];
            let context = encode_chat(tokenizer, prompting.template, &messages, true, Special::Text)?;
            let with = |choice: &str| {
                let tokens = context.iter().copied().chain(tokenizer.encode(choice, Special::Text));
                (tokens.collect(), context.len())
            };
            choices.map(with).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(choices: &[&str], answer: usize, prompt: ChoicePrompt) -> ChoiceQuestion {
        let choices = choices.iter().map(|choice| (*choice).into()).collect();
        ChoiceQuestion { question: "?".into(), choices, answer, prompt }
    }

    #[test]
    fn scores_by_hand() {
        let questions = [
            question(&["ab", "abcdefgh"], 1, ChoicePrompt::Text),
            question(&["ab", "abcdefgh"], 1, ChoicePrompt::Letters),
            question(&["a", "b", "c", "d"], 0, ChoicePrompt::Chat),
        ];
        let found = ChoiceScore::of(&questions, &[vec![-2.0, -4.0], vec![-2.0, -4.0], vec![-1.0, -1.0, -3.0, -1.0]]);
        assert_eq!(found.right, [false, false, true]);
        assert_eq!(found.right_normalized, [true, false, true]);
        assert!((found.chance - 1.25 / 3.0).abs() < 1e-12 && (found.accuracy() - 1.0 / 3.0).abs() < 1e-12);
    }
}
