//! The crate's errors.

/// What can go wrong when a tokenizer or a chat template is read or used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// `tokenizer.json` or `tokenizer_config.json` is not the JSON that is expected.
    #[error("`{file}` is not valid: {source}")]
    Json {
        /// Which file.
        file: &'static str,
        /// What the JSON reader says, with line and column.
        source: serde_json::Error,
    },
    /// `tokenizer.model` is not a SentencePiece model.
    #[error("`tokenizer.model` is not a valid SentencePiece model: {what} at byte {at}")]
    Protobuf {
        /// What is wrong.
        what: &'static str,
        /// Offset in the file.
        at: usize,
    },
    /// The tokenizer has a part that Gemma 3's tokenizers do not have.
    #[error("the tokenizer's {part} is not supported: expected {expected}, found {found}")]
    Unsupported {
        /// Which part of the tokenizer.
        part: &'static str,
        /// What Gemma 3 has there.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// The vocabulary, the merges or the added tokens contradict each other.
    #[error("the vocabulary is not valid: {what}")]
    Vocabulary {
        /// What is wrong.
        what: String,
    },
    /// The chat template cannot be parsed, or it refuses the messages.
    #[error("chat template: {what}")]
    Template {
        /// What Jinja or the template itself says.
        what: String,
    },
    /// The template changes message contents, and one of them contains the text of a special token.
    #[error(
        "the chat template rewrites message contents, so that the special token `{token}` typed in one of them \
         cannot be told from the template's own\n\nhint: allow special tokens in messages, or remove it"
    )]
    SpecialInContent {
        /// The special token's text.
        token: String,
    },
}

impl TextError {
    /// A contradiction in the vocabulary.
    pub(crate) fn vocabulary(what: impl Into<String>) -> TextError {
        TextError::Vocabulary { what: what.into() }
    }

    /// An error of the template engine, with the reason that a template gave to `raise_exception`.
    pub(crate) fn template(error: &minijinja::Error) -> TextError {
        let place = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
        let what = match error.detail() {
            Some(detail) => format!("{}: {detail}{place}", error.kind()),
            None => format!("{}{place}", error.kind()),
        };
        TextError::Template { what }
    }
}
