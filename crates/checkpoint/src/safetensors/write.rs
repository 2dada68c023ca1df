//! Writing safetensors files.

use std::collections::BTreeSet;
use std::path::Path;

use tensor::DType;

use crate::CheckpointError;
use crate::stream::{TensorStream, declared_bytes};

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
        let mut names = BTreeSet::from(["__metadata__"]);
        let mut header = String::from("{");
        if !metadata.is_empty() {
            let pairs: Vec<String> =
                metadata.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value))).collect();
            header += &format!("\"__metadata__\":{{{}}},", pairs.join(","));
        }
        let mut offset = 0;
        let mut declared = Vec::new();
        for &(name, dtype, shape) in tensors {
            let refuse = |problem: String| CheckpointError::Declaration { what: name.to_owned(), problem };
            let Some(type_name) = type_name(dtype) else {
                return Err(refuse(format!("safetensors files don't have the format {dtype}")));
            };
            if !names.insert(name) {
                return Err(refuse("the name is taken".to_owned()));
            }
            let bytes = declared_bytes(name, dtype, shape)?;
            let end = offset + bytes;
            header += &format!(
                "{}:{{\"dtype\":\"{type_name}\",\"shape\":{shape:?},\"data_offsets\":[{offset},{end}]}},",
                quoted(name)
            );
            offset = end;
            declared.push((name.to_owned(), bytes));
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

fn type_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("F32"),
        DType::F16 => Some("F16"),
        DType::BF16 => Some("BF16"),
        DType::Q4_0
        | DType::Q4_1
        | DType::Q5_0
        | DType::Q5_1
        | DType::Q8_0
        | DType::Q2_K
        | DType::Q3_K
        | DType::Q4_K
        | DType::Q5_K
        | DType::Q6_K => None,
    }
}
