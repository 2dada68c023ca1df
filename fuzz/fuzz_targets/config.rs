//! Any bytes as `model.safetensors.index.json`: an error, or shards whose names stay in the folder.
#![no_main]

use std::path::{Component, Path};

use checkpoint::huggingface::Index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = Index::parse("fuzz", bytes) else { return };
    for shard in index.shards.keys() {
        let components: Vec<_> = Path::new(shard).components().collect();
        assert!(matches!(components.as_slice(), [Component::Normal(_)]), "{shard:?}");
    }
});
