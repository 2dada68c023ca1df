//! Byte-pair encoding of plain text: characters to pieces by merging.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::merges::MergeTable;
use crate::pieces::{PieceIndex, Pieces};

/// The character that stands for a space in pieces (U+2581).
pub(crate) const SPACE: char = '▁';

/// What encodes plain text: the vocabulary's merges and what to do with characters that have no piece.
pub(crate) struct Bpe {
    pub(crate) merges: MergeTable,
    /// Ids of the ASCII characters; the space has that of `▁`. `NONE` where there is none.
    ascii: Box<[u32; 128]>,
    /// Ids of `<0x00>`…`<0xFF>`, if bytes without a piece are encoded by them. `NONE` where there is none.
    bytes: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    /// Whether unknown characters in a row are one `<unk>`.
    fuse_unknown: bool,
    /// Whether a text that is a piece as a whole is not put together by merges.
    ignore_merges: bool,
    /// Characters after which a piece goes on with `▁`; none if nothing may be split there.
    before_space: Option<Vec<char>>,
}

/// No id.
const NONE: u32 = u32::MAX;

/// How characters without a piece are encoded, and other choices of `tokenizer.json`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BpeOptions {
    pub(crate) unknown: Option<u32>,
    pub(crate) fuse_unknown: bool,
    pub(crate) byte_fallback: bool,
    pub(crate) ignore_merges: bool,
}

/// One piece of the text while it is being merged, in a doubly linked list.
#[derive(Clone, Copy)]
struct Symbol {
    /// `NONE` once it has been merged into its left neighbour.
    id: u32,
    previous: usize,
    next: usize,
}

/// End of the list, on both sides.
const END: usize = usize::MAX;

/// A pair that may merge: (rank, index of its left symbol), so that the smallest is the next to merge, and the
/// leftmost of equal ones.
type Candidate = Reverse<(u32, usize)>;

/// Memory that is used again from one word to the next.
#[derive(Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    candidates: Vec<Candidate>,
}

impl Bpe {
    pub(crate) fn new(pieces: &Pieces, index: &PieceIndex, merges: MergeTable, options: BpeOptions) -> Bpe {
        let id = |text: &str| index.get(pieces, text).unwrap_or(NONE);
        let mut ascii = Box::new([NONE; 128]);
        let mut buffer = [0; 4];
        for (code, slot) in ascii.iter_mut().enumerate() {
            let character = if code == 0x20 { SPACE } else { code as u8 as char };
            *slot = id(character.encode_utf8(&mut buffer));
        }
        let bytes = options.byte_fallback.then(|| {
            let mut ids = Box::new([NONE; 256]);
            for (byte, slot) in ids.iter_mut().enumerate() {
                *slot = id(&format!("<{byte:#04X}>"));
            }
            ids
        });
        // Splitting before a space keeps runs of unknown characters apart only if the space is known.
        let split = ascii[0x20] != NONE && !options.ignore_merges;
        let before_space = split.then(|| characters_before_space(pieces.text(), pieces));
        let BpeOptions { unknown, fuse_unknown, ignore_merges, .. } = options;
        Bpe { merges, ascii, bytes, unknown, fuse_unknown, ignore_merges, before_space }
    }

    /// Appends the ids of `text` to `ids`. Spaces count as `▁`.
    ///
    /// The definition is over the whole text as one word: of all neighbours that merge, those with the lowest rank
    /// go first, from left to right. No merge crosses from a character to a following space unless some piece has
    /// these two in a row, so that the text may be cut there without changing the result; a cut text merges
    /// within the processor's caches.
    pub(crate) fn encode(
        &self,
        text: &str,
        pieces: &Pieces,
        index: &PieceIndex,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let mut start = 0;
        if let Some(joined) = &self.before_space {
            let mut previous = SPACE;
            for (at, character) in text.char_indices() {
                let character = if character == ' ' { SPACE } else { character };
                if character == SPACE && previous != SPACE && joined.binary_search(&previous).is_err() {
                    self.encode_word(&text[start..at], pieces, index, scratch, ids);
                    start = at;
                }
                previous = character;
            }
        }
        self.encode_word(&text[start..], pieces, index, scratch, ids);
    }

    fn encode_word(&self, word: &str, pieces: &Pieces, index: &PieceIndex, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if self.ignore_merges
            && let Some(id) = index.get(pieces, &word.replace(' ', "▁"))
        {
            ids.push(id);
            return;
        }
        scratch.symbols.clear();
        self.characters(word, pieces, index, &mut scratch.symbols);
        self.merge(scratch);
        ids.extend(scratch.symbols.iter().map(|symbol| symbol.id).filter(|id| *id != NONE));
    }

    /// One symbol for each character, or for each of its bytes where it has no piece.
    fn characters(&self, word: &str, pieces: &Pieces, index: &PieceIndex, symbols: &mut Vec<Symbol>) {
        let mut unknown_pending = false;
        let mut push = |id: u32| {
            let at = symbols.len();
            symbols.push(Symbol { id, previous: at.wrapping_sub(1), next: at + 1 });
        };
        let mut buffer = [0; 4];
        for character in word.chars() {
            let text = character.encode_utf8(&mut buffer);
            let id = match self.ascii.get(character as usize) {
                Some(id) => *id,
                None => index.get(pieces, text).unwrap_or(NONE),
            };
            if id != NONE {
                if std::mem::take(&mut unknown_pending) {
                    self.unknown.into_iter().for_each(&mut push);
                }
                push(id);
                continue;
            }
            // A space without a piece falls back to the bytes of what stands for it.
            let text = if character == ' ' { "▁" } else { &*text };
            if let Some(bytes) = &self.bytes
                && text.bytes().all(|byte| bytes[byte as usize] != NONE)
            {
                text.bytes().for_each(|byte| push(bytes[byte as usize]));
                continue;
            }
            if unknown_pending && !self.fuse_unknown {
                self.unknown.into_iter().for_each(&mut push);
            }
            unknown_pending = self.unknown.is_some();
        }
        if unknown_pending {
            self.unknown.into_iter().for_each(&mut push);
        }
        if let Some(last) = symbols.last_mut() {
            last.next = END;
        }
    }

    /// Merges neighbours until none merges: a heap holds the candidates; those that an earlier merge has made
    /// stale are recognised by their rank, which only their own pair has.
    fn merge(&self, scratch: &mut Scratch) {
        let Scratch { symbols, candidates } = scratch;
        candidates.clear();
        for (at, pair) in symbols.windows(2).enumerate() {
            if let Some(merge) = self.merges.get(pair[0].id, pair[1].id) {
                candidates.push(Reverse((merge.rank, at)));
            }
        }
        let mut heap = BinaryHeap::from(std::mem::take(candidates));
        while let Some(Reverse((rank, at))) = heap.pop() {
            let Symbol { id, previous, next } = symbols[at];
            if id == NONE || next == END {
                continue;
            }
            let Some(merge) = self.merges.get(id, symbols[next].id).filter(|merge| merge.rank == rank) else {
                continue;
            };
            let after = symbols[next].next;
            symbols[next].id = NONE;
            symbols[at] = Symbol { id: merge.merged, previous, next: after };
            if after != END {
                symbols[after].previous = at;
                let right = symbols[after].id;
                heap.extend(self.merges.get(merge.merged, right).map(|new| Reverse((new.rank, at))));
            }
            if previous != END {
                let left = symbols[previous].id;
                heap.extend(self.merges.get(left, merge.merged).map(|new| Reverse((new.rank, previous))));
            }
        }
        *candidates = heap.into_vec();
    }
}

/// The characters other than `▁` that some piece has right before a `▁`, sorted.
fn characters_before_space(text: &str, pieces: &Pieces) -> Vec<char> {
    // Most pieces begin with their only `▁`: look at the few that have one elsewhere.
    let mut found = Vec::new();
    if !text.contains(SPACE) {
        return found;
    }
    for piece in pieces.iter() {
        let rest = piece.trim_start_matches(SPACE);
        if !rest.contains(SPACE) {
            continue;
        }
        let characters = rest.chars().zip(rest.chars().skip(1));
        found.extend(characters.filter(|pair| pair.1 == SPACE && pair.0 != SPACE).map(|pair| pair.0));
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::kind::TokenKind;
    use crate::{Pieces, Special, Tokenizer, Vocabulary};

    /// The definition: over the whole text, always the lowest rank, the leftmost of several.
    fn naive(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let id = |character: char| tokenizer.id(character.encode_utf8(&mut [0; 4])).unwrap();
        let mut ids: Vec<u32> = text.replace(' ', "▁").chars().map(id).collect();
        loop {
            let pairs = ids.windows(2).enumerate();
            let merges = pairs.filter_map(|(at, pair)| Some((tokenizer.merges().get(pair[0], pair[1])?, at)));
            let Some((merge, at)) = merges.min_by_key(|(merge, at)| (merge.rank, *at)) else { return ids };
            ids.splice(at..at + 2, [merge.merged]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]
        #[test]
        fn cutting_at_spaces_changes_nothing(
            pieces in prop::collection::hash_set("[ab▁]{2,5}", 0..40),
            text in "[ab ▁]{0,40}",
        ) {
            let mut tokens = Pieces::from_iter(["<unk>", "a", "b", "▁"]);
            pieces.iter().for_each(|piece| tokens.push(piece));
            let scores = (0..tokens.len()).map(|id| -((id * 7 % 11) as f32)).collect();
            let mut types = vec![TokenKind::Normal as i32; tokens.len()];
            types[0] = TokenKind::Unknown as i32;
            let vocabulary =
                Vocabulary { tokens, scores: Some(scores), types: Some(types), ..Vocabulary::default() };
            let tokenizer = Tokenizer::from_vocabulary(vocabulary).unwrap();
            prop_assert_eq!(tokenizer.encode(&text, Special::Text), naive(&tokenizer, &text));
        }
    }
}
