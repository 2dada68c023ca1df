//! Answers of a device that chooses tokens itself, and of devices that fail on the way: the same as of one that runs
//! pass by pass.

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{finish, greedy, integers, load, open, tokens};
use engine::{CancelHandle, Engine, EngineError, EngineOptions, Event, FinishReason, ModelSource, Request, Sampling};
use tensor::reference::ReferenceBackend;
use tensor::{
    Backend, BackendError, Batch, BufferId, Capabilities, Continuation, DType, LoadOptions, Loaded, MemoryUse,
    Precision, Program, WeightSource,
};

const MODEL: &str = "text-27b-shape";

/// Is asked before each pass and each call to decode, by its number.
type Hook = Arc<dyn Fn(usize) -> Result<(), BackendError> + Send + Sync>;

/// The reference with a hook.
#[derive(Clone)]
struct Device {
    decodes: bool,
    memory_bytes: u64,
    hook: Hook,
    /// Calls to decode.
    decoded: Arc<AtomicUsize>,
    /// Programs that are loaded now.
    loaded: Arc<AtomicUsize>,
}

impl Device {
    fn new(decodes: bool, hook: impl Fn(usize) -> Result<(), BackendError> + Send + Sync + 'static) -> Device {
        let (decoded, loaded) = Default::default();
        Device { decodes, memory_bytes: u64::MAX, hook: Arc::new(hook), decoded, loaded }
    }

    /// One that fails at a call and from then on.
    fn failing(decodes: bool, at: usize) -> Device {
        Device::new(decodes, move |call| if call < at { Ok(()) } else { Err(lost()) })
    }
}

fn lost() -> BackendError {
    BackendError::Device { device: "the test".into(), problem: "lost".into() }
}

struct DeviceLoaded {
    inner: Box<dyn Loaded>,
    device: Device,
    calls: usize,
}

impl Backend for Device {
    fn capabilities(&self) -> Capabilities {
        assert_eq!(self.loaded.load(Ordering::SeqCst), 0, "the old program has to go first");
        Capabilities { decodes: self.decodes, memory_bytes: self.memory_bytes, ..ReferenceBackend.capabilities() }
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Loaded>, BackendError> {
        self.loaded.fetch_add(1, Ordering::SeqCst);
        let inner = ReferenceBackend.load(program, weights, options)?;
        Ok(Box::new(DeviceLoaded { inner, device: self.clone(), calls: 0 }))
    }
}

impl Drop for DeviceLoaded {
    fn drop(&mut self) {
        self.device.loaded.fetch_sub(1, Ordering::SeqCst);
    }
}

impl DeviceLoaded {
    fn call(&mut self) -> Result<(), BackendError> {
        self.calls += 1;
        (self.device.hook)(self.calls - 1)
    }
}

impl Loaded for DeviceLoaded {
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.call()?;
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
        self.call()?;
        self.device.decoded.fetch_add(1, Ordering::SeqCst);
        self.inner.decode(logits, continuations, cancel)
    }
}

fn load_on(device: &Device, options: EngineOptions) -> Engine {
    let options = EngineOptions { precision: Precision::F32, ..options };
    Engine::load(&open(MODEL), device, &options).expect("it loads")
}

fn prompts() -> Vec<Vec<u32>> {
    (0..3).map(|prompt| integers(MODEL, &format!("prompt{prompt}.input_ids"))).collect()
}

/// A way to choose that gives all kinds of tokens, and the others as a user would set them.
fn samplings() -> Vec<Sampling> {
    let wild = Sampling { temperature: 20.0, top_p: 0.9, repetition_penalty: 1.1, seed: 4, ..Sampling::default() };
    vec![
        Sampling { repetition_penalty: 1e6, ..Sampling::greedy() },
        wild,
        Sampling { top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 5, ..wild },
        Sampling { min_p: 0.3, top_p: 1.0, seed: 6, ..wild },
        Sampling { seed: 7, ..Sampling::default() },
    ]
}

/// What happened to each sequence: its tokens and its end, without times.
fn outcomes(events: &[Event]) -> Vec<(Vec<u32>, FinishReason, [usize; 3])> {
    let (mut texts, mut done) = (HashMap::<_, Vec<u32>>::new(), Vec::new());
    for event in events {
        match *event {
            Event::Prefill { .. } => {}
            Event::Token { id, token } => texts.entry(id).or_default().push(token),
            Event::Finished { id, reason, statistics } => {
                let counts = [statistics.prompt_tokens, statistics.prefill_tokens, statistics.decode_tokens];
                done.push((id, texts.remove(&id).unwrap_or_default(), reason, counts));
            }
        }
    }
    assert!(texts.is_empty(), "tokens after the end, or no end");
    done.sort_by_key(|one| one.0);
    done.into_iter().map(|(_, text, reason, counts)| (text, reason, counts)).collect()
}

/// Requests of three lengths, the second of which stops at a token that the third position of a call may choose.
fn requests(sampling: Sampling, stop_tokens: Vec<u32>) -> Vec<Request> {
    let request = |(index, prompt): (usize, Vec<u32>)| Request {
        sampling: Sampling { seed: sampling.seed + index as u64, ..sampling },
        max_tokens: Some([30, 40, 13][index]),
        stop_tokens: if index == 1 { stop_tokens.clone() } else { Vec::new() },
        ..Request::new(prompt)
    };
    prompts().into_iter().enumerate().map(request).collect()
}

fn run(engine: &mut Engine, requests: &[Request]) -> Vec<(Vec<u32>, FinishReason, [usize; 3])> {
    for request in requests {
        engine.submit(request.clone()).unwrap();
    }
    outcomes(&finish(engine))
}

#[test]
fn answers_are_those_of_single_steps() {
    for sampling in samplings() {
        for sequences in [1, 2, 3] {
            let options = EngineOptions { sequences, chunk: 40, ..Default::default() };
            let (single, device) = (Device::new(false, |_| Ok(())), Device::new(true, |_| Ok(())));
            let (mut steps, mut decodes) = (load_on(&single, options.clone()), load_on(&device, options));
            let whole = run(&mut steps, &requests(sampling, vec![]));
            let stop = whole[1].0[21];
            let requests = requests(sampling, vec![stop]);
            let expected = run(&mut steps, &requests);
            assert_eq!(expected[1].1, FinishReason::Stop { token: stop });
            assert_eq!(run(&mut decodes, &requests), expected, "{sampling:?}, {sequences}");
            assert_eq!(single.decoded.load(Ordering::SeqCst), 0);
            assert!(device.decoded.load(Ordering::SeqCst) > 3);
        }
    }
}

#[test]
fn the_last_position_of_the_context_is_used() {
    let prompt = &prompts()[1];
    for more in [1, 2, 8, 9, 12] {
        let options = EngineOptions { context: Some(prompt.len() + more), ..Default::default() };
        let request = Request { max_tokens: None, ..greedy(prompt, 0) };
        let [expected, found] = [false, true].map(|decodes| {
            run(&mut load_on(&Device::new(decodes, |_| Ok(())), options.clone()), std::slice::from_ref(&request))
        });
        assert_eq!((found[0].0.len(), found[0].1), (more + 1, FinishReason::ContextFull));
        assert_eq!(found, expected);
    }
}

/// A request that comes while others decode is taken up by the next step.
#[test]
fn requests_that_come_later_are_not_kept_waiting() {
    let requests = requests(samplings()[1], vec![]);
    let options = EngineOptions { sequences: 3, chunk: 30, ..Default::default() };
    let expected = run(&mut load_on(&Device::new(false, |_| Ok(())), options.clone()), &requests);
    let mut engine = load_on(&Device::new(true, |_| Ok(())), options);
    let mut events = Vec::new();
    for request in requests {
        engine.submit(request).unwrap();
        for _ in 0..2 {
            events.extend(engine.step().unwrap());
        }
    }
    events.extend(finish(&mut engine));
    assert_eq!(outcomes(&events), expected);
}

/// Texts that are kept go on after the device has run ahead, from any point.
#[test]
fn kept_sequences_go_on_after_a_burst() {
    let prompt = &prompts()[0];
    let options = EngineOptions { chunk: 24, ..Default::default() };
    let texts = |decodes| {
        let mut engine = load_on(&Device::new(decodes, |_| Ok(())), options.clone());
        let id = engine.submit(Request { keep: true, ..greedy(prompt, 15) }).unwrap();
        let answer = tokens(&finish(&mut engine));
        let whole = [&prompt[..], &answer].concat();
        let (mut answers, mut reused) = (vec![answer], Vec::new());
        for (back, more) in [(0, 1), (0, 30), (1, 2), (3, 5), (7, 1), (20, 3), (2, 40)] {
            let text: Vec<u32> = [&whole[..whole.len() - back], &(40..40 + more).collect::<Vec<_>>()].concat();
            engine.extend(id, Request { keep: true, ..greedy(&text, 11) }).unwrap();
            answers.push(tokens(&finish(&mut engine)));
            reused.push(engine.statistics(id).unwrap().reused_tokens);
        }
        // The last token of an answer is chosen and not run; from there on 12 positions may be lost, and 11 are not.
        assert_eq!(reused[..2], [whole.len() - 1, whole.len() + 1]);
        assert!(reused.contains(&0));
        answers
    };
    assert_eq!(texts(true), texts(false));
}

#[test]
fn cancelling_one_of_several_leaves_the_others_alone() {
    let handle = Arc::new(Mutex::new(None::<CancelHandle>));
    let shared = handle.clone();
    let device = Device::new(true, move |call| {
        // The third call to decode.
        if call == 5
            && let Some(handle) = &*shared.lock().unwrap()
        {
            handle.cancel();
        }
        Ok(())
    });
    let requests = requests(samplings()[0], vec![]);
    let options = EngineOptions { sequences: 3, ..Default::default() };
    let expected = run(&mut load_on(&Device::new(false, |_| Ok(())), options.clone()), &requests);
    let mut engine = load_on(&device, options);
    let ids: Vec<_> = requests.into_iter().map(|request| engine.submit(request).unwrap()).collect();
    *handle.lock().unwrap() = engine.cancel_handle(ids[0]);
    let found = outcomes(&finish(&mut engine));
    assert_eq!(found[0].1, FinishReason::Cancelled);
    assert!((1..30).contains(&found[0].0.len()));
    assert_eq!(found[0].0, expected[0].0[..found[0].0.len()]);
    assert_eq!(found[1..], expected[1..]);
}

/// At whichever call the device is lost, and whatever takes over.
#[test]
fn a_lost_device_changes_no_answer() {
    let checkpoint = open(MODEL);
    let source = ModelSource::open(&checkpoint).unwrap();
    let options = EngineOptions { sequences: 2, chunk: 25, ..Default::default() };
    let requests = requests(samplings()[1], vec![]);
    let texts = |outcomes: Vec<(Vec<u32>, FinishReason, [usize; 3])>| -> Vec<_> {
        outcomes.into_iter().map(|(text, reason, [prompt, _, decoded])| (text, reason, prompt, decoded)).collect()
    };
    let expected = texts(run(&mut load_on(&Device::new(false, |_| Ok(())), options.clone()), &requests));
    for (first, second) in [(true, true), (true, false), (false, true)] {
        for at in [0, 1, 3, 4, 7, 11] {
            let mut engine = load_on(&Device::failing(first, at), options.clone());
            for request in &requests {
                engine.submit(request.clone()).unwrap();
            }
            let (mut events, mut failures) = (Vec::new(), 0);
            while !engine.is_idle() {
                match engine.step() {
                    Ok(more) => events.extend(more),
                    Err(EngineError::Backend(BackendError::Device { .. })) => {
                        failures += 1;
                        let device =
                            if failures < 3 { Device::failing(second, 3) } else { Device::new(second, |_| Ok(())) };
                        engine.recover(&source, &device).unwrap();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(failures == 3 || (failures > 0 && at > 6), "{failures}");
            assert_eq!(texts(outcomes(&events)), expected, "{first} {second} {at}");
        }
    }
}

#[test]
fn kept_sequences_survive_a_lost_device() {
    let checkpoint = open(MODEL);
    let source = ModelSource::open(&checkpoint).unwrap();
    let (prompt, device) = (&prompts()[0], Device::new(true, |_| Ok(())));
    let mut engine = load_on(&device, EngineOptions::default());
    let id = engine.submit(Request { keep: true, ..greedy(prompt, 8) }).unwrap();
    let answer = tokens(&finish(&mut engine));
    engine.recover(&source, &device).unwrap();
    let text = [&prompt[..], &answer].concat();
    engine.extend(id, Request { keep: true, ..greedy(&text, 9) }).unwrap();
    let again = tokens(&finish(&mut engine));
    assert_eq!(engine.statistics(id).unwrap().reused_tokens, 0);
    assert_eq!([answer, again].concat(), run(&mut load(MODEL, EngineOptions::default()), &[greedy(prompt, 17)])[0].0);
}

/// A device that can't take over is refused, and another one can be tried.
#[test]
fn what_can_not_take_over_is_refused() {
    struct Only(DType);
    impl Backend for Only {
        fn capabilities(&self) -> Capabilities {
            Capabilities { weight_dtypes: vec![self.0], ..ReferenceBackend.capabilities() }
        }

        fn load(&self, _: &Program, _: &dyn WeightSource, _: &LoadOptions) -> Result<Box<dyn Loaded>, BackendError> {
            panic!("not before the formats are checked");
        }
    }
    let checkpoint = open(MODEL);
    let source = ModelSource::open(&checkpoint).unwrap();
    let device = Device::new(true, |_| Ok(()));
    let mut engine = load_on(&device, EngineOptions::default());
    engine.submit(greedy(&prompts()[1], 9)).unwrap();
    engine.step().unwrap();
    let error = engine.recover(&source, &Only(DType::Q2_K)).unwrap_err();
    assert!(matches!(error, EngineError::Format { .. }), "{error}");
    let small = Device { memory_bytes: 1000, ..device.clone() };
    let error = engine.recover(&source, &small).unwrap_err();
    assert!(matches!(error, EngineError::OutOfMemory { .. }), "{error}");
    let error = engine.step().unwrap_err();
    assert!(matches!(error, EngineError::Backend(BackendError::Device { .. })), "{error}");
    engine.recover(&source, &device).unwrap();
    let context = engine.context();
    let answer = tokens(&finish(&mut engine));
    assert_eq!(
        (context, &answer[..]),
        (
            load(MODEL, EngineOptions::default()).context(),
            &run(&mut load(MODEL, EngineOptions::default()), &[greedy(&prompts()[1], 9)])[0].0[1..]
        )
    );
}
