//! [`tensor::Loaded::decode`], on backends that decode: every token has to be the one that
//! [`tensor::reference::sample`] chooses from the same backend's own logits, which a second load of it gives pass by
//! pass. Nothing is rounded differently, so there is no bound.

use std::sync::atomic::{AtomicBool, Ordering};

use tensor::{BackendError, BufferId, DType, LoadOptions, Op, Precision, Rows, Sampling, Scalar};

use crate::continued::{Model, Pair, Text};
use crate::layer::{Buffers, SIZES, Sizes, attention_half, norm};
use crate::random::Random;
use crate::setup::{Mode, Setup};
use crate::{Case, Effort, Failure, Subject, Work};

pub(crate) const CASES: &[Case] = &[
    Case { name: "decode/table", work: Work::Contract(table) },
    Case { name: "decode/attention", work: Work::Contract(attention) },
    Case { name: "decode/special", work: Work::Contract(special) },
    Case { name: "decode/wide", work: Work::Contract(wide) },
    Case { name: "decode/contract", work: Work::Contract(contract) },
];

/// Full precision, and what users have.
const MODES: &[Mode] = &[
    Mode { precision: Precision::F32, cache_dtype: DType::F32 },
    Mode { precision: Precision::Fast, cache_dtype: DType::F16 },
];

/// Every filter alone and with others.
fn samplings() -> Vec<Sampling> {
    let all = Sampling { top_k: 0, top_p: 1.0, ..Sampling::default() };
    vec![
        Sampling::greedy(),
        Sampling { repetition_penalty: 1.7, ..Sampling::greedy() },
        Sampling::default(),
        all,
        Sampling { top_k: 5, seed: 1, ..all },
        Sampling { top_p: 0.9, temperature: 1.5, seed: 2, ..all },
        Sampling { min_p: 0.02, seed: 3, ..all },
        Sampling { top_k: 300, top_p: 0.999, min_p: 1e-4, temperature: 0.8, seed: u64::MAX, ..all },
        Sampling { repetition_penalty: 1.3, temperature: 3.0, seed: 1 << 40, ..Sampling::default() },
        Sampling { repetition_penalty: 0.5, top_k: 40, temperature: 1e-3, ..all },
    ]
}

/// A table `[vocabulary, hidden]` of random rows, and the rows of the tokens.
fn embed(setup: &mut Setup, vocabulary: usize, hidden: usize) -> BufferId {
    let mut random = Random::new(0xe3bed);
    let table = (0..vocabulary * hidden).map(|_| random.normal()).collect();
    let table = setup.f32_weight(vocabulary, hidden, table);
    let output = setup.scratch(Rows::Tokens, hidden);
    setup.push(Op::Embed { table, scale: Scalar(1.0), output });
    output
}

/// Logits of the output rows, with a standard deviation of about 3. Only `distinct` rows of the head differ: the others
/// repeat them, so that there are ties.
fn head(setup: &mut Setup, input: BufferId, hidden: usize, (vocabulary, distinct): (usize, usize)) -> BufferId {
    let (selected, logits) = (setup.scratch(Rows::Outputs, hidden), setup.scratch(Rows::Outputs, vocabulary));
    setup.push(Op::SelectOutputs { input, output: selected });
    norm(setup, selected, hidden, selected);
    let (mut random, deviation) = (Random::new(0x4ead), 3.0 / (hidden as f32).sqrt());
    let rows: Vec<f32> = (0..distinct * hidden).map(|_| deviation * random.normal()).collect();
    let weight = rows.iter().cycle().take(vocabulary * hidden).copied().collect();
    let weight = setup.f32_weight(vocabulary, hidden, weight);
    setup.push(Op::Linear { weight, input: selected, output: logits });
    logits
}

fn finish(setup: Setup, label: &str, vocabulary: usize, logits: BufferId) -> Model {
    let mut experiment = setup.finish(label.into(), MODES);
    experiment.options =
        LoadOptions { tokens_max: 16, outputs_max: 3, sequences_max: 3, context_max: 48, ..experiment.options };
    Model { experiment, logits, vocabulary }
}

/// No caches: the choice alone.
fn table(subjects: &[Subject<'_>]) -> Result<(), Failure> {
    let model = table_model("table, 2003 tokens", 2003, 64, 700);
    check(subjects, &model, MODES, &samplings())
}

fn table_model(label: &str, vocabulary: usize, hidden: usize, distinct: usize) -> Model {
    let mut setup = Setup::new(0xdec0de);
    let rows = embed(&mut setup, vocabulary, hidden);
    let logits = head(&mut setup, rows, hidden, (vocabulary, distinct));
    finish(setup, label, vocabulary, logits)
}

/// Caches of a local and a global layer: what is chosen depends on all that came before.
fn attention(subjects: &[Subject<'_>]) -> Result<(), Failure> {
    let sizes = Sizes { hidden: 128, heads: 2, kv_heads: 1, ..SIZES };
    let mut setup = Setup::new(0xdec0df);
    let residual = embed(&mut setup, 1999, sizes.hidden);
    let buffers = Buffers::new(&mut setup, Rows::Tokens, &sizes);
    for window in [Some(7), None] {
        attention_half(&mut setup, &sizes, &buffers, window, residual);
    }
    let logits = head(&mut setup, residual, sizes.hidden, (1999, 1500));
    let model = finish(setup, "attention, 1999 tokens", 1999, logits);
    check(subjects, &model, MODES, &samplings()[2..6])
}

/// Logits that are given: ties, infinities, zeros of both signs, tiny and huge ones, and such of which none can be
/// chosen.
fn special(subjects: &[Subject<'_>]) -> Result<(), Failure> {
    for (index, vocabulary) in [1, 2, 17, 300, 1031].into_iter().enumerate() {
        let mut setup = Setup::new(0x5bec1a1);
        let table = (0..vocabulary).flat_map(|row| special_row(row, vocabulary)).collect();
        let table = setup.f32_weight(vocabulary, vocabulary, table);
        let (rows, logits) = (setup.scratch(Rows::Tokens, vocabulary), setup.scratch(Rows::Outputs, vocabulary));
        setup.push(Op::Embed { table, scale: Scalar(1.0), output: rows });
        setup.push(Op::SelectOutputs { input: rows, output: logits });
        let model = finish(setup, &format!("special logits, {vocabulary} tokens"), vocabulary, logits);
        let quick: Vec<Sampling> = samplings().into_iter().skip(index % 2).step_by(2).collect();
        for &subject in subjects {
            let samplings = if subject.effort == Effort::Quick { quick.clone() } else { samplings() };
            check(&[subject], &model, &MODES[..1], &samplings)?;
        }
    }
    Ok(())
}

fn special_row(row: usize, vocabulary: usize) -> Vec<f32> {
    const SPECIAL: [f32; 8] = [f32::NAN, f32::NEG_INFINITY, -0.0, 0.0, 1e-40, -1e-35, -3e38, 3e38];
    let mut random = Random::new(row as u64);
    let steps = 1 + random.below(40);
    let mut value = |column: usize| match (row % 8, random.below(10_000)) {
        (0, number) => (number % steps) as f32 * 0.25 - 3.0,
        (1, number) => number as f32 * 0.003 - 15.0,
        (2, number) if number < 4000 => SPECIAL[number % 8],
        (3, number) if number < 4000 => SPECIAL[number % 6],
        (4, number) => SPECIAL[number % 6],
        (5, _) if row % 16 == 5 => SPECIAL[(column + row) / 16 % 2],
        (6, 0..9) if row % 16 == 6 => f32::INFINITY,
        (_, number) => (number as f32 - 5000.0) * 0.0009,
    };
    (0..vocabulary).map(&mut value).collect()
}

/// More tokens than one workgroup of a GPU looks at.
fn wide(subjects: &[Subject<'_>]) -> Result<(), Failure> {
    let mut model = table_model("table, 70001 tokens", 70_001, 32, 40_000);
    model.experiment.options.context_max = 10;
    let samplings = [1, 3, 5, 7].map(|index| samplings()[index]);
    check(subjects, &model, &MODES[..1], &samplings)
}

/// Runs one and three texts with each sampling in each mode on the subjects that decode; with [`Effort::Quick`], each
/// sampling in one of these ways, in turn.
fn check(subjects: &[Subject<'_>], model: &Model, modes: &[Mode], samplings: &[Sampling]) -> Result<(), Failure> {
    let ways: Vec<(&Mode, usize)> = modes.iter().flat_map(|mode| [(mode, 3), (mode, 1)]).collect();
    for subject in subjects.iter().filter(|subject| subject.backend.capabilities().decodes) {
        for (index, sampling) in samplings.iter().enumerate() {
            let tried = match subject.effort {
                Effort::Full => &ways[..],
                Effort::Quick => &ways[index % ways.len()..][..1],
            };
            for &(mode, sequences) in tried {
                scenario(subject, model, mode, sampling, sequences).map_err(|problem| Failure {
                    subject: subject.name.into(),
                    place: format!("{}, {mode:?}, {sampling:?}, {sequences} sequences", model.experiment.label),
                    problem,
                })?;
            }
        }
    }
    Ok(())
}

/// The same texts to their ends, then with tokens that end them earlier, then with changes between calls.
fn scenario(
    subject: &Subject<'_>,
    model: &Model,
    mode: &Mode,
    sampling: &Sampling,
    sequences: usize,
) -> Result<(), String> {
    let texts = || -> Vec<Text> {
        let limits = [30, usize::MAX, 9];
        (0..sequences).map(|sequence| Text::new(model, sequence, sampling, limits[sequence])).collect()
    };
    let mut whole = texts();
    let mut pair = Pair::load(subject, model, mode)?;
    pair.finish(&mut whole, false)?;
    pair.compare_caches(&whole)?;

    let mut stopped = texts();
    for (text, whole) in stopped.iter_mut().zip(&whole) {
        // The last token of the whole text at the latest.
        let place = whole.tokens.len().min(text.tokens.len() + 7 - 2 * text.sequence);
        text.stop_tokens = vec![u32::MAX, whole.tokens[place - 1]];
    }
    Pair::load(subject, model, mode)?.finish(&mut stopped, false)?;

    let mut disturbed = texts();
    let mut pair = Pair::load(subject, model, mode)?;
    pair.finish(&mut disturbed, true)?;
    pair.compare_caches(&disturbed)
}

/// Cancelling, times and traces.
fn contract(subjects: &[Subject<'_>]) -> Result<(), Failure> {
    let model = table_model("table, 203 tokens", 203, 64, 203);
    for subject in subjects.iter().filter(|subject| subject.backend.capabilities().decodes) {
        for check in [cancels, traces] {
            check(subject, &model).map_err(|problem| Failure {
                subject: subject.name.into(),
                place: model.experiment.label.clone(),
                problem,
            })?;
        }
    }
    Ok(())
}

/// A cancelled call says so or gives right tokens, and the same call afterwards gives the right ones.
fn cancels(subject: &Subject<'_>, model: &Model) -> Result<(), String> {
    let mut texts = [Text::new(model, 0, &Sampling::default(), 20)];
    let mut pair = Pair::load(subject, model, &MODES[0])?;
    pair.prompt(&mut texts)?;
    for _ in 0..3 {
        let cancel = AtomicBool::new(true);
        let before = texts[0].tokens.len();
        match pair.call(&mut texts, &[0], Some(&cancel)) {
            Ok(()) => {}
            Err(Ok(BackendError::Cancelled)) if texts[0].tokens.len() == before => {}
            Err(Ok(error)) => return Err(format!("a cancelled call gave: {error}")),
            Err(Err(problem)) => return Err(problem),
        }
        cancel.store(false, Ordering::Relaxed);
        pair.call(&mut texts, &[0], Some(&cancel)).map_err(|error| match error {
            Ok(error) => format!("does not decode after a cancelled call: {error}"),
            Err(problem) => problem,
        })?;
    }
    pair.compare_caches(&texts)
}

/// If the device can trace, it has spans for what it did, in order; none before and after.
fn traces(subject: &Subject<'_>, model: &Model) -> Result<(), String> {
    let mut texts = [Text::new(model, 0, &Sampling::default(), 20)];
    let mut pair = Pair::load(subject, model, &MODES[0])?;
    pair.prompt(&mut texts)?;
    if !pair.device.set_tracing(true) {
        return if pair.device.take_trace().is_empty() { Ok(()) } else { Err("spans without tracing".into()) };
    }
    pair.call(&mut texts, &[0], None).map_err(|error| format!("does not decode when traced: {error:?}"))?;
    let spans = pair.device.take_trace();
    if spans.is_empty() || !spans.is_sorted_by_key(|span| span.start) {
        return Err(format!("a call should be traced in order, but: {spans:?}"));
    }
    if spans.iter().all(|span| span.bytes == 0) {
        return Err("no span reads or writes anything".into());
    }
    let on = pair.device.set_tracing(false);
    pair.call(&mut texts, &[0], None).map_err(|error| format!("does not decode after tracing: {error:?}"))?;
    if on || !pair.device.take_trace().is_empty() {
        return Err("traces although tracing is off".into());
    }
    Ok(())
}
