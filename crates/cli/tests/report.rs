//! `report`: one page that needs nothing else, looked at in a browser where there is one.

mod built_in;
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs};

use built_in::gguf;
use common::Folder;
use serde_json::Value;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../LICENSE-APACHE");
const INSTRUCTIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/instructions.jsonl");

/// What a browser is told so that it does nothing but show the page.
const BROWSER: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--dump-dom",
];

/// Writes into the page what it loaded and how large its plots are, and something into the log to see that it is there.
const LOOK: &str = "<script>console.log('looked');const sizes=[...document.querySelectorAll('svg')].map(svg=>{\
    const box=svg.getBoundingClientRect();return [box.width,box.height,svg.querySelectorAll('text').length]});\
    document.body.setAttribute('data-found',JSON.stringify({sizes,\
    loaded:performance.getEntriesByType('resource').map(entry=>entry.name)}));</script></body>";

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.args(arguments).stdin(Stdio::null()).output().expect("the program starts")
}

#[track_caller]
fn success(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Measurements of the built-in model, as files.
fn measurements(folder: &Folder) -> [String; 2] {
    let answers = folder.path("answers.jsonl");
    success(&run(&["evaluate", gguf(), "--device", "cpu", "--instructions", INSTRUCTIONS, "--answers", &answers]));
    let evaluation =
        ["evaluate", gguf(), "--device", "cpu", "--text", TEXT, "--limit", "1", "--against", gguf(), "--json"];
    let answered = ["--instructions", INSTRUCTIONS, "--against-answers", &answers];
    let bench =
        ["bench", "--device", "cpu", "--depth", "0,32", "--prompt-tokens", "8,16", "--decode-tokens", "4", "--json"];
    let quick = ["--repeat", "1", "--warmup", "0", "--threads", "1"];
    let runs = [("evaluation", [&evaluation[..], &answered].concat()), ("bench", [&bench[..], &quick].concat())];
    runs.map(|(name, arguments)| {
        let path = folder.path(&format!("{name}.json"));
        fs::write(&path, success(&run(&arguments))).unwrap();
        path
    })
}

/// A browser that is installed.
fn browser() -> Option<PathBuf> {
    let paths = env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    env::split_paths(&paths).flat_map(|folder| names.map(|name| folder.join(name))).find(|path| path.is_file())
}

#[test]
fn a_page_needs_nothing_else() {
    let folder = Folder::new("page");
    let [evaluation, bench] = measurements(&folder);
    let (page, plots) = (folder.path("page.html"), folder.path("plots"));
    let markdown = success(&run(&["report", &evaluation, &bench]));
    assert!(markdown.contains("| quality retained | 100.0 % |"), "{markdown}");
    success(&run(&["report", &evaluation, &bench, "--html", &page, "--plots", &plots]));
    let mut names: Vec<String> =
        fs::read_dir(&plots).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let expected =
        ["decode-context", "divergence-size", "prefill-context", "prefill-length", "quality-size", "roofline"];
    assert_eq!(names, expected.map(|name| format!("{name}.svg")));
    let html = fs::read_to_string(&page).unwrap();
    assert_eq!(html.matches("<svg").count(), expected.len());
    for part in ["<script", " src=", "url(", "@import", "NaN"] {
        assert!(!html.contains(part), "{part}");
    }
    // Names of languages are no addresses that are asked for.
    assert!(!html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "").contains("http"));
    look(&folder, &page, &html, expected.len());
}

#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn look(folder: &Folder, page: &str, html: &str, plots: usize) {
    let Some(browser) = browser() else {
        eprintln!("skipped: there is no Chromium to look at the page with");
        return;
    };
    fs::write(page, html.replace("</body>", LOOK)).unwrap();
    let profile = format!("--user-data-dir={}", folder.path("profile"));
    let address = format!("file://{page}");
    let output = Command::new(browser).args(BROWSER).args([&profile, &address]).stdin(Stdio::null()).output().unwrap();
    let (dom, log) = (success(&output), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(lines.len() == 1 && lines[0].contains("looked"), "{lines:?} in {log}");
    let start = dom.find("data-found=\"").expect("what was found") + "data-found=\"".len();
    let end = start + dom[start..].find('"').expect("its end");
    let found: Value = serde_json::from_str(&dom[start..end].replace("&quot;", "\"")).expect("JSON");
    assert_eq!(found["loaded"], Value::Array(Vec::new()), "{found}");
    let sizes = found["sizes"].as_array().expect("sizes");
    assert_eq!(sizes.len(), plots);
    for size in sizes {
        let [width, height, texts] = [0, 1, 2].map(|index| size[index].as_f64().expect("a number"));
        assert!(width > 300.0 && height > 200.0 && texts > 8.0, "{found}");
    }
}

#[test]
fn an_evaluation_writes_its_own_report() {
    let folder = Folder::new("own");
    let (page, table) = (folder.path("page.html"), folder.path("table.md"));
    let arguments = ["evaluate", gguf(), "--device", "cpu", "--instructions", INSTRUCTIONS, "--limit", "2"];
    success(&run(&[&arguments[..], &["--html", &page, "--markdown", &table]].concat()));
    assert!(fs::read_to_string(&table).unwrap().contains("| instructions answered rightly | 2 of 2 |"));
    assert!(fs::read_to_string(&page).unwrap().contains("<td>2 of 2</td>"));
}

#[test]
fn other_files_are_refused() {
    let folder = Folder::new("refused");
    for (name, text, parts) in [
        ("other.json", "{\"a\": 1}", ["other.json`", "expected what `lapidary evaluate --json`"]),
        ("broken.json", "{\"a\": ", ["broken.json` is not valid JSON", "EOF"]),
    ] {
        let path = folder.path(name);
        fs::write(&path, text).unwrap();
        let output = run(&["report", &path]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    assert!(!Path::new(&folder.path("nothing")).exists());
    assert_eq!(run(&["report", &folder.path("nothing")]).status.code(), Some(1));
    assert_eq!(run(&["report"]).status.code(), Some(2));
}
