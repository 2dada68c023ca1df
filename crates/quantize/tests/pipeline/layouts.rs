//! What the two layouts of a folder are, and that converting loses nothing.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

use checkpoint::Checkpoint;
use engine::{Engine, EngineOptions, ModelSource};
use quantize::pipeline::{Conversion, Layout, Options, PipelineError, layout_of};
use tensor::WeightFormat;
use tensor::reference::ReferenceBackend;

use crate::random::Folder;
use crate::{StopAfter, files, options, original, run};

/// Trellises, bytes of all weights, and logits of some tokens.
fn look(folder: &Path) -> (usize, u64, Vec<f32>) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    let formats = source.tensors().iter().map(|tensor| tensor.format);
    let trellises = formats.filter(|format| matches!(format, WeightFormat::Trellis(_))).count();
    let options = EngineOptions { outputs_max: 64, ..EngineOptions::default() };
    let mut engine = Engine::load(&checkpoint, &ReferenceBackend, &options).unwrap();
    let (tokens, mut logits) = ((2..40).collect::<Vec<u32>>(), Vec::new());
    engine.forward(&tokens, 0..tokens.len(), &mut |row| logits.extend_from_slice(row.logits)).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    (trellises, checkpoint.file_bytes(), logits)
}

/// Converts a folder, and stops when it has been asked so often whether to.
fn convert(from: &Path, layout: Layout, drop_embedding: bool, asks: usize) -> Result<PathBuf, PipelineError> {
    let checkpoint = Checkpoint::open(from).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    let observer = StopAfter(AtomicUsize::new(asks));
    let target = from.with_extension(layout.name());
    let conversion = Conversion { source: &source, layout, drop_embedding, threads: 2, observer: &observer };
    conversion.run(&target, false).map(|_| target)
}

/// Fails if a file differs.
fn assert_same(expected: &Path, found: &Path) {
    let (expected, found) = (files(expected), files(found));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "`{name}` differs");
    }
}

/// Of the angle between two lists of numbers.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

/// The largest difference, over the largest magnitude.
fn worst(expected: &[f32], found: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
    expected.iter().zip(found).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

#[test]
fn converting_between_layouts_loses_nothing() {
    let folder = Folder::new("layouts");
    let quantized = |layout: Layout| run(&folder, layout.name(), &Options { layout, ..options() }, usize::MAX).unwrap();
    let (compact, exllamav3) = (quantized(Layout::Compact), quantized(Layout::Exllamav3));
    for extra in ["tokenizer_config.json", "notes.txt"] {
        std::fs::write(compact.join(extra), "{\"kept\": \"as it is\"}").unwrap();
    }
    let (compact_look, exllamav3_look) = (look(&compact), look(&exllamav3));
    // Seven of the layer, and the head, which is the embedding of the compact layout too.
    assert_eq!((compact_look.0, exllamav3_look.0), (8, 8));
    let more = exllamav3_look.1 - compact_look.1;
    assert!((256 * 128 * 2..256 * 128 * 2 + 256).contains(&more), "{more} bytes more");
    // Sizes that are no multiples of 128 are padded, and what is padded does not count.
    let checkpoint = Checkpoint::open(&compact).unwrap();
    let down = checkpoint.trellis_weight("model.layers.0.mlp.down_proj.weight").unwrap();
    assert_eq!((down.outputs, down.inputs), (128, 256));
    let likeness = cosine(&look(&original(&folder)).2, &exllamav3_look.2);
    assert!((0.9..0.9999).contains(&likeness), "{likeness}");
    // The embedding's own rounding.
    let difference = worst(&compact_look.2, &exllamav3_look.2);
    assert!(difference > 0.0 && difference < 0.3, "{difference}");

    // There: the same, with the head's rows for an embedding. And back: the same files.
    let there = convert(&compact, Layout::Exllamav3, false, usize::MAX).unwrap();
    let there_look = look(&there);
    assert_eq!((there_look.0, there_look.1), (8, exllamav3_look.1));
    // The rows of the embedding are rounded to 16 bits, half a unit of 2⁻¹⁰.
    let rounding = worst(&compact_look.2, &there_look.2);
    assert!(rounding < 0.002, "{rounding}");
    assert_same(&compact, &convert(&there, Layout::Compact, false, usize::MAX).unwrap());
    std::fs::remove_dir_all(there.with_extension("compact")).unwrap();

    // An embedding that is more exact than the head is not given up unless asked for; then it is as if it never was.
    let refused = convert(&exllamav3, Layout::Compact, false, usize::MAX).unwrap_err();
    assert!(matches!(refused, PipelineError::OtherEmbedding { different: 256, rows: 256, .. }), "{refused}");
    let hint = "256 of 256 rows differ, by ";
    assert!(refused.to_string().contains(hint) && refused.to_string().contains("--drop-embedding"), "{refused}");
    for extra in ["tokenizer_config.json", "notes.txt"] {
        std::fs::copy(compact.join(extra), exllamav3.join(extra)).unwrap();
    }
    assert_same(&compact, &convert(&exllamav3, Layout::Compact, true, usize::MAX).unwrap());

    bad_conversions_are_refused(&folder, &compact);
}

/// What can't be converted, and what an interrupted conversion leaves: nothing.
fn bad_conversions_are_refused(folder: &Folder, compact: &Path) {
    let other = folder.0.join("other");
    std::fs::rename(compact, &other).unwrap();
    let same = convert(&other, Layout::Compact, false, usize::MAX).unwrap_err();
    assert_eq!(same.to_string(), "the model has the layout compact already");
    let plain = convert(&original(folder), Layout::Compact, false, usize::MAX).unwrap_err();
    assert!(plain.to_string().contains("no folder of trellis weights"), "{plain}");
    for asks in [0, 1, 20] {
        let stopped = convert(&other, Layout::Exllamav3, false, asks);
        assert!(matches!(stopped, Err(PipelineError::Cancelled)), "{asks}");
        assert!(!files_beside(&other).iter().any(|name| name.starts_with(".other")), "{:?}", files_beside(&other));
    }
    let done = convert(&other, Layout::Exllamav3, false, usize::MAX).unwrap();
    let exists = convert(&other, Layout::Exllamav3, false, usize::MAX).unwrap_err();
    assert!(matches!(exists, PipelineError::Exists(path) if path == done));
    let config = std::fs::read_to_string(done.join("config.json")).unwrap();
    std::fs::write(done.join("config.json"), config.replace("{\n", "{\n\"tie_word_embeddings\": false,\n")).unwrap();
    let untied = convert(&done, Layout::Compact, true, usize::MAX).unwrap_err();
    assert!(untied.to_string().contains("a head of its own"), "{untied}");
    let checkpoint = Checkpoint::open(&original(folder)).unwrap();
    assert_eq!(layout_of(&ModelSource::open(&checkpoint).unwrap()), None);
}

fn files_beside(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path.parent().unwrap()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
