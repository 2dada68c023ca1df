//! Timing one case.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use engine::{Engine, Event, FinishReason, Request, Sampling, SequenceId, Statistics};

use super::latency::Latency;
use crate::random_model::Random;
use crate::resident;
use crate::sensors::{self, Energy, Sensors};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measurement {
    /// A prompt, up to and including its first answer token.
    Prefill,
    /// Tokens one after the other.
    Decode,
}

impl Measurement {
    /// The name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Measurement::Prefill => "prefill",
            Measurement::Decode => "decode",
        }
    }
}

/// One test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// Tokens in the cache before.
    pub(super) depth: usize,
    pub(super) measurement: Measurement,
    /// Tokens of each sequence that are timed.
    pub(super) tokens: usize,
    /// Sequences that are worked on at once.
    pub(super) sequences: usize,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} tokens at a depth of {}", self.measurement.name(), self.tokens, self.depth)
    }
}

impl Case {
    /// Tokens of all sequences.
    pub(super) fn all_tokens(self) -> usize {
        self.tokens * self.sequences
    }
}

/// What came out.
#[derive(Clone, Debug)]
pub(super) struct Timing {
    pub(super) case: Case,
    /// Seconds of each run.
    pub(super) seconds: Vec<f64>,
    /// FNV-1a of the tokens that were sampled; `None` if the runs differ, which they should not.
    pub(super) hash: Option<u64>,
    /// How evenly the tokens came; for decode.
    pub(super) latency: Latency,
    /// What all runs took, by each counter that can tell for as short a time as one of them.
    pub(super) energy: Vec<Energy>,
}

impl Timing {
    /// Tokens of all runs.
    pub(super) fn tokens(&self) -> usize {
        self.case.all_tokens() * self.seconds.len()
    }
}

/// Tokens of the prompt whose first answer token is waited for.
pub(super) const FIRST_TOKEN_PROMPT: usize = 16;

/// An engine that is timed, with the sequences that are kept.
pub(super) struct Bench<'a> {
    pub(super) engine: &'a mut Engine,
    pub(super) sensors: &'a Sensors,
    kept: Vec<SequenceId>,
    /// What all prompts are beginnings of.
    text: Vec<u32>,
    /// A token that is not in `text`.
    other: u32,
    seed: u64,
}

/// Least time of the runs that don't count, if there are any: devices that have rested get up to speed slowly.
const WARM_UP: Duration = Duration::from_millis(300);

/// One run.
struct Run {
    seconds: f64,
    /// In the order in which they were chosen.
    tokens: Vec<u32>,
    energy: Vec<Energy>,
}

impl<'a> Bench<'a> {
    /// With prompts of up to `context` tokens.
    pub(super) fn new(engine: &'a mut Engine, sensors: &'a Sensors, seed: u64, context: usize) -> Bench<'a> {
        let vocabulary = engine.config().vocabulary as u64;
        // Past the special tokens and bytes of real vocabularies.
        let first = 300.min(vocabulary - 1);
        let mut random = Random(seed);
        let text = (0..context).map(|_| (first + random.next() % (vocabulary - first)) as u32).collect();
        Bench { engine, sensors, kept: Vec::new(), text, other: first as u32 - 1, seed }
    }

    /// Times a case several times, after some runs that don't count.
    pub(super) fn measure(&mut self, case: Case, warmup: u32, repeat: u32) -> Result<Timing> {
        let (mut seconds, mut hashes, mut latency) = (Vec::new(), Vec::new(), Latency::default());
        let mut energies = Vec::new();
        let mut left = repeat;
        let (start, mut warm) = (Instant::now(), 0);
        while left > 0 {
            let is_warm = warm >= warmup && (warmup == 0 || start.elapsed() >= WARM_UP);
            let mut of_run = Latency::default();
            let Run { seconds: time, tokens, energy } = match case.measurement {
                Measurement::Prefill => self.prefill(case)?,
                Measurement::Decode => self.decode(case, &mut of_run)?,
            };
            hashes.push(fnv1a(&tokens));
            if is_warm {
                seconds.push(time);
                latency.add(of_run);
                energies.push(energy);
                left -= 1;
            } else {
                warm += 1;
            }
        }
        let same = hashes.iter().all(|hash| *hash == hashes[0]);
        let hash = same.then(|| hashes[0]);
        Ok(Timing { case, seconds, hash, latency, energy: sensors::sum(&energies) })
    }

    /// Seconds from a short prompt to the first token of its answer, several times.
    pub(super) fn first_token(&mut self, warmup: u32, repeat: u32) -> Result<Vec<f64>> {
        let mut seconds = Vec::new();
        for run in 0..warmup + repeat {
            self.release();
            let start = Instant::now();
            self.submit(FIRST_TOKEN_PROMPT, 1, 1)?;
            self.until(|progress| !progress.tokens.is_empty())?;
            if run >= warmup {
                seconds.push(start.elapsed().as_secs_f64());
            }
            self.finish()?;
        }
        Ok(seconds)
    }

    /// One prompt behind a cache that is filled up to the depth.
    fn prefill(&mut self, case: Case) -> Result<Run> {
        self.begin_prefill(case)?;
        let before = self.sensors.read();
        let progress = self.finish()?;
        let energy = self.sensors.since(&before);
        let (timed, expected) = (progress.statistics.prefill_tokens, case.tokens);
        ensure!(timed == expected, "{timed} tokens were timed, expected {expected}");
        Ok(Run { seconds: progress.statistics.prefill_time.as_secs_f64(), tokens: progress.tokens, energy })
    }

    /// Tokens of all sequences behind their first ones, which belong to the prompt's time.
    fn decode(&mut self, case: Case, latency: &mut Latency) -> Result<Run> {
        self.begin(case)?;
        let before = self.sensors.read();
        let cpu = self.cpu_time();
        let (start, mut last) = (Instant::now(), Instant::now());
        let mut tokens = Vec::new();
        while tokens.len() < case.all_tokens() {
            let progress = self.step()?;
            if !progress.tokens.is_empty() {
                latency.longest_gap = latency.longest_gap.max(last.elapsed());
                last = Instant::now();
            }
            latency.device.extend(self.engine.token_times());
            tokens.extend(progress.tokens);
            ensure!(!self.engine.is_idle() || tokens.len() == case.all_tokens(), "{} tokens were timed", tokens.len());
        }
        let seconds = start.elapsed().as_secs_f64();
        // Before sensors are read, which takes the processor longer than the tokens did.
        let spent = self.cpu_time().zip(cpu).map(|(now, then)| now.saturating_sub(then));
        latency.cpu_share = spent.map(|spent| spent.as_secs_f64() / seconds);
        let energy = self.sensors.since(&before);
        Ok(Run { seconds, tokens, energy })
    }

    /// Processor time so far, but for that of reading sensors.
    fn cpu_time(&self) -> Option<Duration> {
        let spent = self.sensors.spent();
        Some(resident::cpu_time()?.saturating_sub(spent))
    }

    /// Fills the cache and hands in the prompt.
    pub(super) fn begin_prefill(&mut self, case: Case) -> Result<()> {
        self.fill(case.depth, 1)?;
        self.submit(case.depth + case.tokens, 1, 1)
    }

    /// Steps until nothing is left to do.
    pub(super) fn finish(&mut self) -> Result<Progress> {
        self.until(|progress| progress.idle)
    }

    /// Brings all sequences of a case to their first token.
    pub(super) fn begin(&mut self, case: Case) -> Result<()> {
        self.fill(case.depth, case.sequences)?;
        self.submit(case.depth + 1, case.tokens + 1, case.sequences)?;
        let first = self.until(|progress| !progress.tokens.is_empty())?;
        ensure!(
            first.tokens.len() == case.sequences,
            "{} of {} sequences began at once",
            first.tokens.len(),
            case.sequences
        );
        Ok(())
    }

    /// Puts `depth` tokens into the caches, and behind them one that no test has: so these and no more are found there,
    /// and they are those of the first time, which were computed in large chunks.
    fn fill(&mut self, depth: usize, sequences: usize) -> Result<()> {
        if depth == 0 {
            self.release();
            return Ok(());
        }
        let mut prompt = self.text[..depth].to_vec();
        prompt.push(self.other);
        self.submit_prompt(prompt, 0, sequences)?;
        self.finish()?;
        Ok(())
    }

    fn release(&mut self) {
        self.kept.drain(..).for_each(|id| self.engine.release(id));
    }

    fn submit(&mut self, prompt: usize, answer: usize, sequences: usize) -> Result<()> {
        self.submit_prompt(self.text[..prompt].to_vec(), answer, sequences)
    }

    /// The same prompt for several sequences, each with a seed of its own.
    fn submit_prompt(&mut self, prompt: Vec<u32>, answer: usize, sequences: usize) -> Result<()> {
        for index in 0..sequences {
            let request = Request {
                sampling: Sampling { seed: self.seed + index as u64, ..Sampling::default() },
                max_tokens: Some(answer),
                keep: true,
                ..Request::new(prompt.clone())
            };
            let id = crate::stream::submit(self.engine, self.kept.get(index).copied(), request)?;
            if index >= self.kept.len() {
                self.kept.push(id);
            }
        }
        // Slots for more sequences than this are not to be held.
        self.kept.drain(sequences..).for_each(|id| self.engine.release(id));
        Ok(())
    }

    /// Steps until something is so.
    fn until(&mut self, done: impl Fn(&Progress) -> bool) -> Result<Progress> {
        let mut all = Progress::default();
        loop {
            let step = self.step()?;
            all.tokens.extend(step.tokens);
            all.statistics = step.statistics;
            all.idle = step.idle;
            if done(&all) {
                return Ok(all);
            }
            ensure!(!step.idle, "the answers ended early");
        }
    }

    /// One step, and how many tokens it brought.
    pub(super) fn step_tokens(&mut self) -> Result<usize> {
        let progress = self.step()?;
        ensure!(!progress.tokens.is_empty(), "a step brought no token");
        Ok(progress.tokens.len())
    }

    /// One step.
    fn step(&mut self) -> Result<Progress> {
        let mut progress = Progress::default();
        for event in self.engine.step()? {
            match event {
                Event::Prefill { .. } => {}
                Event::Token { token, .. } => progress.tokens.push(token),
                Event::Finished { reason: FinishReason::Cancelled, .. } => bail!("interrupted"),
                Event::Finished { statistics, .. } => progress.statistics = statistics,
            }
        }
        progress.idle = self.engine.is_idle();
        Ok(progress)
    }
}

/// What a step, or several, brought.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Tokens that were chosen.
    tokens: Vec<u32>,
    /// Of a request that finished.
    statistics: Statistics,
    /// Whether nothing is left to do.
    idle: bool,
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
