//! Files that are there whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::CheckpointError;

/// Bytes gathered before they go to the operating system.
const BUFFER_BYTES: usize = 1 << 20;
/// Attempts to find a free name for the temporary file.
const NAMES_MAX: u32 = 1_000;

/// A file being written beside its target, which it replaces in [`AtomicFile::finish`].
///
/// The temporary file is `.NAME.PID.partial` in the target's folder, so that the last step is a rename within one
/// file system: at every moment the target is the old file or the whole new one. Dropped without `finish`, or after
/// an error, the temporary file is removed and the target is untouched. A target that is no regular file (a pipe,
/// `/dev/null`) is written directly; a symbolic link is followed.
///
/// Write with [`AtomicFile::append`], or through [`std::io::Write`].
#[derive(Debug)]
pub struct AtomicFile {
    /// What the caller named, for messages.
    path: PathBuf,
    /// The file to replace, links followed.
    target: PathBuf,
    /// The temporary file; `None` if the target is written directly or the work is done.
    partial: Option<PathBuf>,
    file: Option<BufWriter<File>>,
    written: u64,
}

impl AtomicFile {
    /// Starts a file that is to be `path`.
    ///
    /// # Errors
    /// The folder doesn't exist or can't be written, or the path is a folder.
    pub fn create(path: &Path) -> Result<AtomicFile, CheckpointError> {
        let failed = |error| CheckpointError::io("create", path, error);
        let existing = match fs::metadata(path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        if existing.as_ref().is_some_and(fs::Metadata::is_dir) || path.file_name().is_none() {
            let error = io::Error::new(io::ErrorKind::IsADirectory, "it is a folder, a file name was expected");
            return Err(failed(error));
        }
        if existing.as_ref().is_some_and(|metadata| !metadata.is_file()) {
            let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
            return Ok(AtomicFile::with(path, path.to_owned(), None, file));
        }
        let target = if existing.is_some() { fs::canonicalize(path).map_err(failed)? } else { path.to_owned() };
        let (partial, file) = create_partial(&target).map_err(|error| match target.parent() {
            // What doesn't exist is the folder.
            Some(folder) if error.kind() == io::ErrorKind::NotFound => CheckpointError::io("create", folder, error),
            _ => failed(error),
        })?;
        let atomic = AtomicFile::with(path, target, Some(partial), file);
        if let (Some(metadata), Some(partial)) = (existing, &atomic.partial) {
            // A file that was private stays private; a file system without permissions is no reason to fail.
            let _ = fs::set_permissions(partial, metadata.permissions());
        }
        Ok(atomic)
    }

    fn with(path: &Path, target: PathBuf, partial: Option<PathBuf>, file: File) -> AtomicFile {
        let file = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        AtomicFile { path: path.to_owned(), target, partial, file, written: 0 }
    }

    /// Writes a whole file in one go.
    ///
    /// # Errors
    /// As [`AtomicFile::create`], [`AtomicFile::append`] and [`AtomicFile::finish`].
    pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
        let mut file = AtomicFile::create(path)?;
        file.append(bytes)?;
        file.finish()
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`CheckpointError::DiskFull`], or what else the operating system says; [`AtomicFile::finish`] fails then too.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.write_all(bytes).map_err(|error| self.failed(error))
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Makes everything durable and puts the file in the target's place.
    ///
    /// # Errors
    /// [`CheckpointError::DiskFull`], or what else the operating system says; the target then is as it was before.
    pub fn finish(mut self) -> Result<(), CheckpointError> {
        self.finish_io().map_err(|error| self.failed(error))
    }

    fn finish_io(&mut self) -> io::Result<()> {
        let Some(file) = self.file.take() else {
            return Err(io::Error::other("an earlier write failed"));
        };
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let Some(partial) = &self.partial else { return Ok(()) };
        file.sync_all()?;
        drop(file);
        fs::rename(partial, &self.target)?;
        self.partial = None;
        sync_folder(&self.target)
    }

    fn failed(&self, error: io::Error) -> CheckpointError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                CheckpointError::DiskFull { path: self.path.clone(), written: self.written }
            }
            _ => CheckpointError::Io { action: "write", path: self.path.clone(), source: error },
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Err(io::Error::other("an earlier write failed")) };
        match file.write(bytes) {
            Ok(count) => {
                self.written += count as u64;
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl AtomicFile {
    /// Closes and removes the temporary file.
    fn abandon(&mut self) {
        if let Some(file) = self.file.take() {
            // Without the pending bytes: a disk that is full would refuse them again.
            let _ = file.into_parts();
        }
        if let Some(partial) = self.partial.take() {
            let _ = fs::remove_file(partial);
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// Creates the temporary file of a target under a name that nothing has yet.
fn create_partial(target: &Path) -> io::Result<(PathBuf, File)> {
    let name = target.file_name().unwrap_or_default();
    for attempt in 0..NAMES_MAX {
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(match attempt {
            0 => format!(".{}.partial", std::process::id()),
            _ => format!(".{}-{attempt}.partial", std::process::id()),
        });
        let partial = target.with_file_name(partial);
        match OpenOptions::new().write(true).create_new(true).open(&partial) {
            Ok(file) => return Ok((partial, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "too many `.partial` files are in the folder"))
}

/// Makes a rename durable: on Unix that takes a sync of the folder.
#[cfg(unix)]
fn sync_folder(target: &Path) -> io::Result<()> {
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // A folder that may be written but not read can't be opened; the file is in place all the same.
    File::open(folder).map_or(Ok(()), |folder| folder.sync_all().or(Ok(())))
}

/// Makes a rename durable: other systems have no way to ask for it.
#[cfg(not(unix))]
fn sync_folder(_target: &Path) -> io::Result<()> {
    Ok(())
}
