//! The reference functions against closed forms and published values, and the reference backend's contract.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tensor::reference::{self, AttentionShape, ReferenceBackend};
use tensor::{
    Backend, BackendError, Batch, BufferId, Continuation, DType, LoadOptions, Loaded, Op, Precision, Program,
    ProgramBuilder, Rows, Sampling, Scalar, Segment, WeightBytes, WeightError, WeightFormat, WeightSource,
};

fn close(found: f32, expected: f32) {
    assert!((found - expected).abs() <= 2e-6 * expected.abs().max(1e-3), "{found} instead of {expected}");
}

/// Numbers without a pattern between -1 and 1.
fn wild(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|index| ((index as f32 + seed) * 12.9898).sin() * 0.97).collect()
}

#[test]
fn gelu_equals_the_values_of_pytorch() {
    // torch.nn.functional.gelu(torch.tensor([...]), approximate='tanh')
    let gate = [0.0, 1.0, -1.0, 3.0, -3.0, 100.0, -100.0];
    let expected = [0.0, 0.841192, -0.158808, 2.9963627, -0.0036373436, 100.0, 0.0];
    let mut output = [f32::NAN; 7];
    reference::gelu_mul(&gate, &[2.0; 7], &mut output);
    for (found, expected) in output.into_iter().zip(expected) {
        assert!((found - 2.0 * expected).abs() < 1e-6 * expected.abs() + 1e-7, "{found} instead of {}", 2.0 * expected);
    }
}

#[test]
fn rms_norm_gives_every_group_a_mean_square_of_one() {
    let (input, weight) = (wild(24, 1.0), [1.0; 8]);
    let mut output = vec![f32::NAN; 24];
    reference::rms_norm(&input, &weight, 0.0, &mut output);
    for group in output.chunks(8) {
        close(group.iter().map(|x| x * x).sum::<f32>() / 8.0, 1.0);
    }
    // Large epsilon: x / √epsilon.
    reference::rms_norm(&[3.0, 4.0], &[1.0, 2.0], 1e8, &mut output[..2]);
    close(output[0], 3e-4);
    close(output[1], 8e-4);
    // Beyond binary16, as Gemma's residual stream is.
    reference::rms_norm(&[1e30, -1e30], &[1.0, 1.0], 1e-6, &mut output[..2]);
    assert_eq!(output[..2], [1.0, -1.0]);
}

#[test]
fn linear_multiplies_by_the_transposed_weight() {
    let weight = [1.0, 2.0, 3.0, -1.0, 0.5, 0.0];
    let mut output = [f32::NAN; 4];
    reference::linear(&weight, &[1.0, 10.0, 100.0, 2.0, 0.0, -1.0], 3, &mut output);
    assert_eq!(output, [321.0, 4.0, -1.0, -2.0]);
}

#[test]
fn rope_keeps_lengths_and_depends_on_distances_only() {
    let (head_dim, base) = (8, 10_000.0);
    let at = |vector: &[f32], position: usize| {
        let mut vector = vector.to_vec();
        reference::rope(&mut vector, &[position], head_dim, base, 1.0);
        vector
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let (query, key) = (wild(8, 0.0), wild(8, 50.0));
    assert_eq!(at(&query, 0), query);
    close(dot(&at(&query, 77), &at(&query, 77)), dot(&query, &query));
    close(dot(&at(&query, 9), &at(&key, 4)), dot(&at(&query, 105), &at(&key, 100)));
    // Element 0 turns with element 4 by one radian per position; the divisor slows it down.
    let mut values = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    reference::rope(&mut values, &[16], head_dim, base, 8.0);
    close(values[0], 2f32.cos());
    close(values[4], 2f32.sin());
}

#[test]
fn attention_averages_where_scores_are_equal_and_picks_where_one_is_large() {
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 2, window: Some(3), scale: 1.0 };
    let keys = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let values = [1e9, 1e9, 1e9, 1e9, 1.0, 10.0, 2.0, 20.0, 6.0, 60.0];
    let mut output = [f32::NAN; 4];
    reference::attention(&shape, 4, &[1.0, 2.0, 3.0, 4.0], &keys, &values, &mut output);
    assert_eq!(output, [3.0, 30.0, 3.0, 30.0]);
    let keys = [0.0, 0.0, 900.0, 0.0, 0.0, 0.0, 0.0, 500.0, 0.0, 0.0];
    reference::attention(&shape, 4, &[1.0, 2.0, 1.0, -1.0], &keys, &values, &mut output);
    assert_eq!(output, [2.0, 20.0, 3.5, 35.0]);
}

#[test]
fn caches_round_as_their_format() {
    let row = wild(32, 3.0);
    let mut cache = vec![f32::NAN; 32];
    reference::cache_write(&row, DType::F32, 32, &mut cache);
    assert_eq!(cache, row);
    for dtype in [DType::F16, DType::Q8_0] {
        let mut bytes = vec![0; dtype.row_bytes(32).unwrap()];
        dtype.codec().encode(&row, &mut bytes).unwrap();
        let mut expected = vec![0.0; 32];
        dtype.codec().decode(&bytes, &mut expected);
        reference::cache_write(&row, dtype, 32, &mut cache);
        assert_eq!(cache, expected);
        assert_ne!(cache, row);
    }
}

struct Weights(HashMap<&'static str, Vec<u8>>);

impl WeightSource for Weights {
    fn open(&self, name: &str, _: WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError> {
        Ok(Arc::new(self.0.get(name).ok_or("it is not there")?.clone()))
    }
}

fn options() -> LoadOptions {
    LoadOptions {
        tokens_max: 4,
        outputs_max: 2,
        sequences_max: 2,
        context_max: 8,
        cache_dtype: DType::F32,
        precision: Precision::F32,
        threads: None,
    }
}

/// Embeds into width 2 and averages over a window of 2 (all scores are 0).
fn program() -> (Program, BufferId) {
    let mut builder = ProgramBuilder::new();
    let table = builder.weight("table", DType::F32, 5, 2);
    let rows = builder.scratch("rows", Rows::Tokens, 2);
    let cache = builder.cache("cache", 2, Some(2));
    let mixed = builder.scratch("mixed", Rows::Tokens, 2);
    let output = builder.scratch("output", Rows::Outputs, 2);
    builder.push(Op::Embed { table, scale: Scalar(2.0), output: rows });
    builder.push(Op::CacheWrite { input: rows, cache });
    builder.push(Op::Attention {
        query: rows,
        keys: cache,
        values: cache,
        head_dim: 2,
        window: Some(2),
        scale: Scalar(0.0),
        output: mixed,
    });
    builder.push(Op::SelectOutputs { input: mixed, output });
    (builder.build().expect("a good program"), output)
}

fn weights() -> Weights {
    let table = [0f32, 0.0, 1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
    Weights(HashMap::from([("table", table.iter().flat_map(|value| value.to_le_bytes()).collect())]))
}

fn run(loaded: &mut dyn Loaded, tokens: &[u32], segments: &[(usize, usize, usize)], outputs: &[u32]) {
    let segments: Vec<Segment> =
        segments.iter().map(|&(sequence, position, tokens)| Segment { sequence, position, tokens }).collect();
    loaded.run(&Batch { tokens, segments: &segments, outputs, cancel: None }).expect("a run");
}

#[test]
fn sequences_and_windows_are_kept_apart() {
    let (program, output) = program();
    let mut loaded = ReferenceBackend.load(&program, &weights(), &options()).expect("a load");
    let mut rows = [0.0; 4];
    run(&mut *loaded, &[1, 2, 3, 4], &[(0, 0, 3), (1, 0, 1)], &[2, 3]);
    loaded.read(output, &mut rows).unwrap();
    assert_eq!(rows, [5.0, 50.0, 8.0, 80.0]);
    run(&mut *loaded, &[1, 1], &[(1, 1, 1), (0, 3, 1)], &[0, 1]);
    loaded.read(output, &mut rows).unwrap();
    assert_eq!(rows, [5.0, 50.0, 4.0, 40.0]);
    // One position back, and a sequence from its start.
    run(&mut *loaded, &[3, 2], &[(0, 3, 1), (1, 0, 1)], &[0, 1]);
    loaded.read(output, &mut rows).unwrap();
    assert_eq!(rows, [6.0, 60.0, 4.0, 40.0]);
    run(&mut *loaded, &[3], &[(0, 4, 1)], &[]);
}

#[test]
#[should_panic(expected = "only 1 positions are in the caches")]
fn a_gap_in_the_positions_is_a_bug_of_the_caller() {
    let (program, _) = program();
    let mut loaded = ReferenceBackend.load(&program, &weights(), &options()).expect("a load");
    run(&mut *loaded, &[1], &[(0, 0, 1)], &[]);
    run(&mut *loaded, &[1], &[(0, 2, 1)], &[]);
}

#[test]
fn what_can_not_be_loaded_is_said() {
    let (program, _) = program();
    let load = |weights: &Weights, options: &LoadOptions| {
        ReferenceBackend.load(&program, weights, options).err().expect("an error").to_string()
    };
    let chain = |error: BackendError| std::error::Error::source(&error).expect("a source").to_string();
    assert_eq!(load(&Weights(HashMap::new()), &options()), "weight `table` can't be read");
    let short = Weights(HashMap::from([("table", vec![0; 39])]));
    let error = ReferenceBackend.load(&program, &short, &options()).err().expect("an error");
    assert_eq!(chain(error), "[5, 2] in f32: expected 40 bytes, found 39");
    let message = load(&weights(), &LoadOptions { cache_dtype: DType::Q4_0, ..options() });
    assert_eq!(message, "the reference can't run this: a cache in q4_0; expected f32, f16 or q8_0");
    let message = load(&weights(), &LoadOptions { cache_dtype: DType::Q8_0, ..options() });
    assert_eq!(message, "the reference can't run this: cache `cache` of width 2 in q8_0");
    let message = load(&weights(), &LoadOptions { outputs_max: 5, ..options() });
    assert_eq!(message, "the reference can't run this: 5 outputs of 4 tokens");
    let message = load(&weights(), &LoadOptions { context_max: usize::MAX, ..options() });
    assert!(message.starts_with("out of memory on the reference"), "{message}");
}

#[test]
fn a_pass_can_be_cancelled() {
    let (program, output) = program();
    let mut loaded = ReferenceBackend.load(&program, &weights(), &options()).expect("a load");
    let cancel = AtomicBool::new(true);
    let segments = [Segment { sequence: 0, position: 0, tokens: 1 }];
    let batch = Batch { tokens: &[1], segments: &segments, outputs: &[0], cancel: Some(&cancel) };
    assert!(matches!(loaded.run(&batch), Err(BackendError::Cancelled)));
    cancel.store(false, std::sync::atomic::Ordering::Relaxed);
    loaded.run(&batch).expect("a run");
    let mut row = [0.0; 2];
    loaded.read(output, &mut row).unwrap();
    assert_eq!(row, [2.0, 20.0]);
}

/// Logits `[outputs, 2]` of a token from a table alone.
fn table_of_logits(table: &[f32]) -> (Box<dyn Loaded>, BufferId) {
    let mut builder = ProgramBuilder::new();
    let weight = builder.weight("table", DType::F32, table.len() / 2, 2);
    let (rows, logits) = (builder.scratch("rows", Rows::Tokens, 2), builder.scratch("logits", Rows::Outputs, 2));
    builder.push(Op::Embed { table: weight, scale: Scalar(1.0), output: rows });
    builder.push(Op::SelectOutputs { input: rows, output: logits });
    let weights = Weights(HashMap::from([("table", table.iter().flat_map(|value| value.to_le_bytes()).collect())]));
    let program = builder.build().expect("a good program");
    (ReferenceBackend.load(&program, &weights, &options()).expect("a load"), logits)
}

/// Tokens 0 and 1 follow each other, in a context of 8.
#[test]
fn decoding_ends_at_limits_and_stop_tokens() {
    let (mut loaded, logits) = table_of_logits(&[0.0, 1.0, 1.0, 0.0]);
    let greedy = Sampling::greedy();
    let one = |sequence, position, token, stop_tokens, tokens_max| Continuation {
        sequence,
        position,
        token,
        sampling: &greedy,
        occurred: &[],
        stop_tokens,
        tokens_max,
    };
    let mut decode = |continuations: &[Continuation<'_>]| loaded.decode(logits, continuations, None).expect("tokens");
    assert_eq!(decode(&[one(0, 2, 0, &[], 3)]), [[1, 0, 1]]);
    assert_eq!(decode(&[one(0, 5, 0, &[], usize::MAX)]), [[1, 0, 1]], "positions 5, 6 and 7");
    assert_eq!(decode(&[one(0, 7, 1, &[], 9)]), [[0]]);
    assert_eq!(decode(&[one(1, 0, 0, &[7, 0], 4)]), [[1, 0]]);
    assert_eq!(decode(&[one(1, 0, 0, &[], 4), one(0, 1, 1, &[1], 4)]), [[1, 0], [0, 1]]);
    assert_eq!(decode(&[one(0, 0, 0, &[], 4), one(1, 6, 1, &[], 4)]), [[1, 0], [0, 1]]);
}

#[test]
fn decoding_tells_where_logits_are_not_numbers_or_that_it_was_cancelled() {
    let (mut loaded, logits) = table_of_logits(&[0.0, 1.0, f32::NAN, f32::NEG_INFINITY]);
    let (greedy, cancel) = (Sampling::greedy(), AtomicBool::new(true));
    let one = |position, token| Continuation {
        sequence: 1,
        position,
        token,
        sampling: &greedy,
        occurred: &[],
        stop_tokens: &[],
        tokens_max: 4,
    };
    let result = loaded.decode(logits, &[one(3, 0)], Some(&cancel));
    assert!(matches!(result, Err(BackendError::Cancelled)), "{result:?}");
    // What was chosen before comes first.
    assert_eq!(loaded.decode(logits, &[one(3, 0)], None).expect("a token"), [[1]]);
    let result = loaded.decode(logits, &[one(4, 1)], None);
    assert!(matches!(result, Err(BackendError::Logits { sequence: 1, position: 4 })), "{result:?}");
}

/// The penalty counts what is chosen during the call.
#[test]
fn decoding_penalizes_what_it_has_chosen() {
    let (mut loaded, logits) = table_of_logits(&[4.0, 5.0, 4.0, 5.0]);
    let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
    let one = Continuation {
        sequence: 0,
        position: 0,
        token: 2,
        sampling: &sampling,
        occurred: &[2],
        stop_tokens: &[],
        tokens_max: 4,
    };
    let token = |token| Continuation { token, ..one };
    assert_eq!(loaded.decode(logits, &[token(0)], None).expect("tokens"), [[1, 0, 1, 1]]);
    let most = Sampling { temperature: 1.0, repetition_penalty: 1.0, top_k: 1, ..sampling };
    assert_eq!(loaded.decode(logits, &[Continuation { sampling: &most, ..token(0) }], None).unwrap(), [[1, 1, 1, 1]]);
}
