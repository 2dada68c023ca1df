//! Writing safetensors files.

use std::collections::BTreeSet;
use std::path::Path;

use tensor::DType;

use super::{Declared, Element};
use crate::CheckpointError;
use crate::stream::TensorStream;

/// A safetensors file being written: each declared tensor in turn, whole or in chunks, then [`Writer::finish`].
///
/// Dropped before that, it leaves the target as it was and no temporary file.
#[derive(Debug)]
pub struct Writer {
    stream: TensorStream,
}

impl Writer {
    /// Creates the file, as [`crate::AtomicFile`] does, and writes its header: tensors as (name, dtype, shape with
    /// the outermost dimension first) in the order in which they will come, and pairs of text for `__metadata__`.
    ///
    /// # Errors
    /// [`CheckpointError::Declaration`] for a name that is there twice or a block format, which safetensors files
    /// don't have; a folder that can't be written; a full disk.
    pub fn create(
        path: &Path,
        tensors: &[(&str, DType, &[usize])],
        metadata: &[(&str, &str)],
    ) -> Result<Writer, CheckpointError> {
        let declare = |&(name, dtype, shape): &(&str, DType, &[usize])| match Element::of(dtype) {
            Some(element) => Ok(Declared { name: name.to_owned(), element, shape: shape.to_vec() }),
            None => {
                let problem = format!("safetensors files don't have the format {dtype}");
                Err(CheckpointError::Declaration { what: name.to_owned(), problem })
            }
        };
        let tensors = tensors.iter().map(declare).collect::<Result<Vec<_>, _>>()?;
        Writer::create_declared(path, &tensors, metadata)
    }

    /// The same with tensors of any kind of numbers.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn create_declared(
        path: &Path,
        tensors: &[Declared],
        metadata: &[(&str, &str)],
    ) -> Result<Writer, CheckpointError> {
        let mut names = BTreeSet::from(["__metadata__"]);
        let mut header = String::from("{");
        if !metadata.is_empty() {
            let pairs: Vec<String> =
                metadata.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value))).collect();
            header += &format!("\"__metadata__\":{{{}}},", pairs.join(","));
        }
        let mut offset = 0;
        let mut declared = Vec::new();
        for tensor in tensors {
            if !names.insert(&tensor.name) {
                let problem = "the name is taken".to_owned();
                return Err(CheckpointError::Declaration { what: tensor.name.clone(), problem });
            }
            let bytes = tensor.bytes()?;
            let (end, shape) = (offset + bytes, &tensor.shape);
            header += &format!(
                "{}:{{\"dtype\":\"{}\",\"shape\":{shape:?},\"data_offsets\":[{offset},{end}]}},",
                quoted(&tensor.name),
                tensor.element.name()
            );
            offset = end;
            declared.push((tensor.name.clone(), bytes));
        }
        let mut header = header.trim_end_matches(',').to_owned() + "}";
        // The data starts at a multiple of 8, so that readers can use it in place.
        header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        Ok(Writer { stream: TensorStream::create(path, &bytes, declared, 1)? })
    }

    /// Writes the whole of the next tensor, little-endian.
    ///
    /// # Errors
    /// [`CheckpointError::Declaration`] if another tensor or another length was declared; a full disk.
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.stream.write_tensor(name, bytes)
    }

    /// Writes the next bytes of the tensor; with its last byte it is complete.
    ///
    /// # Errors
    /// As [`Writer::write_tensor`].
    pub fn write_chunk(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.stream.write_chunk(name, bytes)
    }

    /// Puts the file in its target's place.
    ///
    /// # Errors
    /// [`CheckpointError::Declaration`] if a tensor is missing; what the operating system says.
    pub fn finish(self) -> Result<(), CheckpointError> {
        self.stream.finish()
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
