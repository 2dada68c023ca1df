//! The contract between the engine and the devices.
//!
//! Who checks what: [`crate::ProgramBuilder::build`] checks shapes, [`Batch::check`] checks a batch; a backend relies
//! on both and panics on a violation, which is a bug in its caller. A [`BackendError`] only stands for what the
//! caller can't foresee: weights that can't be read, memory that is not there, a device that fails.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use thiserror::Error;

use crate::{BufferId, BufferKind, DType, Op, Program, Rows};

/// The bytes of one weight, in memory or in a mapped file.
pub trait WeightBytes: Send + Sync {
    /// All bytes: exactly [`DType::tensor_bytes`] of the declared shape.
    fn bytes(&self) -> &[u8];

    /// Says that a range has been copied and will not be read soon, so that mapped pages can go. Reading it again
    /// stays possible.
    fn release(&self, _range: Range<usize>) {}
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
    fn open(&self, name: &str) -> Result<Arc<dyn WeightBytes>, WeightError>;
}

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Activations may be rounded to 8 bits per block of 32 for integer dot products (f32 accumulation between
    /// blocks), or to bf16 for bf16 weights.
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

/// What a backend can do; the planner routes around what it can't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// For people: the device and the instruction sets in use.
    pub description: String,
    /// Formats of the weights of [`Op::Linear`] and [`Op::Embed`].
    pub weight_dtypes: Vec<DType>,
    /// Formats of caches.
    pub cache_dtypes: Vec<DType>,
    /// Bytes that programs can use.
    pub memory_bytes: u64,
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
    /// [`Batch::cancel`] was set.
    #[error("cancelled")]
    Cancelled,
}

/// A device that can load programs.
pub trait Backend: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

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

    /// Bytes in use.
    fn memory(&self) -> MemoryUse;
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
            BufferKind::Weight { dtype, rows, columns } => {
                used.weights += dtype.tensor_bytes(rows, columns).unwrap_or(0) as u64;
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
