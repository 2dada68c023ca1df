//! The closed set of operations that a program is made of.

use std::hash::{Hash, Hasher};

use crate::BufferId;

/// A finite `f32` constant that can be compared and hashed (by its bits), so that programs can.
#[derive(Clone, Copy, Debug)]
pub struct Scalar(pub f32);

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Scalar {}

impl Hash for Scalar {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// One step of a program.
///
/// Activations are row-major `f32`, one row per token of the batch (or per output row, see
/// [`crate::Rows`]). Weights are `[rows, columns]` as checkpoints store them: a linear layer's `[out, in]`.
/// Each op has a plain function of the same name in [`crate::reference`] that says exactly what it computes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// `output[t] = table[token[t]] · scale`: `[tokens, hidden]`.
    Embed {
        /// Weight `[vocabulary, hidden]`.
        table: BufferId,
        /// Multiplies every element (√hidden for Gemma).
        scale: Scalar,
        /// Scratch `[tokens, hidden]`.
        output: BufferId,
    },
    /// Root-mean-square normalization of each group of `weight.len()` columns:
    /// `x / √(mean(x²) + epsilon) · weight`. With a weight of `head_dim` it normalizes each head on its own.
    RmsNorm {
        /// Scratch `[rows, n · groups]`.
        input: BufferId,
        /// Weight `[1, n]` in f32, `1 + w` already added.
        weight: BufferId,
        /// Added to the mean square.
        epsilon: Scalar,
        /// Scratch of the input's shape; may be the input.
        output: BufferId,
    },
    /// `output = input · weightᵀ`: `[rows, in] × [out, in] → [rows, out]`.
    Linear {
        /// Weight `[out, in]` of any format.
        weight: BufferId,
        /// Scratch `[rows, in]`.
        input: BufferId,
        /// Scratch `[rows, out]`; not the input.
        output: BufferId,
    },
    /// Rotary position embedding in place, the two halves of a head being the pairs ("NeoX" order): element `i`
    /// turns with `i + head_dim/2` by `position / position_divisor · base^(-2i/head_dim)`.
    Rope {
        /// Scratch `[tokens, heads · head_dim]`.
        values: BufferId,
        /// Size of one head.
        head_dim: usize,
        /// θ.
        base: Scalar,
        /// The linear scaling factor; 1 for none.
        position_divisor: Scalar,
    },
    /// Appends each token's row to the cache at the token's position.
    CacheWrite {
        /// Scratch `[tokens, kv_heads · head_dim]`.
        input: BufferId,
        /// Cache of that width.
        cache: BufferId,
    },
    /// Causal attention over the cached keys and values, heads grouped: query head `h` uses KV head
    /// `h / (heads / kv_heads)`. A token at position `p` sees positions `p - window + 1 ..= p` (all `..= p` without
    /// a window). The batch's own keys and values have been written before.
    Attention {
        /// Scratch `[tokens, heads · head_dim]`.
        query: BufferId,
        /// Cache `[positions, kv_heads · head_dim]`.
        keys: BufferId,
        /// Cache `[positions, kv_heads · head_dim]`.
        values: BufferId,
        /// Size of one head.
        head_dim: usize,
        /// Positions that a token sees, itself included.
        window: Option<usize>,
        /// Multiplies the scores before the softmax.
        scale: Scalar,
        /// Scratch `[tokens, heads · head_dim]`.
        output: BufferId,
    },
    /// `output = gelu_tanh(gate) · up`, element by element.
    GeluMul {
        /// Scratch `[rows, n]`.
        gate: BufferId,
        /// Scratch `[rows, n]`.
        up: BufferId,
        /// Scratch `[rows, n]`; may be `gate` or `up`.
        output: BufferId,
    },
    /// `output += input`.
    Add {
        /// Scratch `[rows, n]`.
        input: BufferId,
        /// Scratch `[rows, n]`.
        output: BufferId,
    },
    /// Copies the rows that the batch asks outputs for: `[tokens, n] → [outputs, n]`.
    SelectOutputs {
        /// Scratch `[tokens, n]`.
        input: BufferId,
        /// Scratch `[outputs, n]`.
        output: BufferId,
    },
}

impl Op {
    /// The op's name in lower case with underscores: also the name of its file in every backend.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Linear { .. } => "linear",
            Op::Rope { .. } => "rope",
            Op::CacheWrite { .. } => "cache_write",
            Op::Attention { .. } => "attention",
            Op::GeluMul { .. } => "gelu_mul",
            Op::Add { .. } => "add",
            Op::SelectOutputs { .. } => "select_outputs",
        }
    }

    /// The buffers that the op reads, in the order of its fields. An in-place buffer is both read and written.
    pub fn reads(&self) -> Vec<BufferId> {
        match *self {
            Op::Embed { table, .. } => vec![table],
            Op::RmsNorm { input, weight, .. } => vec![input, weight],
            Op::Linear { weight, input, .. } => vec![weight, input],
            Op::Rope { values, .. } => vec![values],
            Op::CacheWrite { input, .. } | Op::SelectOutputs { input, .. } => vec![input],
            Op::Attention { query, keys, values, .. } => vec![query, keys, values],
            Op::GeluMul { gate, up, .. } => vec![gate, up],
            Op::Add { input, output } => vec![input, output],
        }
    }

    /// The buffer that the op writes.
    pub fn writes(&self) -> BufferId {
        match *self {
            Op::Embed { output, .. }
            | Op::RmsNorm { output, .. }
            | Op::Linear { output, .. }
            | Op::Attention { output, .. }
            | Op::GeluMul { output, .. }
            | Op::Add { output, .. }
            | Op::SelectOutputs { output, .. } => output,
            Op::Rope { values, .. } => values,
            Op::CacheWrite { cache, .. } => cache,
        }
    }
}
