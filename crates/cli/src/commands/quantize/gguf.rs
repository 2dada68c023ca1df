//! A model as GGUF in a rounding format.

use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use backend_cpu::physical_cores;
use checkpoint::gguf::{Builder, Metadata as GgufMetadata, Value, Writer};
use checkpoint::{Checkpoint, Metadata};
use engine::{ModelSource, SourceTensor};
use model::Role;
use serde_json::json;
use tensor::format::EncodeError;
use tensor::{DType, WeightSource};

use crate::args::QuantizeArgs;
use crate::model_source::Model;
use crate::progress::{Progress, Unit};
use crate::random_model::{fitting, put_config};
use crate::{gguf_text, interrupt, session};

/// Weights that are decoded at once.
const CHUNK: usize = 4 << 20;

/// Writes the model.
///
/// # Errors
/// A model that can't be read, a file that is there already or can't be written, Ctrl-C.
pub(super) fn run(args: &QuantizeArgs, format: DType, output: &Path) -> Result<()> {
    if output.is_dir() {
        bail!("`{}` is a folder, expected the name of a file", output.display());
    }
    if output.exists() && !args.force {
        bail!("`{}` exists already\n\nhint: --force overwrites it", output.display());
    }
    let start = Instant::now();
    let model = Model::open(Some(&args.model))?;
    let source = ModelSource::open(&model.checkpoint)?;
    let mut builder = Builder::new(metadata(&model.name, &source, format)?);
    let formats = Formats::of(args, format);
    for tensor in source.tensors() {
        builder.tensor(&tensor.entry.name, formats.of_tensor(tensor), &tensor.entry.shape())?;
    }
    let bytes = builder.file_bytes();
    let decoded = |tensor: &SourceTensor| tensor.decoded().tensor_bytes(tensor.entry.rows, tensor.entry.columns);
    let total = source.tensors().iter().filter_map(decoded).map(|bytes| bytes as u64).sum();
    let mut task = Task {
        source: &source,
        formats,
        threads: args.threads.unwrap_or_else(physical_cores),
        progress: Progress::new("quantizing", Unit::Bytes, total),
        read: 0,
        writer: builder.create(output)?,
    };
    for tensor in source.tensors() {
        task.write(tensor)?;
    }
    let Task { writer, .. } = task;
    writer.finish()?;
    let seconds = start.elapsed().as_secs_f64();
    let (before, parameters) = (model.checkpoint.file_bytes(), source.config().parameters());
    let bits = bytes as f64 * 8.0 / parameters as f64;
    if args.json {
        let report = json!({
            "output": output,
            "format": format.name(),
            "bytes": bytes,
            "bytes_before": before,
            "bits_per_weight": bits,
            "seconds": seconds,
        });
        return Ok(crate::output::json(&report)?);
    }
    crate::output::notice(&format!(
        "wrote `{}`: {} from {}, {bits:.2} bits per weight, {seconds:.1} s",
        output.display(),
        crate::output::bytes(bytes),
        crate::output::bytes(before)
    ));
    Ok(())
}

/// What becomes of each tensor.
#[derive(Clone, Copy, Debug)]
struct Formats {
    matrices: DType,
    embedding: DType,
}

impl Formats {
    fn of(args: &QuantizeArgs, format: DType) -> Formats {
        // The embedding is the head too. In Q4_0 it alone costs the built-in model 1 % of perplexity, all else 2.2 %.
        let usual = if format == DType::Q4_0 { DType::Q8_0 } else { format };
        Formats { matrices: format, embedding: args.embedding_format.unwrap_or(usual) }
    }

    /// Norms in f32, matrices in the format that was asked for, if their rows allow it.
    fn of_tensor(self, tensor: &SourceTensor) -> DType {
        match tensor.entry.role {
            role if role.is_norm() => DType::F32,
            Role::Embedding | Role::Head => fitting(self.embedding, tensor.entry.columns),
            _ => fitting(self.matrices, tensor.entry.columns),
        }
    }
}

/// What llama.cpp calls a file of that format (`general.file_type`).
fn file_type(format: DType) -> Option<u32> {
    match format {
        DType::F32 => Some(0),
        DType::F16 => Some(1),
        DType::Q4_0 => Some(2),
        DType::Q8_0 => Some(7),
        DType::BF16 => Some(32),
        DType::Q4_1
        | DType::Q5_0
        | DType::Q5_1
        | DType::Q2_K
        | DType::Q3_K
        | DType::Q4_K
        | DType::Q5_K
        | DType::Q6_K => None,
    }
}

fn metadata(name: &str, source: &ModelSource<'_>, format: DType) -> Result<GgufMetadata> {
    let checkpoint: &Checkpoint = source.checkpoint();
    let mut metadata = GgufMetadata::new();
    let own_name = match checkpoint.metadata() {
        Metadata::Gguf(old) => old.get("general.name").and_then(Value::as_str),
        Metadata::HuggingFace(_) => None,
    };
    put_config(source.config(), own_name.unwrap_or(name), &mut metadata)?;
    if let Some(file_type) = file_type(format) {
        metadata.insert("general.file_type", file_type);
    }
    match checkpoint.metadata() {
        Metadata::Gguf(old) => gguf_text::copy(old, &mut metadata),
        Metadata::HuggingFace(_) => {
            let (tokenizer, template) = (session::tokenizer(checkpoint)?, session::template(checkpoint)?);
            gguf_text::write(&tokenizer, Some(&template), source.config().vocabulary, &mut metadata);
        }
    }
    Ok(metadata)
}

/// A file being written.
struct Task<'a> {
    source: &'a ModelSource<'a>,
    formats: Formats,
    threads: usize,
    progress: Progress,
    /// Bytes of the source that are done.
    read: u64,
    writer: Writer,
}

impl Task<'_> {
    fn write(&mut self, tensor: &SourceTensor) -> Result<()> {
        interrupt::check()?;
        if tensor.entry.role.is_norm() {
            let factor = match tensor.entry.role {
                // llama.cpp has a rule for the scale of the scores; what differs goes into the norm.
                Role::QueryNorm => self.source.config().gguf_query_norm_factor(),
                _ => 1.0,
            };
            let values = self.source.norm(tensor)?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| (value * factor).to_le_bytes()).collect();
            return Ok(self.writer.write_tensor(&tensor.entry.name, &bytes)?);
        }
        // A trellis weight is decoded here.
        let data = self.source.open(&tensor.entry.name, tensor.decoded().into()).map_err(|error| anyhow!(error))?;
        let (rows, columns) = (tensor.entry.rows, tensor.entry.columns);
        let (from, to) = (tensor.decoded(), self.formats.of_tensor(tensor));
        let row_bytes = data.bytes().len() / rows.max(1);
        let rows_at_once = (CHUNK / columns).max(self.threads);
        let mut row = 0;
        while row < rows {
            interrupt::check()?;
            let end = rows.min(row + rows_at_once);
            let range = row * row_bytes..end * row_bytes;
            let bytes = self.convert(&data.bytes()[range.clone()], from, to, end - row, columns)?;
            self.writer.write_chunk(&tensor.entry.name, &bytes)?;
            self.read += range.len() as u64;
            data.release(range);
            self.progress.set(self.read);
            row = end;
        }
        Ok(())
    }

    /// Rows from one format to another, divided among the threads.
    fn convert(&self, bytes: &[u8], from: DType, to: DType, rows: usize, columns: usize) -> Result<Vec<u8>> {
        if from == to {
            return Ok(bytes.to_vec());
        }
        let part_rows = rows.div_ceil(self.threads).max(1);
        let parts: Vec<Result<Vec<u8>, EncodeError>> = thread::scope(|scope| {
            let part_bytes = bytes.len() / rows * part_rows;
            let parts: Vec<_> =
                bytes.chunks(part_bytes).map(|part| scope.spawn(move || convert(part, from, to, columns))).collect();
            parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(parts.concat())
    }
}

/// Whole rows from one format to another.
fn convert(bytes: &[u8], from: DType, to: DType, columns: usize) -> Result<Vec<u8>, EncodeError> {
    let rows = bytes.len() / from.row_bytes(columns).unwrap_or(usize::MAX);
    let mut values = vec![0.0; rows * columns];
    from.codec().decode(bytes, &mut values);
    let mut encoded = vec![0; to.tensor_bytes(rows, columns).unwrap_or(0)];
    to.codec().encode(&values, &mut encoded)?;
    Ok(encoded)
}
