//! A model as a folder of trellis weights.

use std::fs;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use backend_cpu::physical_cores;
use engine::ModelSource;
use quantize::pipeline::{Budget, Observer, Options, Report, Stage, Task};
use serde_json::json;
use text::{Special, Tokenizer};

use crate::args::{DeviceArg, QuantizeArgs};
use crate::devices::{self, Device, ThisMachine};
use crate::model_source::Model;
use crate::progress::{Progress, Unit};
use crate::{interrupt, output, session};

/// Conversations and prose that nobody else wrote.
const TEXT: &str = include_str!("../../../calibration.txt");

/// Quantizes a model.
///
/// # Errors
/// As [`super::run`].
pub(super) fn run(args: &QuantizeArgs, budget: Budget) -> Result<()> {
    let start = Instant::now();
    let model = Model::open(Some(&args.model))?;
    let source = ModelSource::open(&model.checkpoint)?;
    let sequences = sequences(args, &session::tokenizer(&model.checkpoint)?, source.config().context)?;
    let device = device(args.trellis.device)?;
    let options = options(args, budget);
    let watch = Watch::default();
    let (tiles, hessians) = (device.tiles()?, device.hessians());
    let task = Task {
        source: &source,
        backend: &*device,
        sequences: &sequences,
        options: &options,
        tiles: tiles.as_ref(),
        hessians: hessians.as_deref(),
        observer: &watch,
    };
    let Some(target) = args.output.as_deref().filter(|_| !args.trellis.estimate) else {
        return super::estimate::run(args, &task);
    };
    let report = task.run(target, args.force)?;
    drop(watch);
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        return Ok(output::json(&json!({
            "output": target,
            "bytes": report.bytes,
            "bytes_before": model.checkpoint.file_bytes(),
            "bits_per_weight": report.bits_per_weight(),
            "seconds": seconds,
            "weights": weights(&report),
        }))?);
    }
    output::notice(&format!(
        "wrote `{}`: {} from {}, {:.3} bits per weight, {seconds:.1} s",
        target.display(),
        output::bytes(report.bytes),
        output::bytes(model.checkpoint.file_bytes()),
        report.bits_per_weight()
    ));
    Ok(())
}

fn weights(report: &Report) -> Vec<serde_json::Value> {
    let weights = report.weights.iter();
    weights.map(|one| json!({ "name": one.name, "bits": one.rate.bits(), "cost": one.cost })).collect()
}

fn options(args: &QuantizeArgs, budget: Budget) -> Options {
    let trellis = &args.trellis;
    let usual = Options::new(budget);
    let mut rates = trellis.rates.clone();
    rates.sort_unstable();
    rates.dedup();
    Options {
        head: trellis.head_bits,
        rates: if rates.is_empty() { usual.rates.clone() } else { rates },
        allocation: trellis.allocation.into(),
        layout: trellis.layout.into(),
        seed: trellis.seed,
        threads: args.threads.unwrap_or_else(physical_cores),
        feedback: !trellis.no_feedback,
        damping: trellis.damping,
        probe_tokens: trellis.probe_tokens,
        ..usual
    }
}

/// Where the text runs, and where tiles are searched for.
fn device(wanted: DeviceArg) -> Result<Box<dyn Device>> {
    devices::open(&ThisMachine, wanted)
}

/// The calibration text in pieces with `<bos>` before each, from all over it if it is too long.
fn sequences(args: &QuantizeArgs, tokenizer: &Tokenizer, context: usize) -> Result<Vec<Vec<u32>>> {
    let tokens = match &args.trellis.calibration {
        Some(path) => {
            let bytes = fs::read(path).with_context(|| format!("can't read `{}`", path.display()))?;
            let text = String::from_utf8(bytes).with_context(|| format!("`{}` is no text in UTF-8", path.display()))?;
            tokenizer.encode(&text, Special::Parse)
        }
        None => tokenizer.encode(TEXT, Special::Parse),
    };
    let bos = tokenizer.bos().context("the tokenizer has no <bos>, which every text begins with")?;
    let piece = args.trellis.sequence_tokens.min(context).max(2) - 1;
    let pieces: Vec<&[u32]> = tokens.chunks(piece).filter(|part| part.len() == piece || tokens.len() < piece).collect();
    let wanted = (args.trellis.calibration_tokens / (piece + 1)).clamp(1, pieces.len().max(1));
    let chosen = (0..wanted.min(pieces.len())).map(|index| pieces[index * pieces.len() / wanted]);
    Ok(chosen.map(|part| [&[bos], part].concat()).collect())
}

/// Shows how far it is.
#[derive(Default)]
pub(in crate::commands) struct Watch(Mutex<Option<(Stage, Progress)>>);

impl Observer for Watch {
    fn progress(&self, stage: Stage, done: u64, total: u64) {
        let (label, unit) = match stage {
            Stage::Sensitivity => ("measuring what errors cost", Unit::Weights),
            Stage::Calibration => ("calibrating", Unit::Weights),
            Stage::Quantization => ("quantizing", Unit::Weights),
            Stage::Conversion => ("converting", Unit::Bytes),
        };
        let Ok(mut shown) = self.0.lock() else { return };
        if shown.as_ref().is_none_or(|(before, _)| *before != stage) {
            // What an earlier run did took no time now.
            *shown = Some((stage, Progress::from(label, unit, total, done)));
        }
        if let Some((_, progress)) = &mut *shown {
            progress.set(done);
        }
    }

    fn cancelled(&self) -> bool {
        interrupt::is_pressed()
    }
}
