//! Tests of the readers and writers on files: those of other programs, those written here, and hostile ones.

mod attack;
mod built_in;
mod exl3;
mod properties;
mod read;
mod write;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};

/// A file of `tests/data`.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// An empty folder for one test.
fn scratch(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("checkpoint").join(test);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

/// The bytes that `make_goldens.py` gives the tensor of that number.
fn pattern(length: usize, number: usize) -> Vec<u8> {
    (0..length).map(|index| ((index * 7 + number) % 256) as u8).collect()
}

/// A folder of the reference data, which is beside the repository or absent.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(path);
    if !path.exists() {
        #[expect(clippy::print_stderr, reason = "a test that can't run says so")]
        {
            eprintln!("skipped: {} is not there", path.display());
        }
        return None;
    }
    Some(path)
}

thread_local! {
    /// Largest allocation of this thread since it was reset.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which notes the largest allocation of each thread.
struct Watching;

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn note(bytes: usize) {
    LARGEST.set(LARGEST.get().max(bytes));
}

// SAFETY: every call goes to the system's allocator unchanged; noting a size in a `Cell` allocates nothing.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs a parser on a file's bytes and checks that no allocation follows a length that the file only claims: each
/// stays within a small multiple of the bytes that are there (a growing `Vec` doubles, an entry takes more than in
/// the file).
fn within_memory<T>(file_bytes: usize, parse: impl FnOnce() -> T) -> T {
    LARGEST.set(0);
    let result = parse();
    let largest = LARGEST.get();
    assert!(largest <= 16 * file_bytes + 4096, "an allocation of {largest} bytes for a file of {file_bytes}");
    result
}
