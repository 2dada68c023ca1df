//! Reads files of instructions.

use std::collections::HashMap;

use regex::Regex;
use serde_json::Value;

use super::{ANSWER_TOKENS, CONSTRAINED_ANSWER_TOKENS, Instruction, Instructions, Unsupported};
use crate::EvaluateError;
use crate::check::{Check, Constraint, ConstraintError};
use crate::lines::{self, Line, describe};

/// The most tokens that an answer may be given.
const TOKENS_MAX: u64 = 1 << 20;

/// Reads instructions: one JSON object per line, empty lines are passed over. `docs/evaluate.md` has the format.
///
/// # Errors
/// A line that is no such object; no lines at all.
pub fn parse_instructions(jsonl: &str) -> Result<Instructions, EvaluateError> {
    let mut instructions = Instructions::default();
    let mut ids = HashMap::new();
    for line in lines::read(jsonl) {
        let line = line?;
        let (constraints, missing) = constraints(&line)?;
        if missing.is_empty() {
            let instruction = instruction(&line, constraints)?;
            if let Some(first) = ids.insert(instruction.id.clone(), line.number) {
                return Err(line.problem(format!("the id `{}` is that of line {first} already", instruction.id)));
            }
            instructions.all.push(instruction);
        }
        let unsupported = |constraint| Unsupported { line: line.number, constraint };
        instructions.unsupported.extend(missing.into_iter().map(unsupported));
    }
    match instructions.unsupported.first() {
        _ if !instructions.all.is_empty() => Ok(instructions),
        Some(Unsupported { line, constraint }) => {
            Err(lines::problem(*line, format!("the constraint `{constraint}` can't be checked, as on all other lines")))
        }
        None => Err(EvaluateError::NoInstructions),
    }
}

fn instruction(line: &Line, constraints: Vec<Check>) -> Result<Instruction, EvaluateError> {
    let prompt = line.required_text("prompt")?;
    let kind = line.text("check")?.unwrap_or_else(|| "exact".into());
    let expected = if constraints.is_empty() { Some(line.required("expected")?) } else { line.get("expected") };
    if expected.is_none() && line.get("check").is_some() {
        line.required("expected")?;
    }
    let mut checks: Vec<Check> =
        expected.map(|expected| check(line, &kind, expected)).transpose()?.into_iter().collect();
    let reference = match (line.text("reference")?, checks.first()) {
        (None, Some(Check::Exact(expected))) => Some(expected.clone()),
        (reference, _) => reference,
    };
    let is_constrained = !constraints.is_empty();
    checks.extend(constraints);
    let default = if is_constrained { CONSTRAINED_ANSWER_TOKENS } else { ANSWER_TOKENS };
    let tokens_max = match line.get("max_tokens") {
        None => default,
        Some(value) => match value.as_u64().filter(|tokens| (1..=TOKENS_MAX).contains(tokens)) {
            Some(tokens) => tokens as usize,
            None => return Err(line.wrong("max_tokens", &format!("a number from 1 to {TOKENS_MAX}"), value)),
        },
    };
    let id = line.text("id")?.map_or_else(|| line.text("key"), |id| Ok(Some(id)))?;
    Ok(Instruction {
        id: id.unwrap_or_else(|| format!("line-{}", line.number)),
        family: line.text("family")?.unwrap_or_else(|| if is_constrained { "constraints".into() } else { kind }),
        prompt,
        reference,
        checks,
        tokens_max,
    })
}

fn check(line: &Line, kind: &str, expected: &Value) -> Result<Check, EvaluateError> {
    let wrong = |what: &str| line.wrong("expected", what, expected);
    match kind {
        "exact" => Ok(Check::Exact(expected.as_str().ok_or_else(|| wrong("a string"))?.into())),
        "contains" => {
            let one = expected.as_str().map(|text| vec![text.to_owned()]);
            let list = || expected.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect();
            let texts: Option<Vec<String>> = one.or_else(list).filter(|texts| !texts.is_empty());
            Ok(Check::Contains(texts.ok_or_else(|| wrong("a string or a list of strings"))?))
        }
        "regex" => {
            let pattern = expected.as_str().ok_or_else(|| wrong("a regular expression"))?;
            let built = Regex::new(pattern);
            built.map(Check::Regex).map_err(|error| {
                let error = error.to_string();
                // The lines before the last one point at the place in several lines.
                let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                line.problem(format!("expected `expected` to be a regular expression, found `{pattern}`: {why}"))
            })
        }
        "json" => Ok(Check::Json(match expected {
            Value::String(text) => {
                serde_json::from_str(text).map_err(|_| wrong("JSON, as a value or inside a string"))?
            }
            value => value.clone(),
        })),
        "number" => number(line, expected),
        other => Err(line.problem(format!(
            "expected `check` to be `exact`, `contains`, `regex`, `json` or `number`, found `{other}`"
        ))),
    }
}

fn number(line: &Line, expected: &Value) -> Result<Check, EvaluateError> {
    let finite = |value: &Value| match value {
        Value::String(text) => text.trim().replace(',', "").parse().ok().filter(|number: &f64| number.is_finite()),
        value => value.as_f64(),
    };
    let expected = finite(expected).ok_or_else(|| line.wrong("expected", "a number", expected))?;
    let tolerance = match line.get("tolerance") {
        // What decimal fractions lose in binary ones.
        None => 1e-9 * expected.abs(),
        Some(value) => finite(value)
            .filter(|tolerance| *tolerance >= 0.0)
            .ok_or_else(|| line.wrong("tolerance", "a number that is not negative", value))?,
    };
    Ok(Check::Number { expected, tolerance })
}

/// The constraints of a line, and the names of those that can't be checked.
fn constraints(line: &Line) -> Result<(Vec<Check>, Vec<String>), EvaluateError> {
    const NAMES: &str = "instruction_id_list";
    let Some(names) = line.get(NAMES) else { return Ok((Vec::new(), Vec::new())) };
    let list: Option<Vec<&str>> = names.as_array().and_then(|all| all.iter().map(Value::as_str).collect());
    let list = list.filter(|list| !list.is_empty()).ok_or_else(|| line.wrong(NAMES, "a list of names", names))?;
    let arguments = match line.get("kwargs") {
        None => vec![Value::Null; list.len()],
        Some(Value::Array(arguments)) if arguments.len() == list.len() => arguments.clone(),
        Some(other) => return Err(line.wrong("kwargs", &format!("a list of {} objects", list.len()), other)),
    };
    let (mut checks, mut missing) = (Vec::new(), Vec::new());
    for (name, arguments) in list.into_iter().zip(&arguments) {
        match Constraint::new(name, arguments) {
            Ok(constraint) => checks.push(Check::Constraint(constraint)),
            Err(ConstraintError::Unsupported) => missing.push(name.into()),
            Err(ConstraintError::Unknown) => {
                let name = describe(&Value::from(name));
                return Err(line.problem(format!("expected a constraint's name in `{NAMES}`, found {name}")));
            }
            Err(ConstraintError::Arguments(problem)) => return Err(line.problem(format!("`{name}`: {problem}"))),
        }
    }
    Ok((checks, missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"id": "a-1", "family": "a", "prompt": "Say yes.", "expected": "yes"}

{"id": "b-1", "family": "b", "prompt": "Say no.", "expected": "no", "more": 1}
"#;

    fn one(line: &str) -> Instruction {
        parse_instructions(line).unwrap().all.remove(0)
    }

    #[test]
    fn instructions_are_read_line_by_line() {
        let all = parse_instructions(LINES).unwrap().all;
        assert_eq!(all.len(), 2);
        assert_eq!((all[1].family.as_str(), all[1].reference.as_deref()), ("b", Some("no")));
        assert_eq!(all[0].tokens_max, ANSWER_TOKENS);
        assert!(matches!(parse_instructions("\n \n"), Err(EvaluateError::NoInstructions)));
    }

    #[test]
    fn kinds_of_checks_are_read() {
        let passes = |line: &str, answer: &str| one(line).checks.iter().all(|check| check.passes(answer));
        let contains = r#"{"prompt": "p", "check": "contains", "expected": ["a", "b"]}"#;
        assert!(passes(contains, "b a") && !passes(contains, "a"));
        let json = r#"{"prompt": "p", "check": "json", "expected": {"a": 1}}"#;
        assert!(passes(json, "{\"a\": 1}") && one(json).reference.is_none() && one(json).family == "json");
        assert!(passes(r#"{"prompt": "p", "check": "json", "expected": "[1]"}"#, "[1.0]"));
        assert!(passes(r#"{"prompt": "p", "check": "number", "expected": "1,000"}"#, "It is 1000."));
        assert!(passes(r#"{"prompt": "p", "check": "number", "expected": 3, "tolerance": 0.5}"#, "2.6"));
        assert!(passes(r#"{"prompt": "p", "check": "regex", "expected": "^\\d+$"}"#, "12"));
        let both = r#"{"key": 7, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}],
            "check": "contains", "expected": "x", "max_tokens": 9, "reference": "x y"}"#
            .replace('\n', "");
        assert!(passes(&both, "x") && !passes(&both, "x,") && !passes(&both, "y"));
        let both = one(&both);
        assert_eq!((both.id.as_str(), both.tokens_max, both.reference.as_deref()), ("7", 9, Some("x y")));
    }

    #[test]
    fn broken_lines_are_told_with_what_was_expected_and_found() {
        for (line, parts) in [
            ("{\"id\": 3", "expected a JSON object, found `{\"id\": 3`: EOF"),
            ("[1]", "expected a JSON object, found the list `[1]`"),
            ("{}", "expected the field `prompt`, found nothing"),
            (r#"{"prompt": "p", "id": "a"}"#, "expected the field `expected`, found `id`, `prompt`"),
            (r#"{"id": "b-1", "prompt": "p", "expected": "a"}"#, "the id `b-1` is that of line 3 already"),
            (r#"{"prompt": 1, "expected": "a"}"#, "expected `prompt` to be a string, found the number `1`"),
            (r#"{"prompt": "p", "expected": 4}"#, "expected `expected` to be a string, found the number `4`"),
            (r#"{"prompt": "p", "expected": "a", "check": "fuzzy"}"#, "found `fuzzy`"),
            (r#"{"prompt": "p", "expected": "(", "check": "regex"}"#, "found `(`: unclosed group"),
            (r#"{"prompt": "p", "expected": "x", "check": "number"}"#, "expected `expected` to be a number"),
            (r#"{"prompt": "p", "expected": "{", "check": "json"}"#, "to be JSON, as a value or inside a string"),
            (r#"{"prompt": "p", "expected": [], "check": "contains"}"#, "a string or a list of strings"),
            (r#"{"prompt": "p", "expected": "a", "max_tokens": 0}"#, "a number from 1 to"),
            (r#"{"prompt": "p", "instruction_id_list": ["a:b"], "kwargs": [{}]}"#, "found the string `\"a:b\"`"),
            (
                r#"{"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}"#,
                "expected `kwargs` to be a list of 1 objects",
            ),
            (
                r#"{"prompt": "p", "instruction_id_list": ["length_constraints:number_words"], "kwargs": [{}]}"#,
                "`length_constraints:number_words`: expected `relation` to be `less than` or `at least`, found null",
            ),
        ] {
            let error = parse_instructions(&format!("{LINES}{line}\n")).unwrap_err().to_string();
            assert!(error.starts_with("line 4: ") && error.contains(parts), "{error}");
        }
    }

    #[test]
    fn lines_that_cannot_be_checked_are_left_out_and_told() {
        let language = r#"{"prompt": "p", "instruction_id_list": ["language:response_language"], "kwargs": [{}]}"#;
        let read = parse_instructions(&format!("{LINES}{language}\n")).unwrap();
        assert_eq!(read.all.len(), 2);
        let constraint = "language:response_language".to_owned();
        assert_eq!(read.unsupported, [Unsupported { line: 4, constraint }]);
        assert!(parse_instructions(language).unwrap_err().to_string().contains("can't be checked"));
    }
}
