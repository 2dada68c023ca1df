//! `inspect`: what is in a checkpoint, and what the machine has.

mod devices;
mod exl3;

use anyhow::Result;
use checkpoint::{Checkpoint, Metadata};
use engine::ModelSource;
use model::{Config, LayerKind, ProgramOptions, TensorEntry, build_program};
use serde_json::{Value, json};
use tensor::backend::required_memory;
use tensor::{DType, LoadOptions, MemoryUse, Precision};

use crate::args::InspectArgs;
use crate::model_source::Model;
use crate::output::{self, bytes, count};

/// The context for which memory is told; less if the model has less.
const CONTEXT: usize = 8192;

/// Reports on a checkpoint, or on the machine for `devices`.
///
/// # Errors
/// A checkpoint that is not sound, or no Gemma 3 model.
pub(crate) fn run(args: InspectArgs) -> Result<()> {
    if args.model.as_deref() == Some("devices") && !std::path::Path::new("devices").exists() {
        return devices::run(args.json);
    }
    let model = Model::open(args.model.as_deref())?;
    let source = ModelSource::open(&model.checkpoint)?;
    let memory = memory(&source)?;
    if args.json {
        return Ok(output::json(&report(&model, &source, &memory, args.tensors))?);
    }
    Ok(output::answer(&text(&model, &source, &memory, args.tensors))?)
}

/// Memory by context.
struct Estimate {
    context: usize,
    used: MemoryUse,
}

fn memory(source: &ModelSource<'_>) -> Result<Estimate> {
    let config = source.config();
    let formats = |entry: &TensorEntry| {
        let found = source.tensors().iter().find(|tensor| tensor.entry == *entry);
        found.map_or(DType::F32.into(), |tensor| tensor.format)
    };
    let program = build_program(config, &formats, ProgramOptions::default())?.program;
    let context = CONTEXT.min(config.context);
    let options = LoadOptions {
        tokens_max: 512.min(context),
        outputs_max: 1,
        sequences_max: 1,
        context_max: context,
        cache_dtype: DType::F16,
        precision: Precision::Fast,
        threads: None,
    };
    Ok(Estimate { context, used: required_memory(&program, &options) })
}

fn kind(checkpoint: &Checkpoint) -> &'static str {
    match checkpoint.metadata() {
        Metadata::HuggingFace(_) if !checkpoint.trellis().is_empty() => "EXL3 folder",
        Metadata::HuggingFace(_) => "Hugging Face folder",
        Metadata::Gguf(_) => "GGUF file",
    }
}

/// Local layers, their window, global layers.
fn layers(config: &Config) -> (usize, Option<usize>, usize) {
    let windows: Vec<usize> = config.layers.iter().filter_map(|kind| kind.window()).collect();
    (windows.len(), windows.first().copied(), config.layers.len() - windows.len())
}

fn text(model: &Model, source: &ModelSource<'_>, memory: &Estimate, tensors: bool) -> String {
    let (checkpoint, config) = (&model.checkpoint, source.config());
    let (local, window, global) = layers(config);
    let window = window.map(|window| format!(" of window {window}")).unwrap_or_default();
    let Estimate { context, used } = memory;
    let total = used.weights + used.caches + used.scratch;
    let mut lines = vec![
        format!("{}: Gemma 3, {} parameters", model.name, count(config.parameters())),
        format!("  {}, {} tensors, {}", kind(checkpoint), tensor_count(checkpoint), bytes(checkpoint.file_bytes())),
        format!("  layers       {}: {local} local{window}, {global} global", config.layers.len()),
        format!("  hidden       {}, feed-forward {}", config.hidden, config.feed_forward),
        format!("  heads        {}, key/value heads {}, size {}", config.heads, config.kv_heads, config.head_dim),
        format!("  vocabulary   {}, context {}", config.vocabulary, config.context),
        format!("  rope         global θ {} ÷ {}", config.global_rope.base, config.global_rope.divisor),
        format!("               local  θ {} ÷ {}", config.local_rope.base, config.local_rope.divisor),
        format!("  stop tokens  {:?}", config.stop_tokens),
    ];
    for group in checkpoint.bytes_by_encoding() {
        lines.push(format!("  {:<13}{:>4} tensors, {}", group.encoding.to_string(), group.tensors, bytes(group.bytes)));
    }
    lines.extend(exl3::lines(source));
    if source.vision_tensors() > 0 {
        lines.push(format!("  vision       {} tensors, not used yet", source.vision_tensors()));
    }
    lines.push(format!(
        "  memory       {} estimated for a context of {context}: weights {}, caches {}, activations {}",
        bytes(total),
        bytes(used.weights),
        bytes(used.caches),
        bytes(used.scratch)
    ));
    if tensors {
        lines.extend(exl3::weight_lines(checkpoint));
        lines.extend(checkpoint.tensors().iter().map(|tensor| {
            format!("  {:<60} {:<6} {:?}, {}", tensor.name, tensor.dtype, tensor.shape, bytes(tensor.byte_len() as u64))
        }));
        let others = checkpoint.unsupported().iter();
        lines.extend(others.map(|tensor| format!("  {:<60} {:<6} {:?}", tensor.name, tensor.dtype, tensor.shape)));
    }
    lines.join("\n") + "\n"
}

/// Tensors in formats that can be read; those of a trellis weight count as one.
fn tensor_count(checkpoint: &Checkpoint) -> usize {
    checkpoint.tensors().len() + checkpoint.trellis().len()
}

fn report(model: &Model, source: &ModelSource<'_>, memory: &Estimate, tensors: bool) -> Value {
    let (checkpoint, config) = (&model.checkpoint, source.config());
    let formats: Vec<Value> = checkpoint
        .bytes_by_encoding()
        .into_iter()
        .map(|group| json!({ "format": group.encoding.to_string(), "tensors": group.tensors, "bytes": group.bytes }))
        .collect();
    let mut report = json!({
        "model": model.name,
        "kind": kind(checkpoint),
        "parameters": config.parameters(),
        "file_bytes": checkpoint.file_bytes(),
        "config": config_json(config),
        "formats": formats,
        "vision_tensors": source.vision_tensors(),
        "memory_estimate": {
            "context": memory.context,
            "weights_bytes": memory.used.weights,
            "caches_bytes": memory.used.caches,
            "scratch_bytes": memory.used.scratch,
        },
    });
    if let Some(about) = exl3::report(source) {
        report["exl3"] = about;
    }
    if tensors {
        let known = checkpoint.tensors().iter().map(|tensor| {
            json!({
                "name": tensor.name,
                "format": tensor.dtype.name(),
                "shape": tensor.shape,
                "bytes": tensor.byte_len(),
            })
        });
        let others = checkpoint.unsupported().iter().map(|tensor| {
            json!({ "name": tensor.name, "format": tensor.dtype, "shape": tensor.shape, "bytes": tensor.byte_len })
        });
        report["tensors"] = exl3::weight_reports(checkpoint).chain(known).chain(others).collect();
    }
    report
}

fn config_json(config: &Config) -> Value {
    let layer = |kind: &LayerKind| match kind {
        LayerKind::Local { window } => json!({ "window": window }),
        LayerKind::Global => json!("global"),
    };
    let rope = |rope: model::Rope| json!({ "base": rope.base, "divisor": rope.divisor });
    json!({
        "layers": config.layers.iter().map(layer).collect::<Vec<_>>(),
        "hidden": config.hidden,
        "feed_forward": config.feed_forward,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocabulary": config.vocabulary,
        "context": config.context,
        "query_pre_attn_scalar": config.query_pre_attn_scalar,
        "epsilon": config.epsilon,
        "local_rope": rope(config.local_rope),
        "global_rope": rope(config.global_rope),
        "tied_embeddings": config.tied_embeddings,
        "stop_tokens": config.stop_tokens,
    })
}
