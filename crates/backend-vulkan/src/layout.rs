//! How weights lie on the device: rows of planes (`shaders/weights.glsl`), with the bits of the file.

use tensor::DType;

use crate::dispatch::{Dispatch, Push};
use crate::features::Features;
use crate::kernel::kernel;

/// A matrix in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weight {
    /// Address of the first row.
    pub(crate) address: u64,
    /// Its format.
    pub(crate) dtype: DType,
    /// Outputs.
    pub(crate) rows: usize,
    /// Inputs.
    pub(crate) columns: usize,
}

impl Weight {
    /// Bytes from one row to the next: all planes, padded to 16.
    pub(crate) fn row_bytes(&self) -> usize {
        row_bytes(self.dtype, self.columns)
    }

    /// 16-byte vectors from one row to the next.
    pub(crate) fn pitch(&self) -> usize {
        self.row_bytes() / 16
    }

    /// Units of a row: what one lane takes at a time.
    pub(crate) fn units(&self) -> usize {
        self.columns.div_ceil(unit_len(self.dtype))
    }

    /// Bytes of all rows.
    pub(crate) fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }
}

/// Bytes of a row on the device.
pub(crate) fn row_bytes(dtype: DType, columns: usize) -> usize {
    let bytes = dtype.row_bytes(columns).expect("a row of whole blocks");
    let expanded = expanded_field(dtype).map_or(0, |_| 4 * columns / dtype.block_len());
    let bytes = bytes + expanded;
    // A unit of eight floats is read as a whole.
    let whole = if dtype.block_len() == 1 { columns.next_multiple_of(8) * dtype.block_bytes() } else { bytes };
    whole.next_multiple_of(16)
}

/// Weights of a unit, as the shaders of the formats define it.
pub(crate) fn unit_len(dtype: DType) -> usize {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => 8,
        DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 | DType::Q6_K => 32,
        DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::Q5_K => 64,
    }
}

/// Where the fields of a block begin and how long they are, in bytes, in the order of the planes.
fn fields(dtype: DType) -> &'static [(u32, u32)] {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => &[],
        DType::Q4_0 => &[(2, 16), (0, 2)],
        DType::Q4_1 => &[(4, 16), (0, 4)],
        DType::Q5_0 => &[(6, 16), (2, 4), (0, 2)],
        DType::Q5_1 => &[(8, 16), (4, 4), (0, 4)],
        DType::Q8_0 => &[(2, 32), (0, 2)],
        DType::Q2_K => &[(16, 64), (0, 16), (80, 4)],
        DType::Q3_K => &[(32, 64), (0, 32), (96, 12), (108, 2)],
        DType::Q4_K => &[(16, 128), (4, 12), (0, 4)],
        DType::Q5_K => &[(48, 128), (16, 32), (4, 12), (0, 4)],
        DType::Q6_K => &[(0, 128), (128, 64), (192, 16), (208, 2)],
    }
}

/// The field whose scales and minima, 6 bits each, become bytes on the device: from 12 bytes to 16.
fn expanded_field(dtype: DType) -> Option<usize> {
    match dtype {
        DType::Q4_K => Some(1),
        DType::Q5_K => Some(2),
        DType::F32 | DType::F16 | DType::BF16 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => None,
        DType::Q8_0 | DType::Q2_K | DType::Q3_K | DType::Q6_K => None,
    }
}

/// Whether rows lie on the device as they do in the file, so that they need no [`repack`].
pub(crate) fn is_plain(dtype: DType, columns: usize) -> bool {
    fields(dtype).is_empty() && Some(row_bytes(dtype, columns)) == dtype.row_bytes(columns)
}

/// Turns `rows` rows as they lie in a file, at `source`, into rows of planes at `target`.
pub(crate) fn repack(
    features: &Features,
    source: u64,
    target: u64,
    dtype: DType,
    rows: usize,
    columns: usize,
) -> Dispatch {
    let row = dtype.row_bytes(columns).expect("a row of whole blocks");
    // Floats are one block of one field.
    let plain = [(0, row as u32)];
    let (block, fields) = match fields(dtype) {
        [] => (row, &plain[..]),
        fields => (dtype.block_bytes(), fields),
    };
    let pitch = row_bytes(dtype, columns) / 16;
    let kernel = kernel(features, "repack", vec![]);
    let mut push = Push::default().address(source).address(target).number(rows).number(row / block).number(block / 2);
    push = push.number(pitch).number(row / 2).number(fields.len());
    for pick in [|field: &(u32, u32)| field.0, |field: &(u32, u32)| field.1] {
        for index in 0..4 {
            push = push.number(fields.get(index).map_or(0, pick) as usize / 2);
        }
    }
    push = push.number(expanded_field(dtype).unwrap_or(fields.len()));
    Dispatch {
        groups: [(rows * pitch).div_ceil(kernel.workgroup as usize) as u32, 1, 1],
        kernel,
        push,
        reads: vec![source],
        writes: vec![target],
        bytes: 2 * (rows * row) as u64,
        operations: 0,
        label: format!("repack {dtype} {rows}×{columns}"),
        ..Dispatch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_cover_a_block_once() {
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.block_len() > 1) {
            let mut covered = vec![0; dtype.block_bytes()];
            fields(dtype).iter().for_each(|&(start, len)| {
                covered[start as usize..][..len as usize].iter_mut().for_each(|count| *count += 1);
            });
            assert!(covered.iter().all(|&count| count == 1), "{dtype}: {covered:?}");
        }
    }

    /// A plane must begin where its vectors may be loaded: at a multiple of the size that the shader loads.
    #[test]
    fn planes_are_aligned() {
        for dtype in DType::ALL {
            let mut alignment = 16;
            for &(_, len) in fields(dtype) {
                let loaded = (1 << len.trailing_zeros()).min(16);
                assert!(loaded <= alignment, "{dtype}: a field of {len} bytes behind smaller ones");
                alignment = loaded;
            }
        }
    }
}
