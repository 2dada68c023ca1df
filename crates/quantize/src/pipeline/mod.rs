//! From an open checkpoint to a folder of small weights, layer by layer.
//!
//! Calibration text goes through the model one layer at a time. Each layer is quantized with what it gets there, and
//! the text goes on through the quantized layer, so that the next ones see its errors. In memory are one layer, its
//! Hessians and the states of the text. What a layer became is kept on disk, so that an interrupted run goes on, and
//! finds the same.

mod allocate;
mod convert;
mod error;
mod estimate;
mod folder;
mod options;
mod plan;
mod rounding;
mod sensitivity;
mod states;
mod workspace;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::{self, ScopedJoinHandle};

use checkpoint::Metadata;
use engine::{ModelSource, SourceTensor};
use serde_json::{Value, json};
use tensor::format::trellis::hadamard::BLOCK;
use tensor::format::trellis::{Linear, Rate};
use tensor::{Backend, WeightBytes};

use crate::{HessianDevice, TileQueue, parallel};
use allocate::Item;
use folder::About;
use plan::{Plan, Target};
use rounding::{Count, INPUTS, Shared, round};
use states::{Replaced, Replacement, Runner, States, embed};
use workspace::{Workspace, sum_of};

pub use convert::{Conversion, layout_of};
pub use error::PipelineError;
pub use estimate::{Estimate, Part, Phase, Speeds, Work};
pub use options::{Allocation, Budget, Layout, Observer, Options, Stage};

/// Least tokens of calibration text.
pub const TOKENS_MIN: usize = 512;

/// What became of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Bytes of all weight files, to some hundred bytes.
    pub bytes: u64,
    /// Of those, what text needs.
    pub text_bytes: u64,
    /// Weights of the model.
    pub parameters: u64,
    /// Each trellis.
    pub weights: Vec<WeightReport>,
}

/// One trellis.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightReport {
    /// What the names of its tensors begin with.
    pub name: String,
    /// Bits per weight.
    pub rate: Rate,
    /// What was found of the rise of the KL divergence for each unit of distortion; 0 for uniform rates.
    pub cost: f64,
}

impl Report {
    /// Bits per weight of what text needs.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.text_bytes as f64 / self.parameters as f64
    }
}

/// What to quantize, and with what.
pub struct Task<'a> {
    /// The model.
    pub source: &'a ModelSource<'a>,
    /// What runs it.
    pub backend: &'a dyn Backend,
    /// The calibration text; each sequence should begin with `<bos>`.
    pub sequences: &'a [Vec<u32>],
    /// How.
    pub options: &'a Options,
    /// Who finds tiles; `None` for the processor. The result does not depend on it.
    pub tiles: Option<&'a TileQueue>,
    /// Who decomposes Hessians; `None` for the processor.
    pub hessians: Option<&'a dyn HessianDevice>,
    /// Who looks on.
    pub observer: &'a dyn Observer,
}

impl Task<'_> {
    /// Quantizes the model into a new folder, which appears when it is complete; `force` replaces one that is there.
    /// The work so far is kept beside it (`.DIR.partial`), and a run with the same settings goes on from there.
    ///
    /// # Errors
    /// What [`PipelineError`] lists.
    pub fn run(&self, target: &Path, force: bool) -> Result<Report, PipelineError> {
        self.check_input()?;
        if target.exists() && !force {
            return Err(PipelineError::Exists(target.to_owned()));
        }
        let plan = Plan::new(self.source, self.options.layout)?;
        self.check_budget(&plan)?;
        let workspace = Workspace::open(target, &self.settings())?;
        let report = self.allocate(&plan, &workspace)?;
        let rates: Vec<Rate> = report.weights.iter().map(|weight| weight.rate).collect();
        let layers = Layers { task: self, plan: &plan, workspace: &workspace, rates: &rates };
        layers.quantize()?;
        let about = About {
            rates: &rates,
            layout: self.options.layout,
            calibration: (self.sequences.len(), self.sequences.iter().map(Vec::len).max().unwrap_or(0)),
        };
        let finished = workspace.folder.join("finished");
        folder::write(&finished, &plan, &about, |layer| {
            layers.read(layer).ok_or_else(|| {
                let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
                PipelineError::io("read", &workspace.folder)(gone)
            })
        })?;
        folder::put(&finished, target, force)?;
        workspace.remove()?;
        Ok(report)
    }

    /// What would become of the model: sizes and, where it takes no time, rates.
    ///
    /// # Errors
    /// A budget that can't be met.
    pub fn check(&self) -> Result<Report, PipelineError> {
        let plan = Plan::new(self.source, self.options.layout)?;
        self.check_budget(&plan)?;
        self.report(&plan, &vec![0.0; plan.targets.len()], Allocation::Uniform)
    }

    /// What is seen before anything is read: whether there are configurations to take over, and enough text.
    fn check_input(&self) -> Result<(), PipelineError> {
        if matches!(self.source.checkpoint().metadata(), Metadata::Gguf(_)) {
            return Err(PipelineError::NotAFolder);
        }
        let tokens = self.sequences.iter().map(Vec::len).sum();
        if tokens < TOKENS_MIN {
            return Err(PipelineError::TextTooShort { tokens, needed: TOKENS_MIN });
        }
        Ok(())
    }

    fn check_budget(&self, plan: &Plan<'_>) -> Result<(), PipelineError> {
        let least: Vec<Rate> = self.choices(plan).iter().map(|rates| rates[0]).collect();
        plan.tile_budget(self.options.budget, &least).map(|_| ())
    }

    /// The rates that each target may have.
    fn choices(&self, plan: &Plan<'_>) -> Vec<Vec<Rate>> {
        let head = plan.targets.len() - 1;
        let six = Rate::from_half_bits(12);
        let of = |index: usize| match (index == head, self.options.head, self.options.allocation) {
            (true, Some(rate), _) => vec![rate],
            (true, None, Allocation::Uniform) => six.into_iter().collect(),
            _ => self.options.rates.clone(),
        };
        (0..plan.targets.len()).map(of).collect()
    }

    fn report(&self, plan: &Plan<'_>, costs: &[f64], allocation: Allocation) -> Result<Report, PipelineError> {
        let choices = self.choices(plan);
        let least: Vec<Rate> = choices.iter().map(|rates| rates[0]).collect();
        let bits = 8 * plan.tile_budget(self.options.budget, &least)?;
        let items: Vec<Item> = plan
            .targets
            .iter()
            .zip(choices)
            .zip(costs)
            .map(|((target, rates), &cost)| Item { weights: target.weights(), cost, rates })
            .collect();
        let rates = match allocation {
            Allocation::Uniform => {
                let layers = self.source.config().layers.len();
                allocate::uniform(&items, bits, |index| {
                    let target = &plan.targets[index];
                    let end = target.layer.min(layers.saturating_sub(target.layer + 1));
                    if target.input < 2 { end } else { layers + end }
                })
            }
            Allocation::Estimated | Allocation::Measured => allocate::cheapest(&items, bits),
        };
        let (text_bytes, bytes) = plan.bytes(&rates)?;
        let weights = plan.targets.iter().zip(rates).zip(costs);
        let weights = weights.map(|((target, rate), &cost)| WeightReport { name: target.key.clone(), rate, cost });
        let parameters = self.source.config().parameters();
        Ok(Report { bytes, text_bytes, parameters, weights: weights.collect() })
    }

    /// Decides all rates.
    fn allocate(&self, plan: &Plan<'_>, workspace: &Workspace) -> Result<Report, PipelineError> {
        let allocation = self.options.allocation;
        if allocation == Allocation::Uniform {
            return self.report(plan, &vec![0.0; plan.targets.len()], allocation);
        }
        let costs: Vec<f64> = match workspace.read("costs.bin") {
            Some(bytes) if bytes.len() == 8 * plan.targets.len() => {
                bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
            }
            _ => {
                let rate = self.usual_rate(plan)?;
                let costs = sensitivity::measure(self, plan, rate)?.divergence;
                let bytes: Vec<u8> = costs.iter().flat_map(|cost| cost.to_le_bytes()).collect();
                workspace.write("costs.bin", &bytes)?;
                costs
            }
        };
        self.report(plan, &costs, allocation)
    }

    /// About what all weights will get.
    fn usual_rate(&self, plan: &Plan<'_>) -> Result<Rate, PipelineError> {
        let least: Vec<Rate> = self.choices(plan).iter().map(|rates| rates[0]).collect();
        let mean = 8.0 * plan.tile_budget(self.options.budget, &least)? as f64 / plan.weights() as f64;
        let below = Rate::ALL.into_iter().rev().find(|rate| f64::from(rate.bits()) <= mean);
        Ok(below.unwrap_or(Rate::ALL[0]))
    }

    /// Whether the text goes through trellises as they are.
    fn runs_trellises(&self) -> bool {
        let capabilities = self.backend.capabilities();
        capabilities.trellis && capabilities.grams
    }

    fn runner(&self) -> Runner<'_> {
        let Task { source, backend, observer, options, .. } = *self;
        Runner { source, backend, observer, threads: options.threads }
    }

    /// Everything that the result depends on.
    fn settings(&self) -> Value {
        let Options { budget, head, rates, allocation, layout, seed, feedback, damping, probe_tokens, threads: _ } =
            self.options;
        let names = |rates: &[Rate]| rates.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let tokens: Vec<u8> = self
            .sequences
            .iter()
            .flat_map(|sequence| sequence.iter().chain([&u32::MAX]))
            .flat_map(|token| token.to_le_bytes())
            .collect();
        json!({
            "model": format!("{:016x}", self.source_sum()),
            "calibration": format!("{:016x}", sum_of(&tokens)),
            "budget": format!("{budget:?}"),
            "head": head.map(|rate| rate.to_string()),
            "rates": names(rates),
            "allocation": format!("{allocation:?}"),
            "layout": layout.name(),
            "seed": seed,
            "feedback": feedback,
            "damping": damping,
            "probe_tokens": probe_tokens,
            "device": self.backend.capabilities().description,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }

    /// A sum over the model's configuration, its files' lengths and its norms: other weights have other norms.
    fn source_sum(&self) -> u64 {
        let checkpoint = self.source.checkpoint();
        let mut bytes = Vec::new();
        if let Metadata::HuggingFace(files) = checkpoint.metadata() {
            bytes.extend_from_slice(files.config.as_bytes());
        }
        for file in checkpoint.files() {
            bytes.extend_from_slice(file.name.as_bytes());
            bytes.extend(file.bytes.to_le_bytes());
        }
        for tensor in self.source.tensors().iter().filter(|tensor| tensor.entry.role.is_norm()) {
            if let Ok(data) = checkpoint.bytes(&tensor.name) {
                bytes.extend_from_slice(data.bytes());
            }
        }
        sum_of(&bytes)
    }
}

/// The layers of a run.
struct Layers<'a> {
    task: &'a Task<'a>,
    plan: &'a Plan<'a>,
    workspace: &'a Workspace,
    rates: &'a [Rate],
}

impl Layers<'_> {
    /// The trellises that a layer became, if it is done.
    fn read(&self, layer: usize) -> Option<Vec<Linear<'static>>> {
        let shapes: Vec<(Rate, usize, usize)> = self
            .plan
            .of_layer(layer)
            .map(|(index, target)| (self.rates[index], target.outputs(), target.inputs()))
            .collect();
        self.workspace.read_layer(layer, &shapes)
    }

    /// Quantizes what is not done yet.
    fn quantize(&self) -> Result<(), PipelineError> {
        let Task { source, sequences, observer, .. } = *self.task;
        let layers = source.config().layers.len();
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let (first, mut states) = match self.newest_states(layers, &lengths) {
            Some(found) => found,
            None => (0, embed(source, sequences)?),
        };
        let done = self.plan.targets.iter().filter(|target| target.layer < first).map(|target| target.weights()).sum();
        let (done, total) = (AtomicU64::new(done), self.plan.weights());
        let count = Count { observer, stage: Stage::Quantization, done, total };
        thread::scope(|scope| {
            // The states are written while the next layer is under way.
            let mut written: Option<ScopedJoinHandle<'_, _>> = None;
            for layer in first..layers {
                let linears = match self.read(layer) {
                    Some(linears) => {
                        self.plan.of_layer(layer).for_each(|(_, target)| count.add(target.weights()));
                        linears
                    }
                    None => {
                        let linears = self.layer(layer, &states, &count)?;
                        self.workspace.write_layer(layer, &linears)?;
                        linears
                    }
                };
                states = self.task.runner().layer(layer, &self.replaced(layer, linears), &states)?;
                let kept = states.clone();
                written.take().map_or(Ok(()), parallel::join)?;
                written = Some(scope.spawn(move || self.workspace.write_states(layer + 1, &kept)));
            }
            written.map_or(Ok(()), parallel::join)
        })?;
        if self.read(layers).is_none() {
            let linears = self.head(&states, &count)?;
            self.workspace.write_layer(layers, &linears)?;
        }
        Ok(())
    }

    /// The newest states, all layers before which are done.
    fn newest_states(&self, layers: usize, lengths: &[usize]) -> Option<(usize, States)> {
        let done = (0..layers).take_while(|&layer| self.read(layer).is_some()).count();
        let width = self.task.source.config().hidden;
        (1..=done).rev().find_map(|layer| Some((layer, self.workspace.read_states(layer, lengths, width)?)))
    }

    /// Runs the text through a layer and quantizes it.
    fn layer(&self, layer: usize, states: &States, count: &Count<'_>) -> Result<Vec<Linear<'static>>, PipelineError> {
        let hessians = self.task.runner().hessians(layer, states)?;
        let shared = hessians.into_iter().enumerate().map(|(input, hessian)| {
            let targets = self.plan.of_layer(layer).filter(|(_, target)| target.input == input);
            let tensors = targets.map(|(index, target)| (target.tensor, self.rates[index])).collect();
            Shared { hessian, tensors, seed: self.seed(layer, input) }
        });
        round(self.task, &shared.collect::<Vec<_>>(), count)
    }

    /// Quantizes the head.
    fn head(&self, states: &States, count: &Count<'_>) -> Result<Vec<Linear<'static>>, PipelineError> {
        let (index, target) = (self.plan.targets.len() - 1, self.plan.targets.last().expect("a head"));
        let hessian = self.task.runner().head_hessian(states)?;
        let tensors = vec![(target.tensor, self.rates[index])];
        let shared = Shared { hessian, tensors, seed: self.seed(target.layer, 0) };
        round(self.task, &[shared], count)
    }

    /// Of the signs of what shares an input.
    fn seed(&self, layer: usize, input: usize) -> u64 {
        (self.task.options.seed << 24).wrapping_add(((layer * INPUTS.len() + input) * 16) as u64)
    }

    /// A layer's trellises for the text: as matrices, or as they are for a GPU, which would wait for the processor to
    /// decode them, and multiplies f32 more slowly.
    fn replaced(&self, layer: usize, linears: Vec<Linear<'static>>) -> Replaced {
        let replacement = |target: &Target<'_>, linear| match self.task.runs_trellises() {
            true => Replacement::Trellis(Arc::new(linear), target.input as u32),
            false => Replacement::Values(Arc::new(matrix(target.tensor, &linear))),
        };
        let pairs = self.plan.of_layer(layer).map(|(_, target)| target).zip(linears);
        pairs.map(|(target, linear)| (target.tensor.entry.name.clone(), replacement(target, linear))).collect()
    }
}

/// A trellis without its padding, in f32.
fn matrix(tensor: &SourceTensor, linear: &Linear<'_>) -> Vec<f32> {
    let (rows, columns) = (tensor.entry.rows, tensor.entry.columns);
    let mut values = vec![0.0; rows * columns];
    let mut block = vec![0.0; BLOCK * linear.inputs()];
    for (number, rows) in values.chunks_mut(BLOCK * columns).enumerate() {
        linear.dequantize_block(number, &mut block);
        for (row, padded) in rows.chunks_exact_mut(columns).zip(block.chunks_exact(linear.inputs())) {
            row.copy_from_slice(&padded[..columns]);
        }
    }
    values
}
