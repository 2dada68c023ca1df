//! Two models side by side on one text.

use std::thread;

use engine::{Engine, PassLimits};

use crate::windows::{Output, Walk};
use crate::{Divergence, EvaluateError, NotFinite, Progress, Recover, Windows, divergence};

/// A model that is measured, and what is done when its device fails.
pub struct Side<'a> {
    /// Runs it. It must have a free slot for each of its sequences, and a context of a window.
    pub engine: &'a mut Engine,
    /// Makes it work again.
    pub recover: Recover<'a>,
}

/// Compares a model with the original: each scored prediction of the windows, in order. Both go through the windows at
/// the same time, so that no more logits are in memory than those of one pass of each. `threads` compare the logits.
/// Progress counts predictions.
///
/// # Errors
/// Models of different vocabularies, a context that is too short, logits that are not numbers, what `recover` gives
/// back.
pub fn compare(
    mut model: Side<'_>,
    mut original: Side<'_>,
    windows: &Windows,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Vec<Divergence>, EvaluateError> {
    let vocabulary = model.engine.config().vocabulary;
    let found = original.engine.config().vocabulary;
    if found != vocabulary {
        return Err(EvaluateError::Vocabulary { model: vocabulary, original: found });
    }
    let (ours, theirs) = (limits(model.engine)?, limits(original.engine)?);
    let limits = PassLimits {
        parts: ours.parts.min(theirs.parts),
        tokens: ours.tokens.min(theirs.tokens),
        outputs: ours.outputs.min(theirs.outputs),
    };
    let mut walk = Walk::new(windows, 0, windows.len(), limits);
    let mut done: Vec<Divergence> = Vec::with_capacity(windows.predictions());
    while walk.advance() {
        let Some(base) = run(&mut walk, &mut original)? else { continue };
        let Some(logits) = run(&mut walk, &mut model)? else { continue };
        // After a failure a window begins again: what is done is not done twice.
        let outputs: Vec<(usize, Output)> =
            walk.outputs().enumerate().filter(|(_, output)| output.index >= done.len()).collect();
        let found = in_parallel(&outputs, threads, &|(index, output)| {
            let row = index * vocabulary..(index + 1) * vocabulary;
            divergence(&base[row.clone()], &logits[row], output.token)
        });
        for (found, (_, output)) in found.into_iter().zip(&outputs) {
            done.push(found.map_err(|of| not_finite(of, windows, output))?);
        }
        progress(done.len(), windows.predictions());
    }
    Ok(done)
}

/// What one pass can take, if a window fits into the context.
pub(crate) fn limits(engine: &Engine) -> Result<PassLimits, EvaluateError> {
    let (context, needed) = (engine.context(), crate::WINDOW_TOKENS);
    if context < needed { Err(EvaluateError::ContextTooShort { context, needed }) } else { Ok(engine.pass_limits()) }
}

/// Runs a pass. `None` if the device has failed and works again: the walk has gone back then.
pub(crate) fn run<'e>(walk: &mut Walk<'_>, side: &'e mut Side<'_>) -> Result<Option<&'e [f32]>, EvaluateError> {
    match walk.run(side.engine) {
        Ok(()) => Ok(Some(side.engine.pass_logits())),
        Err(error) => {
            (side.recover)(side.engine, error)?;
            walk.go_back();
            Ok(None)
        }
    }
}

/// Logits that are not numbers.
pub(crate) fn not_finite(of: NotFinite, windows: &Windows, output: &Output) -> EvaluateError {
    let Output { window, position, .. } = *output;
    let tokens = windows.window(window)[..=position].to_vec();
    EvaluateError::Logits { of, window, position, after: windows.text_before(output), tokens }
}

/// Applies a function to each item on several threads; the results are in the order of the items.
pub(crate) fn in_parallel<I: Sync, T: Send>(items: &[I], threads: usize, work: &(dyn Fn(&I) -> T + Sync)) -> Vec<T> {
    let part = items.len().div_ceil(threads.max(1)).max(1);
    if part == items.len() {
        return items.iter().map(work).collect();
    }
    thread::scope(|scope| {
        let parts: Vec<_> =
            items.chunks(part).map(|part| scope.spawn(|| part.iter().map(work).collect::<Vec<T>>())).collect();
        let join = |part: thread::ScopedJoinHandle<'_, Vec<T>>| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        parts.into_iter().flat_map(join).collect()
    })
}
