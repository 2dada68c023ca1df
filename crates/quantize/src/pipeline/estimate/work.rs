//! How much there is to do.

use std::collections::BTreeMap;

use tensor::format::trellis::{LEN, Rate};

use super::super::plan::{Plan, Target};
use super::super::rounding::INPUTS;
use super::super::sensitivity;
use super::super::{Allocation, Task};
use super::measure::Speeds;

/// A part of a run's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The search for tiles, scales included.
    Tiles,
    /// Errors that are fed back.
    Feedback,
    /// Rotations of weights.
    Rotation,
    /// Activations are summed up.
    Hessians,
    /// Hessians are decomposed.
    Decomposition,
    /// The text goes through the model, and what becomes of its layers is decoded for it.
    Text,
    /// What errors of each weight cost is measured.
    Sensitivity,
}

impl Part {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Part::Tiles => "search for tiles",
            Part::Feedback => "feedback of errors",
            Part::Rotation => "rotation of weights",
            Part::Hessians => "sums of activations",
            Part::Decomposition => "decomposition of Hessians",
            Part::Text => "calibration text through the model",
            Part::Sensitivity => "measuring what errors cost",
        }
    }
}

/// Scales at which a search tries its tiles, about.
const SCALES: f64 = 4.5;

/// Tiles of a search at each scale: those from all over, and those with the largest weights.
const SEARCHED: [f64; 2] = [64.0, 16.0];

/// Outputs that get errors for trial.
const TRIAL: f64 = 32.0;

/// What a run does, in operations that take about the same time each. Products are counted as multiplications with an
/// addition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// Tiles at each rate.
    pub tiles: BTreeMap<Rate, f64>,
    /// Weights that are rounded.
    pub weights: f64,
    /// Products of feedback.
    pub feedback: f64,
    /// Products of activations.
    pub hessians: f64,
    /// Σ n² and Σ n³ over all Hessians of n inputs that are decomposed.
    pub squares: f64,
    /// See `squares`.
    pub cubes: f64,
    /// Layers of the source that are brought to where they run, and rounded ones.
    pub layer_loads: f64,
    /// See `layer_loads`.
    pub replaced_layer_loads: f64,
    /// Tokens of the text times layers, through the source's weights.
    pub token_layers: f64,
    /// The same through rounded layers.
    pub replaced_token_layers: f64,
    /// What measuring costs takes, the same again.
    pub costs: Costs,
}

/// What measuring costs takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Costs {
    /// As [`Work::layer_loads`].
    pub layer_loads: f64,
    /// Tokens times layers.
    pub token_layers: f64,
    /// Products of the head.
    pub head: f64,
    /// Logits that become probabilities.
    pub logits: f64,
    /// Weights that get errors.
    pub weights: f64,
    /// Products of feedback.
    pub feedback: f64,
    /// Products of activations.
    pub hessians: f64,
    /// As [`Work::squares`].
    pub squares: f64,
    /// As [`Work::cubes`].
    pub cubes: f64,
}

impl Work {
    /// That of a run with these rates.
    pub(super) fn of(task: &Task<'_>, plan: &Plan<'_>, rates: &[Rate]) -> Work {
        let layers = plan.source.config().layers.len() as f64;
        let tokens: f64 = task.sequences.iter().map(|sequence| sequence.len() as f64).sum();
        let mut work = Work {
            layer_loads: layers,
            replaced_layer_loads: layers,
            token_layers: tokens * layers,
            replaced_token_layers: tokens * layers,
            ..Work::default()
        };
        for (target, &rate) in plan.targets.iter().zip(rates) {
            let (inputs, weights) = (target.inputs() as f64, target.weights() as f64);
            let tiles = weights / LEN as f64;
            let blocks = target.outputs() as f64 / 128.0;
            let searched = SEARCHED[0].min(tiles / 8.0).max(blocks) + SEARCHED[1].min(blocks);
            *work.tiles.entry(rate).or_default() += tiles + SCALES * searched;
            work.weights += weights;
            work.feedback += if task.options.feedback { inputs * (weights + TRIAL * inputs) / 2.0 } else { 0.0 };
        }
        for target in inputs(plan) {
            let inputs = target.inputs() as f64;
            work.hessians += tokens * inputs * inputs / 2.0;
            work.squares += inputs * inputs;
            work.cubes += inputs * inputs * inputs;
        }
        if task.options.allocation != Allocation::Uniform {
            work.costs = Costs::of(task, plan, &work);
        }
        work
    }

    /// Seconds of one thread at these speeds.
    pub fn seconds(&self, speeds: &Speeds) -> Vec<(Part, f64)> {
        let tiles = self.tiles.iter().map(|(rate, tiles)| tiles * speeds.tiles.get(rate).copied().unwrap_or(0.0));
        let text = self.layer_loads * speeds.layer_load
            + self.replaced_layer_loads * speeds.replaced_layer_load
            + self.token_layers * speeds.token_layer
            + self.replaced_token_layers * speeds.replaced_token_layer
            + self.weights * speeds.decoded_weight;
        vec![
            (Part::Tiles, tiles.sum()),
            (Part::Feedback, self.feedback * speeds.product),
            (Part::Rotation, self.weights * speeds.rotated_weight),
            (Part::Hessians, self.hessians * speeds.hessian_product + self.squares * speeds.hessian_square),
            (Part::Decomposition, self.squares * speeds.square + self.cubes * speeds.cube),
            (Part::Text, text),
            (Part::Sensitivity, self.costs.seconds(speeds)),
        ]
    }
}

impl Costs {
    fn of(task: &Task<'_>, plan: &Plan<'_>, work: &Work) -> Costs {
        let config = plan.source.config();
        let layers = config.layers.len();
        let (all, compared) = sensitivity::lengths(task.sequences, task.options);
        let (all, compared) = (all.iter().sum::<usize>() as f64, compared.iter().sum::<usize>() as f64);
        let (token_layers, layer_loads) = (2.0 * all * layers as f64, 2.0 * layers as f64);
        let mut costs = Costs { token_layers, layer_loads, ..Costs::default() };
        let mut copies = f64::from(u8::from(config.tied_embeddings));
        for layer in 0..layers {
            let own = plan.of_layer(layer).count() as f64;
            costs.token_layers += (copies + own) * compared;
            costs.layer_loads += (copies / sensitivity::COPIES as f64).ceil() + own;
            copies += if sensitivity::keeps(task.options, layer, layers) { own } else { 0.0 };
        }
        let head = plan.targets.last().map_or(0, |target| target.weights() as usize) as f64;
        costs.logits = (copies + 1.0) * compared * config.vocabulary as f64;
        costs.head = (copies + 1.0) * compared * head;
        let again = if config.tied_embeddings { head } else { 0.0 };
        costs.weights = work.weights + again;
        let products = plan.targets.iter().map(|target| {
            let products = target.inputs() as f64 * target.weights() as f64 / 2.0;
            products / sensitivity::every(task.options, target.layer, layers) as f64
        });
        costs.feedback = products.sum::<f64>() + again * config.hidden as f64 / 2.0;
        for target in inputs(plan) {
            let inputs = target.inputs() as f64;
            costs.hessians += all * inputs * inputs / 2.0;
        }
        let again = if config.tied_embeddings { config.hidden as f64 } else { 0.0 };
        (costs.squares, costs.cubes) = (work.squares + again.powi(2), work.cubes + again.powi(3));
        costs
    }

    fn seconds(&self, speeds: &Speeds) -> f64 {
        self.layer_loads * speeds.layer_load
            + self.token_layers * speeds.token_layer
            + self.head * speeds.pass_product
            + self.logits * speeds.logit
            + self.weights * speeds.noisy_weight
            + self.feedback * speeds.product
            + self.hessians * speeds.hessian_product
            + self.squares * (speeds.square + speeds.hessian_square)
            + self.cubes * speeds.cube
    }
}

/// The first weight of each input.
fn inputs<'p>(plan: &'p Plan<'_>) -> impl Iterator<Item = &'p Target<'p>> {
    let layers = plan.source.config().layers.len();
    let of_layer = move |layer| {
        let input = move |input| plan.of_layer(layer).find(|(_, target)| target.input == input);
        (0..INPUTS.len()).filter_map(input).map(|(_, target)| target)
    };
    (0..=layers).flat_map(of_layer)
}
