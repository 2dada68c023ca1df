//! `evaluate` beside an original and with saved logits, as scripts see it: the built-in model and formats made of it.

mod built_in;
mod common;

use std::process::{Command, Output, Stdio};
use std::{env, fs};

use built_in::gguf;
use checkpoint::Checkpoint;
use common::Folder;
use serde_json::Value;
use tensor::WeightBytes;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../LICENSE-APACHE");

/// The built-in model, its embedding in a format of fewer bits.
fn smaller(folder: &Folder) -> String {
    let path = folder.path("smaller.gguf");
    let output =
        run(&["quantize", gguf(), "--format", "q4_0", "--embedding-format", "q4_0", "--output", &path, "--json"]);
    assert!(output.status.success(), "{}", message(&output));
    path
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.args(arguments).stdin(Stdio::null()).output().expect("the program starts")
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `evaluate` says of a model and the first windows of the text.
fn evaluate(model: &str, more: &[&str]) -> Output {
    let arguments = ["evaluate", model, "--text", TEXT, "--device", "cpu", "--json"];
    let limit: &[&str] = if more.contains(&"--limit") { &[] } else { &["--limit", "2"] };
    run(&[&arguments[..], limit, more].concat())
}

#[track_caller]
fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", message(output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The text's part of a report.
#[track_caller]
fn text(output: &Output) -> Value {
    let mut text = report(output)["text"]["LICENSE-APACHE"].clone();
    text.as_object_mut().expect("an object").remove("tokens_per_second");
    text
}

#[track_caller]
fn failure(output: &Output, code: i32, parts: &[&str]) {
    let message = message(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in {message}");
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

#[test]
fn a_model_is_its_own_original() {
    let found = evaluate(gguf(), &["--against", gguf()]);
    let whole = report(&found);
    assert_eq!((&whole["against"], &whole["protocol"]), (&"tiny-q4_0.gguf".into(), &"llama.cpp".into()));
    let found = text(&found);
    assert_eq!((&found["windows"], &found["predictions"]), (&2.into(), &510.into()));
    assert_eq!((number(&found["kl"]["max"]), number(&found["same_top"])), (0.0, 1.0));
    assert_eq!(found["perplexity"], found["original_perplexity"]);
    let alone = text(&evaluate(gguf(), &["--protocol", "llama.cpp"]));
    assert_eq!(alone["perplexity"], found["perplexity"]);
    let pieces = text(&evaluate(gguf(), &[]));
    assert_eq!(pieces["predictions"], 1022);
}

#[test]
fn saved_logits_stand_for_the_original() {
    let folder = Folder::new("saved");
    let (smaller, top, full) = (smaller(&folder), folder.path("top"), folder.path("full"));
    let beside = text(&evaluate(&smaller, &["--against", gguf()]));
    let kl = number(&beside["kl"]["mean"]);
    assert!(kl > 1e-4 && number(&beside["same_top"]) < 1.0 && beside["kl"]["tail"].is_null(), "{beside}");

    let saved = report(&evaluate(gguf(), &["--save-logits", &full, "--full"]));
    assert_eq!((&saved["saved"]["predictions"], &saved["saved"]["full"]), (&510.into(), &true.into()));
    assert_eq!(text(&evaluate(&smaller, &["--against", &full])), beside);

    let saved = report(&evaluate(gguf(), &["--save-logits", &top]));
    assert!(number(&saved["saved"]["bytes"]) < 510.0 * 2000.0 + 1000.0, "{saved}");
    let found = text(&evaluate(&smaller, &["--against", &top]));
    let tail = &found["kl"]["tail"];
    assert!(number(&tail["mean_min"]) <= kl && kl <= number(&tail["mean_max"]), "{found} {kl}");
    assert!((number(&found["kl"]["mean"]) - kl).abs() < 5.0 * number(&tail["inside_error"]), "{found} {kl}");
    assert!((number(&found["perplexity"]) / number(&beside["perplexity"]) - 1.0).abs() < 1e-9);
    assert!((number(&found["original_perplexity"]) / number(&beside["original_perplexity"]) - 1.0).abs() < 1e-5);
    assert_eq!(found["same_top"], beside["same_top"]);
    // Less of the text is a part of it.
    assert_eq!(text(&evaluate(&smaller, &["--limit", "1", "--against", &top]))["predictions"], 255);
}

#[test]
fn an_interrupted_file_is_gone_on_with() {
    let folder = Folder::new("resume");
    let (path, partial) = (folder.path("logits"), folder.path("logits.partial"));
    report(&evaluate(gguf(), &["--save-logits", &path]));
    let whole = fs::read(&path).unwrap();
    assert!(fs::metadata(&partial).is_err());
    failure(&evaluate(gguf(), &["--save-logits", &path]), 1, &["exists already", "--force"]);
    // In the second window; in the first; in the header.
    for bytes in [whole.len() - 100_000, whole.len() - 600_000, 50, 0] {
        fs::write(&partial, &whole[..bytes]).unwrap();
        fs::remove_file(&path).unwrap();
        let output = evaluate(gguf(), &["--save-logits", &path]);
        report(&output);
        let expected = bytes == whole.len() - 100_000;
        assert_eq!(message(&output).contains("going on after 255 of 510"), expected, "{}", message(&output));
        assert!(fs::read(&path).unwrap() == whole && fs::metadata(&partial).is_err());
    }
    // Those of another model are not gone on with.
    fs::write(&partial, &whole[..whole.len() - 100_000]).unwrap();
    failure(&evaluate(&smaller(&folder), &["--save-logits", &path, "--force"]), 1, &["begun for another model"]);
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn saved_logits_that_do_not_fit_are_refused() {
    let folder = Folder::new("refused");
    let path = folder.path("logits");
    report(&evaluate(gguf(), &["--save-logits", &path]));
    let whole = fs::read(&path).unwrap();
    let against = |name: &str, bytes: &[u8], more: &[&str]| {
        let path = folder.path(name);
        fs::write(&path, bytes).unwrap();
        evaluate(gguf(), &[&["--against", &path], more].concat())
    };
    let changed = |from: &str, to: &str| {
        let place = whole.windows(from.len()).position(|bytes| bytes == from.as_bytes()).expect("it is there");
        [&whole[..place], to.as_bytes(), &whole[place + from.len()..]].concat()
    };
    failure(&against("cut", &whole[..whole.len() - 1], &[]), 1, &["cut off or damaged", "`"]);
    failure(&against("pieces", &whole, &["--protocol", "pieces"]), 1, &["protocol `llama.cpp`"]);
    failure(&against("model", &changed("\"layers\":12", "\"layers\":13"), &[]), 1, &["another model", "13 layers"]);
    let mut tokenizer = whole.clone();
    let key = b"\"tokenizer\":";
    let digit = whole.windows(key.len()).position(|bytes| bytes == key).expect("it is there") + key.len();
    tokenizer[digit] = if whole[digit] == b'1' { b'2' } else { b'1' };
    failure(&against("tokenizer", &tokenizer, &[]), 1, &["another tokenizer"]);
    let other = folder.path("other.txt");
    fs::write(&other, fs::read_to_string(TEXT).unwrap().replace("License", "Lizenz")).unwrap();
    let arguments = ["evaluate", gguf(), "--text", &other, "--device", "cpu", "--limit", "2", "--against", &path];
    failure(&run(&arguments), 1, &["other texts", "`LICENSE-APACHE` (510 predictions)"]);
    let mut damaged = whole.clone();
    let end = damaged.len();
    damaged[end - 4..].fill(0xff);
    failure(&against("damaged", &damaged, &[]), 1, &["the record of prediction 509 is damaged"]);
    failure(&evaluate(gguf(), &["--against", &folder.path("nothing")]), 1, &["does not exist"]);
    failure(&evaluate(gguf(), &["--against", &path, "--save-logits", &path]), 2, &["cannot be used with"]);
}

#[test]
fn short_texts_are_refused() {
    let folder = Folder::new("short");
    let path = folder.path("short.txt");
    fs::write(&path, "A ship.").unwrap();
    let output = run(&["evaluate", gguf(), "--text", &path, "--device", "cpu", "--against", gguf()]);
    failure(&output, 1, &["`short.txt`", "expected at least 511: one window"]);
}

#[test]
fn values_that_are_not_numbers_are_traced_to_their_layer() {
    let folder = Folder::new("nan");
    let checkpoint = Checkpoint::open(gguf().as_ref()).unwrap();
    let norm = checkpoint.bytes("blk.5.ffn_norm.weight").unwrap();
    let mut file = fs::read(gguf()).unwrap();
    let place = file.windows(norm.bytes().len()).position(|bytes| bytes == norm.bytes()).expect("it is there");
    file[place + 40..place + 44].copy_from_slice(&f32::NAN.to_le_bytes());
    let broken = folder.path("broken.gguf");
    fs::write(&broken, file).unwrap();
    // Rounding to 8 bits would make numbers of them.
    let exact = ["--precision", "f32", "--limit", "1", "--against"];
    let output = evaluate(&broken, &[&exact[..], &[gguf()]].concat());
    failure(&output, 1, &["layer 5", "position 0", "the logits of the model are not numbers", "after 256 tokens"]);
    let output = evaluate(gguf(), &[&exact[..], &[&broken]].concat());
    failure(&output, 1, &["layer 5", "the logits of the original are not numbers"]);
}

/// A line of instructions.
fn instruction(prompt: &str, more: &str) -> String {
    format!("{{\"prompt\": \"{prompt}\", {more}}}\n")
}

#[test]
fn answers_are_checked_and_compared() {
    let folder = Folder::new("answers");
    let (file, kept) = (folder.path("instructions.jsonl"), folder.path("answers.jsonl"));
    let lines = instruction("What is the opposite of late?", "\"expected\": \"early\", \"id\": \"late\"")
        + &instruction("What is 46 minus 16?", "\"check\": \"number\", \"expected\": 30")
        + &instruction("What is the capital of China?", "\"check\": \"contains\", \"expected\": \"eijin\"")
        + &instruction("Count from 12 to 19.", "\"check\": \"regex\", \"expected\": \"^12, .*19$\", \"max_tokens\": 3")
        + &instruction(
            "Say hello to Rose.",
            "\"instruction_id_list\": [\"punctuation:no_comma\", \"keywords:existence\"], \
            \"kwargs\": [{}, {\"keywords\": [\"rose\"]}]",
        );
    fs::write(&file, lines).unwrap();
    let arguments = ["evaluate", gguf(), "--device", "cpu", "--json", "--instructions", &file];
    let found = report(&run(&[&arguments[..], &["--answers", &kept, "--against", gguf()]].concat()));
    let found = &found["instructions"];
    assert_eq!((&found["passed"], &found["total"]), (&3.into(), &5.into()), "{found}");
    assert_eq!(found["constraints"], serde_json::json!({ "kept": 1, "total": 2 }));
    assert_eq!(found["same_answers"], 5);
    assert!((number(&found["bleu_of_original_answers"]) - 100.0).abs() < 1e-9, "{found}");
    // Three tokens are not enough to count.
    assert!((number(&found["coherence"]["not_stopped"]) - 0.2).abs() < 1e-9, "{found}");
    for key in ["passed", "coherence", "bleu_of_expected_answers"] {
        assert_eq!(found["original"][key], found[key], "{key}");
    }
    let answers = fs::read_to_string(&kept).unwrap();
    assert!(
        answers.starts_with("{\"id\":\"late\",\"family\":\"exact\",\"answer\":\"early\",\"passed\":true"),
        "{answers}"
    );

    let arguments = [&arguments[..], &["--limit", "2", "--against-answers", &kept]].concat();
    let again = report(&run(&arguments));
    assert_eq!(
        (&again["instructions"]["same_answers"], &again["instructions"]["original"]["passed"]),
        (&2.into(), &2.into())
    );
    fs::write(&kept, "{\"id\": \"late\", \"answer\": \"dead\"}\n").unwrap();
    failure(&run(&arguments), 1, &["answers.jsonl", "no answer to the instruction `line-2`"]);
    fs::write(&file, "{\"prompt\": \"a\", \"expected\": \"b\"}\n\n{\"prompt\": \"a\", \"expected\": 3}\n").unwrap();
    let parts = ["instructions.jsonl`", "line 3: expected `expected` to be a string, found the number `3`"];
    failure(&run(&arguments), 1, &parts);
}
