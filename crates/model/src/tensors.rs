//! The table of the model's tensors: name, shape, role, and which of them share an input.

use crate::Config;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `[vocabulary, hidden]`.
    Embedding,
    /// `[hidden]`, before attention.
    AttentionNorm,
    /// `[heads · head_dim, hidden]`.
    Query,
    /// `[kv_heads · head_dim, hidden]`.
    Key,
    /// `[kv_heads · head_dim, hidden]`.
    Value,
    /// `[head_dim]`, of each query head.
    QueryNorm,
    /// `[head_dim]`, of each key head.
    KeyNorm,
    /// `[hidden, heads · head_dim]`.
    AttentionOutput,
    /// `[hidden]`, after attention.
    PostAttentionNorm,
    /// `[hidden]`, before the feed-forward layer.
    FeedForwardNorm,
    /// `[feed_forward, hidden]`.
    Gate,
    /// `[feed_forward, hidden]`.
    Up,
    /// `[hidden, feed_forward]`.
    Down,
    /// `[hidden]`, after the feed-forward layer.
    PostFeedForwardNorm,
    /// `[hidden]`, after the last layer.
    FinalNorm,
    /// `[vocabulary, hidden]`, only where it is not the embedding.
    Head,
}

/// Matrices that multiply the same activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SharedInput {
    /// Query, key and value.
    Attention,
    /// Gate and up.
    FeedForward,
}

/// One tensor of one model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorEntry {
    /// What it is for.
    pub role: Role,
    /// Its layer; `None` for the embedding, the final norm and the head.
    pub layer: Option<usize>,
    /// Its name in a GGUF file, which is also its name in a [`tensor::Program`].
    pub name: String,
    /// Rows; 1 for a norm.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
}

/// Per layer: role, name in a Hugging Face file, name in a GGUF file.
const LAYER: [(Role, &str, &str); 13] = [
    (Role::AttentionNorm, "input_layernorm", "attn_norm"),
    (Role::Query, "self_attn.q_proj", "attn_q"),
    (Role::Key, "self_attn.k_proj", "attn_k"),
    (Role::Value, "self_attn.v_proj", "attn_v"),
    (Role::QueryNorm, "self_attn.q_norm", "attn_q_norm"),
    (Role::KeyNorm, "self_attn.k_norm", "attn_k_norm"),
    (Role::AttentionOutput, "self_attn.o_proj", "attn_output"),
    (Role::PostAttentionNorm, "post_attention_layernorm", "post_attention_norm"),
    (Role::FeedForwardNorm, "pre_feedforward_layernorm", "ffn_norm"),
    (Role::Gate, "mlp.gate_proj", "ffn_gate"),
    (Role::Up, "mlp.up_proj", "ffn_up"),
    (Role::Down, "mlp.down_proj", "ffn_down"),
    (Role::PostFeedForwardNorm, "post_feedforward_layernorm", "post_ffw_norm"),
];

/// Of the whole model.
const GLOBAL: [(Role, &str, &str); 3] = [
    (Role::Embedding, "embed_tokens", "token_embd"),
    (Role::FinalNorm, "norm", "output_norm"),
    (Role::Head, "lm_head", "output"),
];

/// What Hugging Face files put before the names: text models, and two generations of models with a vision encoder.
const PREFIXES: [&str; 3] = ["model.", "language_model.model.", "model.language_model."];
/// The same for the head, which lies outside the text model.
const HEAD_PREFIXES: [&str; 3] = ["", "language_model.", "model.language_model."];

/// Beginnings of the names of tensors that a Gemma 3 checkpoint may have and that text does not need: the vision
/// encoder and its projector, in Hugging Face files and in GGUF files.
const VISION: [&str; 6] =
    ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.", "v.", "mm."];
/// Names of constants that some writers store and that follow from the configuration.
const DERIVED: [&str; 2] = ["rotary_emb.inv_freq", "rope_freqs.weight"];

impl Role {
    /// Whether the tensor is a norm's weight: f32 in a program, with the 1 added that Hugging Face files leave out.
    pub fn is_norm(self) -> bool {
        use Role::*;
        match self {
            AttentionNorm | QueryNorm | KeyNorm | PostAttentionNorm | FeedForwardNorm | PostFeedForwardNorm
            | FinalNorm => true,
            Embedding | Query | Key | Value | AttentionOutput | Gate | Up | Down | Head => false,
        }
    }

    /// The group of matrices that multiply the same activations.
    pub fn shared_input(self) -> Option<SharedInput> {
        match self {
            Role::Query | Role::Key | Role::Value => Some(SharedInput::Attention),
            Role::Gate | Role::Up => Some(SharedInput::FeedForward),
            _ => None,
        }
    }

    /// `[rows, columns]` of a matrix, `[1, n]` of a norm.
    fn shape(self, config: &Config) -> (usize, usize) {
        use Role::*;
        match self {
            Embedding | Head => (config.vocabulary, config.hidden),
            AttentionNorm | PostAttentionNorm | FeedForwardNorm | PostFeedForwardNorm | FinalNorm => (1, config.hidden),
            Query => (config.query_width(), config.hidden),
            Key | Value => (config.kv_width(), config.hidden),
            QueryNorm | KeyNorm => (1, config.head_dim),
            AttentionOutput => (config.hidden, config.query_width()),
            Gate | Up => (config.feed_forward, config.hidden),
            Down => (config.hidden, config.feed_forward),
        }
    }

    /// The middle part of the names: in Hugging Face files and in GGUF files.
    fn stems(self) -> (&'static str, &'static str) {
        let row = LAYER.iter().chain(&GLOBAL).find(|(role, ..)| *role == self).expect("every role is in a table");
        (row.1, row.2)
    }
}

impl TensorEntry {
    /// The tensor of a role in a layer (`None` for the roles outside layers).
    pub fn new(config: &Config, role: Role, layer: Option<usize>) -> TensorEntry {
        let (rows, columns) = role.shape(config);
        let stem = role.stems().1;
        let name = match layer {
            Some(layer) => format!("blk.{layer}.{stem}.weight"),
            None => format!("{stem}.weight"),
        };
        TensorEntry { role, layer, name, rows, columns }
    }

    /// The names that the tensor may have in a Hugging Face file, the usual one first.
    pub fn hugging_face_names(&self) -> [String; 3] {
        let stem = self.role.stems().0;
        let stem = match self.layer {
            Some(layer) => format!("layers.{layer}.{stem}.weight"),
            None => format!("{stem}.weight"),
        };
        let prefixes = if self.role == Role::Head { HEAD_PREFIXES } else { PREFIXES };
        prefixes.map(|prefix| format!("{prefix}{stem}"))
    }

    /// The shape in a file, outermost dimension first: `[rows, columns]`, or `[n]` for a norm.
    pub fn shape(&self) -> Vec<usize> {
        if self.role.is_norm() { vec![self.columns] } else { vec![self.rows, self.columns] }
    }
}

/// All tensors of a model, in the order in which a program needs them; the head only where it is not the embedding.
pub fn tensors(config: &Config) -> Vec<TensorEntry> {
    let mut entries = vec![TensorEntry::new(config, Role::Embedding, None)];
    for layer in 0..config.layers.len() {
        entries.extend(LAYER.iter().map(|(role, ..)| TensorEntry::new(config, *role, Some(layer))));
    }
    entries.push(TensorEntry::new(config, Role::FinalNorm, None));
    if !config.tied_embeddings {
        entries.push(TensorEntry::new(config, Role::Head, None));
    }
    entries
}

/// Whether a tensor belongs to the vision encoder or its projector.
pub fn is_vision(name: &str) -> bool {
    VISION.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a tensor may be left out of account: it follows from the configuration, or it is a head that the
/// configuration ties to the embedding.
pub fn is_redundant(config: &Config, name: &str) -> bool {
    let head = TensorEntry::new(config, Role::Head, None);
    DERIVED.iter().any(|end| name.ends_with(end))
        || config.tied_embeddings && (name == head.name || head.hugging_face_names().iter().any(|other| other == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_shapes_of_the_27b() {
        let config = Config::shape("27b").unwrap();
        let entries = tensors(&config);
        assert_eq!(entries.len(), 2 + 62 * 13);
        let query = entries.iter().find(|entry| entry.name == "blk.61.attn_q.weight").unwrap();
        assert_eq!(query.shape(), [4096, 5376]);
        assert_eq!(
            query.hugging_face_names(),
            [
                "model.layers.61.self_attn.q_proj.weight",
                "language_model.model.layers.61.self_attn.q_proj.weight",
                "model.language_model.layers.61.self_attn.q_proj.weight",
            ]
        );
        let norm = entries.iter().find(|entry| entry.name == "blk.0.attn_q_norm.weight").unwrap();
        assert_eq!((norm.shape(), norm.rows), (vec![128], 1));
    }

    #[test]
    fn a_head_of_its_own_is_one_more_tensor() {
        let mut config = Config::shape("270m").unwrap();
        let tied = tensors(&config).len();
        assert!(is_redundant(&config, "lm_head.weight") && is_redundant(&config, "output.weight"));
        config.tied_embeddings = false;
        let entries = tensors(&config);
        assert_eq!(entries.len(), tied + 1);
        assert_eq!(entries[tied].hugging_face_names()[0], "lm_head.weight");
        assert!(!is_redundant(&config, "lm_head.weight"));
    }

    #[test]
    fn vision_tensors_are_told_from_others() {
        assert!(is_vision("vision_tower.vision_model.embeddings.patch_embedding.weight"));
        assert!(is_vision("model.multi_modal_projector.mm_soft_emb_norm.weight"));
        assert!(is_vision("mm.input_projection.weight"));
        assert!(!is_vision("model.layers.0.mlp.up_proj.weight") && !is_vision("vocab.weight"));
    }
}
