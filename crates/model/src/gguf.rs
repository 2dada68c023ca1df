//! Gemma 3 in the keys of a GGUF file, as llama.cpp reads and writes them.
//!
//! Some facts have no key, and llama.cpp fixes them by the number of layers: the scores of a model of 62 layers are
//! scaled by `(hidden / heads)^-½`, those of all others by `head_dim^-½`. A model that wants another factor can have it
//! in the weight of its query norm, see [`Config::gguf_query_norm_factor`]. Only global layers scale their positions;
//! the base of local layers is 10⁴ where `rope.freq_base_swa` is missing, and every sixth layer is global where
//! `attention.sliding_window_pattern` is.

use std::fmt;
use std::ops::RangeInclusive;

use crate::config::{
    Config, ConfigError, GLOBAL_BASE, GLOBAL_EVERY, HEADS, LAYERS, LOCAL_BASE, LayerKind, POSITIONS, Rope, VOCABULARY,
    WIDTH, layer_pattern,
};

/// A value of a GGUF file's metadata, as far as a configuration needs it.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// Any unsigned integer; written as `u32`.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float; written as `f32`.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    Text(String),
    /// An array.
    Array(Vec<GgufValue>),
}

impl fmt::Display for GgufValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GgufValue::Unsigned(value) => write!(f, "{value}"),
            GgufValue::Signed(value) => write!(f, "{value}"),
            GgufValue::Float(value) => write!(f, "{value}"),
            GgufValue::Bool(value) => write!(f, "{value}"),
            GgufValue::Text(value) => write!(f, "{value}"),
            GgufValue::Array(values) => write!(f, "array of {}", values.len()),
        }
    }
}

const ARCHITECTURE: &str = "general.architecture";
const BLOCK_COUNT: &str = "gemma3.block_count";
const CONTEXT_LENGTH: &str = "gemma3.context_length";
const EMBEDDING_LENGTH: &str = "gemma3.embedding_length";
const FEED_FORWARD_LENGTH: &str = "gemma3.feed_forward_length";
const HEAD_COUNT: &str = "gemma3.attention.head_count";
const HEAD_COUNT_KV: &str = "gemma3.attention.head_count_kv";
const KEY_LENGTH: &str = "gemma3.attention.key_length";
const VALUE_LENGTH: &str = "gemma3.attention.value_length";
const EPSILON: &str = "gemma3.attention.layer_norm_rms_epsilon";
const WINDOW: &str = "gemma3.attention.sliding_window";
const PATTERN: &str = "gemma3.attention.sliding_window_pattern";
const FREQ_BASE: &str = "gemma3.rope.freq_base";
const FREQ_BASE_LOCAL: &str = "gemma3.rope.freq_base_swa";
const SCALING_TYPE: &str = "gemma3.rope.scaling.type";
const SCALING_FACTOR: &str = "gemma3.rope.scaling.factor";
const SOFTCAP: &str = "gemma3.final_logit_softcapping";
const STOP_TOKENS: [&str; 2] = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];

impl Config {
    /// The model that a GGUF file's metadata describes. `vocabulary` is the number of rows of its embedding and `tied`
    /// whether it has no `output.weight`; the metadata does not say.
    ///
    /// # Errors
    /// Another architecture (named in the message), a missing key, or a value that makes no sense.
    pub fn from_gguf(
        lookup: &dyn Fn(&str) -> Option<GgufValue>,
        vocabulary: usize,
        tied: bool,
    ) -> Result<Config, ConfigError> {
        let keys = Keys { lookup };
        match lookup(ARCHITECTURE) {
            Some(GgufValue::Text(name)) if name == "gemma3" => {}
            Some(other) => {
                return Err(ConfigError::Architecture { found: other.to_string().chars().take(80).collect() });
            }
            None => return Err(ConfigError::Missing { field: ARCHITECTURE.into() }),
        }
        if keys.number(SOFTCAP, Some(0.0), 0.0..=1e9)? != 0.0 {
            return Err(ConfigError::field(SOFTCAP, "0 or nothing", keys.number(SOFTCAP, None, 0.0..=1e9)?));
        }
        if !VOCABULARY.contains(&(vocabulary as u64)) {
            return Err(ConfigError::field("token_embd.weight", "from 2 to 2^24 rows", vocabulary));
        }
        let layers = layers(&keys)?;
        let hidden = keys.integer(EMBEDDING_LENGTH, None, WIDTH)?;
        let heads = keys.integer(HEAD_COUNT, None, HEADS)?;
        let head_dim = keys.integer(KEY_LENGTH, Some(hidden / heads), HEADS)?;
        let value_length = keys.integer(VALUE_LENGTH, Some(head_dim), HEADS)?;
        if value_length != head_dim {
            return Err(ConfigError::field(VALUE_LENGTH, format!("the key length, {head_dim}"), value_length));
        }
        let mut config = Config {
            hidden,
            feed_forward: keys.integer(FEED_FORWARD_LENGTH, None, WIDTH)?,
            heads,
            kv_heads: keys.integer(HEAD_COUNT_KV, Some(heads), HEADS)?,
            head_dim,
            vocabulary,
            context: keys.integer(CONTEXT_LENGTH, Some(131_072), POSITIONS)?,
            query_pre_attn_scalar: 0.0,
            epsilon: keys.number(EPSILON, None, 1e-12..=1e-1)?,
            local_rope: Rope { base: keys.number(FREQ_BASE_LOCAL, Some(LOCAL_BASE), 1.0..=1e12)?, divisor: 1.0 },
            global_rope: Rope {
                base: keys.number(FREQ_BASE, Some(GLOBAL_BASE), 1.0..=1e12)?,
                divisor: divisor(&keys)?,
            },
            tied_embeddings: tied,
            stop_tokens: stop_tokens(&keys)?,
            layers,
        };
        config.query_pre_attn_scalar = config.gguf_query_scalar();
        config.check(HEAD_COUNT, HEAD_COUNT_KV, KEY_LENGTH)
    }

    /// The metadata of this model for a GGUF file that llama.cpp loads, in the order of writing; without the
    /// tokenizer's.
    ///
    /// # Errors
    /// [`ConfigError::NotInGguf`] for local layers with scaled positions or different windows.
    pub fn to_gguf(&self) -> Result<Vec<(&'static str, GgufValue)>, ConfigError> {
        let unsigned = |value: usize| GgufValue::Unsigned(value as u64);
        let float = |value: f32| GgufValue::Float(f64::from(value));
        if self.local_rope.divisor != 1.0 {
            return Err(ConfigError::NotInGguf("that local layers scale their positions".into()));
        }
        let mut keys = vec![
            (ARCHITECTURE, GgufValue::Text("gemma3".into())),
            (CONTEXT_LENGTH, unsigned(self.context)),
            (EMBEDDING_LENGTH, unsigned(self.hidden)),
            (BLOCK_COUNT, unsigned(self.layers.len())),
            (FEED_FORWARD_LENGTH, unsigned(self.feed_forward)),
            (HEAD_COUNT, unsigned(self.heads)),
            (HEAD_COUNT_KV, unsigned(self.kv_heads)),
            (KEY_LENGTH, unsigned(self.head_dim)),
            (VALUE_LENGTH, unsigned(self.head_dim)),
            (EPSILON, float(self.epsilon)),
            (FREQ_BASE, float(self.global_rope.base)),
            (FREQ_BASE_LOCAL, float(self.local_rope.base)),
        ];
        if self.global_rope.divisor != 1.0 {
            keys.push((SCALING_TYPE, GgufValue::Text("linear".into())));
            keys.push((SCALING_FACTOR, float(self.global_rope.divisor)));
        }
        let Some(window) = self.layers.iter().find_map(|kind| kind.window()) else { return Ok(keys) };
        if self.layers.iter().any(|kind| kind.window().is_some_and(|other| other != window)) {
            return Err(ConfigError::NotInGguf("that local layers have different windows".into()));
        }
        keys.push((WINDOW, unsigned(window)));
        if self.layers != layer_pattern(self.layers.len(), window, GLOBAL_EVERY) {
            let local = self.layers.iter().map(|kind| GgufValue::Bool(kind.window().is_some()));
            keys.push((PATTERN, GgufValue::Array(local.collect())));
        }
        Ok(keys)
    }

    /// What the weights of the query norms have to be multiplied with in a GGUF file, so that programs that know
    /// llama.cpp's rule for the scale of the scores compute the same as with [`Config::query_scale`].
    pub fn gguf_query_norm_factor(&self) -> f32 {
        (f64::from(self.gguf_query_scalar()) / f64::from(self.query_pre_attn_scalar)).sqrt() as f32
    }

    /// `query_pre_attn_scalar` by llama.cpp's rule.
    fn gguf_query_scalar(&self) -> f32 {
        if self.layers.len() == 62 { (self.hidden / self.heads) as f32 } else { self.head_dim as f32 }
    }
}

/// What each layer attends to.
fn layers(keys: &Keys<'_>) -> Result<Vec<LayerKind>, ConfigError> {
    let count = keys.integer(BLOCK_COUNT, None, LAYERS)?;
    let window = keys.integer(WINDOW, Some(0), 0..=*POSITIONS.end())?;
    if window == 0 {
        return Ok(vec![LayerKind::Global; count]);
    }
    let Some(GgufValue::Array(local)) = (keys.lookup)(PATTERN) else {
        let every = keys.integer(PATTERN, Some(GLOBAL_EVERY), 0..=*LAYERS.end())?;
        return Ok(layer_pattern(count, window, every));
    };
    if local.len() != count {
        return Err(ConfigError::field(PATTERN, format!("{count} entries"), format!("{} entries", local.len())));
    }
    let kind = |local: &GgufValue| match local {
        GgufValue::Bool(true) | GgufValue::Unsigned(1) | GgufValue::Signed(1) => Ok(LayerKind::Local { window }),
        GgufValue::Bool(false) | GgufValue::Unsigned(0) | GgufValue::Signed(0) => Ok(LayerKind::Global),
        other => Err(ConfigError::field(PATTERN, "true or false for each layer", other)),
    };
    local.iter().map(kind).collect()
}

/// The factor of linear scaling of global layers, 1 for none.
fn divisor(keys: &Keys<'_>) -> Result<f32, ConfigError> {
    match (keys.lookup)(SCALING_TYPE) {
        None => {}
        Some(GgufValue::Text(kind)) if kind == "linear" => {}
        Some(GgufValue::Text(kind)) if kind == "none" => return Ok(1.0),
        Some(other) => return Err(ConfigError::field(SCALING_TYPE, "`linear` or `none`", other)),
    }
    let factor = keys.number(SCALING_FACTOR, Some(1.0), 0.0..=1e6)?;
    Ok(if factor == 0.0 { 1.0 } else { factor })
}

/// The tokens that end an answer, in order and without repetition.
fn stop_tokens(keys: &Keys<'_>) -> Result<Vec<u32>, ConfigError> {
    let mut tokens = Vec::new();
    for key in STOP_TOKENS {
        if (keys.lookup)(key).is_some() {
            let token = keys.integer(key, None, 0..=u64::from(u32::MAX))? as u32;
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
    }
    Ok(tokens)
}

/// The metadata, read key by key.
struct Keys<'a> {
    lookup: &'a dyn Fn(&str) -> Option<GgufValue>,
}

impl Keys<'_> {
    /// A number, or an array of equal ones (some writers store one per layer).
    fn scalar(&self, key: &str) -> Result<Option<GgufValue>, ConfigError> {
        match (self.lookup)(key) {
            Some(GgufValue::Array(values)) => match values.split_first() {
                Some((first, rest)) if rest.iter().all(|value| value == first) => Ok(Some(first.clone())),
                _ => Err(ConfigError::field(key, "the same value for all layers", "an array of others")),
            },
            value => Ok(value),
        }
    }

    fn integer(&self, key: &str, default: Option<usize>, range: RangeInclusive<u64>) -> Result<usize, ConfigError> {
        let Some(value) = self.scalar(key)? else {
            return default.ok_or_else(|| ConfigError::Missing { field: key.into() });
        };
        let found = match value {
            GgufValue::Unsigned(found) => Some(found),
            GgufValue::Signed(found) => u64::try_from(found).ok(),
            _ => None,
        };
        match found.filter(|found| range.contains(found)) {
            Some(found) => Ok(found as usize),
            None => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                Err(ConfigError::field(key, expected, value))
            }
        }
    }

    fn number(&self, key: &str, default: Option<f64>, range: RangeInclusive<f64>) -> Result<f32, ConfigError> {
        let Some(value) = self.scalar(key)? else {
            return default.map(|default| default as f32).ok_or_else(|| ConfigError::Missing { field: key.into() });
        };
        let found = match value {
            GgufValue::Float(found) => Some(found),
            GgufValue::Unsigned(found) => Some(found as f64),
            GgufValue::Signed(found) => Some(found as f64),
            _ => None,
        };
        match found.filter(|found| range.contains(found)) {
            Some(found) => Ok(found as f32),
            None => {
                let expected = format!("a number from {:e} to {:e}", range.start(), range.end());
                Err(ConfigError::field(key, expected, value))
            }
        }
    }
}
