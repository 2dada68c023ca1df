//! Which tokens go into the next pass: a function of what is there to do and the limits.

/// What one sequence has left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Tokens that are not in the cache yet, at least one.
    pub tokens: usize,
    /// Whether the sequence has begun to answer, and has only its last token left.
    pub decoding: bool,
}

/// What one pass can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of prompts.
    pub chunk: usize,
    /// Tokens of all.
    pub tokens_max: usize,
    /// Rows of logits.
    pub outputs_max: usize,
}

/// The part of one sequence in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Index of the sequence among the pending ones.
    pub index: usize,
    /// Its next tokens: how many.
    pub tokens: usize,
    /// Whether they are the last ones, whose logits give the next token.
    pub output: bool,
}

/// Every sequence that is decoding gets its token, because somebody reads along; what is left goes to prompts in the
/// order in which they came, so that the first is answered first.
pub fn schedule(pending: &[Pending], limits: &Limits) -> Vec<Part> {
    let (mut parts, mut tokens, mut outputs) = (Vec::new(), 0, 0);
    let mut chunk = limits.chunk;
    for decoding in [true, false] {
        for (index, work) in pending.iter().enumerate().filter(|(_, work)| work.decoding == decoding) {
            let room = (limits.tokens_max - tokens).min(if decoding { limits.tokens_max } else { chunk });
            let mut part = Part { index, tokens: work.tokens.min(room), output: work.tokens <= room };
            if part.output && outputs == limits.outputs_max {
                // Its logits have no row: leave the last token for the next pass.
                part = Part { tokens: part.tokens - 1, output: false, ..part };
            }
            if part.tokens == 0 {
                continue;
            }
            tokens += part.tokens;
            outputs += usize::from(part.output);
            if !decoding {
                chunk -= part.tokens;
            }
            parts.push(part);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { chunk: 8, tokens_max: 11, outputs_max: 4 };

    fn prompt(tokens: usize) -> Pending {
        Pending { tokens, decoding: false }
    }

    const DECODING: Pending = Pending { tokens: 1, decoding: true };

    fn plan(pending: &[Pending], limits: Limits) -> Vec<(usize, usize, bool)> {
        schedule(pending, &limits).iter().map(|part| (part.index, part.tokens, part.output)).collect()
    }

    #[test]
    fn prompts_come_in_chunks() {
        assert_eq!(plan(&[prompt(20)], LIMITS), [(0, 8, false)]);
        assert_eq!(plan(&[prompt(8)], LIMITS), [(0, 8, true)]);
        assert_eq!(plan(&[prompt(3)], LIMITS), [(0, 3, true)]);
        assert_eq!(plan(&[], LIMITS), []);
    }

    #[test]
    fn decoding_comes_first_and_prompts_share_the_rest() {
        let pending = [prompt(5), DECODING, prompt(20), DECODING, prompt(1)];
        assert_eq!(plan(&pending, LIMITS), [(1, 1, true), (3, 1, true), (0, 5, true), (2, 3, false)]);
    }

    #[test]
    fn a_pass_never_takes_more_than_its_limits() {
        let pending = [prompt(2), prompt(2), DECODING, prompt(3), DECODING, DECODING, DECODING];
        for tokens_max in 1..14 {
            for outputs_max in 1..=tokens_max {
                let limits = Limits { chunk: 8, tokens_max, outputs_max };
                let parts = schedule(&pending, &limits);
                assert!(!parts.is_empty());
                assert!(parts.iter().map(|part| part.tokens).sum::<usize>() <= tokens_max);
                assert!(parts.iter().filter(|part| part.output).count() <= outputs_max);
                for part in parts {
                    assert_eq!(part.output, part.tokens == pending[part.index].tokens, "{limits:?}");
                }
            }
        }
    }
}
