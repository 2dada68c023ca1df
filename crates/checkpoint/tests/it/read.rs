//! Files written by other programs.

use std::time::Instant;

use checkpoint::gguf::{Array, StringArray, Value};
use checkpoint::{Checkpoint, CheckpointError, Metadata, gguf};
use tensor::{DType, WeightBytes};

use crate::{data, pattern, shared};

/// Names, formats and shapes of `make_goldens.py`.
const TENSORS: [(&str, DType, &[usize]); 13] = [
    ("f32", DType::F32, &[3, 5]),
    ("f16", DType::F16, &[2, 3, 4]),
    ("bf16", DType::BF16, &[7]),
    ("q4_0", DType::Q4_0, &[2, 64]),
    ("q8_0", DType::Q8_0, &[3, 32]),
    ("q4_1", DType::Q4_1, &[1, 32]),
    ("q5_0", DType::Q5_0, &[1, 32]),
    ("q5_1", DType::Q5_1, &[1, 32]),
    ("q2_k", DType::Q2_K, &[1, 256]),
    ("q3_k", DType::Q3_K, &[1, 256]),
    ("q4_k", DType::Q4_K, &[2, 256]),
    ("q5_k", DType::Q5_K, &[1, 256]),
    ("q6_k", DType::Q6_K, &[1, 512]),
];

fn check_tensors(checkpoint: &Checkpoint, expected: &[(&str, DType, &[usize])]) {
    let mut names: Vec<&str> = expected.iter().map(|(name, ..)| *name).collect();
    names.sort_unstable();
    assert_eq!(checkpoint.tensors().iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), names);
    for (number, &(name, dtype, shape)) in expected.iter().enumerate() {
        let info = checkpoint.tensor(name).expect("the tensor is there");
        assert_eq!((info.dtype, info.shape.as_slice()), (dtype, shape), "{name}");
        let (rows, columns) = info.rows_columns();
        assert_eq!(Some(info.byte_len()), dtype.tensor_bytes(rows, columns), "{name}");
        let bytes = checkpoint.bytes(name).expect("the tensor is there");
        assert_eq!(bytes.bytes(), pattern(info.byte_len(), number), "{name}");
    }
}

fn metadata_of(checkpoint: &Checkpoint) -> &gguf::Metadata {
    match checkpoint.metadata() {
        Metadata::Gguf(metadata) => metadata,
        Metadata::HuggingFace(_) => panic!("a GGUF file has GGUF metadata"),
    }
}

#[test]
fn gguf_of_the_python_package() {
    for name in ["values-v3.gguf", "values-v2.gguf"] {
        let checkpoint = Checkpoint::open(&data(name)).expect("a sound file");
        check_tensors(&checkpoint, &TENSORS);
        let metadata = metadata_of(&checkpoint);
        let expected = [
            ("general.architecture", Value::from("gemma3")),
            ("value.u8", Value::U8(200)),
            ("value.i8", Value::I8(-100)),
            ("value.u16", Value::U16(60000)),
            ("value.i16", Value::I16(-30000)),
            ("value.u32", Value::U32(4_000_000_000)),
            ("value.i32", Value::I32(-2_000_000_000)),
            ("value.f32", Value::F32(0.15625)),
            ("value.bool", Value::Bool(true)),
            ("value.string", Value::from("Grüße, 世界 🦀")),
            ("value.u64", Value::U64((1 << 63) + 5)),
            ("value.i64", Value::I64(-(1 << 62))),
            ("value.f64", Value::F64(1.0 / 3.0)),
            ("array.strings", Value::Array(Array::String(["", "a", "▁the", "\n", "🦀"].into_iter().collect()))),
            ("array.f32", Value::Array(Array::F32(vec![0.5, -1.25, 3.0]))),
            ("array.i32", Value::Array(Array::I32(vec![1, -2, 3]))),
            ("array.bool", Value::Array(Array::Bool(vec![true, false, true]))),
            (
                "array.nested",
                Value::Array(Array::Array(vec![
                    Array::I32(vec![1, 2]),
                    Array::I32(vec![3]),
                    Array::I32(vec![4, 5, 6]),
                ])),
            ),
            ("general.alignment", Value::U32(64)),
        ];
        let found: Vec<_> = metadata.iter().collect();
        assert_eq!(found.len(), expected.len());
        for ((key, value), (found_key, found_value)) in expected.iter().zip(found) {
            assert_eq!((*key, value), (found_key, found_value), "{name}");
            assert_eq!(metadata.get(key), Some(value), "{name}");
        }
    }
}

#[test]
fn a_format_that_is_not_read_is_listed_and_refused_when_asked_for() {
    let checkpoint = Checkpoint::open(&data("values-v3.gguf")).expect("a sound file");
    let [other] = checkpoint.unsupported() else { panic!("one tensor has another format") };
    assert_eq!((other.name.as_str(), other.dtype.as_str(), other.byte_len), ("iq3_xxs", "IQ3_XXS", 98));
    assert_eq!(other.shape, [1, 256]);
    assert!(checkpoint.tensor("iq3_xxs").is_none());
    let error = checkpoint.bytes("iq3_xxs").expect_err("it can't be read");
    assert_eq!(error.to_string(), "tensor `iq3_xxs` is stored as IQ3_XXS, which is not supported yet");
    assert!(matches!(checkpoint.bytes("nothing"), Err(CheckpointError::MissingTensor { name }) if name == "nothing"));
    let total: u64 = checkpoint.bytes_by_encoding().iter().map(|group| group.bytes).sum();
    let sum: usize = checkpoint.tensors().iter().map(checkpoint::TensorInfo::byte_len).sum();
    assert_eq!(total, sum as u64 + 98);
}

#[test]
fn split_gguf() {
    let checkpoint = Checkpoint::open(&data("split-00001-of-00003.gguf")).expect("a sound model");
    check_tensors(&checkpoint, &TENSORS[..5]);
    assert_eq!(metadata_of(&checkpoint).get("gemma3.block_count"), Some(&Value::U32(1)));
    let sizes = (1..=3).map(|part| std::fs::metadata(data(&format!("split-0000{part}-of-00003.gguf"))).unwrap().len());
    assert_eq!(checkpoint.file_bytes(), sizes.sum::<u64>());
}

#[test]
fn safetensors_of_the_python_package() {
    let bytes = std::fs::read(data("values.safetensors")).unwrap();
    let folder = crate::scratch("safetensors_of_the_python_package");
    std::fs::write(folder.join("config.json"), "{\"a\": 1}").unwrap();
    std::fs::write(folder.join("any-name.safetensors"), &bytes).unwrap();
    let checkpoint = Checkpoint::open(&folder).expect("a sound folder");
    let expected: [(usize, &str, DType, &[usize]); 5] = [
        (0, "f32", DType::F32, &[3, 5]),
        (1, "f16", DType::F16, &[2, 3, 4]),
        (2, "bf16", DType::BF16, &[7]),
        (3, "empty", DType::F32, &[0, 4]),
        (5, "scalar", DType::F32, &[]),
    ];
    for (number, name, dtype, shape) in expected {
        let info = checkpoint.tensor(name).expect("the tensor is there");
        assert_eq!((info.dtype, info.shape.as_slice()), (dtype, shape), "{name}");
        let bytes = checkpoint.bytes(name).unwrap();
        assert_eq!(bytes.bytes(), pattern(info.elements() * dtype.block_bytes(), number), "{name}");
    }
    assert_eq!(checkpoint.tensors().len(), 5);
    assert_eq!(checkpoint.unsupported()[0].dtype, "I64");
    assert_eq!(checkpoint.folder(), Some(folder.as_path()));
    let Metadata::HuggingFace(files) = checkpoint.metadata() else { panic!("a folder has JSON files") };
    assert_eq!((files.config.as_str(), &files.generation_config), ("{\"a\": 1}", &None));
}

/// The trained model of the reference data, compared with the safetensors library.
#[test]
fn shards_with_an_index() {
    let Some(folder) = shared("models/tiny") else { return };
    let checkpoint = Checkpoint::open(&folder).expect("a sound folder");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for (name, view) in ::safetensors::SafeTensors::deserialize(&bytes).unwrap().iter() {
            let info = checkpoint.tensor(name).expect("in the index and here");
            assert_eq!(info.shape, view.shape());
            assert_eq!(info.dtype, DType::BF16);
            let ours = checkpoint.bytes(name).unwrap();
            assert!(ours.bytes() == view.data(), "{name}");
            ours.prefetch(0..ours.bytes().len());
            ours.release(0..ours.bytes().len());
            assert!(ours.bytes() == view.data(), "{name} after its pages went");
            seen += 1;
        }
    }
    assert_eq!(checkpoint.tensors().len(), seen);
    let Metadata::HuggingFace(files) = checkpoint.metadata() else { panic!("a folder has JSON files") };
    assert!(files.config.contains("gemma3_text") && files.generation_config.is_some());
}

#[test]
fn single_files_of_the_goldens() {
    for (name, tensor) in [
        ("text-1b-shape", "model.layers.0.self_attn.q_norm.weight"),
        ("vision-4b-shape", "language_model.model.layers.0.self_attn.q_norm.weight"),
    ] {
        let Some(folder) = shared(&format!("goldens/{name}")) else { return };
        let checkpoint = Checkpoint::open(&folder).expect("a sound folder");
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(checkpoint.tensors().len() + checkpoint.unsupported().len(), theirs.len());
        assert!(checkpoint.bytes(tensor).expect(name).bytes() == theirs.tensor(tensor).expect(name).data());
    }
}

/// What is read from the file is what its mapping has, also where the mapping would end the process.
#[cfg(unix)]
#[test]
fn a_file_that_gets_shorter() {
    let path = crate::scratch("a_file_that_gets_shorter").join("short.gguf");
    let mut builder = gguf::Builder::new(gguf::Metadata::new());
    builder.tensor("values", DType::F32, &[16, 1024]).unwrap();
    let mut writer = builder.create(&path).unwrap();
    let values: Vec<u8> = (0..65_536u32).map(|index| (index * 3 + index / 256) as u8).collect();
    writer.write_chunk("values", &values).unwrap();
    writer.finish().unwrap();
    let tensor = Checkpoint::open(&path).unwrap().bytes("values").unwrap();
    let mut part = vec![0; 5000];
    tensor.read(1000..6000, &mut part).unwrap();
    assert!(part == values[1000..6000] && part == tensor.bytes()[1000..6000]);

    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let whole = file.metadata().unwrap().len();
    file.set_len(whole - 60_000).unwrap();
    tensor.read(1000..5000, &mut part[..4000]).unwrap();
    assert!(part[..4000] == values[1000..5000]);
    let error = tensor.read(1000..6000, &mut part).unwrap_err();
    assert_eq!(error.to_string(), "the file has become shorter since it was opened");
    std::fs::remove_file(path).unwrap();
}

/// Bytes of this process in memory that come from files, or `None` where there is no `/proc`.
fn resident_file_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<usize>().ok()? * 1024)
}

#[test]
fn released_pages_leave_memory() {
    const BYTES: usize = 64 << 20;
    let path = crate::scratch("released_pages_leave_memory").join("big.gguf");
    let mut builder = gguf::Builder::new(gguf::Metadata::new());
    builder.tensor("big", DType::F32, &[BYTES / 4096, 1024]).unwrap();
    let mut writer = builder.create(&path).unwrap();
    for _ in 0..64 {
        writer.write_chunk("big", &vec![3; BYTES / 64]).unwrap();
    }
    writer.finish().unwrap();
    let tensor = Checkpoint::open(&path).unwrap().bytes("big").unwrap();
    let Some(before) = resident_file_bytes() else {
        #[expect(clippy::print_stderr, reason = "a test that can't run says so")]
        {
            eprintln!("skipped: this system has no /proc/self/status");
        }
        return;
    };
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    assert_eq!(sum(tensor.bytes()), 3 * BYTES as u64);
    let read = resident_file_bytes().unwrap();
    assert!(read >= before + BYTES * 9 / 10, "{before} {read}");
    for start in (0..BYTES).step_by(1_000_000) {
        tensor.release(start..(start + 1_000_000).min(BYTES));
    }
    let released = resident_file_bytes().unwrap();
    assert!(released < before + BYTES / 10, "{before} {read} {released}");
    let mut part = vec![0; BYTES / 2];
    tensor.read(BYTES / 4..BYTES / 4 * 3, &mut part).unwrap();
    assert_eq!(sum(&part), 3 * part.len() as u64);
    let copied = resident_file_bytes().unwrap();
    assert!(copied < before + BYTES / 10, "{before} {copied}: it was read past the mapping");
    assert_eq!(sum(tensor.bytes()), 3 * BYTES as u64, "the pages come back");
    std::fs::remove_file(path).unwrap();
}

/// A vocabulary as large as the real one must not cost a noticeable part of the start.
#[test]
fn a_large_vocabulary_is_read_fast() {
    let tokens: StringArray = (0..262_144u32).map(|id| format!("▁token{}", id.wrapping_mul(2_654_435_761))).collect();
    let mut metadata = gguf::Metadata::new();
    metadata.insert("tokenizer.ggml.tokens", Array::String(tokens.clone()));
    metadata.insert("tokenizer.ggml.scores", Array::F32(vec![-1.0; 262_144]));
    metadata.insert("tokenizer.ggml.token_type", Array::I32(vec![1; 262_144]));
    let bytes = gguf::Builder::new(metadata).header();
    let start = Instant::now();
    let file = gguf::parse("vocabulary", &bytes).expect("a sound file");
    let elapsed = start.elapsed();
    let found = file.metadata.get("tokenizer.ggml.tokens").and_then(Value::as_array).and_then(Array::strings);
    assert_eq!(found, Some(&tokens));
    // 12 ms in a release build; the bar leaves room for a development build on a busy machine.
    assert!(elapsed.as_millis() < 500, "{elapsed:?}");
    #[expect(clippy::print_stderr, reason = "the number is wanted when the test is run by hand")]
    {
        eprintln!("262,144 tokens in {elapsed:?}");
    }
}
