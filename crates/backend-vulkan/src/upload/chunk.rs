//! Weights cut into pieces that fit into staging memory.

use std::ops::Range;
use std::sync::Arc;

use tensor::{BackendError, DType, WeightBytes};

use crate::dispatch::Dispatch;
use crate::features::Features;
use crate::kernel::trellis::{self, TrellisWeight};
use crate::layout::{Weight, is_plain, repack};
use crate::memory::Slice;

/// A part of a weight on its way to the device.
pub(crate) struct Chunk {
    name: Arc<str>,
    bytes: Arc<dyn WeightBytes>,
    range: Range<usize>,
    /// Where it goes; of tiles, where the whole weight goes.
    target: Slice,
    form: Form,
}

/// What happens to the bytes on the way.
#[derive(Clone, Copy)]
enum Form {
    /// Nothing.
    Plain,
    /// Rows of blocks become rows of planes.
    Rows { dtype: DType, rows: usize, columns: usize },
    /// Groups of tiles go where they belong in the weight.
    Tiles { weight: TrellisWeight, first: usize, groups: usize },
}

impl Chunk {
    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    /// Reads them into the beginning of `into`.
    ///
    /// # Errors
    /// [`BackendError::Weight`].
    ///
    /// # Panics
    /// If there is no room for them.
    pub(crate) fn read(&self, into: &mut [u8]) -> Result<(), BackendError> {
        let result = self.bytes.read(self.range.clone(), &mut into[..self.range.len()]);
        result.map_err(|source| BackendError::Weight { name: self.name.to_string(), source })
    }

    /// Where they go, if they go there as they are.
    pub(crate) fn plain_target(&self) -> Option<Slice> {
        matches!(self.form, Form::Plain).then_some(self.target)
    }

    /// Where as many bytes can be copied to, whatever belongs there: for measuring.
    pub(crate) fn any_target(&self) -> Slice {
        self.target
    }

    /// What brings them to the target from this address of the device, where copying does not.
    pub(crate) fn dispatch(&self, features: &Features, source: u64) -> Option<Dispatch> {
        match self.form {
            Form::Plain => None,
            Form::Rows { dtype, rows, columns } => {
                Some(repack(features, source, self.target.address, dtype, rows, columns))
            }
            Form::Tiles { weight, first, groups } => {
                Some(trellis::repack(features, source, &weight, self.target.address, first, groups))
            }
        }
    }
}

/// Cuts a weight into rows of at most `most` bytes together, or single rows where they are longer.
///
/// # Panics
/// If the bytes are not those of the weight's format and shape.
pub(crate) fn chunks(
    name: &str,
    weight: &Weight,
    target: Slice,
    bytes: &Arc<dyn WeightBytes>,
    most: u64,
) -> Vec<Chunk> {
    let row = weight.dtype.row_bytes(weight.columns).expect("a row of whole blocks");
    assert_eq!(bytes.bytes().len(), row * weight.rows, "bytes of a weight");
    let name: Arc<str> = name.into();
    let plain = is_plain(weight.dtype, weight.columns);
    let most = (most as usize / row.max(weight.row_bytes())).max(1);
    let cut = |first: usize| {
        let rows = most.min(weight.rows - first);
        let form = match plain {
            true => Form::Plain,
            false => Form::Rows { dtype: weight.dtype, rows, columns: weight.columns },
        };
        Chunk {
            name: name.clone(),
            bytes: bytes.clone(),
            range: first * row..(first + rows) * row,
            target: target.part((first * weight.row_bytes()) as u64, (rows * weight.row_bytes()) as u64),
            form,
        }
    };
    (0..weight.rows).step_by(most).map(cut).collect()
}

/// Cuts a weight of tiles into groups of at most `most` bytes together, or single groups where they are longer, and
/// its scales.
///
/// # Panics
/// If there are no scales, or the bytes are not those of the weight's format and shape.
pub(crate) fn trellis_chunks(
    name: &str,
    weight: &TrellisWeight,
    target: Slice,
    bytes: &Arc<dyn WeightBytes>,
    most: u64,
) -> Vec<Chunk> {
    assert_eq!(bytes.bytes().len(), weight.tile_bytes(), "bytes of a weight");
    let scales = bytes.scales().expect("a trellis has scales");
    let scales: Vec<u8> = scales.suh.iter().chain(&scales.svh).flat_map(|scale| scale.to_le_bytes()).collect();
    assert_eq!(weight.tile_bytes() + scales.len(), weight.bytes(), "scales of a weight");
    let name: Arc<str> = name.into();
    let most = (most as usize / weight.group_bytes()).max(1);
    let cut = |first: usize| {
        let groups = most.min(weight.groups() - first);
        Chunk {
            name: name.clone(),
            bytes: bytes.clone(),
            range: first * weight.group_bytes()..(first + groups) * weight.group_bytes(),
            target,
            form: Form::Tiles { weight: *weight, first, groups },
        }
    };
    let mut all: Vec<Chunk> = (0..weight.groups()).step_by(most).map(cut).collect();
    all.push(Chunk {
        name: name.clone(),
        range: 0..scales.len(),
        target: target.part(weight.tile_bytes() as u64, scales.len() as u64),
        bytes: Arc::new(scales),
        form: Form::Plain,
    });
    all
}
