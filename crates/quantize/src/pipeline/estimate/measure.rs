//! How fast this machine is at what a run does.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::RangeInclusive;
use std::sync::Arc;

use half::f16;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::format::trellis::{Codebook, LEN, Linear, Rate};
use tensor::philox;

use super::super::plan::{Plan, Target};
use super::super::sensitivity::log_softmax;
use super::super::states::{Replaced, Replacement, Runner, States};
use super::super::{PipelineError, Task};
use super::clock::{self, of_thread};
use crate::product::{Product, Side};
use crate::rotation::rotated_block;
use crate::{Encoder, Factor, Hessian, Noisy, TileQueue, Weight};

/// Inputs of the matrices that are measured; large enough for speeds of large ones.
const INPUTS: usize = 1024;

/// Products of a pass that is measured, unless a token has more.
const PASS_PRODUCTS: f64 = 4e9;

/// Tokens of a pass that is measured.
const PASS_TOKENS: RangeInclusive<usize> = 64..=2048;

/// The same on a device that adds up activations itself: with few, a pass is as long as its weights take to get there.
const DEVICE_PASS_TOKENS: RangeInclusive<usize> = 64..=8192;

/// Sizes of the matrices whose decomposition is measured.
const DECOMPOSED: [usize; 2] = [INPUTS / 2, INPUTS];

/// The same on a device, which is not busy with small ones.
const DEVICE_DECOMPOSED: [usize; 2] = [INPUTS, 4 * INPUTS];

/// Seconds of one thread for each operation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Speeds {
    /// A tile at each rate.
    pub tiles: BTreeMap<Rate, f64>,
    /// A multiplication and addition in products.
    pub product: f64,
    /// The same of sums of activations.
    pub hessian_product: f64,
    /// A decomposition takes these times n² and n³.
    pub square: f64,
    /// See `square`.
    pub cube: f64,
    /// A weight is rotated.
    pub rotated_weight: f64,
    /// A weight gets a random error, products not counted.
    pub noisy_weight: f64,
    /// A trellis is decoded.
    pub decoded_weight: f64,
    /// Sums of activations that a device has added up are taken from there, each of n² of them.
    pub hessian_square: f64,
    /// A layer of the source is brought to where it runs.
    pub layer_load: f64,
    /// A layer that was rounded is brought there.
    pub replaced_layer_load: f64,
    /// A token goes through a layer of the source.
    pub token_layer: f64,
    /// A token goes through a layer that was rounded.
    pub replaced_token_layer: f64,
    /// A multiplication and addition in such a pass.
    pub pass_product: f64,
    /// A logit becomes the logarithm of a probability, and is compared.
    pub logit: f64,
}

impl Speeds {
    /// Measures all that a run with these rates needs, a second or two, and a pass through a layer.
    pub(super) fn measure(task: &Task<'_>, plan: &Plan<'_>, rates: &[Rate]) -> Result<Speeds, PipelineError> {
        let mut speeds = Speeds::default();
        let mut distinct = rates.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        for rate in distinct {
            speeds.tiles.insert(rate, tile(rate, task)?);
        }
        let failed = || PipelineError::quantize("a measurement");
        let activations = normal(7, 256 * INPUTS);
        let mut hessian = Hessian::new(INPUTS).map_err(failed())?;
        let seconds = of_thread(|| hessian.add(&activations, 1).expect("rows of finite numbers"));
        speeds.hessian_product = seconds / (256 * INPUTS * INPUTS / 2) as f64;
        (speeds.square, speeds.cube) = decomposition(task).map_err(failed())?;
        speeds.product = product();

        let values = normal(8, BLOCK * INPUTS);
        let weight = Weight::new(&values, BLOCK, INPUTS).map_err(failed())?;
        let ones = [vec![f16::ONE; INPUTS], vec![f16::ONE; BLOCK]];
        let rotate = || drop(black_box(rotated_block(&weight, &ones[0], &ones[1], 0)));
        speeds.rotated_weight = of_thread(rotate) / weight.count() as f64;
        let factor = Factor::new(&hessian, &ones[0], 1.0, 1).map_err(failed())?;
        let noisy = Noisy::new(weight, &factor, 0.03, 0).map_err(failed())?;
        let products = (weight.count() * INPUTS / 2) as f64 * speeds.product;
        speeds.noisy_weight =
            (of_thread(|| drop(black_box(noisy.block(0)))) - products).max(0.0) / weight.count() as f64;
        if !task.runs_trellises() {
            speeds.decoded_weight = decoding(rates[0])?;
        }
        let logits = normal(9, 8192);
        speeds.logit = 2.0 * of_thread(|| drop(black_box(log_softmax(&logits)))) / 8192.0;
        if task.backend.capabilities().grams {
            speeds.device_passes(task, plan, rates[0])?;
        } else {
            speeds.passes(task, plan)?;
        }
        Ok(speeds)
    }

    /// Runs a few tokens through the first layer.
    fn passes(&mut self, task: &Task<'_>, plan: &Plan<'_>) -> Result<(), PipelineError> {
        let weights: u64 = plan.of_layer(0).map(|(_, target)| target.weights()).sum();
        let wanted = (PASS_PRODUCTS / weights as f64) as usize;
        let states = states(task, wanted.clamp(*PASS_TOKENS.start(), *PASS_TOKENS.end()));
        let (runner, tokens) = (task.runner(), states.count() as f64);
        let run = |replaced: &Replaced| pass(&runner, || runner.layer(0, replaced, &states).map(drop));
        self.token_layer = run(&Replaced::new())? / tokens;
        self.pass_product = self.token_layer / weights as f64;
        let values = |target: &Target<'_>| {
            let entry = &target.tensor.entry;
            Replacement::Values(Arc::new(vec![0.01; entry.rows * entry.columns]))
        };
        self.replaced_token_layer = run(&replace_all(plan, values))? / tokens;
        Ok(())
    }

    /// The same with few and with many tokens, on a device that adds up activations itself.
    fn device_passes(&mut self, task: &Task<'_>, plan: &Plan<'_>, rate: Rate) -> Result<(), PipelineError> {
        let weights: u64 = plan.of_layer(0).map(|(_, target)| target.weights()).sum();
        let squares: f64 = plan.input_widths().map(|width| (width * width) as f64).sum();
        let both = [*DEVICE_PASS_TOKENS.start(), *DEVICE_PASS_TOKENS.end()].map(|wanted| states(task, wanted));
        let [few, many] = both.each_ref().map(|states| states.count() as f64);
        let runner = task.runner();
        // Seconds of a pass without tokens, and those of each token.
        let split = |[short, long]: [f64; 2]| {
            let each = if many > few { ((long - short) / (many - few)).max(0.0) } else { short / few };
            ((short - few * each).max(0.0), each)
        };
        let run = |replaced: &Replaced| {
            let [few, many] = &both;
            let run = |states: &States| pass(&runner, || runner.layer(0, replaced, states).map(drop));
            Ok::<_, PipelineError>(split([run(few)?, run(many)?]))
        };
        (self.layer_load, self.token_layer) = run(&Replaced::new())?;
        self.pass_product = self.token_layer / weights as f64;
        let trellis = |target: &Target<'_>| {
            let scales = [target.inputs(), target.outputs()].map(|count| vec![f16::ONE; count]);
            let [suh, svh] = scales;
            let linear = Linear::new(rate, Codebook::Mul1, suh, svh).expect("scales of a target");
            Replacement::Trellis(Arc::new(linear), target.input as u32)
        };
        (self.replaced_layer_load, self.replaced_token_layer) = run(&replace_all(plan, trellis))?;
        let [few, many] = &both;
        let run = |states: &States| pass(&runner, || runner.hessians(0, states).map(drop));
        let (load, token) = split([run(few)?, run(many)?]);
        self.hessian_square = (load - self.layer_load).max(0.0) / squares;
        self.hessian_product = (token - self.token_layer).max(0.0) / (squares / 2.0);
        Ok(())
    }
}

/// Some of the sequences, with random states.
fn states(task: &Task<'_>, wanted: usize) -> States {
    let (mut lengths, mut tokens) = (Vec::new(), 0);
    for sequence in task.sequences {
        let length = sequence.len().min(wanted - tokens);
        tokens += length;
        if length > 0 {
            lengths.push(length);
        }
    }
    States { lengths, values: Arc::new(normal(10, tokens * task.source.config().hidden)) }
}

/// All weights of the first layer.
fn replace_all(plan: &Plan<'_>, with: impl Fn(&Target<'_>) -> Replacement) -> Replaced {
    plan.of_layer(0).map(|(_, target)| (target.tensor.entry.name.clone(), with(target))).collect()
}

/// Seconds of all threads for a pass through the first layer.
fn pass(runner: &Runner<'_>, mut run: impl FnMut() -> Result<(), PipelineError>) -> Result<f64, PipelineError> {
    let mut failed = None;
    let mut work = || {
        if let Err(error) = run() {
            failed = Some(error);
        }
    };
    // What chooses tokens itself is no processor: while it works, threads wait.
    let on_processor = (!runner.backend.capabilities().decodes).then(|| clock::of_process(&mut work)).flatten();
    let seconds = on_processor.unwrap_or_else(|| clock::turns(|| None, &mut work) * runner.threads as f64);
    failed.map_or(Ok(seconds), Err)
}

/// Seconds of one thread for a tile; where a device finds them, of all threads, which wait for it.
fn tile(rate: Rate, task: &Task<'_>) -> Result<f64, PipelineError> {
    let encoder = Encoder::new(Codebook::Mul1, rate);
    let count = task.tiles.map_or(8, TileQueue::tiles);
    let tiles: Vec<[f32; LEN]> = normal(11, count * LEN).as_chunks().0.to_vec();
    let encoder = match task.tiles {
        Some(queue) => encoder.on(queue),
        None => encoder,
    };
    let (mut scratch, mut failed) = (None, None);
    let mut search = || match encoder.encode_all(&mut scratch, &tiles) {
        Ok(states) => drop(black_box(states)),
        Err(error) => failed = Some(error),
    };
    let seconds = match task.tiles {
        Some(_) => clock::turns(|| None, &mut search) * task.options.threads as f64,
        None => of_thread(&mut search),
    };
    match failed {
        Some(error) => Err(PipelineError::quantize("a measurement")(error)),
        None => Ok(seconds / count as f64),
    }
}

/// Products as feedback has them: 128 × 128 sums of many terms.
fn product() -> f64 {
    let (a, b) = (normal(12, BLOCK * INPUTS), normal(13, BLOCK * INPUTS));
    let mut sums = vec![0.0; BLOCK * BLOCK];
    let a = Side { values: &a, terms: 1, step: INPUTS };
    let b = Side { values: &b, terms: BLOCK, step: 1 };
    let product = Product { a, b, rows: BLOCK, columns: BLOCK, depth: INPUTS, factor: 1.0 };
    of_thread(|| product.add_to(black_box(&mut sums), BLOCK)) / (BLOCK * BLOCK * INPUTS) as f64
}

/// The factors of n² and n³ in the time of a decomposition, from two sizes; on a device, the time of all threads, which
/// wait for it.
fn decomposition(task: &Task<'_>) -> Result<(f64, f64), crate::QuantizeError> {
    let [small, large] = if task.hessians.is_some() { DEVICE_DECOMPOSED } else { DECOMPOSED };
    let time = |size: usize| {
        let mut hessian = Hessian::new(size)?;
        hessian.add(&normal(14, 64 * size), task.options.threads)?;
        let ones = vec![f16::ONE; size];
        let mut decompose = || drop(black_box(Factor::new_on(task.hessians, &hessian, &ones, 0.1, 1)));
        let seconds = match task.hessians {
            Some(_) => clock::turns(|| None, &mut decompose) * task.options.threads as f64,
            None => of_thread(decompose),
        };
        Ok::<_, crate::QuantizeError>(seconds / (size * size) as f64)
    };
    let (of_small, of_large) = (time(small)?, time(large)?);
    let cube = ((of_large - of_small) / (large - small) as f64).max(0.0);
    Ok(((of_large - cube * large as f64).max(0.0), cube))
}

fn decoding(rate: Rate) -> Result<f64, PipelineError> {
    let linear = Linear::new(rate, Codebook::Mul1, vec![f16::ONE; INPUTS], vec![f16::ONE; BLOCK]);
    let linear = linear.map_err(|error| PipelineError::quantize("a measurement")(error.into()))?;
    let mut values = vec![0.0; BLOCK * INPUTS];
    Ok(of_thread(|| linear.dequantize_block(0, black_box(&mut values))) / (BLOCK * INPUTS) as f64)
}

/// Nearly normal numbers of deviation 1.
fn normal(seed: u64, count: usize) -> Vec<f32> {
    let normal = |index| {
        let bits = philox::bits(seed, index);
        let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
        (sum as f32 / 65_536.0 - 2.0) * 3f32.sqrt()
    };
    (0..count as u64).map(normal).collect()
}
