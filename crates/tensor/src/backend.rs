//! The contract between the engine and the devices.
//!
//! Who checks what: [`crate::ProgramBuilder::build`] checks shapes, [`Batch::check`] checks a batch and
//! [`Continuation::check`] what is to be decoded; a backend relies on them and panics on a violation, which is a bug in
//! its caller. A [`BackendError`] only stands for what the
//! caller can't foresee: weights that can't be read, memory that is not there, a device that fails.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use thiserror::Error;

use crate::format::trellis;
use crate::{BufferId, BufferKind, DType, Op, Program, Rows, Sampling, WeightFormat};

/// The bytes of one weight, in memory or in a mapped file.
pub trait WeightBytes: Send + Sync {
    /// All bytes: exactly [`WeightFormat::data_bytes`] of the declared shape. Of a
    /// trellis weight the tiles, as [`Linear::trellis`](crate::format::trellis::Linear::trellis).
    fn bytes(&self) -> &[u8];

    /// The scales of a trellis weight; `None` of all others.
    fn scales(&self) -> Option<&trellis::Scales> {
        None
    }

    /// Says that a range has been copied and will not be read soon, so that mapped pages can go. Reading it again
    /// stays possible.
    fn release(&self, _range: Range<usize>) {}

    /// Copies a range to `into`, which is as long, and lets go of it as [`WeightBytes::release`] does. What is kept in
    /// a file may be read from there, past the mapping.
    ///
    /// # Errors
    /// Whatever keeps the file from being read.
    ///
    /// # Panics
    /// If the range passes the end, or `into` has another length.
    fn read(&self, range: Range<usize>, into: &mut [u8]) -> Result<(), WeightError> {
        into.copy_from_slice(&self.bytes()[range.clone()]);
        self.release(range);
        Ok(())
    }
}

impl WeightBytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A weight can't be had.
pub type WeightError = Box<dyn std::error::Error + Send + Sync>;

/// Gives the weights of a program by name.
pub trait WeightSource: Sync {
    /// The bytes of the weight `name`, in the format and shape that the program declares.
    ///
    /// # Errors
    /// Whatever keeps the source from giving them.
    fn open(&self, name: &str, format: WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError>;
}

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Activations may be rounded to 8 bits per block of 32 for integer dot products (f32 accumulation between
    /// blocks), or to bf16 for bf16 weights; for trellis weights after they were scaled and rotated, and the weights of
    /// MUL1 need not be rounded to binary16, and at up to 4 bits may be off by 1/200 of their deviation. With caches in
    /// F16 or Q8_0, attention may round queries, the positions' weights (of which the largest is 1 at that time) and
    /// what it reads from the caches to f16 (f32 accumulation).
    #[default]
    Fast,
    /// Weights are decoded to f32 and all arithmetic is f32: for comparing.
    F32,
}

/// What is decided before the first token; all memory follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Most tokens in one batch.
    pub tokens_max: usize,
    /// Most output rows of one batch; ≤ `tokens_max`.
    pub outputs_max: usize,
    /// Sequences that can be kept at once: the slots of the caches.
    pub sequences_max: usize,
    /// Positions per sequence.
    pub context_max: usize,
    /// Format of cached keys and values: F32, F16 or Q8_0.
    pub cache_dtype: DType,
    /// How products are computed.
    pub precision: Precision,
    /// Threads to use; `None` for one per physical core.
    pub threads: Option<usize>,
}

impl LoadOptions {
    /// Positions of a sequence that [`Loaded::decode`] may write to the caches beyond those that it accounts for: 64,
    /// or half of `tokens_max` (rounded up) if that is less. The caches of local layers keep a window and
    /// `tokens_max - 1` positions more, so they still hold what the next token sees, and a caller can go back in a text
    /// by what is left of these.
    pub fn run_ahead_max(&self) -> usize {
        self.tokens_max.div_ceil(2).min(64)
    }
}

/// The tokens of one pass.
#[derive(Clone, Debug, Default)]
pub struct Batch<'a> {
    /// Token ids of all segments, one after the other.
    pub tokens: &'a [u32],
    /// How the tokens divide among the sequences.
    pub segments: &'a [Segment],
    /// Indices into `tokens`, ascending, of those whose output rows are wanted; may be empty.
    pub outputs: &'a [u32],
    /// Set by another thread to stop the pass between two ops; the caches of its positions are then undefined.
    pub cancel: Option<&'a AtomicBool>,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Slot of the caches, below [`LoadOptions::sequences_max`].
    pub sequence: usize,
    /// Position of the first token. Earlier positions are in the cache.
    pub position: usize,
    /// Number of tokens, at least one.
    pub tokens: usize,
}

impl Batch<'_> {
    /// Checks the batch against the limits it will run under.
    ///
    /// # Panics
    /// If a limit is passed, the segments don't add up, or a sequence occurs twice: bugs of the caller.
    pub fn check(&self, options: &LoadOptions) {
        assert!(!self.tokens.is_empty() && self.tokens.len() <= options.tokens_max, "tokens: {}", self.tokens.len());
        assert!(self.outputs.len() <= options.outputs_max, "outputs: {}", self.outputs.len());
        assert!(self.outputs.is_sorted() && self.outputs.iter().all(|&row| (row as usize) < self.tokens.len()));
        assert_eq!(self.segments.iter().map(|segment| segment.tokens).sum::<usize>(), self.tokens.len());
        for (index, segment) in self.segments.iter().enumerate() {
            assert!(segment.tokens > 0 && segment.sequence < options.sequences_max);
            assert!(segment.position + segment.tokens <= options.context_max);
            assert!(self.segments[..index].iter().all(|other| other.sequence != segment.sequence));
        }
    }
}

/// A sequence that [`Loaded::decode`] goes on with.
#[derive(Clone, Copy, Debug)]
pub struct Continuation<'a> {
    /// Slot of the caches, below [`LoadOptions::sequences_max`].
    pub sequence: usize,
    /// Position of `token`. Earlier positions are in the cache, it is not.
    pub position: usize,
    /// The last token of the text so far.
    pub token: u32,
    /// How tokens are chosen.
    pub sampling: &'a Sampling,
    /// The tokens of the text, each once, `token` included. Only looked at if [`Sampling::repetition_penalty`] is not
    /// 1; those that are chosen during the call count too.
    pub occurred: &'a [u32],
    /// Tokens that end the text.
    pub stop_tokens: &'a [u32],
    /// Most tokens to choose, at least one; may be more than the context has room for.
    pub tokens_max: usize,
}

impl Continuation<'_> {
    /// Most tokens that can be chosen: as many as are wanted and as positions are left, that of `token` included. The
    /// last one chosen may lie just behind the context, since it is not run.
    pub fn room(&self, options: &LoadOptions) -> usize {
        self.tokens_max.min(options.context_max - self.position)
    }

    /// Checks what is to be decoded against the limits it will run under.
    ///
    /// # Panics
    /// If a limit is passed, there is nothing to do, or a sequence occurs twice: bugs of the caller.
    pub fn check(continuations: &[Continuation<'_>], options: &LoadOptions) {
        let most = options.outputs_max.min(options.tokens_max);
        assert!((1..=most).contains(&continuations.len()), "sequences: {}", continuations.len());
        for (index, one) in continuations.iter().enumerate() {
            assert!(one.sequence < options.sequences_max && one.position < options.context_max, "{one:?}");
            assert!(one.tokens_max > 0, "{one:?}");
            assert!(continuations[..index].iter().all(|other| other.sequence != one.sequence), "{one:?}");
        }
    }
}

/// A piece of work of a device, by its own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceSpan {
    /// What was done: an op with its buffers, or several that were fused.
    pub name: String,
    /// The kind of work, to sum over: [`Op::name`], or a name of the backend's for other work.
    pub op: &'static str,
    /// From the moment at which tracing was switched on.
    pub start: Duration,
    /// How long it took.
    pub duration: Duration,
    /// Bytes that it has to read and write at least: weights, caches and activations, each once. Over the duration
    /// this is a share of the memory's bandwidth.
    pub bytes: u64,
    /// Multiplications and additions of products, counted separately.
    pub operations: u64,
}

/// What a backend can do; the planner routes around what it can't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// For people: the device and the instruction sets in use.
    pub description: String,
    /// Formats of the weights of [`Op::Linear`] and [`Op::Embed`].
    pub weight_dtypes: Vec<DType>,
    /// Whether these may also be trellises, of all rates and codebooks.
    pub trellis: bool,
    /// Formats of caches.
    pub cache_dtypes: Vec<DType>,
    /// Bytes that programs can use.
    pub memory_bytes: u64,
    /// Whether [`Loaded::decode`] can be called.
    pub decodes: bool,
    /// Whether [`Loaded::add_gram`] can be called.
    pub grams: bool,
}

/// Bytes in use by a loaded program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights, mapped ones included.
    pub weights: u64,
    /// Key and value caches of all sequences.
    pub caches: u64,
    /// Activations.
    pub scratch: u64,
}

/// What a caller can't foresee.
#[derive(Debug, Error)]
pub enum BackendError {
    /// A weight can't be read.
    #[error("weight `{name}` can't be read")]
    Weight {
        /// Its name in the program.
        name: String,
        /// Why.
        #[source]
        source: WeightError,
    },
    /// The memory for the program is not there.
    #[error("out of memory on {device}: {needed} bytes are needed for {what}, {available} are there")]
    OutOfMemory {
        /// Which device.
        device: String,
        /// What it was for.
        what: String,
        /// Bytes asked for.
        needed: u64,
        /// Bytes that can be had.
        available: u64,
    },
    /// The device can't do what the program or the options ask for.
    #[error("{device} can't run this: {problem}")]
    Unsupported {
        /// Which device.
        device: String,
        /// What is missing.
        problem: String,
    },
    /// The device failed while it worked.
    #[error("{device} failed: {problem}")]
    Device {
        /// Which device.
        device: String,
        /// What it said.
        problem: String,
    },
    /// No token can be chosen: the largest logit is not a finite number.
    #[error("the logits of position {position} of the sequence in slot {sequence} are not numbers")]
    Logits {
        /// Slot of the caches.
        sequence: usize,
        /// Position of the token that was run.
        position: usize,
    },
    /// [`Batch::cancel`] was set, or that of [`Loaded::decode`].
    #[error("cancelled")]
    Cancelled,
}

/// A device that can load programs.
pub trait Backend: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Bytes of [`Capabilities::memory_bytes`] that [`Backend::load`] would take, what it needs only meanwhile
    /// included.
    fn required_memory(&self, program: &Program, options: &LoadOptions) -> MemoryUse {
        required_memory(program, options)
    }

    /// Reads the weights and allocates everything that passes will need.
    ///
    /// # Errors
    /// Weights that can't be read, memory that is not there, options that the device can't follow.
    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Loaded>, BackendError>;
}

/// A program in a device's memory, with its caches.
pub trait Loaded: Send {
    /// Runs all ops on a batch. Afterwards the caches hold the batch's positions and [`Loaded::read`] gives the
    /// buffers' values until the next pass.
    ///
    /// # Errors
    /// [`BackendError::Cancelled`], or a device that failed. The caches of the batch's positions are undefined then.
    ///
    /// # Panics
    /// If [`Batch::check`] does.
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), BackendError>;

    /// Copies the first `into.len() / width` rows of a scratch buffer. Only buffers that no later op overwrites are
    /// worth reading; backends that fuse ops keep every buffer that nothing in the program reads.
    ///
    /// # Panics
    /// If `buffer` is no scratch buffer or the length is no multiple of its width.
    fn read(&mut self, buffer: BufferId, into: &mut [f32]) -> Result<(), BackendError>;

    /// Adds `xᵀ x` for the first `rows` rows `x` of a scratch buffer to the sums of that buffer, the Gram matrix of all
    /// rows so far; at first they are 0. Sums are f32; as for [`Loaded::read`], only buffers that no later op
    /// overwrites are worth it. Only called if [`Capabilities::grams`].
    ///
    /// # Errors
    /// No memory for the sums, or a device that fails.
    ///
    /// # Panics
    /// If `buffer` is no scratch buffer, or the backend does not add such sums.
    fn add_gram(&mut self, buffer: BufferId, rows: usize) -> Result<(), BackendError> {
        panic!("this backend does not add up the products of {rows} rows of {buffer:?}, as its capabilities say");
    }

    /// The sums of a buffer, `[side, side]`, with its width rounded up to a multiple of 128 as `side`, filled up with
    /// zeros. Blocks of 128 × 128 to the left of the diagonal hold nothing of value. The sums begin anew.
    ///
    /// # Errors
    /// A device that fails.
    ///
    /// # Panics
    /// If nothing was added.
    fn take_gram(&mut self, buffer: BufferId) -> Result<Vec<f32>, BackendError> {
        panic!("this backend has no sums of {buffer:?}, as its capabilities say");
    }

    /// Bytes in use.
    fn memory(&self) -> MemoryUse;

    /// Runs the token of each continuation, chooses the next ones from the rows of `logits`, a scratch buffer
    /// `[outputs, vocabulary]`, as [`crate::reference::sample`] does, runs these, and so on, without the caller. The
    /// logits are, to the bit, those of [`Loaded::run`] with one token for each continuation, in their order. Only
    /// called if [`Capabilities::decodes`].
    ///
    /// Gives the chosen tokens of each continuation, in the order of `continuations`: lists of the same length, at
    /// least 1. They end with the pass in which the first of the sequences
    /// - chooses one of its stop tokens, which is then the last token of its list,
    /// - has as many tokens as [`Continuation::room`] says;
    ///
    /// or earlier: how many passes a call makes is the backend's choice, but it should come back within 100 ms or
    /// after one pass. The n-th token of a list, counted from 1, is the one at position `position + n` of the text, and
    /// drawn with that position.
    ///
    /// Afterwards the caches of a sequence hold `position` and as many positions as tokens were chosen, less one: all
    /// but the last token. The backend may have run ahead: up to [`LoadOptions::run_ahead_max`] positions after these
    /// (but none beyond the context) may have been overwritten, with what they overwrite in the caches of local layers,
    /// and are undefined. What [`Loaded::read`] gives is undefined until the next [`Loaded::run`].
    ///
    /// A call that goes on exactly where the last one ended (the same sequences in the same order, each at the position
    /// after its last one, with the last token of its list, the same sampling and stop tokens, no other call but
    /// [`Loaded::memory`], [`Loaded::token_times`] and [`Loaded::take_trace`] in between) is the common one: a backend
    /// may already have its tokens. Any other call has to be followed just the same.
    ///
    /// # Errors
    /// [`BackendError::Logits`], or [`BackendError::Cancelled`] once `cancel` is set; both only if they happen before
    /// every sequence has its first token: later, the tokens so far are given, and the next call meets the same. As if
    /// no token was chosen, up to [`LoadOptions::run_ahead_max`] positions from `position` on are undefined then. After
    /// a device that failed all positions of these sequences are.
    ///
    /// # Panics
    /// If [`Continuation::check`] does, or the backend does not decode.
    fn decode(
        &mut self,
        logits: BufferId,
        continuations: &[Continuation<'_>],
        cancel: Option<&AtomicBool>,
    ) -> Result<Vec<Vec<u32>>, BackendError> {
        let _ = (logits, continuations, cancel);
        panic!("this backend does not decode, as its capabilities say");
    }

    /// The device's time for each pass of the last [`Loaded::decode`], as many as tokens were chosen for each sequence;
    /// empty if the device does not tell.
    fn token_times(&mut self) -> Vec<Duration> {
        Vec::new()
    }

    /// Switches tracing on or off; off at first. Gives whether it is on: `false` if the device can't. Passes may be
    /// slower while it is on; switching drops the spans that were not taken.
    fn set_tracing(&mut self, _on: bool) -> bool {
        false
    }

    /// The spans of device work that are complete since tracing was switched on or they were last taken, in the order
    /// in which they started; empty if tracing is off.
    fn take_trace(&mut self) -> Vec<TraceSpan> {
        Vec::new()
    }
}

/// Positions that a cache must keep for each sequence: all of the context, or a window and the batch that is
/// written before it is looked at.
pub fn cache_positions(window: Option<usize>, options: &LoadOptions) -> usize {
    match window {
        Some(window) => (window + options.tokens_max - 1).min(options.context_max),
        None => options.context_max,
    }
}

/// Bytes of caches and activations that a program needs under the given options, before any device's own rounding.
pub fn required_memory(program: &Program, options: &LoadOptions) -> MemoryUse {
    let mut used = MemoryUse::default();
    for buffer in program.buffers() {
        match buffer.kind {
            BufferKind::Weight { format, rows, columns } => {
                used.weights += format.tensor_bytes(rows, columns).unwrap_or(0) as u64;
            }
            BufferKind::Scratch { rows, width } => {
                let rows = match rows {
                    Rows::Tokens => options.tokens_max,
                    Rows::Outputs => options.outputs_max,
                };
                used.scratch += (rows * width * size_of::<f32>()) as u64;
            }
            BufferKind::Cache { width, window } => {
                let positions = cache_positions(window, options) * options.sequences_max;
                used.caches += options.cache_dtype.tensor_bytes(positions, width).unwrap_or(0) as u64;
            }
        }
    }
    used
}

/// Ops of a program that a backend has to implement, for messages and tests.
pub fn op_names(program: &Program) -> Vec<&'static str> {
    let mut names: Vec<_> = program.ops().iter().map(Op::name).collect();
    names.sort_unstable();
    names.dedup();
    names
}
