//! The Vulkan backend on the best device of this machine, or the one that `LAPIDARY_VULKAN_DEVICE` numbers. A device
//! that is a program is put through less, as it takes minutes to compile all kernels for it; `LAPIDARY_CONFORMANCE`
//! (`quick` or `full`) decides otherwise.

use backend_vulkan::{DeviceKind, VulkanBackend};
use conformance::{Effort, Subject, assert_cases};

/// Runs the cases of a prefix, or says why not.
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn check(prefix: &str) {
    let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
    match VulkanBackend::open(index) {
        Ok(backend) => {
            let effort = effort(backend.device().features.kind);
            assert_cases(prefix, &[Subject { name: "vulkan", backend: &backend, effort }]);
        }
        Err(error) => eprintln!("skipped: {error}"),
    }
}

fn effort(kind: DeviceKind) -> Effort {
    match std::env::var("LAPIDARY_CONFORMANCE").as_deref() {
        Ok("full") => Effort::Full,
        Ok("quick") => Effort::Quick,
        _ if kind == DeviceKind::Software => Effort::Quick,
        _ => Effort::Full,
    }
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

#[test]
fn decode_table() {
    check("decode/table");
}

#[test]
fn decode_attention() {
    check("decode/attention");
}

#[test]
fn decode_special() {
    check("decode/special");
}

#[test]
fn decode_wide() {
    check("decode/wide");
}

#[test]
fn decode_contract() {
    check("decode/contract");
}
