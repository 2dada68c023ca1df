//! How much memory a run takes: for each of its phases what is there at the same time.
//!
//! Pages of the checkpoint are not counted: the system takes them back when it needs them, and they are given back as
//! soon as they were read.

use std::iter;

use tensor::format::trellis::Rate;
use tensor::format::trellis::hadamard::BLOCK;

use super::super::plan::{Plan, Target};
use super::super::rounding::{INPUTS, threads};
use super::super::sensitivity::{self, COPIES};
use super::super::states::Runner;
use super::super::{Allocation, PipelineError, Task};
use crate::Factor;

/// Bytes of one thread that searches for tiles, and of the tables of one encoder.
const SEARCH: u64 = 5 << 19;

/// Blocks `[inputs, 128]` in f32 that a thread has while it rounds one.
const BLOCKS: u64 = 4;

/// What a run has in memory at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What it does.
    pub what: &'static str,
    /// Bytes, at most.
    pub bytes: u64,
}

/// All phases of a run with these rates.
pub(super) fn phases(task: &Task<'_>, plan: &Plan<'_>, rates: &[Rate]) -> Result<Vec<Phase>, PipelineError> {
    let sizes = Sizes { task, plan, rates, runner: task.runner() };
    let mut phases = Vec::new();
    if task.options.allocation != Allocation::Uniform {
        phases.extend(sizes.sensitivity()?);
    }
    phases.extend(sizes.layers()?);
    phases.extend(sizes.head()?);
    Ok(phases)
}

struct Sizes<'a> {
    task: &'a Task<'a>,
    plan: &'a Plan<'a>,
    rates: &'a [Rate],
    runner: Runner<'a>,
}

impl Sizes<'_> {
    /// The layers' weights go through the same phases, one layer after another.
    fn layers(&self) -> Result<[Phase; 4], PipelineError> {
        let lengths: Vec<usize> = self.task.sequences.iter().map(Vec::len).collect();
        let states = self.states(lengths.iter().sum());
        let (hessians, pass) = (self.hessians(), self.layer_pass(&lengths)?);
        let weights = self.layer_weights();
        let factors: u64 = self.widths().iter().map(|&width| 4 * squared(width)).sum();
        let tiles = (0..self.plan.source.config().layers.len()).map(|layer| self.tiles(layer)).max().unwrap_or(0);
        Ok([
            Phase { what: "a layer's inputs are summed up", bytes: 2 * states + hessians + pass },
            Phase {
                what: "a layer's Hessians are decomposed",
                bytes: states + hessians + weights + decomposing(&self.widths()),
            },
            Phase {
                what: "a layer is rounded",
                bytes: states + hessians + weights + factors + 2 * tiles + self.threads(0),
            },
            Phase { what: "the text goes on through a rounded layer", bytes: 2 * states + weights + tiles + pass },
        ])
    }

    /// The head, and the finished folder.
    fn head(&self) -> Result<[Phase; 2], PipelineError> {
        let layers = self.plan.source.config().layers.len();
        let states = self.states(self.task.sequences.iter().map(Vec::len).sum());
        let (inputs, tiles) = (self.plan.targets.last().map_or(0, Target::inputs), self.tiles(layers));
        let hessian = 4 * squared(inputs);
        // The tiles as they are made, put together, and as a file.
        let rounding = hessian + 3 * tiles + self.threads(layers);
        Ok([
            Phase { what: "the head is rounded", bytes: states + hessian + decomposing(&[inputs]).max(rounding) },
            Phase { what: "the folder is written", bytes: 3 * tiles },
        ])
    }

    /// The measurement of what errors cost.
    fn sensitivity(&self) -> Result<[Phase; 4], PipelineError> {
        let config = self.plan.source.config();
        let (chosen, compared) = sensitivity::lengths(self.task.sequences, self.task.options);
        let (base, copy) = (self.states(chosen.iter().sum()), self.states(compared.iter().sum()));
        let copies = copy * sensitivity::copies(self.plan, self.task.options) as u64;
        let group = copies.min(copy * COPIES as u64);
        let grouped: Vec<usize> = (0..COPIES).flat_map(|_| &compared).copied().collect();
        let (hessians, weights) = (self.hessians(), self.largest_input());
        let head = 4 * (config.vocabulary * config.hidden) as u64;
        let inputs = self.plan.targets.last().map_or(0, Target::inputs);
        let probability = 4 * (config.vocabulary * compared.iter().sum::<usize>()) as u64;
        let kept = base + copies + 4 * squared(inputs);
        let widest = self.widths().into_iter().max().unwrap_or(0);
        let trial = match self.task.hessians {
            // All inputs at once.
            Some(_) => 2 * self.layer_weights() + self.hessians() + self.layer_pass(&compared)?,
            None => 2 * weights + decomposing(&[widest]).max(self.layer_pass(&compared)?),
        };
        Ok([
            Phase {
                what: "copies of the states go through a layer",
                bytes: kept + hessians + 2 * group + self.layer_pass(&grouped)?,
            },
            Phase { what: "a layer's weights get errors for trial", bytes: kept + hessians + trial },
            Phase { what: "the head gets errors for trial", bytes: kept + head + decomposing(&[inputs]) },
            Phase {
                what: "predictions are compared",
                bytes: kept + head + copy + probability + self.runner.pass_bytes(None, &compared, true)?,
            },
        ])
    }

    /// The residual stream of so many tokens.
    fn states(&self, tokens: usize) -> u64 {
        4 * (tokens * self.plan.source.config().hidden) as u64
    }

    /// The most that a pass takes in any layer.
    fn layer_pass(&self, lengths: &[usize]) -> Result<u64, PipelineError> {
        let layers = 0..self.plan.source.config().layers.len();
        let passes = layers.map(|layer| self.runner.pass_bytes(Some(layer), lengths, false));
        Ok(passes.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or(0))
    }

    /// Lengths of the inputs of a layer's weights, with padding.
    fn widths(&self) -> Vec<usize> {
        self.plan.input_widths().collect()
    }

    fn hessians(&self) -> u64 {
        self.widths().iter().map(|&width| 4 * squared(width)).sum()
    }

    /// A layer's weights in f32.
    fn layer_weights(&self) -> u64 {
        self.plan.of_layer(0).map(|(_, target)| 4 * target.weights()).sum()
    }

    /// The weights of one input in f32, the most of all.
    fn largest_input(&self) -> u64 {
        let of = |input| self.plan.of_layer(0).filter(move |(_, target)| target.input == input);
        (0..INPUTS.len()).map(|input| of(input).map(|(_, target)| 4 * target.weights()).sum()).max().unwrap_or(0)
    }

    /// The trellises of a layer, or of the head as that after the last.
    fn tiles(&self, layer: usize) -> u64 {
        self.plan.of_layer(layer).map(|(index, target)| target.tile_bytes(self.rates[index])).sum()
    }

    /// What all threads have while they round a layer, or the head as that after the last: the blocks with the most
    /// inputs come first.
    fn threads(&self, layer: usize) -> u64 {
        let threads = threads(self.task);
        let targets = self.plan.of_layer(layer);
        let blocks = targets.flat_map(|(_, target)| iter::repeat_n(target.inputs(), target.outputs() / BLOCK));
        let mut blocks: Vec<usize> = blocks.collect();
        blocks.sort_unstable_by_key(|&inputs| std::cmp::Reverse(inputs));
        let inputs: usize = blocks.into_iter().take(threads).sum();
        threads as u64 * SEARCH + BLOCKS * 4 * (BLOCK * inputs) as u64
    }
}

fn squared(size: usize) -> u64 {
    (size * size) as u64
}

/// The most that there is while Hessians are decomposed one after another, and the results are kept.
fn decomposing(widths: &[usize]) -> u64 {
    let mut kept = 0;
    let mut most = 0;
    for &width in widths {
        most = most.max(kept + Factor::BYTES_MEANWHILE * squared(width));
        kept += Factor::BYTES * squared(width);
    }
    most
}
