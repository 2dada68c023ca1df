//! The built-in model as a file.

use std::process::{Command, Stdio};
use std::time::SystemTime;
use std::{fs, io};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lapidary");
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tiny");
const FILE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/tiny-q4_0.gguf");

/// A GGUF file of the built-in model in Q4_0, its embedding in Q5_1, which whoever comes first makes. It is made again
/// when the program is another one.
pub(crate) fn gguf() -> &'static str {
    let written = |path: &str| -> io::Result<SystemTime> { fs::metadata(path)?.modified() };
    let is_new = || written(FILE).is_ok_and(|file| written(PROGRAM).is_ok_and(|program| file >= program));
    if !is_new() {
        // Another process may be making it too: the file appears when it is whole, and both are the same.
        let arguments = ["quantize", FOLDER, "--format", "q4_0", "--embedding-format", "q5_1", "--output", FILE];
        let mut command = Command::new(PROGRAM);
        let output = command.args(arguments).arg("--force").stdin(Stdio::null()).output().expect("the program starts");
        assert!(output.status.success() || is_new(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    FILE
}
