//! The kinds of vocabulary entries.

/// What an entry of the vocabulary is. The numbers are SentencePiece's, which GGUF's
/// `tokenizer.ggml.token_type` uses too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TokenKind {
    /// A piece of text that merges produce.
    Normal = 1,
    /// What stands for text that cannot be encoded (`<unk>`); special.
    Unknown = 2,
    /// A special token (`<bos>`, `<start_of_turn>`): matched in text only when asked for.
    Control = 3,
    /// Text that is always one token (`\n\n`, `<table>`), matched before any merging.
    UserDefined = 4,
    /// A place holder: never produced.
    Unused = 5,
    /// One byte (`<0x0A>`) of a character that has no piece.
    Byte = 6,
}

impl TokenKind {
    /// The kind with SentencePiece's number, if there is one.
    pub fn from_number(number: i64) -> Option<TokenKind> {
        Some(match number {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }

    /// Whether it is a special token: not text, left out of answers, parsed only when asked for.
    pub fn is_special(self) -> bool {
        matches!(self, TokenKind::Control | TokenKind::Unknown)
    }

    /// The kind that Hugging Face's `tokenizer.json` of Gemma 3 gives to `piece`, where another file says
    /// `given`.
    ///
    /// The files disagree: SentencePiece knows `<start_of_turn>` only as user defined, and GGUF converters
    /// mark everything of the look of `<unused7>` and `<mask>` as control. Hugging Face has the turn and image
    /// markers as special and the unused ones as text; `<mask>` is text in the published vocabulary, which has
    /// `<unused0>` (`published`), and special in others.
    pub(crate) fn settle(given: TokenKind, piece: &str, published: bool) -> TokenKind {
        const MARKERS: [&str; 5] =
            ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"];
        match given {
            TokenKind::Normal | TokenKind::UserDefined if MARKERS.contains(&piece) => TokenKind::Control,
            TokenKind::Control | TokenKind::UserDefined if piece == "<mask>" => {
                if published {
                    TokenKind::UserDefined
                } else {
                    TokenKind::Control
                }
            }
            TokenKind::Control if is_unused(piece) => TokenKind::UserDefined,
            other => other,
        }
    }
}

fn is_unused(piece: &str) -> bool {
    let digits = piece.strip_prefix("<unused").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The byte that a piece such as `<0x0A>` stands for.
pub(crate) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 { None } else { u8::from_str_radix(digits, 16).ok() }
}
