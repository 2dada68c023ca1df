//! What `inspect` says about a folder of exllamav3.

use std::collections::BTreeMap;

use checkpoint::exl3::{QuantizationConfig, TrellisInfo};
use checkpoint::{Checkpoint, Encoding, Metadata};
use engine::{ModelSource, SourceTensor};
use model::Role;
use serde_json::{Value, json};
use tensor::WeightFormat;

use crate::output::bytes;

/// The weights of one kind in all layers.
#[derive(Default)]
struct Kind {
    weights: usize,
    bytes: usize,
    /// Weights of each encoding.
    encodings: BTreeMap<String, usize>,
}

impl Kind {
    fn of<'a>(tensors: impl Iterator<Item = &'a SourceTensor>) -> Kind {
        let mut kind = Kind::default();
        for tensor in tensors {
            kind.weights += tensor.entry.rows * tensor.entry.columns;
            kind.bytes += tensor.stored_bytes;
            let encoding = match tensor.format {
                WeightFormat::Trellis(format) => Encoding::Trellis(format.rate, format.codebook).to_string(),
                WeightFormat::Blocks(dtype) => dtype.to_string(),
            };
            *kind.encodings.entry(encoding).or_default() += 1;
        }
        kind
    }

    /// Bits per weight: those of scales and padding too.
    fn bits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.weights.max(1) as f64
    }

    fn encodings(&self) -> String {
        let one = |(encoding, count): (&String, &usize)| format!("{count} × {encoding}");
        self.encodings.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// The name of a kind of matrices; none of norms.
fn name(role: Role) -> Option<&'static str> {
    match role {
        Role::Query => Some("query"),
        Role::Key => Some("key"),
        Role::Value => Some("value"),
        Role::AttentionOutput => Some("output"),
        Role::Gate => Some("gate"),
        Role::Up => Some("up"),
        Role::Down => Some("down"),
        Role::Head => Some("head"),
        Role::Embedding => Some("embedding"),
        Role::AttentionNorm
        | Role::QueryNorm
        | Role::KeyNorm
        | Role::PostAttentionNorm
        | Role::FeedForwardNorm
        | Role::PostFeedForwardNorm
        | Role::FinalNorm => None,
    }
}

/// The kinds of matrices in the order in which a model has them, the head last.
fn kinds(source: &ModelSource<'_>) -> Vec<(&'static str, Kind)> {
    let mut names: Vec<&'static str> = Vec::new();
    for name in source.tensors().iter().filter_map(|tensor| name(tensor.entry.role)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let of = |wanted| source.tensors().iter().filter(move |tensor| name(tensor.entry.role) == Some(wanted));
    names.into_iter().map(|name| (name, Kind::of(of(name)))).collect()
}

/// All matrices of the layers, and the whole model.
fn sums(source: &ModelSource<'_>) -> (Kind, Kind) {
    let layers = |tensor: &&SourceTensor| tensor.entry.layer.is_some() && name(tensor.entry.role).is_some();
    (Kind::of(source.tensors().iter().filter(layers)), Kind::of(source.tensors().iter()))
}

fn config(checkpoint: &Checkpoint) -> QuantizationConfig {
    match checkpoint.metadata() {
        // What can't be read was refused when the folder was opened.
        Metadata::HuggingFace(files) => {
            QuantizationConfig::parse("config.json", &files.config).ok().flatten().unwrap_or_default()
        }
        Metadata::Gguf(_) => QuantizationConfig::default(),
    }
}

/// Bits per weight and files; nothing for another checkpoint.
pub(super) fn lines(source: &ModelSource<'_>) -> Vec<String> {
    let checkpoint = source.checkpoint();
    if checkpoint.trellis().is_empty() {
        return Vec::new();
    }
    let (layers, all) = sums(source);
    let version = config(checkpoint).version.map(|version| format!(", by exllamav3 {version}")).unwrap_or_default();
    let mut lines =
        vec![format!("  bits/weight  {:.3} in the layers, {:.3} in all{version}", layers.bits(), all.bits())];
    for (name, kind) in kinds(source) {
        lines.push(format!("    {name:<10} {:.3}: {}", kind.bits(), kind.encodings()));
    }
    let files = checkpoint.files();
    lines.extend(files.iter().map(|file| format!("  file         {}, {}", file.name, bytes(file.bytes))));
    lines
}

/// The same for programs.
pub(super) fn report(source: &ModelSource<'_>) -> Option<Value> {
    let checkpoint = source.checkpoint();
    if checkpoint.trellis().is_empty() {
        return None;
    }
    let (layers, all) = sums(source);
    let of = |kind: &Kind| {
        json!({
            "weights": kind.weights,
            "bytes": kind.bytes,
            "bits_per_weight": kind.bits(),
            "formats": kind.encodings,
        })
    };
    let kinds: serde_json::Map<String, Value> =
        kinds(source).iter().map(|(name, kind)| ((*name).to_owned(), of(kind))).collect();
    let files: Vec<Value> =
        checkpoint.files().iter().map(|file| json!({ "name": file.name, "bytes": file.bytes })).collect();
    Some(json!({
        "version": config(checkpoint).version,
        "layers": of(&layers),
        "all": of(&all),
        "kinds": kinds,
        "files": files,
        "decoded_to": "f16",
    }))
}

fn encoding(weight: &TrellisInfo) -> String {
    Encoding::Trellis(weight.rate, weight.codebook).to_string()
}

/// A line for each trellis weight.
pub(super) fn weight_lines(checkpoint: &Checkpoint) -> impl Iterator<Item = String> {
    checkpoint.trellis().iter().map(|weight| {
        let (shape, size) = ([weight.outputs, weight.inputs], bytes(weight.byte_len() as u64));
        format!("  {:<60} {:<6} {shape:?}, {size}", weight.name, encoding(weight))
    })
}

/// An object for each trellis weight.
pub(super) fn weight_reports(checkpoint: &Checkpoint) -> impl Iterator<Item = Value> {
    checkpoint.trellis().iter().map(|weight| {
        json!({
            "name": weight.name,
            "format": encoding(weight),
            "shape": [weight.outputs, weight.inputs],
            "bytes": weight.byte_len(),
        })
    })
}
