//! Texts that a backend goes on with by itself, beside a second load of it that runs them pass by pass.

use std::sync::atomic::AtomicBool;

use tensor::{BackendError, Batch, BufferId, Continuation, LoadOptions, Loaded, Sampling, Segment, reference};

use crate::Subject;
use crate::setup::{Experiment, Mode};

/// What to decode with.
#[derive(Debug)]
pub(crate) struct Model {
    /// The program; its passes and modes are not looked at.
    pub(crate) experiment: Experiment,
    /// Scratch `[outputs, vocabulary]`.
    pub(crate) logits: BufferId,
    /// Number of tokens.
    pub(crate) vocabulary: usize,
}

/// Logits of some tokens.
type Rows = Vec<Vec<f32>>;

/// A text on its way.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) sequence: usize,
    /// All but the last one are in the caches.
    pub(crate) tokens: Vec<u32>,
    pub(crate) sampling: Sampling,
    pub(crate) stop_tokens: Vec<u32>,
    /// Tokens that may still be chosen.
    left: usize,
    /// A stop token was chosen.
    stopped: bool,
}

impl Text {
    /// A short prompt for a sequence, of which `left` tokens more are wanted.
    pub(crate) fn new(model: &Model, sequence: usize, sampling: &Sampling, left: usize) -> Text {
        let token = |index: usize| ((index * 31 + sequence * 7) % model.vocabulary) as u32;
        Text {
            sequence,
            tokens: (0..[6, 1, 4][sequence]).map(token).collect(),
            sampling: Sampling { seed: sampling.seed ^ sequence as u64, ..*sampling },
            stop_tokens: Vec::new(),
            left,
            stopped: false,
        }
    }

    /// Position of the last token.
    fn position(&self) -> usize {
        self.tokens.len() - 1
    }

    fn goes_on(&self, options: &LoadOptions) -> bool {
        !self.stopped && self.left > 0 && self.tokens.len() <= options.context_max
    }

    fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.left -= 1;
        self.stopped = self.stop_tokens.contains(&token);
    }

    fn occurred(&self) -> Vec<u32> {
        let mut occurred = self.tokens.clone();
        occurred.sort_unstable();
        occurred.dedup();
        occurred
    }

    fn continuation<'a>(&'a self, occurred: &'a [u32]) -> Continuation<'a> {
        Continuation {
            sequence: self.sequence,
            position: self.position(),
            token: self.tokens[self.position()],
            sampling: &self.sampling,
            occurred,
            stop_tokens: &self.stop_tokens,
            tokens_max: self.left,
        }
    }

    /// Goes back by two tokens, changes the last one that is left, and how the next ones are drawn.
    fn disturb(&mut self, vocabulary: usize) {
        self.tokens.truncate(self.tokens.len() - 2);
        let last = self.tokens.last_mut().expect("a token");
        *last = (*last + 1) % vocabulary as u32;
        self.sampling.seed = self.sampling.seed.wrapping_add(1 << 33);
    }
}

/// A backend twice, with the same texts in both.
pub(crate) struct Pair<'a> {
    model: &'a Model,
    options: LoadOptions,
    /// Decodes.
    pub(crate) device: Box<dyn Loaded>,
    /// Runs single passes.
    oracle: Box<dyn Loaded>,
}

impl<'a> Pair<'a> {
    pub(crate) fn load(subject: &Subject<'_>, model: &'a Model, mode: &Mode) -> Result<Pair<'a>, String> {
        let Mode { precision, cache_dtype } = *mode;
        let options = LoadOptions { precision, cache_dtype, ..model.experiment.options.clone() };
        let load = || {
            let loaded = subject.backend.load(&model.experiment.program, &*model.experiment.weights, &options);
            loaded.map_err(|error| format!("does not load: {error}"))
        };
        Ok(Pair { model, device: load()?, oracle: load()?, options })
    }

    /// Puts all but the last token of each text into the caches, in one pass.
    pub(crate) fn prompt(&mut self, texts: &mut [Text]) -> Result<(), String> {
        let texts: Vec<&Text> = texts.iter().filter(|text| text.tokens.len() > 1).collect();
        let segment = |text: &&Text| Segment { sequence: text.sequence, position: 0, tokens: text.position() };
        let segments: Vec<Segment> = texts.iter().map(segment).collect();
        let tokens: Vec<u32> = texts.iter().flat_map(|text| &text.tokens[..text.position()]).copied().collect();
        for loaded in [&mut self.device, &mut self.oracle] {
            let batch = Batch { tokens: &tokens, segments: &segments, outputs: &[], cancel: None };
            loaded.run(&batch).map_err(|error| format!("does not run: {error}"))?;
        }
        Ok(())
    }

    /// Goes on with the texts until all are at their ends. With `disturb` the caller changes texts between calls.
    pub(crate) fn finish(&mut self, texts: &mut [Text], disturb: bool) -> Result<(), String> {
        self.prompt(texts)?;
        for call in 0.. {
            let going: Vec<usize> = (0..texts.len()).filter(|&index| texts[index].goes_on(&self.options)).collect();
            if going.is_empty() {
                break;
            }
            match self.call(texts, &going, None) {
                Ok(()) => {}
                Err(Ok(BackendError::Logits { sequence, position })) => {
                    self.check_logits(texts, &going, (sequence, position))?
                }
                Err(Ok(error)) => return Err(format!("does not decode: {error}")),
                Err(Err(problem)) => return Err(format!("call {call}: {problem}")),
            }
            let text = &mut texts[going[call % going.len()]];
            if disturb && call < 9 && call % 2 == 1 && text.tokens.len() > 8 {
                text.disturb(self.model.vocabulary);
            }
        }
        Ok(())
    }

    /// One call for the texts `going`, which are given the chosen tokens. Errors are the backend's own, or what is
    /// wrong with its answer.
    pub(crate) fn call(
        &mut self,
        texts: &mut [Text],
        going: &[usize],
        cancel: Option<&AtomicBool>,
    ) -> Result<(), Result<BackendError, String>> {
        let occurred: Vec<Vec<u32>> = going.iter().map(|&index| texts[index].occurred()).collect();
        let continuations: Vec<Continuation<'_>> =
            going.iter().zip(&occurred).map(|(&index, occurred)| texts[index].continuation(occurred)).collect();
        let room = continuations.iter().map(|one| one.room(&self.options)).min().unwrap_or(0);
        let chosen = self.device.decode(self.model.logits, &continuations, cancel).map_err(Ok)?;
        let passes = chosen.first().map_or(0, Vec::len);
        let same = chosen.len() == going.len() && chosen.iter().all(|tokens| tokens.len() == passes);
        if !same || passes == 0 || passes > room {
            return Err(Err(format!("{} lists of 1 to {room} tokens are expected: {chosen:?}", going.len())));
        }
        let times = self.device.token_times();
        if !times.is_empty() && times.len() != passes {
            return Err(Err(format!("{} times for {passes} passes", times.len())));
        }
        (0..passes).try_for_each(|pass| {
            let tokens = chosen.iter().map(|tokens| tokens[pass]).collect::<Vec<_>>();
            self.compare(texts, going, &tokens).map_err(Err)
        })
    }

    /// Compares the tokens of one pass with what the logits say, and adds them to the texts.
    fn compare(&mut self, texts: &mut [Text], going: &[usize], chosen: &[u32]) -> Result<(), String> {
        if let Some(&index) = going.iter().find(|&&index| texts[index].stopped) {
            return Err(format!("goes on behind the stop token of sequence {}", texts[index].sequence));
        }
        let (rows, expected) = self.expected(texts, going)?;
        for (((&index, &chosen), expected), row) in going.iter().zip(chosen).zip(expected).zip(&rows) {
            let text = &mut texts[index];
            if expected != Some(chosen) {
                let logit = |token: u32| row.get(token as usize).copied();
                return Err(format!(
                    "position {} of sequence {}: expected {expected:?} (logit {:?}), found {chosen} (logit {:?})",
                    text.tokens.len(),
                    text.sequence,
                    expected.and_then(logit),
                    logit(chosen),
                ));
            }
            text.push(chosen);
        }
        Ok(())
    }

    /// Logits and the right choices for the next tokens of the texts.
    fn expected(&mut self, texts: &[Text], going: &[usize]) -> Result<(Rows, Vec<Option<u32>>), String> {
        let segments: Vec<Segment> = going
            .iter()
            .map(|&index| Segment { sequence: texts[index].sequence, position: texts[index].position(), tokens: 1 })
            .collect();
        let tokens: Vec<u32> = going.iter().map(|&index| *texts[index].tokens.last().expect("a token")).collect();
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        let batch = Batch { tokens: &tokens, segments: &segments, outputs: &outputs, cancel: None };
        let rows = run(&mut *self.oracle, &batch, self.model)?;
        let choice = |(&index, row): (&usize, &Vec<f32>)| {
            let text = &texts[index];
            reference::sample(row, &text.sampling, &text.occurred(), text.tokens.len() as u64)
        };
        let expected = going.iter().zip(&rows).map(choice).collect();
        Ok((rows, expected))
    }

    /// The backend says that nothing can be chosen: checks that, and puts another token there.
    fn check_logits(
        &mut self,
        texts: &mut [Text],
        going: &[usize],
        (sequence, position): (usize, usize),
    ) -> Result<(), String> {
        let (_, expected) = self.expected(texts, going)?;
        let named =
            going.iter().position(|&index| texts[index].sequence == sequence && texts[index].position() == position);
        if named.is_none_or(|named| expected[named].is_some()) {
            return Err(format!("position {position} of sequence {sequence} has good logits, or is not run"));
        }
        for (&index, expected) in going.iter().zip(expected) {
            let text = &mut texts[index];
            if expected.is_none() {
                // The row after it may be as bad, but not for ever.
                let (last, vocabulary) = (text.position(), self.model.vocabulary as u32);
                text.tokens[last] = (text.tokens[last] + 1) % vocabulary;
            }
        }
        Ok(())
    }

    /// Compares what is in the caches by the logits of the next few tokens of the texts, in one pass.
    pub(crate) fn compare_caches(&mut self, texts: &[Text]) -> Result<(), String> {
        let (mut tokens, mut segments, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for text in texts {
            // Back by a little, as far as rings allow it.
            let position = text.position().saturating_sub(2);
            let count = 4.min(self.options.context_max - position);
            tokens.extend((0..count).map(|index| (index * 13 % self.model.vocabulary) as u32));
            segments.push(Segment { sequence: text.sequence, position, tokens: count });
            outputs.push(tokens.len() as u32 - 1);
        }
        let batch = Batch { tokens: &tokens, segments: &segments, outputs: &outputs, cancel: None };
        let [device, oracle] =
            [&mut self.device, &mut self.oracle].map(|loaded| run(&mut **loaded, &batch, self.model));
        let bits = |rows: Rows| rows.into_iter().flatten().map(f32::to_bits).collect::<Vec<_>>();
        if bits(device?) == bits(oracle?) {
            return Ok(());
        }
        Err("after decoding, the caches are not what single passes leave there".into())
    }
}

/// Runs a pass and gives its rows of logits.
fn run(loaded: &mut dyn Loaded, batch: &Batch<'_>, model: &Model) -> Result<Rows, String> {
    let mut rows = vec![0.0; batch.outputs.len() * model.vocabulary];
    loaded
        .run(batch)
        .and_then(|()| loaded.read(model.logits, &mut rows))
        .map_err(|error| format!("does not run: {error}"))?;
    Ok(rows.chunks(model.vocabulary).map(<[f32]>::to_vec).collect())
}
