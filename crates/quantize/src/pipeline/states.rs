//! Runs layers on the residual stream of many sequences.

use std::collections::HashMap;
use std::sync::Arc;

use engine::ModelSource;
use model::{Role, STATES, TensorEntry, build_head_program, build_layer_program};
use tensor::backend::required_memory;
use tensor::{
    Backend, Batch, BufferId, DType, LoadOptions, Loaded, Precision, Program, Segment, WeightBytes, WeightError,
    WeightFormat, WeightSource,
};

use super::rounding::blame;
use super::{Observer, PipelineError};
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

/// Weights in f32 that take the place of those of the source, by their names in programs.
pub(super) type Replaced = HashMap<String, Arc<Vec<f32>>>;

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
            Some(values) => Ok(Arc::new(Values(values.clone()))),
            None => self.source.open(name, format),
        }
    }
}

/// Gets the number of an input and its rows.
type Inputs<'a> = dyn FnMut(usize, Vec<f32>) -> Result<(), PipelineError> + 'a;

/// What a pass gave: rows of some buffers.
type Take<'a> = dyn FnMut(&mut Rows<'_>) -> Result<(), PipelineError> + 'a;

/// The rows of a pass.
pub(super) struct Rows<'a> {
    loaded: &'a mut dyn Loaded,
    /// Of all tokens, the first one of the pass.
    pub(super) first: usize,
    /// How many there are.
    pub(super) count: usize,
}

impl Rows<'_> {
    /// `[count, width]` of a buffer.
    pub(super) fn read(&mut self, buffer: BufferId, width: usize) -> Result<Vec<f32>, PipelineError> {
        let mut values = vec![0.0; self.count * width];
        self.loaded.read(buffer, &mut values)?;
        Ok(values)
    }
}

impl Runner<'_> {
    /// Runs a layer. `inputs` gets what its matrices multiply, in the order of [`model::LayerProgram::inputs`]. Fails
    /// if what comes out is not finite, and names the weight that is to blame.
    pub(super) fn layer(
        &self,
        layer: usize,
        replaced: &Replaced,
        states: &States,
        inputs: Option<&mut Inputs<'_>>,
    ) -> Result<States, PipelineError> {
        let after = self.layer_unchecked(layer, replaced, states, inputs).and_then(|after| {
            check_finite("the residual stream", &after.values, self.source.config().hidden)
                .map_err(PipelineError::quantize(format!("layer {layer}")))?;
            Ok(after)
        });
        after.map_err(|error| blame(self.source, layer, error))
    }

    fn layer_unchecked(
        &self,
        layer: usize,
        replaced: &Replaced,
        states: &States,
        mut inputs: Option<&mut Inputs<'_>>,
    ) -> Result<States, PipelineError> {
        let config = self.source.config();
        let count = states.count();
        let built = build_layer_program(config, layer, count, &|entry| self.format(replaced, entry))?;
        let widths = [config.hidden, config.query_width(), config.hidden, config.feed_forward];
        let mut after = vec![0.0; states.values.len()];
        self.run(&built.program, replaced, states, &mut |rows| {
            for (index, (&buffer, width)) in built.inputs.iter().zip(widths).enumerate() {
                if let Some(inputs) = &mut inputs {
                    inputs(index, rows.read(buffer, width)?)?;
                }
            }
            let values = rows.read(built.states, config.hidden)?;
            after[rows.first * config.hidden..][..values.len()].copy_from_slice(&values);
            Ok(())
        })?;
        Ok(States { lengths: states.lengths.clone(), values: Arc::new(after) })
    }

    /// Runs the final norm, and the head if `logits`. `take` gets, for each pass, its first token, what the head
    /// multiplies `[tokens, hidden]`, and the logits `[tokens, vocabulary]` or nothing.
    pub(super) fn head(
        &self,
        replaced: &Replaced,
        states: &States,
        logits: bool,
        take: &mut dyn FnMut(usize, Vec<f32>, Vec<f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let config = self.source.config();
        let built = build_head_program(config, states.count(), &|entry| self.format(replaced, entry), logits)?;
        self.run(&built.program, replaced, states, &mut |rows| {
            let input = rows.read(built.input, config.hidden)?;
            let logits = built.logits.map_or(Ok(Vec::new()), |logits| rows.read(logits, config.vocabulary))?;
            take(rows.first, input, logits)
        })
    }

    fn format(&self, replaced: &Replaced, entry: &TensorEntry) -> WeightFormat {
        let own = || self.source.tensors().iter().find(|tensor| tensor.entry.name == entry.name);
        if replaced.contains_key(&entry.name) {
            return DType::F32.into();
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
            take(&mut Rows { loaded: &mut *loaded, first, count })?;
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
