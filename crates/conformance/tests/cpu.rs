//! The CPU backend, with every instruction set that this machine has.

use backend_cpu::CpuBackend;
use conformance::{Effort, Subject, assert_cases};

/// Runs the cases of a prefix on all instruction sets.
fn check(prefix: &str) {
    let backends: Vec<(String, CpuBackend)> = CpuBackend::available_levels()
        .into_iter()
        .map(|level| (format!("cpu ({level})"), CpuBackend::with_level(level).expect("an available level")))
        .collect();
    let subjects: Vec<Subject<'_>> =
        backends.iter().map(|(name, backend)| Subject { name, backend, effort: Effort::Full }).collect();
    assert_cases(prefix, &subjects);
}

#[test]
fn embed() {
    check("embed");
}

#[test]
fn rms_norm() {
    check("rms_norm");
}

#[test]
fn linear_in_floats() {
    for prefix in ["linear/f32", "linear/f16", "linear/bf16"] {
        check(prefix);
    }
}

#[test]
fn linear_in_blocks_of_32() {
    for prefix in ["linear/q4_0", "linear/q4_1", "linear/q5_0", "linear/q5_1", "linear/q8_0"] {
        check(prefix);
    }
}

#[test]
fn linear_in_blocks_of_256() {
    for prefix in ["linear/q2_k", "linear/q3_k", "linear/q4_k", "linear/q5_k", "linear/q6_k"] {
        check(prefix);
    }
}

#[test]
fn linear_of_many_rows() {
    check("linear/tall");
}

#[test]
fn linear_of_several_formats() {
    check("linear/mixed");
}

#[test]
fn trellis_linear() {
    check("trellis/linear");
}

#[test]
fn trellis_large() {
    check("trellis/large");
}

#[test]
fn trellis_embed() {
    check("trellis/embed");
}

#[test]
fn trellis_shared() {
    check("trellis/shared");
}

#[test]
fn trellis_feed_forward() {
    check("trellis/feed_forward");
}

#[test]
fn trellis_model() {
    check("trellis/model");
}

#[test]
fn rope() {
    check("rope");
}

#[test]
fn cache_write() {
    check("cache_write");
}

#[test]
fn attention() {
    check("attention");
}

#[test]
fn gelu_mul() {
    check("gelu_mul");
}

#[test]
fn add() {
    check("add");
}

#[test]
fn select_outputs() {
    check("select_outputs");
}

#[test]
fn layer() {
    check("layer");
}

#[test]
fn single_tokens_attention() {
    check("single_tokens/attention");
}

#[test]
fn single_tokens_layers() {
    check("single_tokens/layers");
}

#[test]
fn contract() {
    check("contract");
}
