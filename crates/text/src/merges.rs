//! The merges of byte-pair encoding: which two neighbours become one piece, and how early.

use crate::error::TextError;
use crate::kind::TokenKind;
use crate::pieces::{PieceIndex, Pieces, fold, random_seed};

/// One merge: `left` and `right` become `merged`; lower ranks go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) left: u32,
    pub(crate) right: u32,
    pub(crate) rank: u32,
    pub(crate) merged: u32,
}

/// Marks an empty slot by its `left`: no vocabulary has that many ids.
const EMPTY: Merge = Merge { left: u32::MAX, right: 0, rank: 0, merged: 0 };

/// All merges, found by their pair: open addressing, at most two thirds full, 16 bytes a slot.
pub(crate) struct MergeTable {
    slots: Vec<Merge>,
    seed: u64,
}

impl MergeTable {
    /// An empty table with room for `merges`.
    pub(crate) fn with_capacity(merges: usize) -> MergeTable {
        let slots = (merges + merges / 2).max(2).next_power_of_two();
        MergeTable { slots: vec![EMPTY; slots], seed: random_seed() }
    }

    /// Adds a merge. One with the same pair is replaced, as `tokenizers` does.
    pub(crate) fn insert(&mut self, merge: Merge) {
        let slot = self.slot(merge.left, merge.right);
        self.slots[slot] = merge;
    }

    /// What the pair becomes, if it merges.
    pub(crate) fn get(&self, left: u32, right: u32) -> Option<&Merge> {
        let merge = &self.slots[self.slot(left, right)];
        (merge.left != EMPTY.left).then_some(merge)
    }

    /// All merges, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Merge> {
        self.slots.iter().filter(|merge| merge.left != EMPTY.left)
    }

    /// The slot that holds the pair, or the empty one where it would go.
    fn slot(&self, left: u32, right: u32) -> usize {
        let mask = self.slots.len() - 1;
        let key = u64::from(left) << 32 | u64::from(right);
        let mut slot = fold(key ^ self.seed, 0x9E37_79B9_7F4A_7C15) as usize & mask;
        loop {
            let found = &self.slots[slot];
            if found.left == EMPTY.left || (found.left == left && found.right == right) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// Pieces longer than this are refused where merges are derived: the work grows with the square of the length.
const PIECE_BYTES_MAX: usize = 1024;

/// The merges that scores imply: every way to put a piece together from two others, pieces with higher scores
/// first.
///
/// SentencePiece (and llama.cpp) merge the pair whose piece has the highest score, the leftmost of several. The
/// `tokenizers` library has a rank for each pair, and the converter that wrote Gemma 3's `tokenizer.json` ordered
/// them by (score, length of the left part, length of the right part), longest first; so does this. The order
/// among the pairs of one piece matters only if three neighbours overlap in two such pairs (`s₁s₂ = s₂s₃`), which
/// merging from characters does not reach with these vocabularies. User-defined runs of spaces come before all
/// others, as their scores in `tokenizer.model` do, whatever a GGUF says.
pub(crate) fn derive(
    pieces: &Pieces,
    index: &PieceIndex,
    kinds: &[TokenKind],
    scores: &[f32],
) -> Result<MergeTable, TextError> {
    // (order by score, and by the lengths of the two parts; merged; left; right)
    let mut found: Vec<(u64, u32, u32, u32)> = Vec::with_capacity(pieces.len() * 2);
    let part = |text: &str| index.get(pieces, text).filter(|id| can_merge(kinds[*id as usize]));
    for (id, piece) in pieces.iter().enumerate() {
        let spaces = kinds[id] == TokenKind::UserDefined && piece.chars().all(|c| c == '▁');
        if kinds[id] != TokenKind::Normal && !spaces {
            continue;
        }
        if piece.len() > PIECE_BYTES_MAX {
            let what = format!("piece {id} has {} bytes, expected at most {PIECE_BYTES_MAX}", piece.len());
            return Err(TextError::vocabulary(what));
        }
        let order = if spaces { 0 } else { u64::from(descending(scores[id])) };
        let chars = piece.chars().count() as u64;
        for (left_chars, (at, _)) in piece.char_indices().enumerate().skip(1) {
            let (left, right) = piece.split_at(at);
            let Some(left) = part(left) else { continue };
            let Some(right) = part(right) else { continue };
            let lengths = (0xffff - left_chars as u64) << 16 | (0xffff - (chars - left_chars as u64));
            found.push((order << 32 | lengths, id as u32, left, right));
        }
    }
    found.sort_unstable();
    let mut table = MergeTable::with_capacity(found.len());
    for (rank, &(_, merged, left, right)) in found.iter().enumerate() {
        table.insert(Merge { left, right, rank: rank as u32, merged });
    }
    Ok(table)
}

fn can_merge(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Normal | TokenKind::UserDefined)
}

/// A number that is smaller the higher the score is, above 0. Minus zero counts as zero.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    (!ascending).max(1)
}

/// For each piece a score by which [`derive`] finds the same order again: the best gets 0, the next −1, and so
/// on; pieces that no merge makes come after them in the order of their ids. Whole numbers up to 2²⁴ are exact in
/// f32.
pub(crate) fn scores(table: &MergeTable, kinds: &[TokenKind]) -> Vec<f32> {
    let mut best = vec![u32::MAX; kinds.len()];
    for merge in table.iter() {
        let rank = &mut best[merge.merged as usize];
        *rank = (*rank).min(merge.rank);
    }
    let normal = |id: &u32| kinds[*id as usize] == TokenKind::Normal;
    let mut order: Vec<u32> = (0..kinds.len() as u32).filter(normal).collect();
    order.sort_unstable_by_key(|&id| (best[id as usize], id));
    let mut scores = vec![0.0; kinds.len()];
    for (place, id) in order.into_iter().enumerate() {
        scores[id as usize] = 0.0 - place as f32;
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_scores_come_first() {
        let scores = [f32::INFINITY, 3.5, 0.0, -0.0, -1.0, -2.0, -1000.0, f32::NEG_INFINITY];
        let keys: Vec<_> = scores.into_iter().map(descending).collect();
        assert!(keys.is_sorted(), "{keys:?}");
        assert_eq!(keys[2], keys[3]);
    }

    #[test]
    fn a_pair_is_found_among_many() {
        let mut table = MergeTable::with_capacity(1000);
        for left in 0..1000 {
            table.insert(Merge { left, right: left / 2, rank: left, merged: left + 1 });
        }
        table.insert(Merge { left: 7, right: 3, rank: 9, merged: 1 });
        assert_eq!(table.get(7, 3), Some(&Merge { left: 7, right: 3, rank: 9, merged: 1 }));
        assert_eq!(table.get(3, 7), None);
        assert_eq!(table.iter().count(), 1000);
    }
}
