//! Folders whose files are part of the program.

use std::path::Path;

use checkpoint::{Checkpoint, CheckpointError, Metadata, StaticFile};
use tensor::WeightBytes;

use crate::exl3;

/// The files of a folder, as if they were part of the program.
fn files(folder: &Path) -> Vec<StaticFile> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = |path: std::path::PathBuf| -> StaticFile {
        let name: &str = Box::leak(path.file_name().unwrap().to_string_lossy().into_owned().into_boxed_str());
        (name, std::fs::read(path).unwrap().leak())
    };
    entries.map(file).collect()
}

fn open(files: Vec<StaticFile>) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_static(files.leak())
}

/// An EXL3 folder of one weight and one norm, in files of at most so many bytes, with more that is no weight.
fn folder(test: &str, file_bytes: u64) -> std::path::PathBuf {
    let folder = exl3::folder(test, &exl3::tensors(), file_bytes);
    std::fs::write(folder.join("generation_config.json"), "{\"top_k\": 64}").unwrap();
    std::fs::write(folder.join("tokenizer.model"), b"\0pieces").unwrap();
    folder
}

#[test]
fn they_are_the_same_as_on_disk() {
    for (number, file_bytes) in [u64::MAX, 10_240].into_iter().enumerate() {
        let folder = folder(&format!("built_in_{number}"), file_bytes);
        let (disk, built_in) = (Checkpoint::open(&folder).unwrap(), open(files(&folder)).expect("a sound folder"));
        assert_eq!((disk.folder(), built_in.folder()), (Some(&*folder), None));
        assert_eq!(built_in.metadata(), disk.metadata());
        let Metadata::HuggingFace(json) = built_in.metadata() else { panic!("a folder has JSON files") };
        assert_eq!(json.generation_config.as_deref(), Some("{\"top_k\": 64}"));
        assert_eq!((built_in.files(), built_in.file_bytes()), (disk.files(), disk.file_bytes()));
        assert_eq!((built_in.tensors(), built_in.trellis()), (disk.tensors(), disk.trellis()));
        assert_eq!((disk.tensors().len(), disk.trellis().len()), (1, 1));
        for info in disk.tensors() {
            assert_eq!(built_in.bytes(&info.name).unwrap().bytes(), disk.bytes(&info.name).unwrap().bytes());
        }
        for info in disk.trellis() {
            assert_eq!(built_in.linear(&info.name).unwrap(), disk.linear(&info.name).unwrap());
        }
        for checkpoint in [&disk, &built_in] {
            assert_eq!(checkpoint.read_file("tokenizer.model").unwrap().as_deref(), Some(&b"\0pieces"[..]));
            assert_eq!(checkpoint.read_file("tokenizer.json").unwrap(), None);
        }
    }
}

#[test]
fn weights_stay_where_they_are() {
    let files = files(&folder("built_in_place", u64::MAX));
    let (_, file) = *files.iter().find(|(name, _)| *name == "model.safetensors").expect("one file of weights");
    let checkpoint = open(files).unwrap();
    let tiles = checkpoint.tiles(&checkpoint.trellis()[0].name).unwrap();
    assert!(file.as_ptr_range().contains(&tiles.bytes().as_ptr()));
    let before = tiles.bytes().to_vec();
    tiles.prefetch(0..before.len());
    tiles.release(0..before.len());
    let mut part = [0; 12];
    tiles.read(80..92, &mut part).unwrap();
    assert!(tiles.bytes() == before && part == before[80..92]);
}

#[test]
fn damaged_ones_are_told() {
    let files = files(&folder("built_in_damaged", u64::MAX));
    let refused = |change: &dyn Fn(StaticFile) -> Option<StaticFile>, part: &str| {
        let error = open(files.iter().copied().filter_map(change).collect()).expect_err(part).to_string();
        assert!(error.contains("built-in model") && error.contains(part), "expected {part:?}, found {error}");
    };
    let without = |lost: &'static str| move |file: StaticFile| (file.0 != lost).then_some(file);
    refused(&without("config.json"), "is not a checkpoint: `config.json` is missing");
    refused(&without("model.safetensors"), "`model.safetensors` or `model.safetensors.index.json` is missing");
    let cut = |name: &'static str, length: fn(usize) -> usize| {
        move |(found, bytes): StaticFile| {
            Some((found, if found == name { &bytes[..length(bytes.len())] } else { bytes }))
        }
    };
    refused(&cut("config.json", |_| 0), "config.json` is empty");
    refused(&cut("model.safetensors", |_| 0), "model.safetensors` is empty");
    refused(&cut("model.safetensors", |_| 100), "is cut off or damaged: the header needs");
    refused(&cut("model.safetensors", |whole| whole - 1), "is cut off or damaged: the file with all its tensors needs");
    let other = |(name, bytes): StaticFile| Some((name, if name == "config.json" { b"GGUF" } else { bytes }));
    refused(&other, "config.json` is not a JSON object");
}
