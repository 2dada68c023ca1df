//! Random and mutated files: an error or a sound result, never a panic.

use std::path::Path;
use std::sync::LazyLock;

use checkpoint::huggingface::Index;
use checkpoint::{Encoding, RawTensor, gguf, safetensors};
use proptest::prelude::*;
use tensor::DType;

use crate::{data, within_memory};

static GGUF: LazyLock<Vec<u8>> = LazyLock::new(|| std::fs::read(data("values-v3.gguf")).unwrap());
/// Without its `__metadata__`, which only the library looks into.
static SAFETENSORS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = std::fs::read(data("values.safetensors")).unwrap();
    let metadata = b"\"__metadata__\":{\"format\":\"pt\"},";
    assert_eq!(&bytes[9..9 + metadata.len()], metadata);
    bytes[9..9 + metadata.len()].fill(b' ');
    bytes
});

/// What every accepted file must give: ranges inside it that share no byte and fit their shape.
fn check_sound(tensors: &[RawTensor], file_bytes: usize) {
    let mut ranges: Vec<_> =
        tensors.iter().map(|tensor| tensor.range.clone()).filter(|range| !range.is_empty()).collect();
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    for tensor in tensors {
        assert!(tensor.range.start <= tensor.range.end && tensor.range.end <= file_bytes);
        if let Encoding::Supported(dtype) = tensor.encoding {
            let columns = tensor.shape.last().copied().unwrap_or(1);
            let rows = tensor.shape.iter().rev().skip(1).product();
            assert_eq!(dtype.tensor_bytes(rows, columns), Some(tensor.range.len()));
        }
    }
}

/// Changes of a file: at a place, a number of some width (often one that hurts), or a cut.
#[derive(Clone, Debug)]
enum Change {
    Byte(prop::sample::Index, u8),
    Length(prop::sample::Index, u64),
    Cut(prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let hurtful = prop_oneof![
        Just(u64::MAX),
        Just(u64::MAX - 7),
        Just(1 << 63),
        Just(1 << 32),
        Just(u64::from(u32::MAX)),
        Just(0),
        0..300u64
    ];
    prop_oneof![
        4 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        4 => (any::<prop::sample::Index>(), hurtful).prop_map(|(at, value)| Change::Length(at, value)),
        1 => any::<prop::sample::Index>().prop_map(Change::Cut),
        1 => any::<(prop::sample::Index, prop::sample::Index)>().prop_map(|(at, end)| Change::Repeat(at, end)),
    ]
}

fn apply(bytes: &mut Vec<u8>, changes: &[Change]) {
    for change in changes {
        if bytes.is_empty() {
            return;
        }
        match change {
            Change::Byte(at, byte) => *at.get_mut(bytes) = *byte,
            Change::Length(at, value) => {
                let at = at.index(bytes.len());
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            }
            Change::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Change::Repeat(from, to) => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.splice(from..from, piece);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = gguf::parse("any", &bytes);
        let _ = gguf::parse("any", &[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
        let _ = safetensors::parse("any", &bytes);
        let _ = Index::parse("any", &bytes);
    }

    #[test]
    fn any_json(text in "[\\[\\]{}\":,0-9a-z\\\\ -]{0,64}") {
        let header = format!("{{{text}");
        let _ = safetensors::parse("any", &[&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat());
        let _ = Index::parse("any", format!("{{\"weight_map\":{text}").as_bytes());
    }

    #[test]
    fn changed_gguf(changes in prop::collection::vec(change(), 1..6)) {
        let mut bytes = GGUF.clone();
        apply(&mut bytes, &changes);
        if let Ok(file) = within_memory(bytes.len(), || gguf::parse("changed", &bytes)) {
            check_sound(&file.tensors, bytes.len());
        }
    }

    /// Nothing is accepted that the safetensors library refuses, and what both accept is the same.
    #[test]
    fn changed_safetensors(changes in prop::collection::vec(change(), 1..6)) {
        let mut bytes = SAFETENSORS.clone();
        apply(&mut bytes, &changes);
        let Ok(tensors) = within_memory(bytes.len(), || safetensors::parse("changed", &bytes)) else { return Ok(()) };
        check_sound(&tensors, bytes.len());
        if let Ok(theirs) = ::safetensors::SafeTensors::deserialize(&bytes) {
            prop_assert_eq!(theirs.len(), tensors.len());
            for tensor in &tensors {
                let view = theirs.tensor(&tensor.name).expect("the same names");
                prop_assert_eq!(view.shape(), &tensor.shape);
                prop_assert_eq!(view.data(), &bytes[tensor.range.clone()]);
            }
        } else {
            // Types that the library doesn't know are kept by name here, until somebody asks for the tensor.
            let is_unknown = |encoding: &Encoding| matches!(encoding, Encoding::Other(name) if name != "I64");
            let unknown = tensors.iter().any(|tensor| is_unknown(&tensor.encoding));
            let metadata = String::from_utf8_lossy(&bytes).contains("__metadata__");
                        prop_assert!(unknown || metadata, "the library refuses it");
        }
    }

    /// Metadata and tensors come back as they were written.
    #[test]
    fn gguf_round_trip(
        entries in prop::collection::vec(("[a-z.]{1,12}", value()), 0..12),
        tensors in prop::collection::vec(("[a-z.]{1,12}", 0..DType::ALL.len(), 1..4usize, 1..3usize), 0..6),
    ) {
        let mut metadata = gguf::Metadata::new();
        for (key, value) in entries {
            metadata.insert(key, value);
        }
        let mut builder = gguf::Builder::new(metadata.clone());
        let mut declared = Vec::new();
        for (name, dtype, rows, blocks) in tensors {
            let dtype = DType::ALL[dtype];
            let shape = vec![rows, blocks * dtype.block_len()];
            if builder.tensor(&name, dtype, &shape).is_ok() {
                declared.push((name, dtype, shape));
            }
        }
        let mut bytes = builder.header();
        bytes.resize(builder.file_bytes() as usize, 0);
        let file = gguf::parse("written", &bytes).expect("a sound file");
        metadata.remove("general.alignment");
        prop_assert_eq!(file.metadata, metadata);
        prop_assert_eq!(file.tensors.len(), declared.len());
        for (tensor, (name, dtype, shape)) in file.tensors.iter().zip(&declared) {
            prop_assert_eq!((&tensor.name, &tensor.shape), (name, shape));
            prop_assert_eq!(&tensor.encoding, &Encoding::Supported(*dtype));
        }
        check_sound(&file.tensors, bytes.len());
    }
}

fn value() -> impl Strategy<Value = gguf::Value> {
    use gguf::{Array, Value};
    let strings = prop::collection::vec(".{0,6}", 0..5).prop_map(|strings| Array::String(strings.iter().collect()));
    let leaf = prop_oneof![
        any::<Vec<u8>>().prop_map(Array::U8),
        any::<Vec<i16>>().prop_map(Array::I16),
        any::<Vec<bool>>().prop_map(Array::Bool),
        prop::collection::vec(-1e30f32..1e30, 0..5).prop_map(Array::F32),
        any::<Vec<u64>>().prop_map(Array::U64),
        strings,
    ];
    let array = leaf.prop_recursive(2, 8, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Array::Array));
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e30f32..1e30).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,20}".prop_map(Value::String),
        array.prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e300f64..1e300).prop_map(Value::F64),
    ]
}

/// What the fuzzer found, without the fuzzer.
#[test]
fn the_corpus_of_the_fuzz_targets() {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus"));
    let mut files = 0;
    for target in ["gguf", "safetensors", "config"] {
        for entry in std::fs::read_dir(corpus.join(target)).expect("the corpus is part of the repository") {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let gguf = within_memory(bytes.len(), || gguf::parse(target, &bytes));
            gguf.iter().for_each(|file| check_sound(&file.tensors, bytes.len()));
            let safetensors = within_memory(bytes.len(), || safetensors::parse(target, &bytes));
            safetensors.iter().for_each(|tensors| check_sound(tensors, bytes.len()));
            let _ = within_memory(bytes.len(), || Index::parse(target, &bytes));
            files += 1;
        }
    }
    assert!(files >= 3);
}
