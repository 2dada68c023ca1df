//! What makes an answer right.

mod constraint;

use regex::Regex;
use serde_json::Value;

pub(crate) use constraint::ConstraintError;
pub use constraint::{Constraint, Relation};

/// A condition that an answer meets or not.
#[derive(Clone, Debug)]
pub enum Check {
    /// It is this text, but for white space around it.
    Exact(String),
    /// It has each of these texts somewhere, upper and lower case told apart.
    Contains(Vec<String>),
    /// The expression matches somewhere.
    Regex(Regex),
    /// It is JSON, in a fence of Markdown or not, and equal to this: the order of keys does not count, `1` is `1.0`.
    Json(Value),
    /// The last number in it is this one. Commas between groups of three digits are passed over.
    Number {
        /// The number.
        expected: f64,
        /// The largest difference that counts as equal.
        tolerance: f64,
    },
    /// It keeps a constraint.
    Constraint(Constraint),
}

impl Check {
    /// Whether an answer meets the condition.
    pub fn passes(&self, answer: &str) -> bool {
        match self {
            Check::Exact(expected) => is_exact(answer, expected),
            Check::Contains(texts) => texts.iter().all(|text| answer.contains(text)),
            Check::Regex(expression) => expression.is_match(answer),
            Check::Json(expected) => {
                serde_json::from_str(without_fence(answer)).is_ok_and(|found: Value| is_same(&found, expected))
            }
            Check::Number { expected, tolerance } => {
                last_number(answer).is_some_and(|found| (found - expected).abs() <= *tolerance)
            }
            Check::Constraint(constraint) => constraint.is_kept(answer),
        }
    }
}

/// Whether an answer is the expected one: equal but for white space around it.
pub fn is_exact(answer: &str, expected: &str) -> bool {
    answer.trim() == expected.trim()
}

/// A text without the fence of Markdown that may be around it.
pub(crate) fn without_fence(text: &str) -> &str {
    let text = text.trim();
    let Some(inside) = text.strip_prefix("```") else { return text };
    let is_json = |name: &&str| name.eq_ignore_ascii_case("json");
    let inside = if inside.get(..4).as_ref().is_some_and(is_json) { &inside[4..] } else { inside };
    inside.strip_suffix("```").unwrap_or(inside).trim()
}

/// Equality of JSON values, numbers by what they are worth.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let found = |(key, value): (&String, &Value)| other.get(key).is_some_and(|other| is_same(value, other));
            one.len() == other.len() && one.iter().all(found)
        }
        (one, other) => one == other,
    }
}

/// The last number of a text: digits, with commas between groups of three, a fraction and a sign. `3.` at the end of a
/// sentence is 3, and the line of `20-30` is no sign.
fn last_number(text: &str) -> Option<f64> {
    let chars: Vec<char> = text.chars().collect();
    let digits = |place: usize| chars[place.min(chars.len())..].iter().take_while(|c| c.is_ascii_digit()).count();
    let (mut place, mut last) = (0, None);
    while place < chars.len() {
        if digits(place) == 0 {
            place += 1;
            continue;
        }
        let start = place;
        let mut number: String = chars[start..start + digits(start)].iter().collect();
        place += number.len();
        let is_first_group = number.len() <= 3;
        while is_first_group && chars.get(place) == Some(&',') && digits(place + 1) == 3 {
            number.extend(&chars[place + 1..place + 4]);
            place += 4;
        }
        if chars.get(place) == Some(&'.') && digits(place + 1) > 0 {
            let end = place + 1 + digits(place + 1);
            number.extend(&chars[place..end]);
            place = end;
        }
        let before = |back: usize| start.checked_sub(back).map(|place| chars[place]);
        let is_sign = matches!(before(1), Some('-' | '\u{2212}')) && before(2).is_none_or(|c| !c.is_alphanumeric());
        last = number.parse().ok().map(|value: f64| if is_sign { -value } else { value });
    }
    last
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_exact_but_for_white_space_around_them() {
        assert!(is_exact(" yes\n", "yes") && is_exact("a b", "a b\n"));
        assert!(!is_exact("Yes", "yes") && !is_exact("a  b", "a b") && !is_exact("yes.", "yes"));
    }

    #[test]
    fn texts_and_expressions_are_found_anywhere() {
        let contains = Check::Contains(vec!["Paris".into(), "Rome".into()]);
        assert!(contains.passes("Rome or Paris.") && !contains.passes("Paris") && !contains.passes("rome, Paris"));
        let regex = Check::Regex(Regex::new(r"(?i)\bpari\w+$").unwrap());
        assert!(regex.passes("It is PARIS") && !regex.passes("Paris, France"));
    }

    #[test]
    fn json_is_equal_by_value() {
        let check = Check::Json(json!({ "name": "Jane", "age": 77, "list": [1.5, null] }));
        for right in [
            r#"{"age": 77.0, "list": [1.5, null], "name": "Jane"}"#,
            "```json\n{\"name\":\"Jane\",\"age\":77,\"list\":[1.5,null]}\n```",
            "```\n{\"name\":\"Jane\",\"age\":77,\"list\":[1.5,null]}```  ",
        ] {
            assert!(check.passes(right), "{right}");
        }
        for wrong in [
            r#"{"age": 77, "name": "Jane"}"#,
            r#"{"age": "77", "list": [1.5, null], "name": "Jane"}"#,
            r#"{"age": 77, "list": [null, 1.5], "name": "Jane"}"#,
            r#"{"age": 77, "list": [1.5, null], "name": "Jane", "more": 1}"#,
            r#"Here: {"name": "Jane", "age": 77, "list": [1.5, null]}"#,
            "",
            "```é",
        ] {
            assert!(!check.passes(wrong), "{wrong}");
        }
    }

    #[test]
    fn the_last_number_counts() {
        for (text, expected) in [
            ("The sum of 3 and 4 is 7.", Some(7.0)),
            ("1,234,567.25 dollars", Some(1_234_567.25)),
            ("1234,567", Some(567.0)),
            ("12, 13", Some(13.0)),
            ("1,23", Some(23.0)),
            ("x = -4", Some(-4.0)),
            ("\u{2212}4", Some(-4.0)),
            ("20-30", Some(30.0)),
            ("a-5", Some(5.0)),
            ("0.5.", Some(0.5)),
            ("007", Some(7.0)),
            ("none", None),
            ("é9é", Some(9.0)),
        ] {
            assert_eq!(last_number(text), expected, "{text}");
        }
        let check = Check::Number { expected: 2.5, tolerance: 0.1 };
        assert!(check.passes("about 2.55") && !check.passes("2.7") && !check.passes(""));
    }
}
