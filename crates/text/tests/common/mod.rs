//! Where the tests find their data.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// A tokenizer outside the repository.
pub(crate) struct Model {
    pub(crate) name: &'static str,
    folder: PathBuf,
}

impl Model {
    /// `tiny` or `gemma3`; says so and gives none where it is absent.
    pub(crate) fn find(name: &str) -> Option<Model> {
        let (name, folder) = match name {
            "tiny" => ("tiny", shared().join("models/tiny")),
            _ => ("gemma3", shared().join("tokenizer")),
        };
        if folder.join("tokenizer.json").exists() {
            return Some(Model { name, folder });
        }
        eprintln!("skipped: no `tokenizer.json` in {}", folder.display());
        None
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    pub(crate) fn read_shared(&self, file: &str) -> Vec<u8> {
        std::fs::read(shared().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }
}

fn shared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared")
}

/// A golden file.
pub(crate) fn data<T: DeserializeOwned>(file: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// FNV-1a, 64 bits, over the ids as little-endian u32.
pub(crate) fn fnv(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let state =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{state:016x}")
}
