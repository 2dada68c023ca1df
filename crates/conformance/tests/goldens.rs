//! Whole models on every backend against what the transformers library computed in float32: hidden states after each
//! layer, logits of every prompt, and greedy continuations.
//!
//! The bound is that of the project's first goal: a maximal absolute difference of 10⁻³ of the standard deviation of
//! the reference tensor.

use std::path::{Path, PathBuf};

use backend_cpu::CpuBackend;
use backend_vulkan::VulkanBackend;
use checkpoint::{Checkpoint, safetensors};
use engine::{Engine, EngineOptions, Event, Request, Sampling};
use tensor::reference::ReferenceBackend;
use tensor::{Backend, Precision};

const BOUND: f64 = 1e-3;

/// The models and their prompts.
const MODELS: [(&str, usize); 2] = [("text-1b-shape", 2), ("text-27b-shape", 3)];

/// Every backend that can run here, by name.
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn backends() -> Vec<(String, Box<dyn Backend>)> {
    let mut backends: Vec<(String, Box<dyn Backend>)> = vec![("reference".into(), Box::new(ReferenceBackend))];
    for level in CpuBackend::available_levels() {
        let backend = CpuBackend::with_level(level).expect("an available level");
        backends.push((format!("CPU, {}", level.name()), Box::new(backend)));
    }
    match VulkanBackend::open(None) {
        Ok(backend) => backends.push((format!("Vulkan, {}", backend.device().features.name), Box::new(backend))),
        Err(error) => eprintln!("skipped: Vulkan: {error}"),
    }
    backends
}

fn folder(model: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens")).join(model)
}

/// What the transformers library computed for a model.
struct Golden {
    bytes: Vec<u8>,
    tensors: Vec<checkpoint::RawTensor>,
}

impl Golden {
    fn open(model: &str) -> Golden {
        let path = folder(model).join("golden.safetensors");
        let bytes = std::fs::read(&path).expect("the golden models are part of the repository");
        let tensors = safetensors::parse("golden.safetensors", &bytes).unwrap();
        Golden { bytes, tensors }
    }

    fn tensor(&self, name: &str, encoding: &str) -> Option<&[u8]> {
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name)?;
        assert_eq!(tensor.encoding.to_string(), encoding, "{name}");
        Some(&self.bytes[tensor.range.clone()])
    }

    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        Some(self.tensor(name, "f32")?.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    fn tokens(&self, name: &str) -> Vec<u32> {
        let bytes = self.tensor(name, "I64").expect("it is there");
        bytes.as_chunks().0.iter().map(|&bytes| u64::from_le_bytes(bytes) as u32).collect()
    }
}

/// Compares and says where it is worst.
fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let count = expected.len() as f64;
    let mean = expected.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let variance = expected.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
    let bound = BOUND * variance.sqrt();
    // A NaN counts as worst.
    let difference = |index: usize| (f64::from(found[index]) - f64::from(expected[index])).abs();
    let key = |index: usize| if difference(index).is_nan() { f64::INFINITY } else { difference(index) };
    let worst = (0..expected.len()).max_by(|&a, &b| key(a).total_cmp(&key(b))).expect("it is not empty");
    assert!(
        difference(worst) <= bound,
        "{what}: element {worst} is {}, expected {} ± {bound:e}",
        found[worst],
        expected[worst]
    );
}

fn load(backend: &dyn Backend, model: &str, chunk: usize) -> Engine {
    let options =
        EngineOptions { precision: Precision::F32, chunk, outputs_max: 512, hidden: true, ..Default::default() };
    let checkpoint = Checkpoint::open(&folder(model)).expect("the golden models are part of the repository");
    Engine::load(&checkpoint, backend, &options).expect("it loads")
}

/// Hidden states `[layer][positions · hidden]` and logits `[positions · vocabulary]` of a prompt.
fn forward(engine: &mut Engine, tokens: &[u32]) -> (Vec<Vec<f32>>, Vec<f32>) {
    let (mut hidden, mut logits) = (Vec::new(), Vec::new());
    let mut on_row = |row: engine::Row<'_>| {
        hidden.resize(row.hidden.len(), Vec::new());
        for (layer, values) in row.hidden.iter().enumerate() {
            hidden[layer].extend_from_slice(values);
        }
        logits.extend_from_slice(row.logits);
    };
    engine.forward(tokens, 0..tokens.len(), &mut on_row).expect("a pass");
    (hidden, logits)
}

/// In one pass, in chunks of seven, and token by token: products of matrices, and of matrices and vectors.
#[test]
fn hidden_states_and_logits() {
    let backends = backends();
    let mut compared = 0;
    for (model, prompts) in MODELS {
        let golden = Golden::open(model);
        for (name, backend) in &backends {
            for chunk in [512, 7, 1] {
                let mut engine = load(&**backend, model, chunk);
                for prompt in 0..prompts {
                    let what = format!("{name}, {model}, prompt {prompt}, chunks of {chunk}");
                    let tokens = golden.tokens(&format!("prompt{prompt}.input_ids"));
                    let (hidden, logits) = forward(&mut engine, &tokens);
                    let expected = golden.floats(&format!("prompt{prompt}.logits")).expect("it is there");
                    for (layer, found) in hidden.iter().enumerate() {
                        let Some(expected) = golden.floats(&format!("prompt{prompt}.hidden{layer:02}")) else {
                            continue;
                        };
                        assert_close(&format!("{what}, hidden{layer:02}"), found, &expected);
                        compared += 1;
                    }
                    assert_close(&format!("{what}, logits"), &logits, &expected);
                }
            }
        }
    }
    // The first prompt of each model has hidden states: 8 + 1 and 7 + 1, in three sizes of chunks.
    assert_eq!(compared, (9 + 8) * 3 * backends.len());
}

#[test]
fn greedy_continuations() {
    let backends = backends();
    for (model, prompts) in MODELS {
        let golden = Golden::open(model);
        for (name, backend) in &backends {
            let mut engine = load(&**backend, model, 512);
            for prompt in 0..prompts {
                let expected = golden.tokens(&format!("prompt{prompt}.greedy"));
                let request = Request {
                    sampling: Sampling::greedy(),
                    max_tokens: Some(expected.len()),
                    ..Request::new(golden.tokens(&format!("prompt{prompt}.input_ids")))
                };
                engine.submit(request).expect("a good request");
                let mut found = Vec::new();
                while !engine.is_idle() {
                    let tokens = engine.step().expect("a step").into_iter();
                    found.extend(tokens.filter_map(|event| match event {
                        Event::Token { token, .. } => Some(token),
                        Event::Prefill { .. } | Event::Finished { .. } => None,
                    }));
                }
                assert_eq!(found, expected, "{name}, {model}, prompt {prompt}");
            }
        }
    }
}

/// Its prompt has images, which a later version will see; its tensors must not disturb.
#[test]
fn a_model_with_a_vision_encoder_loads() {
    for (name, backend) in backends() {
        let mut engine = load(&*backend, "vision-4b-shape", 512);
        let (hidden, logits) = forward(&mut engine, &[2, 3, 4]);
        assert_eq!((hidden.len(), logits.len()), (8, 3 * 512), "{name}");
        assert!(logits.iter().all(|logit| logit.is_finite()), "{name}");
    }
}

/// exllamav3 quantized this model, half rates among others, and computed the logits, in binary16.
#[test]
fn logits_of_a_model_that_exllamav3_quantized() {
    let model = "exllamav3-vision";
    let golden = Golden::open(model);
    let (tokens, expected) = (golden.tokens("input_ids"), golden.floats("logits").expect("it is there"));
    let root_mean_square = |values: &mut dyn Iterator<Item = f64>| {
        let squares: f64 = values.map(|value| value * value).sum();
        (squares / expected.len() as f64).sqrt()
    };
    let size = root_mean_square(&mut expected.iter().map(|&value| f64::from(value)));
    for (name, backend) in backends() {
        let mut engine = load(&*backend, model, 512);
        let (_, logits) = forward(&mut engine, &tokens);
        assert_eq!(logits.len(), expected.len(), "{name}");
        let differences = || logits.iter().zip(&expected).map(|(&a, &b)| f64::from(a) - f64::from(b));
        let largest = differences().fold(0.0, |largest: f64, difference| largest.max(difference.abs()));
        let mean = root_mean_square(&mut differences());
        // Half a unit of the largest logits, 63, is 0.016.
        assert!(mean <= 1e-3 * size && largest <= 0.05, "{name}: {mean:e} of {size}, {largest} at most");
    }
}
