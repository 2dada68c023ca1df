//! Timing one case.

use anyhow::{Result, bail, ensure};
use engine::{Engine, Event, FinishReason, Request, Sampling, SequenceId, Statistics};

use crate::random_model::Random;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measurement {
    /// A prompt, up to and including its first answer token.
    Prefill,
    /// Tokens one after the other.
    Decode,
}

/// One test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// Tokens in the cache before.
    pub(super) depth: usize,
    pub(super) measurement: Measurement,
    /// Tokens that are timed.
    pub(super) tokens: usize,
}

/// What came out.
#[derive(Clone, Debug)]
pub(super) struct Timing {
    pub(super) case: Case,
    /// Seconds of each run.
    pub(super) seconds: Vec<f64>,
    /// FNV-1a of the tokens that were sampled; `None` if the runs differ, which they should not.
    pub(super) hash: Option<u64>,
}

/// An engine that is timed, with one sequence that is kept.
pub(super) struct Bench<'a> {
    engine: &'a mut Engine,
    kept: Option<SequenceId>,
    /// What all prompts are beginnings of.
    text: Vec<u32>,
    /// A token that is not in `text`.
    other: u32,
    seed: u64,
}

impl<'a> Bench<'a> {
    /// With prompts of up to `context` tokens.
    pub(super) fn new(engine: &'a mut Engine, seed: u64, context: usize) -> Bench<'a> {
        let vocabulary = engine.config().vocabulary as u64;
        // Past the special tokens and bytes of real vocabularies.
        let first = 300.min(vocabulary - 1);
        let mut random = Random(seed);
        let text = (0..context).map(|_| (first + random.next() % (vocabulary - first)) as u32).collect();
        Bench { engine, kept: None, text, other: first as u32 - 1, seed }
    }

    /// Times a case several times, after some runs that don't count.
    pub(super) fn measure(&mut self, case: Case, warmup: u32, repeat: u32) -> Result<Timing> {
        let (mut seconds, mut hashes) = (Vec::new(), Vec::new());
        for run in 0..warmup + repeat {
            let (statistics, tokens) = self.run(case)?;
            let (timed, time) = match case.measurement {
                Measurement::Prefill => (statistics.prefill_tokens, statistics.prefill_time),
                Measurement::Decode => (statistics.decode_tokens, statistics.decode_time),
            };
            ensure!(timed == case.tokens, "{timed} tokens were timed, expected {}", case.tokens);
            hashes.push(fnv1a(&tokens));
            if run >= warmup {
                seconds.push(time.as_secs_f64());
            }
        }
        let same = hashes.iter().all(|hash| *hash == hashes[0]);
        Ok(Timing { case, seconds, hash: same.then(|| hashes[0]) })
    }

    /// One run, from a cache that is filled up to the depth.
    fn run(&mut self, case: Case) -> Result<(Statistics, Vec<u32>)> {
        self.fill(case.depth)?;
        let (prompt, answer) = match case.measurement {
            Measurement::Prefill => (case.tokens, 1),
            // The first token of an answer belongs to the prompt's time.
            Measurement::Decode => (1, case.tokens + 1),
        };
        self.finish(self.text[..case.depth + prompt].to_vec(), answer)
    }

    /// Puts `depth` tokens into the cache, and behind them one that no test has: so these and no more are found there,
    /// and they are those of the first time, which were computed in large chunks.
    fn fill(&mut self, depth: usize) -> Result<()> {
        if depth > 0 {
            let mut prompt = self.text[..depth].to_vec();
            prompt.push(self.other);
            self.finish(prompt, 0)?;
        } else if let Some(id) = self.kept.take() {
            self.engine.release(id);
        }
        Ok(())
    }

    /// Runs a prompt and then samples.
    fn finish(&mut self, prompt: Vec<u32>, answer: usize) -> Result<(Statistics, Vec<u32>)> {
        let request = Request {
            sampling: Sampling { seed: self.seed, ..Sampling::default() },
            max_tokens: Some(answer),
            keep: true,
            ..Request::new(prompt)
        };
        self.kept = Some(crate::stream::submit(self.engine, self.kept, request)?);
        let mut tokens = Vec::new();
        loop {
            for event in self.engine.step()? {
                match event {
                    Event::Prefill { .. } => {}
                    Event::Token { token, .. } => tokens.push(token),
                    Event::Finished { reason: FinishReason::Cancelled, .. } => bail!("interrupted"),
                    Event::Finished { statistics, .. } => return Ok((statistics, tokens)),
                }
            }
        }
    }
}

/// FNV-1a with 64 bits (Fowler, Noll, Vo) of the tokens as little-endian words.
fn fnv1a(tokens: &[u32]) -> u64 {
    let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the published value for "a".
    #[test]
    fn the_hash_is_fnv1a() {
        assert_eq!(fnv1a(&[]), 0xcbf2_9ce4_8422_2325);
        // "a" followed by three zeros.
        let a = 0xaf63_dc4c_8601_ec8c_u64;
        let prime = 0x0100_0000_01b3;
        assert_eq!(fnv1a(&[0x61]), a.wrapping_mul(prime).wrapping_mul(prime).wrapping_mul(prime));
    }
}
