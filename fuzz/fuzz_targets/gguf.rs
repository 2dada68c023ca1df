//! Any bytes as a GGUF file: an error, or tensors inside the file and metadata that come back when written.
#![no_main]

use checkpoint::gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = gguf::parse("fuzz", bytes) else { return };
    assert!(
        file.tensors.iter().all(|tensor| tensor.range.start <= tensor.range.end && tensor.range.end <= bytes.len())
    );
    let mut metadata = file.metadata;
    metadata.remove("general.alignment");
    let again = gguf::parse("again", &gguf::Builder::new(metadata.clone()).header()).expect("a sound header");
    // Compared as text: a NaN is not equal to itself.
    assert_eq!(format!("{metadata:?}"), format!("{:?}", again.metadata));
});
