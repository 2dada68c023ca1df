//! What the errors of each weight cost: the rise of the KL divergence of the model's predictions.
//!
//! Nothing is rounded for it: each weight in turn gets random errors of the size and the correlations that rounding
//! leaves ([`Noisy`]). A few sequences go through the model once as it is; whenever they pass a weight, a copy goes
//! on with the error, and in the end all copies are compared. So one layer at a time is in memory, and the time is that
//! of half the layers for each weight.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use tensor::format::trellis::Rate;
use tensor::format::trellis::hadamard::BLOCK;

use super::plan::{Plan, Target};
use super::rounding::{Count, Padded};
use super::states::{Replaced, Replacement, Runner, States, embed};
use super::{Allocation, Options, PipelineError, Stage, Task};
use crate::{Factor, Hessian, HessianDevice, Noisy, distortion, input_scales, parallel};

/// Tokens of a sequence.
const SEQUENCE: usize = 256;

/// The Hessians are those of so many times the tokens that are compared.
const MORE: usize = 8;

/// The estimate compares the weights of every how many layers, and of the last.
const LAYERS_EACH: usize = 6;

/// In the other layers, every how many blocks of 128 outputs get errors.
const OUTPUTS_EACH: usize = 4;

/// What a layer does with errors in a weight.
struct Trial {
    /// The target.
    index: usize,
    /// As [`Probe::relative`].
    relative: f64,
    /// The states after the layer.
    after: Vec<f32>,
}

/// What is known of each weight.
pub(super) struct Costs {
    /// The KL divergence for each unit of distortion.
    pub(super) divergence: Vec<f64>,
}

/// Measures all weights at about this rate.
pub(super) fn measure(task: &Task<'_>, plan: &Plan<'_>, rate: Rate) -> Result<Costs, PipelineError> {
    let (runner, options, sequences) = (&task.runner(), task.options, task.sequences);
    let count = options.probe_tokens.div_ceil(SEQUENCE).max(1);
    let chosen = spread(sequences, count);
    let start = embed(plan.source, &chosen)?;
    let lengths: Vec<usize> = chosen.iter().take(count).map(Vec::len).collect();
    let total = plan.weights();
    let mut probe = Probe {
        runner,
        plan,
        options,
        hessians: task.hessians,
        rate,
        base: start.clone(),
        probes: lengths.iter().sum::<usize>() * plan.source.config().hidden,
        lengths,
        copies: Vec::new(),
        relative: vec![0.0; plan.targets.len()],
        count: Count { observer: runner.observer, stage: Stage::Sensitivity, done: AtomicU64::new(0), total },
    };
    let hessian = probe.head_hessian()?;
    probe.base = start;
    let config = plan.source.config();
    if config.tied_embeddings {
        // Made again in the end: meanwhile a head would take more memory than all else.
        let states = embed_with(plan, &chosen[..count.min(chosen.len())], &probe.head_with_errors(&hessian)?)?;
        probe.copies.push((plan.targets.len() - 1, states.values.to_vec()));
    }
    for layer in 0..config.layers.len() {
        probe.layer(layer)?;
    }
    let head = probe.head_with_errors(&hessian)?;
    probe.compare(head)
}

/// Tokens of the sequences that [`measure`] runs, and of those of them that it compares.
pub(super) fn lengths(sequences: &[Vec<u32>], options: &Options) -> (Vec<usize>, Vec<usize>) {
    let count = options.probe_tokens.div_ceil(SEQUENCE).max(1);
    let all: Vec<usize> = spread(sequences, count).iter().map(Vec::len).collect();
    let compared = all.iter().take(count).copied().collect();
    (all, compared)
}

/// How many copies of the states are kept in the end.
pub(super) fn copies(plan: &Plan<'_>, options: &Options) -> usize {
    let layers = plan.source.config().layers.len();
    let kept = (0..layers).filter(|&layer| keeps(options, layer, layers));
    kept.map(|layer| plan.of_layer(layer).count()).sum::<usize>() + 1
}

/// Whether the weights of a layer are compared.
pub(super) fn keeps(options: &Options, layer: usize, layers: usize) -> bool {
    options.allocation == Allocation::Measured || layer.is_multiple_of(LAYERS_EACH) || layer + 1 == layers
}

/// Every how many blocks of 128 outputs get errors in a layer, or the head: errors of different outputs add up, and so
/// where only their size counts, that of some of them tells that of all.
pub(super) fn every(options: &Options, layer: usize, layers: usize) -> usize {
    if layer >= layers || keeps(options, layer, layers) { 1 } else { OUTPUTS_EACH }
}

/// Whether a block of 128 outputs of a target is one of those; at least one is.
fn has_errors(index: usize, target: &Target<'_>, block: usize, every: usize) -> bool {
    (block + index).is_multiple_of(every.min(target.outputs() / BLOCK))
}

/// Sequences from all over the text; the first `count` of them are compared.
fn spread(sequences: &[Vec<u32>], count: usize) -> Vec<Vec<u32>> {
    let wanted = (count * MORE).min(sequences.len()).max(1);
    let at = |index: usize| &sequences[index * sequences.len() / wanted];
    let cut = |sequence: &Vec<u32>| sequence[..sequence.len().min(SEQUENCE)].to_vec();
    // Those that are compared come from all over too.
    let each = (wanted / count).max(1);
    let (first, rest): (Vec<usize>, Vec<usize>) =
        (0..wanted).partition(|&index| index % each == 0 && index / each < count);
    first.into_iter().chain(rest).map(|index| cut(at(index))).collect()
}

/// Copies that go through a layer together, at most.
pub(super) const COPIES: usize = 32;

struct Probe<'a> {
    runner: &'a Runner<'a>,
    plan: &'a Plan<'a>,
    options: &'a Options,
    hessians: Option<&'a dyn HessianDevice>,
    rate: Rate,
    /// The states of all sequences, without errors.
    base: States,
    /// Lengths of the sequences that are compared, and the numbers of their states.
    lengths: Vec<usize>,
    probes: usize,
    /// States with the errors of a target.
    copies: Vec<(usize, Vec<f32>)>,
    /// The mean square of the errors of the residual stream after the target's layer, over its own.
    relative: Vec<f64>,
    count: Count<'a>,
}

impl Probe<'_> {
    /// What the head gets: takes a pass through all layers.
    fn head_hessian(&mut self) -> Result<Hessian, PipelineError> {
        let config = self.plan.source.config();
        for layer in 0..config.layers.len() {
            self.base = self.runner.layer(layer, &Replaced::new(), &self.base)?;
        }
        self.runner.head_hessian(&self.base)
    }

    /// The head with errors.
    fn head_with_errors(&self, hessian: &Hessian) -> Result<Vec<f32>, PipelineError> {
        let target = self.plan.targets.last().expect("a head");
        let mut weights = self.with_errors(&[(self.plan.targets.len() - 1, target)], hessian, 1)?;
        Ok(weights.pop().expect("one target"))
    }

    /// The weights of the targets of one input, without padding; every so many blocks of 128 outputs have errors.
    fn with_errors(
        &self,
        targets: &[(usize, &Target<'_>)],
        hessian: &Hessian,
        every: usize,
    ) -> Result<Vec<Vec<f32>>, PipelineError> {
        let (source, options) = (self.plan.source, self.options);
        let read = targets.iter().map(|(_, target)| Padded::read(source, target.tensor, options.threads));
        let read = read.collect::<Result<Vec<_>, _>>()?;
        let weights = read.iter().zip(targets).map(|(weight, (_, target))| weight.weight(&target.tensor.name));
        let weights = weights.collect::<Result<Vec<_>, _>>()?;
        let name = &targets[0].1.tensor.name;
        let failed = || PipelineError::quantize(format!("`{name}`"));
        let suh = input_scales(&weights, options.seed, options.threads).map_err(failed())?;
        let factor = Factor::new_on(self.hessians, hessian, &suh, options.damping, options.threads);
        let factor = factor.map_err(failed())?;
        let mut changed = Vec::new();
        for ((index, target), weight) in targets.iter().zip(&weights) {
            let seed = options.seed ^ (*index as u64 + 1) << 32;
            let noisy = Noisy::new(*weight, &factor, self.distortion(*index), seed).map_err(failed())?;
            let (rows, columns) = (target.tensor.entry.rows, target.tensor.entry.columns);
            let mut values = vec![0.0; rows * columns];
            let blocks = values.chunks_mut(BLOCK * columns).enumerate().collect();
            parallel::map(blocks, options.threads, |(block, rows): (usize, &mut [f32])| {
                let padded = if has_errors(*index, target, block, every) {
                    noisy.block(block).into()
                } else {
                    weight.block(block)
                };
                for (row, padded) in rows.chunks_exact_mut(columns).zip(padded.chunks_exact(target.inputs())) {
                    row.copy_from_slice(&padded[..columns]);
                }
            });
            changed.push(values);
        }
        Ok(changed)
    }

    /// The head will have more bits.
    fn distortion(&self, target: usize) -> f64 {
        let four = Rate::from_half_bits(8).expect("a rate");
        distortion(if target + 1 == self.plan.targets.len() { self.rate.max(four) } else { self.rate })
    }

    /// Moves everything on by a layer, and adds copies for its weights.
    fn layer(&mut self, layer: usize) -> Result<(), PipelineError> {
        let config = self.plan.source.config();
        let (runner, none) = (self.runner, Replaced::new());
        let before = self.slice(&self.base.values[..self.probes]);
        let hessians;
        (self.base, hessians) = runner.layer_with_hessians(layer, &self.base)?;
        for copies in self.copies.chunks_mut(COPIES) {
            let lengths = copies.iter().flat_map(|_| &self.lengths).copied().collect();
            let values = copies.iter().flat_map(|(_, values)| values).copied().collect();
            let after = runner.layer(layer, &none, &States { lengths, values: Arc::new(values) })?;
            let copies = copies.iter_mut().zip(after.values.chunks_exact(self.probes));
            copies.for_each(|((_, copy), after)| copy.copy_from_slice(after));
        }
        let keeps = keeps(self.options, layer, config.layers.len());
        let every = every(self.options, layer, config.layers.len());
        for trial in self.trials(layer, &hessians, &before, every)? {
            self.relative[trial.index] = trial.relative;
            if keeps {
                self.copies.push((trial.index, trial.after));
            }
        }
        Ok(())
    }

    /// Runs a layer with errors in each of its weights in turn.
    fn trials(
        &self,
        layer: usize,
        hessians: &[Hessian],
        before: &States,
        every: usize,
    ) -> Result<Vec<Trial>, PipelineError> {
        let targets_of = |input: usize| -> Vec<_> {
            self.plan.of_layer(layer).filter(|(_, target)| target.input == input).collect()
        };
        let changed = |input: usize, hessian: &Hessian| {
            let targets = targets_of(input);
            let weights = self.with_errors(&targets, hessian, every)?;
            Ok::<_, PipelineError>(targets.into_iter().zip(weights).collect::<Vec<_>>())
        };
        let mut trials = Vec::new();
        let mut run = |changed: Result<Vec<_>, PipelineError>| {
            for ((index, target), weights) in changed? {
                trials.push(self.trial(layer, (index, target), weights, before, every)?);
            }
            Ok::<_, PipelineError>(())
        };
        if self.hessians.is_none() {
            // One input at a time, for the memory.
            hessians.iter().enumerate().try_for_each(|(input, hessian)| run(changed(input, hessian)))?;
            return Ok(trials);
        }
        // What a device decomposes and runs leaves the processor idle, which makes errors for the next input meanwhile.
        thread::scope(|scope| {
            let changed = &changed;
            let inputs = hessians.iter().enumerate();
            let threads: Vec<_> = inputs.map(|(input, hessian)| scope.spawn(move || changed(input, hessian))).collect();
            threads.into_iter().try_for_each(|thread| run(parallel::join(thread)))
        })?;
        Ok(trials)
    }

    /// Runs a layer with a weight that has errors.
    fn trial(
        &self,
        layer: usize,
        (index, target): (usize, &Target<'_>),
        weights: Vec<f32>,
        before: &States,
        every: usize,
    ) -> Result<Trial, PipelineError> {
        let after = self.runner.layer(layer, &replace(target, Arc::new(weights)), before)?;
        let error = relative(&self.base.values[..self.probes], &after.values, self.plan.source.config().hidden);
        let blocks = target.outputs() / BLOCK;
        let with_errors = (0..blocks).filter(|&block| has_errors(index, target, block, every)).count();
        self.count.add(target.weights());
        Ok(Trial { index, relative: error * blocks as f64 / with_errors as f64, after: after.values.to_vec() })
    }

    fn slice(&self, values: &[f32]) -> States {
        States { lengths: self.lengths.clone(), values: Arc::new(values.to_vec()) }
    }

    /// Compares the copies' predictions with those of the states without errors.
    fn compare(mut self, head: Vec<f32>) -> Result<Costs, PipelineError> {
        let head = Arc::new(head);
        let vocabulary = self.plan.source.config().vocabulary;
        let base = self.slice(&self.base.values[..self.probes]);
        let mut expected = vec![Vec::new(); base.count()];
        self.runner.head(&Replaced::new(), &base, &mut |first, logits| {
            let rows = logits.chunks_exact(vocabulary).collect();
            let rows = parallel::map(rows, self.options.threads, log_softmax);
            rows.into_iter().enumerate().for_each(|(row, values)| expected[first + row] = values);
            Ok(())
        })?;
        let mut found = vec![None; self.plan.targets.len()];
        let head_index = self.plan.targets.len() - 1;
        let last = self.plan.targets.last().expect("a head");
        if self.copies.first().is_none_or(|(index, _)| *index != head_index) {
            self.copies.push((head_index, base.values.to_vec()));
        }
        for (index, values) in &self.copies {
            let replaced = if *index == head_index { replace(last, head.clone()) } else { Replaced::new() };
            let mut sum = 0.0;
            self.runner.head(&replaced, &self.slice(values), &mut |first, logits| {
                let rows = logits.chunks_exact(vocabulary).enumerate().collect();
                let rows = parallel::map(rows, self.options.threads, |(row, logits): (usize, &[f32])| {
                    divergence(&expected[first + row], &log_softmax(logits))
                });
                sum += rows.into_iter().sum::<f64>();
                Ok(())
            })?;
            found[*index] = Some(sum / base.count() as f64);
        }
        self.count.add(last.weights());
        let divergence = self.fill(&found);
        let divergence = divergence.iter().enumerate().map(|(index, value)| value / self.distortion(index)).collect();
        Ok(Costs { divergence })
    }

    /// What was not compared is estimated: the error that the layer's output has, times what such an error costs in the
    /// nearest layers that were compared.
    fn fill(&self, found: &[Option<f64>]) -> Vec<f64> {
        let layers = self.plan.source.config().layers.len();
        let factors: Vec<(usize, f64)> = (0..layers)
            .filter_map(|layer| {
                let both =
                    self.plan.of_layer(layer).filter_map(|(index, _)| Some((found[index]?, self.relative[index])));
                let (divergence, relative) = both.fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
                (relative > 0.0).then(|| (layer, divergence / relative))
            })
            .collect();
        let targets = self.plan.targets.iter().enumerate();
        targets
            .map(|(index, target)| {
                found[index].unwrap_or_else(|| {
                    let before = factors.iter().rev().find(|(layer, _)| *layer <= target.layer);
                    let after = factors.iter().find(|(layer, _)| *layer >= target.layer);
                    let factor = match (before, after) {
                        (Some(&(a, from)), Some(&(b, to))) if a < b => {
                            let share = (target.layer - a) as f64 / (b - a) as f64;
                            from + (to - from) * share
                        }
                        (Some(&(_, factor)), _) | (None, Some(&(_, factor))) => factor,
                        (None, None) => 1.0,
                    };
                    self.relative[index] * factor
                })
            })
            .collect()
    }
}

/// A weight with errors in the place of the source's.
fn replace(target: &Target<'_>, weights: Arc<Vec<f32>>) -> Replaced {
    Replaced::from([(target.tensor.entry.name.clone(), Replacement::Values(weights))])
}

/// The scaled rows of a table with errors.
fn embed_with(plan: &Plan<'_>, sequences: &[Vec<u32>], table: &[f32]) -> Result<States, PipelineError> {
    let config = plan.source.config();
    let scale = config.embedding_scale();
    let rows = sequences.iter().flatten().map(|&token| &table[token as usize * config.hidden..][..config.hidden]);
    let values = rows.flatten().map(|value| value * scale).collect();
    Ok(States { lengths: sequences.iter().map(Vec::len).collect(), values: Arc::new(values) })
}

/// The mean over all rows of the square of the difference over the row's own.
fn relative(expected: &[f32], found: &[f32], width: usize) -> f64 {
    let rows = expected.chunks_exact(width).zip(found.chunks_exact(width));
    let sum: f64 = rows
        .map(|(expected, found)| {
            let error: f64 = expected.iter().zip(found).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).sum();
            let square: f64 = expected.iter().map(|a| f64::from(*a) * f64::from(*a)).sum();
            if square > 0.0 { error / square } else { 0.0 }
        })
        .sum();
    sum / (expected.len() / width) as f64
}

/// The logarithms of probabilities.
pub(super) fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.chunks(64).map(|part| f64::from(part.iter().map(|l| (l - largest).exp()).sum::<f32>())).sum();
    let shift = largest + sum.ln() as f32;
    logits.iter().map(|logit| logit - shift).collect()
}

/// The KL divergence of one distribution from another, of logarithms.
fn divergence(expected: &[f32], found: &[f32]) -> f64 {
    expected.iter().zip(found).map(|(&p, &q)| f64::from(p.exp() * (p - q))).sum()
}
