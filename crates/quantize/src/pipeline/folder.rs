//! The finished folder.

use std::fs::{self, File};
use std::path::Path;

use checkpoint::exl3::{LinearTensors, SHARD_BYTES};
use checkpoint::safetensors::{Declared, Element, ShardedWriter};
use checkpoint::{AtomicFile, Metadata};
use serde_json::{Map, Value, json};
use tensor::format::trellis::{Codebook, Linear, Rate};
use tensor::{DType, WeightBytes};

use super::plan::Plan;
use super::{Layout, PipelineError};

/// The version of exllamav3 whose format it is.
const FORMAT_VERSION: &str = "1.6.5";

/// Files that are taken over where the source has them.
const FILES: [&str; 12] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "NOTICE",
];

/// What is told about a result.
pub(super) struct About<'a> {
    pub(super) rates: &'a [Rate],
    pub(super) layout: Layout,
    /// Sequences of calibration, and the tokens of the longest.
    pub(super) calibration: (usize, usize),
}

/// Writes all files. `layer` gives the trellises of a layer, and of the head as that after the last.
pub(super) fn write(
    folder: &Path,
    plan: &Plan<'_>,
    about: &About<'_>,
    mut layer: impl FnMut(usize) -> Result<Vec<Linear<'static>>, PipelineError>,
) -> Result<(), PipelineError> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).map_err(PipelineError::io("create", folder))?;
    let checkpoint = plan.source.checkpoint();
    let mut declared = plan.copied.clone();
    declared.extend(
        plan.targets
            .iter()
            .zip(about.rates)
            .flat_map(|(target, &rate)| declare_trellis(&target.key, rate, target.outputs(), target.inputs())),
    );
    let mut writer = ShardedWriter::create(folder, &declared, SHARD_BYTES)?;
    for tensor in &plan.copied {
        let data = checkpoint.bytes(&tensor.name)?;
        writer.write_tensor(&tensor.name, data.bytes())?;
        data.release(0..data.bytes().len());
    }
    for number in 0..=plan.source.config().layers.len() {
        for ((_, target), linear) in plan.of_layer(number).zip(layer(number)?) {
            for (name, bytes) in LinearTensors::new(&target.key, &linear).iter() {
                writer.write_tensor(name, bytes)?;
            }
        }
    }
    writer.finish()?;
    write_configs(folder, plan, about)?;
    if let Some(source) = checkpoint.folder() {
        for name in FILES {
            let from = source.join(name);
            if from.is_file() {
                let bytes = fs::read(&from).map_err(PipelineError::io("read", &from))?;
                AtomicFile::replace(&folder.join(name), &bytes)?;
            }
        }
    }
    Ok(())
}

/// A tensor that is no trellis.
pub(super) fn declare(name: &str, dtype: DType, shape: Vec<usize>) -> Result<Declared, PipelineError> {
    let element = Element::of(dtype).ok_or(PipelineError::NotAFolder)?;
    Ok(Declared { name: name.to_owned(), element, shape })
}

/// The tensors of a trellis, in the order of [`Linear::tensors`].
fn declare_trellis(key: &str, rate: Rate, outputs: usize, inputs: usize) -> [Declared; 4] {
    let declare = |part: &str, element, shape| Declared { name: format!("{key}.{part}"), element, shape };
    [
        declare("suh", Element::F16, vec![inputs]),
        declare("svh", Element::F16, vec![outputs]),
        declare("trellis", Element::I16, vec![inputs / 16, outputs / 16, rate.tile_words()]),
        declare("mul1", Element::I32, Vec::new()),
    ]
}

/// `config.json` and `quantization_config.json`.
fn write_configs(folder: &Path, plan: &Plan<'_>, about: &About<'_>) -> Result<(), PipelineError> {
    let Metadata::HuggingFace(files) = plan.source.checkpoint().metadata() else {
        return Err(PipelineError::NotAFolder);
    };
    let mut own = quantization_config(plan, about);
    let mut config: Value = serde_json::from_str(&files.config).unwrap_or_default();
    if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
        text.remove("quantization_config");
    }
    config["quantization_config"] = own.clone();
    AtomicFile::replace(&folder.join("config.json"), format!("{config:#}\n").as_bytes())?;
    let storage: Map<String, Value> = plan
        .targets
        .iter()
        .zip(about.rates)
        .map(|(target, &rate)| {
            let tensors = declare_trellis(&target.key, rate, target.outputs(), target.inputs());
            let stored: Map<String, Value> = tensors
                .into_iter()
                .map(|tensor| (tensor.name, json!({ "shape": tensor.shape, "dtype": dtype_name(tensor.element) })))
                .collect();
            let about = json!({
                "stored_tensors": stored,
                "quant_format": "exl3",
                "bits_per_weight": number(rate.bits()),
                "mul1_multiplier": Codebook::Mul1.multiplier(),
            });
            (target.key.clone(), about)
        })
        .collect();
    own["tensor_storage"] = Value::Object(storage);
    Ok(AtomicFile::replace(&folder.join("quantization_config.json"), format!("{own:#}\n").as_bytes())?)
}

fn quantization_config(plan: &Plan<'_>, about: &About<'_>) -> Value {
    let layers = plan.targets.len() - 1;
    let bits = plan.targets[..layers].iter().zip(about.rates);
    let bits: f64 = bits.map(|(target, rate)| target.weights() as f64 * f64::from(rate.bits())).sum();
    let weights: u64 = plan.targets[..layers].iter().map(|target| target.weights()).sum();
    json!({
        "quant_method": "exl3",
        "version": FORMAT_VERSION,
        "bits": (bits / weights as f64 * 1000.0).round() / 1000.0,
        "head_bits": number(about.rates[layers].bits()),
        "calibration": { "rows": about.calibration.0, "cols": about.calibration.1 },
        "out_scales": "always",
        "codebook": Codebook::Mul1.name(),
        "layout": about.layout.name(),
        "quantized_by": concat!("lapidary ", env!("CARGO_PKG_VERSION")),
    })
}

/// What PyTorch calls it.
fn dtype_name(element: Element) -> &'static str {
    match element {
        Element::F32 => "torch.float32",
        Element::F16 => "torch.float16",
        Element::BF16 => "torch.bfloat16",
        Element::I16 => "torch.int16",
        Element::I32 => "torch.int32",
    }
}

/// A whole number as such.
fn number(bits: f32) -> Value {
    if bits.fract() == 0.0 { json!(bits as u64) } else { json!(bits) }
}

/// Puts a folder in the place of the target, which it replaces if `force`.
pub(super) fn put(folder: &Path, target: &Path, force: bool) -> Result<(), PipelineError> {
    sync(folder);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let old = target.with_file_name(format!(".{name}.old"));
    let replaces = force && target.exists();
    if replaces {
        let _ = fs::remove_dir_all(&old);
        fs::rename(target, &old).map_err(PipelineError::io("rename", target))?;
    }
    fs::rename(folder, target).map_err(PipelineError::io("create", target))?;
    sync(target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")));
    if replaces {
        fs::remove_dir_all(&old).map_err(PipelineError::io("remove", &old))?;
    }
    Ok(())
}

/// Makes what was created and renamed in a folder durable, where a system has a way to ask for it.
fn sync(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}
