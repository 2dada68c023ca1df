//! Files of one JSON object per line, and what is wrong with a line.

use serde_json::{Map, Value};

use crate::EvaluateError;

/// An object and where it is.
pub(crate) struct Line {
    /// Its number in the file, from 1.
    pub(crate) number: usize,
    object: Map<String, Value>,
}

/// Reads all lines; empty ones are passed over.
pub(crate) fn read(jsonl: &str) -> impl Iterator<Item = Result<Line, EvaluateError>> {
    // Editors of Windows put a mark before the first line.
    let jsonl = jsonl.trim_start_matches('\u{feff}');
    let lines = jsonl.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(index, line)| Line::parse(index + 1, line))
}

impl Line {
    fn parse(number: usize, line: &str) -> Result<Line, EvaluateError> {
        match serde_json::from_str(line) {
            Ok(Value::Object(object)) => Ok(Line { number, object }),
            Ok(other) => Err(problem(number, format!("expected a JSON object, found {}", describe(&other)))),
            Err(error) => Err(problem(number, format!("expected a JSON object, found `{}`: {error}", short(line)))),
        }
    }

    /// A problem of this line.
    pub(crate) fn problem(&self, problem: String) -> EvaluateError {
        self::problem(self.number, problem)
    }

    /// A field that may be missing; null is the same as missing.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// A field that has to be there.
    pub(crate) fn required(&self, key: &str) -> Result<&Value, EvaluateError> {
        self.get(key).ok_or_else(|| {
            let keys: Vec<_> = self.object.keys().map(|key| format!("`{key}`")).collect();
            let found = if keys.is_empty() { "nothing".into() } else { keys.join(", ") };
            self.problem(format!("expected the field `{key}`, found {found}"))
        })
    }

    /// A string or a number as text; `None` if it is missing.
    pub(crate) fn text(&self, key: &str) -> Result<Option<String>, EvaluateError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    /// A string that has to be there.
    pub(crate) fn required_text(&self, key: &str) -> Result<String, EvaluateError> {
        match self.required(key)? {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.wrong(key, "a string", other)),
        }
    }

    /// A field is not what it should be.
    pub(crate) fn wrong(&self, key: &str, expected: &str, found: &Value) -> EvaluateError {
        self.problem(format!("expected `{key}` to be {expected}, found {}", describe(found)))
    }
}

pub(crate) fn problem(line: usize, problem: String) -> EvaluateError {
    EvaluateError::Line { line, problem }
}

/// A value in few words.
pub(crate) fn describe(value: &Value) -> String {
    let kind = match value {
        Value::Null => return "null".into(),
        Value::Bool(_) => "the boolean",
        Value::Number(_) => "the number",
        Value::String(_) => "the string",
        Value::Array(_) => "the list",
        Value::Object(_) => "the object",
    };
    format!("{kind} `{}`", short(&value.to_string()))
}

/// The beginning of a text.
pub(crate) fn short(text: &str) -> String {
    const CHARS: usize = 60;
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}
