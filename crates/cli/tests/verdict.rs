//! The verdict of `evaluate`: a model keeps its own quality, a broken one doesn't.

mod built_in;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::{env, fs};

use built_in::gguf;
use checkpoint::Checkpoint;
use serde_json::Value;
use tensor::WeightBytes;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../LICENSE-APACHE");
const INSTRUCTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/instructions.jsonl");
const CHOICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/choices.jsonl");

/// A file that is gone at the end.
struct File(PathBuf);

impl File {
    fn new(name: &str, bytes: &[u8]) -> File {
        let path = env::temp_dir().join(format!("lapidary-verdict-{}-{name}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        File(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.args(arguments).stdin(Stdio::null()).output().expect("the program starts")
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The report and the exit code of a model beside an original.
fn judge(model: &str, original: &str, more: &[&str]) -> (Value, Option<i32>, String) {
    let arguments = ["evaluate", model, "--against", original, "--device", "cpu", "--json", "--require", "93"];
    let output = run(&[&arguments[..], more].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", message(&output)));
    (report, output.status.code(), message(&output))
}

/// The bytes of the built-in model, in which those of some tensors are changed.
fn with_tensors(is_meant: impl Fn(&str) -> bool, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let checkpoint = Checkpoint::open(gguf().as_ref()).unwrap();
    let mut file = fs::read(gguf()).unwrap();
    // Norms of different layers differ, so that their bytes are found once.
    let meant: Vec<String> = checkpoint.tensors().iter().map(|tensor| tensor.name.clone()).collect();
    for name in meant.iter().filter(|name| is_meant(name)) {
        let bytes = checkpoint.bytes(name).unwrap();
        let places: Vec<usize> = find(&file, bytes.bytes());
        let [place] = places[..] else { panic!("{name} is found {} times", places.len()) };
        change(&mut file[place..place + bytes.bytes().len()]);
    }
    file
}

fn find(file: &[u8], part: &[u8]) -> Vec<usize> {
    // Looking at the first bytes first makes it fast.
    let starts = file.windows(8).enumerate().filter(|(_, bytes)| *bytes == &part[..8]).map(|(place, _)| place);
    starts.filter(|place| file[*place..].starts_with(part)).collect()
}

/// The built-in model with another number under a key.
fn with_number(key: &str, from: f32, to: f32) -> Vec<u8> {
    let mut file = fs::read(gguf()).unwrap();
    // Length, key, the type of F32, value.
    let entry =
        [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &6u32.to_le_bytes(), &from.to_le_bytes()].concat();
    let [place] = find(&file, &entry)[..] else { panic!("{key} is not there") };
    let end = place + entry.len();
    file[end - 4..end].copy_from_slice(&to.to_le_bytes());
    file
}

#[test]
fn a_model_keeps_its_own_quality() {
    let scores = |report: &Value| -> Vec<String> {
        let scores = report["verdict"]["scores"].as_array().unwrap().iter();
        scores.map(|one| one["score"].as_str().unwrap().into()).collect()
    };
    let (report, code, message) = judge(gguf(), gguf(), &["--text", TEXT, "--limit", "1"]);
    assert_eq!(code, Some(0), "{message}");
    assert_eq!((&report["verdict"]["retained"], &report["verdict"]["passed"]), (&1.0.into(), &true.into()), "{report}");
    assert_eq!(scores(&report), ["perplexity of LICENSE-APACHE"]);
    let (report, code, message) = judge(gguf(), gguf(), &["--instructions", INSTRUCTIONS]);
    assert_eq!(code, Some(0), "{message}");
    assert_eq!(report["verdict"]["retained"], 1.0);
    assert_eq!(scores(&report), ["instructions answered rightly", "BLEU against expected answers"]);
    let (report, code, _) = judge(gguf(), gguf(), &["--choices", CHOICES, "--choice-prompt", "chat"]);
    assert_eq!((&report["verdict"]["worst"], code), (&"multiple choice above chance".into(), Some(0)), "{report}");
    assert_eq!((&report["choices"]["right"], &report["choices"]["chance"]), (&15.into(), &0.25.into()));
    // By a prompt that it was not trained for the model is no better than guesses.
    let (report, _, _) = judge(gguf(), gguf(), &["--choices", CHOICES, "--choice-prompt", "letters"]);
    assert_eq!((&report["verdict"]["retained"], &report["verdict"]["passed"]), (&Value::Null, &false.into()));
    assert!(report["verdict"]["not_counted"][0].as_str().unwrap().contains("no better than guesses"));
}

#[test]
fn broken_models_fail() {
    let add = |number: f32| {
        move |bytes: &mut [u8]| {
            for value in bytes.chunks_exact_mut(4) {
                let sum = f32::from_le_bytes(value.try_into().unwrap()) + number;
                value.copy_from_slice(&sum.to_le_bytes());
            }
        }
    };
    // The original is asked once.
    let (logits, answers) = (File::new("logits", b""), File::new("answers.jsonl", b""));
    let text = ["--text", TEXT, "--limit", "2"];
    let saved =
        run(&[&["evaluate", gguf(), "--device", "cpu", "--save-logits", logits.path(), "--force"], &text[..]].concat());
    assert!(saved.status.success(), "{}", message(&saved));
    let instructions = ["--instructions", INSTRUCTIONS];
    let answered =
        run(&[&["evaluate", gguf(), "--device", "cpu", "--answers", answers.path()], &instructions[..]].concat());
    assert!(answered.status.success(), "{}", message(&answered));
    let answers = [&instructions[..], &["--against-answers", answers.path()]].concat();
    let models: [(&str, Vec<u8>, &[&str]); 5] = [
        ("layer", with_tensors(|name| name.starts_with("blk.5."), |bytes| bytes.fill(0)), &text),
        ("norms", with_tensors(|name| name.contains("norm"), add(-1.0)), &text),
        ("norms-twice", with_tensors(|name| name.contains("norm"), add(1.0)), &text),
        ("rope", with_number("gemma3.rope.freq_base", 1e6, 1e4), &text),
        // The text's predictions need little more than the nearest tokens; answers need others.
        ("local-rope", with_number("gemma3.rope.freq_base_swa", 1e4, 1e6), &answers),
    ];
    for (name, bytes, measured) in models {
        let file = File::new(&format!("{name}.gguf"), &bytes);
        let (report, code, message) = judge(file.path(), logits.path(), measured);
        let verdict = &report["verdict"];
        assert_eq!((code, &verdict["passed"]), (Some(1), &false.into()), "{name}: {verdict}");
        assert!(message.contains("of the quality is retained") && message.contains("93 % is required"), "{message}");
    }
}

#[test]
fn a_requirement_needs_an_original() {
    let output = run(&["evaluate", gguf(), "--choices", CHOICES, "--require", "93"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(message(&output).contains("expected --against ORIGINAL"), "{}", message(&output));
    let output = run(&["evaluate", gguf(), "--choices", CHOICES, "--against", gguf(), "--require", "most"]);
    assert_eq!(output.status.code(), Some(2));
}
