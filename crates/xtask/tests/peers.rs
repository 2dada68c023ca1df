//! `cargo xtask bench peers` with programs that only print what the real ones would.

#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::{env, fs};

use xtask::peers;

/// A repository with two documents and two programs, gone at the end.
struct Repository(PathBuf);

const DOCUMENT: &str =
    "# Title\n\n<!-- cargo xtask bench peers: begin -->\nold\n<!-- cargo xtask bench peers: end -->\n\nrest\n";

/// Notes that it ran and with what, and prints a file.
const SCRIPT: &str = "#!/bin/sh\necho \"$(basename \"$0\") $*\" >> \"$(dirname \"$0\")/calls\"\ncat \"$0.out\"\n";

const LLAMA: &str = r#"[
  { "build_commit": "abc", "build_number": 9, "backends": "CPU", "n_prompt": 8, "n_gen": 0, "n_depth": 0,
    "samples_ts": [ 40.0, 50.0 ] }
]"#;
const LAPIDARY: &str =
    r#"{ "device": "a chip", "results": [{ "test": "prefill", "tokens": 8, "depth": 0, "seconds": [ 0.1, 0.1 ] }] }"#;

impl Repository {
    fn new(name: &str) -> Repository {
        let root = env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
        fs::create_dir_all(root.join("docs")).unwrap();
        let repository = Repository(root);
        repository.write("docs/benchmarks.md", DOCUMENT);
        repository.write("docs/quality.md", DOCUMENT);
        repository.program("lapidary", LAPIDARY);
        repository.program("llama-bench", LLAMA);
        repository
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn program(&self, name: &str, prints: &str) {
        self.write(name, SCRIPT);
        self.write(&format!("{name}.out"), prints);
        fs::set_permissions(self.0.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let (lapidary, llama) = (self.path("lapidary"), self.path("llama-bench"));
        let programs = ["--lapidary", &lapidary, "--llama-bench", &llama, "--threads", "3", "--decode-tokens", "0"];
        let arguments = [&programs[..], &["--prompt-tokens", "8"], arguments].concat();
        peers::run_in(&self.0, &arguments).map_err(|error| format!("{error:#}"))
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn programs_run_by_turns_and_the_table_is_renewed() {
    let repository = Repository::new("turns");
    repository.run(&["--shape", "270m", "--rounds", "2", "--repeat", "7"]).unwrap();
    let file = "target/peers/gemma-3-270m-q4_0-random.gguf";
    let calls: Vec<String> =
        repository.read("calls").replace(&repository.path(file), "FILE").lines().map(str::to_owned).collect();
    let [ours, theirs] = [
        "lapidary bench FILE --device cpu --threads 3 --repeat 7 --json --prompt-tokens 8 --decode-tokens 0 --depth 0",
        "llama-bench -m FILE -ngl 0 -t 3 -r 7 -o json -p 8 -n 0 -d 0",
    ];
    let write = "lapidary bench --shape 270m --format q4_0 --write FILE";
    assert_eq!(calls, [write, ours, theirs, ours, theirs]);
    let document = repository.read("docs/benchmarks.md");
    assert!(document.starts_with("# Title\n\n<!--") && document.ends_with("-->\n\nrest\n"), "{document}");
    assert!(!document.contains("old"), "{document}");
    let row = "| prefill of 8 | 80.0 (80.0 – 80.0) | 45.0 (40.0 – 50.0) | 1.78 |\n";
    assert!(
        document.contains(row) && document.contains("on a chip, 3 threads; llama.cpp: build 9 (abc)"),
        "{document}"
    );
    assert_eq!(repository.read("docs/quality.md"), DOCUMENT);
}

#[test]
fn quality_has_a_table_of_its_own() {
    let repository = Repository::new("quality");
    let [model, original, text] = ["q.gguf", "f.gguf", "t.txt"].map(|name| repository.path(name));
    let report = r#""text": { "t": { "original_perplexity": 37.0, "perplexity": 38.0, "same_top": 0.875,
        "token_change_rms": 0.0625, "kl": { "mean": 0.5, "median": 0.25, "p99": 1.0, "p99.9": 2.0 } } }"#;
    repository.program("lapidary", &LAPIDARY.replacen('{', &format!("{{ {report},"), 1));
    let scores = "Mean PPL(Q)   : 38.0 ± 0.7\nMean PPL(base) : 37.0 ± 0.7\nMean    KLD: 0.25 ± 0.1\nMedian  KLD: 0.25\n\
                  99.0%   KLD: 1.0\n99.9%   KLD: 2.0\nSame top p: 87.5 ± 0.1 %\nRMS Δp    : 6.25 ± 0.1 %\n";
    repository.program("llama-perplexity", scores);
    let tool = repository.path("llama-perplexity");
    repository.run(&["--model", &model, "--quality", &original, "--text", &text, "--llama-perplexity", &tool]).unwrap();
    let document = repository.read("docs/quality.md");
    assert!(document.contains("`q.gguf` against `f.gguf` on `t.txt`."), "{document}");
    assert!(document.contains("| KL divergence, mean | 0.250000 | 0.500000 | 2.0000 |\n"), "{document}");
    assert_eq!(repository.read("calls").matches("llama-perplexity ").count(), 2);
    assert_eq!(repository.read("docs/benchmarks.md"), DOCUMENT);
}

#[test]
fn what_is_missing_is_named() {
    let repository = Repository::new("missing");
    let gone = repository.path("gone");
    let error = repository.run(&["--llama-bench", &gone]).unwrap_err();
    assert!(error.contains("there is no program `") && error.contains("hint: build llama.cpp"), "{error}");
    repository.write("llama-bench", "#!/bin/sh\nexit 3\n");
    let model = repository.path("m.gguf");
    let error = repository.run(&["--model", &model]).unwrap_err();
    assert!(error.contains("llama-bench") && error.contains("failed: exit status: 3"), "{error}");
    repository.program("llama-bench", LLAMA);
    repository.write("docs/benchmarks.md", "no comments\n");
    assert!(repository.run(&["--model", &model]).unwrap_err().contains("docs/benchmarks.md: expected `<!--"));
    repository.run(&["--model", &model, "--print"]).unwrap();
    assert_eq!(repository.read("docs/benchmarks.md"), "no comments\n");
}
