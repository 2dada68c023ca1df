//! The estimate: of memory against the peak of a process, of time by what there is to do.

use std::process::Command;
use std::sync::atomic::AtomicUsize;

use checkpoint::Checkpoint;
use engine::ModelSource;
use quantize::pipeline::{Options, Phase, PipelineError, Task};
use tensor::reference::ReferenceBackend;

use crate::random::{self, Folder};
use crate::{StopAfter, options};

/// Inputs of the down projection, whose Hessian takes the most.
const WIDE: usize = 2048;

/// The child's variable.
const FOLDER: &str = "LAPIDARY_TEST_MEMORY";

/// Says why a test can't run.
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// Of `/proc/self/status`, in bytes.
fn status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

#[test]
fn the_estimate_is_what_a_run_takes() {
    if status("VmHWM").is_none() {
        return skipped("the system does not say how much memory a process had at most");
    }
    let folder = Folder::new("memory");
    let mut config = random::small();
    config["intermediate_size"] = WIDE.into();
    random::write(&folder.0.join("original"), &config, |_, _| ());
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["memory::a_process_of_its_own", "--exact", "--ignored", "--nocapture"]).env(FOLDER, &folder.0);
    let output = child.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let number = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.split_once(name)).unwrap_or_else(|| panic!("{text}"));
        line.1.trim().parse().unwrap()
    };
    let (estimate, taken) = (number("estimate:"), number("taken:"));
    // The allocator keeps some of what is given back, and the mapped model counts too.
    let ratio = estimate as f64 / taken as f64;
    assert!((0.75..1.25).contains(&ratio), "{estimate} bytes estimated, {taken} taken");
}

/// On the processor alone.
fn task<'a>(
    source: &'a ModelSource<'a>,
    sequences: &'a [Vec<u32>],
    options: &'a Options,
    observer: &'a StopAfter,
) -> Task<'a> {
    Task { source, backend: &ReferenceBackend, sequences, options, tiles: None, hessians: None, observer }
}

/// Goes as far as the first block that is rounded.
#[test]
#[ignore = "the test above runs it in a process of its own"]
#[expect(clippy::print_stdout, reason = "the other process reads it")]
fn a_process_of_its_own() {
    let Some(folder) = std::env::var_os(FOLDER).map(std::path::PathBuf::from) else { return };
    let checkpoint = Checkpoint::open(&folder.join("original")).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    let (sequences, options) = (random::sequences(8, 64), options());
    let observer = StopAfter(AtomicUsize::new(1));
    let task = task(&source, &sequences, &options, &observer);
    let before = status("VmRSS").unwrap();
    assert!(matches!(task.run(&folder.join("small"), false), Err(PipelineError::Cancelled)));
    let taken = status("VmHWM").unwrap() - before;
    let phases = task.memory().unwrap();
    let peak: &Phase = phases.iter().max_by_key(|phase| phase.bytes).unwrap();
    assert_eq!(peak.what, "a layer's Hessians are decomposed", "{phases:?}");
    println!("estimate: {}\ntaken: {taken}", peak.bytes);
}

#[test]
fn the_work_is_that_of_the_shapes() {
    let folder = Folder::new("work");
    let checkpoint = Checkpoint::open(&crate::original(&folder)).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    let (sequences, options) = (random::sequences(8, 64), options());
    let observer = StopAfter(AtomicUsize::new(usize::MAX));
    let task = task(&source, &sequences, &options, &observer);
    let estimate = task.estimate().unwrap();
    let work = &estimate.work;
    // Outputs and inputs with padding: of queries, keys, values and the attention's output, of gate, up, down and head.
    let shapes = [[128, 128], [128, 128], [128, 128], [128, 128], [256, 128], [256, 128], [128, 256], [256, 128]];
    let sum = |of: &dyn Fn(f64, f64) -> f64| shapes.iter().map(|[o, i]| of(f64::from(*o), f64::from(*i))).sum::<f64>();
    assert_eq!(work.weights, sum(&|outputs, inputs| outputs * inputs));
    // With 32 outputs that get errors for trial.
    assert_eq!(work.feedback, sum(&|outputs, inputs| (outputs + 32.0) * inputs * inputs / 2.0));
    // An eighth of the tiles and the largest one of each block at 4.5 scales.
    let tiles = sum(&|outputs, inputs| {
        let tiles = outputs * inputs / 256.0;
        tiles + 4.5 * (tiles / 8.0 + outputs / 128.0)
    });
    assert_eq!(work.tiles.values().sum::<f64>(), tiles);
    // One Hessian of 256 inputs, and four of 128 with that of the head, of 512 tokens.
    assert_eq!(work.cubes, 256f64.powi(3) + 4.0 * 128f64.powi(3));
    assert_eq!(work.hessians, 512.0 * (256f64.powi(2) + 4.0 * 128f64.powi(2)) / 2.0);
    assert_eq!((work.token_layers, work.replaced_token_layers), (512.0, 512.0));
    assert_eq!(work.costs, Default::default(), "uniform rates need no measurement");
    assert!(estimate.parts.iter().all(|(_, seconds)| seconds.is_finite() && *seconds >= 0.0), "{estimate:?}");
    assert!(estimate.speeds.tiles.values().all(|seconds| *seconds > 0.0) && estimate.seconds() > 0.0, "{estimate:?}");
    assert_eq!(estimate.processor_seconds(), 2.0 * estimate.seconds());
}
