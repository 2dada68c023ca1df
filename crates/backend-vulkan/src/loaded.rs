//! A program in a device's memory: passes, and reading what they gave.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ash::vk;
use tensor::backend::cache_positions;
use tensor::{
    BackendError, Batch, BufferId, BufferKind, Continuation, DType, LoadOptions, Loaded, MemoryUse, Op, Program,
    Segment, TraceSpan, WeightSource,
};

use crate::commands::{Commands, barrier, copy, host_barrier, record_dispatches};
use crate::context::Context;
use crate::decode::{Decoder, Target};
use crate::dispatch::Dispatch;
use crate::footprint::{BatchMemory, Footprint};
use crate::gram::Grams;
use crate::kernel::attention::{Decode, tiles};
use crate::kernel::cache_write::CacheShape;
use crate::kernel::rope::{RopeAddresses, RopeTables};
use crate::memory::{Arena, Place, Slice};
use crate::pace::Pace;
use crate::pipeline::Pipelines;
use crate::place::{Buffers, Placed};
use crate::plan::Rope;
use crate::record::{Counts, attention_shape};
use crate::scene::{Scene, plans};
use crate::trace::Trace;
use crate::transfer::{copy_bytes, send};
use crate::upload::{Ring, chunks, trellis_chunks, upload};

/// Bytes that are copied to the processor at once.
pub(crate) const DOWNLOAD_BYTES: u64 = 16 << 20;

/// Recordings that are kept.
const RECORDINGS: usize = 16;

/// Bytes of one layer's keys or values that kernels can address: 31 bits of 16-byte lines.
const CACHE_BYTES_MAX: u64 = (1 << 35) - 1;

/// Formats of caches that kernels read and write.
pub(crate) const CACHE_DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Q8_0];

/// A pass for certain counts of tokens and outputs, ready to be submitted.
struct Recording {
    /// One per piece.
    buffers: Vec<vk::CommandBuffer>,
    estimated: Duration,
    /// When it was last used, to drop the oldest.
    used: u64,
}

/// A loaded program.
pub(crate) struct VulkanLoaded {
    // Before all that commands use, so that dropping it waits for them first.
    commands: Commands,
    recordings: HashMap<Counts, Recording>,
    decoder: Decoder,
    trace: Option<Trace>,
    grams: Grams,
    pass: u64,
    pipelines: Arc<Pipelines>,
    scene: Scene,
    batch: BatchMemory,
    /// Whether passes over single tokens read nothing but the tokens: all their attention has a kernel for that.
    decodes_alone: bool,
    staging: Slice,
    download: Slice,
    pace: Pace,
    _mapped: Vec<Arena>,
}

impl VulkanLoaded {
    /// Reads the weights and allocates all that passes will need.
    ///
    /// # Errors
    /// Weights that can't be read, memory that is not there, options that the device can't follow.
    pub(crate) fn load(
        context: &Arc<Context>,
        pipelines: &Arc<Pipelines>,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<VulkanLoaded, BackendError> {
        check(context, program, options)?;
        let plans = plans(context, program, options);
        let Footprint { buffers, batch, decoder, scratch, ropes } = Footprint::new(context, program, options, &plans)?;
        let decoder = Decoder::new(context, program, options, &decoder)?;
        let decodes_alone = decodes_alone(context, program, options, &buffers);
        let mut uploads = Arena::new(context, Place::Upload, 0);
        let staging = uploads.allocate(batch.staging_bytes(), "staging")?;
        let mut downloads = Arena::new(context, Place::Download, 0);
        let download = downloads.allocate(DOWNLOAD_BYTES, "results")?;
        let mut commands = Commands::new(context, &context.queue)?;
        clear(context, &mut commands, &buffers)?;
        upload_weights(context, pipelines, program, weights, &buffers)?;
        for (rope, slice) in &ropes {
            let Rope { head_dim, base, position_divisor } = *rope;
            let tables = RopeTables::new(base.0, position_divisor.0, head_dim, options.context_max);
            send(context, &mut commands, &tables.bytes(), *slice)?;
        }
        let address = |(rope, slice): (Rope, Slice)| (rope, RopeAddresses::new(slice.address, rope.head_dim));
        let ropes = ropes.into_iter().map(address).collect();
        Ok(VulkanLoaded {
            commands,
            recordings: HashMap::new(),
            decoder,
            trace: None,
            grams: Grams::default(),
            pass: 0,
            pipelines: pipelines.clone(),
            scene: Scene {
                context: context.clone(),
                program: program.clone(),
                options: options.clone(),
                buffers,
                ropes,
                batch: batch.addresses(),
                scratch,
                sink: batch.sink.address,
                plans,
            },
            batch,
            decodes_alone,
            staging,
            download,
            pace: Pace::new(context.features().kind),
            _mapped: vec![uploads, downloads],
        })
    }

    /// What its passes are made from.
    pub(crate) fn scene(&self) -> &Scene {
        &self.scene
    }

    /// One pass whose tokens the processor chooses, for programs that can't be decoded without it.
    fn decode_pass(
        &mut self,
        logits: BufferId,
        continuations: &[Continuation<'_>],
        cancel: Option<&AtomicBool>,
    ) -> Result<Vec<Vec<u32>>, BackendError> {
        let tokens: Vec<u32> = continuations.iter().map(|one| one.token).collect();
        let segment = |one: &Continuation<'_>| Segment { sequence: one.sequence, position: one.position, tokens: 1 };
        let segments: Vec<Segment> = continuations.iter().map(segment).collect();
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        self.run(&Batch { tokens: &tokens, segments: &segments, outputs: &outputs, cancel })?;
        let width = self.scene.buffers.view(logits).width;
        let mut values = vec![0.0; tokens.len() * width];
        self.read(logits, &mut values)?;
        let choose = |(one, logits): (&Continuation<'_>, &[f32])| {
            let position = one.position as u64 + 1;
            let token = tensor::reference::sample(logits, one.sampling, one.occurred, position);
            let error = BackendError::Logits { sequence: one.sequence, position: one.position };
            token.map(|token| vec![token]).ok_or(error)
        };
        continuations.iter().zip(values.chunks(width)).map(choose).collect()
    }

    /// Writes the batch where the recordings copy it from.
    fn stage(&mut self, batch: &Batch<'_>) -> Counts {
        let mut tokens = Vec::with_capacity(batch.tokens.len());
        let mut ids = batch.tokens.iter();
        for segment in batch.segments {
            for (position, id) in (segment.position..segment.position + segment.tokens).zip(&mut ids) {
                tokens.push([*id, position as u32, segment.sequence as u32, 0]);
            }
        }
        let tiles = tiles(batch.segments);
        // SAFETY: the device has finished the last pass: `run` waits for it.
        let bytes = unsafe { self.staging.bytes_mut() }.expect("staging is mapped");
        let parts: [&[u8]; 3] =
            [bytemuck::cast_slice(&tokens), bytemuck::cast_slice(batch.outputs), bytemuck::cast_slice(&tiles)];
        let mut start = 0;
        for (part, slice) in parts.into_iter().zip(self.batch.slices()) {
            bytes[start..start + part.len()].copy_from_slice(part);
            start += slice.size as usize;
        }
        let single = batch.segments.iter().all(|segment| segment.tokens == 1);
        Counts { tokens: tokens.len(), outputs: batch.outputs.len(), tiles: tiles.len(), single }
    }

    /// Copies the staged batch to the device.
    fn record_batch(&self, buffer: vk::CommandBuffer, counts: Counts) {
        let used = [16 * counts.tokens, 4 * counts.outputs, 16 * counts.tiles];
        let mut start = 0;
        for (slice, bytes) in self.batch.slices().into_iter().zip(used) {
            copy(&self.scene.context, buffer, self.staging.part(start, slice.size), slice, bytes as u64);
            start += slice.size;
        }
    }

    /// Records a piece of a pass, the first one behind the copy of the batch; with timestamps, if asked for and there
    /// is a trace with room for them, which is told.
    fn record_piece(
        &self,
        counts: Counts,
        (index, dispatches): (usize, &[Dispatch]),
        timed: bool,
    ) -> Result<(vk::CommandBuffer, bool), BackendError> {
        let buffer = self.commands.allocate()?;
        self.commands.begin(buffer)?;
        if index == 0 {
            barrier(&self.scene.context, buffer);
            self.record_batch(buffer, counts);
        }
        let mut stamps = self.trace.as_ref().filter(|_| timed).and_then(|trace| trace.begin(buffer, dispatches));
        let timed = stamps.is_some();
        record_dispatches(&self.scene.context, &self.pipelines, buffer, dispatches, &mut stamps)?;
        self.commands.end(buffer)?;
        Ok((buffer, timed))
    }

    /// Makes sure that there is a recording for the counts.
    fn record(&mut self, counts: Counts) -> Result<(), BackendError> {
        self.pass += 1;
        if let Some(recording) = self.recordings.get_mut(&counts) {
            recording.used = self.pass;
            return Ok(());
        }
        let dispatches = self.scene.joined_dispatches(counts);
        let mut buffers = Vec::new();
        for (index, piece) in self.pace.pieces(&dispatches).into_iter().enumerate() {
            buffers.push(self.record_piece(counts, (index, &dispatches[piece]), false)?.0);
        }
        if self.recordings.len() >= RECORDINGS {
            let oldest = self.recordings.iter().min_by_key(|(_, recording)| recording.used).map(|(&counts, _)| counts);
            if let Some(recording) = oldest.and_then(|counts| self.recordings.remove(&counts)) {
                self.commands.free(&recording.buffers);
            }
        }
        let recording = Recording { buffers, estimated: self.pace.estimate(&dispatches), used: self.pass };
        self.recordings.insert(counts, recording);
        Ok(())
    }

    /// A pass with a timestamp around every dispatch.
    fn traced(&mut self, counts: Counts) -> Result<(), BackendError> {
        let dispatches = self.scene.dispatches(counts);
        for (index, piece) in self.pace.pieces(&dispatches).into_iter().enumerate() {
            let piece = &dispatches[piece];
            let (buffer, timed) = self.record_piece(counts, (index, piece), true)?;
            let done_at = self.commands.submit(&[buffer])?;
            self.commands.wait(done_at)?;
            self.commands.free(&[buffer]);
            if let Some(trace) = self.trace.as_mut().filter(|_| timed) {
                trace.end(piece)?;
            }
        }
        Ok(())
    }

    /// Submits a recording piece by piece, never more than two ahead, and waits for the end.
    fn submit(&mut self, counts: Counts, cancel: Option<&AtomicBool>) -> Result<(), BackendError> {
        let start = Instant::now();
        let recording = &self.recordings[&counts];
        let mut last = [0; 2];
        for &buffer in &recording.buffers {
            if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                self.commands.wait_all()?;
                return Err(BackendError::Cancelled);
            }
            self.commands.wait(last[0])?;
            last = [last[1], self.commands.submit(&[buffer])?];
        }
        self.commands.wait(last[1])?;
        let estimated = recording.estimated;
        self.pace.learn(estimated, start.elapsed());
        Ok(())
    }
}

impl Loaded for VulkanLoaded {
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        batch.check(&self.scene.options);
        if batch.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(BackendError::Cancelled);
        }
        self.decoder.stop(&self.commands)?;
        let counts = self.stage(batch);
        if self.trace.is_some() {
            return self.traced(counts);
        }
        self.record(counts)?;
        self.submit(counts, batch.cancel)
    }

    fn read(&mut self, buffer: BufferId, into: &mut [f32]) -> Result<(), BackendError> {
        let Placed::Scratch { view, slice, .. } = self.scene.buffers.get(buffer) else {
            panic!("`{}` is not a scratch buffer", self.scene.program.buffer(buffer).name);
        };
        assert!(into.len().is_multiple_of(view.width), "{} elements of rows of {}", into.len(), view.width);
        self.decoder.stop(&self.commands)?;
        let row = view.pitch() as u64 * 4;
        let most = (DOWNLOAD_BYTES / row).max(1) as usize;
        for (index, rows) in into.chunks_mut(most * view.width).enumerate() {
            let count = rows.len() / view.width;
            let bytes = count as u64 * row;
            let from = slice.part(index as u64 * most as u64 * row, bytes);
            let (context, to) = (self.scene.context.clone(), self.download);
            self.commands.once(|buffer| {
                barrier(&context, buffer);
                copy(&context, buffer, from, to, bytes);
                host_barrier(&context, buffer);
                Ok(())
            })?;
            // SAFETY: the copy is done.
            let found = unsafe { self.download.bytes_mut() }.expect("results are mapped");
            if view.pitch() == view.width {
                copy_bytes(&found[..bytes as usize], bytemuck::cast_slice_mut(rows));
                continue;
            }
            for (from, into) in found.chunks(row as usize).zip(rows.chunks_mut(view.width)) {
                into.copy_from_slice(bytemuck::cast_slice(&from[..4 * view.width]));
            }
        }
        Ok(())
    }

    fn add_gram(&mut self, buffer: BufferId, rows: usize) -> Result<(), BackendError> {
        self.decoder.stop(&self.commands)?;
        let (context, view) = (&self.scene.context, self.scene.buffers.view(buffer));
        self.grams.add(context, (&self.pipelines, &mut self.commands), buffer, (view, rows))
    }

    fn take_gram(&mut self, buffer: BufferId) -> Result<Vec<f32>, BackendError> {
        self.decoder.stop(&self.commands)?;
        let taken = self.grams.take(&self.scene.context, &mut self.commands, buffer)?;
        Ok(taken.expect("a buffer whose rows were added"))
    }

    fn memory(&self) -> MemoryUse {
        self.scene.buffers.used()
    }

    fn decode(
        &mut self,
        logits: BufferId,
        continuations: &[Continuation<'_>],
        cancel: Option<&AtomicBool>,
    ) -> Result<Vec<Vec<u32>>, BackendError> {
        Continuation::check(continuations, &self.scene.options);
        if !self.decodes_alone {
            return self.decode_pass(logits, continuations, cancel);
        }
        let (scene, traced) = (&self.scene, self.trace.is_some());
        let mut target = Target {
            commands: &mut self.commands,
            pipelines: &self.pipelines,
            tokens: self.batch.tokens,
            outputs: self.batch.outputs,
            logits: self.scene.buffers.view(logits),
            trace: self.trace.as_mut(),
            dispatches: &|rows| {
                let counts = Counts { tokens: rows, outputs: rows, tiles: rows, single: true };
                if traced { scene.dispatches(counts) } else { scene.joined_dispatches(counts) }
            },
        };
        self.decoder.decode(&mut target, logits, continuations, &self.scene.options, cancel)
    }

    fn set_tracing(&mut self, on: bool) -> bool {
        // What is under way was recorded without timestamps; a device that failed says so in the next pass.
        let _ = self.decoder.stop(&self.commands);
        self.trace = if on { Trace::new(&self.scene.context) } else { None };
        self.trace.is_some()
    }

    fn take_trace(&mut self) -> Vec<TraceSpan> {
        self.trace.as_mut().map_or_else(Vec::new, Trace::take)
    }

    fn token_times(&mut self) -> Vec<Duration> {
        self.decoder.times()
    }
}

/// Refuses what no kernel does.
pub(crate) fn check(context: &Context, program: &Program, options: &LoadOptions) -> Result<(), BackendError> {
    let unsupported = |problem| BackendError::Unsupported { device: context.features().name.clone(), problem };
    let dtype = options.cache_dtype;
    if !CACHE_DTYPES.contains(&dtype) {
        return Err(unsupported(format!("expected caches in f32, f16 or q8_0, found {dtype}")));
    }
    for buffer in program.buffers() {
        let BufferKind::Cache { width, window } = buffer.kind else { continue };
        let block = dtype.block_len();
        if !width.is_multiple_of(block) {
            return Err(unsupported(format!(
                "a cache in {dtype} needs a width that is a multiple of {block}, found {width}"
            )));
        }
        let shape = CacheShape { dtype, width, ring: cache_positions(window, options) };
        let bytes = shape.bytes(options.sequences_max);
        if bytes > CACHE_BYTES_MAX {
            return Err(unsupported(format!(
                "expected caches of up to {CACHE_BYTES_MAX} bytes for a layer, found {bytes}\n\nhint: load with a \
                 shorter context or fewer sequences"
            )));
        }
    }
    Ok(())
}

/// Whether [`Decode`] can do all attention.
fn decodes_alone(context: &Context, program: &Program, options: &LoadOptions, buffers: &Buffers) -> bool {
    let mut attention = program.ops().iter().filter(|op| matches!(op, Op::Attention { .. }));
    attention.all(|op| {
        let shape = attention_shape(buffers, op);
        Decode::new(context.features(), &shape, 1, options.context_max).is_some()
    })
}

/// Fills all memory with zeros: paddings stay so.
fn clear(context: &Context, commands: &mut Commands, buffers: &Buffers) -> Result<(), BackendError> {
    commands.once(|buffer| {
        for (block, bytes) in buffers.arena().blocks() {
            // SAFETY: the block is that long, a multiple of 4.
            unsafe { context.raw.cmd_fill_buffer(buffer, block, 0, bytes, 0) };
        }
        barrier(context, buffer);
        Ok(())
    })
}

fn upload_weights(
    context: &Arc<Context>,
    pipelines: &Pipelines,
    program: &Program,
    weights: &dyn WeightSource,
    buffers: &Buffers,
) -> Result<(), BackendError> {
    let ring = Ring::new();
    let weights = program.buffers().iter().enumerate().filter_map(|(index, buffer)| {
        let BufferKind::Weight { format, .. } = buffer.kind else { return None };
        let failed = |source| BackendError::Weight { name: buffer.name.clone(), source };
        let open = || weights.open(&buffer.name, format).map_err(failed);
        let cut = || match buffers.get(BufferId(index as u32)) {
            Placed::Weight(weight, slice) => Ok(chunks(&buffer.name, &weight, slice, &open()?, ring.slot_bytes)),
            Placed::Trellis(weight, slice) => {
                let bytes = open()?;
                // Says what is wrong with them.
                weight.format.linear(weight.rows, weight.columns, &*bytes).map_err(failed)?;
                Ok(trellis_chunks(&buffer.name, &weight, slice, &bytes, ring.slot_bytes))
            }
            Placed::Scratch { .. } | Placed::Cache(..) => Ok(Vec::new()),
        };
        Some(cut())
    });
    upload(context, pipelines, ring, weights)
}
