//! What [`tensor::Backend`] promises beside numbers: errors, cancelling, empty outputs, memory.

use std::sync::atomic::{AtomicBool, Ordering};

use tensor::{BackendError, Batch, BufferId, DType, LoadOptions, Op, Rows, Scalar, Segment};

use crate::setup::{CACHE_MODES, Experiment, Outputs, Setup, Values, Weights};
use crate::{Case, Failure, Subject, Work};

pub(crate) const CASES: &[Case] = &[Case { name: "contract", work: Work::Contract(run) }];

fn run(subjects: &[Subject<'_>]) -> Result<(), Failure> {
    let (experiment, output) = experiment();
    for subject in subjects {
        for check in [refuses_what_it_can_not_do, names_missing_weights, stops_and_goes_on, tells_its_memory] {
            check(subject, &experiment, output).map_err(|problem| Failure {
                subject: subject.name.into(),
                place: experiment.label.clone(),
                problem,
            })?;
        }
    }
    Ok(())
}

/// A small program with a cache and a product.
fn experiment() -> (Experiment, BufferId) {
    let mut setup = Setup::new(9);
    let input = setup.input(64, Values::Normal(1.0));
    let cache = setup.cache(64, Some(4));
    setup.push(Op::CacheWrite { input, cache });
    let mixed = setup.scratch(Rows::Tokens, 64);
    setup.push(Op::Attention {
        query: input,
        keys: cache,
        values: cache,
        head_dim: 64,
        window: Some(4),
        scale: Scalar(0.125),
        output: mixed,
    });
    let (weight, product) = (setup.weight(DType::Q8_0, 32, 64), setup.scratch(Rows::Tokens, 32));
    setup.push(Op::Linear { weight, input: mixed, output: product });
    let output = setup.scratch(Rows::Outputs, 32);
    setup.push(Op::SelectOutputs { input: product, output });
    setup.read(output);
    setup.pass(&[(0, 0, 10)], Outputs::All);
    (setup.finish("the contract".into(), CACHE_MODES), output)
}

fn refuses_what_it_can_not_do(subject: &Subject<'_>, experiment: &Experiment, _: BufferId) -> Result<(), String> {
    let options = LoadOptions { cache_dtype: DType::Q4_K, ..experiment.options.clone() };
    match subject.backend.load(&experiment.program, &*experiment.weights, &options) {
        Err(BackendError::Unsupported { .. }) => Ok(()),
        Err(other) => Err(format!("a cache in q4_k should be unsupported, but: {other}")),
        Ok(_) => Err("a cache in q4_k should be unsupported, but it loads".into()),
    }
}

fn names_missing_weights(subject: &Subject<'_>, experiment: &Experiment, _: BufferId) -> Result<(), String> {
    match subject.backend.load(&experiment.program, &Weights::default(), &experiment.options) {
        Err(BackendError::Weight { name, .. }) if experiment.program.find(&name).is_some() => Ok(()),
        Err(other) => Err(format!("a missing weight should be named, but: {other}")),
        Ok(_) => Err("a program without weights loads".into()),
    }
}

/// A cancelled pass says so, and the same pass afterwards gives what it gives on a fresh load; a pass without outputs
/// works and leaves the caches filled.
fn stops_and_goes_on(subject: &Subject<'_>, experiment: &Experiment, output: BufferId) -> Result<(), String> {
    let load = || {
        let loaded = subject.backend.load(&experiment.program, &*experiment.weights, &experiment.options);
        loaded.map_err(|error| format!("does not load: {error}"))
    };
    let (mut first, mut second) = (load()?, load()?);
    let tokens = &experiment.passes[0].tokens;
    let cancel = AtomicBool::new(true);
    let (start, end) = tokens.split_at(6);
    let segment = |position, tokens: &[u32]| [Segment { sequence: 0, position, tokens: tokens.len() }];
    let (whole, at_start, at_end) = (segment(0, tokens), segment(0, start), segment(6, end));
    let outputs = [0, 3];
    let cancelled = Batch { tokens, segments: &whole, outputs: &outputs, cancel: Some(&cancel) };
    match first.run(&cancelled) {
        Err(BackendError::Cancelled) => {}
        other => return Err(format!("a cancelled pass gave {other:?}")),
    }
    cancel.store(false, Ordering::Relaxed);
    let fail = |error: BackendError| format!("does not run: {error}");
    let mut rows = [vec![f32::NAN; 64], vec![f32::NAN; 64]];
    for (loaded, rows) in [&mut first, &mut second].into_iter().zip(&mut rows) {
        loaded.run(&Batch { tokens: start, segments: &at_start, outputs: &[], cancel: Some(&cancel) }).map_err(fail)?;
        loaded.run(&Batch { tokens: end, segments: &at_end, outputs: &outputs, cancel: None }).map_err(fail)?;
        loaded.read(output, rows).map_err(fail)?;
    }
    let [first, second] = rows;
    if first == second { Ok(()) } else { Err("the same passes give different bits after a cancelled one".into()) }
}

fn tells_its_memory(subject: &Subject<'_>, experiment: &Experiment, _: BufferId) -> Result<(), String> {
    let loaded = subject
        .backend
        .load(&experiment.program, &*experiment.weights, &experiment.options)
        .map_err(|error| format!("does not load: {error}"))?;
    let (found, needed) = (loaded.memory(), tensor::backend::required_memory(&experiment.program, &experiment.options));
    if found.caches < needed.caches || found.weights < needed.weights || found.scratch == 0 {
        return Err(format!("{needed:?} is needed, and it says that it uses {found:?}"));
    }
    Ok(())
}
