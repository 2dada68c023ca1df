//! A GPU predicts and answers as the processor does: a GGUF file of the built-in model in f32 on both. The kernels of
//! trellis weights take devices that are programs too long to compile.

mod built_in;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use built_in::gguf;
use serde_json::Value;

/// Largest difference of the perplexities, relative.
const TOLERANCE: f64 = 0.002;

/// Bytes of the text: enough for one piece, because devices that are programs take their time.
const TEXT: std::ops::Range<usize> = 20_000..22_600;

/// Says why a test can't run.
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

fn lapidary(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    let output = command.args(arguments).arg("--json").stdin(Stdio::null()).output().expect("the program starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {message}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Whether `vulkan` is a device that can be used.
fn vulkan() -> bool {
    let report = lapidary(&["inspect", "devices"]);
    let usable = report["devices"].as_array().expect("a list")[1..].iter().any(|device| device["problem"].is_null());
    if !usable {
        skipped("no Vulkan device can be used");
    }
    usable
}

/// A file of the reference data beside the repository.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/eval")).join(name);
    let found = path.exists();
    if !found {
        skipped(&format!("{} is not there", path.display()));
    }
    found.then_some(path)
}

/// A file's path that no other test of this or another process uses.
fn temporary(name: &str) -> PathBuf {
    env::temp_dir().join(format!("lapidary-quality-{}-{name}", std::process::id()))
}

fn evaluate(device: &str, arguments: &[&str]) -> Value {
    lapidary(&[&["evaluate", gguf(), "--device", device, "--precision", "f32"], arguments].concat())
}

#[test]
fn perplexity_is_that_of_the_processor() {
    let (Some(book), true) = (shared("the-time-machine.txt"), vulkan()) else { return };
    let text = fs::read(book).expect("a text");
    let file = temporary("text.txt");
    fs::write(&file, &text[TEXT]).expect("a temporary file");
    let perplexity = |device: &str| {
        let report = evaluate(device, &["--text", file.to_str().expect("UTF-8")]);
        let texts = report["text"].as_object().expect("texts");
        let text = texts.values().next().expect("one text");
        assert_eq!(text["windows"], 1, "{report}");
        text["perplexity"].as_f64().expect("a number")
    };
    let (expected, found) = (perplexity("cpu"), perplexity("vulkan"));
    fs::remove_file(&file).expect("it is there");
    assert!((found / expected - 1.0).abs() <= TOLERANCE, "the processor {expected}, the device {found}");
}

#[test]
fn greedy_answers_are_those_of_the_processor() {
    let (Some(instructions), true) = (shared("instructions.jsonl"), vulkan()) else { return };
    let answers = |device: &str| {
        let file = temporary(device);
        let instructions = ["--instructions", instructions.to_str().expect("UTF-8"), "--limit", "3"];
        let report = evaluate(device, &[&instructions[..], &["--answers", file.to_str().expect("UTF-8")]].concat());
        assert_eq!(report["instructions"]["total"], 3, "{report}");
        let answers = fs::read_to_string(&file).expect("answers");
        fs::remove_file(&file).expect("it is there");
        answers
    };
    assert_eq!(answers("vulkan"), answers("cpu"));
}
