//! Written files: read back here and by Python's packages, and never half there.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use checkpoint::gguf::{Array, Builder, Metadata, Value};
use checkpoint::{AtomicFile, Checkpoint, CheckpointError, safetensors};
use tensor::{DType, WeightBytes};

use crate::{pattern, scratch};

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs a Python script with the file's path as its argument; `None` if the package is not there.
fn python(package: &str, script: &str, path: &Path) -> Option<String> {
    let there = Command::new("python3").args(["-c", &format!("import {package}")]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        #[expect(clippy::print_stderr, reason = "a test that can't run says so")]
        {
            eprintln!("skipped: Python has no package {package}");
        }
        return None;
    }
    let output = Command::new("python3").arg("-c").arg(script).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

fn builder() -> Builder {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "gemma3");
    metadata.insert("gemma3.block_count", 3u32);
    metadata.insert("gemma3.rope.freq_base", 1e6f32);
    metadata.insert("tokenizer.ggml.add_bos_token", true);
    metadata.insert("tokenizer.ggml.tokens", Array::String(["<pad>", "▁a", "\n"].into_iter().collect()));
    metadata.insert("tokenizer.ggml.scores", Array::F32(vec![0.0, -1.5, 2.0]));
    metadata.insert("value.nested", Array::Array(vec![Array::I32(vec![1, 2]), Array::I32(vec![])]));
    metadata.insert("value.i64", Value::I64(-5));
    let mut builder = Builder::new(metadata);
    for (name, dtype, shape) in TENSORS {
        builder.tensor(name, dtype, shape).unwrap();
    }
    builder
}

const TENSORS: [(&str, DType, &[usize]); 4] = [
    ("token_embd.weight", DType::Q8_0, &[3, 64]),
    ("output_norm.weight", DType::F32, &[5]),
    ("b.weight", DType::Q4_0, &[2, 32]),
    ("c.weight", DType::BF16, &[2, 3, 1]),
];

fn bytes_of(number: usize) -> Vec<u8> {
    let (_, dtype, shape) = TENSORS[number];
    let columns = *shape.last().unwrap();
    pattern(dtype.tensor_bytes(shape.iter().product::<usize>() / columns, columns).unwrap(), number)
}

#[test]
fn gguf_is_read_back_here_and_in_python() {
    let folder = scratch("gguf_is_read_back");
    let path = folder.join("written.gguf");
    let size = builder().file_bytes();
    let mut writer = builder().create(&path).unwrap();
    writer.write_tensor(TENSORS[0].0, &bytes_of(0)).unwrap();
    bytes_of(1).chunks(7).for_each(|chunk| writer.write_chunk(TENSORS[1].0, chunk).unwrap());
    writer.write_tensor(TENSORS[2].0, &bytes_of(2)).unwrap();
    writer.write_tensor(TENSORS[3].0, &bytes_of(3)).unwrap();
    assert!(!path.exists(), "the target appears at the end");
    writer.finish().unwrap();
    assert_eq!(names(&folder), ["written.gguf"]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), size);

    let checkpoint = Checkpoint::open(&path).unwrap();
    for (number, (name, dtype, shape)) in TENSORS.into_iter().enumerate() {
        let info = checkpoint.tensor(name).unwrap();
        assert_eq!((info.dtype, info.shape.as_slice()), (dtype, shape));
        assert_eq!(checkpoint.bytes(name).unwrap().bytes(), bytes_of(number));
    }
    let script = "
import gguf, sys
reader = gguf.GGUFReader(sys.argv[1])
for key, field in reader.fields.items():
    if not key.startswith('GGUF.'):
        nested = len(field.types) > 2
        print(key, 'nested' if nested else field.contents())
for tensor in reader.tensors:
    print(tensor.name, tensor.tensor_type.name, tensor.shape.tolist(), int(tensor.data.tobytes()[5]))
";
    let Some(output) = python("gguf", script, &path) else { return };
    let expected = "general.architecture gemma3\ngemma3.block_count 3\ngemma3.rope.freq_base 1000000.0\n\
                    tokenizer.ggml.add_bos_token True\ntokenizer.ggml.tokens ['<pad>', '▁a', '\\n']\n\
                    tokenizer.ggml.scores [0.0, -1.5, 2.0]\nvalue.nested nested\nvalue.i64 -5\n\
                    token_embd.weight Q8_0 [64, 3] 35\noutput_norm.weight F32 [5] 36\nb.weight Q4_0 [32, 2] 37\n\
                    c.weight BF16 [1, 3, 2] 38\n";
    assert_eq!(output, expected);
}

#[test]
fn safetensors_are_read_back_here_and_in_python() {
    let folder = scratch("safetensors_are_read_back");
    let path = folder.join("model.safetensors");
    let logits: Vec<u8> = (0..6).flat_map(|value| (value as f32 * 0.5).to_le_bytes()).collect();
    let tensors: [(&str, DType, &[usize]); 3] =
        [("logits", DType::F32, &[2, 3]), ("odd \"name\"", DType::BF16, &[1]), ("none", DType::F32, &[0, 3])];
    let mut writer = safetensors::Writer::create(&path, &tensors, &[("format", "np"), ("a", "b\n")]).unwrap();
    writer.write_chunk("logits", &logits[..10]).unwrap();
    writer.write_chunk("logits", &logits[10..]).unwrap();
    writer.write_tensor("odd \"name\"", &[1, 2]).unwrap();
    writer.write_tensor("none", &[]).unwrap();
    writer.finish().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("logits").unwrap().data(), logits);
    assert_eq!(theirs.tensor("none").unwrap().shape(), [0, 3]);
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.bytes("logits").unwrap().bytes(), logits);
    let script = "
import safetensors.numpy, sys
from safetensors import safe_open
file = safe_open(sys.argv[1], 'np')
print(sorted(file.keys()), file.metadata()['a'] == 'b\\n', file.get_tensor('logits').tolist())
";
    let Some(output) = python("safetensors", script, &path) else { return };
    assert_eq!(output, "['logits', 'none', 'odd \"name\"'] True [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]\n");
}

#[test]
fn wrong_declarations() {
    let folder = scratch("wrong_declarations");
    let refused = |error: CheckpointError, expected: &str| {
        assert!(matches!(error, CheckpointError::Declaration { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "found `{error}`, expected `{expected}`");
    };
    let mut builder = builder();
    refused(builder.tensor("c.weight", DType::F32, &[1]).unwrap_err(), "declared twice");
    refused(builder.tensor("d", DType::Q4_0, &[2, 33]).unwrap_err(), "multiple of 32");
    refused(builder.tensor("d", DType::F32, &[usize::MAX, 2]).unwrap_err(), "is impossible in f32");
    refused(builder.tensor("d", DType::F32, &[1; 5]).unwrap_err(), "has 5 dimensions");
    refused(builder.tensor(&"d".repeat(64), DType::F32, &[1]).unwrap_err(), "has 64 bytes");

    let path = folder.join("f.gguf");
    let mut writer = builder.clone().create(&path).unwrap();
    refused(writer.write_tensor("b.weight", &[]).unwrap_err(), "`token_embd.weight` was declared to come next");
    refused(writer.write_tensor(TENSORS[0].0, &[0; 9]).unwrap_err(), "204 bytes were declared, 9 given");
    writer.write_chunk(TENSORS[0].0, &[0; 200]).unwrap();
    refused(writer.write_chunk(TENSORS[0].0, &[0; 5]).unwrap_err(), "5 bytes are given, 4 of 204 are left");
    refused(writer.finish().unwrap_err(), "200 of 204 bytes were given before the end");
    assert!(names(&folder).is_empty(), "nothing is left: {:?}", names(&folder));

    let block: &[usize] = &[32];
    let error = safetensors::Writer::create(&path, &[("t", DType::Q4_0, block)], &[]).unwrap_err();
    refused(error, "don't have the format q4_0");
    let error = safetensors::Writer::create(&path, &[("t", DType::F32, block), ("t", DType::F32, block)], &[]);
    refused(error.unwrap_err(), "the name is taken");
}

#[test]
fn an_existing_file_stays_until_the_end() {
    let folder = scratch("an_existing_file_stays");
    let path = folder.join("file");
    std::fs::write(&path, "old").unwrap();
    let mut file = AtomicFile::create(&path).unwrap();
    file.append(&[b'x'; 3 << 20]).unwrap();
    let partial = format!(".file.{}.partial", std::process::id());
    assert_eq!(names(&folder), [partial.as_str(), "file"]);
    drop(file);
    assert_eq!(names(&folder), ["file"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");

    // Two at once, and the remains of a process that was killed, don't disturb each other.
    std::fs::write(folder.join(&partial), "remains").unwrap();
    let (mut first, mut second) = (AtomicFile::create(&path).unwrap(), AtomicFile::create(&path).unwrap());
    write!(first, "first").unwrap();
    write!(second, "second").unwrap();
    assert_eq!(second.written(), 6);
    second.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"second");
    first.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"first");
    assert_eq!(std::fs::read(folder.join(&partial)).unwrap(), b"remains");
    AtomicFile::replace(&path, b"third").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"third");
}

#[test]
fn targets_that_can_not_be_written() {
    let folder = scratch("targets_that_can_not_be_written");
    let error = AtomicFile::create(&folder.join("no/file")).unwrap_err();
    assert!(matches!(&error, CheckpointError::NotFound { path } if path.ends_with("no")), "{error:?}");
    let error = AtomicFile::create(&folder).unwrap_err();
    assert!(matches!(&error, CheckpointError::Io { action: "create", .. }), "{error:?}");
    assert!(names(&folder).is_empty());
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_permissions_kept() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = scratch("links_are_followed");
    let (path, link) = (folder.join("file"), folder.join("link"));
    std::fs::write(&path, "old").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    symlink("file", &link).unwrap();
    AtomicFile::replace(&link, b"new").unwrap();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let error = AtomicFile::replace(Path::new("/dev/full"), b"text").unwrap_err();
    assert!(matches!(error, CheckpointError::DiskFull { .. }), "{error:?}");
    let mut file = AtomicFile::create(Path::new("/dev/full")).unwrap();
    let error = (0..4).find_map(|_| file.append(&[0; 1 << 20]).err()).expect("the disk is full");
    assert!(error.to_string().contains("no space left on the disk: `/dev/full`"), "{error}");
    assert!(file.append(b"more").is_err() && file.finish().is_err(), "it stays an error");
    // A device is written in place and stays a device.
    AtomicFile::replace(Path::new("/dev/null"), b"text").unwrap();
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
}
