//! Where models run, as people and scripts see it.

mod built_in;

use std::process::{Command, Output, Stdio};

use built_in::gguf;
use serde_json::Value;

const QUESTION: &str = "What is the opposite of late?";

fn lapidary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    lapidary(arguments).output().expect("the program starts")
}

/// On a machine where Vulkan finds no driver, whether there is a loader or not.
fn run_without_drivers(arguments: &[&str]) -> Output {
    let mut command = lapidary(arguments);
    for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        command.env(variable, "/nowhere/none.json");
    }
    command.env_remove("VK_ADD_DRIVER_FILES").output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[track_caller]
fn success(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&success(output)).expect("JSON")
}

/// The name of a Vulkan device that can be used, if there is one.
fn usable() -> Option<String> {
    let report = json(&run(&["inspect", "devices", "--json"]));
    let devices = report["devices"].as_array()?[1..].iter();
    let found = devices.filter(|device| device["problem"].is_null()).find_map(|device| device["name"].as_str());
    found.map(str::to_owned)
}

#[test]
fn inspect_lists_all_devices() {
    let report = json(&run(&["inspect", "devices", "--json"]));
    let devices = report["devices"].as_array().unwrap();
    assert_eq!(devices[0]["name"], "cpu");
    assert!(devices[0]["physical_cores"].as_u64().unwrap() > 0);
    let text = success(&run(&["inspect", "devices"]));
    for (number, device) in devices[1..].iter().enumerate() {
        let line = format!("vulkan:{number}: {} (", device["description"].as_str().unwrap());
        assert!(text.contains(&line), "{line}: {text}");
        assert_eq!(device["name"], format!("vulkan:{number}"));
        assert!(device["problem"].is_string() || device["subgroup"].as_u64().unwrap() >= 4, "{device}");
    }
    let problems = devices[1..].iter().filter(|device| device["problem"].is_string()).count();
    assert_eq!(text.matches("  can't be used  ").count(), problems, "{text}");
    assert!(devices.len() == 1 || report["vulkan_problem"].is_null());
}

#[test]
fn without_drivers_auto_is_the_cpu_without_a_word() {
    let output = run_without_drivers(&["run", "--temperature", "0", QUESTION]);
    assert_eq!(success(&output), "early\n");
    let message = text(&output.stderr);
    assert!(message.starts_with("prefill ") && message.lines().count() == 1, "{message}");
    let listed = success(&run_without_drivers(&["inspect", "devices"]));
    assert!(listed.starts_with("cpu: ") && listed.contains("\nvulkan: no "), "{listed}");
    let output = run_without_drivers(&["run", "--device", "vulkan", QUESTION]);
    let message = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()), "{message}");
    assert!(message.starts_with("error: ") && message.contains("hint: "), "{message}");
}

#[test]
fn devices_that_are_not_there_get_a_message() {
    for arguments in [&["run", "--device", "vulkan:99", QUESTION][..], &["bench", "--device", "vulkan:99"]] {
        let output = run(arguments);
        let message = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()), "{message}");
        assert!(message.starts_with("error: ") && message.contains("hint: "), "{message}");
    }
}

#[test]
fn a_vulkan_device_answers_and_is_timed() {
    let Some(name) = usable() else {
        #[expect(clippy::print_stderr, reason = "a test that can't run says so")]
        {
            eprintln!("skipped: no Vulkan device can be used");
        }
        return;
    };
    // Kernels of trellis weights take a device that is a program too long to compile.
    let report = json(&run(&["run", gguf(), "--device", &name, "--json", "--temperature", "0", QUESTION]));
    assert_eq!((&report["text"], &report["device"]), (&"early".into(), &name.clone().into()));
    let arguments =
        ["bench", gguf(), "--device", &name, "--prompt-tokens", "4", "--decode-tokens", "3", "--sequences", "2"];
    let report = json(&run(&[&arguments[..], &["--warmup", "0", "--repeat", "1", "--json"]].concat()));
    assert!(report["device"].is_string() && report["driver"].is_string() && report["precision"] == "fast", "{report}");
    let [prefill, decode] = [&report["results"][0], &report["results"][1]];
    assert_eq!((&prefill["sequences"], &decode["sequences"]), (&1.into(), &2.into()));
    assert!(prefill["threads"].is_null() && decode["latency"]["longest_gap_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(report["loads"][0]["first_token"]["seconds"].as_array().unwrap().len(), 1);
}

#[test]
fn traces_need_a_device_that_tells() {
    let path = std::env::temp_dir().join(format!("lapidary-no-trace-{}.json", std::process::id()));
    let file = path.to_str().unwrap();
    let output = run(&["bench", "--device", "cpu", "--prompt-tokens", "4", "--decode-tokens", "0", "--trace", file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("keeps no times"), "{}", text(&output.stderr));
    assert!(!path.exists());
}

#[test]
fn a_shape_can_be_cut_to_its_first_layers() {
    let parameters = |layers: &str| {
        let arguments = ["bench", "--shape", "270m", "--layers", layers, "--device", "cpu", "--json", "--repeat", "1"];
        let rest = ["--warmup", "0", "--prompt-tokens", "0", "--decode-tokens", "1"];
        json(&run(&[&arguments[..], &rest].concat()))["parameters"].as_u64().unwrap()
    };
    let [one, two, three] = ["1", "2", "3"].map(parameters);
    assert!(one < two && two - one == three - two, "{one} {two} {three}");
}
