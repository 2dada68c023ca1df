//! Files of questions: CSV as MMLU has it, JSON Lines as ARC has them.

use serde_json::Value;

use super::{ChoicePrompt, ChoiceQuestion};
use crate::EvaluateError;
use crate::lines::{self, Line, problem, short};

/// More choices than that have no letter.
const CHOICES_MAX: usize = 26;

/// Reads questions. A file that begins with `{` has an object per line: `question`, `choices` and `answerKey` as ARC
/// has them (in its own layout or that of the `datasets` library), or a list of `choices` and the index `answer` as
/// MMLU has them there. Any other is CSV: question, choices and the letter of the right one; a first line of names is
/// passed over.
///
/// # Errors
/// A line that is no question; no lines at all.
pub fn parse_choices(text: &str) -> Result<Vec<ChoiceQuestion>, EvaluateError> {
    let text = text.trim_start_matches('\u{feff}');
    let questions: Vec<ChoiceQuestion> = if text.trim_start().starts_with('{') {
        lines::read(text).map(|line| of_line(&line?)).collect::<Result<_, _>>()?
    } else {
        of_csv(text)?
    };
    if questions.is_empty() { Err(EvaluateError::NoQuestions) } else { Ok(questions) }
}

fn of_line(line: &Line) -> Result<ChoiceQuestion, EvaluateError> {
    let question = line.required("question")?;
    let (stem, choices) = match question {
        Value::Object(question) => (question.get("stem").and_then(Value::as_str), question.get("choices")),
        other => (other.as_str(), line.get("choices")),
    };
    let stem =
        stem.ok_or_else(|| line.wrong("question", "a string, or an object with `stem` and `choices`", question))?;
    let choices = choices.ok_or_else(|| line.problem("expected the field `choices`, found none".into()))?;
    let (labels, texts) = choices_of(choices).ok_or_else(|| {
        line.wrong("choices", "a list of texts, a list of `text` and `label`, or an object of two lists", choices)
    })?;
    check_count(line.number, texts.len())?;
    let (answer, prompt) = match (line.get("answerKey"), line.get("answer")) {
        (Some(key), _) => {
            let found = key.as_str().and_then(|key| labels.iter().position(|label| label == key));
            let expected = || format!("one of {}", labels.join(", "));
            (found.ok_or_else(|| line.wrong("answerKey", &expected(), key))?, ChoicePrompt::Text)
        }
        (None, Some(index)) => {
            let found = index.as_u64().map(|index| index as usize).filter(|index| *index < texts.len());
            let expected = || format!("a number from 0 to {}", texts.len() - 1);
            (found.ok_or_else(|| line.wrong("answer", &expected(), index))?, ChoicePrompt::Letters)
        }
        (None, None) => return Err(line.problem("expected the field `answerKey` or `answer`, found neither".into())),
    };
    Ok(ChoiceQuestion { question: stem.into(), choices: texts, answer, prompt })
}

/// Labels and texts in any of the layouts; letters are the labels where there are none.
fn choices_of(choices: &Value) -> Option<(Vec<String>, Vec<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match choices {
        Value::Array(all) if all.iter().all(Value::is_string) => {
            let letters = (b'A'..=b'Z').take(all.len()).map(|letter| char::from(letter).to_string());
            Some((letters.collect(), all.iter().filter_map(text).collect()))
        }
        Value::Array(all) => all.iter().map(|one| Some((text(&one["label"])?, text(&one["text"])?))).collect(),
        Value::Object(both) => {
            let list = |key: &str| both.get(key)?.as_array()?.iter().map(text).collect::<Option<Vec<_>>>();
            let (labels, texts) = (list("label")?, list("text")?);
            (labels.len() == texts.len()).then_some((labels, texts))
        }
        _ => None,
    }
}

fn check_count(line: usize, choices: usize) -> Result<(), EvaluateError> {
    if (2..=CHOICES_MAX).contains(&choices) {
        return Ok(());
    }
    Err(problem(line, format!("expected 2 to {CHOICES_MAX} choices, found {choices}")))
}

fn of_csv(text: &str) -> Result<Vec<ChoiceQuestion>, EvaluateError> {
    let mut questions = Vec::new();
    for (index, (line, mut fields)) in records(text)?.into_iter().enumerate() {
        let last = fields.pop().unwrap_or_default();
        if index == 0 && last.trim().eq_ignore_ascii_case("answer") {
            continue;
        }
        if fields.len() < 3 {
            let found = fields.len() + 1;
            return Err(problem(
                line,
                format!("expected a question, 2 or more choices and a letter, found {found} fields"),
            ));
        }
        let question = fields.remove(0);
        check_count(line, fields.len())?;
        let letter = last.trim().bytes().next().filter(|_| last.trim().len() == 1);
        let answer = letter.map(|letter| usize::from(letter.to_ascii_uppercase().wrapping_sub(b'A')));
        let Some(answer) = answer.filter(|answer| *answer < fields.len()) else {
            let end = char::from(b'A' + fields.len() as u8 - 1);
            let found = short(&last);
            return Err(problem(line, format!("expected a letter from A to {end} as the last field, found `{found}`")));
        };
        questions.push(ChoiceQuestion { question, choices: fields, answer, prompt: ChoicePrompt::Letters });
    }
    Ok(questions)
}

/// The records of a CSV file (RFC 4180) and the lines that they begin in: fields may be in quotation marks, two of
/// which stand for one, and have commas and line ends inside. Empty lines are passed over.
fn records(text: &str) -> Result<Vec<(usize, Vec<String>)>, EvaluateError> {
    let (mut records, mut fields, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut start, mut quoted) = (1, 1, None);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if quoted.is_some() && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' if quoted.is_some() => quoted = None,
            c if quoted.is_some() => field.push(c),
            '"' if field.is_empty() => quoted = Some(line),
            ',' => fields.push(std::mem::take(&mut field)),
            '\n' => {
                end_record(&mut records, &mut fields, &mut field, start);
                start = line;
            }
            '\r' if chars.peek() == Some(&'\n') => {}
            c => field.push(c),
        }
    }
    if let Some(line) = quoted {
        return Err(problem(line, "expected a second quotation mark, found the end of the file".into()));
    }
    end_record(&mut records, &mut fields, &mut field, start);
    Ok(records)
}

fn end_record(records: &mut Vec<(usize, Vec<String>)>, fields: &mut Vec<String>, field: &mut String, start: usize) {
    if !fields.is_empty() || !field.trim().is_empty() {
        fields.push(std::mem::take(field));
        records.push((start, std::mem::take(fields)));
    }
    field.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_of_mmlu_is_read() {
        let text = "question,A,B,C,D,answer\r\n\"Say \"\"a\"\", b\nor c?\",1,2,\"3, 4\",,C\r\n\r\nWhat?,w,x,y,z, b\n";
        let found = parse_choices(text).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].question.as_str(), found[0].answer), ("Say \"a\", b\nor c?", 2));
        assert_eq!(found[0].choices, ["1", "2", "3, 4", ""]);
        assert_eq!((found[1].answer, found[1].prompt), (1, ChoicePrompt::Letters));
    }

    #[test]
    fn layouts_of_arc_are_the_same() {
        let lines = [
            r#"{"question": {"stem": "Q?", "choices": [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]},
                "answerKey": "2"}"#,
            r#"{"id": "x", "question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}"#,
        ];
        let lines = lines.map(|line| line.replace(",\n", ","));
        let found = parse_choices(&lines.join("\n")).unwrap();
        assert_eq!(found[0], found[1]);
        assert_eq!((found[0].answer, found[0].prompt), (1, ChoicePrompt::Text));
        let mmlu = r#"{"question": "Q?", "subject": "s", "choices": ["a", "b"], "answer": 1}"#;
        assert_eq!(
            parse_choices(mmlu).unwrap()[0],
            ChoiceQuestion { prompt: ChoicePrompt::Letters, ..found[0].clone() }
        );
    }

    #[test]
    fn broken_lines_are_told_with_what_was_expected_and_found() {
        for (text, line, part) in [
            ("a,b,c,A\nq,b,c,D\n", 2, "expected a letter from A to B as the last field, found `D`"),
            ("\"a\n\",b,c,A\nq,b,B\n", 3, "expected a question, 2 or more choices and a letter, found 3 fields"),
            ("a,b,c,A\n\nq,\"b,c,A\n", 3, "expected a second quotation mark"),
            ("{\"question\": \"Q\"}", 1, "expected the field `choices`"),
            ("{\"question\": \"Q\", \"choices\": [\"a\"], \"answer\": 0}", 1, "expected 2 to 26 choices, found 1"),
            ("{\"question\": \"Q\", \"choices\": [\"a\", 2], \"answer\": 0}", 1, "expected `choices` to be"),
            ("{\"question\": \"Q\", \"choices\": [\"a\", \"b\"], \"answer\": 2}", 1, "a number from 0 to 1"),
            ("{\"question\": \"Q\", \"choices\": [\"a\", \"b\"], \"answerKey\": \"C\"}", 1, "to be one of A, B, found"),
            ("{\"question\": \"Q\", \"choices\": [\"a\", \"b\"]}", 1, "expected the field `answerKey` or `answer`"),
            ("{\"question\": 1, \"choices\": [\"a\", \"b\"]}", 1, "expected `question` to be a string"),
        ] {
            let error = parse_choices(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line {line}: ")) && error.contains(part), "{error}");
        }
        assert!(matches!(parse_choices(" \n"), Err(EvaluateError::NoQuestions)));
    }
}
