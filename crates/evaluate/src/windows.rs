//! A text as windows of one length: what the model sees, and which of its predictions are scored.

use std::ops::Range;

use engine::{Engine, PassLimits, TextPart};

use crate::{EvaluateError, Fnv};

/// Tokens of one window, `<bos>` included.
pub const WINDOW_TOKENS: usize = 512;

/// How a text is cut into windows, and which predictions count. An incomplete last window is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `<bos>` goes before each 511 tokens, and all 511 predictions are scored.
    Pieces,
    /// That of llama.cpp's perplexity tool: `<bos>` goes before the text, which is cut into windows of 512; the first
    /// token of each is replaced by `<bos>`, and the predictions after the tokens 256 to 510 are scored.
    LlamaCpp,
}

impl Protocol {
    /// The name on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Pieces => "pieces",
            Protocol::LlamaCpp => "llama.cpp",
        }
    }

    /// Positions of a window whose predictions (of the next token) are scored.
    pub fn scored(self) -> Range<usize> {
        match self {
            Protocol::Pieces => 0..WINDOW_TOKENS - 1,
            Protocol::LlamaCpp => WINDOW_TOKENS / 2..WINDOW_TOKENS - 1,
        }
    }

    /// Tokens of a text, without `<bos>`, that its first `windows` windows need.
    pub fn text_tokens(self, windows: usize) -> usize {
        match self {
            Protocol::Pieces => windows.saturating_mul(WINDOW_TOKENS - 1),
            Protocol::LlamaCpp => windows.saturating_mul(WINDOW_TOKENS).saturating_sub(1),
        }
    }
}

/// The windows of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    protocol: Protocol,
    /// `[windows, WINDOW_TOKENS]`
    tokens: Vec<u32>,
}

impl Windows {
    /// Cuts a text's tokens, without `<bos>`, into at most `limit` windows.
    ///
    /// # Errors
    /// A text that is shorter than one window.
    pub fn new(protocol: Protocol, text: &[u32], bos: u32, limit: usize) -> Result<Windows, EvaluateError> {
        let step = match protocol {
            Protocol::Pieces => WINDOW_TOKENS - 1,
            Protocol::LlamaCpp => WINDOW_TOKENS,
        };
        let first = protocol.text_tokens(1);
        if text.len() < first {
            return Err(EvaluateError::TextTooShort { tokens: text.len(), needed: first });
        }
        let mut tokens = Vec::new();
        // Each window but the first begins with a token of the text (llama.cpp) or not; `<bos>` takes its place.
        let mut end = first;
        while end <= text.len() && tokens.len() / WINDOW_TOKENS < limit {
            tokens.push(bos);
            tokens.extend_from_slice(&text[end - (WINDOW_TOKENS - 1)..end]);
            end += step;
        }
        Ok(Windows { protocol, tokens })
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.tokens.len() / WINDOW_TOKENS
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// How the text was cut.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The tokens of all windows `[windows, WINDOW_TOKENS]`.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The tokens of one window.
    pub fn window(&self, index: usize) -> &[u32] {
        &self.tokens[index * WINDOW_TOKENS..][..WINDOW_TOKENS]
    }

    /// For each window a hash of all tokens up to its end.
    pub fn hashes(&self) -> Vec<u64> {
        let mut hash = Fnv::default();
        let of = |window: &[u32]| {
            window.iter().for_each(|token| hash.update(&token.to_le_bytes()));
            hash.value()
        };
        self.tokens.chunks(WINDOW_TOKENS).map(of).collect()
    }

    /// Scored predictions of all windows.
    pub fn predictions(&self) -> usize {
        self.len() * self.protocol.scored().len()
    }

    /// Tokens of the text that come before a prediction.
    pub(crate) fn text_before(&self, output: &Output) -> usize {
        match self.protocol {
            Protocol::Pieces => output.window * (WINDOW_TOKENS - 1) + output.position,
            Protocol::LlamaCpp => output.window * WINDOW_TOKENS + output.position,
        }
    }

    /// The token that comes after a position of a window.
    fn next_token(&self, window: usize, position: usize) -> u32 {
        self.window(window)[position + 1]
    }
}

/// A part of a window that goes into one pass.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    window: usize,
    positions: Range<usize>,
}

/// Goes through windows in passes, in order: several windows, or a part of one, at a time.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    windows: &'a Windows,
    limits: PassLimits,
    /// The window and the position that come next.
    next: (usize, usize),
    /// Windows end here.
    end: usize,
    parts: Vec<Part>,
}

impl<'a> Walk<'a> {
    /// Begins with window `first`; `end` is behind the last one.
    pub(crate) fn new(windows: &'a Windows, first: usize, end: usize, limits: PassLimits) -> Walk<'a> {
        Walk { windows, limits, next: (first, 0), end, parts: Vec::new() }
    }

    /// Plans the next pass; `false` at the end.
    pub(crate) fn advance(&mut self) -> bool {
        let scored = self.windows.protocol.scored();
        let (mut tokens, mut outputs) = (0, 0);
        self.parts.clear();
        while self.next.0 < self.end && self.parts.len() < self.limits.parts {
            let (window, start) = self.next;
            // Before the first scored position tokens cost no output.
            let free = scored.start.saturating_sub(start);
            let room = (self.limits.tokens - tokens).min(free + self.limits.outputs - outputs);
            let end = scored.end.min(start + room);
            if end == start {
                break;
            }
            tokens += end - start;
            outputs += end.saturating_sub(scored.start.max(start));
            self.parts.push(Part { window, positions: start..end });
            self.next = if end == scored.end { (window + 1, 0) } else { (window, end) };
            if end < scored.end {
                break;
            }
        }
        !self.parts.is_empty()
    }

    /// Goes back to the beginning of the first window of the pass: a device has lost its caches.
    pub(crate) fn go_back(&mut self) {
        if let Some(part) = self.parts.first() {
            self.next = (part.window, 0);
        }
    }

    /// Runs the planned pass; [`Engine::pass_logits`] then has the logits of [`Walk::outputs`].
    pub(crate) fn run(&self, engine: &mut Engine) -> Result<(), engine::EngineError> {
        let scored = self.windows.protocol.scored();
        let part = |part: &Part| {
            let Range { start, end } = part.positions;
            let output = |position: usize| position.clamp(start, end) - start;
            TextPart {
                slot: part.window % self.limits.parts,
                position: start,
                tokens: &self.windows.window(part.window)[start..end],
                outputs: output(scored.start)..output(scored.end),
            }
        };
        engine.forward_parts(&self.parts.iter().map(part).collect::<Vec<_>>())
    }

    /// The pass's outputs: place of the prediction among all of the windows, window, position, and the token that
    /// came.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = Output> {
        let scored = self.windows.protocol.scored();
        self.parts.iter().flat_map(move |part| {
            let positions = part.positions.start.max(scored.start)..part.positions.end;
            let (window, first) = (part.window, part.window * scored.len());
            positions.map(move |position| Output {
                index: first + position - scored.start,
                window,
                position,
                token: self.windows.next_token(window, position),
            })
        })
    }
}

/// One scored prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// Place among all predictions of the windows.
    pub(crate) index: usize,
    /// Its window.
    pub(crate) window: usize,
    /// Position in the window of the token after which it is.
    pub(crate) position: usize,
    /// The token that came.
    pub(crate) token: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOS: u32 = 9999;

    fn windows(protocol: Protocol, tokens: u32, limit: usize) -> Result<Windows, EvaluateError> {
        Windows::new(protocol, &(0..tokens).collect::<Vec<_>>(), BOS, limit)
    }

    #[test]
    fn pieces_follow_each_other_without_a_gap() {
        let all = windows(Protocol::Pieces, 3 * 511 + 510, 100).unwrap();
        assert_eq!((all.len(), all.predictions()), (3, 3 * 511));
        for index in 0..3 {
            assert_eq!(all.window(index)[..2], [BOS, index as u32 * 511]);
            assert_eq!(all.window(index)[511], index as u32 * 511 + 510);
        }
        assert_eq!(windows(Protocol::Pieces, 2000, 2).unwrap().len(), 2);
        assert!(matches!(
            windows(Protocol::Pieces, 510, 1),
            Err(EvaluateError::TextTooShort { tokens: 510, needed: 511 })
        ));
    }

    #[test]
    fn windows_of_llama_cpp_lose_a_token_each_but_the_first() {
        // With <bos> before the text, token t is at t + 1: window k begins with token 512 k - 1.
        let all = windows(Protocol::LlamaCpp, 2 * 512 + 510, 100).unwrap();
        assert_eq!((all.len(), all.predictions()), (2, 2 * 255));
        assert_eq!(all.window(0)[..2], [BOS, 0]);
        assert_eq!(all.window(1)[..2], [BOS, 512]);
        assert_eq!(all.window(1)[511], 1022);
        assert_eq!(windows(Protocol::LlamaCpp, 2 * 512 + 511, 100).unwrap().len(), 3);
        assert_eq!(windows(Protocol::LlamaCpp, 511, 100).unwrap().len(), 1);
        assert!(windows(Protocol::LlamaCpp, 510, 1).is_err());
    }

    #[test]
    fn passes_keep_their_limits_and_score_each_prediction_once() {
        for protocol in [Protocol::Pieces, Protocol::LlamaCpp] {
            let all = windows(protocol, 4 * 512, 4).unwrap();
            for (parts, tokens, outputs) in [(1, 512, 512), (4, 2048, 2048), (2, 700, 61), (3, 100, 1), (2, 1500, 300)]
            {
                let mut walk = Walk::new(&all, 0, all.len(), PassLimits { parts, tokens, outputs });
                let mut seen = Vec::new();
                let mut next = vec![0; all.len()];
                while walk.advance() {
                    let mut slots: Vec<usize> = walk.parts.iter().map(|part| part.window % parts).collect();
                    slots.dedup();
                    assert!(slots.len() == walk.parts.len() && slots.len() <= parts);
                    assert!(walk.parts.iter().map(|part| part.positions.len()).sum::<usize>() <= tokens);
                    assert!(walk.outputs().count() <= outputs);
                    for part in &walk.parts {
                        assert_eq!(part.positions.start, next[part.window]);
                        next[part.window] = part.positions.end;
                    }
                    seen.extend(walk.outputs());
                }
                assert_eq!(seen.len(), all.predictions());
                for (index, output) in seen.iter().enumerate() {
                    assert_eq!(output.index, index);
                    assert_eq!(output.token, all.window(output.window)[output.position + 1]);
                    assert!(protocol.scored().contains(&output.position));
                }
            }
        }
    }

    #[test]
    fn after_a_failure_the_window_begins_again() {
        let all = windows(Protocol::LlamaCpp, 2 * 512, 2).unwrap();
        let mut walk = Walk::new(&all, 0, 2, PassLimits { parts: 1, tokens: 400, outputs: 400 });
        assert!(walk.advance() && walk.advance());
        assert_eq!(walk.parts, [Part { window: 0, positions: 400..511 }]);
        walk.go_back();
        assert!(walk.advance());
        assert_eq!(walk.parts, [Part { window: 0, positions: 0..400 }]);
    }
}
