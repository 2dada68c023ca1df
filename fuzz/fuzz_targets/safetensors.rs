//! Any bytes as a safetensors file: an error, or tensors that share no byte and fill the file.
#![no_main]

use checkpoint::safetensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tensors) = safetensors::parse("fuzz", bytes) else { return };
    let mut ranges: Vec<_> = tensors.into_iter().map(|tensor| tensor.range).filter(|range| !range.is_empty()).collect();
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
    assert!(ranges.last().is_none_or(|range| range.end == bytes.len()));
});
