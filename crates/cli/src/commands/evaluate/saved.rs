//! Files of saved logits: written so that an interrupted run goes on where it was, and there whole or not at all.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use checkpoint::Checkpoint;
use evaluate::{Fnv, Hashes, MAGIC, SavedHeader};
use tensor::WeightBytes;
use text::{TokenKind, Tokenizer};

/// Bytes at both ends of a tensor that go into the hash of the weights.
const SAMPLE: usize = 4096;

/// Whether a file holds saved logits.
pub(super) fn is_saved(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    path.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *MAGIC
}

/// What a model and its tokenizer are recognised by. The weights are looked at at both ends of each tensor.
///
/// # Errors
/// Weights that can't be read.
pub(super) fn hashes(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Hashes> {
    let mut weights = Fnv::default();
    let mut take = |name: &str, bytes: &[u8]| {
        weights.update(name.as_bytes());
        weights.update(&(bytes.len() as u64).to_le_bytes());
        weights.update(&bytes[..bytes.len().min(SAMPLE)]);
        weights.update(&bytes[bytes.len().saturating_sub(SAMPLE)..]);
    };
    for tensor in checkpoint.tensors() {
        take(&tensor.name, checkpoint.bytes(&tensor.name)?.bytes());
    }
    for weight in checkpoint.trellis() {
        take(&weight.name, checkpoint.tiles(&weight.name)?.bytes());
    }
    Ok(Hashes { weights: weights.value(), tokenizer: tokenizer_hash(tokenizer) })
}

/// A hash of a tokenizer's ordinary entries: the others are kept differently by different files of one tokenizer.
pub(super) fn tokenizer_hash(tokenizer: &Tokenizer) -> u64 {
    let mut hash = Fnv::default();
    for id in 0..tokenizer.vocabulary_len() as u32 {
        if let (Some(TokenKind::Normal), Some(piece)) = (tokenizer.kind(id), tokenizer.piece(id)) {
            hash.update(&id.to_le_bytes());
            hash.update(piece.as_bytes());
            hash.update(&[0xff]);
        }
    }
    hash.value()
}

/// A file being written. Until it is complete it has `.partial` behind its name, and stays there if it is interrupted.
pub(super) struct SavedFile {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    /// Records that were there already.
    pub(super) records: usize,
}

impl SavedFile {
    /// Begins a file, or goes on with one of the same header.
    ///
    /// # Errors
    /// A partial file of something else, one that another run is writing, a folder that can't be written.
    pub(super) fn open(path: &Path, header: &SavedHeader) -> Result<SavedFile> {
        let mut name = path.file_name().context("expected the name of a file")?.to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let failed = || format!("can't write `{}`", partial.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .with_context(failed)?;
        match file.try_lock() {
            // A file system without locks is no reason to fail.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => bail!("`{}` is being written by another run", partial.display()),
        }
        let wanted = header.to_bytes()?;
        let len = file.metadata().with_context(failed)?.len();
        let mut found = vec![0; wanted.len().min(len as usize)];
        file.read_exact(&mut found).with_context(failed)?;
        ensure!(
            wanted.starts_with(&found),
            "`{}` was begun for another model or other texts\n\nhint: remove it, or go on with what it was begun for",
            partial.display()
        );
        let record_bytes = header.keep.record_bytes(header.vocabulary) as u64;
        let records = len.saturating_sub(wanted.len() as u64) / record_bytes;
        file.seek(SeekFrom::Start(0)).with_context(failed)?;
        file.write_all(&wanted).with_context(failed)?;
        Ok(SavedFile { path: path.to_owned(), partial, file, records: records as usize })
    }

    /// Drops all records from one on, and writes there.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn go_to(&mut self, record: usize, header: &SavedHeader) -> Result<()> {
        let start = header.to_bytes()?.len() as u64;
        let end = start + record as u64 * header.keep.record_bytes(header.vocabulary) as u64;
        self.file.set_len(end).and_then(|()| self.file.seek(SeekFrom::End(0))).with_context(|| self.failed())?;
        Ok(())
    }

    /// Appends records.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Gives the complete file its name; tells how many bytes it has.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn finish(self) -> Result<u64> {
        self.file.sync_all().with_context(|| self.failed())?;
        let bytes = self.file.metadata().with_context(|| self.failed())?.len();
        fs::rename(&self.partial, &self.path).with_context(|| self.failed())?;
        Ok(bytes)
    }

    fn failed(&self) -> String {
        format!("can't write `{}`", self.partial.display())
    }
}

/// Saved logits that are compared with.
pub(super) struct Reader {
    /// What the file says about itself.
    pub(super) header: SavedHeader,
    file: BufReader<File>,
    /// Where the first record is.
    start: u64,
}

impl Reader {
    /// Opens a file and checks its length.
    ///
    /// # Errors
    /// A file that is none of these, or was cut off.
    pub(super) fn open(path: &Path) -> Result<Reader> {
        let file = File::open(path).with_context(|| format!("can't read `{}`", path.display()))?;
        let len = file.metadata()?.len();
        let mut file = BufReader::with_capacity(1 << 20, file);
        let header = SavedHeader::read(&mut file).with_context(|| format!("`{}`", path.display()))?;
        let start = file.stream_position()?;
        let expected = header.records_bytes().and_then(|bytes| bytes.checked_add(start));
        let expected = expected.ok_or_else(|| anyhow!("`{}`: its header makes no sense", path.display()))?;
        ensure!(
            len == expected,
            "`{}` has {len} bytes, expected {expected} by its header: it was cut off or damaged",
            path.display()
        );
        Ok(Reader { header, file, start })
    }

    /// Goes to a record.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn at(&mut self, record: usize) -> Result<&mut dyn Read> {
        let offset = record as u64 * self.header.keep.record_bytes(self.header.vocabulary) as u64;
        self.file.seek(SeekFrom::Start(self.start + offset))?;
        Ok(&mut self.file)
    }
}

/// Refuses to replace a file unasked.
///
/// # Errors
/// It is there, or is a folder.
pub(super) fn check_free(path: &Path, force: bool) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            bail!("`{}` is a folder, expected the name of a file", path.display())
        }
        Ok(_) if !force => bail!("`{}` exists already\n\nhint: --force overwrites it", path.display()),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't write `{}`", path.display()))
        }
        _ => Ok(()),
    }
}
