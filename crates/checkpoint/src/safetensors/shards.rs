//! Writing the weights of a folder: one safetensors file, or several and an index.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Declared, Writer};
use crate::{AtomicFile, CheckpointError};

/// The weights of a folder being written: each declared tensor in turn, then [`ShardedWriter::finish`].
///
/// A tensor is in one file. The files are named `model.safetensors`, or `model-00001-of-00003.safetensors` and so on
/// with `model.safetensors.index.json`, which comes last.
#[derive(Debug)]
pub struct ShardedWriter {
    folder: PathBuf,
    /// Name and tensors of each file.
    files: Vec<(String, Vec<Declared>)>,
    /// Bytes of all tensors.
    bytes: u64,
    /// The file that is being written.
    current: usize,
    writer: Writer,
    /// Tensors of it that are complete.
    written: usize,
    /// Bytes of the next one that are written.
    begun: u64,
}

impl ShardedWriter {
    /// Divides tensors, in the order in which they will come, among files of at most `file_bytes` of them (a larger
    /// tensor is alone in its file), and creates the first.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn create(folder: &Path, tensors: &[Declared], file_bytes: u64) -> Result<ShardedWriter, CheckpointError> {
        let mut shards: Vec<Vec<Declared>> = vec![Vec::new()];
        let (mut total, mut bytes) = (0, 0);
        for tensor in tensors {
            let more = tensor.bytes()?;
            if bytes > 0 && bytes + more > file_bytes {
                shards.push(Vec::new());
                bytes = 0;
            }
            bytes += more;
            total += more;
            shards.last_mut().expect("at least one").push(tensor.clone());
        }
        let count = shards.len();
        let name = |number: usize| match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        let files: Vec<_> = shards.into_iter().enumerate().map(|(index, shard)| (name(index + 1), shard)).collect();
        let writer = Writer::create_declared(&folder.join(&files[0].0), &files[0].1, &[("format", "pt")])?;
        Ok(ShardedWriter { folder: folder.to_owned(), files, bytes: total, current: 0, writer, written: 0, begun: 0 })
    }

    /// Writes the whole of the next tensor, little-endian.
    ///
    /// # Errors
    /// As [`Writer::write_tensor`].
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.next_file()?;
        self.writer.write_tensor(name, bytes)?;
        self.written += 1;
        Ok(())
    }

    /// Writes the next bytes of the tensor; with its last byte it is complete.
    ///
    /// # Errors
    /// As [`Writer::write_tensor`].
    pub fn write_chunk(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.next_file()?;
        self.writer.write_chunk(name, bytes)?;
        self.begun += bytes.len() as u64;
        if self.files[self.current].1[self.written].bytes()? == self.begun {
            (self.written, self.begun) = (self.written + 1, 0);
        }
        Ok(())
    }

    /// Goes on with the next file if this one has all its tensors and is not the last.
    fn next_file(&mut self) -> Result<(), CheckpointError> {
        if self.written < self.files[self.current].1.len() || self.current + 1 == self.files.len() {
            return Ok(());
        }
        (self.current, self.written) = (self.current + 1, 0);
        let (name, tensors) = &self.files[self.current];
        let writer = Writer::create_declared(&self.folder.join(name), tensors, &[("format", "pt")])?;
        std::mem::replace(&mut self.writer, writer).finish()
    }

    /// Puts the last file in its place, and writes the index.
    ///
    /// # Errors
    /// [`CheckpointError::Declaration`] if a tensor is missing; what the operating system says.
    pub fn finish(self) -> Result<(), CheckpointError> {
        if let Some((name, _)) = self.files.get(self.current + 1) {
            let problem = "its tensors were not given".to_owned();
            return Err(CheckpointError::Declaration { what: name.clone(), problem });
        }
        self.writer.finish()?;
        if self.files.len() == 1 {
            return Ok(());
        }
        let map: Map<String, Value> = self
            .files
            .iter()
            .flat_map(|(file, tensors)| tensors.iter().map(move |tensor| (tensor.name.clone(), json!(file))))
            .collect();
        let index = json!({ "metadata": { "total_size": self.bytes }, "weight_map": map });
        AtomicFile::replace(&self.folder.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())
    }
}
