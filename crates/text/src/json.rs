//! Hugging Face's `tokenizer.json`.
//!
//! The file of Gemma 3 has 33 MB: 262,144 pieces and 514,906 merges. They are read into two arenas while the JSON
//! is parsed, without a tree of values, and resolved to ids afterwards.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::added::AddedTokens;
use crate::bpe::{Bpe, BpeOptions};
use crate::error::TextError;
use crate::kind::{TokenKind, byte_of};
use crate::merges::{Merge, MergeTable};
use crate::pieces::{PieceIndex, Pieces};
use crate::tokenizer::{Parts, Tokenizer};

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow, default)]
    added_tokens: Vec<Added<'a>>,
    normalizer: Option<Stage>,
    pre_tokenizer: Option<Stage>,
    post_processor: Option<PostProcessor>,
    decoder: Option<Stage>,
    model: Model,
}

#[derive(Deserialize)]
struct Added<'a> {
    id: u32,
    #[serde(borrow)]
    content: Cow<'a, str>,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

/// A normalizer, pre-tokenizer or decoder, or a sequence of them.
#[derive(Deserialize)]
struct Stage {
    r#type: String,
    pattern: Option<Pattern>,
    content: Option<String>,
    behavior: Option<String>,
    #[serde(default)]
    invert: bool,
    #[serde(default, alias = "normalizers", alias = "pretokenizers", alias = "decoders")]
    stages: Vec<Stage>,
}

#[derive(Deserialize)]
struct Pattern {
    #[serde(rename = "String")]
    string: Option<String>,
}

#[derive(Deserialize)]
struct PostProcessor {
    #[serde(default)]
    single: Vec<TemplatePart>,
}

#[derive(Deserialize)]
struct TemplatePart {
    #[serde(rename = "SpecialToken")]
    special: Option<TemplateToken>,
}

#[derive(Deserialize)]
struct TemplateToken {
    id: String,
}

#[derive(Deserialize)]
struct Model {
    r#type: Option<String>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Vocab,
    merges: Merges,
}

pub(crate) fn read(bytes: &[u8]) -> Result<Tokenizer, TextError> {
    if u32::try_from(bytes.len()).is_err() {
        return Err(TextError::vocabulary("expected a `tokenizer.json` below 4 GiB"));
    }
    let file: File =
        serde_json::from_slice(bytes).map_err(|source| TextError::Json { file: "tokenizer.json", source })?;
    check(&file)?;
    let File { added_tokens, post_processor, model, .. } = file;
    let mut pieces = model.vocab.into_pieces()?;
    let mut index = PieceIndex::with_capacity(pieces.len() + added_tokens.len());
    for id in 0..pieces.len() as u32 {
        if pieces.get(id) != Some("") && index.insert(&pieces, id).is_some() {
            let piece = pieces.get(id).unwrap_or_default();
            return Err(TextError::vocabulary(format!("the piece `{piece}` is there twice")));
        }
    }
    let merges = model.merges.resolve(&pieces, &index)?;
    let unknown = match &model.unk_token {
        Some(name) => Some(
            index
                .get(&pieces, name)
                .ok_or_else(|| TextError::vocabulary(format!("the unknown token `{name}` is not in it")))?,
        ),
        None => None,
    };
    let options = BpeOptions {
        unknown,
        fuse_unknown: model.fuse_unk,
        byte_fallback: model.byte_fallback,
        ignore_merges: model.ignore_merges,
    };
    let bpe = Bpe::new(&pieces, &index, merges, options);
    let added_tokens = place_added(added_tokens, &mut pieces, &mut index)?;
    let kinds = kinds(&pieces, &added_tokens, unknown);
    let template = post_processor.map(|processor| processor.single).unwrap_or_default();
    let first = template.into_iter().next().and_then(|part| part.special);
    let bos_in_template = first.as_ref().and_then(|token| index.get(&pieces, &token.id));
    let entries = |normalized| {
        let chosen = added_tokens.iter().filter(move |token| (token.normalized && !token.special) == normalized);
        chosen.map(move |token| match normalized {
            true => (token.content.replace(' ', "▁"), token.id, token.special),
            false => (token.content.to_string(), token.id, token.special),
        })
    };
    let (added, added_normalized) = (AddedTokens::new(entries(false)), AddedTokens::new(entries(true)));
    Ok(Tokenizer::from_parts(Parts {
        bos: bos_in_template.or_else(|| index.get(&pieces, "<bos>")),
        add_bos: bos_in_template.is_some(),
        eos: Vec::new(),
        add_space_prefix: false,
        pieces,
        index,
        kinds,
        bpe,
        added,
        added_normalized,
    }))
}

/// Whether every stage of the file is what this crate does.
fn check(file: &File) -> Result<(), TextError> {
    let unsupported = |part, expected, found: &str| Err(TextError::Unsupported { part, expected, found: found.into() });
    let model = &file.model;
    match model.r#type.as_deref() {
        None | Some("BPE") => (),
        Some(other) => return unsupported("model", "`BPE`", &format!("`{other}`")),
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return unsupported("dropout", "none", "some");
    }
    let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if let Some(affix) = affixes.into_iter().flatten().find(|affix| !affix.is_empty()) {
        return unsupported("prefix or suffix of pieces", "none", &format!("`{affix}`"));
    }
    let (normalizer, pre_tokenizer) = (describe(&file.normalizer), describe(&file.pre_tokenizer));
    if normalizer != "Replace(` ` by `▁`)" {
        return unsupported("normalizer", "Replace(` ` by `▁`)", &normalizer);
    }
    // After the normalizer there is no space left to split at.
    if !matches!(&*pre_tokenizer, "none" | "Split(at ` `, MergedWithPrevious)") {
        return unsupported("pre-tokenizer", "none, or Split(at ` `, MergedWithPrevious)", &pre_tokenizer);
    }
    let decoder = describe(&file.decoder);
    const DECODER: &str = "Replace(`▁` by ` `), ByteFallback, Fuse";
    if decoder != DECODER {
        return unsupported("decoder", DECODER, &decoder);
    }
    let odd = file.added_tokens.iter().find(|token| token.single_word || token.lstrip || token.rstrip);
    match odd {
        Some(token) => unsupported(
            "added token",
            "`single_word`, `lstrip` and `rstrip` false",
            &format!("one of them true for `{}`", token.content),
        ),
        None => Ok(()),
    }
}

/// The stages in a row, in short words; a long text is cut.
fn describe(stage: &Option<Stage>) -> String {
    fn add(stage: &Stage, words: &mut Vec<String>) {
        let pattern = stage.pattern.as_ref().and_then(|pattern| pattern.string.as_deref()).unwrap_or("?");
        match &*stage.r#type {
            "Sequence" => stage.stages.iter().for_each(|stage| add(stage, words)),
            "Replace" => {
                words.push(format!("Replace(`{pattern}` by `{}`)", stage.content.as_deref().unwrap_or_default()));
            }
            "Split" => {
                let invert = if stage.invert { ", inverted" } else { "" };
                words.push(format!("Split(at `{pattern}`, {}{invert})", stage.behavior.as_deref().unwrap_or("?")));
            }
            other => words.push(other.to_string()),
        }
    }
    let mut words = Vec::new();
    stage.iter().for_each(|stage| add(stage, &mut words));
    if words.is_empty() { "none".into() } else { words.join(", ").chars().take(200).collect() }
}

/// Gives each added token its id: that of the vocabulary, or a new one behind it.
fn place_added<'a>(
    mut added: Vec<Added<'a>>,
    pieces: &mut Pieces,
    index: &mut PieceIndex,
) -> Result<Vec<Added<'a>>, TextError> {
    added.sort_by_key(|token| token.id);
    let limit = 2 * (pieces.len() + added.len()) + 1024;
    for token in &added {
        let Added { id, content, .. } = token;
        match index.get(pieces, content) {
            Some(known) if known == *id => continue,
            Some(known) => {
                let what = format!("the added token `{content}` has id {id}, but {known} in the vocabulary");
                return Err(TextError::vocabulary(what));
            }
            None if (*id as usize) < pieces.len() => {
                return Err(TextError::vocabulary(format!("the id {id} of the added token `{content}` is taken")));
            }
            None if *id as usize >= limit => return Err(far_outside(*id, limit)),
            None if content.is_empty() => continue,
            None => {
                while pieces.len() < *id as usize {
                    pieces.push("");
                }
                pieces.push(content);
                index.insert(pieces, *id);
            }
        }
    }
    Ok(added)
}

fn far_outside(id: u32, limit: usize) -> TextError {
    TextError::vocabulary(format!("the id {id} is far outside: expected ids below {limit} for so many pieces"))
}

fn kinds(pieces: &Pieces, added: &[Added], unknown: Option<u32>) -> Vec<TokenKind> {
    let mut kinds: Vec<TokenKind> = pieces
        .iter()
        .map(|piece| match piece {
            "" => TokenKind::Unused,
            piece if byte_of(piece).is_some() => TokenKind::Byte,
            _ => TokenKind::Normal,
        })
        .collect();
    for token in added {
        if let Some(kind) = kinds.get_mut(token.id as usize) {
            *kind = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
        }
    }
    if let Some(kind) = unknown.and_then(|id| kinds.get_mut(id as usize)) {
        *kind = TokenKind::Unknown;
    }
    kinds
}

/// The map from piece to id, in the order of the file: strings in one arena.
struct Vocab {
    text: String,
    /// End in `text`, and id.
    entries: Vec<(u32, u32)>,
}

impl Vocab {
    /// The pieces in the order of their ids; ids without a piece get an empty one.
    fn into_pieces(self) -> Result<Pieces, TextError> {
        if self.entries.is_empty() {
            return Err(TextError::vocabulary("expected pieces, found none"));
        }
        let in_order = self.entries.iter().zip(0..).all(|(entry, id)| entry.1 == id);
        if in_order {
            return Ok(Pieces::from_arena(self.text, self.entries.into_iter().map(|entry| entry.0).collect()));
        }
        let starts = std::iter::once(0).chain(self.entries.iter().map(|entry| entry.0));
        let mut sorted: Vec<(u32, u32, u32)> =
            starts.zip(&self.entries).map(|(start, &(end, id))| (id, start, end)).collect();
        sorted.sort_unstable();
        let limit = 2 * sorted.len() + 1024;
        let mut pieces = Pieces::new();
        for (id, start, end) in sorted {
            if id as usize >= limit {
                return Err(far_outside(id, limit));
            }
            if (id as usize) < pieces.len() {
                return Err(TextError::vocabulary(format!("the id {id} is there twice")));
            }
            while pieces.len() < id as usize {
                pieces.push("");
            }
            pieces.push(&self.text[start as usize..end as usize]);
        }
        Ok(pieces)
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vocab, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Vocab;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from piece to id")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut vocab = Vocab { text: String::new(), entries: Vec::new() };
                while map.next_key_seed(Append(&mut vocab.text))?.is_some() {
                    vocab.entries.push((vocab.text.len() as u32, map.next_value()?));
                }
                Ok(vocab)
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// The merges, first to last: the two parts of each one after the other in one arena, so that what they merge to
/// stands there as well.
struct Merges {
    text: String,
    /// End of the left and of the right part in `text`.
    ends: Vec<(u32, u32)>,
}

impl Merges {
    fn resolve(self, pieces: &Pieces, index: &PieceIndex) -> Result<MergeTable, TextError> {
        let mut table = MergeTable::with_capacity(self.ends.len());
        let mut start = 0;
        for (rank, &(middle, end)) in self.ends.iter().enumerate() {
            let (middle, end) = (middle as usize, end as usize);
            let id = |piece: &str| {
                let missing = || TextError::vocabulary(format!("merge {rank}: `{piece}` is not a piece"));
                index.get(pieces, piece).ok_or_else(missing)
            };
            let left = id(&self.text[start..middle])?;
            let right = id(&self.text[middle..end])?;
            table.insert(Merge { left, right, rank: rank as u32, merged: id(&self.text[start..end])? });
            start = end;
        }
        Ok(table)
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Merges, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Merges;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of merges")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merges, A::Error> {
                let mut merges = Merges { text: String::new(), ends: Vec::new() };
                while list.next_element_seed(OneMerge(&mut merges))?.is_some() {}
                Ok(merges)
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// Appends a merge, written as `"left right"` or `["left", "right"]`.
struct OneMerge<'m>(&'m mut Merges);

impl<'de> DeserializeSeed<'de> for OneMerge<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneMerge<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a merge: `\"left right\"` or `[\"left\", \"right\"]`")
    }
    fn visit_str<E: serde::de::Error>(self, merge: &str) -> Result<(), E> {
        let Some((left, right)) = merge.split_once(' ').filter(|(_, right)| !right.contains(' ')) else {
            return Err(E::custom(format_args!("expected a merge `left right`, found `{merge}`")));
        };
        self.0.text.push_str(left);
        let middle = self.0.text.len() as u32;
        self.0.text.push_str(right);
        self.0.ends.push((middle, self.0.text.len() as u32));
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<(), A::Error> {
        let short = || A::Error::custom("expected two parts of a merge, found fewer");
        pair.next_element_seed(Append(&mut self.0.text))?.ok_or_else(short)?;
        let middle = self.0.text.len() as u32;
        pair.next_element_seed(Append(&mut self.0.text))?.ok_or_else(short)?;
        self.0.ends.push((middle, self.0.text.len() as u32));
        match pair.next_element::<IgnoredAny>()? {
            Some(_) => Err(A::Error::custom("expected two parts of a merge, found more")),
            None => Ok(()),
        }
    }
}

/// Appends a string to an arena.
struct Append<'t>(&'t mut String);

impl<'de> DeserializeSeed<'de> for Append<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Append<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.push_str(text);
        Ok(())
    }
}
