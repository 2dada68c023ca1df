//! From the tensors of a folder to its trellis weights.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use tensor::format::trellis::{Codebook, Linear, Parts, Rate};

use super::QuantizationConfig;
use crate::safetensors::{Declared, Element};
use crate::storage::Storage;
use crate::{CheckpointError, HuggingFace, RawTensor, TensorData};

/// The last parts of the names of the tensors of a weight, their type and their number of dimensions, in the order in
/// which exllamav3 writes them.
const PARTS: [(&str, Element, usize); 8] = [
    ("suh", Element::F16, 1),
    ("svh", Element::F16, 1),
    ("su", Element::I16, 1),
    ("sv", Element::I16, 1),
    ("trellis", Element::I16, 3),
    ("bias", Element::F16, 1),
    ("mcg", Element::I32, 0),
    ("mul1", Element::I32, 0),
];

/// A weight that is stored as a trellis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrellisInfo {
    /// The name that it would have as a matrix: `NAME.weight`.
    pub name: String,
    /// Bits per weight, those of the scales not counted.
    pub rate: Rate,
    /// What makes weights of its states.
    pub codebook: Codebook,
    /// Columns of the matrix, a multiple of 128: with the zeros that were added to make it one.
    pub inputs: usize,
    /// Rows of the matrix, likewise.
    pub outputs: usize,
    /// Whether there is a bias `[outputs]`.
    pub has_bias: bool,
    /// Where each of its tensors is.
    parts: BTreeMap<&'static str, Place>,
}

/// Where a tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    file: usize,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl TrellisInfo {
    /// Bytes of all its tensors.
    pub fn byte_len(&self) -> usize {
        self.parts.values().map(|place| place.range.len()).sum()
    }

    /// Its tensors, put together.
    pub(crate) fn linear<'a>(&self, files: &'a [Arc<Storage>]) -> Result<Linear<'a>, CheckpointError> {
        let shape = [self.inputs / 16, self.outputs / 16, self.rate.tile_words()];
        put_together(&self.name, shape, &self.parts, files)
    }

    /// The bytes of `trellis`.
    pub(crate) fn tiles(&self, files: &[Arc<Storage>]) -> TensorData {
        self.parts["trellis"].data(files)
    }

    /// All its tensors as they are in the files.
    pub(crate) fn stored(&self, files: &[Arc<Storage>]) -> Vec<(Declared, TensorData)> {
        let prefix = self.name.trim_end_matches(".weight");
        let parts = PARTS.iter().filter_map(|&(part, element, _)| Some((part, element, self.parts.get(part)?)));
        let declare = |part, element, place: &Place| {
            let declared = Declared { name: format!("{prefix}.{part}"), element, shape: place.shape.clone() };
            (declared, place.data(files))
        };
        parts.map(|(part, element, place)| declare(part, element, place)).collect()
    }
}

impl Place {
    fn data(&self, files: &[Arc<Storage>]) -> TensorData {
        TensorData::new(files[self.file].clone(), self.range.clone())
    }
}

/// Takes the tensors of trellis weights, sorted by name and with the number of their file, out of `tensors`.
///
/// # Errors
/// Whatever keeps one of them from being used later: [`CheckpointError::Trellis`].
pub(crate) fn take(
    folder: &str,
    metadata: &HuggingFace,
    tensors: &mut Vec<(usize, RawTensor)>,
    files: &[Arc<Storage>],
) -> Result<Vec<TrellisInfo>, CheckpointError> {
    let config = QuantizationConfig::parse(&format!("{folder}/config.json"), &metadata.config)?;
    let prefixes: BTreeSet<String> =
        tensors.iter().filter_map(|(_, tensor)| tensor.name.strip_suffix(".trellis")).map(str::to_owned).collect();
    if prefixes.is_empty() {
        return match config {
            None => Ok(Vec::new()),
            Some(_) => {
                let problem = "`config.json` says that it is of exllamav3, but no tensor ends in `.trellis`";
                Err(CheckpointError::invalid(folder, problem))
            }
        };
    }
    let (mut groups, mut others) = (BTreeMap::<String, Vec<(usize, RawTensor)>>::new(), Vec::new());
    for (file, tensor) in tensors.drain(..) {
        let (prefix, part) = tensor.name.rsplit_once('.').unwrap_or(("", &tensor.name));
        if prefixes.contains(prefix) {
            groups.entry(prefix.to_owned()).or_default().push((file, tensor));
        } else if matches!(part, "suh" | "svh" | "su" | "sv" | "mcg" | "mul1") {
            let problem = format!("`{part}` is there, but no `trellis`");
            return Err(CheckpointError::Trellis { name: prefix.to_owned(), problem });
        } else {
            others.push((file, tensor));
        }
    }
    *tensors = others;
    let mut found =
        groups.into_iter().map(|(prefix, group)| info(&prefix, group, files)).collect::<Result<Vec<_>, _>>()?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Checks the tensors of one weight.
fn info(prefix: &str, group: Vec<(usize, RawTensor)>, files: &[Arc<Storage>]) -> Result<TrellisInfo, CheckpointError> {
    let refuse = |problem: String| CheckpointError::Trellis { name: prefix.to_owned(), problem };
    let (mut parts, mut tiles) = (BTreeMap::new(), [0; 3]);
    if group.iter().any(|(_, tensor)| tensor.name.ends_with(".signs")) {
        let hint = "quantize the model again without `--embed_bits`";
        return Err(refuse(format!("a quantized embedding is not supported yet\n\nhint: {hint}")));
    }
    for (file, RawTensor { name, encoding, shape, range }) in group {
        let part = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or(&name);
        let Some((part, kind, dimensions)) = PARTS.into_iter().find(|(known, ..)| *known == part) else {
            let known: Vec<String> = PARTS.iter().map(|(name, ..)| format!("`{name}`")).collect();
            let hint = "is it from a newer version of exllamav3?";
            return Err(refuse(format!("it has a part `{part}`, expected {}\n\nhint: {hint}", known.join(", "))));
        };
        let found = encoding.to_string();
        if !found.eq_ignore_ascii_case(kind.name()) {
            return Err(refuse(format!("`{part}` is stored as {found}, expected {}", kind.name())));
        }
        // A single number may have the shape [1].
        if shape.len() != dimensions && !(dimensions == 0 && shape == [1]) {
            return Err(refuse(format!("`{part}` has the shape {shape:?}, expected {dimensions} dimensions")));
        }
        if part == "trellis" {
            tiles = shape.clone().try_into().expect("three dimensions");
        }
        parts.insert(part, Place { file, shape, range });
    }
    let linear = put_together(prefix, tiles, &parts, files)?;
    Ok(TrellisInfo {
        name: format!("{prefix}.weight"),
        rate: linear.rate(),
        codebook: linear.codebook(),
        inputs: linear.inputs(),
        outputs: linear.outputs(),
        has_bias: linear.bias().is_some(),
        parts,
    })
}

fn put_together<'a>(
    name: &str,
    trellis_shape: [usize; 3],
    parts: &BTreeMap<&'static str, Place>,
    files: &'a [Arc<Storage>],
) -> Result<Linear<'a>, CheckpointError> {
    let part = |name: &str| parts.get(name).map(|place| &files[place.file].bytes()[place.range.clone()]);
    let parts = Parts {
        trellis_shape,
        trellis: part("trellis").unwrap_or_default(),
        suh: part("suh"),
        svh: part("svh"),
        su: part("su"),
        sv: part("sv"),
        mcg: part("mcg"),
        mul1: part("mul1"),
        bias: part("bias"),
    };
    Linear::from_parts(parts)
        .map_err(|error| CheckpointError::Trellis { name: name.to_owned(), problem: error.to_string() })
}
