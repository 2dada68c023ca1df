//! `bench`: how fast a model is here.
//!
//! What is timed is what `run` does: requests to the engine, head and sampling included, each sampled token fed back.

mod compare;
mod latency;
mod measure;
mod report;
mod stability;
mod trace;

use std::cell::Cell;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use backend_cpu::physical_cores;
use backend_vulkan::DeviceInfo;
use engine::{Engine, EngineOptions, ModelSource};
use model::{Config, TensorEntry};
use serde_json::json;
use tensor::{BackendError, DType, WeightFormat};

use crate::args::{BenchArgs, BenchCommand, DeviceArg};
use crate::devices::{self, Device, Machine, ThisMachine};
use crate::failure::Usage;
use crate::model_source::Model;
use crate::random_model::{RandomFormat, RandomModel};
use crate::sensors::Sensors;
use crate::{interrupt, output, runner};
use measure::{Bench, Case, FIRST_TOKEN_PROMPT, Measurement};
use report::{Place, Report};

/// The weights to be timed.
enum Weights {
    Files(Model),
    Random(RandomModel),
}

/// A matrix or norm and its format.
type Stored = (TensorEntry, WeightFormat);

impl Weights {
    fn open(args: &BenchArgs) -> Result<Weights> {
        match &args.shape {
            Some(shape) => {
                let mut config = Config::shape(shape)?;
                config.layers.truncate(args.layers.map_or(usize::MAX, |layers| layers as usize));
                Ok(Weights::Random(RandomModel::new(config, args.format, args.seed)))
            }
            None => Ok(Weights::Files(Model::open(args.model.as_deref())?)),
        }
    }

    fn name(&self, args: &BenchArgs) -> String {
        match self {
            Weights::Files(model) => model.name.clone(),
            Weights::Random(_) => {
                let layers = args.layers.map(|layers| format!(" of {layers} layers")).unwrap_or_default();
                format!("gemma 3 {}{layers} {}, random", args.shape.as_deref().unwrap_or_default(), args.format)
            }
        }
    }

    /// The configuration and all tensors.
    fn contents(&self) -> Result<(Config, Vec<Stored>)> {
        Ok(match self {
            Weights::Files(model) => {
                let source = ModelSource::open(&model.checkpoint)?;
                let stored = source.tensors().iter().map(|tensor| (tensor.entry.clone(), tensor.format));
                (source.config().clone(), stored.collect())
            }
            Weights::Random(model) => {
                let entries = model::tensors::tensors(model.config());
                let stored = entries.into_iter().map(|entry| (entry.clone(), model.format_of(&entry)));
                (model.config().clone(), stored.collect())
            }
        })
    }

    /// Loads them, and measures the memory before that.
    fn load(&self, machine: &dyn Machine, device: DeviceArg, options: &EngineOptions) -> Result<Load> {
        let threads = options.threads.unwrap_or(1);
        let (bandwidth, start) = (Cell::new(None), Cell::new(Instant::now()));
        let load = |device: &dyn Device, options: &EngineOptions| {
            bandwidth.set(match device.bandwidth(threads) {
                Ok(rate) => Some(rate),
                // What is to be timed may be possible all the same.
                Err(BackendError::Unsupported { .. } | BackendError::OutOfMemory { .. }) => None,
                Err(error) => return Err(error.into()),
            });
            start.set(Instant::now());
            match self {
                Weights::Files(model) => Engine::load(&model.checkpoint, device, options),
                Weights::Random(model) => {
                    let formats = |entry: &TensorEntry| model.format_of(entry);
                    Engine::from_source(model.config().clone(), &formats, model, device, options)
                }
            }
        };
        let (engine, device) = devices::load(machine, device, options, &load)?;
        if let Weights::Files(model) = self
            && let Some(text) = runner::decoded(&model.checkpoint, &engine)
        {
            output::notice(&text);
        }
        let place = Place::of(&*device, threads, bandwidth.get(), start.get().elapsed());
        Ok(Load { engine, place, gpu: device.gpu().cloned() })
    }
}

/// A loaded model and where it is.
struct Load {
    engine: Engine,
    place: Place,
    gpu: Option<DeviceInfo>,
}

/// Times a model, writes a random one, or compares two measurements.
///
/// # Errors
/// A model that can't be loaded, lengths that don't fit, a file that can't be written, Ctrl-C; a GPU that fails, since
/// what another device does would be no measurement of it.
pub(crate) fn run(args: BenchArgs) -> Result<()> {
    if let Some(BenchCommand::Compare(args)) = &args.command {
        return compare::run(args);
    }
    run_on(&ThisMachine, args)
}

fn run_on(machine: &dyn Machine, args: BenchArgs) -> Result<()> {
    let weights = Weights::open(&args)?;
    if let (Some(path), Weights::Random(model)) = (&args.write, &weights) {
        if path.exists() && !args.force {
            bail!("`{}` exists already\n\nhint: --force overwrites it", path.display());
        }
        let bytes = model.write(path, &weights.name(&args))?;
        output::notice(&format!("wrote `{}`: {}", path.display(), output::bytes(bytes)));
        return Ok(());
    }
    let cases = cases(&args)?;
    let threads = if args.threads.is_empty() { vec![physical_cores()] } else { args.threads.clone() };
    let (config, stored) = weights.contents()?;
    if let Weights::Random(model) = &weights {
        notice_replaced(model, args.format, &stored);
    }
    let report = Report::new(weights.name(&args), &config, &stored, args.precision.into());
    let mut report = report.with_settings(json!({
        "chunk": args.chunk,
        "cache_type": engine_cache(&args).name(),
        "warmup": args.warmup,
        "repeat": args.repeat,
        "seed": args.seed,
        "minutes": args.minutes,
    }));
    for &threads in &threads {
        if !(1..=1024).contains(&threads) {
            return Err(Usage(format!("--threads: expected numbers from 1 to 1024, found {threads}")).into());
        }
        let Load { mut engine, place, gpu } = weights.load(machine, args.device, &options(&args, &cases, threads))?;
        interrupt::watch(engine.interrupt_handle());
        // While it was loaded nobody was told.
        interrupt::check()?;
        let sensors = Sensors::find(&args.sysfs, gpu.as_ref());
        report.loaded(place, engine.memory(), &sensors);
        let mut bench = Bench::new(&mut engine, &sensors, args.seed, context(&cases));
        if !args.json {
            output::notice(&report.heading());
        }
        let failed = match args.minutes {
            Some(minutes) => stability::measure(&args, cases[0], minutes, &mut bench, &mut report),
            None => measure(&args, &cases, &mut bench, &mut report).map(|()| None),
        }?;
        if let Some(error) = failed {
            // What there is until then is worth telling.
            if args.json {
                output::json(&report.json())?;
            }
            return Err(error);
        }
        if interrupt::is_pressed() || gpu.is_some() {
            // A GPU has no use for other numbers of threads.
            break;
        }
    }
    if args.json { Ok(output::json(&report.json())?) } else { Ok(()) }
}

/// Times all cases on one device.
fn measure(args: &BenchArgs, cases: &[Case], bench: &mut Bench<'_>, report: &mut Report) -> Result<()> {
    let tell = |text: String| if args.json { Ok(()) } else { output::answer(&text) };
    if args.trace.is_some() && !trace::is_possible(bench) {
        bail!("the device keeps no times of its work (GPUs with timestamps do), so there is no trace to write");
    }
    let first_token = bench.first_token(args.warmup, args.repeat);
    report.first_token(first_token.context("the time to the first token could not be measured")?);
    tell(report.last_first_token())?;
    for &case in cases {
        let timing = bench.measure(case, args.warmup, args.repeat);
        let timing = timing.with_context(|| format!("{case} could not be measured"))?;
        report.add(timing, engine_cache(args));
        tell(report.last_line())?;
    }
    if let Some(text) = report.too_short_for_energy().filter(|_| !args.json) {
        output::notice(&text);
    }
    if let Some(trace) = trace::record(bench, cases)? {
        if let Some(path) = &args.trace {
            trace.write(path)?;
        }
        report.traced(trace);
        tell(report.tables())?;
    }
    Ok(())
}

/// Format of the caches.
fn engine_cache(args: &BenchArgs) -> DType {
    args.cache_type.unwrap_or(match args.precision {
        crate::args::PrecisionArg::Fast => DType::F16,
        crate::args::PrecisionArg::F32 => DType::F32,
    })
}

fn cases(args: &BenchArgs) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &depth in &args.depth {
        let prefill = args.prompt_tokens.iter().filter(|&&tokens| tokens > 0);
        cases.extend(prefill.map(|&tokens| Case { depth, measurement: Measurement::Prefill, tokens, sequences: 1 }));
        let decode = args.decode_tokens.iter().filter(|&&tokens| tokens > 0);
        for &tokens in decode {
            let all = args.sequences.iter().map(|&sequences| sequences as usize);
            cases.extend(all.map(|sequences| Case { depth, measurement: Measurement::Decode, tokens, sequences }));
        }
    }
    if args.chunk < sequences(args) {
        // They have to begin together.
        return Err(Usage("--chunk: expected at least as many tokens as --sequences".into()).into());
    }
    if args.minutes.is_some() {
        cases.retain(|case| case.measurement == Measurement::Decode);
        if cases.len() != 1 {
            let what = "expected one number each for --decode-tokens, --depth and --sequences";
            return Err(Usage(format!("--minutes: {what}")).into());
        }
    }
    match cases.iter().all(|case| case.depth < 1 << 24 && case.tokens < 1 << 24) {
        _ if cases.is_empty() => Err(Usage("nothing to time: --prompt-tokens and --decode-tokens are 0".into()).into()),
        true => Ok(cases),
        false => Err(Usage("lengths: expected numbers below 16777216".into()).into()),
    }
}

/// The most sequences at once.
fn sequences(args: &BenchArgs) -> usize {
    args.sequences.iter().max().map_or(1, |&most| most as usize)
}

/// Positions that the longest case needs.
fn context(cases: &[Case]) -> usize {
    cases.iter().map(|case| case.depth + case.tokens).fold(FIRST_TOKEN_PROMPT, usize::max) + 2
}

fn options(args: &BenchArgs, cases: &[Case], threads: usize) -> EngineOptions {
    EngineOptions {
        context: Some(context(cases)),
        cache_dtype: args.cache_type,
        precision: args.precision.into(),
        threads: Some(threads),
        chunk: args.chunk,
        sequences: sequences(args),
        ..EngineOptions::default()
    }
}

/// Says where the shape does not allow the format.
fn notice_replaced(model: &RandomModel, format: RandomFormat, stored: &[Stored]) {
    let RandomFormat::Blocks(format) = format else { return };
    let other = stored.iter().find(|(entry, found)| !entry.role.is_norm() && *found != format.into());
    if let Some((entry, dtype)) = other {
        let all = stored.iter().filter(|(_, other)| other == dtype).count();
        output::notice(&format!(
            "rows of {} weights are no multiple of a block of {format}: {all} matrices are {dtype}; all weights {}",
            entry.columns,
            output::bytes(model.bytes())
        ));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};
    use crate::devices::fake::{Fault, Gpu, machine};

    #[test]
    fn a_gpu_that_fails_is_the_end_and_named() {
        let line =
            "lapidary bench --shape 270m --layers 1 --device vulkan:0 --prompt-tokens 0 --decode-tokens 4 --json";
        // One pass for each of the two first tokens, then those of the case.
        for (passes, what) in [(1, "the time to the first token"), (4, "decode of 4 tokens at a depth of 0")] {
            let Command::Bench(args) = Args::parse_from(line.split(' ')).command else { panic!("another command") };
            let machine = machine(vec![Gpu::failing(0, vec![Some(Fault::Pass(passes, "lost\n\nhint: look at it"))])]);
            let error = run_on(machine, BenchArgs { repeat: 2, ..args }).unwrap_err();
            let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
            assert_eq!(
                chain,
                [format!("{what} could not be measured"), "GPU 0 failed: lost\n\nhint: look at it".into()]
            );
            assert!(machine.told().is_empty());
        }
    }
}
