//! The bytes behind a checkpoint: mapped files, or bytes that are part of the program.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use tensor::{WeightBytes, WeightError};

use crate::CheckpointError;

/// One file's bytes.
#[derive(Debug)]
pub(crate) enum Storage {
    /// A mapped file, and the file.
    Mapped(Mmap, File),
    /// Bytes of the program itself.
    Static(&'static [u8]),
}

impl Storage {
    /// Maps a file for reading.
    ///
    /// # Errors
    /// The file doesn't exist, is a folder, is empty or can't be mapped.
    pub(crate) fn map(path: &Path) -> Result<Storage, CheckpointError> {
        let file = File::open(path).map_err(|error| CheckpointError::io("open", path, error))?;
        let metadata = file.metadata().map_err(|error| CheckpointError::io("open", path, error))?;
        let name = path.display().to_string();
        if metadata.is_dir() {
            return Err(CheckpointError::unsupported(&name, "it is a folder, a file was expected"));
        }
        if !metadata.is_file() {
            return Err(CheckpointError::unsupported(
                &name,
                "it is no regular file, so it can't be mapped into memory",
            ));
        }
        if metadata.len() == 0 {
            return Err(CheckpointError::Empty { file: name });
        }
        // SAFETY: the mapping is read-only. Nothing in this process writes to the file: the writers of this crate
        // replace a file by renaming, which leaves the mapped one as it was. Another process that changes the file
        // meanwhile would change the numbers under us; every memory-mapped reader accepts that, and all lengths are
        // checked against the mapping and kept outside it, so that no index depends on the bytes staying the same.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| CheckpointError::io("map", path, error))?;
        Ok(Storage::Mapped(map, file))
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map, _) => map,
            Storage::Static(bytes) => bytes,
        }
    }
}

/// The bytes of one tensor: a slice of a mapped file, which it keeps mapped.
///
/// [`WeightBytes::release`] lets the operating system take the pages back, so that a copied tensor no longer counts
/// as resident memory; they stay in the page cache and come back when they are read.
#[derive(Clone, Debug)]
pub struct TensorData {
    storage: Arc<Storage>,
    range: Range<usize>,
}

impl TensorData {
    /// `range` must lie inside the storage, which the reader of the file has checked.
    pub(crate) fn new(storage: Arc<Storage>, range: Range<usize>) -> TensorData {
        assert!(range.start <= range.end && range.end <= storage.bytes().len());
        TensorData { storage, range }
    }

    /// Asks the operating system to read a range of the tensor ahead, without waiting for it.
    ///
    /// # Panics
    /// If the range passes the tensor's end.
    pub fn prefetch(&self, range: Range<usize>) {
        if let Storage::Mapped(map, _) = &*self.storage {
            advise_will_need(map, self.within(range));
        }
    }

    /// The range in the storage.
    fn within(&self, range: Range<usize>) -> Range<usize> {
        assert!(range.start <= range.end && range.end <= self.range.len(), "{range:?} of {} bytes", self.range.len());
        self.range.start + range.start..self.range.start + range.end
    }
}

impl WeightBytes for TensorData {
    fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.range.clone()]
    }

    fn release(&self, range: Range<usize>) {
        if let Storage::Mapped(map, _) = &*self.storage {
            advise_not_needed(map, self.within(range));
        }
    }

    /// From the file itself: a copy through the mapping would begin with a page fault for every few pages, and end the
    /// process where the file can't be read.
    fn read(&self, range: Range<usize>, into: &mut [u8]) -> Result<(), WeightError> {
        let within = self.within(range.clone());
        assert_eq!(within.len(), into.len(), "a range and where it goes");
        match &*self.storage {
            Storage::Mapped(map, file) => Ok(read_at(map, file, within, into)?),
            Storage::Static(bytes) => {
                into.copy_from_slice(&bytes[within]);
                Ok(())
            }
        }
    }
}

/// Copies a range of a file.
#[cfg(unix)]
fn read_at(_map: &Mmap, file: &File, range: Range<usize>, into: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, range.start as u64).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("the file has become shorter since it was opened"),
        _ => error,
    })
}

/// Copies a range of a file.
#[cfg(not(unix))]
fn read_at(map: &Mmap, _file: &File, range: Range<usize>, into: &mut [u8]) -> io::Result<()> {
    into.copy_from_slice(&map[range]);
    Ok(())
}

/// Starts reading a range of a mapping. Advice: a refusal changes the speed only.
#[cfg(unix)]
fn advise_will_need(map: &Mmap, range: Range<usize>) {
    if !range.is_empty() {
        let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
    }
}

/// Drops the pages of a range of a mapping from this process.
///
/// The start goes down to its page (memmap2 does that), and so does the end: ranges that follow each other leave no
/// page between them, and what a neighbour has on the first page is only read again.
#[cfg(unix)]
fn advise_not_needed(map: &Mmap, range: Range<usize>) {
    /// The smallest size of a page; where pages are larger the system rounds to them.
    const PAGE_BYTES: usize = 4096;
    let end = range.end / PAGE_BYTES * PAGE_BYTES;
    if end > range.start {
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the mapping is shared, read-only and backed by a file: a dropped page is read from the file again on
        // the next access, with the same bytes, so slices into the mapping stay valid.
        let _ = unsafe { map.unchecked_advise_range(advice, range.start, end - range.start) };
    }
}

/// Elsewhere the system is left to itself.
#[cfg(not(unix))]
fn advise_will_need(_map: &Mmap, _range: Range<usize>) {}

/// Elsewhere the system is left to itself.
#[cfg(not(unix))]
fn advise_not_needed(_map: &Mmap, _range: Range<usize>) {}
