//! The golden models, and how to read what another implementation computed for them.

use std::path::{Path, PathBuf};

use checkpoint::Checkpoint;
use checkpoint::safetensors;
use engine::{Engine, EngineOptions, Event, Request, Sampling};
use tensor::Precision;
use tensor::reference::ReferenceBackend;

/// The folder of a golden model.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens")).join(name)
}

/// Opens a golden model.
pub(crate) fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&golden(name)).expect("the golden models are part of the repository")
}

/// Loads a golden model on the reference, in f32.
pub(crate) fn load(name: &str, options: EngineOptions) -> Engine {
    let options = EngineOptions { precision: Precision::F32, ..options };
    Engine::load(&open(name), &ReferenceBackend, &options).expect("it loads")
}

/// A tensor of 64-bit integers of `golden.safetensors`.
pub(crate) fn integers(name: &str, tensor: &str) -> Vec<u32> {
    let path = golden(name).join("golden.safetensors");
    let bytes = std::fs::read(&path).expect("the golden models are part of the repository");
    let tensors = safetensors::parse("golden.safetensors", &bytes).unwrap();
    let found = tensors.iter().find(|found| found.name == tensor).unwrap();
    assert_eq!(found.encoding.to_string(), "I64");
    let (numbers, _) = bytes[found.range.clone()].as_chunks::<8>();
    numbers.iter().map(|&number| u64::from_le_bytes(number) as u32).collect()
}

/// A greedy request for a number of tokens that all differ: the golden models only ever repeat their last token
/// otherwise, which would hide mistakes.
pub(crate) fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    let sampling = Sampling { repetition_penalty: 1e6, ..Sampling::greedy() };
    Request { sampling, max_tokens: Some(max_tokens), ..Request::new(prompt.to_vec()) }
}

/// Steps until nothing is left to do.
pub(crate) fn finish(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    while !engine.is_idle() {
        events.extend(engine.step().expect("a step"));
    }
    events
}

/// The tokens of all answers, one after the other.
pub(crate) fn tokens(events: &[Event]) -> Vec<u32> {
    events.iter().filter_map(|event| if let Event::Token { token, .. } = event { Some(*token) } else { None }).collect()
}
