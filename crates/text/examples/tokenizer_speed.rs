//! Times loading a tokenizer and encoding a text: `tokenizer_speed TOKENIZER [TEXT]`.
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::time::Instant;

use text::{Special, Tokenizer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("expected the path of a `tokenizer.json` or `tokenizer.model`")?;
    let start = Instant::now();
    let bytes = std::fs::read(&path)?;
    let read = start.elapsed();
    let before = peak_bytes();
    let start = Instant::now();
    let tokenizer =
        if path.ends_with(".json") { Tokenizer::from_json(&bytes)? } else { Tokenizer::from_sentencepiece(&bytes)? };
    let load = start.elapsed();
    println!("{} pieces: read {read:.0?}, load {load:.0?}", tokenizer.vocabulary_len());
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        println!("peak memory: {:.1} MB more than with the file alone", (after - before) as f64 / 1e6);
    }
    let vocabulary = tokenizer.vocabulary(tokenizer.vocabulary_len());
    let start = Instant::now();
    let again = Tokenizer::from_vocabulary(vocabulary)?;
    println!("from a vocabulary with scores: load {:.0?}", start.elapsed());
    if let Some(path) = arguments.next() {
        let text = std::fs::read_to_string(path)?;
        for tokenizer in [&tokenizer, &again] {
            let start = Instant::now();
            let ids = tokenizer.encode(&text, Special::Text);
            let time = start.elapsed();
            let rate = text.len() as f64 / 1e6 / time.as_secs_f64();
            println!("{} bytes, {} ids: {time:.0?}, {rate:.1} MB/s", text.len(), ids.len());
            let start = Instant::now();
            let same = tokenizer.decode(&ids, false) == text;
            println!("decode: {:.0?}, {}", start.elapsed(), if same { "same text" } else { "another text" });
        }
    }
    Ok(())
}

/// The most memory that the process has used, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
