//! Constraints on the form of an answer, as the IFEval benchmark has them (Zhou et al., 2023, arXiv:2311.07911).
//!
//! Names and meanings are those of its data: `instruction_id_list` names the constraints, `kwargs` their numbers and
//! texts. Three are told by simpler means than there, without a model of language: sentences end where `.`, `!` or `?`
//! stands before white space; capital words are words whose letters are all capital; answers in capital or small
//! letters need not be English. The language of an answer is not told at all.

use std::collections::HashSet;
use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::without_fence;

/// How a count is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Fewer than the number.
    LessThan,
    /// The number or more.
    AtLeast,
}

/// A constraint on the form of an answer. An empty answer keeps none.
#[derive(Clone, Debug)]
pub enum Constraint {
    /// `keywords:existence`: each of the words occurs, in capital or small letters, also within other words.
    Keywords(Vec<Regex>),
    /// `keywords:forbidden_words`: none of these occurs as a word of its own.
    Forbidden(Vec<Regex>),
    /// `keywords:frequency`: how often a word occurs, also within other words.
    KeywordFrequency(Regex, Relation, usize),
    /// `keywords:letter_frequency`: how often a character occurs, in capital or small letters.
    LetterFrequency(char, Relation, usize),
    /// `length_constraints:number_words`.
    Words(Relation, usize),
    /// `length_constraints:number_sentences`.
    Sentences(Relation, usize),
    /// `length_constraints:number_paragraphs`: exactly so many, with `***` between them.
    Paragraphs(usize),
    /// `length_constraints:nth_paragraph_first_word`: exactly so many paragraphs, with empty lines between them, and
    /// the one of that number (from 1) begins with a word.
    ParagraphStart {
        /// How many paragraphs.
        paragraphs: usize,
        /// Which of them.
        number: usize,
        /// Its first word in small letters, without the punctuation after it.
        word: String,
    },
    /// `detectable_content:number_placeholders`: at least so many texts in square brackets.
    Placeholders(usize),
    /// `detectable_content:postscript`: a postscript with this mark: `P.S.`, `P.P.S` or another text.
    Postscript(Regex),
    /// `detectable_format:number_bullet_lists`: exactly so many lines that begin with `*` or `-`.
    Bullets(usize),
    /// `detectable_format:constrained_response`: says one of `My answer is yes.`, `… no.` and `… maybe.`.
    YesNoMaybe,
    /// `detectable_format:number_highlighted_sections`: at least so many texts between `*`, one or two each.
    Highlights(usize),
    /// `detectable_format:multiple_sections`: at least so many headings of this word and a number.
    Sections(Regex, usize),
    /// `detectable_format:json_format`: JSON, in a fence of Markdown or not.
    Json,
    /// `detectable_format:title`: a title in `<<` and `>>`.
    Title,
    /// `combination:two_responses`: two different answers with `******` between them.
    TwoResponses,
    /// `combination:repeat_prompt`: begins with this text.
    Repeat(String),
    /// `startend:end_checker`: ends with this text.
    End(String),
    /// `startend:quotation`: in double quotation marks.
    Quotation,
    /// `change_case:capital_word_frequency`: how many words have capital letters only.
    CapitalWords(Relation, usize),
    /// `change_case:english_capital`: no small letters.
    Capital,
    /// `change_case:english_lowercase`: no capital letters.
    Lowercase,
    /// `punctuation:no_comma`.
    NoComma,
}

/// Why a constraint can't be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConstraintError {
    /// It is one that can't be checked here.
    Unsupported,
    /// There is none of that name.
    Unknown,
    /// What is wrong with its numbers and texts.
    Arguments(String),
}

static WORD: LazyLock<Regex> = LazyLock::new(|| fixed(r"\w+"));
static BULLET: LazyLock<Regex> = LazyLock::new(|| fixed(r"(?m)^\s*(?:\*[^*]|-).*$"));
static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| fixed(r"\[.*?\]"));
static HIGHLIGHT: LazyLock<Regex> = LazyLock::new(|| fixed(r"\*([^\n*]*)\*"));
static DOUBLE_HIGHLIGHT: LazyLock<Regex> = LazyLock::new(|| fixed(r"\*\*([^\n*]*)\*\*"));
static TITLE: LazyLock<Regex> = LazyLock::new(|| fixed(r"<<[^\n]+>>"));
static DIVIDER: LazyLock<Regex> = LazyLock::new(|| fixed(r"\s?\*\*\*\s?"));

fn fixed(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the expression is valid")
}

/// The numbers and texts of a constraint.
struct Arguments<'a>(&'a Value);

impl Arguments<'_> {
    fn count(&self, key: &str) -> Result<usize, ConstraintError> {
        let value = &self.0[key];
        // Data that went through a table of floats has 3.0 for 3.
        let whole = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..1e9).contains(number));
        whole.map(|number| number as usize).ok_or_else(|| wrong(key, "a whole number", value))
    }

    fn text(&self, key: &str) -> Result<&str, ConstraintError> {
        let value = &self.0[key];
        value.as_str().filter(|text| !text.is_empty()).ok_or_else(|| wrong(key, "a string", value))
    }

    fn texts(&self, key: &str) -> Result<Vec<&str>, ConstraintError> {
        let value = &self.0[key];
        let texts: Option<Vec<_>> = value.as_array().and_then(|all| all.iter().map(Value::as_str).collect());
        texts.filter(|all| !all.is_empty()).ok_or_else(|| wrong(key, "a list of strings", value))
    }

    fn relation(&self, key: &str) -> Result<Relation, ConstraintError> {
        match &self.0[key] {
            Value::String(text) if text == "less than" => Ok(Relation::LessThan),
            Value::String(text) if text == "at least" => Ok(Relation::AtLeast),
            other => Err(wrong(key, "`less than` or `at least`", other)),
        }
    }
}

fn wrong(key: &str, expected: &str, found: &Value) -> ConstraintError {
    ConstraintError::Arguments(format!("expected `{key}` to be {expected}, found {}", crate::lines::describe(found)))
}

/// An expression for a text as it is, in capital or small letters.
fn literal(before: &str, text: &str, after: &str) -> Result<Regex, ConstraintError> {
    let pattern = format!("{before}{}{after}", regex::escape(text));
    let built = RegexBuilder::new(&pattern).case_insensitive(true).multi_line(true).build();
    built.map_err(|error| ConstraintError::Arguments(error.to_string()))
}

impl Constraint {
    /// The constraint of a name in IFEval's data, with its arguments.
    pub(crate) fn new(name: &str, arguments: &Value) -> Result<Constraint, ConstraintError> {
        let with = Arguments(arguments);
        let literals = |key, border: &str| -> Result<Vec<Regex>, ConstraintError> {
            with.texts(key)?.into_iter().map(|text| literal(border, text, border)).collect()
        };
        Ok(match name {
            "keywords:existence" => Constraint::Keywords(literals("keywords", "")?),
            "keywords:forbidden_words" => Constraint::Forbidden(literals("forbidden_words", r"\b")?),
            "keywords:frequency" => {
                let keyword = literal("", with.text("keyword")?, "")?;
                Constraint::KeywordFrequency(keyword, with.relation("relation")?, with.count("frequency")?)
            }
            "keywords:letter_frequency" => {
                let letter = with.text("letter")?.to_lowercase().chars().next().unwrap_or_default();
                Constraint::LetterFrequency(letter, with.relation("let_relation")?, with.count("let_frequency")?)
            }
            "length_constraints:number_words" => {
                Constraint::Words(with.relation("relation")?, with.count("num_words")?)
            }
            "length_constraints:number_sentences" => {
                Constraint::Sentences(with.relation("relation")?, with.count("num_sentences")?)
            }
            "length_constraints:number_paragraphs" => Constraint::Paragraphs(with.count("num_paragraphs")?),
            "length_constraints:nth_paragraph_first_word" => Constraint::ParagraphStart {
                paragraphs: with.count("num_paragraphs")?,
                number: with.count("nth_paragraph")?,
                word: with.text("first_word")?.to_lowercase(),
            },
            "detectable_content:number_placeholders" => Constraint::Placeholders(with.count("num_placeholders")?),
            "detectable_content:postscript" => Constraint::Postscript(postscript(with.text("postscript_marker")?)?),
            "detectable_format:number_bullet_lists" => Constraint::Bullets(with.count("num_bullets")?),
            "detectable_format:constrained_response" => Constraint::YesNoMaybe,
            "detectable_format:number_highlighted_sections" => Constraint::Highlights(with.count("num_highlights")?),
            "detectable_format:multiple_sections" => {
                Constraint::Sections(section(with.text("section_spliter")?)?, with.count("num_sections")?)
            }
            "detectable_format:json_format" => Constraint::Json,
            "detectable_format:title" => Constraint::Title,
            "combination:two_responses" => Constraint::TwoResponses,
            "combination:repeat_prompt" => Constraint::Repeat(normal(with.text("prompt_to_repeat")?)),
            "startend:end_checker" => Constraint::End(normal(with.text("end_phrase")?)),
            "startend:quotation" => Constraint::Quotation,
            "change_case:capital_word_frequency" => {
                Constraint::CapitalWords(with.relation("capital_relation")?, with.count("capital_frequency")?)
            }
            "change_case:english_capital" => Constraint::Capital,
            "change_case:english_lowercase" => Constraint::Lowercase,
            "punctuation:no_comma" => Constraint::NoComma,
            "language:response_language" => return Err(ConstraintError::Unsupported),
            _ => return Err(ConstraintError::Unknown),
        })
    }

    /// Whether an answer keeps it.
    pub fn is_kept(&self, answer: &str) -> bool {
        !answer.trim().is_empty() && self.fits(answer)
    }

    fn fits(&self, answer: &str) -> bool {
        let trimmed = answer.trim();
        match self {
            Constraint::Keywords(words) => words.iter().all(|word| word.is_match(answer)),
            Constraint::Forbidden(words) => !words.iter().any(|word| word.is_match(answer)),
            Constraint::KeywordFrequency(word, relation, count) => {
                relation.holds(word.find_iter(answer).count(), *count)
            }
            Constraint::LetterFrequency(letter, relation, count) => {
                relation.holds(answer.to_lowercase().chars().filter(|c| c == letter).count(), *count)
            }
            Constraint::Words(relation, count) => relation.holds(WORD.find_iter(answer).count(), *count),
            Constraint::Sentences(relation, count) => relation.holds(sentences(answer), *count),
            Constraint::Paragraphs(count) => parts(&DIVIDER.split(answer).collect::<Vec<_>>()) == Some(*count),
            Constraint::ParagraphStart { paragraphs, number, word } => starts(answer, *paragraphs, *number, word),
            Constraint::Placeholders(count) => PLACEHOLDER.find_iter(answer).count() >= *count,
            Constraint::Postscript(mark) => mark.is_match(answer),
            Constraint::Bullets(count) => BULLET.find_iter(answer).count() == *count,
            Constraint::YesNoMaybe => {
                ["yes", "no", "maybe"].iter().any(|word| answer.contains(&format!("My answer is {word}.")))
            }
            Constraint::Highlights(count) => highlights(answer) >= *count,
            Constraint::Sections(heading, count) => heading.find_iter(answer).count() >= *count,
            Constraint::Json => serde_json::from_str::<Value>(without_fence(answer)).is_ok(),
            Constraint::Title => {
                let text = |title: &str| !title.trim_start_matches('<').trim_end_matches('>').trim().is_empty();
                TITLE.find_iter(answer).any(|title| text(title.as_str()))
            }
            Constraint::TwoResponses => two_responses(answer),
            Constraint::Repeat(text) => normal(answer).starts_with(text),
            Constraint::End(text) => trimmed.trim_matches('"').to_lowercase().ends_with(text),
            Constraint::Quotation => trimmed.len() > 1 && trimmed.starts_with('"') && trimmed.ends_with('"'),
            Constraint::CapitalWords(relation, count) => relation.holds(capital_words(answer), *count),
            Constraint::Capital => is_capital(answer),
            Constraint::Lowercase => answer.chars().any(char::is_lowercase) && !answer.chars().any(char::is_uppercase),
            Constraint::NoComma => !answer.contains(','),
        }
    }
}

impl Relation {
    fn holds(self, found: usize, number: usize) -> bool {
        match self {
            Relation::LessThan => found < number,
            Relation::AtLeast => found >= number,
        }
    }
}

/// What texts are compared by.
fn normal(text: &str) -> String {
    text.trim().to_lowercase()
}

fn postscript(mark: &str) -> Result<Regex, ConstraintError> {
    Ok(match mark {
        "P.S." => fixed(r"(?i)p\.\s?s\."),
        "P.P.S" => fixed(r"(?i)p\.\s?p\.\s?s"),
        mark => literal("", mark, "")?,
    })
}

/// The heading of a section: told apart by case, as in IFEval.
fn section(word: &str) -> Result<Regex, ConstraintError> {
    let pattern = format!(r"{}\s?\d+", regex::escape(word));
    Regex::new(&pattern).map_err(|error| ConstraintError::Arguments(error.to_string()))
}

/// Texts that end where `.`, `!` or `?`, and closing quotation marks or brackets, stand before white space or the end.
fn sentences(text: &str) -> usize {
    let ends = |word: &&str| word.trim_end_matches(['"', '\'', ')', ']', '”', '’']).ends_with(['.', '!', '?']);
    let open = text.split_whitespace().next_back().is_some_and(|word| !ends(&word));
    text.split_whitespace().filter(ends).count() + usize::from(open)
}

/// How many parts are not empty; `None` if an empty one is between others.
fn parts(parts: &[&str]) -> Option<usize> {
    let full = |part: &&str| !part.trim().is_empty();
    let inner = parts.get(1..parts.len().saturating_sub(1)).unwrap_or_default();
    inner.iter().all(full).then(|| parts.iter().filter(|part| full(part)).count())
}

fn starts(answer: &str, paragraphs: usize, number: usize, word: &str) -> bool {
    let all: Vec<&str> = answer.split("\n\n").collect();
    let count = all.iter().filter(|paragraph| !paragraph.trim().is_empty()).count();
    // The number is one among all pieces, empty ones too, as in IFEval.
    if count != paragraphs || !(1..=count).contains(&number) {
        return false;
    }
    let first = all[number - 1].split_whitespace().next().unwrap_or_default();
    let first = first.trim_start_matches('\'').trim_start_matches('"');
    let end = first.find(['.', ',', '?', '!', '\'', '"']).unwrap_or(first.len());
    !first.is_empty() && first[..end].to_lowercase() == word
}

fn highlights(answer: &str) -> usize {
    let count =
        |expression: &Regex| expression.captures_iter(answer).filter(|found| !found[1].trim().is_empty()).count();
    count(&HIGHLIGHT) + count(&DOUBLE_HIGHLIGHT)
}

fn two_responses(answer: &str) -> bool {
    let all: Vec<&str> = answer.split("******").collect();
    let texts: HashSet<&str> = all.iter().map(|text| text.trim()).filter(|text| !text.is_empty()).collect();
    parts(&all) == Some(2) && texts.len() == 2
}

/// Words of which all letters are capital ones. Hyphens and apostrophes do not end a word.
fn capital_words(answer: &str) -> usize {
    let border = |c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_' | '\'' | '’'));
    answer.split(border).filter(|word| is_capital(word)).count()
}

fn is_capital(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_before_white_space() {
        for (text, expected) in [
            ("", 0),
            ("One. Two! Three?", 3),
            ("Pi is 3.14, e is 2.7", 1),
            ("He said \"Stop.\" And (then.) went\n\non", 3),
            ("Wait... what?!", 2),
        ] {
            assert_eq!(sentences(text), expected, "{text}");
        }
    }

    #[test]
    fn capital_words_have_no_small_letters() {
        for (text, expected) in [("", 0), ("A SHIP, ships and the U-2 or 7", 3), ("DON'T Do that", 1), ("ÄÖ ß Ü", 2)]
        {
            assert_eq!(capital_words(text), expected, "{text}");
        }
    }

    #[test]
    fn arguments_are_checked() {
        use serde_json::json;
        let new = |name, arguments| Constraint::new(name, &arguments).unwrap_err();
        assert_eq!(new("language:response_language", json!({})), ConstraintError::Unsupported);
        assert_eq!(new("length_constraints", json!({})), ConstraintError::Unknown);
        let wrong = new("detectable_format:number_bullet_lists", json!({ "num_bullets": 1.5 }));
        let text = "expected `num_bullets` to be a whole number, found the number `1.5`";
        assert_eq!(wrong, ConstraintError::Arguments(text.into()));
        assert!(Constraint::new("detectable_format:number_bullet_lists", &json!({ "num_bullets": 3.0 })).is_ok());
    }
}
