//! GGUF models in several files: `NAME-00001-of-00003.gguf` and so on, as `llama-gguf-split` writes them.
//!
//! The first file has all metadata; `split.no` (from 0), `split.count` and `split.tensors.count` are in each.

use std::path::{Path, PathBuf};

use super::read::{File, parse};
use super::value::{Metadata, Value};
use crate::CheckpointError;
use crate::checkpoint::Part;
use crate::storage::Storage;

/// Most files of one model: the numbering has five digits.
const SPLITS_MAX: u64 = 99_999;

/// Reads a GGUF file and, if it is the first of several, the others.
pub(crate) fn open(path: &Path, storage: Storage) -> Result<(Metadata, Vec<Part>), CheckpointError> {
    let first = parse(&path.display().to_string(), storage.bytes())?;
    let count = first.split_count();
    if count == 1 {
        return Ok((first.metadata, vec![Part::new(path, storage, first.tensors)]));
    }
    let paths = siblings(path, &first, count)?;
    let total = first.metadata.get("split.tensors.count").and_then(Value::as_u64);
    let mut parts = vec![Part::new(path, storage, first.tensors)];
    for (number, path) in paths.iter().enumerate().skip(1) {
        let storage = Storage::map(path)?;
        let name = path.display().to_string();
        let file = parse(&name, storage.bytes())?;
        let found = file.metadata.get("split.no").and_then(Value::as_u64);
        if found != Some(number as u64) || file.split_count() != count {
            return Err(CheckpointError::invalid(&name, format!("it is not part {} of {count}", number + 1)));
        }
        parts.push(Part::new(path, storage, file.tensors));
    }
    let found: usize = parts.iter().map(|part| part.tensors.len()).sum();
    if total.is_some_and(|total| total != found as u64) {
        let problem =
            format!("its {count} files have {found} tensors, `split.tensors.count` says {}", total.unwrap_or(0));
        return Err(CheckpointError::invalid(&path.display().to_string(), problem));
    }
    Ok((first.metadata, parts))
}

/// The paths of all parts, in order.
fn siblings(path: &Path, first: &File, count: u64) -> Result<Vec<PathBuf>, CheckpointError> {
    let file = path.display().to_string();
    let suffix = |number: u64| format!("-{number:05}-of-{count:05}.gguf");
    if count > SPLITS_MAX {
        return Err(CheckpointError::invalid(&file, format!("`split.count` is {count}, at most {SPLITS_MAX} is read")));
    }
    let number = first.metadata.get("split.no").and_then(Value::as_u64).unwrap_or(0);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(stem) = number.checked_add(1).and_then(|number| name.strip_suffix(&suffix(number)).map(str::to_owned))
    else {
        let problem =
            format!("it is part {} of {count}, but its name does not end like that", number.saturating_add(1));
        return Err(CheckpointError::unsupported(&file, problem));
    };
    if number != 0 {
        let problem = format!("it is part {} of {count}\n\nhint: open `{stem}{}`", number + 1, suffix(1));
        return Err(CheckpointError::unsupported(&file, problem));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let paths: Vec<PathBuf> = (1..=count).map(|number| folder.join(format!("{stem}{}", suffix(number)))).collect();
    let missing: Vec<String> = paths
        .iter()
        .filter(|path| !path.is_file())
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    if !missing.is_empty() {
        return Err(CheckpointError::MissingShards { folder: folder.to_owned(), missing });
    }
    Ok(paths)
}
