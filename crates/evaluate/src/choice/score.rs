//! Runs questions with each of their choices.

use engine::{PassLimits, TextPart};

use super::{ChoiceQuestion, ChoiceScore, sequences};
use crate::compare::{Side, in_parallel};
use crate::{EvaluateError, Progress, Prompting, negative_log_likelihood};

/// Tokens that are run once, for all choices that differ in the token after them at most.
#[derive(Clone, Debug, PartialEq)]
struct Run {
    question: usize,
    tokens: Vec<u32>,
    /// The first position whose prediction counts.
    first: usize,
    /// Choices, and the token that comes last.
    ends: Vec<(usize, u32)>,
    /// ln of the probability of the tokens so far, without the last one.
    sum: f64,
}

/// A part of a run that goes into one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    run: usize,
    start: usize,
    end: usize,
}

/// Lets the model choose. The engine's slots must all be free; `threads` look at the logits; progress counts questions.
///
/// # Errors
/// A question that doesn't fit into the context, logits that are not numbers, what `recover` gives back.
pub fn score_choices(
    model: Side<'_>,
    prompting: Prompting<'_>,
    questions: &[ChoiceQuestion],
    threads: usize,
    progress: Progress<'_>,
) -> Result<ChoiceScore, EvaluateError> {
    let mut runs = runs(&prompting, questions)?;
    let context = model.engine.context();
    if let Some(run) = runs.iter().find(|run| run.tokens.len() > context) {
        return Err(EvaluateError::ContextTooShort { context, needed: run.tokens.len() });
    }
    let (limits, vocabulary) = (model.engine.pass_limits(), model.engine.config().vocabulary);
    let mut scores: Vec<Vec<f64>> = questions.iter().map(|question| vec![0.0; question.choices.len()]).collect();
    let mut next = (0, 0);
    while next.0 < runs.len() {
        let parts = plan(&runs, next, limits);
        if let Err(error) = model.engine.forward_parts(&text_parts(&runs, &parts, limits)) {
            (model.recover)(model.engine, error)?;
            // The caches are gone: the first run of the pass begins again.
            next = (next.0, 0);
            runs[next.0].sum = 0.0;
            continue;
        }
        let wanted = wanted(&runs, &parts);
        let logits = model.engine.pass_logits();
        let found = in_parallel(&wanted, threads, &|(row, _, token)| {
            negative_log_likelihood(&logits[row * vocabulary..][..vocabulary], *token)
        });
        for ((_, place, _), nll) in wanted.iter().zip(found) {
            let (run, choice) = *place;
            let question = runs[run].question;
            let nll = nll.ok_or(EvaluateError::ChoiceLogits { question: question + 1 })?;
            match choice {
                Some(choice) => scores[question][choice] = runs[run].sum - nll,
                None => runs[run].sum -= nll,
            }
        }
        next = parts.last().map_or(next, |part| behind(&runs, *part));
        progress(runs.get(next.0).map_or(questions.len(), |run| run.question), questions.len());
    }
    Ok(ChoiceScore::of(questions, &scores))
}

/// Positions that the longest question needs.
///
/// # Errors
/// A chat template that refuses a question.
pub fn choice_positions(prompting: Prompting<'_>, questions: &[ChoiceQuestion]) -> Result<usize, EvaluateError> {
    Ok(runs(&prompting, questions)?.iter().map(|run| run.tokens.len()).max().unwrap_or(0))
}

fn runs(prompting: &Prompting<'_>, questions: &[ChoiceQuestion]) -> Result<Vec<Run>, EvaluateError> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, question) in questions.iter().enumerate() {
        for (choice, (mut tokens, start)) in sequences(prompting, question)?.into_iter().enumerate() {
            // An empty choice adds no token: the context's last one stands for it, as for all choices of the question.
            let Some(last) = tokens.pop().filter(|_| !tokens.is_empty()) else { continue };
            let first = start.min(tokens.len()).saturating_sub(1);
            let same = |run: &&mut Run| run.question == index && run.first == first && run.tokens == tokens;
            match runs.last_mut().filter(|run| same(run)) {
                Some(run) => run.ends.push((choice, last)),
                None => runs.push(Run { question: index, tokens, first, ends: vec![(choice, last)], sum: 0.0 }),
            }
        }
    }
    Ok(runs)
}

/// The parts of the next pass, which begins at a run and a position in it.
fn plan(runs: &[Run], next: (usize, usize), limits: PassLimits) -> Vec<Part> {
    let (mut run, mut start) = next;
    let (mut tokens, mut outputs) = (limits.tokens, limits.outputs);
    let mut parts = Vec::new();
    while run < runs.len() && parts.len() < limits.parts {
        let Run { tokens: all, first, .. } = &runs[run];
        let free = first.saturating_sub(start);
        let end = all.len().min(start + tokens.min(free + outputs));
        if end == start {
            break;
        }
        tokens -= end - start;
        outputs -= end.saturating_sub(start.max(*first));
        parts.push(Part { run, start, end });
        if end < all.len() {
            break;
        }
        (run, start) = (run + 1, 0);
    }
    parts
}

/// The run and the position after a part.
fn behind(runs: &[Run], part: Part) -> (usize, usize) {
    if part.end == runs[part.run].tokens.len() { (part.run + 1, 0) } else { (part.run, part.end) }
}

fn text_parts<'r>(runs: &'r [Run], parts: &[Part], limits: PassLimits) -> Vec<TextPart<'r>> {
    let part = |part: &Part| {
        let run = &runs[part.run];
        let outputs = run.first.clamp(part.start, part.end) - part.start..part.end - part.start;
        let slot = part.run % limits.parts;
        TextPart { slot, position: part.start, tokens: &run.tokens[part.start..part.end], outputs }
    };
    parts.iter().map(part).collect()
}

/// For each prediction that counts: the row of logits, its run and the choice if it is the last one, and the token.
fn wanted(runs: &[Run], parts: &[Part]) -> Vec<(usize, (usize, Option<usize>), u32)> {
    let (mut wanted, mut row) = (Vec::new(), 0);
    for part in parts {
        let run = &runs[part.run];
        for position in run.first.max(part.start)..part.end {
            match run.tokens.get(position + 1) {
                Some(token) => wanted.push((row, (part.run, None), *token)),
                None => wanted.extend(run.ends.iter().map(|(choice, token)| (row, (part.run, Some(*choice)), *token))),
            }
            row += 1;
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(tokens: u32, first: usize) -> Run {
        Run { question: 0, tokens: (0..tokens).collect(), first, ends: vec![(0, 100), (1, 101)], sum: 0.0 }
    }

    #[test]
    fn passes_keep_their_limits_and_score_each_token_once() {
        let runs = [run(5, 2), run(1, 0), run(9, 8), run(4, 0), run(7, 3)];
        let expected = runs.iter().map(|run| run.tokens.len() - run.first - 1 + run.ends.len()).sum::<usize>();
        for (parts, tokens, outputs) in [(1, 100, 100), (4, 100, 100), (2, 3, 100), (3, 100, 1), (2, 6, 2)] {
            let limits = PassLimits { parts, tokens, outputs };
            let (mut next, mut seen, mut rows) = ((0, 0), Vec::new(), 0);
            while next.0 < runs.len() {
                let planned = plan(&runs, next, limits);
                let texts = text_parts(&runs, &planned, limits);
                assert!(!texts.is_empty() && texts.len() <= parts);
                assert!(texts.iter().map(|text| text.tokens.len()).sum::<usize>() <= tokens);
                let count = texts.iter().map(|text| text.outputs.len()).sum::<usize>();
                assert!(count <= outputs);
                rows += count;
                let wanted = wanted(&runs, &planned);
                assert!(wanted.iter().all(|(row, _, _)| *row < count));
                seen.extend(wanted.into_iter().map(|(_, place, token)| (place, token)));
                next = behind(&runs, planned[planned.len() - 1]);
            }
            assert_eq!((seen.len(), rows), (expected, expected - runs.len()), "{limits:?}");
            assert_eq!(seen[..4], [((0, None), 3), ((0, None), 4), ((0, Some(0)), 100), ((0, Some(1)), 101)]);
        }
    }
}
