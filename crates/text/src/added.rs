//! Tokens that are matched in the raw text, before any merging: special ones and user-defined ones.

/// A match in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) id: u32,
    pub(crate) special: bool,
}

/// The added tokens, sorted by their text.
///
/// A match is the leftmost, and the longest of those that begin there, as `tokenizers` finds them with an
/// Aho-Corasick automaton. Here the sorted list is narrowed byte by byte: no automaton to build at load, and
/// only bytes that begin some token cost anything.
pub(crate) struct AddedTokens {
    entries: Vec<Entry>,
    /// For each first byte the range of `entries` that begin with it.
    first: Box<[(u32, u32); 256]>,
}

struct Entry {
    text: Box<str>,
    id: u32,
    special: bool,
}

impl AddedTokens {
    /// From (text, id, special); empty texts are left out, as they would match everywhere, and of equal ones the
    /// first stays.
    pub(crate) fn new<S: Into<Box<str>>>(tokens: impl Iterator<Item = (S, u32, bool)>) -> AddedTokens {
        let mut entries: Vec<Entry> = tokens
            .map(|(text, id, special)| Entry { text: text.into(), id, special })
            .filter(|entry| !entry.text.is_empty())
            .collect();
        entries.sort_by(|a, b| a.text.cmp(&b.text));
        entries.dedup_by(|later, earlier| later.text == earlier.text);
        let mut first = Box::new([(0, 0); 256]);
        for (index, entry) in entries.iter().enumerate() {
            let range: &mut (u32, u32) = &mut first[entry.text.as_bytes()[0] as usize];
            if range.1 == 0 {
                range.0 = index as u32;
            }
            range.1 = index as u32 + 1;
        }
        AddedTokens { entries, first }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first match at or after byte `from`.
    pub(crate) fn find(&self, text: &str, from: usize) -> Option<Found> {
        let bytes = text.as_bytes();
        (from..bytes.len()).find_map(|start| self.longest_at(bytes, start))
    }

    /// The longest token that begins exactly at `start`.
    fn longest_at(&self, bytes: &[u8], start: usize) -> Option<Found> {
        let (low, high) = self.first[bytes[start] as usize];
        let mut candidates = &self.entries[low as usize..high as usize];
        let mut found = None;
        let mut depth = 1;
        while let Some(entry) = candidates.first() {
            // The shortest sorts first: if it ends here, all of it has been compared.
            if entry.text.len() == depth {
                found = Some(Found { start, end: start + depth, id: entry.id, special: entry.special });
                candidates = &candidates[1..];
            }
            let Some(byte) = bytes.get(start + depth) else { break };
            let from = candidates.partition_point(|entry| entry.text.as_bytes()[depth] < *byte);
            let to = candidates.partition_point(|entry| entry.text.as_bytes()[depth] <= *byte);
            candidates = &candidates[from..to];
            depth += 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(tokens: &[&str], text: &str) -> Vec<(usize, usize, u32)> {
        let added = AddedTokens::new(tokens.iter().zip(0..).map(|(token, id)| (*token, id, false)));
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(next) = added.find(text, from) {
            found.push((next.start, next.end, next.id));
            from = next.end;
        }
        found
    }

    #[test]
    fn leftmost_then_longest() {
        assert_eq!(all(&["ab", "abcd", "b", "", "bcd"], "abcxabcdb"), [(0, 2, 0), (4, 8, 1), (8, 9, 2)]);
        assert_eq!(all(&["\n", "\n\n"], "\n\n\n"), [(0, 2, 1), (2, 3, 0)]);
        assert_eq!(all(&["<a>", "<ab>"], "<a<ab><ab"), [(2, 6, 1)]);
        assert_eq!(all(&[], "text"), []);
    }
}
