//! Runs an experiment on the reference and on the backends under test, and compares.

use std::fmt;

use tensor::reference::ReferenceBackend;
use tensor::{Batch, BufferId, BufferKind, DType, LoadOptions, Loaded, Precision, Rows};

use crate::bound::Errors;
use crate::setup::{Experiment, Mode, Pass};
use crate::{Effort, Subject};

/// Numbers of threads, used in turn, so that work is divided in different ways.
const THREADS: [usize; 4] = [2, 1, 3, 5];

/// A backend is out of bounds.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The backend.
    pub subject: String,
    /// Formats, sizes, precision, and where it happened.
    pub place: String,
    /// What was found.
    pub problem: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.place, self.subject, self.problem)
    }
}

/// What a buffer should hold after a pass.
struct Expected {
    values: Vec<f32>,
    /// For each of the experiment's modes, the largest error of each element.
    bounds: Vec<Vec<f64>>,
}

/// Compares all subjects with the reference in all modes of an experiment.
///
/// # Errors
/// The first buffer that is out of bounds, or a backend's own error.
pub fn compare(experiment: &Experiment, subjects: &[Subject<'_>]) -> Result<(), Failure> {
    let expected = expect(experiment);
    for subject in subjects {
        if experiment.has_trellis() && !subject.backend.capabilities().trellis {
            continue;
        }
        for (index, mode) in experiment.modes.iter().enumerate() {
            if skips_mode(subject.effort, experiment, mode) {
                continue;
            }
            let threads = THREADS[(experiment.label.len() + index) % THREADS.len()];
            check(experiment, &expected, (index, mode), threads, subject)?;
        }
    }
    Ok(())
}

/// Runs the reference and the error analysis of every mode. The result has an entry per pass and buffer.
fn expect(experiment: &Experiment) -> Vec<Vec<Expected>> {
    let Experiment { program, options, modes, .. } = experiment;
    let mut reference =
        ReferenceBackend.load_reference(program, &*experiment.weights, options).expect("the reference loads");
    let mut errors: Vec<Errors> = modes.iter().map(|&mode| Errors::new(experiment, mode)).collect();
    let mut expected = Vec::new();
    for pass in &experiment.passes {
        let batch = batch(pass);
        reference
            .run_observed(&batch, |op, buffers| {
                for errors in &mut errors {
                    errors.step(op, buffers, &batch);
                }
            })
            .expect("the reference runs");
        let buffers = experiment.read.iter().map(|&buffer| {
            let (rows, width) = shape(experiment, buffer, pass);
            let values = reference.values(buffer)[..rows * width].to_vec();
            let bounds = errors.iter().map(|errors| errors.of(buffer)[..rows * width].to_vec()).collect();
            Expected { values, bounds }
        });
        expected.push(buffers.collect());
    }
    expected
}

/// How sharp the bounds of an experiment are: for each mode the median of `bound / standard deviation` over the
/// elements of all results. What is far below it in a backend's results can't be seen.
pub fn sharpness(experiment: &Experiment) -> Vec<f64> {
    let expected = expect(experiment);
    let all = || expected.iter().flatten();
    let values = || all().flat_map(|expected| &expected.values).map(|&value| f64::from(value));
    let deviation = (values().map(|value| value * value).sum::<f64>() / values().count() as f64).sqrt();
    let mode = |mode: usize| {
        let mut bounds: Vec<f64> = all().flat_map(|expected| &expected.bounds[mode]).copied().collect();
        let middle = bounds.len() / 2;
        *bounds.select_nth_unstable_by(middle, f64::total_cmp).1 / deviation
    };
    (0..experiment.modes.len()).map(mode).collect()
}

/// Runs one subject in one mode.
fn check(
    experiment: &Experiment,
    expected: &[Vec<Expected>],
    (index, mode): (usize, &Mode),
    threads: usize,
    subject: &Subject<'_>,
) -> Result<(), Failure> {
    let fail = |place: &str, problem: String| Failure {
        subject: subject.name.into(),
        place: format!(
            "{} ({:?} precision, {} cache, {threads} threads{place})",
            experiment.label, mode.precision, mode.cache_dtype
        ),
        problem,
    };
    let options = LoadOptions {
        precision: mode.precision,
        cache_dtype: mode.cache_dtype,
        threads: Some(threads),
        ..experiment.options.clone()
    };
    let mut loaded = subject
        .backend
        .load(&experiment.program, &*experiment.weights, &options)
        .map_err(|error| fail("", format!("does not load: {error}")))?;
    for (number, (pass, expected)) in experiment.passes.iter().zip(expected).enumerate() {
        let tokens = pass.tokens.len();
        if skips_pass(subject.effort, experiment, tokens) {
            continue;
        }
        let place = format!(", pass {number} of {tokens} tokens, {} outputs", pass.outputs.len());
        loaded.run(&batch(pass)).map_err(|error| fail(&place, format!("does not run: {error}")))?;
        for (&buffer, expected) in experiment.read.iter().zip(expected) {
            let found = read(experiment, &mut *loaded, buffer, pass).map_err(|problem| fail(&place, problem))?;
            let width = shape(experiment, buffer, pass).1;
            let name = &experiment.program.buffer(buffer).name;
            worst(&found, &expected.values, &expected.bounds[index], width)
                .map_err(|problem| fail(&place, format!("`{name}` of width {width}: {problem}")))?;
        }
    }
    Ok(())
}

/// Whether a pass over so many tokens is left out.
fn skips_pass(effort: Effort, experiment: &Experiment, tokens: usize) -> bool {
    effort == Effort::Quick && cache_width(experiment).is_none() && matches!(tokens, 2 | 3 | 5..=7)
}

/// Whether a mode is left out: all but one format of caches in each precision, which depends on the caches' width.
fn skips_mode(effort: Effort, experiment: &Experiment, mode: &Mode) -> bool {
    let (Effort::Quick, Some(width)) = (effort, cache_width(experiment)) else { return false };
    let mut formats: Vec<DType> = Vec::new();
    for mode in experiment.modes {
        if !formats.contains(&mode.cache_dtype) {
            formats.push(mode.cache_dtype);
        }
    }
    let turn = width / 32 + usize::from(mode.precision == Precision::Fast);
    formats[turn % formats.len()] != mode.cache_dtype
}

/// The width of the first cache, if there is one.
fn cache_width(experiment: &Experiment) -> Option<usize> {
    experiment.program.buffers().iter().find_map(|buffer| match buffer.kind {
        BufferKind::Cache { width, .. } => Some(width),
        BufferKind::Scratch { .. } | BufferKind::Weight { .. } => None,
    })
}

/// Reads all rows, and the first one again alone: both have to be the same.
fn read(experiment: &Experiment, loaded: &mut dyn Loaded, buffer: BufferId, pass: &Pass) -> Result<Vec<f32>, String> {
    let (rows, width) = shape(experiment, buffer, pass);
    let (mut found, mut first) = (vec![f32::NAN; rows * width], vec![f32::NAN; width.min(rows * width)]);
    for into in [&mut found, &mut first] {
        loaded.read(buffer, into).map_err(|error| format!("can't be read: {error}"))?;
    }
    let same = found.iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits());
    if same { Ok(found) } else { Err("two reads of the first row differ".into()) }
}

/// Rows and width of a scratch buffer in a pass.
fn shape(experiment: &Experiment, buffer: BufferId, pass: &Pass) -> (usize, usize) {
    match experiment.program.buffer(buffer).kind {
        BufferKind::Scratch { rows: Rows::Tokens, width } => (pass.tokens.len(), width),
        BufferKind::Scratch { rows: Rows::Outputs, width } => (pass.outputs.len(), width),
        _ => unreachable!("only scratch buffers are read"),
    }
}

fn batch(pass: &Pass) -> Batch<'_> {
    Batch { tokens: &pass.tokens, segments: &pass.segments, outputs: &pass.outputs, cancel: None }
}

/// Describes the element that is farthest out of its bound, as a multiple of it.
fn worst(found: &[f32], expected: &[f32], bounds: &[f64], width: usize) -> Result<(), String> {
    let excess = |index: usize| {
        // Results below the normal numbers may be flushed to zero.
        let bound = bounds[index] + f64::from(f32::MIN_POSITIVE);
        let ratio = (f64::from(found[index]) - f64::from(expected[index])).abs() / bound;
        // A NaN is as wrong as can be, and so is any difference where no number is a bound.
        if ratio.is_nan() { f64::INFINITY } else { ratio }
    };
    let out: Vec<usize> = (0..found.len()).filter(|&index| excess(index) > 1.0).collect();
    let Some(&worst) = out.iter().max_by(|&&a, &&b| excess(a).total_cmp(&excess(b))) else { return Ok(()) };
    Err(format!(
        "{} of {} elements out of bounds, the worst [{}, {}]: expected {:e}, found {:e}, off by {:.3e} with a bound \
         of {:.3e}",
        out.len(),
        found.len(),
        worst / width,
        worst % width,
        expected[worst],
        found[worst],
        (f64::from(found[worst]) - f64::from(expected[worst])).abs(),
        bounds[worst],
    ))
}
