//! From one layout of a folder to the other: every trellis, scale and norm keeps its bits.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use checkpoint::exl3::SHARD_BYTES;
use checkpoint::safetensors::{Declared, Element, ShardedWriter};
use checkpoint::{AtomicFile, CheckpointError, Metadata, TensorData};
use engine::{ModelSource, SourceTensor};
use model::{Config, Role, TensorEntry};
use serde_json::Value;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::{DType, WeightBytes, WeightFormat};

use super::rounding::INPUTS;
use super::workspace::{Lock, beside};
use super::{Layout, Observer, PipelineError, Stage, folder};
use crate::parallel;

/// Bytes that are written at once.
const CHUNK: usize = 16 << 20;

/// Magnitudes from here on would be infinite in F16.
const F16_LIMIT: f32 = 65_520.0;

/// A folder of trellis weights, and the layout that a copy of it is to have.
pub struct Conversion<'a> {
    /// The folder.
    pub source: &'a ModelSource<'a>,
    /// The layout of the copy.
    pub layout: Layout,
    /// Whether [`Layout::Compact`] may give up an embedding that is not what the head is decoded to.
    pub drop_embedding: bool,
    /// Threads that decode the head.
    pub threads: usize,
    /// Who looks on.
    pub observer: &'a dyn Observer,
}

/// The layout of a model; `None` if its head is no trellis.
pub fn layout_of(source: &ModelSource<'_>) -> Option<Layout> {
    let is_trellis = |role| {
        let found = source.tensors().iter().find(|tensor| tensor.entry.role == role);
        found.is_some_and(|tensor| matches!(tensor.format, WeightFormat::Trellis(_)))
    };
    match (is_trellis(Role::Embedding), is_trellis(Role::Head)) {
        (true, _) => Some(Layout::Compact),
        (false, true) => Some(Layout::Exllamav3),
        (false, false) => None,
    }
}

/// A tensor of the copy.
struct Piece {
    declared: Declared,
    bytes: Bytes,
}

/// Where a tensor's bytes come from.
enum Bytes {
    Stored(TensorData),
    /// The head is decoded.
    Head,
}

impl Conversion<'_> {
    /// Writes the copy into a new folder, which appears when it is complete; `force` replaces one that is there. Gives
    /// the bytes of its weight files. No weight is in memory as a whole.
    ///
    /// The embedding of [`Layout::Exllamav3`] is what the head is decoded to, in F16: exactly what a compact folder is
    /// run with on a device that does not multiply trellises, and half a unit of 2⁻¹⁰ away on one that does.
    ///
    /// # Errors
    /// A source that is no folder of trellis weights or has that layout already; an embedding that would be lost; what
    /// else [`PipelineError`] lists.
    pub fn run(&self, target: &Path, force: bool) -> Result<u64, PipelineError> {
        match layout_of(self.source) {
            None => return Err(PipelineError::NotTrellis),
            Some(layout) if layout == self.layout => return Err(PipelineError::SameLayout(layout)),
            Some(_) => {}
        }
        if target.exists() && !force {
            return Err(PipelineError::Exists(target.to_owned()));
        }
        let pieces = self.pieces()?;
        let lock = Lock::take(&beside(target, "converting"))?;
        let finished = lock.folder.join("finished");
        let written = self.write(&finished, pieces).and_then(|bytes| {
            folder::put(&finished, target, force)?;
            Ok(bytes)
        });
        let removed = lock.remove();
        let bytes = written?;
        removed.map(|()| bytes)
    }

    /// All tensors of the copy, in the order in which quantizing writes them: norms, the embedding, what else is no
    /// trellis, and the trellises layer by layer.
    fn pieces(&self) -> Result<Vec<Piece>, PipelineError> {
        let checkpoint = self.source.checkpoint();
        if let Some(tensor) = checkpoint.unsupported().first() {
            let (name, dtype) = (tensor.name.clone(), tensor.dtype.clone());
            return Err(CheckpointError::UnsupportedDType { name, dtype }.into());
        }
        let mut pieces = Vec::new();
        for tensor in self.source.tensors().iter().filter(|tensor| tensor.entry.role.is_norm()) {
            pieces.push(self.plain(&tensor.name)?);
        }
        let mut left_out = HashSet::new();
        match self.layout {
            Layout::Exllamav3 => pieces.push(self.decoded_embedding()?),
            Layout::Compact => {
                left_out.insert(self.superfluous_embedding()?.name.clone());
            }
        }
        left_out.extend(pieces.iter().map(|piece| piece.declared.name.clone()));
        for info in checkpoint.tensors().iter().filter(|info| !left_out.contains(&info.name)) {
            pieces.push(self.plain(&info.name)?);
        }
        for name in self.trellises() {
            let stored = checkpoint.trellis_tensors(name)?.into_iter();
            pieces.extend(stored.map(|(declared, data)| Piece { declared, bytes: Bytes::Stored(data) }));
        }
        Ok(pieces)
    }

    /// A tensor that is no trellis, as it is.
    fn plain(&self, name: &str) -> Result<Piece, PipelineError> {
        let info = self.source.checkpoint().get(name)?;
        let declared = folder::declare(name, info.dtype, info.shape.clone())?;
        let bytes = Bytes::Stored(Arc::unwrap_or_clone(self.source.checkpoint().bytes(name)?));
        Ok(Piece { declared, bytes })
    }

    /// The names of all trellises: those of the layers, the head, and what the model does not need.
    fn trellises(&self) -> Vec<&str> {
        let place = |tensor: &SourceTensor| {
            let roles = INPUTS.iter().flat_map(|roles| roles.iter());
            let role = roles.into_iter().position(|role| *role == tensor.entry.role);
            (tensor.entry.layer.unwrap_or(usize::MAX), role)
        };
        let mut own: Vec<&SourceTensor> =
            self.source.tensors().iter().filter(|tensor| matches!(tensor.format, WeightFormat::Trellis(_))).collect();
        own.sort_by_key(|tensor| place(tensor));
        let mut names: Vec<&str> = own.iter().map(|tensor| tensor.name.as_str()).collect();
        let known: HashSet<&str> = names.iter().copied().collect();
        let all = self.source.checkpoint().trellis().iter().map(|info| info.name.as_str());
        names.extend(all.filter(|name| !known.contains(name)));
        names
    }

    /// The embedding that a compact folder does not have.
    fn decoded_embedding(&self) -> Result<Piece, PipelineError> {
        let find = |role| self.source.tensors().iter().find(move |tensor| tensor.entry.role == role);
        let norm = find(Role::FinalNorm).expect("every model has a final norm");
        let place = norm.entry.hugging_face_names().iter().position(|name| *name == norm.name).unwrap_or(0);
        let entry = TensorEntry::new(self.source.config(), Role::Embedding, None);
        let name = entry.hugging_face_names()[place].clone();
        let declared = Declared { name, element: Element::F16, shape: entry.shape() };
        Ok(Piece { declared, bytes: Bytes::Head })
    }

    /// The embedding that a compact folder can do without.
    fn superfluous_embedding(&self) -> Result<&SourceTensor, PipelineError> {
        let Metadata::HuggingFace(files) = self.source.checkpoint().metadata() else {
            return Err(PipelineError::NotTrellis);
        };
        // What the source says of itself follows from its tensors.
        if !Config::from_config_json(&files.config).map_err(engine::EngineError::from)?.tied_embeddings {
            return Err(PipelineError::OwnHead);
        }
        let find = self.source.tensors().iter().find(|tensor| tensor.entry.role == Role::Embedding);
        let embedding = find.expect("every model has an embedding");
        if !self.drop_embedding {
            self.compare(embedding)?;
        }
        Ok(embedding)
    }

    /// Whether an embedding is what the head is decoded to.
    fn compare(&self, embedding: &SourceTensor) -> Result<(), PipelineError> {
        let data = self.source.checkpoint().bytes(&embedding.name)?;
        let (dtype, rows) = (embedding.decoded(), embedding.entry.rows);
        let row_bytes = data.bytes().len() / rows;
        let (mut at, mut different, mut error, mut square) = (0, 0, 0.0, 0.0);
        let (mut own, mut others) = (vec![0.0; embedding.entry.columns], vec![0.0; embedding.entry.columns]);
        self.decode_head(dtype, |bytes| {
            let range = at..at + bytes.len();
            let pairs = data.bytes()[range.clone()].chunks_exact(row_bytes).zip(bytes.chunks_exact(row_bytes));
            for (expected, found) in pairs.filter(|(expected, found)| expected != found) {
                different += 1;
                dtype.codec().decode(expected, &mut own);
                dtype.codec().decode(found, &mut others);
                error += own.iter().zip(&others).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).sum::<f64>();
                square += own.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>();
            }
            data.release(range.clone());
            at = range.end;
            Ok(())
        })?;
        if different == 0 {
            return Ok(());
        }
        let error = if square > 0.0 { (error / square).sqrt() } else { f64::INFINITY };
        Err(PipelineError::OtherEmbedding { name: embedding.name.clone(), different, rows, error })
    }

    /// Decodes the head, a few rows at a time, `[rows, hidden]` without padding.
    fn decode_head(
        &self,
        dtype: DType,
        mut take: impl FnMut(&[u8]) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let role = if layout_of(self.source) == Some(Layout::Compact) { Role::Embedding } else { Role::Head };
        let head = self.source.tensors().iter().find(|tensor| tensor.entry.role == role).expect("a head");
        let linear = self.source.checkpoint().linear(&head.name)?;
        let tiles = self.source.checkpoint().tiles(&head.name)?;
        let (rows, columns) = (head.entry.rows, head.entry.columns);
        let failed = |problem: String| PipelineError::Weight { name: head.name.clone(), source: problem.into() };
        let blocks: Vec<usize> = (0..rows.div_ceil(BLOCK)).collect();
        for group in blocks.chunks(self.threads.max(1)) {
            self.go_on()?;
            let decoded = parallel::map(group.to_vec(), self.threads, |block| {
                let mut values = vec![0.0; BLOCK * linear.inputs()];
                linear.dequantize_block(block, &mut values);
                let rows = values.chunks_exact(linear.inputs()).take(rows - block * BLOCK);
                let values: Vec<f32> = rows.flat_map(|row| &row[..columns]).copied().collect();
                encode(&values, dtype)
            });
            for bytes in decoded {
                take(&bytes.map_err(failed)?)?;
            }
        }
        // The tiles of some outputs lie all over.
        tiles.release(0..tiles.bytes().len());
        Ok(())
    }

    fn go_on(&self) -> Result<(), PipelineError> {
        if self.observer.cancelled() { Err(PipelineError::Cancelled) } else { Ok(()) }
    }

    /// Writes all files.
    fn write(&self, folder: &Path, pieces: Vec<Piece>) -> Result<u64, PipelineError> {
        fs::create_dir_all(folder).map_err(PipelineError::io("create", folder))?;
        let declared: Vec<Declared> = pieces.iter().map(|piece| piece.declared.clone()).collect();
        let total = declared.iter().map(Declared::bytes).sum::<Result<u64, _>>()?;
        let mut done = 0;
        let mut writer = ShardedWriter::create(folder, &declared, SHARD_BYTES)?;
        for Piece { declared, bytes } in pieces {
            let mut write = |bytes: &[u8]| {
                self.go_on()?;
                writer.write_chunk(&declared.name, bytes)?;
                done += bytes.len() as u64;
                self.observer.progress(Stage::Conversion, done, total);
                Ok(())
            };
            match bytes {
                Bytes::Head => self.decode_head(DType::F16, &mut write)?,
                Bytes::Stored(data) if data.bytes().is_empty() => writer.write_tensor(&declared.name, &[])?,
                Bytes::Stored(data) => {
                    for start in (0..data.bytes().len()).step_by(CHUNK) {
                        let range = start..data.bytes().len().min(start + CHUNK);
                        write(&data.bytes()[range.clone()])?;
                        data.release(range);
                    }
                }
            }
        }
        writer.finish()?;
        self.write_others(folder)?;
        Ok(total)
    }

    /// Writes the configurations, which name the layout, and copies everything else that is no weight.
    fn write_others(&self, folder: &Path) -> Result<(), PipelineError> {
        let source = self.source.checkpoint().folder().ok_or(PipelineError::NotTrellis)?;
        let entries = fs::read_dir(source).map_err(PipelineError::io("read", source))?;
        for entry in entries {
            let from = entry.map_err(PipelineError::io("read", source))?.path();
            let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_weight = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
            if !from.is_file() || is_weight || name.starts_with('.') {
                continue;
            }
            let into = folder.join(&name);
            if name == "config.json" || name == "quantization_config.json" {
                let text = fs::read_to_string(&from).map_err(PipelineError::io("read", &from))?;
                AtomicFile::replace(&into, self.with_layout(&text).as_bytes())?;
            } else {
                copy(&from, &into)?;
            }
        }
        Ok(())
    }

    /// A configuration with the layout of the copy.
    fn with_layout(&self, text: &str) -> String {
        let Ok(mut config) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
        let places = ["", "/quantization_config", "/text_config/quantization_config"];
        for place in places {
            if let Some(own) = config.pointer_mut(place).filter(|own| own["quant_method"] == "exl3") {
                own["layout"] = self.layout.name().into();
                let stored = own.get_mut("tensor_storage").and_then(Value::as_object_mut);
                if let (Some(stored), Layout::Compact) = (stored, self.layout) {
                    stored.retain(|name, _| !name.ends_with("embed_tokens"));
                }
            }
        }
        format!("{config:#}\n")
    }
}

/// Numbers in a format that can have them.
fn encode(values: &[f32], dtype: DType) -> Result<Vec<u8>, String> {
    let beyond = |value: &&f32| !value.is_finite() || dtype == DType::F16 && value.abs() >= F16_LIMIT;
    if let Some(value) = values.iter().find(beyond) {
        return Err(format!("a weight is {value}, which {dtype} does not have"));
    }
    let mut bytes = vec![0; dtype.tensor_bytes(1, values.len()).unwrap_or(0)];
    dtype.codec().encode(values, &mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Copies a file of any size.
fn copy(from: &Path, into: &Path) -> Result<(), PipelineError> {
    let mut source = File::open(from).map_err(PipelineError::io("read", from))?;
    let mut file = AtomicFile::create(into)?;
    io::copy(&mut source, &mut file).map_err(PipelineError::io("write", into))?;
    Ok(file.finish()?)
}
