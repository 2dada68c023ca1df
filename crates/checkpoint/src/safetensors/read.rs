//! Reading one safetensors file.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use tensor::DType;

use super::HEADER_BYTES_MAX;
use crate::checkpoint::{check_names, check_overlaps, shape_bytes};
use crate::{CheckpointError, Encoding, RawTensor, sniff};

/// Most dimensions of a tensor.
const DIMENSIONS_MAX: usize = 16;

/// Reads and checks the header of a safetensors file; `file` is its name for messages.
///
/// # Errors
/// Anything that breaks the format's rules: see [`CheckpointError`].
pub fn parse(file: &str, bytes: &[u8]) -> Result<Vec<RawTensor>, CheckpointError> {
    let truncated = |what: &str, needed, available| CheckpointError::Truncated {
        file: file.to_owned(),
        what: what.to_owned(),
        needed,
        available,
    };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(truncated("the length of the header", 8, bytes.len() as u64));
    };
    let length = u64::from_le_bytes(*length);
    if rest.first().is_some_and(|&byte| byte != b'{') {
        return Err(sniff::wrong_kind(file, "a safetensors file", bytes));
    }
    if length > HEADER_BYTES_MAX {
        let problem = format!("its header claims {length} bytes, at most {HEADER_BYTES_MAX} are read");
        return Err(CheckpointError::invalid(file, problem));
    }
    if length > rest.len() as u64 {
        return Err(truncated("the header", length, rest.len() as u64));
    }
    let (header, data) = rest.split_at(length as usize);
    let header: Header = serde_json::from_slice(header)
        .map_err(|error| CheckpointError::invalid(file, format!("its header is not what it should be: {error}")))?;
    let tensors = locate(file, header, 8 + length, data.len() as u64)?;
    check_names(file, &tensors)?;
    check_overlaps(file, &tensors)?;
    check_gaps(file, &tensors, bytes.len() - data.len()..bytes.len())?;
    Ok(tensors)
}

/// The entries of a header in their order, with duplicates.
struct Header(Vec<(String, Entry)>);

/// One tensor of a header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Checks types, shapes and offsets, and turns offsets from the start of the data into ranges of the file.
fn locate(file: &str, header: Header, data: u64, data_bytes: u64) -> Result<Vec<RawTensor>, CheckpointError> {
    let mut end_max = 0;
    let mut tensors = Vec::new();
    for (name, Entry { dtype, shape, data_offsets: (start, end) }) in header.0 {
        let invalid = |problem: String| CheckpointError::invalid(file, format!("tensor `{name}` {problem}"));
        if shape.len() > DIMENSIONS_MAX {
            return Err(invalid(format!("has {} dimensions, at most {DIMENSIONS_MAX} are read", shape.len())));
        }
        let Some(length) = end.checked_sub(start) else {
            return Err(invalid(format!("ends at offset {end}, before it starts at {start}")));
        };
        // The size of a type that is not known here can't be compared, but the shape must be possible all the same.
        let size = element_bytes(&dtype);
        let Some(expected) = shape_bytes(&shape, 1, size.unwrap_or(1)) else {
            return Err(invalid(format!("has the impossible shape {shape:?}")));
        };
        if size.is_some() && expected != length {
            let problem = format!("of type {dtype} and shape {shape:?} has {length} bytes, not {expected}");
            return Err(invalid(problem));
        }
        let (Some(first), Some(last)) = (data.checked_add(start), data.checked_add(end)) else {
            return Err(invalid(format!("claims the impossible offsets {start} and {end}")));
        };
        end_max = end_max.max(end);
        let range = first.try_into().unwrap_or(usize::MAX)..last.try_into().unwrap_or(usize::MAX);
        let shape = shape.into_iter().map(|dimension| dimension as usize).collect();
        tensors.push(RawTensor { name, encoding: encoding(dtype), shape, range });
    }
    if end_max > data_bytes {
        return Err(CheckpointError::Truncated {
            file: file.to_owned(),
            what: "the file with all its tensors".to_owned(),
            needed: end_max.saturating_add(data),
            available: data_bytes + data,
        });
    }
    Ok(tensors)
}

/// Checks that the tensors fill the data: the format allows no holes, in which something else could hide.
fn check_gaps(file: &str, tensors: &[RawTensor], data: Range<usize>) -> Result<(), CheckpointError> {
    let mut ranges: Vec<&Range<usize>> = tensors.iter().map(|tensor| &tensor.range).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut end = data.start;
    for next in ranges.into_iter().chain([&(data.end..data.end)]) {
        match next.start.cmp(&end) {
            Ordering::Equal => end = next.end,
            Ordering::Greater => {
                let problem = format!("{} bytes from byte {end} on belong to no tensor", next.start - end);
                return Err(CheckpointError::invalid(file, problem));
            }
            Ordering::Less => {
                let problem = format!("a tensor without weights lies at byte {}, inside another", next.start);
                return Err(CheckpointError::invalid(file, problem));
            }
        }
    }
    Ok(())
}

fn encoding(dtype: String) -> Encoding {
    match dtype.as_str() {
        "F32" => Encoding::Supported(DType::F32),
        "F16" => Encoding::Supported(DType::F16),
        "BF16" => Encoding::Supported(DType::BF16),
        _ => Encoding::Other(dtype),
    }
}

/// Bytes of an element, if the type is known and takes whole bytes.
fn element_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => Some(1),
        "U16" | "I16" | "F16" | "BF16" => Some(2),
        "U32" | "I32" | "F32" => Some(4),
        "U64" | "I64" | "F64" | "C64" => Some(8),
        _ => None,
    }
}
