//! Building blocks of the cases: programs with random weights and the passes to run on them.

use std::collections::HashMap;
use std::sync::Arc;

use tensor::{
    BufferId, DType, LoadOptions, Op, Precision, Program, ProgramBuilder, Rows, Scalar, Segment, TrellisFormat,
    WeightBytes, WeightError, WeightFormat, WeightSource,
};

use crate::format::{RandomWeight, f32_weight, random_weight};
use crate::random::Random;
use crate::trellis::random_trellis;

/// Token ids of the tables that inputs are drawn from.
pub const VOCABULARY: usize = 61;

/// Most tokens of a pass.
pub const TOKENS_MAX: usize = 70;

/// What random activations look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Normal, with this standard deviation.
    Normal(f32),
    /// Normal of many sizes; some rows all zero, constant, alternating, tiny, beyond binary16, or with one outlier.
    Awkward,
}

/// How a backend is asked to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Precision of products.
    pub precision: Precision,
    /// Format of the caches.
    pub cache_dtype: DType,
}

/// Both precisions, for programs without caches.
pub const PRECISIONS: &[Mode] = &[
    Mode { precision: Precision::F32, cache_dtype: DType::F32 },
    Mode { precision: Precision::Fast, cache_dtype: DType::F32 },
];

/// Both precisions with every format of caches.
pub const CACHE_MODES: &[Mode] = &[
    Mode { precision: Precision::F32, cache_dtype: DType::F32 },
    Mode { precision: Precision::F32, cache_dtype: DType::F16 },
    Mode { precision: Precision::F32, cache_dtype: DType::Q8_0 },
    Mode { precision: Precision::Fast, cache_dtype: DType::F32 },
    Mode { precision: Precision::Fast, cache_dtype: DType::F16 },
    Mode { precision: Precision::Fast, cache_dtype: DType::Q8_0 },
];

/// One batch.
#[derive(Clone, Debug)]
pub struct Pass {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Their sequences and positions.
    pub segments: Vec<Segment>,
    /// Indices of the tokens whose outputs are wanted.
    pub outputs: Vec<u32>,
}

/// Which outputs of a pass are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// Every token's.
    All,
    /// The last token's.
    Last,
    /// Every third token's.
    Third,
    /// None.
    None,
}

/// A program, its weights and the passes to compare on it.
#[derive(Debug)]
pub struct Experiment {
    /// Formats and sizes, for a failure.
    pub label: String,
    /// What to run.
    pub program: Program,
    /// Its weights by name.
    pub weights: Arc<Weights>,
    /// Limits; precision, cache format and threads are set for each run.
    pub options: LoadOptions,
    /// How to run it.
    pub modes: &'static [Mode],
    /// In this order, on the same caches.
    pub passes: Vec<Pass>,
    /// Scratch buffers to compare after each pass.
    pub read: Vec<BufferId>,
}

impl Experiment {
    /// Whether a weight is a trellis, which a backend need not have.
    pub fn has_trellis(&self) -> bool {
        self.weights.0.values().any(|weight| weight.terms.is_some())
    }
}

/// Weights in memory.
#[derive(Clone, Debug, Default)]
pub struct Weights(pub HashMap<String, RandomWeight>);

impl WeightSource for Weights {
    fn open(&self, name: &str, _: WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError> {
        Ok(Arc::new(self.0.get(name).ok_or("no such weight")?.clone()))
    }
}

/// Collects an [`Experiment`].
#[derive(Debug)]
pub struct Setup {
    builder: ProgramBuilder,
    weights: Weights,
    random: Random,
    passes: Vec<Pass>,
    read: Vec<BufferId>,
    names: usize,
}

impl Setup {
    /// An empty program whose random numbers come from `seed`.
    pub fn new(seed: u64) -> Self {
        Setup {
            builder: ProgramBuilder::new(),
            weights: Weights::default(),
            random: Random::new(seed),
            passes: Vec::new(),
            read: Vec::new(),
            names: 0,
        }
    }

    /// A random weight of any format.
    pub fn weight(&mut self, format: impl Into<WeightFormat>, rows: usize, columns: usize) -> BufferId {
        let seed = self.random.bits();
        match format.into() {
            WeightFormat::Blocks(dtype) => {
                self.add_weight(dtype.into(), rows, columns, random_weight(dtype, rows, columns, seed))
            }
            WeightFormat::Trellis(format) => {
                // Weights of other inputs have other scales.
                let rotation = format.rotation + 16 * columns as u32;
                let format = TrellisFormat { rotation, ..format };
                self.add_weight(format.into(), rows, columns, random_trellis(format, rows, columns, seed))
            }
        }
    }

    /// A weight of the given f32 values.
    pub fn f32_weight(&mut self, rows: usize, columns: usize, values: Vec<f32>) -> BufferId {
        self.add_weight(DType::F32.into(), rows, columns, f32_weight(values))
    }

    /// The weight of a norm: around 1, as `1 + w` is.
    pub fn norm_weight(&mut self, columns: usize) -> BufferId {
        let values = (0..columns).map(|_| 1.0 + 0.5 * self.random.normal()).collect();
        self.f32_weight(1, columns, values)
    }

    fn add_weight(&mut self, format: WeightFormat, rows: usize, columns: usize, weight: RandomWeight) -> BufferId {
        let name = self.name("weight");
        self.weights.0.insert(name.clone(), weight);
        self.builder.weight(name, format, rows, columns)
    }

    /// A scratch buffer.
    pub fn scratch(&mut self, rows: Rows, width: usize) -> BufferId {
        let name = self.name("scratch");
        self.builder.scratch(name, rows, width)
    }

    /// A cache.
    pub fn cache(&mut self, width: usize, window: Option<usize>) -> BufferId {
        let name = self.name("cache");
        self.builder.cache(name, width, window)
    }

    fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    /// Appends an op.
    pub fn push(&mut self, op: Op) {
        self.builder.push(op);
    }

    /// Random activations `[tokens, width]`: exact, because an f32 table that is scaled by 1 is only copied. Each call
    /// makes a table of its own, so that inputs differ.
    pub fn input(&mut self, width: usize, values: Values) -> BufferId {
        let table = (0..VOCABULARY).flat_map(|row| self.row(row, width, values)).collect();
        let table = self.f32_weight(VOCABULARY, width, table);
        let output = self.scratch(Rows::Tokens, width);
        self.push(Op::Embed { table, scale: Scalar(1.0), output });
        output
    }

    fn row(&mut self, row: usize, width: usize, values: Values) -> Vec<f32> {
        let random = &mut self.random;
        let mut normal = |scale: f32| (0..width).map(|_| scale * random.normal()).collect::<Vec<f32>>();
        match (values, row % 12) {
            (Values::Normal(scale), _) => normal(scale),
            (Values::Awkward, 1) => vec![0.0; width],
            (Values::Awkward, 3) => vec![-3.0; width],
            (Values::Awkward, 5) => (0..width).map(|column| if column % 2 == 0 { 1.0 } else { -1.0 }).collect(),
            (Values::Awkward, 7) => normal(1e-6),
            (Values::Awkward, 9) => normal(1e5),
            (Values::Awkward, 11) => {
                let mut row = normal(0.1);
                row[width / 2] = 300.0;
                row
            }
            (Values::Awkward, other) => normal((other as f32 - 5.0).exp2()),
        }
    }

    /// Compares this buffer after each pass. No op may read it once it is written for the last time: a backend may keep
    /// what another op reads out of memory.
    pub fn read(&mut self, buffer: BufferId) {
        self.read.push(buffer);
    }

    /// Compares a copy of this buffer, which ops may read or overwrite later.
    pub fn read_copy(&mut self, input: BufferId, width: usize) {
        let output = self.scratch(Rows::Outputs, width);
        self.push(Op::SelectOutputs { input, output });
        self.read(output);
    }

    /// Adds a pass of random tokens over segments `(sequence, position, tokens)`.
    pub fn pass(&mut self, segments: &[(usize, usize, usize)], outputs: Outputs) {
        let segments: Vec<Segment> =
            segments.iter().map(|&(sequence, position, tokens)| Segment { sequence, position, tokens }).collect();
        let count: usize = segments.iter().map(|segment| segment.tokens).sum();
        let tokens = (0..count).map(|_| self.random.below(VOCABULARY) as u32).collect();
        let outputs = (0..count as u32).filter(|&row| match outputs {
            Outputs::All => true,
            Outputs::Last => row as usize == count - 1,
            Outputs::Third => row % 3 == 2,
            Outputs::None => false,
        });
        self.passes.push(Pass { tokens, segments, outputs: outputs.collect() });
    }

    /// Adds one pass of sequence 0 from position 0 for each number of tokens.
    pub fn passes_of(&mut self, tokens: &[usize]) {
        for &tokens in tokens {
            self.pass(&[(0, 0, tokens)], Outputs::All);
        }
    }

    /// The experiment.
    pub fn finish(self, label: String, modes: &'static [Mode]) -> Experiment {
        let program = self.builder.build().expect("a well-formed program");
        for buffer in &self.read {
            let last = program.ops().iter().rfind(|op| op.writes() == *buffer || op.reads().contains(buffer));
            assert!(last.is_some_and(|op| op.writes() == *buffer), "{label}: {buffer:?} is read after it is written");
        }
        let end = |segment: &Segment| segment.position + segment.tokens;
        let segments = || self.passes.iter().flat_map(|pass| &pass.segments);
        let options = LoadOptions {
            tokens_max: TOKENS_MAX,
            outputs_max: TOKENS_MAX,
            sequences_max: segments().map(|segment| segment.sequence).max().unwrap_or(0) + 1,
            context_max: segments().map(end).max().unwrap_or(1),
            cache_dtype: DType::F32,
            precision: Precision::F32,
            threads: None,
        };
        let weights = Arc::new(self.weights);
        Experiment { label, program, weights, options, modes, passes: self.passes, read: self.read }
    }
}
