//! A checkpoint as its users see it: metadata and named tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use tensor::DType;
use tensor::format::trellis::{Codebook, Linear, Rate};

use crate::exl3::{self, TrellisInfo};
use crate::folder::{Folder, StaticFile};
use crate::safetensors::Declared;
use crate::storage::Storage;
use crate::{CheckpointError, HuggingFace, TensorData, gguf, huggingface, sniff};

/// What a checkpoint says about its model.
#[derive(Clone, Debug, PartialEq)]
pub enum Metadata {
    /// The JSON files of a Hugging Face folder.
    HuggingFace(HuggingFace),
    /// The key-value pairs of a GGUF file.
    Gguf(gguf::Metadata),
}

/// How a tensor is stored: a format that can be read, or the name of one that can't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// One of the formats of this program.
    Supported(DType),
    /// The name in the file: `IQ3_XXS`, `F8_E4M3`, `I64`.
    Other(String),
    /// Several tensors that are one weight: [`Checkpoint::trellis`]. No [`RawTensor`] is.
    Trellis(Rate, Codebook),
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encoding::Supported(dtype) => dtype.fmt(f),
            Encoding::Other(name) => f.write_str(name),
            Encoding::Trellis(rate, codebook) => write!(f, "exl3 {rate} {codebook}"),
        }
    }
}

/// A tensor as one file declares it, checked against the file's length and the other tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTensor {
    /// Name in the file.
    pub name: String,
    /// How it is stored.
    pub encoding: Encoding,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the checkpoint.
    pub name: String,
    /// How it is stored.
    pub dtype: DType,
    /// Dimensions, outermost first: `[rows, columns]` for a matrix.
    pub shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
}

impl TensorInfo {
    /// Bytes of the tensor: what [`DType::tensor_bytes`] gives for its shape.
    pub fn byte_len(&self) -> usize {
        self.range.len()
    }

    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The shape as a matrix `[rows, columns]`: the last dimension, and the product of the others.
    pub fn rows_columns(&self) -> (usize, usize) {
        match self.shape.split_last() {
            Some((&columns, rows)) => (rows.iter().product(), columns),
            None => (1, 1),
        }
    }
}

/// A tensor in a format that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// The format's name in the file.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Bytes of the tensor.
    pub byte_len: usize,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Its name, without its folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// How much of a checkpoint is stored in one format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodingBytes {
    /// The format.
    pub encoding: Encoding,
    /// Number of tensors.
    pub tensors: usize,
    /// Their bytes together.
    pub bytes: u64,
}

/// An open checkpoint. Its files stay mapped as long as it or any [`TensorData`] of it lives.
#[derive(Debug)]
pub struct Checkpoint {
    folder: Option<Folder>,
    metadata: Metadata,
    files: Vec<Arc<Storage>>,
    file_names: Vec<String>,
    tensors: Vec<TensorInfo>,
    trellis: Vec<TrellisInfo>,
    unsupported: Vec<UnsupportedTensor>,
}

/// One file of a checkpoint with the tensors that count.
pub(crate) struct Part {
    name: String,
    storage: Arc<Storage>,
    pub(crate) tensors: Vec<RawTensor>,
}

impl Part {
    /// The tensors that count of the file at `path`.
    pub(crate) fn new(path: &Path, storage: Storage, tensors: Vec<RawTensor>) -> Part {
        let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.display().to_string());
        Part { name, storage: Arc::new(storage), tensors }
    }
}

impl Checkpoint {
    /// Opens a Hugging Face folder (`config.json`, `*.safetensors`) or a GGUF file (whatever its name), and checks
    /// every header completely. No tensor is read yet.
    ///
    /// # Errors
    /// [`CheckpointError::NotFound`] if nothing is at the path, [`CheckpointError::WrongKind`] if it is something
    /// else, [`CheckpointError::MissingFile`] and [`CheckpointError::MissingShards`] for incomplete folders, and
    /// whatever breaks the rules of the formats.
    pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
        let about = std::fs::metadata(path).map_err(|error| CheckpointError::io("open", path, error))?;
        if about.is_dir() {
            return Checkpoint::of_folder(Folder::Disk(path.to_owned()));
        }
        let (storage, place) = (Storage::map(path)?, path.display().to_string());
        if !storage.bytes().starts_with(&gguf::MAGIC) {
            return Err(sniff::wrong_kind(&place, "a GGUF file", storage.bytes()));
        }
        let (metadata, parts) = gguf::open(path, storage)?;
        Checkpoint::assemble(&place, None, Metadata::Gguf(metadata), parts)
    }

    /// Opens a Hugging Face folder whose files are part of the program. No weight is copied.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_static(files: &'static [StaticFile]) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::of_folder(Folder::Static(files))
    }

    fn of_folder(folder: Folder) -> Result<Checkpoint, CheckpointError> {
        let (metadata, parts) = huggingface::open(&folder)?;
        let place = folder.path().display().to_string();
        Checkpoint::assemble(&place, Some(folder), Metadata::HuggingFace(metadata), parts)
    }

    /// Puts the tensors of all files into one sorted table. `place` is the checkpoint's name for messages.
    fn assemble(
        place: &str,
        folder: Option<Folder>,
        metadata: Metadata,
        parts: Vec<Part>,
    ) -> Result<Checkpoint, CheckpointError> {
        let (mut files, mut file_names, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for (file, part) in parts.into_iter().enumerate() {
            files.push(part.storage);
            file_names.push(part.name);
            all.extend(part.tensors.into_iter().map(|tensor| (file, tensor)));
        }
        all.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        if let Some(pair) = all.windows(2).find(|pair| pair[0].1.name == pair[1].1.name) {
            let problem = format!("tensor `{}` is in two of its files", pair[0].1.name);
            return Err(CheckpointError::invalid(place, problem));
        }
        let trellis = match &metadata {
            Metadata::HuggingFace(metadata) => exl3::take(place, metadata, &mut all, &files)?,
            Metadata::Gguf(_) => Vec::new(),
        };
        let (mut tensors, mut unsupported) = (Vec::new(), Vec::new());
        for (file, RawTensor { name, encoding, shape, range }) in all {
            match encoding {
                Encoding::Supported(dtype) => tensors.push(TensorInfo { name, dtype, shape, file, range }),
                Encoding::Other(_) | Encoding::Trellis(..) => {
                    unsupported.push(UnsupportedTensor {
                        name,
                        dtype: encoding.to_string(),
                        shape,
                        byte_len: range.len(),
                    });
                }
            }
        }
        Ok(Checkpoint { folder, metadata, files, file_names, tensors, trellis, unsupported })
    }

    /// What the checkpoint says about its model.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The Hugging Face folder on disk; `None` for GGUF, and for a folder that is part of the program.
    pub fn folder(&self) -> Option<&Path> {
        match &self.folder {
            Some(Folder::Disk(path)) => Some(path),
            Some(Folder::Static(_)) | None => None,
        }
    }

    /// All bytes of a file that is in the Hugging Face folder beside the weights, as `tokenizer.json` is. `None` if it
    /// is not there, and for GGUF.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn read_file(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, CheckpointError> {
        let Some(folder) = &self.folder else { return Ok(None) };
        match folder.read(name, u64::MAX) {
            Err(CheckpointError::NotFound { .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// The files of the weights, in the order in which they were opened.
    pub fn files(&self) -> Vec<FileInfo> {
        let names = self.file_names.iter().zip(&self.files);
        names.map(|(name, file)| FileInfo { name: name.clone(), bytes: file.bytes().len() as u64 }).collect()
    }

    /// All trellis weights of an EXL3 folder, sorted by name. The tensors that they are made of are neither in
    /// [`Checkpoint::tensors`] nor in [`Checkpoint::unsupported`].
    pub fn trellis(&self) -> &[TrellisInfo] {
        &self.trellis
    }

    /// What is known of the trellis weight of that name ([`TrellisInfo::name`]), if there is one.
    pub fn trellis_weight(&self, name: &str) -> Option<&TrellisInfo> {
        let index = self.trellis.binary_search_by(|info| info.name.as_str().cmp(name));
        index.ok().map(|index| &self.trellis[index])
    }

    fn some_trellis(&self, name: &str) -> Result<&TrellisInfo, CheckpointError> {
        self.trellis_weight(name).ok_or_else(|| CheckpointError::MissingTensor { name: name.to_owned() })
    }

    /// The trellis weight of that name ([`TrellisInfo::name`]), put together. Copies its scales and none of its tiles.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`].
    pub fn linear(&self, name: &str) -> Result<Linear<'_>, CheckpointError> {
        self.some_trellis(name)?.linear(&self.files)
    }

    /// The tiles of the trellis weight of that name, to read them ahead and to give their pages back.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`].
    pub fn tiles(&self, name: &str) -> Result<TensorData, CheckpointError> {
        Ok(self.some_trellis(name)?.tiles(&self.files))
    }

    /// The tensors that the trellis weight of that name is made of, as they are in the files.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`].
    pub fn trellis_tensors(&self, name: &str) -> Result<Vec<(Declared, TensorData)>, CheckpointError> {
        Ok(self.some_trellis(name)?.stored(&self.files))
    }

    /// All tensors in formats that can be read, sorted by name.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// All other tensors, sorted by name.
    pub fn unsupported(&self) -> &[UnsupportedTensor] {
        &self.unsupported
    }

    /// The tensor of that name, if it is there in a format that can be read.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.get(name).ok()
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], or [`CheckpointError::UnsupportedDType`] if it is there in a format that
    /// can't be read.
    pub fn get(&self, name: &str) -> Result<&TensorInfo, CheckpointError> {
        if let Ok(index) = self.tensors.binary_search_by(|info| info.name.as_str().cmp(name)) {
            return Ok(&self.tensors[index]);
        }
        match self.unsupported.iter().find(|info| info.name == name) {
            Some(info) => Err(CheckpointError::UnsupportedDType { name: name.into(), dtype: info.dtype.clone() }),
            None => Err(CheckpointError::MissingTensor { name: name.to_owned() }),
        }
    }

    /// The bytes of a tensor, without copying them.
    ///
    /// # Errors
    /// As [`Checkpoint::get`].
    pub fn bytes(&self, name: &str) -> Result<Arc<TensorData>, CheckpointError> {
        let info = self.get(name)?;
        Ok(Arc::new(TensorData::new(self.files[info.file].clone(), info.range.clone())))
    }

    /// Bytes of all mapped files together.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|storage| storage.bytes().len() as u64).sum()
    }

    /// Number of tensors and bytes of each format, the largest first.
    pub fn bytes_by_encoding(&self) -> Vec<EncodingBytes> {
        let supported = self.tensors.iter().map(|info| (Encoding::Supported(info.dtype), info.byte_len()));
        let others = self.unsupported.iter().map(|info| (Encoding::Other(info.dtype.clone()), info.byte_len));
        let mut groups = BTreeMap::<String, EncodingBytes>::new();
        let trellis = self.trellis.iter().map(|info| (Encoding::Trellis(info.rate, info.codebook), info.byte_len()));
        for (encoding, bytes) in supported.chain(trellis).chain(others) {
            let group = groups.entry(encoding.to_string()).or_insert(EncodingBytes { encoding, tensors: 0, bytes: 0 });
            group.tensors += 1;
            group.bytes += bytes as u64;
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
        groups
    }
}

/// Bytes of a tensor whose rows are a multiple of `block_len`, or `None` if its size, that of one of its rows or one
/// of its dimensions can't exist in memory, even where another dimension is 0.
pub(crate) fn shape_bytes(shape: &[u64], block_len: u64, block_bytes: u64) -> Option<u64> {
    let fits = |bytes: &u64| usize::try_from(*bytes).is_ok();
    let (columns, rows) = shape.split_last().map_or((1, shape), |(&columns, rows)| (columns, rows));
    let row_bytes = (columns / block_len).checked_mul(block_bytes).filter(fits)?;
    let rows = rows.iter().try_fold(1u64, |product, dimension| product.checked_mul(*dimension).filter(fits))?;
    rows.checked_mul(columns).filter(fits)?;
    shape.iter().all(fits).then_some(())?;
    rows.checked_mul(row_bytes).filter(fits)
}

/// Checks that no two tensors of a file share a byte.
///
/// # Errors
/// Names the first two that do.
pub(crate) fn check_overlaps(file: &str, tensors: &[RawTensor]) -> Result<(), CheckpointError> {
    let mut order: Vec<&RawTensor> = tensors.iter().filter(|tensor| !tensor.range.is_empty()).collect();
    order.sort_by_key(|tensor| tensor.range.start);
    for pair in order.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            let problem = format!(
                "tensors `{}` and `{}` overlap: bytes {:?} and {:?}",
                pair[0].name, pair[1].name, pair[0].range, pair[1].range
            );
            return Err(CheckpointError::invalid(file, problem));
        }
    }
    Ok(())
}

/// Checks that every name occurs once.
///
/// # Errors
/// Names the first that doesn't.
pub(crate) fn check_names(file: &str, tensors: &[RawTensor]) -> Result<(), CheckpointError> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(CheckpointError::invalid(file, format!("it has two tensors `{}`", pair[0]))),
        None => Ok(()),
    }
}
