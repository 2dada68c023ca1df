//! [`tensor::Op::Attention`].
//!
//! [`decode`] is for single tokens of sequences: bound by memory, the positions split among many workgroups.
//! [`prefill`] is for tiles of consecutive tokens: bound by arithmetic, in f32, and for every size;
//! [`prefill_matrix`] is the same with matrix instructions. All read what [`super::cache_write`] or
//! [`super::head_prepare`] wrote.

mod decode;
mod prefill;
#[cfg(test)]
pub(super) mod testing;

use tensor::DType;

use super::cache_write::CacheShape;

pub(crate) use decode::{Decode, Scratch, decode};
pub(crate) use prefill::{TILE, Tile, prefill, tiles};

/// What all kernels of attention need to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AttentionShape {
    /// Query heads.
    pub(crate) heads: usize,
    /// Heads of keys and values: a divisor of `heads`.
    pub(crate) kv_heads: usize,
    /// Elements of one head.
    pub(crate) head_dim: usize,
    /// Positions that a token sees, itself included; `None` for all.
    pub(crate) window: Option<usize>,
    /// Multiplies the scores before the softmax.
    pub(crate) scale: f32,
    /// Format of the caches.
    pub(crate) cache_dtype: DType,
    /// Positions of a sequence that the caches keep: at least those that the tokens of one sequence in one pass see.
    pub(crate) ring: usize,
}

/// Where queries, caches and results are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// f32 `[tokens, heads · head_dim]`, rows padded as a [`super::View`]'s.
    pub(crate) query: u64,
    /// Laid out as [`AttentionShape::cache`] says.
    pub(crate) keys: u64,
    /// As the keys.
    pub(crate) values: u64,
    /// As the queries; not the queries.
    pub(crate) output: u64,
}

impl AttentionShape {
    /// The layout of the keys and of the values.
    pub(crate) fn cache(&self) -> CacheShape {
        CacheShape { dtype: self.cache_dtype, width: self.kv_heads * self.head_dim, ring: self.ring }
    }

    /// Query heads that share a head of keys and values.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Elements from one row of queries to the next.
    fn pitch(&self) -> usize {
        super::pitch(self.heads * self.head_dim)
    }

    /// What scores are multiplied by where they are exponents of 2.
    fn scale_log2(&self) -> f32 {
        (f64::from(self.scale) * std::f64::consts::LOG2_E) as f32
    }

    /// The window as shaders have it: all positions are a window too.
    fn window_or_all(&self) -> usize {
        self.window.unwrap_or(u32::MAX as usize)
    }

    /// The constants of `attention.glsl`.
    fn constants(&self) -> Vec<u32> {
        assert!(self.heads.is_multiple_of(self.kv_heads), "{} heads, {} of keys", self.heads, self.kv_heads);
        let mut constants = self.cache().constants();
        constants.extend([self.head_dim as u32, self.group() as u32]);
        constants
    }

    /// For people.
    fn label(&self, kernel: &str, tokens: usize) -> String {
        let window = self.window.map_or(String::new(), |window| format!(", window {window}"));
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, self.head_dim);
        format!("attention_{kernel} {tokens}×{heads}/{kv_heads}×{head_dim}{window} {}", self.cache_dtype)
    }
}
