//! A vocabulary as GGUF files hold it.

use crate::added::AddedTokens;
use crate::bpe::{Bpe, BpeOptions};
use crate::error::TextError;
use crate::kind::{TokenKind, byte_of};
use crate::merges::{self, Merge, MergeTable};
use crate::pieces::{PieceIndex, Pieces};
use crate::tokenizer::{Parts, Tokenizer};

/// A vocabulary in the terms of GGUF's `tokenizer.ggml.*` keys.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// `tokens`: the string of each id.
    pub tokens: Pieces,
    /// `scores`: for each id; higher ones merge first.
    pub scores: Option<Vec<f32>>,
    /// `token_type`: for each id, numbered as [`TokenKind`]. Without it the kinds are told by the strings.
    pub types: Option<Vec<i32>>,
    /// `merges`: pairs such as `▁t he`, the first merge first. Without it the scores say what merges.
    pub merges: Option<Pieces>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`, and other ids that end an answer.
    pub eos: Vec<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: bool,
    /// `add_space_prefix`: whether a space goes before the text, and before text after a special token. Gemma has
    /// none.
    pub add_space_prefix: bool,
}

impl Vocabulary {
    pub(crate) fn into_tokenizer(self) -> Result<Tokenizer, TextError> {
        self.check()?;
        let kinds = self.kinds()?;
        let pieces = self.normalized_pieces(&kinds);
        let mut index = PieceIndex::with_capacity(pieces.len());
        for id in 0..pieces.len() as u32 {
            if kinds[id as usize] != TokenKind::Unused {
                // Of two entries with one string the first is produced, as in a map that is filled once.
                index.insert(&pieces, id);
            }
        }
        let merges = match (&self.merges, &self.scores) {
            (Some(merges), _) => read_merges(merges, &pieces, &index)?,
            (None, Some(scores)) => merges::derive(&pieces, &index, &kinds, scores)?,
            (None, None) => return Err(TextError::vocabulary("expected scores or merges, found neither")),
        };
        let by_kind = kinds.iter().position(|kind| *kind == TokenKind::Unknown).map(|id| id as u32);
        let options = BpeOptions {
            unknown: self.unknown.or(by_kind),
            fuse_unknown: true,
            byte_fallback: true,
            ignore_merges: false,
        };
        let bpe = Bpe::new(&pieces, &index, merges, options);
        let matched = pieces.iter().zip(&kinds).zip(0..).filter_map(|((piece, kind), id)| {
            (kind.is_special() || *kind == TokenKind::UserDefined).then_some((piece, id, kind.is_special()))
        });
        let added = AddedTokens::new(matched);
        let bos = self.bos.or_else(|| index.get(&pieces, "<bos>"));
        Ok(Tokenizer::from_parts(Parts {
            bpe,
            added,
            added_normalized: AddedTokens::new(std::iter::empty::<(&str, u32, bool)>()),
            bos,
            eos: self.eos,
            add_bos: self.add_bos,
            add_space_prefix: self.add_space_prefix,
            pieces,
            index,
            kinds,
        }))
    }

    /// Whether the lists have one length and the ids are inside.
    fn check(&self) -> Result<(), TextError> {
        let tokens = self.tokens.len();
        if tokens == 0 {
            return Err(TextError::vocabulary("expected tokens, found none"));
        }
        let lists =
            [("scores", self.scores.as_ref().map(Vec::len)), ("token types", self.types.as_ref().map(Vec::len))];
        for (name, length) in lists {
            if let Some(length) = length.filter(|length| *length != tokens) {
                return Err(TextError::vocabulary(format!("expected {tokens} {name}, found {length}")));
            }
        }
        let ids = self.bos.iter().chain(&self.eos).chain(&self.unknown);
        match ids.copied().find(|id| *id as usize >= tokens) {
            Some(id) => Err(TextError::vocabulary(format!("id {id} is outside the vocabulary of {tokens} tokens"))),
            None => Ok(()),
        }
    }

    /// The kind of each token, as Hugging Face's file has it.
    fn kinds(&self) -> Result<Vec<TokenKind>, TextError> {
        let published = self.tokens.iter().any(|piece| piece == "<unused0>");
        let mut kinds = Vec::with_capacity(self.tokens.len());
        for (id, piece) in self.tokens.iter().enumerate() {
            let given = match &self.types {
                Some(types) => TokenKind::from_number(types[id].into()).ok_or_else(|| {
                    TextError::vocabulary(format!("token {id}: expected a token type from 1 to 6, found {}", types[id]))
                })?,
                None => self.guess_kind(id as u32, piece),
            };
            kinds.push(TokenKind::settle(given, piece, published));
        }
        Ok(kinds)
    }

    /// What a piece without a type is.
    fn guess_kind(&self, id: u32, piece: &str) -> TokenKind {
        const CONTROL: [&str; 3] = ["<pad>", "<eos>", "<bos>"];
        if self.unknown == Some(id) || piece == "<unk>" {
            TokenKind::Unknown
        } else if self.bos == Some(id) || self.eos.contains(&id) || CONTROL.contains(&piece) {
            TokenKind::Control
        } else if byte_of(piece).is_some() {
            TokenKind::Byte
        } else if piece.chars().all(|character| character == '\n') {
            TokenKind::UserDefined
        } else {
            TokenKind::Normal
        }
    }

    /// The strings, with `▁` for spaces: llama.cpp's converter writes user-defined runs of spaces as spaces.
    fn normalized_pieces(&self, kinds: &[TokenKind]) -> Pieces {
        let mut pieces = Pieces::new();
        for (piece, kind) in self.tokens.iter().zip(kinds) {
            match kind {
                TokenKind::UserDefined if piece.contains(' ') => pieces.push(&piece.replace(' ', "▁")),
                _ => pieces.push(piece),
            }
        }
        pieces
    }
}

/// Merges written as `left right`.
fn read_merges(merges: &Pieces, pieces: &Pieces, index: &PieceIndex) -> Result<MergeTable, TextError> {
    let mut table = MergeTable::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        let parts =
            merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '));
        let (left, right) = parts
            .ok_or_else(|| TextError::vocabulary(format!("merge {rank}: expected `left right`, found `{merge}`")))?;
        let id = |piece: &str| {
            let missing = || TextError::vocabulary(format!("merge {rank}: `{piece}` is not in the vocabulary"));
            index.get(pieces, piece).ok_or_else(missing)
        };
        let merged = id(&format!("{left}{right}"))?;
        table.insert(Merge { left: id(left)?, right: id(right)?, rank: rank as u32, merged });
    }
    Ok(table)
}
