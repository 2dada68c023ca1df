//! Requests on the golden models, with the reference as the device.

mod common;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use checkpoint::Checkpoint;
use common::{finish, golden, greedy, integers, load, open, tokens};
use engine::{
    CancelHandle, Engine, EngineError, EngineOptions, Event, FinishReason, InterruptHandle, ModelSource, Request,
    Sampling, SequenceId,
};
use model::{ProgramOptions, build_program};
use tensor::reference::ReferenceBackend;
use tensor::{
    Backend, BackendError, Batch, BufferId, BufferKind, Capabilities, DType, LoadOptions, Loaded, MemoryUse, Precision,
    Program, WeightSource,
};

const MODEL: &str = "text-27b-shape";

fn prompts() -> Vec<Vec<u32>> {
    (0..3).map(|prompt| integers(MODEL, &format!("prompt{prompt}.input_ids"))).collect()
}

/// What each prompt is answered by an engine that does nothing else.
fn answers() -> Vec<Vec<u32>> {
    prompts().iter().map(|prompt| alone(greedy(prompt, 24))).collect()
}

/// The answer of an engine that does nothing else.
fn alone(request: Request) -> Vec<u32> {
    let mut engine = load(MODEL, EngineOptions::default());
    engine.submit(request).unwrap();
    tokens(&finish(&mut engine))
}

/// The tokens of each sequence.
fn by_sequence(events: &[Event]) -> HashMap<SequenceId, Vec<u32>> {
    let mut texts = HashMap::new();
    for event in events {
        if let Event::Token { id, token } = event {
            texts.entry(*id).or_insert_with(Vec::new).push(*token);
        }
    }
    texts
}

fn reasons(events: &[Event]) -> Vec<FinishReason> {
    let reason = |event: &Event| if let Event::Finished { reason, .. } = event { Some(*reason) } else { None };
    events.iter().filter_map(reason).collect()
}

/// Against the whole text run anew for every token, and the most probable token chosen that is not in it.
#[test]
fn answers_are_what_the_logits_say() {
    let mut text = prompts().swap_remove(1);
    let start = text.len();
    let mut engine = load(MODEL, EngineOptions::default());
    for _ in 0..24 {
        let last = text.len() - 1;
        let row = logits(&mut engine, &text, last..last + 1).swap_remove(0);
        let unseen = (0..row.len()).filter(|&token| !text.contains(&(token as u32)));
        text.push(unseen.max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32);
    }
    assert_eq!(text[start..], answers()[1]);
}

#[test]
fn plain_greedy_answers_are_those_of_transformers() {
    for (number, prompt) in prompts().iter().enumerate() {
        let request = Request { sampling: Sampling::greedy(), ..greedy(prompt, 24) };
        assert_eq!(alone(request), integers(MODEL, &format!("prompt{number}.greedy")));
    }
}

#[test]
fn chunks_change_nothing() {
    let answers = answers();
    for chunk in [512, 7, 1] {
        let mut engine = load(MODEL, EngineOptions { chunk, ..Default::default() });
        for (prompt, answer) in prompts().iter().zip(&answers) {
            engine.submit(greedy(prompt, 24)).unwrap();
            let events = finish(&mut engine);
            assert_eq!(tokens(&events), *answer, "chunk {chunk}");
            assert_eq!(reasons(&events), [FinishReason::MaxTokens]);
            let Some(Event::Finished { statistics, .. }) = events.last() else { panic!("{events:?}") };
            assert_eq!((statistics.prefill_tokens, statistics.decode_tokens), (prompt.len(), 23));
            let prefills = events.iter().filter(|event| matches!(event, Event::Prefill { .. })).count();
            assert_eq!(prefills, prompt.len().div_ceil(chunk));
        }
    }
}

#[test]
fn sequences_side_by_side_answer_as_alone() {
    // Two slots for three requests: the third waits, and its prompt is mixed with the others' decoding.
    let mut engine = load(MODEL, EngineOptions { chunk: 10, sequences: 2, ..Default::default() });
    let ids: Vec<_> = prompts().iter().map(|prompt| engine.submit(greedy(prompt, 24)).unwrap()).collect();
    let texts = by_sequence(&finish(&mut engine));
    for (id, answer) in ids.iter().zip(answers()) {
        assert_eq!(texts[id], answer, "{id}");
    }
}

#[test]
fn a_seed_gives_the_same_text_alone_and_in_company() {
    let request = |seed| Request {
        sampling: Sampling { temperature: 20.0, top_p: 0.9, repetition_penalty: 1.1, seed, ..Default::default() },
        max_tokens: Some(20),
        ..Request::new(prompts()[1].clone())
    };
    let mut engine = load(MODEL, EngineOptions { sequences: 3, ..Default::default() });
    let mut alone = |seed| {
        engine.submit(request(seed)).unwrap();
        tokens(&finish(&mut engine))
    };
    let (first, second) = (alone(1), alone(2));
    assert_ne!(first, second);
    assert_eq!(first, alone(1));
    let ids = [1, 2, 1].map(|seed| engine.submit(request(seed)).unwrap());
    let texts = by_sequence(&finish(&mut engine));
    assert_eq!(ids.map(|id| texts[&id].clone()), [first.clone(), second, first]);
}

#[test]
fn an_answer_ends_at_a_stop_token_or_a_full_context() {
    let (prompt, answer) = (&prompts()[1], &answers()[1]);
    let mut engine = load(MODEL, EngineOptions { context: Some(prompt.len() + 12), ..Default::default() });
    engine.submit(Request { stop_tokens: vec![511, answer[10]], ..greedy(prompt, 24) }).unwrap();
    let events = finish(&mut engine);
    assert_eq!(reasons(&events), [FinishReason::Stop { token: answer[10] }]);
    assert_eq!(tokens(&events), answer[..10]);

    engine.submit(Request { max_tokens: None, ..greedy(prompt, 0) }).unwrap();
    let events = finish(&mut engine);
    assert_eq!(reasons(&events), [FinishReason::ContextFull]);
    // Twelve more positions, and the token after the last.
    assert_eq!(tokens(&events), answer[..13]);
}

#[test]
fn requests_are_checked_before_any_work() {
    let mut engine = load(MODEL, EngineOptions { context: Some(20), ..Default::default() });
    let error = engine.submit(Request::new(vec![1; 21])).unwrap_err();
    assert!(matches!(error, EngineError::PromptTooLong { tokens: 21, context: 20, limit: 512 }));
    assert!(error.to_string().contains("at least 21"), "{error}");
    let error = engine.submit(Request::new(vec![1; 600])).unwrap_err();
    assert!(error.to_string().contains("beyond 512"), "{error}");
    assert!(matches!(engine.submit(Request::new(vec![])), Err(EngineError::EmptyPrompt)));
    let error = engine.submit(Request::new(vec![1, 512])).unwrap_err();
    assert!(matches!(error, EngineError::Token { token: 512, vocabulary: 512 }), "{error}");
    let base = Sampling::default();
    for sampling in [
        Sampling { temperature: -1.0, ..base },
        Sampling { temperature: f32::NAN, ..base },
        Sampling { top_p: 0.0, ..base },
        Sampling { min_p: 1.1, ..base },
        Sampling { repetition_penalty: 0.0, ..base },
    ] {
        assert!(engine.submit(Request { sampling, ..Request::new(vec![1]) }).is_err(), "{sampling:?}");
    }
    assert!(engine.is_idle());
    assert!(engine.submit(Request::new(vec![1; 20])).is_ok());
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let base = EngineOptions::default();
    for options in [
        EngineOptions { context: Some(0), ..base.clone() },
        EngineOptions { context: Some(513), ..base.clone() },
        EngineOptions { chunk: 0, ..base.clone() },
        EngineOptions { sequences: 0, ..base.clone() },
        EngineOptions { threads: Some(0), ..base.clone() },
    ] {
        let result = Engine::load(&open(MODEL), &ReferenceBackend, &options);
        assert!(matches!(result, Err(EngineError::Option { .. })), "{options:?}");
    }
}

/// A chat: the second prompt is the first, its answer and more, and only what is new goes through the model.
#[test]
fn a_kept_sequence_goes_on_from_its_cache() {
    let (prompt, more) = (&prompts()[0], &prompts()[2]);
    let mut engine = load(MODEL, EngineOptions { chunk: 16, ..Default::default() });
    let id = engine.submit(Request { keep: true, ..greedy(prompt, 8) }).unwrap();
    assert!(matches!(engine.extend(id, greedy(prompt, 8)), Err(EngineError::Busy(_))));
    let answer = tokens(&finish(&mut engine));
    let long: Vec<u32> = [&prompt[..], &answer, more].concat();
    engine.extend(id, Request { keep: true, ..greedy(&long, 8) }).unwrap();
    let continued = tokens(&finish(&mut engine));
    // The last token of the answer was chosen, but never went through the model.
    let statistics = engine.statistics(id).unwrap();
    assert_eq!(statistics.reused_tokens, prompt.len() + answer.len() - 1);
    assert_eq!(statistics.prefill_tokens, 1 + more.len());

    // Back by a few tokens, within the slack of the rings: another end of the same text.
    let changed: Vec<u32> = [&long[..], &continued[..2], &[5, 6, 7]].concat();
    engine.extend(id, Request { keep: true, ..greedy(&changed, 8) }).unwrap();
    let short_back = tokens(&finish(&mut engine));
    assert_eq!(engine.statistics(id).unwrap().reused_tokens, long.len() + 2);

    // Back by more than the rings hold: all of it again.
    let far_back: Vec<u32> = [&long[..40], &[9, 8]].concat();
    engine.extend(id, greedy(&far_back, 8)).unwrap();
    let events = finish(&mut engine);
    let Some(Event::Finished { statistics, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(statistics.reused_tokens, 0);
    assert!(matches!(engine.extend(id, greedy(prompt, 8)), Err(EngineError::UnknownSequence(_))), "not kept");

    for (text, expected) in [(long, continued), (changed, short_back), (far_back, tokens(&events))] {
        let mut fresh = load(MODEL, EngineOptions::default());
        fresh.submit(greedy(&text, 8)).unwrap();
        assert_eq!(tokens(&finish(&mut fresh)), expected);
    }
}

#[test]
fn the_same_prompt_again_runs_only_its_last_token() {
    let (prompt, answer) = (&prompts()[1], &answers()[1]);
    let mut engine = load(MODEL, EngineOptions::default());
    let id = engine.submit(Request { keep: true, ..greedy(prompt, 0) }).unwrap();
    assert!(tokens(&finish(&mut engine)).is_empty());
    engine.extend(id, greedy(prompt, 24)).unwrap();
    let events = finish(&mut engine);
    assert_eq!(tokens(&events), *answer);
    let Some(Event::Finished { statistics, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!((statistics.reused_tokens, statistics.prefill_tokens), (prompt.len() - 1, 1));
}

#[test]
fn kept_sequences_hold_their_slots_until_they_are_released() {
    let prompt = &prompts()[1];
    let mut engine = load(MODEL, EngineOptions::default());
    let kept = engine.submit(Request { keep: true, ..greedy(prompt, 1) }).unwrap();
    finish(&mut engine);
    let waiting = engine.submit(greedy(prompt, 1)).unwrap();
    assert!(matches!(engine.step(), Err(EngineError::NoSlot { slots: 1 })));
    assert!(matches!(engine.forward(prompt, 0..1, &mut |_| ()), Err(EngineError::NoSlot { .. })));
    engine.release(kept);
    let events = finish(&mut engine);
    assert_eq!(by_sequence(&events)[&waiting], answers()[1][..1]);
    assert!(engine.statistics(waiting).is_none() && engine.cancel_handle(waiting).is_none());
}

/// The reference with a hook that is called in the middle of a pass, which is finished all the same: the worst that a
/// cancelled pass may leave in the caches.
struct Hooked {
    hook: Hook,
}

type Hook = Arc<dyn Fn(usize) + Send + Sync>;

struct HookedLoaded {
    inner: Box<dyn Loaded>,
    hook: Hook,
    passes: usize,
}

impl Backend for Hooked {
    fn capabilities(&self) -> Capabilities {
        Capabilities { decodes: false, ..ReferenceBackend.capabilities() }
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Loaded>, BackendError> {
        let inner = ReferenceBackend.load(program, weights, options)?;
        Ok(Box::new(HookedLoaded { inner, hook: self.hook.clone(), passes: 0 }))
    }
}

impl Loaded for HookedLoaded {
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        (self.hook)(self.passes);
        self.passes += 1;
        self.inner.run(&Batch { cancel: None, ..batch.clone() })?;
        let cancelled = batch.cancel.is_some_and(|cancel| cancel.load(Ordering::SeqCst));
        if cancelled { Err(BackendError::Cancelled) } else { Ok(()) }
    }

    fn read(&mut self, buffer: BufferId, into: &mut [f32]) -> Result<(), BackendError> {
        self.inner.read(buffer, into)
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }
}

/// Loads a model that calls `action` with the handles in pass number `pass`.
fn load_hooked<T: Send + Sync + 'static>(
    pass: usize,
    options: EngineOptions,
    action: impl Fn(&T) + Send + Sync + 'static,
) -> (Engine, Arc<OnceLock<T>>) {
    let handle = Arc::new(OnceLock::<T>::new());
    let shared = handle.clone();
    let hook: Hook = Arc::new(move |now| {
        if now == pass {
            action(shared.get().expect("the test sets it"));
        }
    });
    let options = EngineOptions { precision: Precision::F32, ..options };
    (Engine::load(&open(MODEL), &Hooked { hook }, &options).unwrap(), handle)
}

#[test]
fn a_request_cancelled_in_mid_prefill_can_go_on() {
    let options = EngineOptions { chunk: 10, ..Default::default() };
    let (mut engine, handle) = load_hooked(2, options, CancelHandle::cancel);
    let id = engine.submit(Request { keep: true, ..greedy(&prompts()[0], 24) }).unwrap();
    handle.set(engine.cancel_handle(id).unwrap()).unwrap();
    let events = finish(&mut engine);
    assert_eq!(reasons(&events), [FinishReason::Cancelled]);
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Prefill { .. })).count(), 2);

    engine.extend(id, greedy(&prompts()[0], 24)).unwrap();
    // The old handle means the old request.
    handle.get().unwrap().cancel();
    let events = finish(&mut engine);
    assert_eq!(tokens(&events), answers()[0]);
    let Some(Event::Finished { statistics, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!((statistics.reused_tokens, statistics.prefill_tokens), (20, prompts()[0].len() - 20));
}

#[test]
fn cancelling_one_request_does_not_disturb_the_others() {
    // In pass 9 all three are decoding.
    let options = EngineOptions { sequences: 3, ..Default::default() };
    let (mut engine, handle) = load_hooked(9, options, CancelHandle::cancel);
    let ids: Vec<_> = prompts().iter().map(|prompt| engine.submit(greedy(prompt, 24)).unwrap()).collect();
    handle.set(engine.cancel_handle(ids[1]).unwrap()).unwrap();
    let events = finish(&mut engine);
    let texts = by_sequence(&events);
    assert_eq!(texts[&ids[0]], answers()[0]);
    assert_eq!(texts[&ids[1]], answers()[1][..texts[&ids[1]].len()]);
    assert_eq!(texts[&ids[2]], answers()[2]);
    assert!(texts[&ids[1]].len() < 24);
    assert_eq!(reasons(&events).iter().filter(|&&reason| reason == FinishReason::Cancelled).count(), 1);
}

#[test]
fn an_interruption_stops_everything_once() {
    let options = EngineOptions { sequences: 2, ..Default::default() };
    let (mut engine, handle) = load_hooked(3, options, InterruptHandle::interrupt);
    handle.set(engine.interrupt_handle()).unwrap();
    for prompt in prompts() {
        engine.submit(greedy(&prompt, 24)).unwrap();
    }
    assert_eq!(reasons(&finish(&mut engine)), [FinishReason::Cancelled; 3]);
    engine.submit(greedy(&prompts()[1], 24)).unwrap();
    assert_eq!(tokens(&finish(&mut engine)), answers()[1]);

    let interrupt = engine.interrupt_handle();
    interrupt.interrupt();
    assert!(matches!(engine.forward(&prompts()[1], 0..1, &mut |_| ()), Err(EngineError::Interrupted)));
    interrupt.interrupt();
    interrupt.clear();
    assert!(engine.forward(&prompts()[1], 0..1, &mut |_| ()).is_ok());
}

#[test]
fn a_request_that_waits_or_runs_is_cancelled_by_its_id() {
    let mut engine = load(MODEL, EngineOptions::default());
    let ids: Vec<_> = prompts().iter().map(|prompt| engine.submit(greedy(prompt, 24)).unwrap()).collect();
    engine.step().unwrap();
    engine.cancel(ids[0]);
    engine.cancel(ids[2]);
    let events = finish(&mut engine);
    assert_eq!(by_sequence(&events)[&ids[1]], answers()[1]);
    assert_eq!(reasons(&events).iter().filter(|&&reason| reason == FinishReason::Cancelled).count(), 2);
}

/// Rows of [`Engine::forward`] as one matrix.
fn logits(engine: &mut Engine, tokens: &[u32], outputs: std::ops::Range<usize>) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    let mut expected = outputs.start;
    engine
        .forward(tokens, outputs, &mut |row| {
            assert_eq!(row.position, expected);
            expected += 1;
            rows.push(row.logits.to_vec());
        })
        .unwrap();
    rows
}

#[test]
fn forward_gives_the_same_rows_whatever_the_chunks() {
    let prompt = &prompts()[0];
    let mut whole = load(MODEL, EngineOptions { outputs_max: 512, ..Default::default() });
    let all = logits(&mut whole, prompt, 0..prompt.len());
    assert_eq!(all.len(), prompt.len());
    for (chunk, outputs_max) in [(512, 1), (512, 5), (7, 512), (7, 3), (1, 1)] {
        let mut engine = load(MODEL, EngineOptions { chunk, outputs_max, ..Default::default() });
        assert_eq!(logits(&mut engine, prompt, 0..prompt.len()), all, "chunk {chunk}, outputs {outputs_max}");
        assert_eq!(logits(&mut engine, prompt, 11..13), all[11..13]);
        assert_eq!(logits(&mut engine, prompt, 20..20), all[20..20]);
    }
}

#[test]
fn a_broken_number_is_an_error_and_not_a_token() {
    // Weights that are NaNs.
    struct Nothing;
    impl WeightSource for Nothing {
        fn open(&self, _: &str, _: tensor::WeightFormat) -> Result<Arc<dyn tensor::WeightBytes>, tensor::WeightError> {
            Err("no weights here".into())
        }
    }
    let checkpoint = open(MODEL);
    let config = ModelSource::open(&checkpoint).unwrap().config().clone();
    let load = |source: &dyn WeightSource| {
        let options = EngineOptions::default();
        Engine::from_source(config.clone(), &|_| DType::F32.into(), source, &ReferenceBackend, &options)
    };
    assert!(matches!(load(&Nothing), Err(EngineError::Backend(BackendError::Weight { .. }))));

    struct NaN(Program);
    impl WeightSource for NaN {
        fn open(
            &self,
            name: &str,
            format: tensor::WeightFormat,
        ) -> Result<Arc<dyn tensor::WeightBytes>, tensor::WeightError> {
            let BufferKind::Weight { rows, columns, .. } = self.0.buffer(self.0.find(name).unwrap()).kind else {
                return Err("no weight".into());
            };
            Ok(Arc::new(vec![0xff; format.data_bytes(rows, columns).unwrap()]))
        }
    }
    let program = build_program(&config, &|_| DType::F32.into(), ProgramOptions::default()).unwrap().program;
    let mut engine = load(&NaN(program)).unwrap();
    engine.submit(greedy(&[2, 3, 4], 5)).unwrap();
    for _ in 0..2 {
        assert!(matches!(engine.step(), Err(EngineError::Logits { position: 2 })));
    }
}

#[test]
fn the_vision_model_loads_as_text() {
    let checkpoint = Checkpoint::open(&golden("vision-4b-shape")).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    assert_eq!(source.tensors().len(), 2 + 7 * 13);
    assert_eq!(source.vision_tensors() + source.tensors().len(), checkpoint.tensors().len());
    assert_eq!(source.config().stop_tokens, [1, 106]);
    let mut engine = Engine::load_source(&source, &ReferenceBackend, &EngineOptions::default()).unwrap();
    engine.submit(greedy(&[2, 3, 4], 5)).unwrap();
    assert_eq!(tokens(&finish(&mut engine)).len(), 5);
}
