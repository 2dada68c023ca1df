//! How well a model predicts texts, alone or beside the original.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use backend_cpu::physical_cores;
use engine::{Engine, EngineOptions};
use evaluate::{
    Comparison, Divergence, EvaluateError, Keep, NotFinite, Perplexity, Protocol, SavedHeader, Side, WINDOW_TOKENS,
    Windows, compare, compare_with_saved, perplexity, save_logits,
};
use serde_json::{Map, Value, json};
use text::Special;

use super::saved::{Reader, SavedFile};
use super::verdict::Verdict;
use super::{load, origin, report, saved};
use crate::args::{EvaluateArgs, ProtocolArg};
use crate::model_source::Model;
use crate::progress::{Progress, Unit};
use crate::runner::{RESTARTS, Runner};
use crate::session::Session;
use crate::{interrupt, output};

/// A text and what to call it.
pub(super) struct Text {
    pub(super) name: String,
    pub(super) text: String,
}

/// What a model is compared with.
enum Original {
    Model(Box<Session>),
    Saved(Reader),
}

impl Original {
    fn name(&self) -> &str {
        match self {
            Original::Model(session) => &session.name,
            Original::Saved(reader) => &reader.header.model,
        }
    }
}

/// Measures the texts: `text` of the report, and `against` where there is an original. Or saves their logits.
///
/// # Errors
/// Models that can't be loaded or don't belong together, texts that are too short.
pub(super) fn measure(
    args: &EvaluateArgs,
    texts: &[Text],
    report: &mut Map<String, Value>,
    verdict: &mut Verdict,
) -> Result<()> {
    if let Some(path) = &args.save_logits {
        saved::check_free(path, args.force)?;
    }
    // The logits of many positions are wanted: room for many rows.
    let options = EngineOptions { outputs_max: 512, ..args.load.engine_options() };
    let mut original = match &args.against {
        // Looked at before any model is loaded.
        Some(path) if saved::is_saved(Path::new(path)) => Some(Original::Saved(Reader::open(Path::new(path))?)),
        Some(_) | None => None,
    };
    let mut session = load(args.model.as_deref(), args.load.device, options.clone(), WINDOW_TOKENS)?;
    report.insert("model".into(), json!(session.name));
    report.insert("protocol".into(), json!(protocol(args).name()));
    if let Some(path) = &args.save_logits {
        let saved = save(args, &mut session, texts, path)?;
        report.insert("saved".into(), saved);
        return Ok(());
    }
    if let (None, Some(argument)) = (&original, &args.against) {
        let device = args.against_device.unwrap_or(args.load.device);
        let other = load(Some(argument), device, options, WINDOW_TOKENS)
            .with_context(|| format!("the original, `{argument}`"))?;
        interrupt::watch_both(session.runner.engine.interrupt_handle(), other.runner.engine.interrupt_handle());
        original = Some(Original::Model(Box::new(other)));
    }
    if let Some(original) = &original {
        report.insert("against".into(), json!(original.name()));
    }
    let mut results = Map::new();
    for text in texts {
        let measured = match &mut original {
            Some(original) => measure_against(args, &mut session, original, text, verdict),
            None => measure_alone(args, &mut session, text),
        };
        results.insert(text.name.clone(), measured.with_context(|| format!("`{}`", text.name))?);
    }
    report.insert("text".into(), Value::Object(results));
    Ok(())
}

/// Where logits are not numbers: says in which layer that begins, for which the model is loaded once more.
pub(super) fn explain(error: Error, args: &EvaluateArgs) -> Error {
    let Some(EvaluateError::Logits { of, tokens, .. }) = error.downcast_ref() else { return error };
    let (argument, device) = match of {
        NotFinite::Original if args.save_logits.is_none() => {
            (args.against.as_deref(), args.against_device.unwrap_or(args.load.device))
        }
        NotFinite::Original | NotFinite::Model => (args.model.as_deref(), args.load.device),
    };
    let options = EngineOptions { hidden: true, outputs_max: 64, ..args.load.engine_options() };
    let found = load(argument, device, options, WINDOW_TOKENS)
        .and_then(|mut session| origin::find(&mut session.runner, tokens));
    match found {
        Ok(Some(place)) => error.context(place),
        // What went wrong first counts more.
        Ok(None) | Err(_) => error,
    }
}

/// The protocol that was asked for. Where an original is compared with, it is llama.cpp's unless another one is.
fn protocol(args: &EvaluateArgs) -> Protocol {
    match args.protocol {
        Some(ProtocolArg::Pieces) => Protocol::Pieces,
        Some(ProtocolArg::LlamaCpp) => Protocol::LlamaCpp,
        None if args.against.is_some() || args.save_logits.is_some() => Protocol::LlamaCpp,
        None => Protocol::Pieces,
    }
}

/// A text's windows.
fn windows(args: &EvaluateArgs, session: &Session, tokens: &[u32]) -> Result<Windows> {
    let bos = session.tokenizer.bos().context("the tokenizer has no <bos>, which perplexity is measured with")?;
    Ok(Windows::new(protocol(args), tokens, bos, args.limit.unwrap_or(usize::MAX))?)
}

/// Saves the logits of all texts into one file.
fn save(args: &EvaluateArgs, session: &mut Session, texts: &[Text], path: &Path) -> Result<Value> {
    let cut = |text: &Text| {
        let tokens = session.tokenizer.encode(&text.text, Special::Text);
        let windows = windows(args, session, &tokens).with_context(|| format!("`{}`", text.name))?;
        Ok((text.name.clone(), windows))
    };
    let all = texts.iter().map(cut).collect::<Result<Vec<_>>>()?;
    let hashes = saved::hashes(&Model::open(args.model.as_deref())?.checkpoint, &session.tokenizer)?;
    let vocabulary = session.runner.engine.config().vocabulary;
    let keep = if args.full { Keep::Full } else { Keep::top(vocabulary) };
    let header = SavedHeader::new(&session.runner.engine, &session.name, hashes, keep, &all);
    let mut file = SavedFile::open(path, &header)?;
    let (found, total) = (file.records, header.texts.iter().map(|text| text.predictions).sum::<usize>());
    let mut before = 0;
    let mut resumed = false;
    for (name, windows) in &all {
        // Whole windows that are there already stay.
        let first = found.saturating_sub(before).min(windows.predictions()) / windows.protocol().scored().len();
        let done = first * windows.protocol().scored().len();
        if first == windows.len() {
            before += windows.predictions();
            continue;
        }
        if !resumed {
            if before + done > 0 {
                output::notice(&format!("going on after {} of {total} predictions", before + done));
            }
            file.go_to(before + done, &header)?;
            resumed = true;
        }
        let mut progress = Progress::new(name, Unit::Things("predictions"), windows.predictions() as u64);
        let mut sink = |bytes: &[u8]| file.append(bytes);
        save_text(&mut session.runner, windows, (first, keep), threads(args), &mut sink, &mut |done, _| {
            progress.set(done as u64);
        })?;
        before += windows.predictions();
    }
    let bytes = file.finish()?;
    if !args.json {
        output::notice(&format!(
            "wrote `{}`: {total} predictions, {}, {} bytes each",
            path.display(),
            output::bytes(bytes),
            keep.record_bytes(vocabulary)
        ));
    }
    Ok(json!({ "output": path, "predictions": total, "bytes": bytes, "full": keep == Keep::Full }))
}

/// Threads that look at logits.
fn threads(args: &EvaluateArgs) -> usize {
    args.load.threads.unwrap_or_else(physical_cores)
}

fn measure_alone(args: &EvaluateArgs, session: &mut Session, text: &Text) -> Result<Value> {
    let start = Instant::now();
    let tokens = session.tokenizer.encode(&text.text, Special::Text);
    let windows = windows(args, session, &tokens)?;
    let mut progress = Progress::new(&text.name, Unit::Things("predictions"), windows.predictions() as u64);
    let found = score(&mut session.runner, &windows, threads(args), &mut |done, _| progress.set(done as u64));
    drop(progress);
    let found = found?;
    let perplexity = found.perplexity();
    let rate = rate(&windows, start.elapsed());
    if !args.json {
        output::answer(&format!(
            "{}: perplexity {:.3} ± {:.3} ({} tokens, {} windows, {rate:.0} tokens/s)\n",
            text.name,
            perplexity.value,
            perplexity.error,
            tokens.len(),
            windows.len()
        ))?;
    }
    Ok(json!({
        "tokens": tokens.len(),
        "windows": windows.len(),
        "predictions": found.predictions,
        "mean_nll": found.nll.value,
        "perplexity": perplexity.value,
        "perplexity_error": perplexity.error,
        "tokens_per_second": rate,
    }))
}

fn measure_against(
    args: &EvaluateArgs,
    session: &mut Session,
    original: &mut Original,
    text: &Text,
    verdict: &mut Verdict,
) -> Result<Value> {
    let start = Instant::now();
    let tokens = session.tokenizer.encode(&text.text, Special::Text);
    let windows = windows(args, session, &tokens)?;
    let original_name = original.name().to_owned();
    let mut progress = Progress::new(&text.name, Unit::Things("predictions"), windows.predictions() as u64);
    let mut tell = |done, _| progress.set(done as u64);
    let found = match original {
        Original::Model(original) => {
            ensure!(
                tokens == original.tokenizer.encode(&text.text, Special::Text),
                "the tokenizers of `{}` and `{}` make different tokens of this text: they can't be compared",
                session.name,
                original.name
            );
            score_against(&mut session.runner, &mut original.runner, &windows, threads(args), &mut tell)
        }
        Original::Saved(reader) => {
            let tokenizer = saved::tokenizer_hash(&session.tokenizer);
            let first = reader.header.find(&session.runner.engine, tokenizer, &text.name, &windows)?;
            score_against_saved(&mut session.runner, reader, first, &windows, threads(args), &mut tell)
        }
    };
    drop(progress);
    let divergences = found?;
    let comparison = Comparison::of(&divergences);
    verdict.text(&text.name, &comparison);
    let rate = rate(&windows, start.elapsed());
    if !args.json {
        let title = format!(
            "{} against {}: {} tokens, {} windows, {} predictions, {rate:.0} tokens/s",
            text.name,
            original_name,
            tokens.len(),
            windows.len(),
            comparison.predictions
        );
        output::answer(&format!("{title}\n{}", report::table(&comparison)))?;
    }
    let mut value = json!({ "tokens": tokens.len(), "windows": windows.len(), "tokens_per_second": rate });
    if let (Some(object), Value::Object(more)) = (value.as_object_mut(), report::json(&comparison)) {
        object.extend(more);
        object.insert("kl_along".into(), report::along(&divergences));
    }
    Ok(value)
}

/// Tokens of all windows per second.
fn rate(windows: &Windows, time: Duration) -> f64 {
    windows.tokens().len() as f64 / time.as_secs_f64()
}

/// [`perplexity`] on whatever device is left.
fn score(
    runner: &mut Runner,
    windows: &Windows,
    threads: usize,
    progress: evaluate::Progress<'_>,
) -> Result<Perplexity> {
    let Runner { engine, home } = runner;
    let mut restarts = RESTARTS;
    let mut recover = |engine: &mut Engine, error| home.recover(engine, error, &mut restarts);
    Ok(perplexity(Side { engine, recover: &mut recover }, windows, threads, progress)?)
}

/// [`compare`] on whatever devices are left.
fn score_against(
    model: &mut Runner,
    original: &mut Runner,
    windows: &Windows,
    threads: usize,
    progress: evaluate::Progress<'_>,
) -> Result<Vec<Divergence>> {
    let (mut restarts, mut original_restarts) = (RESTARTS, RESTARTS);
    let mut recover = |engine: &mut Engine, error| model.home.recover(engine, error, &mut restarts);
    let side = Side { engine: &mut model.engine, recover: &mut recover };
    let mut recover = |engine: &mut Engine, error| original.home.recover(engine, error, &mut original_restarts);
    let original = Side { engine: &mut original.engine, recover: &mut recover };
    Ok(compare(side, original, windows, threads, progress)?)
}

/// [`compare_with_saved`] on whatever device is left; the text's records begin at `first`.
fn score_against_saved(
    runner: &mut Runner,
    reader: &mut Reader,
    first: usize,
    windows: &Windows,
    threads: usize,
    progress: evaluate::Progress<'_>,
) -> Result<Vec<Divergence>> {
    let Runner { engine, home } = runner;
    let mut restarts = RESTARTS;
    let mut recover = |engine: &mut Engine, error| home.recover(engine, error, &mut restarts);
    let keep = reader.header.keep;
    let side = Side { engine, recover: &mut recover };
    Ok(compare_with_saved(side, windows, keep, reader.at(first)?, threads, progress)?)
}

/// [`save_logits`] on whatever device is left.
fn save_text(
    runner: &mut Runner,
    windows: &Windows,
    (first, keep): (usize, Keep),
    threads: usize,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    progress: evaluate::Progress<'_>,
) -> Result<()> {
    let Runner { engine, home } = runner;
    let mut restarts = RESTARTS;
    let mut recover = |engine: &mut Engine, error| home.recover(engine, error, &mut restarts);
    Ok(save_logits(Side { engine, recover: &mut recover }, windows, first, keep, threads, sink, progress)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::DeviceArg;
    use crate::devices::fake::{Fault, Gpu, machine};

    const OPTIONS: fn() -> EngineOptions =
        || EngineOptions { context: Some(WINDOW_TOKENS), outputs_max: 128, ..EngineOptions::default() };

    fn session(gpus: Vec<Gpu>) -> (Session, &'static crate::devices::fake::FakeMachine) {
        let machine = machine(gpus);
        (Session::of_model(Model::open(None).unwrap(), machine, DeviceArg::Auto, &OPTIONS()).unwrap(), machine)
    }

    fn lost(passes: usize) -> Vec<Gpu> {
        vec![Gpu::failing(0, vec![Some(Fault::Pass(passes, "lost")), None])]
    }

    fn one_window(protocol: Protocol, session: &Session) -> Windows {
        let tokens: Vec<u32> = (0..511).map(|token| 300 + token * 7 % 1000).collect();
        Windows::new(protocol, &tokens, session.tokenizer.bos().unwrap(), 1).unwrap()
    }

    #[test]
    fn a_text_is_scored_once_though_the_device_is_lost() {
        let measure = |gpus| {
            let (mut session, machine) = session(gpus);
            let windows = one_window(Protocol::Pieces, &session);
            let found = score(&mut session.runner, &windows, 2, &mut |_, _| ()).unwrap();
            (found, machine.told().len())
        };
        let (expected, _) = measure(vec![]);
        assert_eq!(measure(lost(2)), (expected, 1));
    }

    #[test]
    fn a_model_is_like_itself_though_a_device_is_lost() {
        for (gpus, original) in [(vec![], vec![]), (lost(1), vec![]), (vec![], lost(1))] {
            let failures = gpus.len() + original.len();
            let ((mut session, machine), (mut original, other)) = (self::session(gpus), self::session(original));
            let windows = one_window(Protocol::LlamaCpp, &session);
            let found = score_against(&mut session.runner, &mut original.runner, &windows, 2, &mut |_, _| ()).unwrap();
            assert_eq!(found.len(), 255);
            assert!(found.iter().all(|one| one.kl == 0.0 && one.same_top && one.nll == one.original_nll));
            assert_eq!(machine.told().len() + other.told().len(), failures);
        }
    }
}
