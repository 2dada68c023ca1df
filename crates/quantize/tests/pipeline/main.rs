//! A whole model, in one go and with interruptions.

mod bad_input;
mod layouts;
mod memory;
mod random;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use checkpoint::Checkpoint;
use engine::ModelSource;
use quantize::pipeline::{Allocation, Budget, Observer, Options, PipelineError, Stage, Task};
use quantize::{TileDevice, TileQueue};
use tensor::format::trellis::{Codebook, LEN, Rate};
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
    run_on(folder, name, options, asks, None)
}

/// As [`run`], with the tiles of a device.
fn run_on(
    folder: &Folder,
    name: &str,
    options: &Options,
    asks: usize,
    tiles: Option<&TileQueue>,
) -> Result<PathBuf, PipelineError> {
    let checkpoint = Checkpoint::open(&original(folder)).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    let sequences = random::sequences(8, 64);
    let observer = StopAfter(AtomicUsize::new(asks));
    let (source, backend, sequences) = (&source, &ReferenceBackend, &sequences[..]);
    let task = Task { source, backend, sequences, options, tiles, hessians: None, observer: &observer };
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

/// A device that fails.
struct Broken;

impl TileDevice for Broken {
    fn supports(&self, _: Rate) -> bool {
        true
    }

    fn tiles(&self) -> usize {
        40
    }

    fn search(&self, _: Codebook, _: Rate, _: &[[i16; LEN]]) -> Result<Vec<[u16; LEN]>, String> {
        Err("it is tired".into())
    }
}

#[test]
fn a_device_that_fails_ends_the_run() {
    let folder = Folder::new("device");
    let error = run_on(&folder, "broken", &options(), usize::MAX, Some(&TileQueue::new(Box::new(Broken)))).unwrap_err();
    assert!(matches!(error, PipelineError::Quantize { .. }), "{error}");
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(source.as_deref(), Some("no tiles were found: it is tired"));
    assert!(!folder.0.join("broken").exists());
}

#[test]
fn other_settings_do_not_go_on_from_what_is_there() {
    let folder = Folder::new("settings");
    let run = |options: &Options, asks| run(&folder, "small", options, asks);
    assert!(matches!(run(&options(), 4), Err(PipelineError::Cancelled)));
    let other = run(&Options { seed: 1, ..options() }, usize::MAX).unwrap_err();
    assert!(other.to_string().contains("`seed` was 0, is 1"), "{other}");
}
