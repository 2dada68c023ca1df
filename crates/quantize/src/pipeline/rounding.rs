//! Quantizes the weights of a layer, or the head.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use engine::{ModelSource, SourceTensor};
use model::Role;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::format::trellis::{Codebook, Linear, Rate, SIDE};
use tensor::{DType, WeightBytes, WeightSource};

use super::{Observer, Options, PipelineError, Stage, Task};
use crate::error::check_finite;
use crate::{Encoder, Factor, Hessian, Job, QuantizeError, Settings, Weight, WeightRows, input_scales, parallel};

/// The matrices of a layer that multiply the same activations, in the order of [`model::LayerProgram::inputs`].
pub(super) const INPUTS: [&[Role]; 4] =
    [&[Role::Query, Role::Key, Role::Value], &[Role::AttentionOutput], &[Role::Gate, Role::Up], &[Role::Down]];

/// A weight padded with zeros to multiples of 128, `[outputs, inputs]`.
pub(super) struct Padded {
    contents: Contents,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

enum Contents {
    Values(Vec<f32>),
    Rows(StoredRows),
}

impl Padded {
    /// Reads a weight in f32. An embedding or a head, several times as large as a layer, stays where it is.
    pub(super) fn read(
        source: &ModelSource<'_>,
        tensor: &SourceTensor,
        threads: usize,
    ) -> Result<Padded, PipelineError> {
        let failed = |source| PipelineError::Weight { name: tensor.name.clone(), source };
        let data = source.open(&tensor.entry.name, tensor.decoded().into()).map_err(failed)?;
        let (rows, columns) = (tensor.entry.rows, tensor.entry.columns);
        let (outputs, inputs) = (rows.next_multiple_of(BLOCK), columns.next_multiple_of(BLOCK));
        let stored = StoredRows { data, dtype: tensor.decoded(), rows, columns };
        let contents = match tensor.entry.role {
            Role::Embedding | Role::Head => Contents::Rows(stored),
            _ => {
                let mut values = vec![0.0; outputs * inputs];
                let blocks = values.chunks_mut(BLOCK * inputs).enumerate().collect();
                parallel::map(blocks, threads, |(block, rows): (usize, &mut [f32])| stored.read(block * BLOCK, rows));
                Contents::Values(values)
            }
        };
        Ok(Padded { contents, outputs, inputs })
    }

    pub(super) fn weight(&self, name: &str) -> Result<Weight<'_>, PipelineError> {
        let (outputs, inputs) = (self.outputs, self.inputs);
        let weight = match &self.contents {
            Contents::Values(values) => Weight::new(values, outputs, inputs),
            Contents::Rows(rows) => Weight::from_rows(rows, outputs, inputs),
        };
        weight.map_err(PipelineError::quantize(format!("`{name}`")))
    }
}

/// A matrix in the checkpoint.
struct StoredRows {
    data: Arc<dyn WeightBytes>,
    dtype: DType,
    rows: usize,
    columns: usize,
}

impl WeightRows for StoredRows {
    fn read(&self, first: usize, into: &mut [f32]) {
        let width = self.columns.next_multiple_of(BLOCK);
        let row_bytes = self.data.bytes().len() / self.rows;
        let count = (into.len() / width).min(self.rows.saturating_sub(first));
        let range = first * row_bytes..(first + count) * row_bytes;
        let (rows, rest) = into.split_at_mut(count * width);
        let stored = self.data.bytes()[range.clone()].chunks_exact(row_bytes);
        for (row, stored) in rows.chunks_exact_mut(width).zip(stored) {
            self.dtype.codec().decode(stored, &mut row[..self.columns]);
            row[self.columns..].fill(0.0);
        }
        rest.fill(0.0);
        self.data.release(range);
    }
}

/// An error about a layer's activations, or one about the weight that made them so: the first of the layer that has a
/// number that is not finite.
pub(super) fn blame(source: &ModelSource<'_>, layer: usize, error: PipelineError) -> PipelineError {
    if !matches!(error, PipelineError::Quantize { source: QuantizeError::NotFinite { .. }, .. }) {
        return error;
    }
    for tensor in source.tensors().iter().filter(|tensor| tensor.entry.layer == Some(layer)) {
        let name = &tensor.name;
        let checked = match tensor.entry.role.is_norm() {
            true => source.norm(tensor).map_err(PipelineError::from).and_then(|values| {
                check_finite("the norm", &values, values.len()).map_err(PipelineError::quantize(format!("`{name}`")))
            }),
            false => Padded::read(source, tensor, 1).and_then(|padded| padded.weight(name).map(drop)),
        };
        if let Err(error) = checked {
            return error;
        }
    }
    error
}

/// Rows of a multiple of 128 columns.
pub(super) fn pad(values: &[f32], columns: usize) -> Vec<f32> {
    let width = columns.next_multiple_of(BLOCK);
    if width == columns {
        return values.to_vec();
    }
    let mut padded = vec![0.0; values.len() / columns * width];
    for (row, into) in values.chunks_exact(columns).zip(padded.chunks_exact_mut(width)) {
        into[..columns].copy_from_slice(row);
    }
    padded
}

/// Weights that share an input.
pub(super) struct Shared<'a> {
    pub(super) hessian: Hessian,
    /// With the bits that each gets.
    pub(super) tensors: Vec<(&'a SourceTensor, Rate)>,
    /// Of the signs.
    pub(super) seed: u64,
}

/// Counts weights for an observer.
pub(super) struct Count<'a> {
    pub(super) observer: &'a dyn Observer,
    pub(super) stage: Stage,
    pub(super) done: AtomicU64,
    pub(super) total: u64,
}

impl Count<'_> {
    pub(super) fn add(&self, weights: u64) {
        let before = self.done.fetch_add(weights, Ordering::Relaxed);
        self.observer.progress(self.stage, before + weights, self.total);
    }
}

/// Quantizes all weights of the `shared` inputs, in their order. The threads share one queue of blocks of 128 outputs.
pub(super) fn round(
    task: &Task<'_>,
    shared: &[Shared<'_>],
    count: &Count<'_>,
) -> Result<Vec<Linear<'static>>, PipelineError> {
    let (source, options) = (task.source, task.options);
    let mut weights = Vec::new();
    for shared in shared {
        let read = shared.tensors.iter().map(|(tensor, _)| Padded::read(source, tensor, options.threads));
        weights.push(read.collect::<Result<Vec<_>, _>>()?);
    }
    // With a device, one is copied while another one is decomposed.
    let at_once = if task.hessians.is_some() { shared.len() } else { 1 };
    let inputs = shared.iter().zip(&weights).collect();
    let factors =
        parallel::map(inputs, at_once, |(shared, weights): (&Shared<'_>, &Vec<_>)| factor(task, shared, weights));
    let factors = factors.into_iter().collect::<Result<Vec<_>, _>>()?;
    let rates = shared.iter().flat_map(|shared| &shared.tensors).map(|(_, rate)| *rate);
    let mut encoders: Vec<Encoder> = Vec::new();
    for rate in rates {
        if encoders.iter().all(|encoder| encoder.rate() != rate) {
            let encoder = Encoder::new(Codebook::Mul1, rate);
            encoders.push(match task.tiles {
                Some(tiles) => encoder.on(tiles),
                None => encoder,
            });
        }
    }
    let usual = Settings { numbers: false, ..Settings::default() };
    let inputs = shared.iter().zip(&weights).zip(&factors);
    let parts = inputs.flat_map(|((shared, weights), factor)| {
        let tensors = shared.tensors.iter().zip(weights).zip(shared.seed + 1..);
        tensors.map(|(((tensor, rate), weight), seed)| Part {
            name: &tensor.name,
            weight,
            factor,
            encoder: encoders.iter().find(|encoder| encoder.rate() == *rate).expect("one for each rate"),
            settings: Settings { threads: options.threads, feedback: options.feedback, seed, ..usual },
            job: OnceLock::new(),
        })
    });
    let parts: Vec<Part<'_>> = parts.collect();
    if task.tiles.is_none() {
        // Nobody has to wait for a job that way.
        parallel::map(parts.iter().collect(), options.threads, |part: &Part<'_>| part.job().map(drop));
    }
    run(parts, threads(task), count)
}

/// Threads that round blocks: with a device, while that works on the tiles of half of them, the others prepare theirs.
pub(super) fn threads(task: &Task<'_>) -> usize {
    let waiting = task.tiles.map_or(0, |tiles| 2 * tiles.tiles().div_ceil(BLOCK / SIDE));
    task.options.threads.max(waiting)
}

/// A weight that is to be quantized.
struct Part<'a> {
    name: &'a str,
    weight: &'a Padded,
    factor: &'a Factor,
    encoder: &'a Encoder,
    settings: Settings,
    job: OnceLock<Result<Job<'a>, PipelineError>>,
}

impl<'a> Part<'a> {
    /// The job, which the first one who asks makes. The search for a scale keeps one thread busy: it ends with a few
    /// outputs that are rounded band after band.
    fn job(&self) -> Option<&Job<'a>> {
        let make = || {
            let job = Job::new(self.weight.weight(self.name)?, self.factor, self.encoder, &self.settings);
            job.map_err(PipelineError::quantize(format!("`{}`", self.name)))
        };
        self.job.get_or_init(make).as_ref().ok()
    }
}

/// All blocks of all weights, the longest ones first.
fn run(parts: Vec<Part<'_>>, threads: usize, count: &Count<'_>) -> Result<Vec<Linear<'static>>, PipelineError> {
    let blocks_of =
        |(index, part): (usize, &Part<'_>)| (0..part.weight.outputs / BLOCK).map(move |block| (index, block));
    let mut queue: Vec<(usize, usize)> = parts.iter().enumerate().flat_map(blocks_of).collect();
    queue.sort_by_key(|&(index, _)| std::cmp::Reverse(parts[index].weight.inputs));
    let results = parallel::map(queue, threads, |(index, block)| {
        if count.observer.cancelled() {
            return Err(PipelineError::Cancelled);
        }
        let part = &parts[index];
        // Why there is no job is told below.
        let Some(job) = part.job() else { return Ok(None) };
        let result = job.block(block).map_err(PipelineError::quantize(format!("`{}`", part.name)))?;
        count.add((BLOCK * part.weight.inputs) as u64);
        Ok(Some((index, block, result)))
    });
    let results = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut results: Vec<_> = results.into_iter().flatten().collect();
    results.sort_by_key(|&(index, block, _)| (index, block));
    let mut blocks: Vec<Vec<_>> = parts.iter().map(|_| Vec::new()).collect();
    results.into_iter().for_each(|(index, _, result)| blocks[index].push(result));
    let jobs = parts.into_iter().map(|part| part.job.into_inner().expect("every weight has blocks"));
    jobs.zip(blocks).map(|(job, blocks)| Ok(job?.finish(&blocks).linear)).collect()
}

/// The scales and the decomposition of a shared input.
fn factor(task: &Task<'_>, shared: &Shared<'_>, weights: &[Padded]) -> Result<Factor, PipelineError> {
    let names: Vec<&str> = shared.tensors.iter().map(|(tensor, _)| tensor.name.as_str()).collect();
    let weights = weights.iter().zip(&names).map(|(weight, name)| weight.weight(name));
    let weights = weights.collect::<Result<Vec<_>, _>>()?;
    let suh =
        input_scales(&weights, shared.seed, task.options.threads).map_err(PipelineError::quantize(names.join(", ")))?;
    let Options { damping, threads, .. } = *task.options;
    Factor::new_on(task.hessians, &shared.hessian, &suh, damping, threads)
        .map_err(PipelineError::quantize(names.join(", ")))
}
