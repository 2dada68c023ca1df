//! Compact storage of the vocabulary's strings, and the hash index over them.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Many strings in one allocation. Id `i` is the `i`-th string.
///
/// Collect it from an iterator of strings: `Pieces::from_iter(["a", "b"])`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Pieces {
    text: String,
    /// End of each string in `text`.
    ends: Vec<u32>,
}

impl Pieces {
    /// No strings.
    pub fn new() -> Pieces {
        Pieces::default()
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string with that number.
    pub fn get(&self, id: u32) -> Option<&str> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        Some(&self.text[start..end])
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.ends.len()).map(|id| self.get(id as u32).unwrap_or_default())
    }

    /// Appends a string.
    ///
    /// # Panics
    /// If all strings together pass 4 GiB: readers of files check sizes before.
    pub fn push(&mut self, piece: &str) {
        self.text.push_str(piece);
        self.ends.push(u32::try_from(self.text.len()).expect("the strings of a vocabulary stay below 4 GiB"));
    }

    /// From all strings, one after another, and the end of each.
    pub(crate) fn from_arena(text: String, ends: Vec<u32>) -> Pieces {
        debug_assert!(ends.is_sorted() && ends.last().is_none_or(|end| *end as usize == text.len()));
        Pieces { text, ends }
    }

    /// All strings, one after another.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Gives back the memory that growing left unused.
    pub(crate) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

impl<S: AsRef<str>> FromIterator<S> for Pieces {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Pieces {
        let mut pieces = Pieces::new();
        for string in strings {
            pieces.push(string.as_ref());
        }
        pieces
    }
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} strings", self.len())
    }
}

/// An empty slot.
const EMPTY: u32 = u32::MAX;

/// A hash index from string to id: open addressing over ids, at most half full; the strings stay in
/// [`Pieces`].
pub(crate) struct PieceIndex {
    slots: Vec<u32>,
    seed: u64,
}

impl PieceIndex {
    /// An empty index with room for `pieces` strings.
    pub(crate) fn with_capacity(pieces: usize) -> PieceIndex {
        PieceIndex { slots: vec![EMPTY; (pieces * 2).max(2).next_power_of_two()], seed: random_seed() }
    }

    /// Adds `id`, whose string is in `pieces`. Gives the id that is there already if another has the same
    /// string, and then changes nothing.
    pub(crate) fn insert(&mut self, pieces: &Pieces, id: u32) -> Option<u32> {
        let piece = pieces.get(id)?;
        let mask = self.slots.len() - 1;
        let mut slot = hash(self.seed, piece.as_bytes()) as usize & mask;
        loop {
            match self.slots[slot] {
                EMPTY => {
                    self.slots[slot] = id;
                    return None;
                }
                other if pieces.get(other) == Some(piece) => return Some(other),
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    /// The id of a string.
    pub(crate) fn get(&self, pieces: &Pieces, piece: &str) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut slot = hash(self.seed, piece.as_bytes()) as usize & mask;
        loop {
            match self.slots[slot] {
                EMPTY => return None,
                id if pieces.get(id) == Some(piece) => return Some(id),
                _ => slot = (slot + 1) & mask,
            }
        }
    }
}

/// A seed that differs from run to run, so that no file can be made to collide everywhere.
pub(crate) fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// 64 bits of two multiplied, the halves of the product folded together.
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

const ODD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Eight bytes at a time; the length goes in first, so that trailing zeros count.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut state = fold(seed ^ bytes.len() as u64, ODD);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("chunks of eight"));
        state = fold(state ^ word, ODD);
    }
    let mut last = 0;
    for (index, byte) in chunks.remainder().iter().enumerate() {
        last |= u64::from(*byte) << (8 * index);
    }
    fold(state ^ last, ODD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_come_back() {
        let words = ["", "a", "", "żółw", "a", "long string with spaces"];
        let pieces = Pieces::from_iter(words);
        assert_eq!(pieces.iter().collect::<Vec<_>>(), words);
        assert_eq!(pieces.get(6), None);
        let mut index = PieceIndex::with_capacity(pieces.len());
        let clashes: Vec<_> = (0..6).map(|id| index.insert(&pieces, id)).collect();
        assert_eq!(clashes, [None, None, Some(0), None, Some(1), None]);
        assert_eq!(index.get(&pieces, "żółw"), Some(3));
        assert_eq!(index.get(&pieces, "ż"), None);
    }
}
