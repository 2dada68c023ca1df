//! What a device that chooses tokens itself can do wrong is noticed.

use std::sync::atomic::AtomicBool;

use conformance::{Effort, Subject};
use tensor::reference::ReferenceBackend;
use tensor::{
    Backend, BackendError, Batch, BufferId, Capabilities, Continuation, LoadOptions, Loaded, MemoryUse, Program,
    Sampling, WeightSource,
};

/// A mistake in decoding.
#[derive(Clone, Copy)]
enum Fault {
    /// Other settings.
    Sampling(fn(&mut Sampling)),
    /// Other texts.
    Text(fn(&mut Continuation<'_>)),
    /// Other tokens.
    Chosen(fn(&mut Vec<u32>)),
    /// Positions that are missing in the caches: this many before the last.
    Caches(usize),
}

struct Faulty(Fault);

struct FaultyLoaded {
    inner: Box<dyn Loaded>,
    fault: Fault,
}

impl Backend for Faulty {
    fn capabilities(&self) -> Capabilities {
        ReferenceBackend.capabilities()
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Loaded>, BackendError> {
        let inner = ReferenceBackend.load(program, weights, options)?;
        Ok(Box::new(FaultyLoaded { inner, fault: self.0 }))
    }
}

impl Loaded for FaultyLoaded {
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.inner.run(batch)
    }

    fn read(&mut self, buffer: BufferId, into: &mut [f32]) -> Result<(), BackendError> {
        self.inner.read(buffer, into)
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }

    fn decode(
        &mut self,
        logits: BufferId,
        continuations: &[Continuation<'_>],
        cancel: Option<&AtomicBool>,
    ) -> Result<Vec<Vec<u32>>, BackendError> {
        let mut samplings: Vec<Sampling> = continuations.iter().map(|one| *one.sampling).collect();
        if let Fault::Sampling(change) = self.fault {
            samplings.iter_mut().for_each(change);
        }
        let mut changed: Vec<Continuation<'_>> =
            continuations.iter().zip(&samplings).map(|(one, sampling)| Continuation { sampling, ..*one }).collect();
        if let Fault::Text(change) = self.fault {
            changed.iter_mut().for_each(change);
        }
        let mut chosen = self.inner.decode(logits, &changed, cancel)?;
        if let Fault::Chosen(change) = self.fault {
            chosen.iter_mut().for_each(change);
        }
        if let Fault::Caches(back) = self.fault {
            self.lose(continuations, chosen[0].len(), back)?;
        }
        Ok(chosen)
    }
}

impl FaultyLoaded {
    /// Writes another token over a position that was decoded.
    fn lose(&mut self, continuations: &[Continuation<'_>], passes: usize, back: usize) -> Result<(), BackendError> {
        for one in continuations.iter().filter(|_| passes > back) {
            let position = one.position + passes - 1 - back;
            let again: Vec<u32> = vec![3; back + 1];
            let segments = [tensor::Segment { sequence: one.sequence, position, tokens: back + 1 }];
            self.inner.run(&Batch { tokens: &again, segments: &segments, outputs: &[], cancel: None })?;
        }
        Ok(())
    }
}

fn refused(prefix: &str, what: &str, fault: Fault) {
    let faulty = Faulty(fault);
    let subject = [Subject { name: what, backend: &faulty, effort: Effort::Full }];
    let mut cases = conformance::cases().into_iter().filter(|case| case.name.starts_with(prefix));
    assert!(cases.any(|case| case.run(&subject).is_err()), "{what}: nothing of `{prefix}` noticed it");
}

#[test]
fn filters_that_are_left_out_are_refused() {
    let refused = |what, change| refused("decode/table", what, Fault::Sampling(change));
    refused("no top-k", |sampling| sampling.top_k = 0);
    refused("no top-p", |sampling| sampling.top_p = 1.0);
    refused("no min-p", |sampling| sampling.min_p = 0.0);
    refused("no penalty", |sampling| sampling.repetition_penalty = 1.0);
    refused("no temperature", |sampling| sampling.temperature = sampling.temperature.min(1.0));
    refused("half of the seed", |sampling| sampling.seed &= 0xffff_ffff);
    refused("one more of the largest", |sampling| sampling.top_k += usize::from(sampling.top_k == 5));
}

#[test]
fn limits_and_texts_that_are_ignored_are_refused() {
    let text = |change| Fault::Text(change);
    refused("decode/table", "no stop tokens", text(|one| one.stop_tokens = &[]));
    refused("decode/table", "no limit", text(|one| one.tokens_max = usize::MAX));
    refused("decode/table", "only the last token occurred", text(|one| one.occurred = &[]));
    refused("decode/table", "another token", text(|one| one.token ^= 1));
    refused("decode/table", "positions that are one off", text(|one| one.position -= usize::from(one.position > 5)));
}

#[test]
fn wrong_tokens_and_lists_are_refused() {
    for prefix in ["decode/table", "decode/attention", "decode/special", "decode/wide"] {
        refused(prefix, "the next token", Fault::Chosen(|tokens| *tokens.last_mut().unwrap() ^= 1));
    }
    refused("decode/table", "an empty list", Fault::Chosen(Vec::clear));
    refused("decode/table", "a token more", Fault::Chosen(|tokens| tokens.push(0)));
    for back in [0, 2] {
        refused("decode/attention", "another token in the caches", Fault::Caches(back));
    }
}
