//! Tensors written one after the other, in the order in which they were declared.

use std::path::Path;

use crate::{AtomicFile, CheckpointError};

/// Most zeros between two tensors.
const PADDING: [u8; 64] = [0; 64];

/// The data part of a file being written.
#[derive(Debug)]
pub(crate) struct TensorStream {
    file: AtomicFile,
    /// Name and bytes of each tensor.
    tensors: Vec<(String, u64)>,
    /// The tensor that comes next or is being written.
    current: usize,
    /// Bytes of it that are written.
    written: u64,
    /// Each tensor is padded to a multiple of this, at most 64.
    alignment: u64,
}

impl TensorStream {
    /// Creates the file and writes its header, whose length is a multiple of `alignment`.
    pub(crate) fn create(
        path: &Path,
        header: &[u8],
        tensors: Vec<(String, u64)>,
        alignment: u64,
    ) -> Result<TensorStream, CheckpointError> {
        let mut file = AtomicFile::create(path)?;
        file.append(header)?;
        Ok(TensorStream { file, tensors, current: 0, written: 0, alignment })
    }

    /// Writes the whole of the next tensor.
    pub(crate) fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.check_name(name)?;
        let (_, expected) = self.tensors[self.current];
        if self.written != 0 || expected != bytes.len() as u64 {
            let problem = format!("{expected} bytes were declared, {} given", self.written + bytes.len() as u64);
            return Err(CheckpointError::Declaration { what: name.to_owned(), problem });
        }
        self.write_chunk(name, bytes)
    }

    /// Writes the next bytes of the tensor.
    pub(crate) fn write_chunk(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.check_name(name)?;
        let (_, expected) = self.tensors[self.current];
        let left = expected - self.written;
        if bytes.len() as u64 > left {
            let problem = format!("{} bytes are given, {left} of {expected} are left", bytes.len());
            return Err(CheckpointError::Declaration { what: name.to_owned(), problem });
        }
        self.file.append(bytes)?;
        self.written += bytes.len() as u64;
        if self.written == expected {
            let padding = expected.next_multiple_of(self.alignment) - expected;
            self.file.append(&PADDING[..padding as usize])?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    fn check_name(&self, name: &str) -> Result<(), CheckpointError> {
        let problem = match self.tensors.get(self.current) {
            Some((expected, _)) if expected == name => return Ok(()),
            Some((expected, _)) => format!("`{expected}` was declared to come next"),
            None => "all declared tensors are written already".to_owned(),
        };
        Err(CheckpointError::Declaration { what: name.to_owned(), problem })
    }

    /// Puts the file in its target's place.
    pub(crate) fn finish(self) -> Result<(), CheckpointError> {
        match self.tensors.get(self.current) {
            None => self.file.finish(),
            Some((name, bytes)) => {
                let problem = format!("{} of {bytes} bytes were given before the end", self.written);
                Err(CheckpointError::Declaration { what: name.clone(), problem })
            }
        }
    }
}

/// Bytes of a tensor to be written.
pub(crate) fn declared_bytes(name: &str, dtype: tensor::DType, shape: &[usize]) -> Result<u64, CheckpointError> {
    let (rows, columns) = match shape.split_last() {
        Some((&columns, rows)) => (rows.iter().try_fold(1usize, |product, &rows| product.checked_mul(rows)), columns),
        None => (Some(1), 1),
    };
    let bytes = rows.and_then(|rows| dtype.tensor_bytes(rows, columns));
    bytes.map(|bytes| bytes as u64).ok_or_else(|| {
        let problem =
            format!("shape {shape:?} is impossible in {dtype}, whose rows hold a multiple of {}", dtype.block_len());
        CheckpointError::Declaration { what: name.to_owned(), problem }
    })
}
