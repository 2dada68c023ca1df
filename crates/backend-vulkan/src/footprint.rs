//! All memory of a loaded program, decided before any of it is there: what loading takes is also what planning counts.

use std::collections::HashMap;
use std::sync::Arc;

use tensor::{BackendError, BufferId, BufferKind, DType, LoadOptions, MemoryUse, Op, Program, Rows, WeightFormat};

use crate::announce::MARKS;
use crate::context::Context;
use crate::decode::results_bytes;
use crate::features::DeviceKind;
use crate::kernel::attention::{Decode, Scratch};
use crate::kernel::matmul::{Path, path, slices_bytes};
use crate::kernel::rope::RopeTables;
use crate::kernel::sample::{Sampler, Settings, occurred_words};
use crate::kernel::trellis::{TrellisMemory, TrellisScratch};
use crate::layout::Weight;
use crate::loaded::{DOWNLOAD_BYTES, check};
use crate::memory::{Arena, Place, Slice};
use crate::place::Buffers;
use crate::plan::{Rope, Setting, Step};
use crate::record::{BatchAddresses, attention_shape};
use crate::scene::plans;
use crate::upload::RING_BYTES;

/// What lies in the device's memory while a program is loaded.
pub(crate) struct Footprint {
    pub(crate) buffers: Buffers,
    pub(crate) batch: BatchMemory,
    pub(crate) decoder: DecoderMemory,
    /// For attention over single tokens.
    pub(crate) scratch: Scratch,
    /// Tables of every rope of the program.
    pub(crate) ropes: Vec<(Rope, Slice)>,
}

type Plans = HashMap<Setting, Vec<Step>>;

impl Footprint {
    /// Takes the memory of a program whose steps, in every setting that will occur, are `plans`.
    ///
    /// # Errors
    /// Memory that is not there.
    pub(crate) fn new(
        context: &Arc<Context>,
        program: &Program,
        options: &LoadOptions,
        plans: &Plans,
    ) -> Result<Footprint, BackendError> {
        let expected =
            Footprint::decide(context, Place::Nowhere, 0, (program, options, plans))?.buffers.arena().bytes();
        Footprint::decide(context, Place::Device, expected, (program, options, plans))
    }

    fn decide(
        context: &Arc<Context>,
        place: Place,
        expected: u64,
        (program, options, plans): (&Program, &LoadOptions, &Plans),
    ) -> Result<Footprint, BackendError> {
        let mut buffers = Buffers::new(Arena::new(context, place, expected), program, options, plans)?;
        let batch = BatchMemory::new(context, program, options, &mut buffers)?;
        let decoder = DecoderMemory::new(context, program, options, &mut buffers)?;
        let scratch = attention_scratch(context, program, options, &mut buffers)?;
        let mut ropes: Vec<(Rope, Slice)> = Vec::new();
        for op in program.ops() {
            let Op::Rope { head_dim, base, position_divisor, .. } = *op else { continue };
            let rope = Rope { head_dim, base, position_divisor };
            if ropes.iter().all(|(other, _)| *other != rope) {
                ropes.push((rope, buffers.extra(RopeTables::bytes_of(head_dim, options.context_max))?));
            }
        }
        Ok(Footprint { buffers, batch, decoder, scratch, ropes })
    }
}

/// Bytes of the device's heaps that loading a program takes at most. What is not the program's own counts as
/// activations: ends of blocks that nothing fits into, and the ring that weights pass through.
pub(crate) fn required(context: &Arc<Context>, program: &Program, options: &LoadOptions) -> MemoryUse {
    if check(context, program, options).is_err() {
        // Loading says why.
        return tensor::backend::required_memory(program, options);
    }
    let plans = plans(context, program, options);
    let decide = |expected| {
        let decided = Footprint::decide(context, Place::Nowhere, expected, (program, options, &plans));
        decided.expect("addresses are there without end")
    };
    let expected = decide(0).buffers.arena().bytes();
    let footprint = decide(expected);
    let mut used = footprint.buffers.used();
    used.scratch += footprint.buffers.arena().bytes() - expected;
    if context.features().kind == DeviceKind::Discrete {
        used.scratch += RING_BYTES;
    }
    let rows = rows_max(options);
    let (uploads, downloads) = (Arena::new(context, Place::Upload, 0), Arena::new(context, Place::Download, 0));
    if Arena::new(context, Place::Staging, 0).is_local() {
        used.scratch += RING_BYTES;
    }
    if uploads.is_local() {
        used.scratch += footprint.batch.staging_bytes() + footprint.decoder.staging_bytes(rows);
    }
    if downloads.is_local() {
        used.scratch += DOWNLOAD_BYTES + results_bytes(rows);
    }
    used
}

/// The batch on the device, and where it is written.
pub(crate) struct BatchMemory {
    pub(crate) tokens: Slice,
    pub(crate) outputs: Slice,
    pub(crate) tiles: Slice,
    pub(crate) arrivals: Slice,
    /// A word that nobody reads.
    pub(crate) sink: Slice,
    /// For products of matrices in slices.
    pub(crate) slices: Slice,
    /// For products with trellis weights.
    pub(crate) trellis: TrellisScratch,
}

impl BatchMemory {
    fn new(
        context: &Context,
        program: &Program,
        options: &LoadOptions,
        buffers: &mut Buffers,
    ) -> Result<BatchMemory, BackendError> {
        Ok(BatchMemory {
            tokens: buffers.extra(16 * options.tokens_max)?,
            outputs: buffers.extra(4 * options.outputs_max)?,
            tiles: buffers.extra(16 * options.tokens_max)?,
            arrivals: buffers.extra(4 * widest(program).div_ceil(32))?,
            sink: buffers.extra(4)?,
            slices: buffers.extra(slices_max(context, program, options))?,
            trellis: TrellisMemory::new(context.features(), program, options)
                .place(|bytes| Ok(buffers.extra(bytes)?.address))?,
        })
    }

    /// Bytes of what the processor writes for a pass.
    pub(crate) fn staging_bytes(&self) -> u64 {
        self.slices().iter().map(|slice| slice.size).sum()
    }

    /// What the processor writes for each pass.
    pub(crate) fn slices(&self) -> [Slice; 3] {
        [self.tokens, self.outputs, self.tiles]
    }

    /// For dispatches.
    pub(crate) fn addresses(&self) -> BatchAddresses {
        BatchAddresses {
            tokens: self.tokens.address,
            outputs: self.outputs.address,
            tiles: self.tiles.address,
            arrivals: self.arrivals.address,
            slices: self.slices.address,
            trellis: self.trellis,
        }
    }
}

/// What choosing tokens needs.
#[derive(Clone, Copy)]
pub(crate) struct DecoderMemory {
    pub(crate) settings: Slice,
    pub(crate) occurred: Slice,
    /// Of the sampler, where there are logits.
    pub(crate) sampler: Option<Slice>,
}

impl DecoderMemory {
    fn new(
        context: &Context,
        program: &Program,
        options: &LoadOptions,
        buffers: &mut Buffers,
    ) -> Result<DecoderMemory, BackendError> {
        let (rows, vocabulary) = (rows_max(options), vocabulary(program));
        let settings = buffers.extra(rows * size_of::<Settings>())?;
        let occurred = buffers.extra(rows * occurred_words(vocabulary.unwrap_or(0)) * 4)?;
        let bytes = vocabulary.map(|vocabulary| Sampler::scratch_bytes(context.features(), rows, vocabulary).0);
        let sampler = bytes.map(|bytes| buffers.extra(bytes)).transpose()?;
        Ok(DecoderMemory { settings, occurred, sampler })
    }

    /// Bytes of what the processor writes for a number of sequences: settings, tokens, output rows, occurred tokens.
    pub(crate) fn staging_bytes(&self, rows: usize) -> u64 {
        self.settings.size + self.occurred.size + 20 * rows as u64
    }
}

/// Sequences that can be decoded at once.
pub(crate) fn rows_max(options: &LoadOptions) -> usize {
    options.sequences_max.min(options.outputs_max).min(options.tokens_max)
}

/// The width of the logits: of the widest output that no op reads.
pub(crate) fn vocabulary(program: &Program) -> Option<usize> {
    let read: Vec<BufferId> = program.ops().iter().flat_map(Op::reads).collect();
    let outputs = program.buffers().iter().enumerate().filter_map(|(index, buffer)| match buffer.kind {
        BufferKind::Scratch { rows: Rows::Outputs, width } if !read.contains(&BufferId(index as u32)) => Some(width),
        BufferKind::Scratch { .. } | BufferKind::Weight { .. } | BufferKind::Cache { .. } => None,
    });
    outputs.max()
}

/// Memory for attention over single tokens, for as many as there are sequences.
fn attention_scratch(
    context: &Context,
    program: &Program,
    options: &LoadOptions,
    buffers: &mut Buffers,
) -> Result<Scratch, BackendError> {
    let (mut counters, mut partial) = (0, 0);
    for op in program.ops().iter().filter(|op| matches!(op, Op::Attention { .. })) {
        let shape = attention_shape(buffers, op);
        for rows in 1..=options.sequences_max.min(options.tokens_max) {
            if let Some(plan) = Decode::new(context.features(), &shape, rows, options.context_max) {
                counters = counters.max(Decode::counter_bytes(&shape, rows));
                partial = partial.max(plan.partial_bytes(&shape, rows));
            }
        }
    }
    Ok(Scratch {
        counters: buffers.extra(counters as usize + 4 * MARKS)?.address,
        partial: buffers.extra(partial as usize)?.address,
    })
}

/// Bytes for products of matrices in slices; none where none are multiplied so.
fn slices_max(context: &Context, program: &Program, options: &LoadOptions) -> usize {
    if path(context.features(), options.precision, DType::F16) == Path::Plain {
        return 0;
    }
    let weights = program.buffers().iter().filter_map(|buffer| match buffer.kind {
        BufferKind::Weight { format: WeightFormat::Blocks(dtype), rows, columns } => {
            Some(Weight { address: 0, dtype, rows, columns })
        }
        BufferKind::Weight { format: WeightFormat::Trellis(_), .. } => None,
        BufferKind::Scratch { .. } | BufferKind::Cache { .. } => None,
    });
    weights.map(|weight| slices_bytes(&weight)).max().unwrap_or(0)
}

/// Elements of the widest activation.
fn widest(program: &Program) -> usize {
    let widths = program.buffers().iter().filter_map(|buffer| match buffer.kind {
        BufferKind::Scratch { width, .. } => Some(width),
        BufferKind::Weight { .. } | BufferKind::Cache { .. } => None,
    });
    widths.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use tensor::{Precision, ProgramBuilder, Scalar, WeightBytes, WeightError, WeightSource};

    use super::*;
    use crate::lab::Lab;
    use crate::loaded::VulkanLoaded;

    /// An embedding, attention and logits, in a format that is larger on the device than in a file.
    fn program() -> Program {
        let mut builder = ProgramBuilder::new();
        let table = builder.weight("table", DType::Q4_K, 1500, 512);
        let rows = builder.scratch("rows", Rows::Tokens, 512);
        builder.push(Op::Embed { table, scale: Scalar(1.0), output: rows });
        builder.push(Op::Rope { values: rows, head_dim: 64, base: Scalar(1e4), position_divisor: Scalar(1.0) });
        let (keys, output) = (builder.cache("keys", 512, None), builder.scratch("output", Rows::Tokens, 512));
        builder.push(Op::CacheWrite { input: rows, cache: keys });
        let (query, values, window, scale) = (rows, keys, None, Scalar(0.1));
        builder.push(Op::Attention { query, keys, values, head_dim: 64, window, scale, output });
        let (chosen, logits) =
            (builder.scratch("chosen", Rows::Outputs, 512), builder.scratch("logits", Rows::Outputs, 1500));
        builder.push(Op::SelectOutputs { input: output, output: chosen });
        builder.push(Op::Linear { weight: table, input: chosen, output: logits });
        builder.build().expect("a good program")
    }

    struct Zeros;

    impl WeightSource for Zeros {
        fn open(&self, _: &str, _: tensor::WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError> {
            Ok(Arc::new(vec![0; DType::Q4_K.tensor_bytes(1500, 512).unwrap()]))
        }
    }

    #[test]
    fn what_is_planned_is_what_is_taken() {
        let Some(lab) = Lab::for_tests() else { return };
        let program = program();
        for (context_max, sequences_max, precision) in [(300, 1, Precision::Fast), (5000, 3, Precision::F32)] {
            let options = LoadOptions {
                tokens_max: 64,
                outputs_max: 16,
                sequences_max,
                context_max,
                cache_dtype: DType::F16,
                precision,
                threads: None,
            };
            let planned = required(&lab.context, &program, &options);
            let pipelines = Arc::new(crate::pipeline::Pipelines::new(&lab.context).unwrap());
            let loaded = VulkanLoaded::load(&lab.context, &pipelines, &program, &Zeros, &options).unwrap();
            let used = tensor::Loaded::memory(&loaded);
            assert_eq!((planned.weights, planned.caches), (used.weights, used.caches));
            // 256 weights take 144 bytes in the file and 148 on the device, whose rows are multiples of 16.
            assert_eq!(used.weights, (1500u64 * 304).next_multiple_of(256));
            let blocks = loaded.scene().buffers.arena().bytes();
            let all = |used: MemoryUse| used.weights + used.caches + used.scratch;
            assert!(all(used) <= blocks && blocks <= all(planned), "{used:?} of {blocks}, {planned:?}");
            let rest = all(planned) - blocks;
            assert!(rest.is_multiple_of(RING_BYTES) || rest < 2 * RING_BYTES + DOWNLOAD_BYTES + (4 << 20), "{rest}");
        }
    }

    #[test]
    fn what_can_not_be_loaded_is_planned_without_a_panic() {
        let Some(lab) = Lab::for_tests() else { return };
        let mut options = LoadOptions {
            tokens_max: 64,
            outputs_max: 16,
            sequences_max: 64,
            context_max: 1 << 24,
            cache_dtype: DType::F32,
            precision: Precision::Fast,
            threads: None,
        };
        assert!(required(&lab.context, &program(), &options).caches > 1 << 40);
        options.cache_dtype = DType::Q4_K;
        assert!(required(&lab.context, &program(), &options).weights > 0);
    }
}
