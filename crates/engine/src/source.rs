//! A checkpoint seen as a Gemma 3 model.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use checkpoint::gguf::{Array, Value};
use checkpoint::{Checkpoint, Metadata, TensorData};
use model::hugging_face::stop_tokens_of_generation_config;
use model::tensors::{is_redundant, is_vision, tensors};
use model::{Config, ConfigError, GgufValue, Role, TensorEntry};
use tensor::format::trellis::Scales;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::{Capabilities, DType, TrellisFormat, WeightBytes, WeightError, WeightFormat, WeightSource};

use crate::{EngineError, dequantize};

/// A checkpoint whose configuration and tensors have been found to be those of a Gemma 3 model. Gives the weights by
/// the names that programs have.
#[derive(Debug)]
pub struct ModelSource<'a> {
    checkpoint: &'a Checkpoint,
    config: Config,
    tensors: Vec<SourceTensor>,
    by_name: HashMap<String, usize>,
    vision: usize,
}

/// A tensor of the model and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTensor {
    /// What it is in the model.
    pub entry: TensorEntry,
    /// Its name in the checkpoint.
    pub name: String,
    /// Its format.
    pub format: WeightFormat,
    /// Its bytes in the checkpoint.
    pub stored_bytes: usize,
}

impl<'a> ModelSource<'a> {
    /// Finds the model in a checkpoint. Reads no weights.
    ///
    /// # Errors
    /// A configuration that is not Gemma 3's; tensors that are missing, of the wrong shape, or of another model.
    pub fn open(checkpoint: &'a Checkpoint) -> Result<ModelSource<'a>, EngineError> {
        let mut config = read_config(checkpoint)?;
        // exllamav3 quantizes the head, even if the embedding, which it leaves as it is, has the same weights. Where
        // there is no embedding, the head is it.
        if trellis_head(checkpoint, &config).is_some() {
            let embedding = TensorEntry::new(&config, Role::Embedding, None).hugging_face_names();
            config.tied_embeddings &= !embedding.iter().any(|name| names_contain(checkpoint, name));
        }
        let hugging_face = matches!(checkpoint.metadata(), Metadata::HuggingFace(_));
        let entries = tensors(&config);
        let stranger = stranger(checkpoint, &config, &entries, hugging_face);
        let mut rotations = Rotations::default();
        let tensors = entries
            .into_iter()
            .map(|entry| find(checkpoint, &config, entry, hugging_face, &stranger, &mut rotations))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(tensor) = stranger {
            return Err(EngineError::UnknownTensor { tensor });
        }
        let by_name = tensors.iter().enumerate().map(|(index, tensor)| (tensor.entry.name.clone(), index)).collect();
        let vision = names(checkpoint).filter(|name| is_vision(name)).count();
        Ok(ModelSource { checkpoint, config, tensors, by_name, vision })
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// All tensors of the model, in the order in which a program needs them.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// Number of tensors of the vision encoder, which text does not need.
    pub fn vision_tensors(&self) -> usize {
        self.vision
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The weight of a norm `[n]`, with the 1 added that Hugging Face files leave out.
    ///
    /// # Errors
    /// As [`Checkpoint::bytes`].
    pub fn norm(&self, tensor: &SourceTensor) -> Result<Vec<f32>, EngineError> {
        let data = self.checkpoint.bytes(&tensor.name)?;
        let mut values = vec![0.0; tensor.entry.columns];
        tensor.decoded().codec().decode(data.bytes(), &mut values);
        if matches!(self.checkpoint.metadata(), Metadata::HuggingFace(_)) {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(values)
    }
}

impl WeightSource for ModelSource<'_> {
    /// A matrix as it is in the checkpoint, or a trellis decoded to F16 if that is asked for; a norm in f32.
    fn open(&self, name: &str, format: WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError> {
        let index = *self.by_name.get(name).ok_or_else(|| format!("the model has no weight `{name}`"))?;
        let tensor = &self.tensors[index];
        if !tensor.entry.role.is_norm() {
            return match (tensor.format, format) {
                (WeightFormat::Trellis(_), WeightFormat::Trellis(_)) => Ok(Arc::new(Tiles {
                    scales: Scales::from(&self.checkpoint.linear(&tensor.name)?),
                    tiles: self.checkpoint.tiles(&tensor.name)?,
                })),
                (WeightFormat::Trellis(_), WeightFormat::Blocks(DType::F16)) => {
                    Ok(Arc::new(dequantize::open(self.checkpoint, tensor)?))
                }
                (stored, wanted) if stored == wanted => Ok(self.checkpoint.bytes(&tensor.name)?),
                (stored, wanted) => Err(format!("`{name}` is stored as {stored}, expected {wanted}").into()),
            };
        }
        let values = self.norm(tensor)?;
        Ok(Arc::new(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()))
    }
}

impl SourceTensor {
    /// The format in which a program for a device has it: that of the checkpoint, or F16 for a trellis that the device
    /// can't multiply with.
    pub fn format_on(&self, capabilities: &Capabilities) -> WeightFormat {
        if capabilities.trellis { self.format } else { self.decoded().into() }
    }

    /// Its format, or F16 if it is a trellis: what it is decoded to.
    pub fn decoded(&self) -> DType {
        self.format.blocks().unwrap_or(DType::F16)
    }
}

/// The tiles of a trellis weight, and their scales.
struct Tiles {
    scales: Scales,
    tiles: TensorData,
}

impl WeightBytes for Tiles {
    fn bytes(&self) -> &[u8] {
        self.tiles.bytes()
    }

    fn scales(&self) -> Option<&Scales> {
        Some(&self.scales)
    }

    fn release(&self, range: Range<usize>) {
        self.tiles.release(range);
    }

    fn read(&self, range: Range<usize>, into: &mut [u8]) -> Result<(), WeightError> {
        self.tiles.read(range, into)
    }
}

/// Numbers the different scales of inputs.
#[derive(Default)]
struct Rotations(HashMap<Vec<u16>, u32>);

impl Rotations {
    fn number(&mut self, scales: &Scales) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(scales.suh.iter().map(|scale| scale.to_bits()).collect()).or_insert(next)
    }
}

/// The configuration, with the stop tokens of all files that name some.
fn read_config(checkpoint: &Checkpoint) -> Result<Config, EngineError> {
    match checkpoint.metadata() {
        Metadata::HuggingFace(files) => {
            let mut config = Config::from_config_json(&files.config)?;
            let more = files.generation_config.as_deref().map_or(Ok(Vec::new()), stop_tokens_of_generation_config)?;
            for token in more {
                if !config.stop_tokens.contains(&token) {
                    config.stop_tokens.push(token);
                }
            }
            Ok(config)
        }
        Metadata::Gguf(metadata) => {
            let lookup = |key: &str| metadata.get(key).map(gguf_value);
            // The architecture is looked at first: another model may have other names.
            if let Some(GgufValue::Text(name)) = lookup("general.architecture")
                && name != "gemma3"
            {
                return Err(ConfigError::Architecture { found: name.chars().take(80).collect() }.into());
            }
            let embedding = checkpoint.get("token_embd.weight")?;
            let tied = names(checkpoint).all(|name| name != "output.weight");
            Ok(Config::from_gguf(&lookup, embedding.rows_columns().0, tied)?)
        }
    }
}

/// A metadata value in the model's terms.
fn gguf_value(value: &Value) -> GgufValue {
    match value {
        Value::Bool(value) => GgufValue::Bool(*value),
        Value::String(value) => GgufValue::Text(value.clone()),
        Value::F32(value) => GgufValue::Float(f64::from(*value)),
        Value::F64(value) => GgufValue::Float(*value),
        Value::I8(value) => GgufValue::Signed(i64::from(*value)),
        Value::I16(value) => GgufValue::Signed(i64::from(*value)),
        Value::I32(value) => GgufValue::Signed(i64::from(*value)),
        Value::I64(value) => GgufValue::Signed(*value),
        Value::U8(value) => GgufValue::Unsigned(u64::from(*value)),
        Value::U16(value) => GgufValue::Unsigned(u64::from(*value)),
        Value::U32(value) => GgufValue::Unsigned(u64::from(*value)),
        Value::U64(value) => GgufValue::Unsigned(*value),
        Value::Array(array) => GgufValue::Array(gguf_array(array)),
    }
}

/// The elements of an array of booleans or integers; none of another, which no configuration has.
fn gguf_array(array: &Array) -> Vec<GgufValue> {
    match (array.bools(), array.to_u64s()) {
        (Some(values), _) => values.iter().map(|&value| GgufValue::Bool(value)).collect(),
        (None, Some(values)) => values.into_iter().map(GgufValue::Unsigned).collect(),
        (None, None) => Vec::new(),
    }
}

/// The names of all tensors, those in formats that can't be read included.
fn names(checkpoint: &Checkpoint) -> impl Iterator<Item = &str> {
    let known = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str());
    let known = known.chain(checkpoint.trellis().iter().map(|weight| weight.name.as_str()));
    known.chain(checkpoint.unsupported().iter().map(|tensor| tensor.name.as_str()))
}

/// The names that a tensor may have in this checkpoint.
fn candidates(entry: &TensorEntry, hugging_face: bool) -> Vec<String> {
    if hugging_face { entry.hugging_face_names().into() } else { vec![entry.name.clone()] }
}

/// The first tensor that the model has no use for.
fn stranger(checkpoint: &Checkpoint, config: &Config, entries: &[TensorEntry], hugging_face: bool) -> Option<String> {
    let known: HashSet<String> = entries.iter().flat_map(|entry| candidates(entry, hugging_face)).collect();
    names(checkpoint)
        .find(|name| !known.contains(*name) && !is_vision(name) && !is_redundant(config, name))
        .map(str::to_owned)
}

/// The name of the head, if it is a trellis.
fn trellis_head(checkpoint: &Checkpoint, config: &Config) -> Option<String> {
    let names = TensorEntry::new(config, Role::Head, None).hugging_face_names();
    names.into_iter().find(|name| checkpoint.trellis_weight(name).is_some())
}

/// Finds a tensor under one of its names and checks its shape.
fn find(
    checkpoint: &Checkpoint,
    config: &Config,
    entry: TensorEntry,
    hugging_face: bool,
    stranger: &Option<String>,
    rotations: &mut Rotations,
) -> Result<SourceTensor, EngineError> {
    let candidates = candidates(&entry, hugging_face);
    let present = candidates.iter().find(|candidate| names_contain(checkpoint, candidate)).cloned();
    let is_embedding = entry.role == Role::Embedding && config.tied_embeddings;
    let head = || trellis_head(checkpoint, config).filter(|_| is_embedding);
    let Some(name) = &present.or_else(head) else {
        return Err(EngineError::MissingTensor { tensor: candidates[0].clone(), stranger: stranger.clone() });
    };
    let mismatch = |found: &[usize]| {
        let (tensor, expected, found) = (name.clone(), entry.shape(), found.to_vec());
        Err(EngineError::Shape { tensor, expected, found })
    };
    if let Some(weight) = checkpoint.trellis_weight(name) {
        let padded = [entry.rows.next_multiple_of(BLOCK), entry.columns.next_multiple_of(BLOCK)];
        return match (entry.role.is_norm(), weight.has_bias) {
            (false, false) if [weight.outputs, weight.inputs] == padded => {
                let rotation = rotations.number(&Scales::from(&checkpoint.linear(name)?));
                let format = TrellisFormat { rate: weight.rate, codebook: weight.codebook, rotation };
                let (format, stored_bytes) = (WeightFormat::Trellis(format), weight.byte_len());
                Ok(SourceTensor { name: name.clone(), format, stored_bytes, entry })
            }
            (false, true) => {
                Err(EngineError::UnknownTensor { tensor: format!("{}.bias", name.trim_end_matches(".weight")) })
            }
            _ => mismatch(&[weight.outputs, weight.inputs]),
        };
    }
    let info = checkpoint.get(name)?;
    if info.shape != entry.shape() {
        return mismatch(&info.shape);
    }
    Ok(SourceTensor { name: name.clone(), format: info.dtype.into(), stored_bytes: info.byte_len(), entry })
}

/// Whether a tensor is there, in whatever format.
fn names_contain(checkpoint: &Checkpoint, name: &str) -> bool {
    checkpoint.tensor(name).is_some()
        || checkpoint.trellis_weight(name).is_some()
        || checkpoint.unsupported().iter().any(|tensor| tensor.name == name)
}
