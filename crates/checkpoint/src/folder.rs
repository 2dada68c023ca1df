//! A folder's files, on disk or part of the program.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::CheckpointError;
use crate::storage::Storage;

/// A file that is part of the program: its name and its bytes.
pub type StaticFile = (&'static str, &'static [u8]);

/// What stands for the path of a folder that is part of the program in messages.
const BUILT_IN: &str = "built-in model";

/// Where files are that belong together.
#[derive(Debug)]
pub(crate) enum Folder {
    /// A folder on disk.
    Disk(PathBuf),
    /// Files of the program itself.
    Static(&'static [StaticFile]),
}

impl Folder {
    /// Its path, or what stands for it in messages.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Folder::Disk(path) => path,
            Folder::Static(_) => Path::new(BUILT_IN),
        }
    }

    /// Names of the files in it.
    ///
    /// # Errors
    /// The folder can't be listed.
    pub(crate) fn names(&self) -> Result<BTreeSet<String>, CheckpointError> {
        match self {
            Folder::Disk(path) => {
                let failed = |error| CheckpointError::io("list", path, error);
                let name = |entry: std::io::Result<std::fs::DirEntry>| {
                    Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())
                };
                std::fs::read_dir(path).map_err(failed)?.map(name).collect()
            }
            Folder::Static(files) => Ok(files.iter().map(|(name, _)| (*name).to_owned()).collect()),
        }
    }

    /// All bytes of a file, but of one with more than `bytes_max` only one byte more than that.
    ///
    /// # Errors
    /// [`CheckpointError::NotFound`], or the file can't be read.
    pub(crate) fn read(&self, name: &str, bytes_max: u64) -> Result<Cow<'static, [u8]>, CheckpointError> {
        let length = bytes_max.saturating_add(1);
        match self {
            Folder::Disk(folder) => {
                let path = folder.join(name);
                let failed = |error| CheckpointError::io("read", &path, error);
                let mut bytes = Vec::new();
                File::open(&path).map_err(failed)?.take(length).read_to_end(&mut bytes).map_err(failed)?;
                Ok(bytes.into())
            }
            Folder::Static(files) => {
                let bytes = find(files, name)?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                Ok(bytes[..bytes.len().min(length)].into())
            }
        }
    }

    /// The bytes of a file of weights: mapped, or where they are.
    ///
    /// # Errors
    /// As [`Storage::map`].
    pub(crate) fn storage(&self, name: &str) -> Result<Storage, CheckpointError> {
        let path = self.path().join(name);
        match self {
            Folder::Disk(_) => Storage::map(&path),
            Folder::Static(files) => match find(files, name)? {
                [] => Err(CheckpointError::Empty { file: path.display().to_string() }),
                bytes => Ok(Storage::Static(bytes)),
            },
        }
    }
}

/// The bytes of a file of the program.
fn find(files: &[StaticFile], name: &str) -> Result<&'static [u8], CheckpointError> {
    let file = files.iter().find(|(found, _)| *found == name);
    file.map(|(_, bytes)| *bytes).ok_or_else(|| CheckpointError::NotFound { path: Path::new(BUILT_IN).join(name) })
}
