//! Hostile and broken files: each gets an error that says what is wrong.

use std::path::Path;

use checkpoint::huggingface::Index;
use checkpoint::{Checkpoint, CheckpointError, gguf, safetensors};

use crate::{data, scratch, within_memory};

/// Bytes of a GGUF file, put together by hand.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    /// Magic, version and counts.
    fn new(version: u32, tensors: u64, entries: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(version).u64(tensors).u64(entries)
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }

    fn u32(self, value: u32) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn string(self, string: &str) -> Raw {
        self.u64(string.len() as u64).bytes(string.as_bytes())
    }

    /// A tensor's declaration, dimensions as in the file: innermost first.
    fn tensor(self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Raw {
        let raw = self.string(name).u32(dimensions.len() as u32);
        dimensions.iter().fold(raw, |raw, &dimension| raw.u64(dimension)).u32(kind).u64(offset)
    }

    /// Padding to 32 and that many bytes of data.
    fn data(mut self, bytes: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 0);
        self
    }
}

fn check(cases: &[(&str, Vec<u8>, &str)], parse: impl Fn(&[u8]) -> Result<(), CheckpointError>) {
    for (case, bytes, expected) in cases {
        match within_memory(bytes.len(), || parse(bytes)) {
            Ok(()) => panic!("{case}: accepted, expected `{expected}`"),
            Err(error) => {
                assert!(error.to_string().contains(expected), "{case}: found `{error}`, expected `{expected}`")
            }
        }
    }
}

const F32: u32 = 0;
const Q8_0: u32 = 8;

#[test]
fn gguf_metadata() {
    let entry = |key: &str, kind: u32| Raw::new(3, 0, 1).string(key).u32(kind);
    let nested = (0..6).fold(entry("k", 9), |raw, _| raw.u32(9).u64(1));
    let alignment = |value: u32| Raw::new(3, 0, 1).string("general.alignment").u32(4).u32(value);
    let cases = [
        ("magic only", b"GGUF".to_vec(), "the version at byte 4 needs 4 bytes, 0 are there"),
        ("version 1", Raw::new(1, 0, 0).0, "it is GGUF version 1, versions 2 and 3 are read"),
        ("version 4", Raw::new(4, 0, 0).0, "it is GGUF version 4"),
        ("no counts", Raw(b"GGUF".to_vec()).u32(3).0, "the number of tensors at byte 8 needs 8 bytes"),
        ("2^64 tensors", Raw::new(3, u64::MAX, 0).0, "the number of tensors is 18446744073709551615, at most 262144"),
        ("2^64 entries", Raw::new(3, 0, u64::MAX).0, "the number of metadata entries is 18446744073709551615"),
        ("entries missing", Raw::new(3, 0, 1000).0, "metadata key 0 at byte 24 needs 8 bytes, 0 are there"),
        (
            "key of 2^64",
            Raw::new(3, 0, 1).u64(u64::MAX).0,
            "metadata key 0 at byte 32 needs 18446744073709551615 bytes",
        ),
        ("key of 2^63", Raw::new(3, 0, 1).u64(1 << 63).0, "needs 9223372036854775808 bytes"),
        (
            "key no UTF-8",
            Raw::new(3, 0, 1).u64(2).bytes(&[0xff, 0xfe]).0,
            "metadata key 0 at byte 24 is not valid UTF-8",
        ),
        ("key too long", Raw::new(3, 0, 1).string(&"k".repeat(70_000)).0, "has 70000 bytes, at most 65535"),
        (
            "key twice",
            Raw::new(3, 0, 2).string("k").u32(4).u32(1).string("k").u32(4).u32(1).0,
            "metadata key `k` is there twice",
        ),
        ("value type", entry("k", 13).0, "metadata key `k` has the unknown type 13"),
        ("value cut", entry("k", 10).u32(1).0, "a metadata value at byte"),
        ("bool of 2", entry("k", 7).bytes(&[2]).0, "a boolean must be 0 or 1, found 2"),
        ("bool in array", entry("k", 9).u32(7).u64(2).bytes(&[1, 9]).0, "a boolean must be 0 or 1, found 9"),
        ("string of 2^64", entry("k", 8).u64(u64::MAX - 7).0, "the value of `k` at byte"),
        ("array type", entry("k", 9).u32(99).u64(0).0, "metadata key `k` is an array of the unknown type 99"),
        ("array of 2^64", entry("k", 9).u32(12).u64(u64::MAX).0, "claims 18446744073709551615 elements"),
        ("array of 2^61", entry("k", 9).u32(12).u64(1 << 60).0, "an array at byte"),
        ("strings of 2^64", entry("k", 9).u32(8).u64(u64::MAX).0, "the strings of `k` at byte"),
        ("strings cut", entry("k", 9).u32(8).u64(2).u64(1).u64(1).0, "a string's length at byte"),
        ("string no UTF-8", entry("k", 9).u32(8).u64(1).u64(1).bytes(&[0x80]).0, "string 0 of `k` at byte"),
        ("arrays of 2^64", entry("k", 9).u32(9).u64(u64::MAX).0, "holds 18446744073709551615 arrays, at most 65536"),
        ("deep arrays", nested.u32(0).u64(0).0, "arrays are nested deeper than 4"),
        ("alignment 0", alignment(0).0, "`general.alignment` must be a uint32 and a power of two"),
        ("alignment 24", alignment(24).0, "`general.alignment` must be"),
        (
            "alignment text",
            Raw::new(3, 0, 1).string("general.alignment").u32(8).string("x").0,
            "`general.alignment` must be",
        ),
    ];
    check(&cases, |bytes| gguf::parse("attack", bytes).map(drop));
}

#[test]
fn gguf_tensors() {
    let one = || Raw::new(3, 1, 0);
    let cases = [
        ("name of 2^64", one().u64(u64::MAX).0, "the name of tensor 0 at byte"),
        ("5 dimensions", one().tensor("t", &[1; 5], F32, 0).0, "tensor `t` has 5 dimensions, at most 4"),
        ("2^32 dimensions", one().string("t").u32(u32::MAX).0, "has 4294967295 dimensions"),
        ("2^128 weights", one().tensor("t", &[1 << 63, 1 << 63], F32, 0).0, "has the impossible shape"),
        ("2^64 bytes", one().tensor("t", &[1 << 62], F32, 0).0, "has the impossible shape"),
        (
            "half a block",
            one().tensor("t", &[33, 2], Q8_0, 0).data(128).0,
            "has rows of 33 weights, Q8_0 needs a multiple of 32",
        ),
        ("type 5", one().tensor("t", &[32], 5, 0).data(128).0, "tensor `t` has the type Q4_3, which ggml has removed"),
        ("type 77", one().tensor("t", &[32], 77, 0).data(128).0, "tensor `t` has the unknown type 77"),
        ("offset of 1", one().tensor("t", &[1], F32, 1).data(128).0, "starts at offset 1, which is no multiple of 32"),
        ("offset of 2^64", one().tensor("t", &[8], F32, u64::MAX - 31).data(128).0, "claims the impossible offset"),
        ("offset beyond", one().tensor("t", &[8], F32, 1 << 40).data(128).0, "is cut off or damaged"),
        ("data missing", one().tensor("t", &[8], F32, 0).data(31).0, "96 bytes, 95 are there (1 are missing)"),
        (
            "overlap",
            Raw::new(3, 2, 0).tensor("a", &[16], F32, 0).tensor("b", &[16], F32, 32).data(128).0,
            "tensors `a` and `b` overlap",
        ),
        (
            "same place",
            Raw::new(3, 2, 0).tensor("a", &[8], F32, 0).tensor("b", &[8], F32, 0).data(128).0,
            "tensors `a` and `b` overlap",
        ),
        (
            "name twice",
            Raw::new(3, 2, 0).tensor("a", &[8], F32, 0).tensor("a", &[8], F32, 32).data(128).0,
            "it has two tensors `a`",
        ),
    ];
    check(&cases, |bytes| gguf::parse("attack", bytes).map(drop));
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let whole = std::fs::read(data("values-v3.gguf")).unwrap();
    let end = gguf::parse("whole", &whole).unwrap().tensors.iter().map(|tensor| tensor.range.end).max().unwrap();
    for length in 0..end {
        assert!(gguf::parse("cut", &whole[..length]).is_err(), "{length} of {end} bytes");
    }
    let whole = std::fs::read(data("values.safetensors")).unwrap();
    for length in 0..whole.len() {
        assert!(safetensors::parse("cut", &whole[..length]).is_err(), "{length} of {} bytes", whole.len());
    }
}

/// A safetensors file with that header and that many bytes of data.
fn raw_safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn safetensors_headers() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!("{{\"t\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
    };
    let pair = |a: &str, b: &str, second: &str| {
        format!(
            "{{\"{a}\":{{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}},\
             \"{b}\":{{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":{second}}}}}"
        )
    };
    let inside = pair("a", "b", "[8,8]").replace("[4],\"data_offsets\":[8", "[0],\"data_offsets\":[8");
    let deep = format!("{{\"t\":{}", "[".repeat(100_000));
    let deep_ignored = format!("{{\"__metadata__\":{}", "{\"a\":".repeat(100_000));
    let mut huge = raw_safetensors("{}", 0);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut long = raw_safetensors("{}", 0);
    long[..8].copy_from_slice(&1000u64.to_le_bytes());
    let cases = [
        ("short", vec![1, 2, 3], "the length of the header needs 8 bytes, 3 are there"),
        ("header of 2^64", huge, "its header claims 18446744073709551615 bytes, at most 100000000"),
        ("header cut", long, "the header needs 1000 bytes, 2 are there (998 are missing)"),
        ("no header", raw_safetensors("", 0), "its header is not what it should be"),
        ("an array", raw_safetensors("[]", 0), "is not a safetensors file"),
        ("half an object", raw_safetensors("{\"t\":", 0), "its header is not what it should be: EOF"),
        ("text after it", raw_safetensors("{} {}", 0), "its header is not what it should be: trailing"),
        ("deep", raw_safetensors(&deep, 0), "its header is not what it should be"),
        ("deep metadata", raw_safetensors(&deep_ignored, 0), "its header is not what it should be"),
        ("no dtype", raw_safetensors("{\"t\":{\"shape\":[],\"data_offsets\":[0,4]}}", 4), "missing field `dtype`"),
        ("negative", raw_safetensors(&entry("F32", "[-1]", "[0,4]"), 4), "its header is not what it should be"),
        ("fraction", raw_safetensors(&entry("F32", "[1.5]", "[0,4]"), 4), "its header is not what it should be"),
        ("backwards", raw_safetensors(&entry("F32", "[1]", "[4,0]"), 4), "ends at offset 0, before it starts at 4"),
        ("wrong length", raw_safetensors(&entry("F32", "[2]", "[0,4]"), 4), "shape [2] has 4 bytes, not 8"),
        ("2^64 weights", raw_safetensors(&entry("F32", "[4294967296,4294967296]", "[0,4]"), 4), "the impossible shape"),
        (
            "2^64 bytes",
            raw_safetensors(&entry("F32", "[4611686018427387904]", "[0,0]"), 0),
            "has the impossible shape [4611686018427387904]",
        ),
        (
            "offsets at 2^64",
            raw_safetensors(&entry("F32", "[1]", "[18446744073709551608,18446744073709551612]"), 4),
            "claims the impossible offsets",
        ),
        ("beyond the end", raw_safetensors(&entry("F32", "[100]", "[0,400]"), 100), "(300 are missing)"),
        ("17 dimensions", raw_safetensors(&entry("F32", &format!("{:?}", [1; 17]), "[0,4]"), 4), "has 17 dimensions"),
        ("overlap", raw_safetensors(&pair("a", "b", "[8,24]"), 32), "tensors `a` and `b` overlap"),
        ("hole", raw_safetensors(&pair("a", "b", "[20,36]"), 36), "4 bytes from byte 134 on belong to no tensor"),
        (
            "bytes at the end",
            raw_safetensors(&pair("a", "b", "[16,32]"), 40),
            "8 bytes from byte 150 on belong to no tensor",
        ),
        ("empty inside", raw_safetensors(&inside, 16), "a tensor without weights lies at byte"),
        ("name twice", raw_safetensors(&pair("a", "a", "[16,32]"), 32), "it has two tensors `a`"),
    ];
    check(&cases, |bytes| safetensors::parse("attack", bytes).map(drop));
}

#[test]
fn indices() {
    let map = |shard: &str| format!("{{\"weight_map\":{{\"t\":{shard}}}}}").into_bytes();
    let cases = [
        ("empty", Vec::new(), "EOF while parsing"),
        ("no map", b"{}".to_vec(), "missing field `weight_map`"),
        ("an empty map", b"{\"weight_map\":{}}".to_vec(), "its `weight_map` is empty"),
        ("a number", map("1"), "invalid type"),
        ("parent folder", map("\"../other.safetensors\""), "in `../other.safetensors`, a plain file name was expected"),
        ("root", map("\"/etc/passwd\""), "a plain file name was expected"),
        ("drive", map("\"C:x.safetensors\""), "a plain file name was expected"),
        ("backslash", map("\"..\\\\x\""), "a plain file name was expected"),
        ("dots", map("\"..\""), "a plain file name was expected"),
        ("twice", b"{\"weight_map\":{\"t\":\"a\",\"t\":\"b\"}}".to_vec(), "it has the tensor `t` twice"),
        ("deep", "{\"x\":".repeat(100_000).into_bytes(), "EOF while parsing"),
    ];
    check(&cases, |bytes| Index::parse("attack", bytes).map(drop));
}

/// Opens what `build` puts into an empty folder, and checks the message.
fn check_folder(name: &str, expected: &str, build: impl Fn(&Path)) {
    let folder = scratch(&format!("attack-{name}"));
    build(&folder);
    let error = Checkpoint::open(&folder).expect_err(name).to_string();
    assert!(error.contains(expected), "{name}: found `{error}`, expected `{expected}`");
}

fn put(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).unwrap();
}

/// A configuration and an index with that map.
fn index(folder: &Path, map: &str) {
    put(folder, "config.json", b"{}");
    put(folder, "model.safetensors.index.json", format!("{{\"weight_map\":{map}}}").as_bytes());
}

fn golden() -> Vec<u8> {
    std::fs::read(data("values.safetensors")).unwrap()
}

#[test]
fn folders() {
    check_folder("empty", "is not a checkpoint: `config.json` is missing", |_| {});
    check_folder("gguf", "hint: to open a GGUF file, name it: `", |folder| put(folder, "m.gguf", b"GGUF"));
    check_folder("no-weights", "`model.safetensors` or `model.safetensors.index.json` is missing", |folder| {
        put(folder, "config.json", b"{}");
    });
    check_folder("pickle", "hint: it has pickle files", |folder| {
        put(folder, "config.json", b"{}");
        put(folder, "pytorch_model.bin", b"PK\x03\x04");
    });
    check_folder("config-lfs", "config.json` is not a JSON object: it looks like a git-lfs pointer", |folder| {
        put(folder, "config.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n");
    });
    check_folder("config-empty", "config.json` is empty", |folder| put(folder, "config.json", b""));
    check_folder("config-utf8", "config.json` is damaged: it is not valid UTF-8", |folder| {
        put(folder, "config.json", b"{\xff}");
    });
}

#[test]
fn folders_with_wrong_weights() {
    check_folder("weights-lfs", "model.safetensors` is not a safetensors file: it looks like a git-lfs", |folder| {
        put(folder, "config.json", b"{}");
        put(folder, "model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n");
    });
    check_folder("weights-html", "looks like a web page", |folder| {
        put(folder, "config.json", b"{}");
        put(folder, "model.safetensors", b"<!DOCTYPE html><html><body>Not found</body></html>");
    });
    check_folder("weights-empty", "model.safetensors` is empty", |folder| {
        put(folder, "config.json", b"{}");
        put(folder, "model.safetensors", b"");
    });
    check_folder("weights-folder", "it is a folder", |folder| {
        put(folder, "config.json", b"{}");
        std::fs::create_dir(folder.join("model.safetensors")).unwrap();
    });
}

#[test]
fn folders_with_wrong_shards() {
    let golden = golden();
    check_folder("two-files", "nothing says which belong together", |folder| {
        put(folder, "config.json", b"{}");
        put(folder, "a.safetensors", &golden);
        put(folder, "b.safetensors", &golden);
    });
    check_folder("shard-lost", "is incomplete: missing `b.safetensors`", |folder| {
        index(folder, "{\"f32\":\"a.safetensors\",\"f16\":\"b.safetensors\"}");
        put(folder, "a.safetensors", &golden);
    });
    check_folder("shard-outside", "a plain file name was expected", |folder| {
        index(folder, "{\"f32\":\"../attack-shard-lost/a.safetensors\"}");
    });
    check_folder("tensor-lost", "tensor `other` is missing, which the index places there", |folder| {
        index(folder, "{\"f32\":\"a.safetensors\",\"other\":\"a.safetensors\"}");
        put(folder, "a.safetensors", &golden);
    });
    check_folder("numbered-lost", "is incomplete: missing `model-00002-of-00003.safetensors`", |folder| {
        put(folder, "config.json", b"{}");
        put(folder, "model-00001-of-00003.safetensors", &golden);
        put(folder, "model-00003-of-00003.safetensors", &golden);
    });
    check_folder("numbered-twice", "tensor `bf16` is in two of its files", |folder| {
        put(folder, "config.json", b"{}");
        put(folder, "model-00001-of-00002.safetensors", &golden);
        put(folder, "model-00002-of-00002.safetensors", &golden);
    });
}

#[test]
fn wrong_files() {
    let folder = scratch("attack-wrong_files");
    let golden = std::fs::read(data("values.safetensors")).unwrap();
    let cases: [(&str, &[u8], &str); 10] = [
        ("empty", b"", "is empty"),
        ("zip", b"PK\x03\x04aaaaaaaaaaaa", "is not a GGUF file: it looks like a zip archive"),
        ("pickle", b"\x80\x02}q\x00aaaaaaaa", "looks like a Python pickle"),
        ("html", b"\n<html><head>", "looks like a web page"),
        ("lfs", b"version https://git-lfs.github.com/spec/v1", "looks like a git-lfs pointer"),
        ("safetensors", &golden, "looks like a safetensors file\n\nhint: give the folder"),
        ("json", b"{\"a\": 1}", "looks like a JSON file"),
        ("ggml", b"tjgg\x03\0\0\0", "looks like a GGML file from before GGUF"),
        ("zeros", &[0; 100], "looks like a file of zeros"),
        ("text", b"hello world", "it starts with [68, 65, 6c, 6c, 6f, 20, 77, 6f]"),
    ];
    for (name, bytes, expected) in cases {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = Checkpoint::open(&path).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: found `{error}`, expected `{expected}`");
    }
    let missing = Checkpoint::open(&folder.join("nothing.gguf"));
    assert!(matches!(missing, Err(CheckpointError::NotFound { .. })), "{missing:?}");
    let error = Checkpoint::open(&data("big-endian.gguf")).expect_err("big-endian").to_string();
    assert!(error.contains("it is a big-endian GGUF file"), "{error}");
}

#[test]
fn split_files() {
    let folder = scratch("attack-split_files");
    let part = |number: usize| format!("split-0000{number}-of-00003.gguf");
    let copy = |from: &str, to: &str| std::fs::copy(data(from), folder.join(to)).map(drop).unwrap();
    let open = |name: &str| Checkpoint::open(&folder.join(name)).expect_err(name).to_string();
    copy(&part(1), &part(1));
    copy(&part(2), &part(2));
    assert!(open(&part(1)).contains("is incomplete: missing `split-00003-of-00003.gguf`"));
    assert!(open(&part(2)).contains("hint: open `split-00001-of-00003.gguf`"));
    copy(&part(2), &part(3));
    assert!(open(&part(1)).contains("it is not part 3 of 3"));
    copy(&part(1), "renamed.gguf");
    assert!(open("renamed.gguf").contains("it is part 1 of 3, but its name does not end like that"));
}
