//! Reads `config.json`, in all the forms that Gemma 3 checkpoints have it.
//!
//! The files of the hub's first releases leave most fields of the larger models to the defaults of the class
//! `Gemma3TextConfig`, have `rope_theta`, `rope_local_base_freq`, `rope_scaling` and `sliding_window_pattern`, and nest
//! all of it in `text_config` where a vision encoder comes along. Version 5 of transformers writes `rope_parameters`
//! and `layer_types` instead.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::config::{
    Config, ConfigError, GLOBAL_BASE, GLOBAL_EVERY, HEADS, LAYERS, LOCAL_BASE, LayerKind, POSITIONS, Rope, VOCABULARY,
    WIDTH, layer_pattern,
};

impl Config {
    /// The model that a `config.json` describes.
    ///
    /// # Errors
    /// No JSON, another architecture (named in the message), or a field whose value makes no sense.
    pub fn from_config_json(json: &str) -> Result<Config, ConfigError> {
        let root: Value = serde_json::from_str(json)?;
        let root = root.as_object().ok_or_else(|| ConfigError::field("config.json", "an object", &root))?;
        check_architecture(root)?;
        let text = match root.get("text_config") {
            None | Some(Value::Null) => Fields { map: root },
            Some(Value::Object(text)) => Fields { map: text },
            Some(other) => return Err(ConfigError::field("text_config", "an object", other)),
        };
        check_fixed(&text)?;
        check_quantization(&text)?;
        check_quantization(&Fields { map: root })?;
        let (local_rope, global_rope) = ropes(&text)?;
        let config = Config {
            layers: layers(&text)?,
            hidden: text.integer("hidden_size", 2304, WIDTH)?,
            feed_forward: text.integer("intermediate_size", 9216, WIDTH)?,
            heads: text.integer("num_attention_heads", 8, HEADS)?,
            kv_heads: text.integer("num_key_value_heads", 4, HEADS)?,
            head_dim: text.integer("head_dim", 256, HEADS)?,
            vocabulary: text.integer("vocab_size", 262_208, VOCABULARY)?,
            context: text.integer("max_position_embeddings", 131_072, POSITIONS)?,
            query_pre_attn_scalar: text.number("query_pre_attn_scalar", 256.0, 1e-3..=1e6)?,
            epsilon: text.number("rms_norm_eps", 1e-6, 1e-12..=1e-1)?,
            local_rope,
            global_rope,
            tied_embeddings: flag(root, "tie_word_embeddings")?
                .or(flag(text.map, "tie_word_embeddings")?)
                .unwrap_or(true),
            stop_tokens: match token_list(root, "eos_token_id")? {
                Some(tokens) => tokens,
                None => token_list(text.map, "eos_token_id")?.unwrap_or_else(|| vec![1]),
            },
        };
        config.check("num_attention_heads", "num_key_value_heads", "head_dim")
    }
}

/// The tokens that end an answer according to a `generation_config.json`; none if it does not say.
///
/// # Errors
/// No JSON, or an `eos_token_id` that is neither a token nor a list of them.
pub fn stop_tokens_of_generation_config(json: &str) -> Result<Vec<u32>, ConfigError> {
    let root: Value = serde_json::from_str(json)?;
    let root = root.as_object().ok_or_else(|| ConfigError::field("generation_config.json", "an object", &root))?;
    Ok(token_list(root, "eos_token_id")?.unwrap_or_default())
}

/// Refuses what is not Gemma 3, by name.
fn check_architecture(root: &Map<String, Value>) -> Result<(), ConfigError> {
    let named = root.get("architectures").and_then(Value::as_array).and_then(|list| list.first());
    let (name, known) = match (named, root.get("model_type")) {
        (Some(name), _) => (name, ["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"]),
        (None, Some(name)) => (name, ["gemma3_text", "gemma3"]),
        (None, None) => return Err(ConfigError::Missing { field: "architectures".into() }),
    };
    match name.as_str() {
        Some(name) if known.contains(&name) => Ok(()),
        Some(name) => Err(ConfigError::Architecture { found: name.chars().take(80).collect() }),
        None => Err(ConfigError::field("architectures", "a list of names", name)),
    }
}

/// Refuses variants of the architecture that no published Gemma 3 has.
fn check_fixed(text: &Fields<'_>) -> Result<(), ConfigError> {
    for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
        match text.get(field) {
            None => {}
            Some(value) => return Err(ConfigError::field(field, "null", value)),
        }
    }
    for field in ["attention_bias", "use_bidirectional_attention"] {
        if flag(text.map, field)? == Some(true) {
            return Err(ConfigError::field(field, "false", true));
        }
    }
    for field in ["hidden_activation", "hidden_act"] {
        match text.get(field) {
            None => {}
            Some(value) if value.as_str() == Some("gelu_pytorch_tanh") => {}
            Some(value) => return Err(ConfigError::field(field, "`gelu_pytorch_tanh`", value)),
        }
    }
    Ok(())
}

/// Refuses weights that were quantized otherwise than as exllamav3 does it.
fn check_quantization(fields: &Fields<'_>) -> Result<(), ConfigError> {
    let Some(config) = fields.object("quantization_config")? else { return Ok(()) };
    match config.get("quant_method") {
        Some(method) if method.as_str() == Some("exl3") => Ok(()),
        method => {
            let expected = "`exl3`, or no `quantization_config` (weights in bf16, f16 or f32)";
            Err(ConfigError::field("quant_method", expected, method.unwrap_or(&Value::Null)))
        }
    }
}

/// What each layer attends to: `layer_types`, or every n-th global.
fn layers(text: &Fields<'_>) -> Result<Vec<LayerKind>, ConfigError> {
    let count = text.integer("num_hidden_layers", 26, LAYERS)?;
    let window = text.integer("sliding_window", 4096, POSITIONS)?;
    let Some(types) = text.get("layer_types") else {
        // Some versions of transformers write the field with an underscore.
        let field = if text.get("sliding_window_pattern").is_some() {
            "sliding_window_pattern"
        } else {
            "_sliding_window_pattern"
        };
        let every = text.integer(field, GLOBAL_EVERY, 1..=*LAYERS.end())?;
        return Ok(layer_pattern(count, window, every));
    };
    let types = types.as_array().ok_or_else(|| ConfigError::field("layer_types", "a list", types))?;
    if types.len() != count {
        return Err(ConfigError::field("layer_types", format!("{count} entries"), format!("{} entries", types.len())));
    }
    let kind = |value: &Value| match value.as_str() {
        Some("sliding_attention") => Ok(LayerKind::Local { window }),
        Some("full_attention") => Ok(LayerKind::Global),
        _ => Err(ConfigError::field("layer_types", "`sliding_attention` or `full_attention`", value)),
    };
    types.iter().map(kind).collect()
}

/// Position embeddings of local and of global layers.
fn ropes(text: &Fields<'_>) -> Result<(Rope, Rope), ConfigError> {
    let local_base = text.number("rope_local_base_freq", LOCAL_BASE, 1.0..=1e12)?;
    let global_base = text.number("rope_theta", GLOBAL_BASE, 1.0..=1e12)?;
    let local = Rope { base: local_base, divisor: 1.0 };
    let Some(parameters) = text.object("rope_parameters")? else {
        let scaling = text.object("rope_scaling")?;
        return Ok((local, Rope { base: global_base, divisor: scaling.map_or(Ok(1.0), |scaling| divisor(&scaling))? }));
    };
    let one = |fields: &Fields<'_>, base: f32| -> Result<Rope, ConfigError> {
        Ok(Rope { base: fields.number("rope_theta", f64::from(base), 1.0..=1e12)?, divisor: divisor(fields)? })
    };
    let (full, sliding) = (parameters.object("full_attention")?, parameters.object("sliding_attention")?);
    let global = match &full {
        Some(full) => one(full, global_base)?,
        None if sliding.is_some() => Rope { base: global_base, divisor: 1.0 },
        None => one(&parameters, global_base)?,
    };
    Ok((sliding.map_or(Ok(local), |sliding| one(&sliding, local_base))?, global))
}

/// The factor of linear scaling, 1 for none.
fn divisor(scaling: &Fields<'_>) -> Result<f32, ConfigError> {
    // `type` is the older spelling.
    let kind = scaling.get("rope_type").or(scaling.get("type"));
    match kind.map(|kind| kind.as_str()) {
        None | Some(Some("default")) => Ok(1.0),
        Some(Some("linear")) => match scaling.get("factor") {
            Some(_) => scaling.number("factor", 1.0, 1e-3..=1e6),
            None => Err(ConfigError::Missing { field: "rope_scaling.factor".into() }),
        },
        Some(_) => Err(ConfigError::field("rope_type", "`linear` or `default`", kind.unwrap_or(&Value::Null))),
    }
}

/// A boolean; null is none.
fn flag(map: &Map<String, Value>, field: &str) -> Result<Option<bool>, ConfigError> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(ConfigError::field(field, "true or false", other)),
    }
}

/// A token or a list of them; null is none.
fn token_list(map: &Map<String, Value>, field: &str) -> Result<Option<Vec<u32>>, ConfigError> {
    let token = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ConfigError::field(field, "a token id or a list of them", value))
    };
    match map.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => list.iter().map(token).collect::<Result<_, _>>().map(Some),
        Some(value) => Ok(Some(vec![token(value)?])),
    }
}

/// The fields of an object, null being the same as missing.
struct Fields<'a> {
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    fn object(&self, field: &str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map })),
            Some(other) => Err(ConfigError::field(field, "an object", other)),
        }
    }

    fn integer(&self, field: &str, default: usize, range: RangeInclusive<u64>) -> Result<usize, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        let found = value.as_u64().filter(|found| range.contains(found));
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        found.map(|found| found as usize).ok_or_else(|| ConfigError::field(field, expected(), value))
    }

    fn number(&self, field: &str, default: f64, range: RangeInclusive<f64>) -> Result<f32, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(default as f32) };
        let found = value.as_f64().filter(|found| range.contains(found));
        let expected = || format!("a number from {:e} to {:e}", range.start(), range.end());
        found.map(|found| found as f32).ok_or_else(|| ConfigError::field(field, expected(), value))
    }
}
