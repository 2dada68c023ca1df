//! A program in memory: buffers, and the loop over its ops.

use std::sync::atomic::Ordering;

use tensor::backend::{cache_positions, required_memory};
use tensor::{
    BackendError, Batch, BufferId, BufferKind, DType, LoadOptions, Loaded, MemoryUse, Op, Precision, Program, Rows,
    WeightFormat, WeightSource,
};

use crate::activations::Activations;
use crate::aligned::Aligned;
use crate::cache::Cache;
use crate::isa::Output;
use crate::kernel;
use crate::kernel::attention::Attention;
use crate::kernel::linear::{Inputs, Product};
use crate::kernel::rope::RopeTable;
use crate::level::Level;
use crate::pool::{Pool, physical_cores};
use crate::trellis::Rotated;
use crate::weight::Weight;

/// What a buffer is here.
enum Storage {
    /// A matrix.
    Weight(Weight),
    /// A vector, decoded.
    Vector(Vec<f32>),
    /// Activations.
    Scratch { values: Aligned<f32>, rows: Rows, width: usize },
    /// Keys or values.
    Cache(Cache),
}

/// A loaded program.
pub(crate) struct LoadedProgram {
    level: Level,
    pool: Pool,
    program: Program,
    options: LoadOptions,
    buffers: Vec<Storage>,
    /// Absent only while linear layers run.
    inputs: Option<Inputs>,
    ropes: Vec<RopeTable>,
    memory: MemoryUse,
}

impl LoadedProgram {
    /// Reads and rearranges the weights and allocates everything else.
    pub(crate) fn new(
        level: Level,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Self, BackendError> {
        check_memory(program, options)?;
        let pool = Pool::new(options.threads.unwrap_or_else(physical_cores));
        let mut memory = MemoryUse::default();
        let mut buffers = Vec::with_capacity(program.buffers().len());
        for (index, buffer) in program.buffers().iter().enumerate() {
            buffers.push(match buffer.kind {
                BufferKind::Weight { format, rows, columns } => {
                    let shape = (format, rows, columns);
                    let weight = Weight::load(&buffer.name, shape, weights, options.precision, &pool)?;
                    memory.weights += weight.bytes() as u64;
                    if is_vector(program, BufferId(index as u32)) {
                        decode_vector(level, &weight, columns)
                    } else {
                        Storage::Weight(weight)
                    }
                }
                BufferKind::Scratch { rows, width } => {
                    let count = match rows {
                        Rows::Tokens => options.tokens_max,
                        Rows::Outputs => options.outputs_max,
                    };
                    memory.scratch += (count * width * size_of::<f32>()) as u64;
                    Storage::Scratch { values: Aligned::new(count * width), rows, width }
                }
                BufferKind::Cache { width, window } => {
                    let cache = new_cache(width, window, options)?;
                    memory.caches += cache.bytes() as u64;
                    Storage::Cache(cache)
                }
            });
        }
        let rows = options.tokens_max.max(options.outputs_max);
        let activations = Activations::new(rows, widest_input(program, |format| format.blocks().is_some()));
        let exact = options.precision == Precision::F32;
        let rotated = Rotated::new(rows, widest_input(program, |format| format.blocks().is_none()), exact);
        memory.scratch += (activations.bytes() + rotated.bytes()) as u64;
        let inputs = Some(Inputs { activations, rotated });
        let ropes = rope_tables(program, options);
        let options = options.clone();
        Ok(LoadedProgram { level, pool, program: program.clone(), options, buffers, inputs, ropes, memory })
    }

    /// Rows of a scratch buffer that this batch uses.
    fn rows(rows: Rows, batch: &Batch<'_>) -> usize {
        match rows {
            Rows::Tokens => batch.tokens.len(),
            Rows::Outputs => batch.outputs.len(),
        }
    }

    /// The used rows of a scratch buffer, and its width.
    fn scratch(&self, id: BufferId, batch: &Batch<'_>) -> (&[f32], usize) {
        match &self.buffers[id.index()] {
            Storage::Scratch { values, rows, width } => (&values[..Self::rows(*rows, batch) * width], *width),
            _ => unreachable!("the program was checked when it was built"),
        }
    }

    fn weight(&self, id: BufferId) -> &Weight {
        match &self.buffers[id.index()] {
            Storage::Weight(weight) => weight,
            _ => unreachable!("the program was checked when it was built"),
        }
    }

    fn vector(&self, id: BufferId) -> &[f32] {
        match &self.buffers[id.index()] {
            Storage::Vector(vector) => vector,
            _ => unreachable!("the program was checked when it was built"),
        }
    }

    fn cache(&self, id: BufferId) -> &Cache {
        match &self.buffers[id.index()] {
            Storage::Cache(cache) => cache,
            _ => unreachable!("the program was checked when it was built"),
        }
    }

    /// Takes a buffer out while an op writes it and reads others.
    fn take(&mut self, id: BufferId) -> Storage {
        std::mem::replace(&mut self.buffers[id.index()], Storage::Vector(Vec::new()))
    }

    /// Lets `write` fill the used rows of `output`, with the other buffers at hand. In-place ops pass the old values.
    fn with_output(&mut self, output: BufferId, batch: &Batch<'_>, write: impl FnOnce(&Self, &mut [f32], usize)) {
        let mut storage = self.take(output);
        if let Storage::Scratch { values, rows, width } = &mut storage {
            write(self, &mut values[..Self::rows(*rows, batch) * *width], *width);
        }
        self.buffers[output.index()] = storage;
    }

    /// Runs the ops from `index` on that go together (linear layers with one input); returns how many.
    fn step(&mut self, index: usize, batch: &Batch<'_>) -> usize {
        let op = self.program.ops()[index].clone();
        let (level, output) = (self.level, op.writes());
        match op {
            Op::Linear { input, .. } => return self.linear(index, input, batch),
            Op::CacheWrite { input, cache } => self.cache_write(input, cache, batch),
            Op::Embed { table, scale, .. } => self.with_output(output, batch, |this, values, width| {
                kernel::embed::embed(level, &this.pool, this.weight(table), batch.tokens, scale.0, values, width);
            }),
            Op::RmsNorm { input, weight, epsilon, .. } => self.with_output(output, batch, |this, values, width| {
                let input = (input != output).then(|| this.scratch(input, batch).0);
                let norm = (this.vector(weight), epsilon.0);
                kernel::rms_norm::rms_norm(level, &this.pool, input, norm, values, width);
            }),
            Op::Rope { head_dim, base, position_divisor, .. } => {
                self.with_output(output, batch, |this, values, width| {
                    let table = this.ropes.iter().find(|table| table.is_for(base.0, position_divisor.0, head_dim));
                    let table = table.expect("a table was made for every rope of the program");
                    kernel::rope::rope(level, &this.pool, values, width, table);
                })
            }
            Op::Attention { query, keys, values, head_dim, window, scale, .. } => {
                self.with_output(output, batch, |this, outputs, width| {
                    let (query, _) = this.scratch(query, batch);
                    let (keys, values) = (this.cache(keys), this.cache(values));
                    let (heads, scale, segments) = (width / head_dim, scale.0, batch.segments);
                    let op = Attention { query, keys, values, heads, head_dim, window, scale, segments };
                    kernel::attention::attention(level, &this.pool, &op, Output::new(outputs, width));
                });
            }
            Op::GeluMul { gate, up, .. } => self.gelu_mul(gate, up, output, batch),
            Op::Add { input, .. } => self.with_output(output, batch, |this, values, width| {
                kernel::add::add(level, &this.pool, this.scratch(input, batch).0, values, width);
            }),
            Op::SelectOutputs { input, .. } => self.with_output(output, batch, |this, values, width| {
                kernel::select_outputs::select_outputs(this.scratch(input, batch).0, batch.outputs, values, width);
            }),
        }
        1
    }

    /// All linear layers from `index` on that read `input` and follow each other.
    fn linear(&mut self, index: usize, input: BufferId, batch: &Batch<'_>) -> usize {
        let layers: Vec<(BufferId, BufferId)> = self.program.ops()[index..]
            .iter()
            .map_while(|op| match *op {
                Op::Linear { weight, input: other, output } if other == input => Some((weight, output)),
                _ => None,
            })
            .collect();
        let mut outputs: Vec<Storage> = layers.iter().map(|&(_, output)| self.take(output)).collect();
        let mut inputs = self.inputs.take().expect("put back below");
        let (values, columns) = self.scratch(input, batch);
        let products: Vec<Product<'_>> = layers
            .iter()
            .zip(&mut outputs)
            .filter_map(|(&(weight, _), storage)| match storage {
                Storage::Scratch { values, rows, width } => {
                    let used = Self::rows(*rows, batch) * *width;
                    Some(Product { weight: self.weight(weight), output: Output::new(&mut values[..used], *width) })
                }
                _ => None,
            })
            .collect();
        if !values.is_empty() {
            kernel::linear::linear(self.level, &self.pool, &mut inputs, values, columns, &products);
        }
        self.inputs = Some(inputs);
        for (&(_, output), storage) in layers.iter().zip(outputs) {
            self.buffers[output.index()] = storage;
        }
        layers.len()
    }

    fn cache_write(&mut self, input: BufferId, id: BufferId, batch: &Batch<'_>) {
        let mut storage = self.take(id);
        if let Storage::Cache(cache) = &mut storage {
            kernel::cache_write::cache_write(self.scratch(input, batch).0, batch.segments, cache);
        }
        self.buffers[id.index()] = storage;
    }

    fn gelu_mul(&mut self, gate: BufferId, up: BufferId, output: BufferId, batch: &Batch<'_>) {
        let (level, up_copy) = (self.level, (up == output).then(|| self.scratch(up, batch).0.to_vec()));
        self.with_output(output, batch, |this, values, width| {
            if gate != output {
                values.copy_from_slice(this.scratch(gate, batch).0);
            }
            let up = up_copy.as_deref().unwrap_or_else(|| this.scratch(up, batch).0);
            kernel::gelu_mul::gelu_mul(level, &this.pool, values, up, width);
        });
    }
}

impl Loaded for LoadedProgram {
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        batch.check(&self.options);
        for table in &mut self.ropes {
            table.fill(batch.segments.iter().flat_map(|segment| segment.position..segment.position + segment.tokens));
        }
        let mut index = 0;
        while index < self.program.ops().len() {
            if batch.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Err(BackendError::Cancelled);
            }
            index += self.step(index, batch);
        }
        Ok(())
    }

    fn read(&mut self, buffer: BufferId, into: &mut [f32]) -> Result<(), BackendError> {
        match &self.buffers[buffer.index()] {
            Storage::Scratch { values, width, .. } => {
                assert!(into.len().is_multiple_of(*width), "a whole number of rows");
                into.copy_from_slice(&values[..into.len()]);
                Ok(())
            }
            _ => panic!("`{}` is not a scratch buffer", self.program.buffer(buffer).name),
        }
    }

    fn memory(&self) -> MemoryUse {
        self.memory
    }
}

/// Compares what caches and activations need with the memory that is there; weights may stay on disk.
fn check_memory(program: &Program, options: &LoadOptions) -> Result<(), BackendError> {
    let required = required_memory(program, options);
    let needed = required.caches.saturating_add(required.scratch);
    let available = crate::available_memory();
    if needed <= available {
        return Ok(());
    }
    let what = "the caches and activations of this context".to_owned();
    Err(BackendError::OutOfMemory { device: "the CPU".to_owned(), what, needed, available })
}

fn new_cache(width: usize, window: Option<usize>, options: &LoadOptions) -> Result<Cache, BackendError> {
    let unsupported = |problem| BackendError::Unsupported { device: "the CPU".to_owned(), problem };
    let dtype = options.cache_dtype;
    if !matches!(dtype, DType::F32 | DType::F16 | DType::Q8_0) {
        return Err(unsupported(format!("caches are f32, f16 or q8_0, not {dtype}")));
    }
    Cache::new(dtype, width, cache_positions(window, options), options.sequences_max)
        .ok_or_else(|| unsupported(format!("a {dtype} cache can't hold rows of {width} values")))
}

/// Whether a weight is read as a vector of norm weights.
fn is_vector(program: &Program, id: BufferId) -> bool {
    program.ops().iter().any(|op| matches!(op, Op::RmsNorm { weight, .. } if *weight == id))
}

fn decode_vector(level: Level, weight: &Weight, columns: usize) -> Storage {
    let mut values = vec![0.0; weight.rows() * columns];
    weight.decode_row(level, 0, &mut values);
    Storage::Vector(values)
}

/// Columns of the widest input of a linear layer whose weight has one of some formats.
fn widest_input(program: &Program, is_one: impl Fn(WeightFormat) -> bool) -> usize {
    let widths = program.ops().iter().map(|op| match op {
        Op::Linear { weight, .. } => match program.buffer(*weight).kind {
            BufferKind::Weight { format, columns, .. } if is_one(format) => columns,
            _ => 0,
        },
        _ => 0,
    });
    widths.max().unwrap_or(0)
}

/// One table for each distinct rope of the program.
fn rope_tables(program: &Program, options: &LoadOptions) -> Vec<RopeTable> {
    let mut tables: Vec<RopeTable> = Vec::new();
    for op in program.ops() {
        if let Op::Rope { head_dim, base, position_divisor, .. } = *op
            && !tables.iter().any(|table| table.is_for(base.0, position_divisor.0, head_dim))
        {
            tables.push(RopeTable::new(base.0, position_divisor.0, head_dim, options.tokens_max));
        }
    }
    tables
}
