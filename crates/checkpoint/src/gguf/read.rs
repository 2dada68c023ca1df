//! Reading one GGUF file.

use super::value::{Array, Metadata, StringArray, Value};
use super::{ALIGNMENT_DEFAULT, ENTRIES_MAX, MAGIC, TENSORS_MAX, ggml_type};
use crate::checkpoint::{check_names, check_overlaps, shape_bytes};
use crate::{CheckpointError, Encoding, RawTensor, sniff};

/// Deepest nesting of metadata arrays.
const DEPTH_MAX: usize = 4;
/// Most arrays inside one array.
const INNER_ARRAYS_MAX: u64 = 65_536;
/// Longest name of a tensor or key, in bytes (llama.cpp takes 63 and 65,535).
const NAME_BYTES_MAX: u64 = 65_535;
/// Most dimensions of a tensor.
const DIMENSIONS_MAX: u32 = 4;

/// The header of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// 2 or 3.
    pub version: u32,
    /// Keys and values.
    pub metadata: Metadata,
    /// Tensors in the file's order; every range lies inside the file.
    pub tensors: Vec<RawTensor>,
}

impl File {
    /// Number of files that the model is split into; 1 if it isn't.
    pub fn split_count(&self) -> u64 {
        self.metadata.get("split.count").and_then(Value::as_u64).unwrap_or(1).max(1)
    }
}

/// Reads and checks the header of a GGUF file that is in memory or mapped; `file` is its name for messages.
///
/// Memory is taken in proportion to bytes that are there, never to a length that the file only claims.
///
/// # Errors
/// Anything that breaks the format's rules: see [`CheckpointError`].
pub fn parse(file: &str, bytes: &[u8]) -> Result<File, CheckpointError> {
    let mut cursor = Cursor { file, bytes, at: 0 };
    if !bytes.starts_with(&MAGIC) {
        return Err(sniff::wrong_kind(file, "a GGUF file", bytes));
    }
    cursor.at = MAGIC.len();
    let version = cursor.version()?;
    let tensors = cursor.count("the number of tensors", TENSORS_MAX)?;
    let entries = cursor.count("the number of metadata entries", ENTRIES_MAX)?;
    let metadata = cursor.metadata(entries)?;
    let alignment = alignment(file, &metadata)?;
    let mut declared = Vec::new();
    for index in 0..tensors {
        declared.push(cursor.tensor(index)?);
    }
    let data = (cursor.at as u64).next_multiple_of(alignment);
    let tensors = locate(file, declared, data, alignment, bytes.len() as u64)?;
    check_names(file, &tensors)?;
    check_overlaps(file, &tensors)?;
    Ok(File { version, metadata, tensors })
}

/// The multiple at which tensors start.
fn alignment(file: &str, metadata: &Metadata) -> Result<u64, CheckpointError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(ALIGNMENT_DEFAULT) };
    match value {
        Value::U32(alignment) if alignment.is_power_of_two() => Ok((*alignment).into()),
        other => {
            let problem = format!("`general.alignment` must be a uint32 and a power of two, found {other:?}");
            Err(CheckpointError::invalid(file, problem))
        }
    }
}

/// A tensor before its place in the file is known.
struct Declared {
    name: String,
    encoding: Encoding,
    shape: Vec<usize>,
    offset: u64,
    length: u64,
}

/// Turns offsets from the start of the data into ranges of the file.
fn locate(
    file: &str,
    declared: Vec<Declared>,
    data: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<Vec<RawTensor>, CheckpointError> {
    let mut end_max = 0;
    let mut tensors = Vec::with_capacity(declared.len());
    for Declared { name, encoding, shape, offset, length } in declared {
        if !offset.is_multiple_of(alignment) {
            let problem = format!("tensor `{name}` starts at offset {offset}, which is no multiple of {alignment}");
            return Err(CheckpointError::invalid(file, problem));
        }
        let start = data.checked_add(offset);
        let (Some(start), Some(end)) = (start, start.and_then(|start| start.checked_add(length))) else {
            let problem = format!("tensor `{name}` claims the impossible offset {offset}");
            return Err(CheckpointError::invalid(file, problem));
        };
        end_max = end_max.max(end);
        // Ranges are only used if they lie inside the file, and a file that is mapped fits usize.
        let range = start.try_into().unwrap_or(usize::MAX)..end.try_into().unwrap_or(usize::MAX);
        tensors.push(RawTensor { name, encoding, shape, range });
    }
    if end_max > file_bytes {
        let what = "the file with all its tensors".to_owned();
        return Err(CheckpointError::Truncated { file: file.into(), what, needed: end_max, available: file_bytes });
    }
    Ok(tensors)
}

/// A place in the file, with everything checked that is read from it.
struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The next `length` bytes.
    fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8], CheckpointError> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(length) {
            Ok(length) if length <= left => {
                let bytes = &self.bytes[self.at..self.at + length];
                self.at += length;
                Ok(bytes)
            }
            _ => Err(CheckpointError::Truncated {
                file: self.file.to_owned(),
                what: format!("{what} at byte {}", self.at),
                needed: length,
                available: left as u64,
            }),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], CheckpointError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: &str, length_max: u64) -> Result<&'a str, CheckpointError> {
        let start = self.at;
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        if length > length_max {
            return Err(
                self.invalid(format!("{what} at byte {start} has {length} bytes, at most {length_max} are read"))
            );
        }
        std::str::from_utf8(bytes).map_err(|_| self.invalid(format!("{what} at byte {start} is not valid UTF-8")))
    }

    fn invalid(&self, problem: impl Into<String>) -> CheckpointError {
        CheckpointError::invalid(self.file, problem)
    }

    fn version(&mut self) -> Result<u32, CheckpointError> {
        let version = self.u32("the version")?;
        match version {
            2 | 3 => Ok(version),
            // A big-endian file has its small number in the upper bytes.
            _ if version & 0xffff == 0 && version != 0 => {
                Err(CheckpointError::unsupported(self.file, "it is a big-endian GGUF file, only little-endian is read"))
            }
            _ => {
                let problem = format!("it is GGUF version {version}, versions 2 and 3 are read");
                Err(CheckpointError::unsupported(self.file, problem))
            }
        }
    }

    fn count(&mut self, what: &str, max: u64) -> Result<u64, CheckpointError> {
        let count = self.u64(what)?;
        if count > max {
            return Err(self.invalid(format!("{what} is {count}, at most {max} are read")));
        }
        Ok(count)
    }

    fn metadata(&mut self, entries: u64) -> Result<Metadata, CheckpointError> {
        let mut metadata = Metadata::new();
        for index in 0..entries {
            let key = self.string(&format!("metadata key {index}"), NAME_BYTES_MAX)?;
            let kind = self.u32(&format!("the type of `{key}`"))?;
            let value = self.value(key, kind)?;
            if metadata.insert(key, value).is_some() {
                return Err(self.invalid(format!("metadata key `{key}` is there twice")));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value, CheckpointError> {
        let what = "a metadata value";
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            4 => Value::U32(self.u32(what)?),
            5 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            7 => {
                let [byte] = self.array(what)?;
                Value::Bool(self.boolean(key, byte)?)
            }
            8 => Value::String(self.string(&format!("the value of `{key}`"), u64::MAX)?.to_owned()),
            9 => Value::Array(self.metadata_array(key, 1)?),
            10 => Value::U64(self.u64(what)?),
            11 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            _ => return Err(self.invalid(format!("metadata key `{key}` has the unknown type {kind}"))),
        })
    }

    fn boolean(&self, key: &str, byte: u8) -> Result<bool, CheckpointError> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.invalid(format!("metadata key `{key}`: a boolean must be 0 or 1, found {byte}"))),
        }
    }

    /// An array, after its type 9 has been read. `depth` counts from 1.
    fn metadata_array(&mut self, key: &str, depth: usize) -> Result<Array, CheckpointError> {
        if depth > DEPTH_MAX {
            return Err(self.invalid(format!("metadata key `{key}`: arrays are nested deeper than {DEPTH_MAX}")));
        }
        let kind = self.u32("an array's type")?;
        let count = self.u64("an array's length")?;
        Ok(match kind {
            0 => Array::U8(self.numbers(count, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            7 => {
                let bytes = self.take(count, "an array of booleans")?;
                Array::Bool(bytes.iter().map(|&byte| self.boolean(key, byte)).collect::<Result<_, _>>()?)
            }
            8 => Array::String(self.strings(key, count)?),
            9 => Array::Array(self.inner_arrays(key, count, depth)?),
            10 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            _ => return Err(self.invalid(format!("metadata key `{key}` is an array of the unknown type {kind}"))),
        })
    }

    fn numbers<T, const N: usize>(&mut self, count: u64, read: fn([u8; N]) -> T) -> Result<Vec<T>, CheckpointError> {
        let Some(length) = count.checked_mul(N as u64) else {
            return Err(self.invalid(format!("an array at byte {} claims {count} elements", self.at)));
        };
        let (chunks, _) = self.take(length, "an array")?.as_chunks::<N>();
        Ok(chunks.iter().map(|&chunk| read(chunk)).collect())
    }

    fn strings(&mut self, key: &str, count: u64) -> Result<StringArray, CheckpointError> {
        // Every string takes at least the 8 bytes of its length.
        let left = (self.bytes.len() - self.at) as u64;
        if count > left / 8 {
            return Err(CheckpointError::Truncated {
                file: self.file.to_owned(),
                what: format!("the strings of `{key}` at byte {}", self.at),
                needed: count.saturating_mul(8),
                available: left,
            });
        }
        let mut strings = StringArray::with_capacity(count as usize);
        for index in 0..count {
            let start = self.at;
            let length = self.u64("a string's length")?;
            let bytes = self.take(length, "a string")?;
            let Ok(string) = std::str::from_utf8(bytes) else {
                return Err(self.invalid(format!("string {index} of `{key}` at byte {start} is not valid UTF-8")));
            };
            if !strings.push(string) {
                return Err(self.invalid(format!("the strings of `{key}` pass 4 GiB")));
            }
        }
        strings.shrink();
        Ok(strings)
    }

    fn inner_arrays(&mut self, key: &str, count: u64, depth: usize) -> Result<Vec<Array>, CheckpointError> {
        if count > INNER_ARRAYS_MAX {
            let problem = format!("metadata key `{key}` holds {count} arrays, at most {INNER_ARRAYS_MAX} are read");
            return Err(self.invalid(problem));
        }
        let mut arrays = Vec::new();
        for _ in 0..count {
            arrays.push(self.metadata_array(key, depth + 1)?);
        }
        Ok(arrays)
    }

    fn tensor(&mut self, index: u64) -> Result<Declared, CheckpointError> {
        let name = self.string(&format!("the name of tensor {index}"), NAME_BYTES_MAX)?;
        let dimensions = self.u32("a tensor's number of dimensions")?;
        if dimensions > DIMENSIONS_MAX {
            let problem = format!("tensor `{name}` has {dimensions} dimensions, at most {DIMENSIONS_MAX} are possible");
            return Err(self.invalid(problem));
        }
        // The file has the innermost dimension first.
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.insert(0, self.u64("a tensor's dimension")?);
        }
        let id = self.u32("a tensor's type")?;
        let offset = self.u64("a tensor's offset")?;
        let (encoding, length) = self.size(name, id, &shape)?;
        let shape = shape.into_iter().map(|dimension| dimension as usize).collect();
        Ok(Declared { name: name.to_owned(), encoding, shape, offset, length })
    }

    /// The encoding and the bytes of a tensor of type `id`. Afterwards each dimension fits `usize`.
    fn size(&self, name: &str, id: u32, shape: &[u64]) -> Result<(Encoding, u64), CheckpointError> {
        let Some(ggml_type) = ggml_type::of_id(id) else {
            let problem = match ggml_type::removed(id) {
                Some(removed) => format!("tensor `{name}` has the type {removed}, which ggml has removed"),
                None => format!("tensor `{name}` has the unknown type {id}"),
            };
            return Err(CheckpointError::unsupported(self.file, problem));
        };
        let block_len = ggml_type.block_len as u64;
        let columns = shape.last().copied().unwrap_or(1);
        if !columns.is_multiple_of(block_len) {
            let type_name = ggml_type.name;
            let problem =
                format!("tensor `{name}` has rows of {columns} weights, {type_name} needs a multiple of {block_len}");
            return Err(self.invalid(problem));
        }
        let Some(length) = shape_bytes(shape, block_len, ggml_type.block_bytes as u64) else {
            return Err(self.invalid(format!("tensor `{name}` has the impossible shape {shape:?}")));
        };
        let encoding = match ggml_type.dtype {
            Some(dtype) => Encoding::Supported(dtype),
            None => Encoding::Other(ggml_type.name.to_owned()),
        };
        Ok((encoding, length))
    }
}
