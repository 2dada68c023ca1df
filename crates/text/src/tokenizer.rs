//! The tokenizer: text to ids and back.

use std::ops::Range;

use crate::added::{AddedTokens, Found};
use crate::bpe::{Bpe, SPACE, Scratch};
use crate::error::TextError;
use crate::kind::{TokenKind, byte_of};
use crate::merges;
use crate::pieces::{PieceIndex, Pieces};
use crate::vocabulary::Vocabulary;

/// What becomes of the text of a special token (`<bos>`, `<start_of_turn>`) inside a text to encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    /// It is text like any other (`tokenizers` with `encode_special_tokens=True`): what to do with input that is
    /// not trusted.
    Text,
    /// It becomes the special token.
    Parse,
}

/// An entry of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token<'a> {
    /// Its id.
    pub id: u32,
    /// Its string, with `▁` for spaces.
    pub piece: &'a str,
    /// The higher, the earlier merges make it; see [`Tokenizer::vocabulary`].
    pub score: f32,
    /// What it is.
    pub kind: TokenKind,
}

/// Gemma 3's tokenizer: byte-pair encoding from characters, `▁` for spaces, bytes for unknown characters.
///
/// It is read from `tokenizer.json` ([`from_json`](Tokenizer::from_json)), from SentencePiece's `tokenizer.model`
/// ([`from_sentencepiece`](Tokenizer::from_sentencepiece)) or from the metadata of a GGUF file
/// ([`from_vocabulary`](Tokenizer::from_vocabulary)), and gives the ids of Hugging Face's `tokenizers` library.
pub struct Tokenizer {
    pieces: Pieces,
    index: PieceIndex,
    kinds: Vec<TokenKind>,
    bpe: Bpe,
    /// Matched in the raw text.
    added: AddedTokens,
    /// Matched in what is left, after spaces became `▁`.
    added_normalized: AddedTokens,
    bos: Option<u32>,
    eos: Vec<u32>,
    add_bos: bool,
    add_space_prefix: bool,
}

/// What the readers of the three file forms hand over.
pub(crate) struct Parts {
    pub(crate) pieces: Pieces,
    pub(crate) index: PieceIndex,
    pub(crate) kinds: Vec<TokenKind>,
    pub(crate) bpe: Bpe,
    pub(crate) added: AddedTokens,
    pub(crate) added_normalized: AddedTokens,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Vec<u32>,
    pub(crate) add_bos: bool,
    pub(crate) add_space_prefix: bool,
}

/// What to do with a special token that was found in the text.
pub(crate) enum Verdict {
    /// It is one.
    Token,
    /// It is text; look for other tokens from this byte on.
    TextUntil(usize),
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// If it is not JSON, contradicts itself, or is not a byte-pair encoder of Gemma 3's form.
    pub fn from_json(bytes: &[u8]) -> Result<Tokenizer, TextError> {
        crate::json::read(bytes)
    }

    /// Reads a SentencePiece `tokenizer.model` of the BPE type.
    ///
    /// # Errors
    /// If it is not a SentencePiece model, or one of another type than Gemma's.
    pub fn from_sentencepiece(bytes: &[u8]) -> Result<Tokenizer, TextError> {
        Tokenizer::from_vocabulary(crate::sentencepiece::read(bytes)?)
    }

    /// From the vocabulary that a GGUF file holds, as llama.cpp's converter writes it for Gemma 3
    /// (`tokenizer.ggml.model` = `llama`).
    ///
    /// # Errors
    /// If its lists differ in length, ids lie outside, or there are neither scores nor merges.
    pub fn from_vocabulary(vocabulary: Vocabulary) -> Result<Tokenizer, TextError> {
        vocabulary.into_tokenizer()
    }

    pub(crate) fn from_parts(parts: Parts) -> Tokenizer {
        let Parts { mut pieces, index, kinds, bpe, added, added_normalized, bos, mut eos, .. } = parts;
        pieces.shrink();
        eos.extend(["<eos>", "<end_of_turn>"].iter().filter_map(|name| index.get(&pieces, name)));
        eos.sort_unstable();
        eos.dedup();
        let Parts { add_bos, add_space_prefix, .. } = parts;
        Tokenizer { pieces, index, kinds, bpe, added, added_normalized, bos, eos, add_bos, add_space_prefix }
    }

    /// The ids of `text`, without a `<bos>` in front.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        self.encode_where(text, |found| match special {
            Special::Parse => Verdict::Token,
            Special::Text => Verdict::TextUntil(found.end),
        })
    }

    /// The ids of `text`, where `judge` decides about each special token that is found.
    pub(crate) fn encode_where(&self, text: &str, judge: impl Fn(Range<usize>) -> Verdict) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut scratch = Scratch::default();
        let mut prefix = self.add_space_prefix;
        let (mut plain, mut at) = (0, 0);
        while let Some(Found { start, end, id, special }) = self.added.find(text, at) {
            if special && let Verdict::TextUntil(resume) = judge(start..end) {
                at = resume;
                continue;
            }
            at = end;
            self.encode_plain(&text[plain..start], prefix, &mut scratch, &mut ids);
            ids.push(id);
            plain = end;
            prefix = self.add_space_prefix && special;
        }
        self.encode_plain(&text[plain..], prefix, &mut scratch, &mut ids);
        ids
    }

    /// Appends the ids of a text without added tokens; `prefix` puts a space before it.
    fn encode_plain(&self, text: &str, prefix: bool, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let Tokenizer { bpe, pieces, index, .. } = self;
        if self.added_normalized.is_empty() && !prefix {
            return bpe.encode(text, pieces, index, scratch, ids);
        }
        let prefix = if prefix { "▁" } else { "" };
        let text = format!("{prefix}{}", text.replace(' ', "▁"));
        let mut plain = 0;
        while let Some(found) = self.added_normalized.find(&text, plain) {
            bpe.encode(&text[plain..found.start], pieces, index, scratch, ids);
            ids.push(found.id);
            plain = found.end;
        }
        bpe.encode(&text[plain..], pieces, index, scratch, ids);
    }

    /// The text of `ids`. Ids outside the vocabulary are left out, and special tokens too if `skip_special`.
    ///
    /// Bytes in a row that are not valid UTF-8 become one U+FFFD each, all of the row, as in `tokenizers`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = crate::StreamingDetokenizer::new(self, skip_special);
        let mut text = String::new();
        for id in ids {
            detokenizer.push_to(*id, &mut text);
        }
        text.push_str(&detokenizer.flush());
        text
    }

    /// The id of `<bos>`, which comes before every prompt.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The ids that end an answer (`<eos>`, `<end_of_turn>`), sorted.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Whether a prompt gets a `<bos>` in front (a chat template writes its own).
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// The id of a piece, as it stands in the vocabulary (`▁` for spaces).
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.index.get(&self.pieces, piece)
    }

    /// The string of an id, as it stands in the vocabulary (`▁` for spaces, `<0x0A>` for bytes).
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id)
    }

    /// What an id is.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// The bytes that an id stands for in a text: spaces for `▁`, one byte for `<0x0A>`, a special token's name.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let piece = self.piece(id)?;
        match byte_of(piece) {
            Some(byte) => Some(vec![byte]),
            None => Some(piece.replace(SPACE, " ").into_bytes()),
        }
    }

    /// Number of ids.
    pub fn vocabulary_len(&self) -> usize {
        self.pieces.len()
    }

    /// All entries of the vocabulary in the order of their ids.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = Token<'_>> {
        let scores = merges::scores(&self.bpe.merges, &self.kinds);
        self.pieces.iter().enumerate().map(move |(id, piece)| Token {
            id: id as u32,
            piece,
            score: scores[id],
            kind: self.kinds[id],
        })
    }

    /// The vocabulary as llama.cpp's converter writes it into a GGUF of `rows` embedding rows: further rows get
    /// `[PAD…]` entries, entries without a row are dropped.
    ///
    /// llama.cpp has no merges for this kind of vocabulary: it merges the pair whose piece has the highest score.
    /// The scores here are minus the place of a piece in the order in which the merges first make the pieces, so
    /// that they give the same result where the merges are those that a SentencePiece vocabulary implies: all pairs
    /// whose pieces exist, ordered by piece. This holds for Gemma 3's `tokenizer.json`, which was made that way.
    /// Control entries are written as such, user-defined ones with spaces for `▁`, since llama.cpp matches them in
    /// the raw text.
    pub fn vocabulary(&self, rows: usize) -> Vocabulary {
        let mut vocabulary = Vocabulary { add_bos: self.add_bos, ..Vocabulary::default() };
        let (mut scores, mut types) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for token in self.tokens().take(rows) {
            match token.kind {
                TokenKind::UserDefined => vocabulary.tokens.push(&token.piece.replace(SPACE, " ")),
                _ => vocabulary.tokens.push(token.piece),
            }
            scores.push(token.score);
            types.push(token.kind as i32);
        }
        for row in vocabulary.tokens.len()..rows {
            vocabulary.tokens.push(&format!("[PAD{row}]"));
            scores.push(-1000.0);
            types.push(TokenKind::Unused as i32);
        }
        let in_range = |id: &u32| (*id as usize) < rows;
        vocabulary.scores = Some(scores);
        vocabulary.types = Some(types);
        vocabulary.bos = self.bos.filter(in_range);
        vocabulary.eos = self.eos.iter().copied().filter(in_range).collect();
        vocabulary.unknown = (0..rows as u32).find(|id| self.kind(*id) == Some(TokenKind::Unknown));
        vocabulary.add_space_prefix = self.add_space_prefix;
        vocabulary
    }

    /// What merges, for tests of the merging.
    #[cfg(test)]
    pub(crate) fn merges(&self) -> &merges::MergeTable {
        &self.bpe.merges
    }

    /// Some special token whose text is in `text`.
    pub(crate) fn special_in(&self, text: &str) -> Option<&str> {
        let mut from = 0;
        while let Some(found) = self.added.find(text, from) {
            if found.special {
                return self.piece(found.id);
            }
            from = found.end;
        }
        None
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer of {} pieces", self.pieces.len())
    }
}
