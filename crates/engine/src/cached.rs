//! What of a sequence is in the caches.

use tensor::backend::cache_positions;
use tensor::{BufferKind, LoadOptions, Program};

/// The caches of local layers are rings: a position overwrites the one a ring's length before it. So a sequence can go
/// back a little (by a batch at least), but not to any point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cached {
    /// Positions `0..len` count.
    len: usize,
    /// One more than the last position that was ever written, cancelled passes included.
    high: usize,
}

/// The rings of a program, without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rings(Vec<Ring>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ring {
    /// Positions that a token sees.
    window: usize,
    /// Positions that are kept.
    positions: usize,
}

impl Rings {
    /// The rings that a device keeps for a program.
    pub(crate) fn new(program: &Program, options: &LoadOptions) -> Rings {
        let mut rings: Vec<Ring> = program.buffers().iter().filter_map(|buffer| ring(&buffer.kind, options)).collect();
        rings.sort_unstable();
        rings.dedup();
        Rings(rings)
    }

    /// Whether a sequence that was once written up to `high` can go on at `position`: whether the positions that a
    /// token there sees are in every ring.
    fn reach(&self, position: usize, high: usize) -> bool {
        self.0.iter().all(|ring| {
            let oldest_kept = high.saturating_sub(ring.positions);
            let oldest_seen = (position + 1).saturating_sub(ring.window);
            oldest_seen >= oldest_kept
        })
    }
}

fn ring(kind: &BufferKind, options: &LoadOptions) -> Option<Ring> {
    match *kind {
        BufferKind::Cache { window: Some(window), .. } => {
            Some(Ring { window, positions: cache_positions(Some(window), options) })
        }
        _ => None,
    }
}

impl Cached {
    /// Positions that count.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// `tokens` more positions were written.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        self.high = self.high.max(self.len);
    }

    /// `tokens` more positions of those that there are may have been written, and don't count.
    pub(crate) fn spoil(&mut self, tokens: usize, context: usize) {
        self.high = self.high.max((self.len + tokens).min(context));
    }

    /// Goes back to at most `len` positions: to `len` if the rings still hold what is seen from there, to none
    /// otherwise.
    pub(crate) fn go_back(&mut self, len: usize, rings: &Rings) {
        if len >= self.len {
            return;
        }
        if rings.reach(len, self.high) {
            self.len = len;
        } else {
            *self = Cached::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any text here.
    const CONTEXT: usize = 1 << 20;

    /// A ring that remembers which position lies where, and whether it is that of the current text.
    struct Model {
        slots: Vec<Option<(usize, u64)>>,
    }

    impl Model {
        fn write(&mut self, position: usize, text: u64) {
            let slots = self.slots.len();
            self.slots[position % slots] = Some((position, text));
        }
    }

    impl Model {
        /// What a token at `position` sees is of the current text.
        fn check(&self, position: usize, window: usize, text: &[u64]) {
            for seen in (position + 1).saturating_sub(window)..=position {
                assert_eq!(self.slots[seen % self.slots.len()], Some((seen, text[seen])), "window {window}");
            }
        }
    }

    /// Random walks: writing, cancelled writing, decoding with running ahead and going back never leave a token without
    /// a position that it sees.
    #[test]
    fn what_is_seen_is_always_there() {
        let mut state = 1u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let (mut kept, mut restarted) = (0, 0);
        for _ in 0..300 {
            let (window, batch) = (1 + random(12), 1 + random(6));
            let ring = Ring { window, positions: window + batch - 1 };
            let rings = Rings(vec![ring]);
            let mut model = Model { slots: vec![None; ring.positions] };
            let (mut cached, mut text) = (Cached::default(), vec![0u64; 0]);
            for version in 1..60 {
                let tokens = 1 + random(batch);
                match random(5) {
                    0 => {
                        let back = cached.len().saturating_sub(random(9));
                        cached.go_back(back, &rings);
                        text.truncate(cached.len());
                        if cached.len() == back { kept += 1 } else { restarted += 1 }
                    }
                    1 => {
                        // Cancelled somewhere: some are written, with values that nobody wants.
                        for position in cached.len()..cached.len() + random(tokens + 1) {
                            model.write(position, 0);
                        }
                        cached.spoil(tokens, CONTEXT);
                    }
                    2 => {
                        // Any number of passes of one token, and some more that nobody asked for.
                        for position in text.len()..text.len() + 1 + random(20) {
                            model.write(position, version);
                            text.push(version);
                            model.check(position, window, &text);
                            cached.advance(1);
                        }
                        for position in cached.len()..cached.len() + random(batch + 1) {
                            model.write(position, 0);
                        }
                        cached.spoil(batch, CONTEXT);
                    }
                    _ => {
                        for position in text.len()..text.len() + tokens {
                            model.write(position, version);
                            text.push(version);
                        }
                        for position in cached.len()..text.len() {
                            model.check(position, window, &text);
                        }
                        cached.advance(tokens);
                    }
                }
            }
        }
        assert!(kept > 100 && restarted > 100, "{kept} {restarted}");
    }

    #[test]
    fn without_rings_any_point_is_reached() {
        let mut cached = Cached::default();
        cached.advance(1000);
        cached.go_back(1, &Rings(vec![]));
        assert_eq!(cached.len(), 1);
        cached.go_back(5, &Rings(vec![]));
        assert_eq!(cached.len(), 1);
    }
}
