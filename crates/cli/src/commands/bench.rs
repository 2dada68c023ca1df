//! `bench`: how fast a model is here.
//!
//! What is timed is what `run` does: requests to the engine, head and sampling included, each sampled token fed back.

mod measure;
mod report;

use std::time::Instant;

use anyhow::{Result, bail};
use backend_cpu::{CpuBackend, physical_cores};
use engine::{Engine, EngineOptions, ModelSource};
use model::{Config, TensorEntry};
use tensor::{Backend, DType};

use crate::args::BenchArgs;
use crate::failure::Usage;
use crate::model_source::Model;
use crate::random_model::RandomModel;
use crate::{interrupt, output};
use measure::{Bench, Case, Measurement};
use report::Report;

/// The weights to be timed.
enum Weights {
    Files(Model),
    Random(RandomModel),
}

/// A matrix or norm and its format.
type Stored = (TensorEntry, DType);

impl Weights {
    fn open(args: &BenchArgs) -> Result<Weights> {
        match &args.shape {
            Some(shape) => Ok(Weights::Random(RandomModel::new(Config::shape(shape)?, args.format, args.seed))),
            None => Ok(Weights::Files(Model::open(args.model.as_deref())?)),
        }
    }

    fn name(&self, args: &BenchArgs) -> String {
        match self {
            Weights::Files(model) => model.name.clone(),
            Weights::Random(_) => {
                format!("gemma 3 {} {}, random", args.shape.as_deref().unwrap_or_default(), args.format)
            }
        }
    }

    /// The configuration and all tensors.
    fn contents(&self) -> Result<(Config, Vec<Stored>)> {
        Ok(match self {
            Weights::Files(model) => {
                let source = ModelSource::open(&model.checkpoint)?;
                let stored = source.tensors().iter().map(|tensor| (tensor.entry.clone(), tensor.dtype));
                (source.config().clone(), stored.collect())
            }
            Weights::Random(model) => {
                let entries = model::tensors::tensors(model.config());
                let stored = entries.into_iter().map(|entry| (entry.clone(), model.format_of(&entry)));
                (model.config().clone(), stored.collect())
            }
        })
    }

    fn load(&self, options: &EngineOptions) -> Result<Engine> {
        let backend = CpuBackend::new();
        Ok(match self {
            Weights::Files(model) => Engine::load(&model.checkpoint, &backend, options)?,
            Weights::Random(model) => {
                let formats = |entry: &TensorEntry| model.format_of(entry);
                Engine::from_source(model.config().clone(), &formats, model, &backend, options)?
            }
        })
    }
}

/// Times a model, or writes a random one.
///
/// # Errors
/// A model that can't be loaded, lengths that don't fit, a file that can't be written, Ctrl-C.
pub(crate) fn run(args: BenchArgs) -> Result<()> {
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
    let mut report = Report::new(weights.name(&args), &config, &stored, CpuBackend::new().capabilities().description);
    for &threads in &threads {
        if !(1..=1024).contains(&threads) {
            return Err(Usage(format!("--threads: expected numbers from 1 to 1024, found {threads}")).into());
        }
        let bandwidth = backend_cpu::memory_read_rate(threads);
        let start = Instant::now();
        let mut engine = weights.load(&options(&args, &cases, threads))?;
        interrupt::watch(engine.interrupt_handle());
        report.loaded(threads, bandwidth, start.elapsed());
        if !args.json {
            output::notice(&report.heading());
        }
        let mut bench = Bench::new(&mut engine, args.seed, context(&cases));
        for &case in &cases {
            let measurement = bench.measure(case, args.warmup, args.repeat)?;
            report.add(threads, measurement, engine_cache(&args));
            if !args.json {
                output::answer(&report.last_line())?;
            }
        }
    }
    if args.json { Ok(output::json(&report.json())?) } else { Ok(()) }
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
        cases.extend(prefill.map(|&tokens| Case { depth, measurement: Measurement::Prefill, tokens }));
        let decode = args.decode_tokens.iter().filter(|&&tokens| tokens > 0);
        cases.extend(decode.map(|&tokens| Case { depth, measurement: Measurement::Decode, tokens }));
    }
    match cases.iter().all(|case| case.depth < 1 << 24 && case.tokens < 1 << 24) {
        _ if cases.is_empty() => Err(Usage("nothing to time: --prompt-tokens and --decode-tokens are 0".into()).into()),
        true => Ok(cases),
        false => Err(Usage("lengths: expected numbers below 16777216".into()).into()),
    }
}

/// Positions that the longest case needs.
fn context(cases: &[Case]) -> usize {
    cases.iter().map(|case| case.depth + case.tokens + 2).max().unwrap_or(2)
}

fn options(args: &BenchArgs, cases: &[Case], threads: usize) -> EngineOptions {
    EngineOptions {
        context: Some(context(cases)),
        cache_dtype: args.cache_type,
        precision: args.precision.into(),
        threads: Some(threads),
        chunk: args.chunk,
        ..EngineOptions::default()
    }
}

/// Says where the shape does not allow the format.
fn notice_replaced(model: &RandomModel, format: DType, stored: &[Stored]) {
    let other = stored.iter().find(|(entry, dtype)| !entry.role.is_norm() && *dtype != format);
    if let Some((entry, dtype)) = other {
        let all = stored.iter().filter(|(_, other)| other == dtype).count();
        output::notice(&format!(
            "rows of {} weights are no multiple of a block of {format}: {all} matrices are {dtype}; all weights {}",
            entry.columns,
            output::bytes(model.bytes())
        ));
    }
}
