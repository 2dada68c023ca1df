use std::sync::atomic::{AtomicBool, Ordering};

use super::AttentionShape;
use crate::backend::cache_positions;
use crate::{
    Backend, BackendError, Batch, BufferId, BufferKind, Capabilities, Continuation, DType, LoadOptions, Loaded,
    MemoryUse, Op, Program, Rows, Segment, WeightFormat, WeightSource,
};

/// The name that errors give.
const DEVICE: &str = "the reference";

/// Most passes of one [`Loaded::decode`].
const DECODE_PASSES: usize = 8;

/// Formats that caches can have.
const CACHE_DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Q8_0];

/// Runs programs op by op with the plain functions of this module, on one thread: an oracle for the other backends
/// and a device for tests that has no surprises.
///
/// Weights are decoded to f32 at load. Caches hold every position as f32, rounded through
/// [`LoadOptions::cache_dtype`]. [`LoadOptions::precision`] and [`LoadOptions::threads`] change nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceBackend;

/// A program that [`ReferenceBackend`] has loaded.
#[derive(Debug)]
pub struct ReferenceLoaded {
    program: Program,
    options: LoadOptions,
    /// One per buffer: a weight decoded, scratch rows, or a cache `[sequences_max, context_max, width]`.
    values: Vec<Vec<f32>>,
    /// Positions of each sequence that are in the caches.
    positions: Vec<usize>,
}

impl Backend for ReferenceBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            description: "plain Rust, one thread, for comparing".into(),
            weight_dtypes: DType::ALL.to_vec(),
            trellis: true,
            cache_dtypes: CACHE_DTYPES.to_vec(),
            memory_bytes: u64::MAX,
            decodes: true,
            grams: false,
        }
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Loaded>, BackendError> {
        Ok(Box::new(self.load_reference(program, weights, options)?))
    }
}

impl ReferenceBackend {
    /// [`Backend::load`] with the concrete type, whose buffers can be looked at between ops.
    ///
    /// # Errors
    /// As [`Backend::load`].
    pub fn load_reference(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<ReferenceLoaded, BackendError> {
        check_options(program, options)?;
        let mut values = Vec::with_capacity(program.buffers().len());
        for buffer in program.buffers() {
            values.push(match buffer.kind {
                BufferKind::Weight { format, rows, columns } => {
                    load_weight(weights, &buffer.name, format, (rows, columns))?
                }
                BufferKind::Scratch { rows, width } => zeros(&buffer.name, &[rows_max(rows, options), width])?,
                BufferKind::Cache { width, .. } => {
                    zeros(&buffer.name, &[options.sequences_max, options.context_max, width])?
                }
            });
        }
        let positions = vec![0; options.sequences_max];
        Ok(ReferenceLoaded { program: program.clone(), options: options.clone(), values, positions })
    }
}

/// Says what this device can't do with a program and options.
fn check_options(program: &Program, options: &LoadOptions) -> Result<(), BackendError> {
    let unsupported = |problem: String| Err(BackendError::Unsupported { device: DEVICE.into(), problem });
    if options.tokens_max == 0 || options.sequences_max == 0 || options.context_max == 0 {
        return unsupported("tokens, sequences and positions must be at least 1".into());
    }
    if options.outputs_max > options.tokens_max {
        return unsupported(format!("{} outputs of {} tokens", options.outputs_max, options.tokens_max));
    }
    if !CACHE_DTYPES.contains(&options.cache_dtype) {
        return unsupported(format!("a cache in {}; expected f32, f16 or q8_0", options.cache_dtype));
    }
    for buffer in program.buffers() {
        if let BufferKind::Cache { width, window } = buffer.kind {
            if options.cache_dtype.row_bytes(width).is_none() {
                return unsupported(format!("cache `{}` of width {width} in {}", buffer.name, options.cache_dtype));
            }
            if window == Some(0) {
                return unsupported(format!("cache `{}` with a window of 0", buffer.name));
            }
        }
    }
    Ok(())
}

/// Reads and decodes a weight `[rows, columns]`.
fn load_weight(
    weights: &dyn WeightSource,
    name: &str,
    format: WeightFormat,
    (rows, columns): (usize, usize),
) -> Result<Vec<f32>, BackendError> {
    let failed = |source| BackendError::Weight { name: name.into(), source };
    let data = weights.open(name, format).map_err(failed)?;
    let (bytes, expected) = (data.bytes(), format.data_bytes(rows, columns));
    if Some(bytes.len()) != expected {
        let expected = expected.map_or("none".into(), |bytes| bytes.to_string());
        let problem = format!("[{rows}, {columns}] in {format}: expected {expected} bytes, found {}", bytes.len());
        return Err(failed(problem.into()));
    }
    let mut values = zeros(name, &[rows, columns])?;
    match format {
        WeightFormat::Blocks(dtype) => dtype.codec().decode(bytes, &mut values),
        WeightFormat::Trellis(format) => {
            let linear = format.linear(rows, columns, &*data).map_err(failed)?;
            linear.dequantize_unpadded(columns, &mut values);
        }
    }
    data.release(0..bytes.len());
    Ok(values)
}

/// An array of that shape, if it is of a size that can exist.
fn zeros(name: &str, shape: &[usize]) -> Result<Vec<f32>, BackendError> {
    let elements = shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length));
    match elements.filter(|&elements| elements <= isize::MAX as usize / size_of::<f32>()) {
        Some(elements) => Ok(vec![0.0; elements]),
        None => Err(BackendError::OutOfMemory {
            device: DEVICE.into(),
            what: format!("`{name}` {shape:?}"),
            needed: u64::MAX,
            available: isize::MAX as u64,
        }),
    }
}

/// Most rows of a scratch buffer.
fn rows_max(rows: Rows, options: &LoadOptions) -> usize {
    match rows {
        Rows::Tokens => options.tokens_max,
        Rows::Outputs => options.outputs_max,
    }
}

impl Loaded for ReferenceLoaded {
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.run_observed(batch, |_, _| ())
    }

    fn read(&mut self, buffer: BufferId, into: &mut [f32]) -> Result<(), BackendError> {
        let BufferKind::Scratch { width, .. } = self.program.buffer(buffer).kind else {
            panic!("`{}` is no scratch buffer", self.program.buffer(buffer).name);
        };
        assert!(into.len().is_multiple_of(width), "{} elements of rows of {width}", into.len());
        into.copy_from_slice(&self.values[buffer.index()][..into.len()]);
        Ok(())
    }

    fn memory(&self) -> MemoryUse {
        let mut used = MemoryUse::default();
        for (buffer, values) in self.program.buffers().iter().zip(&self.values) {
            let bytes = size_of_val(values.as_slice()) as u64;
            match buffer.kind {
                BufferKind::Weight { .. } => used.weights += bytes,
                BufferKind::Scratch { .. } => used.scratch += bytes,
                BufferKind::Cache { .. } => used.caches += bytes,
            }
        }
        used
    }

    fn decode(
        &mut self,
        logits: BufferId,
        continuations: &[Continuation<'_>],
        cancel: Option<&AtomicBool>,
    ) -> Result<Vec<Vec<u32>>, BackendError> {
        Continuation::check(continuations, &self.options);
        let mut chosen = vec![Vec::new(); continuations.len()];
        let room = continuations.iter().map(|one| one.room(&self.options)).min().unwrap_or(0);
        let mut result = Ok(());
        for _ in 0..room.min(DECODE_PASSES) {
            result = self.decode_pass(logits, continuations, &mut chosen, cancel);
            let stops = |one: &Continuation<'_>, last: &u32| one.stop_tokens.contains(last);
            let mut lasts = continuations.iter().zip(&chosen);
            if result.is_err() || lasts.any(|(one, tokens)| tokens.last().is_some_and(|last| stops(one, last))) {
                break;
            }
        }
        let passes = chosen[0].len();
        for one in continuations {
            self.forget_ahead(one.sequence, one.position + passes);
        }
        self.forget_activations();
        if passes == 0 { result.map(|()| chosen) } else { Ok(chosen) }
    }
}

impl ReferenceLoaded {
    /// One pass of [`Loaded::decode`]: a token more for each sequence, or an error and none for any.
    fn decode_pass(
        &mut self,
        logits: BufferId,
        continuations: &[Continuation<'_>],
        chosen: &mut [Vec<u32>],
        cancel: Option<&AtomicBool>,
    ) -> Result<(), BackendError> {
        let tokens: Vec<u32> =
            chosen.iter().zip(continuations).map(|(list, one)| *list.last().unwrap_or(&one.token)).collect();
        let passes = chosen[0].len();
        let segment =
            |one: &Continuation<'_>| Segment { sequence: one.sequence, position: one.position + passes, tokens: 1 };
        let segments: Vec<Segment> = continuations.iter().map(segment).collect();
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        self.run(&Batch { tokens: &tokens, segments: &segments, outputs: &outputs, cancel })?;

        let vocabulary = self.width(logits);
        let mut rows = vec![0.0; tokens.len() * vocabulary];
        self.read(logits, &mut rows)?;
        let mut next = Vec::new();
        for (index, (one, segment)) in continuations.iter().zip(&segments).enumerate() {
            let mut occurred = one.occurred.to_vec();
            chosen[index].iter().for_each(|token| {
                if !occurred.contains(token) {
                    occurred.push(*token)
                }
            });
            let row = &rows[index * vocabulary..][..vocabulary];
            let token = super::sample(row, one.sampling, &occurred, segment.position as u64 + 1);
            let (sequence, position) = (segment.sequence, segment.position);
            next.push(token.ok_or(BackendError::Logits { sequence, position })?);
        }
        chosen.iter_mut().zip(next).for_each(|(list, token)| list.push(token));
        Ok(())
    }

    /// Makes a NaN of all that [`Loaded::decode`] may leave undefined in the caches of a sequence of which `len`
    /// positions count: what follows, and what that overwrites in the rings of local layers.
    fn forget_ahead(&mut self, sequence: usize, len: usize) {
        self.positions[sequence] = len;
        let (context, ahead) = (self.options.context_max, self.options.run_ahead_max());
        for (buffer, values) in self.program.buffers().iter().zip(&mut self.values) {
            let BufferKind::Cache { width, window } = buffer.kind else { continue };
            let kept = cache_positions(window, &self.options);
            for position in len..context.min(len + ahead) {
                for lost in [Some(position), position.checked_sub(kept)].into_iter().flatten() {
                    values[(sequence * context + lost) * width..][..width].fill(f32::NAN);
                }
            }
        }
    }

    /// [`Loaded::run`] that calls `observe` before each op, with the op and the buffers as the op will find them.
    ///
    /// # Errors
    /// As [`Loaded::run`].
    ///
    /// # Panics
    /// As [`Loaded::run`]; also if a segment leaves out positions of the caches, a token is not in the table, or a
    /// window is longer than its cache remembers: bugs of the caller.
    pub fn run_observed(&mut self, batch: &Batch<'_>, mut observe: impl FnMut(&Op, &Self)) -> Result<(), BackendError> {
        batch.check(&self.options);
        for segment in batch.segments {
            let known = self.positions[segment.sequence];
            assert!(
                segment.position <= known || !self.has_caches(),
                "{segment:?}, but only {known} positions are in the caches"
            );
            self.positions[segment.sequence] = segment.position;
        }
        self.forget_activations();
        for op in self.program.ops().to_vec() {
            if batch.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Err(BackendError::Cancelled);
            }
            observe(&op, self);
            self.apply(&op, batch);
        }
        for segment in batch.segments {
            self.positions[segment.sequence] = segment.position + segment.tokens;
        }
        Ok(())
    }

    /// The contents of a buffer: a weight `[rows, columns]`, scratch rows `[tokens_max or outputs_max, width]`, or a
    /// cache `[sequences_max, context_max, width]`.
    pub fn values(&self, buffer: BufferId) -> &[f32] {
        &self.values[buffer.index()]
    }

    fn has_caches(&self) -> bool {
        self.program.buffers().iter().any(|buffer| matches!(buffer.kind, BufferKind::Cache { .. }))
    }

    /// Makes every activation of the last pass a NaN, so that nothing can rely on it.
    fn forget_activations(&mut self) {
        for (buffer, values) in self.program.buffers().iter().zip(&mut self.values) {
            if matches!(buffer.kind, BufferKind::Scratch { .. }) {
                values.fill(f32::NAN);
            }
        }
    }

    fn apply(&mut self, op: &Op, batch: &Batch<'_>) {
        match *op {
            Op::Embed { table, scale, output } => {
                let mut rows = self.take(output, batch);
                super::embed(&self.values[table.index()], batch.tokens, scale.0, rows.live());
                self.put(output, rows);
            }
            Op::RmsNorm { input, weight, epsilon, output } => {
                let input = self.copy(input, batch);
                let mut rows = self.take(output, batch);
                super::rms_norm(&input, &self.values[weight.index()], epsilon.0, rows.live());
                self.put(output, rows);
            }
            Op::Linear { weight, input, output } => {
                let (columns, input) = (self.width(input), self.copy(input, batch));
                let mut rows = self.take(output, batch);
                super::linear(&self.values[weight.index()], &input, columns, rows.live());
                self.put(output, rows);
            }
            Op::Rope { values, head_dim, base, position_divisor } => {
                let positions = positions(batch.segments);
                let mut rows = self.take(values, batch);
                super::rope(rows.live(), &positions, head_dim, base.0, position_divisor.0);
                self.put(values, rows);
            }
            Op::CacheWrite { input, cache } => self.write_cache(input, cache, batch),
            Op::Attention { .. } => self.attend(op, batch),
            Op::GeluMul { gate, up, output } => {
                let (gate, up) = (self.copy(gate, batch), self.copy(up, batch));
                let mut rows = self.take(output, batch);
                super::gelu_mul(&gate, &up, rows.live());
                self.put(output, rows);
            }
            Op::Add { input, output } => {
                let input = self.copy(input, batch);
                let mut rows = self.take(output, batch);
                super::add(&input, rows.live());
                self.put(output, rows);
            }
            Op::SelectOutputs { input, output } => {
                let (width, input) = (self.width(input), self.copy(input, batch));
                let mut rows = self.take(output, batch);
                super::select_outputs(&input, batch.outputs, width, rows.live());
                self.put(output, rows);
            }
        }
    }

    fn write_cache(&mut self, input: BufferId, cache: BufferId, batch: &Batch<'_>) {
        let (width, context) = (self.width(input), self.options.context_max);
        let input = self.copy(input, batch);
        let mut token = 0;
        for segment in batch.segments {
            let rows = &input[token * width..][..segment.tokens * width];
            let start = (segment.sequence * context + segment.position) * width;
            let cached = &mut self.values[cache.index()][start..][..rows.len()];
            super::cache_write(rows, self.options.cache_dtype, width, cached);
            token += segment.tokens;
        }
    }

    fn attend(&mut self, op: &Op, batch: &Batch<'_>) {
        let Op::Attention { query, keys, values, output, .. } = *op else { unreachable!("only called for it") };
        let shape = self.attention_shape(op).expect("an attention");
        let query = self.copy(query, batch);
        let mut rows = self.take(output, batch);
        let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut token = 0;
        for segment in batch.segments {
            let sequence = segment.sequence * self.options.context_max * kv_width;
            let range = token * width..(token + segment.tokens) * width;
            let (keys, values) = (&self.values[keys.index()][sequence..], &self.values[values.index()][sequence..]);
            super::attention(&shape, segment.position, &query[range.clone()], keys, values, &mut rows.live()[range]);
            token += segment.tokens;
        }
        self.put(output, rows);
    }

    /// The shape of an [`Op::Attention`] of this program, `None` for other ops.
    ///
    /// # Panics
    /// If the attention looks farther back than its caches are declared to.
    pub fn attention_shape(&self, op: &Op) -> Option<AttentionShape> {
        let Op::Attention { query, keys, values, head_dim, window, scale, .. } = *op else { return None };
        for cache in [keys, values] {
            if let BufferKind::Cache { window: Some(kept), .. } = self.program.buffer(cache).kind {
                assert!(window.is_some_and(|window| window <= kept), "a window of {window:?} over a cache of {kept}");
            }
        }
        let (heads, kv_heads) = (self.width(query) / head_dim, self.width(keys) / head_dim);
        Some(AttentionShape { heads, kv_heads, head_dim, window, scale: scale.0 })
    }

    /// Elements per row of a scratch buffer or a cache.
    fn width(&self, buffer: BufferId) -> usize {
        match self.program.buffer(buffer).kind {
            BufferKind::Scratch { width, .. } | BufferKind::Cache { width, .. } => width,
            BufferKind::Weight { columns, .. } => columns,
        }
    }

    /// Elements of the rows that a batch uses of a scratch buffer.
    fn len(&self, buffer: BufferId, batch: &Batch<'_>) -> usize {
        match self.program.buffer(buffer).kind {
            BufferKind::Scratch { rows: Rows::Tokens, width } => batch.tokens.len() * width,
            BufferKind::Scratch { rows: Rows::Outputs, width } => batch.outputs.len() * width,
            _ => unreachable!("checked when the program was built"),
        }
    }

    /// The rows that an op reads, copied since the op may write over them.
    fn copy(&self, buffer: BufferId, batch: &Batch<'_>) -> Vec<f32> {
        self.values[buffer.index()][..self.len(buffer, batch)].to_vec()
    }

    /// Lends a buffer to an op that writes it.
    fn take(&mut self, buffer: BufferId, batch: &Batch<'_>) -> Lent {
        let live = self.len(buffer, batch);
        Lent { values: std::mem::take(&mut self.values[buffer.index()]), live }
    }

    fn put(&mut self, buffer: BufferId, lent: Lent) {
        self.values[buffer.index()] = lent.values;
    }
}

/// A scratch buffer that an op writes.
struct Lent {
    values: Vec<f32>,
    /// Elements that belong to the batch.
    live: usize,
}

impl Lent {
    fn live(&mut self) -> &mut [f32] {
        &mut self.values[..self.live]
    }
}

/// The position of every token.
fn positions(segments: &[Segment]) -> Vec<usize> {
    segments.iter().flat_map(|segment| segment.position..segment.position + segment.tokens).collect()
}
