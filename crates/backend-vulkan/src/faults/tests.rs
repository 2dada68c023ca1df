use std::sync::Arc;

use tensor::{
    Backend, BackendError, Batch, BufferId, Continuation, DType, LoadOptions, Op, Precision, Program, ProgramBuilder,
    Rows, Sampling, Scalar, Segment, WeightBytes, WeightError, WeightSource,
};

use super::Fault;
use crate::VulkanBackend;
use crate::context::Context;

const WIDTH: usize = 64;

/// Weights of zeros and a few ones.
struct Weights;

impl WeightSource for Weights {
    fn open(&self, _: &str, _: tensor::WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError> {
        let values = (0..WIDTH * WIDTH).map(|index| if index % (WIDTH + 1) == 0 { 1f32 } else { 0.0 });
        Ok(Arc::new(values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()))
    }
}

fn index() -> Option<usize> {
    std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok())
}

/// Whether there is a device to fail.
fn is_there() -> bool {
    match Context::open(index()) {
        Ok(_) => true,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a test that can't run says so")]
            {
                eprintln!("skipped: {error}");
            }
            false
        }
    }
}

/// `logits = head(table[token])`, which is the token again.
fn program() -> (Program, BufferId) {
    let mut builder = ProgramBuilder::new();
    let table = builder.weight("table", DType::F32, WIDTH, WIDTH);
    let head = builder.weight("head", DType::F32, WIDTH, WIDTH);
    let tokens = builder.scratch("tokens", Rows::Tokens, WIDTH);
    let outputs = builder.scratch("outputs", Rows::Outputs, WIDTH);
    let logits = builder.scratch("logits", Rows::Outputs, WIDTH);
    builder.push(Op::Embed { table, scale: Scalar(1.0), output: tokens });
    builder.push(Op::SelectOutputs { input: tokens, output: outputs });
    builder.push(Op::Linear { weight: head, input: outputs, output: logits });
    (builder.build().unwrap(), logits)
}

/// Loads, runs, reads, traces and decodes.
fn use_all(backend: &VulkanBackend) -> Result<(), BackendError> {
    let (program, logits) = program();
    let options = LoadOptions {
        tokens_max: 4,
        outputs_max: 4,
        sequences_max: 2,
        context_max: 64,
        cache_dtype: DType::F32,
        precision: Precision::F32,
        threads: None,
    };
    let mut loaded = backend.load(&program, &Weights, &options)?;
    let segments = [Segment { sequence: 0, position: 0, tokens: 3 }];
    let batch = Batch { tokens: &[1, 2, 5], segments: &segments, outputs: &[2], cancel: None };
    loaded.run(&batch)?;
    let mut values = vec![0.0; WIDTH];
    loaded.read(logits, &mut values)?;
    assert_eq!(values.iter().position(|&value| value == 1.0), Some(5));
    loaded.set_tracing(true);
    loaded.run(&batch)?;
    loaded.set_tracing(false);
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let continuation = Continuation {
        sequence: 0,
        position: 3,
        token: 7,
        sampling: &sampling,
        occurred: &[],
        stop_tokens: &[],
        tokens_max: 4,
    };
    let tokens = loaded.decode(logits, &[continuation], None)?;
    assert!(tokens[0].iter().all(|&token| token == 7) && !tokens[0].is_empty(), "{tokens:?}");
    Ok(())
}

/// Lets the call of every number fail until there is none of that number, and checks each error; after each, everything
/// is dropped and a fresh device works. The number of calls is at least `fewest`.
fn fail_everywhere(fault: impl Fn(usize) -> Fault, fewest: usize, check: impl Fn(&BackendError)) {
    if !is_there() {
        return;
    }
    for number in 0.. {
        assert!(number < 200, "it never ends");
        let backend = VulkanBackend::open_with_fault(index(), fault(number)).unwrap();
        let result = use_all(&backend);
        drop(backend);
        match result {
            Ok(()) => {
                assert!(number >= fewest, "{number} calls");
                break;
            }
            Err(error) => check(&error),
        }
        use_all(&VulkanBackend::open(index()).unwrap()).unwrap();
    }
}

fn problem(error: &BackendError) -> &str {
    match error {
        BackendError::Device { problem, .. } => problem,
        other => panic!("expected a failed device, found {other:?}"),
    }
}

#[test]
fn a_lost_device() {
    fail_everywhere(
        |submission| Fault::DeviceLost { submission },
        6,
        |error| {
            let problem = problem(error);
            assert!(
                problem.starts_with("the device was lost during ") && problem.contains("hint: the driver reset it")
            );
        },
    );
}

#[test]
fn a_device_that_hangs() {
    fail_everywhere(
        |wait| Fault::Timeout { wait },
        6,
        |error| {
            let problem = problem(error);
            assert!(problem.contains("did not end within 20 s") && problem.contains("hint: the device hangs"));
        },
    );
}

#[test]
fn no_memory() {
    fail_everywhere(
        |allocation| Fault::OutOfMemory { allocation },
        4,
        |error| {
            let BackendError::OutOfMemory { what, needed, available, .. } = error else {
                panic!("expected no memory, found {error:?}");
            };
            assert!(!what.is_empty() && *needed > 0 && *available > 0);
            let message = error.to_string();
            assert!(message.contains(&needed.to_string()) && message.contains(&available.to_string()), "{message}");
        },
    );
}

/// Nobody waits for a device a second time after it hung, nor for one that is lost.
#[test]
fn after_a_failure_every_call_fails_at_once() {
    if !is_there() {
        return;
    }
    for (fault, word) in [
        (Fault::DeviceLost { submission: 0 }, "the device was lost"),
        (Fault::Timeout { wait: 0 }, "did not end within"),
    ] {
        let backend = VulkanBackend::open_with_fault(index(), fault).unwrap();
        for _ in 0..3 {
            let error = use_all(&backend).unwrap_err();
            assert!(problem(&error).contains(word), "{error}");
        }
    }
}

#[test]
fn a_feature_that_is_missing() {
    if !is_there() {
        return;
    }
    for name in ["shaderFloat16", "vulkanMemoryModelDeviceScope", "synchronization2"] {
        match VulkanBackend::open_with_fault(index(), Fault::MissingFeature(name)) {
            Err(BackendError::Unsupported { problem, .. }) => {
                assert!(problem.contains(&format!("the driver lacks {name}\n\nhint: a newer driver")), "{problem}");
            }
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it opened"),
        }
    }
    use_all(&VulkanBackend::open(index()).unwrap()).unwrap();
}
