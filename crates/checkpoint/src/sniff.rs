//! Guesses what a file is from its first bytes, for messages.

use crate::CheckpointError;

/// What is said about a file that is something else.
struct Kind {
    description: &'static str,
    hint: &'static str,
}

const LFS_HINT: &str = "run `git lfs pull`, or download the file itself";
const PICKLE_HINT: &str = "pickle files can run code when they are read; use the `.safetensors` or `.gguf` files";
const AGAIN_HINT: &str = "download it again, logged in if the model asks for it";

/// The error for a file that is not what it should be.
pub(crate) fn wrong_kind(file: &str, expected: &'static str, bytes: &[u8]) -> CheckpointError {
    if bytes.is_empty() {
        return CheckpointError::Empty { file: file.to_owned() };
    }
    match recognise(bytes) {
        Some(Kind { description, hint }) => {
            CheckpointError::WrongKind { file: file.to_owned(), expected, found: description.to_owned(), hint }
        }
        None => {
            let start = &bytes[..bytes.len().min(8)];
            let found = format!("something else, it starts with {start:02x?}");
            CheckpointError::WrongKind { file: file.to_owned(), expected, found, hint: "" }
        }
    }
}

/// The kind of file that starts with these bytes.
fn recognise(bytes: &[u8]) -> Option<Kind> {
    let kind = |description, hint| Some(Kind { description, hint });
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).trim_start().to_ascii_lowercase();
    if text.starts_with("version https://git-lfs") {
        return kind("a git-lfs pointer, not the file itself", LFS_HINT);
    }
    if text.starts_with("<!doctype") || text.starts_with("<html") {
        return kind("a web page", AGAIN_HINT);
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return kind("a zip archive, which may be a PyTorch `.bin` or `.pt` file", PICKLE_HINT);
    }
    if bytes.starts_with(&[0x80]) && bytes.get(1).is_some_and(|&protocol| (2..=5).contains(&protocol)) {
        return kind("a Python pickle", PICKLE_HINT);
    }
    if bytes.starts_with(b"GGUF") {
        return kind("a GGUF file", "give the `.gguf` file itself instead of its folder");
    }
    if [b"lmgg", b"fmgg", b"tjgg"].iter().any(|magic| bytes.starts_with(*magic)) {
        return kind("a GGML file from before GGUF", "use a GGUF file of the model");
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return kind("a gzip archive", "unpack it first");
    }
    if bytes.len() > 9 && bytes[8] == b'{' && bytes[4..8] == [0; 4] {
        return kind("a safetensors file", "give the folder that has it and `config.json`");
    }
    if text.starts_with('{') {
        return kind("a JSON file", "");
    }
    if text.starts_with("entry not found") || text.starts_with("invalid username") || text.starts_with("access to") {
        return kind("an error message of the server that it was downloaded from", AGAIN_HINT);
    }
    if bytes.iter().take(256).all(|&byte| byte == 0) {
        return kind("a file of zeros, as an interrupted download leaves it", AGAIN_HINT);
    }
    None
}
