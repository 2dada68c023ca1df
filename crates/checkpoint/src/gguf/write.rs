//! Writing GGUF version 3.

use std::collections::BTreeSet;
use std::path::Path;

use tensor::DType;

use super::ggml_type::id_of;
use super::value::{Array, Metadata, Value};
use super::{ALIGNMENT_DEFAULT, ENTRIES_MAX, MAGIC, TENSORS_MAX};
use crate::CheckpointError;
use crate::stream::{TensorStream, declared_bytes};

/// Longest name of a tensor that llama.cpp takes, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// The header of a file to be written: metadata, and the tensors in the order in which they will come.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    metadata: Metadata,
    tensors: Vec<Declared>,
    names: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Declared {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    bytes: u64,
}

impl Builder {
    /// A file with these keys and values, in this order. `general.alignment` is left out: it is always 32 here.
    pub fn new(mut metadata: Metadata) -> Builder {
        metadata.remove("general.alignment");
        Builder { metadata, tensors: Vec::new(), names: BTreeSet::new() }
    }

    /// Declares the next tensor; `shape` has the outermost dimension first.
    ///
    /// # Errors
    /// [`CheckpointError::Declaration`] for a name that is there already or has more than 63 bytes, more than four
    /// dimensions, or a shape that the format can't have.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<(), CheckpointError> {
        let refuse = |problem: String| Err(CheckpointError::Declaration { what: name.to_owned(), problem });
        if name.len() > NAME_BYTES_MAX {
            return refuse(format!("its name has {} bytes, at most {NAME_BYTES_MAX} are possible", name.len()));
        }
        if shape.len() > 4 {
            return refuse(format!("it has {} dimensions, at most 4 are possible", shape.len()));
        }
        if self.tensors.len() as u64 == TENSORS_MAX {
            return refuse(format!("a file has at most {TENSORS_MAX} tensors"));
        }
        let bytes = declared_bytes(name, dtype, shape)?;
        if !self.names.insert(name.to_owned()) {
            return refuse("it is declared twice".to_owned());
        }
        self.tensors.push(Declared { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes });
        Ok(())
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        let data: u64 = self.tensors.iter().map(|tensor| tensor.bytes.next_multiple_of(ALIGNMENT_DEFAULT)).sum();
        self.header().len() as u64 + data
    }

    /// The header with its padding: everything before the first tensor's bytes.
    pub fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC);
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            put_string(&mut bytes, key);
            put_value(&mut bytes, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_string(&mut bytes, &tensor.name);
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dimension in tensor.shape.iter().rev() {
                bytes.extend((dimension as u64).to_le_bytes());
            }
            bytes.extend(id_of(tensor.dtype).to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            offset += tensor.bytes.next_multiple_of(ALIGNMENT_DEFAULT);
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT_DEFAULT as usize), 0);
        bytes
    }

    /// Creates the file, as [`crate::AtomicFile`] does, and writes the header.
    ///
    /// # Errors
    /// The folder can't be written, the disk is full, or there are too many metadata entries.
    pub fn create(self, path: &Path) -> Result<Writer, CheckpointError> {
        if self.metadata.len() as u64 > ENTRIES_MAX {
            let problem = format!("there are {} metadata entries, at most {ENTRIES_MAX} are read", self.metadata.len());
            return Err(CheckpointError::Declaration { what: path.display().to_string(), problem });
        }
        let header = self.header();
        let tensors = self.tensors.into_iter().map(|tensor| (tensor.name, tensor.bytes)).collect();
        Ok(Writer { stream: TensorStream::create(path, &header, tensors, ALIGNMENT_DEFAULT)? })
    }
}

/// A GGUF file being written: each declared tensor in turn, whole or in chunks, then [`Writer::finish`].
///
/// Dropped before that, it leaves the target as it was and no temporary file.
#[derive(Debug)]
pub struct Writer {
    stream: TensorStream,
}

impl Writer {
    /// Writes the whole of the next tensor.
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

fn put_string(bytes: &mut Vec<u8>, string: &str) {
    bytes.extend((string.len() as u64).to_le_bytes());
    bytes.extend(string.as_bytes());
}

/// A value after its type.
fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    let kind: u32 = match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    };
    bytes.extend(kind.to_le_bytes());
    match value {
        Value::U8(value) => bytes.extend(value.to_le_bytes()),
        Value::I8(value) => bytes.extend(value.to_le_bytes()),
        Value::U16(value) => bytes.extend(value.to_le_bytes()),
        Value::I16(value) => bytes.extend(value.to_le_bytes()),
        Value::U32(value) => bytes.extend(value.to_le_bytes()),
        Value::I32(value) => bytes.extend(value.to_le_bytes()),
        Value::F32(value) => bytes.extend(value.to_le_bytes()),
        Value::Bool(value) => bytes.push((*value).into()),
        Value::String(value) => put_string(bytes, value),
        Value::Array(value) => put_array(bytes, value),
        Value::U64(value) => bytes.extend(value.to_le_bytes()),
        Value::I64(value) => bytes.extend(value.to_le_bytes()),
        Value::F64(value) => bytes.extend(value.to_le_bytes()),
    }
}

/// An array: the type of its elements, their number, the elements.
fn put_array(bytes: &mut Vec<u8>, array: &Array) {
    let kind: u32 = match array {
        Array::U8(_) => 0,
        Array::I8(_) => 1,
        Array::U16(_) => 2,
        Array::I16(_) => 3,
        Array::U32(_) => 4,
        Array::I32(_) => 5,
        Array::F32(_) => 6,
        Array::Bool(_) => 7,
        Array::String(_) => 8,
        Array::Array(_) => 9,
        Array::U64(_) => 10,
        Array::I64(_) => 11,
        Array::F64(_) => 12,
    };
    bytes.extend(kind.to_le_bytes());
    bytes.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(values) => bytes.extend(values),
        Array::I8(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U16(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I16(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::Bool(values) => bytes.extend(values.iter().map(|&value| u8::from(value))),
        Array::String(values) => values.iter().for_each(|value| put_string(bytes, value)),
        Array::Array(values) => values.iter().for_each(|value| put_array(bytes, value)),
        Array::U64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F64(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
    }
}
