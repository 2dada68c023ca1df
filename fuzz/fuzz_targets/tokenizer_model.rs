//! Any bytes as SentencePiece's `tokenizer.model`: an error, or a tokenizer whose ids are its own.
#![no_main]

use libfuzzer_sys::fuzz_target;
use text::{Special, Tokenizer};

fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_sentencepiece(bytes) else { return };
    let text = "a<bos>\n\n  \u{301}é";
    for special in [Special::Text, Special::Parse] {
        let ids = tokenizer.encode(text, special);
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary_len()));
        tokenizer.decode(&ids, false);
    }
});
