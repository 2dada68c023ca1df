//! A whole model, in one go and with interruptions.

mod random;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use checkpoint::Checkpoint;
use engine::{Engine, EngineOptions, ModelSource};
use quantize::pipeline::{Allocation, Budget, Layout, Observer, Options, PipelineError, Stage, Task};
use tensor::WeightFormat;
use tensor::format::trellis::Rate;
use tensor::reference::ReferenceBackend;

use random::Folder;

/// Stops a run when it has been asked that often whether to stop.
struct StopAfter(AtomicUsize);

impl Observer for StopAfter {
    fn progress(&self, _: Stage, _: u64, _: u64) {}

    fn cancelled(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }
}

fn options() -> Options {
    let budget = Budget::BitsPerWeight(3.3);
    let head = Rate::from_half_bits(7);
    Options { allocation: Allocation::Uniform, head, threads: 2, ..Options::new(budget) }
}

/// A small random model.
fn original(folder: &Folder) -> PathBuf {
    let original = folder.0.join("original");
    if !original.exists() {
        random::write(&original, &random::small(), |_, _| ());
    }
    original
}

/// Quantizes that, and stops when it has been asked so often whether to.
fn run(folder: &Folder, name: &str, options: &Options, asks: usize) -> Result<PathBuf, PipelineError> {
    let checkpoint = Checkpoint::open(&original(folder)).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    let sequences = random::sequences(8, 64);
    let observer = StopAfter(AtomicUsize::new(asks));
    let task =
        Task { source: &source, backend: &ReferenceBackend, sequences: &sequences, options, observer: &observer };
    let target = folder.0.join(name);
    task.run(&target, false).map(|_| target)
}

/// All files of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let read =
        |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    entries.map(read).collect()
}

/// Cuts a file in half, as a full disk might.
fn cut(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

#[test]
fn an_interrupted_run_goes_on_and_ends_with_the_same_bits() {
    let folder = Folder::new("interrupted");
    let whole = run(&folder, "whole", &options(), usize::MAX).unwrap();
    let mut damaged = false;
    // In the middle of the layer; then in the head, so that the layer is kept, but damaged; and in the head again.
    let partial = folder.0.join(".parts.partial");
    for (asks, kept) in [(4, false), (13, true), (13, true)] {
        assert!(matches!(run(&folder, "parts", &options(), asks), Err(PipelineError::Cancelled)), "{asks}");
        assert!(!folder.0.join("parts").exists(), "a folder that is not complete");
        let layer = files(&partial).into_keys().find(|name| name.starts_with("layer-"));
        assert_eq!(layer.is_some(), kept, "{asks}");
        if let Some(layer) = layer.filter(|_| !std::mem::replace(&mut damaged, true)) {
            cut(&partial.join(layer));
        }
    }
    let parts = run(&folder, "parts", &options(), usize::MAX).unwrap();
    assert!(!partial.exists());
    let (whole, parts) = (files(&whole), files(&parts));
    assert_eq!(whole.keys().collect::<Vec<_>>(), parts.keys().collect::<Vec<_>>());
    for (name, bytes) in &whole {
        assert!(parts[name] == *bytes, "`{name}` differs");
    }
}

#[test]
fn other_settings_do_not_go_on_from_what_is_there() {
    let folder = Folder::new("settings");
    let run = |options: &Options, asks| run(&folder, "small", options, asks);
    assert!(matches!(run(&options(), 4), Err(PipelineError::Cancelled)));
    let other = run(&Options { seed: 1, ..options() }, usize::MAX).unwrap_err();
    assert!(other.to_string().contains("`seed` was 0, is 1"), "{other}");
    let little = Options { budget: Budget::BitsPerWeight(1.0), ..options() };
    assert!(matches!(run(&little, usize::MAX), Err(PipelineError::Budget { .. })));
}

#[test]
fn both_layouts_are_models_that_give_nearly_the_same_logits() {
    let folder = Folder::new("layouts");
    let logits = |layout: Layout| {
        let target = run(&folder, layout.name(), &Options { layout, ..options() }, usize::MAX).unwrap();
        let checkpoint = Checkpoint::open(&target).unwrap();
        let source = ModelSource::open(&checkpoint).unwrap();
        let formats = source.tensors().iter().map(|tensor| tensor.format);
        let trellises = formats.filter(|format| matches!(format, WeightFormat::Trellis(_))).count();
        let options = EngineOptions { outputs_max: 64, ..EngineOptions::default() };
        let mut engine = Engine::load(&checkpoint, &ReferenceBackend, &options).unwrap();
        let (tokens, mut logits) = ((2..40).collect::<Vec<u32>>(), Vec::new());
        engine.forward(&tokens, 0..tokens.len(), &mut |row| logits.extend_from_slice(row.logits)).unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()));
        (trellises, checkpoint.file_bytes(), logits)
    };
    let (compact, exllamav3) = (logits(Layout::Compact), logits(Layout::Exllamav3));
    // Seven of the layer, and the head, which is the embedding of the compact layout too.
    assert_eq!((compact.0, exllamav3.0), (8, 8));
    assert!(exllamav3.1 >= compact.1 + 256 * 128 * 2, "{} and {} bytes", exllamav3.1, compact.1);
    let largest = exllamav3.2.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
    let worst = compact.2.iter().zip(&exllamav3.2).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
    // The embedding's own rounding, at 6 bits.
    assert!(worst > 0.0 && worst < 0.1 * largest, "{worst} of {largest}");
}
