//! `quantization_config` in a `config.json`.

use serde_json::{Value, json};
use tensor::format::trellis::Codebook;

use crate::CheckpointError;

/// The versions of exllamav3 whose folders are read: their first numbers.
const MAJOR_VERSIONS: [&str; 2] = ["0", "1"];

/// How a folder was quantized, according to its `config.json`. The weights themselves may differ from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizationConfig {
    /// Version of exllamav3 that wrote the folder.
    pub version: Option<String>,
    /// Bits per weight of the layers, in the mean.
    pub bits: Option<f64>,
    /// Bits per weight of the head.
    pub head_bits: Option<f64>,
    /// The codebook; a folder that doesn't say may have any.
    pub codebook: Option<Codebook>,
}

impl QuantizationConfig {
    /// Reads the text of a `config.json`; `None` if it has no `quantization_config` or one of another method. `file` is
    /// its name for messages.
    ///
    /// # Errors
    /// A version or a codebook that is not read here.
    pub fn parse(file: &str, config: &str) -> Result<Option<QuantizationConfig>, CheckpointError> {
        // Text that is no JSON is told by whoever needs the rest of it.
        let Ok(root) = serde_json::from_str::<Value>(config) else { return Ok(None) };
        let text = root.get("text_config").and_then(|text| text.get("quantization_config"));
        let Some(fields) = root.get("quantization_config").filter(|fields| fields.is_object()).or(text) else {
            return Ok(None);
        };
        let text = |field: &str| fields.get(field).and_then(Value::as_str);
        if text("quant_method") != Some("exl3") {
            return Ok(None);
        }
        let refuse = |problem: String| {
            let problem = format!("{problem}\n\nhint: look for a newer version of this program");
            CheckpointError::unsupported(file, problem)
        };
        let version = text("version").map(str::to_owned);
        if let Some(version) = &version
            && !MAJOR_VERSIONS.contains(&version.split('.').next().unwrap_or(""))
        {
            return Err(refuse(format!("it is of version `{}` of exllamav3, expected 0 or 1", short(version))));
        }
        let codebook = match text("codebook") {
            None => None,
            Some(name) => match Codebook::ALL.into_iter().find(|codebook| codebook.name() == name) {
                Some(codebook) => Some(codebook),
                None => {
                    let name = short(name);
                    return Err(refuse(format!("its codebook is `{name}`, expected `3inst`, `mcg` or `mul1`")));
                }
            },
        };
        let number = |field: &str| fields.get(field).and_then(Value::as_f64);
        Ok(Some(QuantizationConfig { version, bits: number("bits"), head_bits: number("head_bits"), codebook }))
    }

    /// What belongs into a `config.json` under `quantization_config`.
    pub fn to_json(&self) -> Value {
        let mut fields = json!({ "quant_method": "exl3" });
        let codebook = self.codebook.map(|codebook| json!(codebook.name()));
        let rest = [
            ("version", self.version.as_ref().map(|version| json!(version))),
            ("bits", self.bits.map(|bits| json!(bits))),
            ("head_bits", self.head_bits.map(|bits| json!(bits))),
            ("codebook", codebook),
        ];
        for (field, value) in rest {
            if let Some(value) = value {
                fields[field] = value;
            }
        }
        fields
    }
}

/// The beginning of a text for a message.
fn short(text: &str) -> String {
    text.chars().take(40).collect()
}
