//! The program as people and scripts see it: output, messages, exit codes.

mod built_in;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn lapidary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    lapidary().args(arguments).output().expect("the program starts")
}

fn run_with_input(arguments: &[&str], input: &str) -> Output {
    let mut command = lapidary();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[track_caller]
fn success(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output)
}

/// Exit code, nothing on stdout, and what the message has.
#[track_caller]
fn failure(arguments: &[&str], code: i32, parts: &[&str]) {
    let output = run(arguments);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    assert_eq!(stdout(&output), "", "{arguments:?}");
    assert!(message.starts_with("error: "), "{arguments:?}: {message}");
    for part in parts {
        assert!(message.contains(part), "{arguments:?}: expected {part:?} in {message}");
    }
}

fn golden(name: &str) -> String {
    format!("{}/../../goldens/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A folder that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lapidary-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_string_lossy().into_owned()
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn run_answers_with_the_built_in_model() {
    let output = run(&["run", "--temperature", "0", "What is the opposite of late?"]);
    assert_eq!(success(&output), "early\n");
    let message = stderr(&output);
    assert!(message.contains("tokens/s · decode") && message.contains("· memory "), "{message}");

    let from_pipe = run_with_input(&["run", "--temperature", "0"], "What is the opposite of late?\n");
    assert_eq!(success(&from_pipe), "early\n");
}

#[test]
fn run_reports_as_json() {
    let output = run(&["run", "--temperature", "0", "--json", "--max-tokens", "1", "What is the opposite of late?"]);
    let report: serde_json::Value = serde_json::from_str(&success(&output)).unwrap();
    assert_eq!(report["finish_reason"], "max_tokens");
    assert_eq!(report["tokens"].as_array().unwrap().len(), 1);
    assert!(report["prefill"]["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(report["decode"]["tokens"], 0);
}

#[test]
fn a_seed_gives_the_same_text_and_stop_strings_cut_it() {
    let story = |more: &[&str]| {
        let arguments = ["run", "--seed", "5", "--max-tokens", "30", "Tell me a story about a ship."];
        success(&run(&[&arguments[..], more].concat()))
    };
    let text = story(&[]);
    assert_eq!(story(&[]), text);
    assert_ne!(story(&["--temperature", "0"]), "");
    let stop: String = text.chars().skip(10).take(4).collect();
    let cut = story(&["--stop", &stop]);
    assert_eq!(cut.trim_end_matches('\n'), text.split(&stop).next().unwrap().trim_end_matches('\n'));
}

#[test]
fn raw_prompts_and_system_prompts_change_the_answer() {
    let answer = |more: &[&str]| {
        let arguments = ["run", "--json", "--temperature", "0", "--max-tokens", "4", "The ship"];
        let text = success(&run(&[&arguments[..], more].concat()));
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["prompt_tokens"].as_u64().unwrap()
    };
    let plain = answer(&[]);
    assert!(answer(&["--raw"]) < plain && answer(&["--system", "Be brief."]) > plain);
}

#[test]
fn special_tokens_in_prompts_are_text_unless_asked_for() {
    let ids = |more: &[&str]| {
        let text = success(&run(&[&["tokenize", "--json", "<end_of_turn>"], more].concat()));
        serde_json::from_str::<Vec<u32>>(&text).unwrap()
    };
    assert!(ids(&[]).len() > 1);
    assert_eq!(ids(&["--special"]).len(), 1);
    assert_eq!(ids(&["--special", "--bos"]).len(), 2);
}

#[test]
fn tokenize_reads_files_and_pipes() {
    let folder = Folder::new("tokenize");
    let file = folder.file("text.txt", "A ship.\n".as_bytes());
    let direct = success(&run(&["tokenize", "A ship.\n"]));
    assert_eq!(success(&run(&["tokenize", "--file", &file])), direct);
    assert_eq!(success(&run_with_input(&["tokenize", "--file", "-"], "A ship.\n")), direct);
    assert!(direct.trim_end().split(' ').all(|id| id.parse::<u32>().is_ok()), "{direct}");
    let wrong = folder.file("bytes", &[0xff, 0xfe]);
    failure(&["tokenize", "--file", &wrong], 1, &["no text in UTF-8"]);
}

#[test]
fn chat_works_on_pipes() {
    let folder = Folder::new("chat");
    let saved = folder.path("saved.json");
    let script =
        format!("What is the opposite\\\nof late?\n/save {saved}\n/nonsense\n/clear\n/load {saved}\n/bye\nnot read\n");
    let output = run_with_input(&["chat", "--temperature", "0", "--max-tokens", "16"], &script);
    let answer = success(&output);
    let document: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    assert_eq!(document["messages"][0]["content"], "What is the opposite\nof late?");
    assert_eq!(document["messages"][1]["content"], answer.trim_end_matches('\n'));
    let message = stderr(&output);
    assert!(message.contains("no command /nonsense") && message.contains("loaded 2 turns"), "{message}");

    let two = run_with_input(&["chat", "--temperature", "0", "--max-tokens", "8"], "Hello.\nHello again.\n");
    assert!(stderr(&two).contains("from the cache"), "{}", stderr(&two));
}

#[test]
fn logits_are_written_as_safetensors() {
    let folder = Folder::new("logits");
    let file = folder.path("logits.safetensors");
    success(&run(&["logits", &golden("text-1b-shape"), "--token-ids", "2,17,5", "--output", &file, "--hidden"]));
    let bytes = std::fs::read(&file).unwrap();
    let tensors = checkpoint::safetensors::parse("logits", &bytes).unwrap();
    let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names.len(), 1 + 9);
    let find = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap();
    assert_eq!((find("logits").shape.clone(), find("hidden08").shape.clone()), (vec![3, 512], vec![3, 128]));
    let numbers = bytes[find("logits").range.clone()].as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    assert!(numbers.clone().all(f32::is_finite) && numbers.clone().any(|number| number != 0.0));
    failure(&["logits", &golden("text-1b-shape"), "--token-ids", "600", "--output", &file], 1, &["token 600", "512"]);
    failure(&["logits", "--token-ids", "1,x", "--output", &file], 2, &["invalid value 'x'"]);
    assert_eq!(folder.files(), ["logits.safetensors"]);
}

#[test]
fn inspect_and_completions_report() {
    let text = success(&run(&["inspect", &golden("text-27b-shape"), "--tensors"]));
    assert!(text.contains("Gemma 3") && text.contains("model.layers.0.mlp.up_proj.weight"), "{text}");
    let report: serde_json::Value = serde_json::from_str(&success(&run(&["inspect", "--json"]))).unwrap();
    assert_eq!(report["config"]["hidden"], 512);
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(success(&run(&["completions", shell])).contains("lapidary"));
    }
}

#[test]
fn quantize_writes_files_that_run() {
    let folder = Folder::new("quantize");
    let file = folder.path("model.gguf");
    let source = folder.file("source.gguf", &std::fs::read(built_in::gguf()).unwrap());
    success(&run(&["quantize", &source, "--format", "q8_0", "--output", &file]));
    assert_eq!(success(&run(&["run", &file, "--temperature", "0", "What is the opposite of late?"])), "early\n");
    failure(&["quantize", &source, "--format", "q8_0", "--output", &file], 1, &["exists already", "--force"]);
    failure(&["quantize", &source, "--format", "q6_k", "--output", &file], 2, &["q8_0, q4_0, f16 or bf16"]);
    let missing = folder.path("no/where.gguf");
    failure(&["quantize", &source, "--format", "q8_0", "--output", &missing], 1, &["does not exist"]);
    assert_eq!(folder.files(), ["model.gguf", "source.gguf"]);
}

#[test]
fn evaluate_counts_and_measures() {
    let folder = Folder::new("evaluate");
    let lines = "{\"id\": \"1\", \"family\": \"opposite\", \"prompt\": \"What is the opposite of late?\", \
                 \"expected\": \"early\"}\n{\"id\": \"2\", \"family\": \"none\", \"prompt\": \"Hello.\", \
                 \"expected\": \"not this\"}\n";
    let instructions = folder.file("instructions.jsonl", lines.as_bytes());
    let text = folder.file("text.txt", "The ship went down the river to the sea. ".repeat(80).as_bytes());
    let output = run(&["evaluate", "--text", &text, "--instructions", &instructions, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&success(&output)).unwrap();
    assert_eq!(report["instructions"]["passed"], 1);
    assert_eq!(report["instructions"]["families"]["none"], serde_json::json!([0, 1]));
    let perplexity = report["text"]["text.txt"]["perplexity"].as_f64().unwrap();
    // A text that repeats itself is easy.
    assert!(perplexity > 1.0 && perplexity < 20.0, "{perplexity}");
    let short = folder.file("short.txt", b"Hello.");
    failure(&["evaluate", "--text", &short], 1, &["short.txt", "at least 511"]);
    failure(&["evaluate"], 2, &["nothing to measure"]);
    let broken = folder.file("broken.jsonl", b"{\"id\": 1}\n");
    let parts = ["broken.jsonl`", "line 1: expected the field `prompt`, found `id`"];
    failure(&["evaluate", "--instructions", &broken], 1, &parts);
}

#[test]
fn bench_compares_what_can_be_compared() {
    let folder = Folder::new("compare");
    let bench = |name: &str, more: &[&str]| {
        let arguments = ["bench", "--device", "cpu", "--threads", "1", "--prompt-tokens", "0", "--decode-tokens", "4"];
        let report = success(&run(&[&arguments[..], &["--repeat", "2", "--json"], more].concat()));
        folder.file(name, report.as_bytes())
    };
    let (before, after) = (bench("before.json", &[]), bench("after.json", &[]));
    let text = success(&run(&["bench", "compare", &before, &after]));
    assert!(text.starts_with("decode      4 at     0 · 1 threads · ") && text.contains("tokens/s, "), "{text}");
    let report: serde_json::Value =
        serde_json::from_str(&success(&run(&["bench", "compare", &before, &before, "--json"]))).unwrap();
    assert_eq!((&report["cases"][0]["ratio"], &report["cases"][0]["within_spread"]), (&1.0.into(), &true.into()));
    let other = bench("other.json", &["--cache-type", "f32"]);
    let parts = ["have different settings: cache_type is \"f16\" and \"f32\"", "hint: measure again"];
    failure(&["bench", "compare", &before, &other], 1, &parts);
    failure(&["bench", "compare", &before, &folder.file("x.json", b"{}")], 1, &["x.json", "expected what"]);
    failure(&["bench", "compare", &before], 2, &["AFTER"]);
}

#[test]
fn bench_times_random_models() {
    let arguments =
        ["bench", "--prompt-tokens", "8", "--decode-tokens", "4", "--depth", "0,16", "--repeat", "2", "--threads", "1"];
    let report: serde_json::Value =
        serde_json::from_str(&success(&run(&[&arguments[..], &["--json"]].concat()))).unwrap();
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    for result in results {
        assert!(result["tokens_per_second"]["median"].as_f64().unwrap() > 0.0);
        assert!(result["tokens_hash"].is_string(), "the same tokens in each run: {result}");
    }
    failure(&["bench", "--shape", "7b"], 1, &["`7b`", "270m"]);
    failure(&["bench", "--decode-tokens", "0", "--prompt-tokens", "0"], 2, &["nothing to time"]);
}

#[test]
fn bad_models_get_a_message() {
    let folder = Folder::new("models");
    let model = std::fs::read(built_in::gguf()).unwrap();
    let cut = folder.file("cut.gguf", &model[..model.len() / 2]);
    let header = folder.file("header.gguf", &model[..100]);
    let empty = folder.file("empty.gguf", b"");
    let text = folder.file("text.gguf", b"This is a text and not a model.");
    let mut lengths = model.clone();
    lengths[8..16].fill(0xff);
    let lengths = folder.file("lengths.gguf", &lengths);
    let config = "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\"}";
    let llama = folder.path("llama");
    std::fs::create_dir_all(&llama).unwrap();
    std::fs::write(Path::new(&llama).join("config.json"), config).unwrap();
    let weights = std::fs::read(Path::new(&golden("text-1b-shape")).join("model.safetensors")).unwrap();
    std::fs::write(Path::new(&llama).join("model.safetensors"), weights).unwrap();
    let nothing = folder.path("nothing");
    std::fs::create_dir_all(&nothing).unwrap();
    let cases: [(&str, &[&str]); 10] = [
        (&folder.path("missing.gguf"), &["does not exist", "missing.gguf"]),
        (&cut, &["cut off", "hint: download it again"]),
        (&header, &["cut off"]),
        (&empty, &["is empty"]),
        (&text, &["not a GGUF file"]),
        (&lengths, &["lengths.gguf"]),
        (&llama, &["lama", "Gemma 3"]),
        (&nothing, &["not a checkpoint"]),
        ("nobody/no-such-model", &["not in the local Hugging Face cache", "hf download", "licence"]),
        (&golden("text-1b-shape"), &["tokenizer.json"]),
    ];
    for (model, parts) in cases {
        failure(&["run", model, "Hello"], 1, parts);
    }
}

#[test]
fn wrong_usage_gets_a_message_and_exit_code_2() {
    let cases: [(&[&str], &[&str]); 9] = [
        (&["run", "--no-such-flag", "Hello"], &["--no-such-flag"]),
        (&["fly"], &["fly"]),
        (&["run", "--temperature", "hot", "Hello"], &["hot"]),
        (&["run", "--device", "vulkan:x", "Hello"], &["expected auto, cpu, vulkan or vulkan:N"]),
        (&["run", "--device", "npu", "Hello"], &["not supported yet"]),
        (&["run", "--cache-type", "q4_0", "Hello"], &["f16, q8_0 or f32"]),
        (&["tokenize"], &["TEXT"]),
        (&["bench", "--threads", "0"], &["1 to 1024"]),
        (&["completions", "no-shell"], &["no-shell"]),
    ];
    for (arguments, parts) in cases {
        failure(arguments, 2, parts);
    }
}

#[test]
fn requests_that_make_no_sense_get_a_message() {
    let long = "ship ".repeat(200);
    failure(&["run", "--context", "64", &long], 1, &["the prompt has", "the context holds 64", "hint: "]);
    failure(&["run", "--context", "99999999", "Hello"], 1, &["context", "the model's limit"]);
    failure(&["run", "--temperature=-1", "Hello"], 1, &["temperature"]);
    failure(&["run", "--top-p", "2", "Hello"], 1, &["top-p"]);
    failure(&["run", "--threads", "0", "Hello"], 1, &["threads"]);
    failure(&["run", "  "], 1, &["the prompt is empty"]);
    failure(&["run", "Tell", "me", "a story"], 1, &["`Tell` does not exist", "quotes"]);
    failure(&["run"], 1, &["the prompt is empty"]);
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut command = lapidary();
    command.args(["run", "--seed", "1", "--max-tokens", "200", "Tell me a story about a ship."]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let mut first = [0];
    pipe.read_exact(&mut first).unwrap();
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert!(!message.contains("panicked") && !message.contains("error"), "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told() {
    let text = golden("text-1b-shape");
    failure(&["logits", &text, "--token-ids", "2,3", "--output", "/dev/full"], 1, &["no space left"]);
    let output = lapidary()
        .args(["run", "--temperature", "0", "Hello."])
        .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: "), "{}", stderr(&output));
}
