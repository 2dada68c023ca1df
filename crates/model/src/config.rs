//! What distinguishes one Gemma 3 model from another.

use std::ops::RangeInclusive;

use thiserror::Error;

/// Everything that is not a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What each layer attends to, from the first layer on.
    pub layers: Vec<LayerKind>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layers.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of one head, even.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Scores are multiplied by its inverse square root.
    pub query_pre_attn_scalar: f32,
    /// ε of all norms.
    pub epsilon: f32,
    /// Position embedding of local layers.
    pub local_rope: Rope,
    /// Position embedding of global layers.
    pub global_rope: Rope,
    /// Whether the head is the embedding.
    pub tied_embeddings: bool,
    /// Tokens that end an answer, as far as the metadata says; may be empty.
    pub stop_tokens: Vec<u32>,
}

/// What a layer attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// The last `window` positions, the token's own included.
    Local {
        /// Number of positions.
        window: usize,
    },
    /// All positions.
    Global,
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// θ.
    pub base: f32,
    /// Positions are divided by it (the factor of linear scaling); 1 for none.
    pub divisor: f32,
}

/// A configuration can't be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("the configuration is no valid JSON")]
    Json(#[from] serde_json::Error),
    /// Some other model.
    #[error(
        "architecture `{found}` is not supported, expected Gemma 3\n\nhint: models whose config names \
         `Gemma3ForCausalLM` or `Gemma3ForConditionalGeneration`, or GGUF files of architecture `gemma3`, work"
    )]
    Architecture {
        /// What the metadata names.
        found: String,
    },
    /// A field is not there and has no default.
    #[error("`{field}` is missing from the configuration")]
    Missing {
        /// Its name, as the metadata spells it.
        field: String,
    },
    /// A field's value makes no sense, or asks for something that Gemma 3 does not have.
    #[error("`{field}`: expected {expected}, found `{found}`")]
    Field {
        /// Its name, as the metadata spells it.
        field: String,
        /// What would be understood.
        expected: String,
        /// The value, shortened.
        found: String,
    },
    /// No such size.
    #[error("no shape is called `{0}`\n\nhint: the shapes are 270m, 1b, 4b, 12b and 27b")]
    UnknownShape(String),
    /// A GGUF file has no key for it.
    #[error("a GGUF file can't say {0}")]
    NotInGguf(String),
}

impl ConfigError {
    /// An error about a field, the value cut to a readable length.
    pub(crate) fn field(field: &str, expected: impl Into<String>, found: impl ToString) -> ConfigError {
        let found: String = found.to_string().chars().take(80).collect();
        ConfigError::Field { field: field.into(), expected: expected.into(), found }
    }
}

/// Every how many layers one is global.
pub(crate) const GLOBAL_EVERY: usize = 6;
/// θ of local layers.
pub(crate) const LOCAL_BASE: f64 = 1e4;
/// θ of global layers.
pub(crate) const GLOBAL_BASE: f64 = 1e6;

/// Far beyond any model, and small enough that no product of two overflows. Values outside are typing errors or
/// attacks.
pub(crate) const LAYERS: RangeInclusive<u64> = 1..=1024;
pub(crate) const WIDTH: RangeInclusive<u64> = 1..=1 << 20;
pub(crate) const HEADS: RangeInclusive<u64> = 1..=4096;
pub(crate) const VOCABULARY: RangeInclusive<u64> = 2..=1 << 24;
pub(crate) const POSITIONS: RangeInclusive<u64> = 1..=1 << 30;

impl Config {
    /// The published size of that name: `270m`, `1b`, `4b`, `12b` or `27b`, in any case.
    ///
    /// # Errors
    /// [`ConfigError::UnknownShape`] for another name.
    pub fn shape(name: &str) -> Result<Config, ConfigError> {
        // layers, hidden, feed-forward, heads, KV heads, head size, window, query scalar
        let (sizes, window, scalar) = match name.to_ascii_lowercase().as_str() {
            "270m" => ([18, 640, 2048, 4, 1, 256], 512, 256.0),
            "1b" => ([26, 1152, 6912, 4, 1, 256], 512, 256.0),
            "4b" => ([34, 2560, 10240, 8, 4, 256], 1024, 256.0),
            "12b" => ([48, 3840, 15360, 16, 8, 256], 1024, 256.0),
            "27b" => ([62, 5376, 21504, 32, 16, 128], 1024, 168.0),
            _ => return Err(ConfigError::UnknownShape(name.into())),
        };
        let [layers, hidden, feed_forward, heads, kv_heads, head_dim] = sizes;
        // The sizes with a vision encoder have 64 rows more, a longer context and scaled positions.
        let large = layers >= 34;
        Ok(Config {
            layers: layer_pattern(layers, window, GLOBAL_EVERY),
            hidden,
            feed_forward,
            heads,
            kv_heads,
            head_dim,
            vocabulary: if large { 262_208 } else { 262_144 },
            context: if large { 131_072 } else { 32_768 },
            query_pre_attn_scalar: scalar,
            epsilon: 1e-6,
            local_rope: Rope { base: LOCAL_BASE as f32, divisor: 1.0 },
            global_rope: Rope { base: GLOBAL_BASE as f32, divisor: if large { 8.0 } else { 1.0 } },
            tied_embeddings: true,
            stop_tokens: vec![1, 106],
        })
    }

    /// Factor of the attention scores: `query_pre_attn_scalar^-½`.
    pub fn query_scale(&self) -> f32 {
        (1.0 / f64::from(self.query_pre_attn_scalar).sqrt()) as f32
    }

    /// Factor of the embeddings: `√hidden`.
    pub fn embedding_scale(&self) -> f32 {
        (self.hidden as f64).sqrt() as f32
    }

    /// Columns of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of all key heads together, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Position embedding of a layer of that kind.
    pub fn rope(&self, kind: LayerKind) -> Rope {
        match kind {
            LayerKind::Local { .. } => self.local_rope,
            LayerKind::Global => self.global_rope,
        }
    }

    /// Number of weights, norms included.
    pub fn parameters(&self) -> u64 {
        crate::tensors::tensors(self).iter().map(|entry| (entry.rows * entry.columns) as u64).sum()
    }

    /// The rules that tie fields to each other, under the names that the metadata has for heads, KV heads and the
    /// head's size.
    pub(crate) fn check(self, heads: &str, kv_heads: &str, head_dim: &str) -> Result<Config, ConfigError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError::field(
                heads,
                format!("a multiple of `{kv_heads}`, which is {}", self.kv_heads),
                self.heads,
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::field(head_dim, "an even number", self.head_dim));
        }
        Ok(self)
    }
}

impl LayerKind {
    /// Positions that a token sees, itself included; `None` for all.
    pub fn window(self) -> Option<usize> {
        match self {
            LayerKind::Local { window } => Some(window),
            LayerKind::Global => None,
        }
    }
}

/// `count` layers of which every `every`-th is global; none is for 0.
pub(crate) fn layer_pattern(count: usize, window: usize, every: usize) -> Vec<LayerKind> {
    let global = |layer: usize| every > 0 && (layer + 1).is_multiple_of(every);
    (0..count).map(|layer| if global(layer) { LayerKind::Global } else { LayerKind::Local { window } }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes in the technical report, table 1, without the vision encoder.
    #[test]
    fn shapes_have_the_published_numbers_of_parameters() {
        for (name, embedding, rest) in
            [("1b", 302e6, 698e6), ("4b", 675e6, 3209e6), ("12b", 1012e6, 10759e6), ("27b", 1416e6, 25600e6)]
        {
            let config = Config::shape(name).unwrap();
            let own = (config.vocabulary * config.hidden) as f64;
            let others = config.parameters() as f64 - own;
            assert!((own / embedding - 1.0).abs() < 0.01, "{name}: {own}");
            assert!((others / rest - 1.0).abs() < 0.01, "{name}: {others}");
        }
        assert!((Config::shape("270M").unwrap().parameters() as f64 / 268e6 - 1.0).abs() < 0.01);
        assert!(Config::shape("7b").unwrap_err().to_string().contains("`7b`"));
    }

    #[test]
    fn every_sixth_layer_is_global() {
        let config = Config::shape("1b").unwrap();
        let global: Vec<_> = (0..26).filter(|&layer| config.layers[layer] == LayerKind::Global).collect();
        assert_eq!(global, [5, 11, 17, 23]);
        assert_eq!(config.layers[0], LayerKind::Local { window: 512 });
    }
}
