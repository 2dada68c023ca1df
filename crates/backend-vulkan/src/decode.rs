//! Decoding without the processor between tokens: passes that end with the choice of the next pass's input.
//!
//! A *stream* is a set of sequences that goes on by itself. Its passes are recorded once for each of a few slots, which
//! differ only in where the chosen tokens and timestamps go, and submitted several at a time. Two submissions are under
//! way, so that the device does not wait while the processor looks at the tokens of the first; what was computed behind
//! the end of a text is thrown away.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ash::vk;
use tensor::{BackendError, BufferId, Continuation, LoadOptions, Program, Sampling};

use crate::commands::{Commands, barrier, copy, host_barrier, record_dispatches};
use crate::context::Context;
use crate::dispatch::Dispatch;
use crate::footprint::{DecoderMemory, rows_max, vocabulary};
use crate::kernel::View;
use crate::kernel::sample::{NO_TOKEN, Rows, SamplePlan, Sampler, Settings, occurred_words};
use crate::memory::{Arena, Place, Slice};
use crate::pipeline::Pipelines;
use crate::trace::Trace;

/// Passes that can be under way.
const SLOTS: usize = 32;

/// Time that one submission should take: short, because up to two of them are wasted at the end of a text.
const SUBMISSION: Duration = Duration::from_millis(8);

/// What a recording of passes depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    plan: SamplePlan,
    logits: BufferId,
}

/// Passes that were submitted together.
#[derive(Clone, Copy, Debug)]
struct Submission {
    first_slot: usize,
    passes: usize,
    /// The timeline's value when it is done.
    done_at: u64,
}

/// One sequence of the stream, as the next call must name it.
#[derive(Clone, Debug, PartialEq)]
struct Next {
    sequence: usize,
    position: usize,
    token: u32,
    sampling: Sampling,
}

/// A stream that is under way.
struct Stream {
    key: Key,
    next: Vec<Next>,
    under_way: VecDeque<Submission>,
    next_slot: usize,
    /// Passes that may still be submitted before a sequence has all its tokens.
    left: usize,
    /// The device's clock at the end of the last pass that was looked at.
    last_end: Option<u64>,
}

/// Memory and recordings for streams.
pub(crate) struct Decoder {
    context: Arc<Context>,
    recordings: HashMap<Key, Vec<vk::CommandBuffer>>,
    queries: Option<vk::QueryPool>,
    stream: Option<Stream>,
    rows_max: usize,
    sampler: Option<Sampler>,
    settings: Slice,
    occurred: Slice,
    /// Where the processor writes settings, tokens, output rows and occurred tokens.
    staging: Slice,
    results: Slice,
    times: Vec<Duration>,
    /// Measured time of a pass, for the number of passes in a submission.
    pass_time: HashMap<usize, Duration>,
    _mapped: [Arena; 2],
}

/// What the decoder needs of the program that it runs.
pub(crate) struct Target<'a> {
    pub(crate) commands: &'a mut Commands,
    pub(crate) pipelines: &'a Pipelines,
    /// Of the batch: tokens and output rows.
    pub(crate) tokens: Slice,
    pub(crate) outputs: Slice,
    pub(crate) logits: View,
    /// Whether every dispatch is timed, and by what.
    pub(crate) trace: Option<&'a mut Trace>,
    /// The dispatches of a pass over `rows` single tokens.
    pub(crate) dispatches: &'a dyn Fn(usize) -> Vec<Dispatch>,
}

impl Decoder {
    /// For as many sequences as there can be.
    ///
    /// # Errors
    /// Memory that is not there.
    pub(crate) fn new(
        context: &Arc<Context>,
        program: &Program,
        options: &LoadOptions,
        memory: &DecoderMemory,
    ) -> Result<Decoder, BackendError> {
        let rows_max = rows_max(options);
        let DecoderMemory { settings, occurred, sampler } = *memory;
        let sampler = vocabulary(program).zip(sampler);
        let sampler = sampler
            .map(|(vocabulary, scratch)| Sampler::new(context.features(), scratch.address, rows_max, vocabulary));
        let mut uploads = Arena::new(context, Place::Upload, 0);
        let staging = uploads.allocate(memory.staging_bytes(rows_max), "staging")?;
        let mut downloads = Arena::new(context, Place::Download, 0);
        let results = downloads.allocate(results_bytes(rows_max), "results")?;
        Ok(Decoder {
            context: context.clone(),
            recordings: HashMap::new(),
            queries: queries(context)?,
            stream: None,
            rows_max,
            sampler,
            settings,
            occurred,
            staging,
            results,
            times: Vec::new(),
            pass_time: HashMap::new(),
            _mapped: [uploads, downloads],
        })
    }

    /// See [`tensor::Loaded::decode`].
    pub(crate) fn decode(
        &mut self,
        target: &mut Target<'_>,
        logits: BufferId,
        continuations: &[Continuation<'_>],
        options: &LoadOptions,
        cancel: Option<&AtomicBool>,
    ) -> Result<Vec<Vec<u32>>, BackendError> {
        self.times.clear();
        if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            self.stop(target.commands)?;
            return Err(BackendError::Cancelled);
        }
        if target.trace.is_some() {
            self.stop(target.commands)?;
            return self.traced(target, logits, continuations, options);
        }
        if !self.continues(logits, continuations) {
            self.stop(target.commands)?;
            self.start(target, logits, continuations)?;
        }
        self.limit(continuations, options);
        self.fill(target, options, true)?;
        let submission = self.stream.as_mut().and_then(|stream| stream.under_way.pop_front());
        let submission = submission.expect("there is room for a pass, so one was submitted");
        target.commands.wait(submission.done_at)?;
        self.measure(submission)?;
        let tokens = self.collect(submission, continuations, options);
        match tokens {
            Ok((tokens, ended)) => {
                if ended {
                    self.stop(target.commands)?;
                } else {
                    self.advance(&tokens);
                    self.fill(target, options, false)?;
                }
                Ok(tokens)
            }
            Err(error) => {
                self.stop(target.commands)?;
                Err(error)
            }
        }
    }

    /// One pass with a timestamp around every dispatch.
    fn traced(
        &mut self,
        target: &mut Target<'_>,
        logits: BufferId,
        continuations: &[Continuation<'_>],
        options: &LoadOptions,
    ) -> Result<Vec<Vec<u32>>, BackendError> {
        let plan = SamplePlan::of(continuations.iter().map(|continuation| continuation.sampling));
        let key = Key { rows: continuations.len(), plan, logits };
        self.stage(target, continuations)?;
        let mut dispatches = (target.dispatches)(key.rows);
        dispatches.extend(self.choice(target, key, 0));
        let (context, pipelines) = (&self.context, target.pipelines);
        let trace = target.trace.as_mut().expect("tracing is on");
        let mut timed = false;
        target.commands.once(|buffer| {
            let mut stamps = trace.begin(buffer, &dispatches);
            timed = stamps.is_some();
            record_dispatches(context, pipelines, buffer, &dispatches, &mut stamps)?;
            host_barrier(context, buffer);
            Ok(())
        })?;
        if timed {
            trace.end(&dispatches)?;
        }
        let submission = Submission { first_slot: 0, passes: 1, done_at: 0 };
        Ok(self.collect(submission, continuations, options)?.0)
    }

    /// The dispatches that choose a pass's tokens and write them to a slot.
    fn choice(&self, target: &Target<'_>, key: Key, slot: usize) -> Vec<Dispatch> {
        let sampler = self.sampler.expect("logits are an output that nothing reads");
        let rows = Rows {
            settings: self.settings.address,
            tokens: target.tokens.address,
            occurred: self.occurred.address,
            results: self.results.address + (slot * self.rows_max * 4) as u64,
        };
        sampler.dispatches(self.context.features(), key.plan, target.logits, &rows, key.rows)
    }

    /// The device's times of the passes of the last call.
    pub(crate) fn times(&self) -> Vec<Duration> {
        self.times.clone()
    }

    /// Ends the stream, if there is one, and waits for what is under way.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn stop(&mut self, commands: &Commands) -> Result<(), BackendError> {
        let last = self.stream.take().and_then(|stream| stream.under_way.back().copied());
        last.map_or(Ok(()), |submission| commands.wait(submission.done_at))
    }

    /// Whether the stream goes on with these.
    fn continues(&self, logits: BufferId, continuations: &[Continuation<'_>]) -> bool {
        let Some(stream) = &self.stream else { return false };
        stream.key.logits == logits && stream.next.iter().eq(continuations.iter().map(next).collect::<Vec<_>>().iter())
    }

    /// Brings the sequences' state to the device, and records passes for them.
    fn start(
        &mut self,
        target: &mut Target<'_>,
        logits: BufferId,
        continuations: &[Continuation<'_>],
    ) -> Result<(), BackendError> {
        let rows = continuations.len();
        assert!(rows <= self.rows_max, "{rows} sequences of {}", self.rows_max);
        let plan = SamplePlan::of(continuations.iter().map(|continuation| continuation.sampling));
        let key = Key { rows, plan, logits };
        self.record(target, key)?;
        self.stage(target, continuations)?;
        self.stream = Some(Stream {
            key,
            next: continuations.iter().map(next).collect(),
            under_way: VecDeque::new(),
            next_slot: 0,
            left: 0,
            last_end: None,
        });
        Ok(())
    }

    /// Copies tokens, output rows, settings and occurred tokens.
    fn stage(&mut self, target: &mut Target<'_>, continuations: &[Continuation<'_>]) -> Result<(), BackendError> {
        let rows = continuations.len();
        let tokens: Vec<[u32; 4]> =
            continuations.iter().map(|one| [one.token, one.position as u32, one.sequence as u32, 0]).collect();
        let outputs: Vec<u32> = (0..rows as u32).collect();
        let settings: Vec<Settings> = continuations.iter().map(|one| Settings::new(one.sampling)).collect();
        let occurred = self.occurred_bits(continuations, target.logits.width);
        let parts: [(&[u8], Slice); 4] = [
            (bytemuck::cast_slice(&tokens), target.tokens),
            (bytemuck::cast_slice(&outputs), target.outputs),
            (bytemuck::cast_slice(&settings), self.settings),
            (bytemuck::cast_slice(&occurred), self.occurred),
        ];
        let mut copies = Vec::new();
        let from = self.staging;
        // SAFETY: nothing is under way.
        let bytes = unsafe { self.staging.bytes_mut() }.expect("staging is mapped");
        let mut start = 0;
        for (part, slice) in parts.into_iter().filter(|(part, _)| !part.is_empty()) {
            bytes[start..start + part.len()].copy_from_slice(part);
            copies.push((start as u64, slice, part.len() as u64));
            start += part.len();
        }
        let context = self.context.clone();
        target.commands.once(|buffer| {
            barrier(&context, buffer);
            for (start, slice, len) in copies {
                copy(&context, buffer, from.part(start, len), slice, len);
            }
            barrier(&context, buffer);
            Ok(())
        })
    }

    /// A bit for each token that occurred, for the sequences with a penalty; nothing if none has one.
    fn occurred_bits(&self, continuations: &[Continuation<'_>], vocabulary: usize) -> Vec<u32> {
        let words = occurred_words(vocabulary);
        let penalizes = |one: &Continuation<'_>| one.sampling.repetition_penalty != 1.0;
        if !continuations.iter().any(penalizes) {
            return Vec::new();
        }
        let mut bits = vec![0; words * continuations.len()];
        for (row, one) in continuations.iter().enumerate().filter(|(_, one)| penalizes(one)) {
            for &token in one.occurred.iter().filter(|&&token| (token as usize) < vocabulary) {
                bits[row * words + token as usize / 32] |= 1 << (token % 32);
            }
        }
        bits
    }

    /// Makes sure that there are recordings for the key.
    fn record(&mut self, target: &mut Target<'_>, key: Key) -> Result<(), BackendError> {
        if self.recordings.contains_key(&key) {
            return Ok(());
        }
        // The same for all slots but for what chooses, which is at the end.
        let mut dispatches = (target.dispatches)(key.rows);
        let pass = dispatches.len();
        let mut buffers = Vec::new();
        for slot in 0..SLOTS {
            dispatches.truncate(pass);
            dispatches.extend(self.choice(target, key, slot));
            let buffer = target.commands.allocate()?;
            target.commands.begin(buffer)?;
            self.stamp(buffer, slot, 0);
            record_dispatches(&self.context, target.pipelines, buffer, &dispatches, &mut None)?;
            self.stamp(buffer, slot, 1);
            host_barrier(&self.context, buffer);
            target.commands.end(buffer)?;
            buffers.push(buffer);
        }
        self.recordings.insert(key, buffers);
        Ok(())
    }

    /// A timestamp at the beginning (0) or the end (1) of a pass.
    fn stamp(&self, buffer: vk::CommandBuffer, slot: usize, end: u32) {
        let Some(pool) = self.queries else { return };
        let query = 2 * slot as u32 + end;
        let stage = vk::PipelineStageFlags2::COMPUTE_SHADER;
        // SAFETY: the pool has two queries for each slot, and is not in use by another pass of this slot.
        unsafe {
            self.context.raw.cmd_reset_query_pool(buffer, pool, query, 1);
            self.context.raw.cmd_write_timestamp2(buffer, stage, pool, query);
        }
    }

    /// Submits nothing behind the pass in which the first of the texts has all the tokens that it may have: that would
    /// be waited for, for nothing.
    fn limit(&mut self, continuations: &[Continuation<'_>], options: &LoadOptions) {
        let Some(stream) = &mut self.stream else { return };
        let room = continuations.iter().map(|one| one.room(options)).min().unwrap_or(0);
        let submitted: usize = stream.under_way.iter().map(|submission| submission.passes).sum();
        stream.left = room.saturating_sub(submitted);
    }

    /// Submits until two submissions are under way, as far as the context and the contract allow. `returned` says
    /// whether the tokens of the first of them go to the caller before he can do anything else.
    fn fill(&mut self, target: &mut Target<'_>, options: &LoadOptions, returned: bool) -> Result<(), BackendError> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let time = self.pass_time.get(&stream.key.rows).copied().unwrap_or(SUBMISSION);
        let wanted = (SUBMISSION.as_secs_f64() / time.as_secs_f64().max(1e-6)).round() as usize;
        let wanted = wanted.clamp(1, SLOTS / 2);
        while stream.under_way.len() < 2 {
            let submitted: usize = stream.under_way.iter().map(|submission| submission.passes).sum();
            // At least one pass is returned, if the caller waits for any; all others may turn out to be ahead.
            let allowed = (options.run_ahead_max() + usize::from(returned)).saturating_sub(submitted);
            let passes = wanted.min(stream.left).min(allowed);
            if passes == 0 {
                return Ok(());
            }
            let recording = &self.recordings[&stream.key];
            let first_slot = stream.next_slot;
            let slots = (first_slot..first_slot + passes).map(|slot| recording[slot % SLOTS]);
            let done_at = target.commands.submit(&slots.collect::<Vec<_>>())?;
            stream.under_way.push_back(Submission { first_slot, passes, done_at });
            stream.next_slot = (first_slot + passes) % SLOTS;
            stream.left -= passes;
        }
        Ok(())
    }

    /// Reads the timestamps of a submission that is done.
    fn measure(&mut self, submission: Submission) -> Result<(), BackendError> {
        let (Some(pool), Some(step), Some(stream)) =
            (self.queries, self.context.features().timestamp_nanoseconds, &mut self.stream)
        else {
            return Ok(());
        };
        for slot in (submission.first_slot..submission.first_slot + submission.passes).map(|slot| slot % SLOTS) {
            let mut stamps = [0u64; 2];
            let flags = vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT;
            // SAFETY: the pass is done, so its two results are there.
            let read = unsafe { self.context.raw.get_query_pool_results(pool, 2 * slot as u32, &mut stamps, flags) };
            read.map_err(|error| self.context.failure("reading timestamps", error))?;
            let [begin, end] = stamps;
            // From the end of the last pass, so that waiting counts.
            let ticks = end.saturating_sub(stream.last_end.unwrap_or(begin));
            stream.last_end = Some(end);
            self.times.push(Duration::from_nanos(ticks * u64::from(step)));
            let pass = Duration::from_nanos(end.saturating_sub(begin) * u64::from(step));
            let known = self.pass_time.entry(stream.key.rows).or_insert(pass);
            *known = (*known * 3 + pass) / 4;
        }
        Ok(())
    }

    /// The tokens of a submission, up to the pass in which a sequence ends, and whether one does.
    fn collect(
        &mut self,
        submission: Submission,
        continuations: &[Continuation<'_>],
        options: &LoadOptions,
    ) -> Result<(Vec<Vec<u32>>, bool), BackendError> {
        let rows_max = self.rows_max;
        // SAFETY: the passes of the submission are done; those under way write other slots.
        let results = unsafe { self.results.bytes_mut() }.expect("results are mapped");
        let results: &[u32] = bytemuck::cast_slice(results);
        let mut tokens = vec![Vec::new(); continuations.len()];
        for pass in 0..submission.passes {
            let slot = (submission.first_slot + pass) % SLOTS;
            let chosen = &results[slot * rows_max..][..continuations.len()];
            if let Some(row) = chosen.iter().position(|&token| token == NO_TOKEN) {
                let one = &continuations[row];
                let error = BackendError::Logits { sequence: one.sequence, position: one.position + pass };
                self.times.truncate(pass);
                return if pass == 0 { Err(error) } else { Ok((tokens, true)) };
            }
            tokens.iter_mut().zip(chosen).for_each(|(tokens, &token)| tokens.push(token));
            let ends = |one: &Continuation<'_>, token| one.stop_tokens.contains(token) || pass + 1 == one.room(options);
            if continuations.iter().zip(chosen).any(|(one, token)| ends(one, token)) {
                self.times.truncate(pass + 1);
                return Ok((tokens, true));
            }
        }
        Ok((tokens, false))
    }

    /// The stream goes on behind these tokens.
    fn advance(&mut self, tokens: &[Vec<u32>]) {
        let Some(stream) = &mut self.stream else { return };
        for (next, tokens) in stream.next.iter_mut().zip(tokens) {
            next.position += tokens.len();
            next.token = tokens.last().copied().unwrap_or(next.token);
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        if self.context.is_hung() {
            return;
        }
        if let Some(pool) = self.queries {
            // SAFETY: the commands that use it were waited for when they were dropped.
            unsafe { self.context.raw.destroy_query_pool(pool, None) };
        }
    }
}

/// Bytes of what the processor reads, for so many sequences.
pub(crate) fn results_bytes(rows: usize) -> u64 {
    (SLOTS * rows * 4) as u64
}

fn next(one: &Continuation<'_>) -> Next {
    Next { sequence: one.sequence, position: one.position, token: one.token, sampling: *one.sampling }
}

/// Two queries for each slot, if the device has timestamps.
fn queries(context: &Context) -> Result<Option<vk::QueryPool>, BackendError> {
    if context.features().timestamp_nanoseconds.is_none() {
        return Ok(None);
    }
    let info = vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(2 * SLOTS as u32);
    // SAFETY: plain creation.
    let pool = unsafe { context.raw.create_query_pool(&info, None) };
    pool.map(Some).map_err(|error| context.failure("making timestamps", error))
}
