//! What can be wrong with models, texts, budgets and disks, and what is said about it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicUsize;

use checkpoint::Checkpoint;
use engine::ModelSource;
use quantize::pipeline::{Allocation, Budget, Options, PipelineError, Report, Task};
use tensor::reference::ReferenceBackend;

use crate::random::{self, Folder};
use crate::{StopAfter, options, original, run};

/// The child's variable.
const FOLDER: &str = "LAPIDARY_TEST_FULL_DISK";

/// Says why a test can't run.
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// An error with its causes.
fn chain(error: &PipelineError) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Lets a task of a model do something.
fn with_task<R>(
    model: &Path,
    sequences: &[Vec<u32>],
    options: &Options,
    work: impl FnOnce(&Task<'_>) -> Result<R, PipelineError>,
) -> Result<R, PipelineError> {
    let checkpoint = Checkpoint::open(model).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    let observer = StopAfter(AtomicUsize::new(usize::MAX));
    work(&Task {
        source: &source,
        backend: &ReferenceBackend,
        sequences,
        options,
        tiles: None,
        hessians: None,
        observer: &observer,
    })
}

/// The message about a model whose weights were edited.
fn refused(folder: &Folder, name: &str, options: &Options, edit: impl Fn(&str, &mut [f32])) -> String {
    let model = folder.0.join(name);
    random::write(&model, &random::small(), edit);
    let target = folder.0.join(format!("{name}-small"));
    let error = with_task(&model, &random::sequences(8, 64), options, |task| task.run(&target, false)).unwrap_err();
    assert!(!target.exists());
    chain(&error)
}

#[test]
fn numbers_that_are_not_finite_are_named() {
    let folder = Folder::new("not-finite");
    let set = |wanted: &'static str, at: usize, value: f32| {
        move |name: &str, values: &mut [f32]| {
            if name.ends_with(wanted) {
                values[at] = value;
            }
        }
    };
    let measured = Options { allocation: Allocation::Measured, head: None, ..options() };
    for (number, options) in [options(), measured].iter().enumerate() {
        let refused =
            |name: &str, edit: &dyn Fn(&str, &mut [f32])| refused(&folder, &format!("{name}{number}"), options, edit);
        let gate = refused("gate", &set("gate_proj.weight", 3 * 128 + 7, f32::NAN));
        let expected =
            "`model.layers.0.mlp.gate_proj.weight` can't be quantized: the weight has NaN in row 3, column 7";
        assert!(gate.starts_with(expected), "{gate}");
        let norm = refused("norm", &set("post_attention_layernorm.weight", 5, f32::INFINITY));
        let expected =
            "`model.layers.0.post_attention_layernorm.weight` can't be quantized: the norm has inf in row 0, column 5";
        assert!(norm.starts_with(expected), "{norm}");
        // A token of the text, found before anything is computed.
        let row = refused("row", &set("embed_tokens.weight", 2 * 128 + 9, f32::NAN));
        let expected = "`model.embed_tokens.weight` can't be quantized: the weight has NaN in row 2, column 9";
        assert!(row.starts_with(expected), "{row}");
        // Finite weights whose product is not.
        let large = refused("large", &|name, values| {
            if name.contains("gate_proj") || name.contains("up_proj") {
                values.iter_mut().for_each(|value| *value *= 1e25);
            }
        });
        let expected =
            ["layer 0 can't be quantized: an activation has ", "layer 0 can't be quantized: the residual stream has "];
        assert!(expected.iter().any(|expected| large.starts_with(expected)), "{large}");
    }
}

#[test]
fn a_text_that_is_too_short_is_refused() {
    let folder = Folder::new("short");
    let (model, target) = (original(&folder), folder.0.join("small"));
    let short = random::sequences(1, 511);
    let run = with_task(&model, &short, &options(), |task| task.run(&target, false)).unwrap_err().to_string();
    assert!(run.starts_with("the calibration text has 511 tokens, expected at least 512\n\nhint: "), "{run}");
    let estimate = with_task(&model, &short, &options(), |task| task.estimate()).unwrap_err();
    assert!(matches!(estimate, PipelineError::TextTooShort { tokens: 511, needed: 512 }));
    // One sequence is fewer than are usually compared. It is stopped at the first block that is rounded.
    let measured = Options { allocation: Allocation::Measured, head: None, ..options() };
    let memory = with_task(&model, &random::sequences(1, 512), &measured, |task| task.memory()).unwrap();
    assert!(memory.iter().any(|phase| phase.what == "predictions are compared"), "{memory:?}");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    let (sequences, observer) = (random::sequences(1, 512), StopAfter(AtomicUsize::new(40)));
    let (source, backend, sequences) = (&source, &ReferenceBackend, &sequences[..]);
    let task =
        Task { source, backend, sequences, options: &measured, tiles: None, hessians: None, observer: &observer };
    assert!(matches!(task.run(&target, false), Ok(_) | Err(PipelineError::Cancelled)));
    assert!(folder.0.join(".small.partial/costs.bin").exists() || target.exists());
}

#[test]
fn the_least_possible_budget_is_told() {
    let folder = Folder::new("budget");
    let model = original(&folder);
    let check = |budget| -> Result<Report, PipelineError> {
        with_task(&model, &random::sequences(8, 64), &Options { budget, ..options() }, |task| task.check())
    };
    let error = check(Budget::Bytes(1000)).unwrap_err();
    let PipelineError::Budget { wanted: 1000, least, .. } = error else { panic!("{error}") };
    let text = error.to_string();
    assert!(text.contains(&format!("the least possible is {least} bytes (")), "{text}");
    assert_eq!(check(Budget::Bytes(least)).unwrap().bytes, least);
    assert!(matches!(check(Budget::Bytes(least - 1)), Err(PipelineError::Budget { .. })));
    assert!(matches!(check(Budget::BitsPerWeight(1.0)), Err(PipelineError::Budget { .. })));
}

#[test]
fn a_folder_in_use_is_left_alone() {
    let folder = Folder::new("in-use");
    let partial = folder.0.join(".small.partial");
    std::fs::create_dir_all(&partial).unwrap();
    let lock = std::fs::File::create(partial.join("lock")).unwrap();
    lock.try_lock().unwrap();
    let error = run(&folder, "small", &options(), usize::MAX).unwrap_err();
    assert!(matches!(&error, PipelineError::InUse(path) if *path == partial), "{error}");
    assert!(error.to_string().ends_with("is in use by another run"), "{error}");
    assert_eq!(std::fs::read_dir(&partial).unwrap().count(), 1);
    drop(lock);
    assert!(matches!(run(&folder, "small", &options(), 1), Err(PipelineError::Cancelled)));
}

#[test]
fn a_full_disk_is_told() {
    let folder = Folder::new("full");
    original(&folder);
    let disk = folder.0.join("disk");
    std::fs::create_dir_all(&disk).unwrap();
    // In a name space of its own a process may mount a small disk.
    let mount = format!("mount -t tmpfs -o size=40k tmpfs '{}'", disk.display());
    let isolated = |command: &str| {
        let mut process = Command::new("unshare");
        process.args(["--user", "--map-root-user", "--mount", "sh", "-c", command]).env(FOLDER, &folder.0);
        process.output()
    };
    if !isolated(&mount).is_ok_and(|output| output.status.success()) {
        return skipped("this process may not mount a small disk");
    }
    let child = std::env::current_exe().unwrap();
    let child = format!("'{}' bad_input::on_a_small_disk --exact --ignored --nocapture", child.display());
    let output = isolated(&format!("{mount} && exec {child}")).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[test]
#[ignore = "the test above runs it with a small disk"]
fn on_a_small_disk() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let (sequences, target) = (random::sequences(8, 64), folder.join("disk/small"));
    let full = || with_task(&folder.join("original"), &sequences, &options(), |task| task.run(&target, false));
    let error = full().unwrap_err();
    let text = chain(&error);
    assert!(text.contains("no space left") && text.contains("layer-0.bin"), "{text}");
    assert!(!target.exists() && !folder.join("disk/.small.partial/layer-0.bin").exists());
}
