//! Runs layers on the residual stream of many sequences.

use std::collections::HashMap;
use std::sync::Arc;

use engine::ModelSource;
use model::{Role, STATES, TensorEntry, build_head_program, build_layer_program};
use tensor::backend::required_memory;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::format::trellis::{Linear, Scales};
use tensor::{
    Backend, Batch, BufferId, DType, LoadOptions, Loaded, Precision, Program, Segment, TrellisFormat, WeightBytes,
    WeightError, WeightFormat, WeightSource,
};

use super::rounding::{blame, pad};
use super::{Observer, PipelineError};
use crate::Hessian;
use crate::error::check_finite;

/// Tokens of a pass, unless a sequence is longer.
const BATCH_TOKENS: usize = 2048;

/// The residual stream of sequences, one after another, `[tokens, hidden]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct States {
    /// Tokens of each sequence.
    pub(super) lengths: Vec<usize>,
    pub(super) values: Arc<Vec<f32>>,
}

/// Weights that take the place of those of the source, by their names in programs.
pub(super) type Replaced = HashMap<String, Replacement>;

/// One of them.
#[derive(Clone, Debug)]
pub(super) enum Replacement {
    /// In f32.
    Values(Arc<Vec<f32>>),
    /// For a backend that multiplies trellises. The number is that of its input, for those that share its scales.
    Trellis(Arc<Linear<'static>>, u32),
}

impl Replacement {
    fn format(&self) -> WeightFormat {
        match self {
            Replacement::Values(_) => DType::F32.into(),
            Replacement::Trellis(linear, rotation) => WeightFormat::Trellis(TrellisFormat {
                rate: linear.rate(),
                codebook: linear.codebook(),
                rotation: *rotation,
            }),
        }
    }

    fn open(&self) -> Arc<dyn WeightBytes> {
        match self {
            Replacement::Values(values) => Arc::new(Values(values.clone())),
            Replacement::Trellis(linear, _) => {
                Arc::new(Tiles { linear: linear.clone(), scales: Scales::from(&**linear) })
            }
        }
    }
}

/// What runs the layers.
pub(super) struct Runner<'a> {
    pub(super) source: &'a ModelSource<'a>,
    pub(super) backend: &'a dyn Backend,
    pub(super) observer: &'a dyn Observer,
    pub(super) threads: usize,
}

struct Values(Arc<Vec<f32>>);

impl WeightBytes for Values {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

struct Tiles {
    linear: Arc<Linear<'static>>,
    scales: Scales,
}

impl WeightBytes for Tiles {
    fn bytes(&self) -> &[u8] {
        self.linear.trellis()
    }

    fn scales(&self) -> Option<&Scales> {
        Some(&self.scales)
    }
}

/// The source's weights, some of them replaced, and the states.
struct Weights<'a> {
    source: &'a ModelSource<'a>,
    replaced: &'a Replaced,
    states: Arc<Vec<f32>>,
}

impl WeightSource for Weights<'_> {
    fn open(&self, name: &str, format: WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError> {
        if name == STATES {
            return Ok(Arc::new(Values(self.states.clone())));
        }
        match self.replaced.get(name) {
            Some(replacement) => Ok(replacement.open()),
            None => self.source.open(name, format),
        }
    }
}

/// What is wanted of a layer.
struct Wanted<'a> {
    /// The residual stream after it, for all tokens.
    states: Option<&'a mut [f32]>,
    /// Sums of what its matrices multiply: of all of them, or none.
    hessians: &'a mut [Hessian],
}

/// What a pass gave: rows of some buffers.
type Take<'a> = dyn FnMut(&mut Rows<'_>) -> Result<(), PipelineError> + 'a;

/// The rows of a pass.
struct Rows<'a> {
    loaded: &'a mut dyn Loaded,
    /// Of all tokens, the first one of the pass.
    first: usize,
    /// How many there are.
    count: usize,
    /// Whether these are the last ones.
    last: bool,
}

impl Rows<'_> {
    /// `[count, width]` of a buffer.
    fn read(&mut self, buffer: BufferId, width: usize) -> Result<Vec<f32>, PipelineError> {
        let mut values = vec![0.0; self.count * width];
        self.read_into(buffer, &mut values)?;
        Ok(values)
    }

    /// Likewise.
    fn read_into(&mut self, buffer: BufferId, values: &mut [f32]) -> Result<(), PipelineError> {
        Ok(self.loaded.read(buffer, values)?)
    }
}

impl Runner<'_> {
    /// Runs a layer. Fails if what comes out is not finite, and names the weight that is to blame.
    pub(super) fn layer(&self, layer: usize, replaced: &Replaced, states: &States) -> Result<States, PipelineError> {
        let mut after = vec![0.0; states.values.len()];
        self.run_layer(layer, replaced, states, Wanted { states: Some(&mut after), hessians: &mut [] })?;
        Ok(States { lengths: states.lengths.clone(), values: Arc::new(after) })
    }

    /// Adds up what the matrices of a layer of the source multiply, in the order of [`model::LayerProgram::inputs`].
    pub(super) fn hessians(&self, layer: usize, states: &States) -> Result<Vec<Hessian>, PipelineError> {
        let mut hessians = self.no_hessians(layer)?;
        self.run_layer(layer, &Replaced::new(), states, Wanted { states: None, hessians: &mut hessians })?;
        Ok(hessians)
    }

    /// Both of a layer of the source.
    pub(super) fn layer_with_hessians(
        &self,
        layer: usize,
        states: &States,
    ) -> Result<(States, Vec<Hessian>), PipelineError> {
        let (mut hessians, mut after) = (self.no_hessians(layer)?, vec![0.0; states.values.len()]);
        let wanted = Wanted { states: Some(&mut after), hessians: &mut hessians };
        self.run_layer(layer, &Replaced::new(), states, wanted)?;
        Ok((States { lengths: states.lengths.clone(), values: Arc::new(after) }, hessians))
    }

    fn no_hessians(&self, layer: usize) -> Result<Vec<Hessian>, PipelineError> {
        let hessians = self.input_widths().map(|width| Hessian::new(width.next_multiple_of(BLOCK)));
        let hessians = hessians.into_iter().collect::<Result<Vec<_>, _>>();
        hessians.map_err(PipelineError::quantize(format!("layer {layer}")))
    }

    /// Lengths of what a layer's matrices multiply.
    fn input_widths(&self) -> [usize; 4] {
        let config = self.source.config();
        [config.hidden, config.query_width(), config.hidden, config.feed_forward]
    }

    fn run_layer(
        &self,
        layer: usize,
        replaced: &Replaced,
        states: &States,
        mut wanted: Wanted<'_>,
    ) -> Result<(), PipelineError> {
        let result = self.run_layer_unchecked(layer, replaced, states, &mut wanted).and_then(|()| {
            let after = wanted.states.as_deref().unwrap_or_default();
            check_finite("the residual stream", after, self.source.config().hidden)
                .map_err(PipelineError::quantize(format!("layer {layer}")))
        });
        result.map_err(|error| blame(self.source, layer, error))
    }

    fn run_layer_unchecked(
        &self,
        layer: usize,
        replaced: &Replaced,
        states: &States,
        wanted: &mut Wanted<'_>,
    ) -> Result<(), PipelineError> {
        let config = self.source.config();
        let count = states.count();
        let built = build_layer_program(config, layer, count, &|entry| self.format(replaced, entry))?;
        let (widths, what) = (self.input_widths(), format!("layer {layer}"));
        self.run(&built.program, replaced, states, &mut |rows| {
            for ((&buffer, hessian), width) in built.inputs.iter().zip(wanted.hessians.iter_mut()).zip(widths) {
                self.add(rows, (buffer, width), hessian, &what)?;
            }
            let Some(after) = &mut wanted.states else { return Ok(()) };
            rows.read_into(built.states, &mut after[rows.first * config.hidden..][..rows.count * config.hidden])
        })
    }

    /// Adds the rows of a buffer, on the device if that can do so.
    fn add(
        &self,
        rows: &mut Rows<'_>,
        (buffer, width): (BufferId, usize),
        hessian: &mut Hessian,
        what: &str,
    ) -> Result<(), PipelineError> {
        if !self.backend.capabilities().grams {
            let values = pad(&rows.read(buffer, width)?, width);
            return hessian.add(&values, self.threads).map_err(PipelineError::quantize(what));
        }
        rows.loaded.add_gram(buffer, rows.count)?;
        if rows.last {
            let (count, sums) = ((rows.first + rows.count) as u64, rows.loaded.take_gram(buffer)?);
            *hessian = Hessian::from_sums(hessian.inputs(), count, sums).map_err(PipelineError::quantize(what))?;
        }
        Ok(())
    }

    /// Runs the final norm, and adds up what the head multiplies.
    pub(super) fn head_hessian(&self, states: &States) -> Result<Hessian, PipelineError> {
        let (config, what, none) = (self.source.config(), "the head", Replaced::new());
        let built = build_head_program(config, states.count(), &|entry| self.format(&none, entry), false)?;
        let hessian = Hessian::new(config.hidden.next_multiple_of(BLOCK));
        let mut hessian = hessian.map_err(PipelineError::quantize(what))?;
        self.run(&built.program, &none, states, &mut |rows| {
            self.add(rows, (built.input, config.hidden), &mut hessian, what)
        })?;
        Ok(hessian)
    }

    /// Runs the final norm and the head. `take` gets, for each pass, its first token and the logits
    /// `[tokens, vocabulary]`.
    pub(super) fn head(
        &self,
        replaced: &Replaced,
        states: &States,
        take: &mut dyn FnMut(usize, Vec<f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let config = self.source.config();
        let built = build_head_program(config, states.count(), &|entry| self.format(replaced, entry), true)?;
        let logits = built.logits.expect("a head with logits");
        self.run(&built.program, replaced, states, &mut |rows| {
            let logits = rows.read(logits, config.vocabulary)?;
            take(rows.first, logits)
        })
    }

    fn format(&self, replaced: &Replaced, entry: &TensorEntry) -> WeightFormat {
        let own = || self.source.tensors().iter().find(|tensor| tensor.entry.name == entry.name);
        if let Some(replacement) = replaced.get(&entry.name) {
            return replacement.format();
        }
        own().expect("a tensor of the model").decoded().into()
    }

    /// How a program is loaded for sequences of these lengths.
    fn options(&self, lengths: &[usize]) -> LoadOptions {
        let batches = batches(lengths);
        let tokens_max = batches.iter().map(|batch| batch.iter().sum()).max().unwrap_or(0);
        LoadOptions {
            tokens_max,
            outputs_max: tokens_max,
            sequences_max: batches.iter().map(|batch| batch.len()).max().unwrap_or(0),
            context_max: lengths.iter().copied().max().unwrap_or(0),
            cache_dtype: DType::F16,
            precision: Precision::Fast,
            threads: Some(self.threads),
        }
    }

    /// Bytes that a pass of such sequences takes besides states and weights: activations, caches, and what is read of
    /// them. `layer` is the number of a layer or `None` for the head.
    pub(super) fn pass_bytes(
        &self,
        layer: Option<usize>,
        lengths: &[usize],
        logits: bool,
    ) -> Result<u64, PipelineError> {
        let (config, none) = (self.source.config(), Replaced::new());
        let (states, format) = (lengths.iter().sum(), |entry: &TensorEntry| self.format(&none, entry));
        let program = match layer {
            Some(layer) => build_layer_program(config, layer, states, &format)?.program,
            None => build_head_program(config, states, &format, logits)?.program,
        };
        let options = self.options(lengths);
        let used = required_memory(&program, &options);
        let widest = if logits { config.vocabulary } else { config.feed_forward.max(config.query_width()) };
        // Activations in 8 bits for products, and a buffer that is read and padded.
        let read = options.tokens_max * widest * (if logits { 4 } else { 8 } + 1);
        Ok(used.scratch + used.caches + read as u64)
    }

    fn run(
        &self,
        program: &Program,
        replaced: &Replaced,
        states: &States,
        take: &mut Take<'_>,
    ) -> Result<(), PipelineError> {
        let (batches, options) = (batches(&states.lengths), self.options(&states.lengths));
        let weights = Weights { source: self.source, replaced, states: states.values.clone() };
        let mut loaded = self.backend.load(program, &weights, &options)?;
        let mut first = 0;
        for batch in batches {
            if self.observer.cancelled() {
                return Err(PipelineError::Cancelled);
            }
            let count: usize = batch.iter().sum();
            let tokens: Vec<u32> = (first as u32..(first + count) as u32).collect();
            let outputs: Vec<u32> = (0..count as u32).collect();
            let segment = |(sequence, &tokens)| Segment { sequence, position: 0, tokens };
            let segments: Vec<Segment> = batch.iter().enumerate().map(segment).collect();
            loaded.run(&Batch { tokens: &tokens, segments: &segments, outputs: &outputs, cancel: None })?;
            let last = first + count == states.count();
            take(&mut Rows { loaded: &mut *loaded, first, count, last })?;
            first += count;
        }
        Ok(())
    }
}

impl States {
    /// Tokens of all sequences.
    pub(super) fn count(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// The lengths of the sequences that go through a layer together.
fn batches(lengths: &[usize]) -> Vec<&[usize]> {
    let (mut batches, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (index, &length) in lengths.iter().enumerate() {
        if index > start && tokens + length > BATCH_TOKENS {
            batches.push(&lengths[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += length;
    }
    batches.push(&lengths[start..]);
    batches
}

/// The scaled embeddings of sequences.
pub(super) fn embed(source: &ModelSource<'_>, sequences: &[Vec<u32>]) -> Result<States, PipelineError> {
    let config = source.config();
    let find = source.tensors().iter().find(|tensor| tensor.entry.role == Role::Embedding);
    let tensor = find.expect("every model has an embedding");
    let data = source
        .open(&tensor.entry.name, tensor.decoded().into())
        .map_err(|source| PipelineError::Weight { name: tensor.name.clone(), source })?;
    let row_bytes = data.bytes().len() / tensor.entry.rows;
    let scale = config.embedding_scale();
    let mut values = Vec::with_capacity(sequences.iter().map(Vec::len).sum::<usize>() * config.hidden);
    let mut row = vec![0.0; config.hidden];
    for &token in sequences.iter().flatten() {
        tensor.decoded().codec().decode(&data.bytes()[token as usize * row_bytes..][..row_bytes], &mut row);
        check_finite("the weight", &row, config.hidden)
            .map_err(|error| PipelineError::quantize(format!("`{}`", tensor.name))(error.in_rows(token as usize)))?;
        values.extend(row.iter().map(|value| value * scale));
    }
    Ok(States { lengths: sequences.iter().map(Vec::len).collect(), values: Arc::new(values) })
}
