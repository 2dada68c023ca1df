//! [`tensor::Op::Attention`].
//!
//! [`decode`] is for single tokens of sequences: bound by memory, the positions split among many workgroups.
//! [`prefill`] is for tiles of consecutive tokens: bound by arithmetic, in f32, and for every size;
//! [`prefill_matrix`] is the same with matrix instructions. All read what [`super::cache_write`] or
//! [`super::head_prepare`] wrote.

mod decode;
pub(crate) mod measure;
mod prefill;
#[cfg(test)]
pub(crate) mod testing;

use tensor::DType;
use tensor::format::trellis::hadamard::BLOCK;

use super::cache_write::CacheShape;

pub use measure::measure;

pub(crate) use decode::{Also, Decode, Scratch, announce, can_announce, decode};
pub(crate) use prefill::{prefill, prefill_matrix, tiles};

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

    /// Whether the sums and queries of decoding take nearly all registers that AMD's compiler has
    /// (`docs/vulkan-gfx1103.md`).
    pub(crate) fn fills_registers(&self) -> bool {
        self.cache_dtype == DType::Q8_0 && self.group() * self.head_dim >= 1024
    }

    /// Whether the queries of a head of keys are whole blocks of a rotation.
    pub(crate) fn can_rotate(&self) -> bool {
        (self.group() * self.head_dim).is_multiple_of(BLOCK)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;
    use crate::dispatch::Dispatch;
    use crate::features::Features;
    use crate::kernel::View;
    use crate::kernel::cache_write::cache_write;
    use crate::kernel::head_prepare::{HeadPrepare, head_prepare};
    use crate::kernel::rope::{RopeAddresses, rope};
    use crate::pipeline::Pipelines;

    /// Pipelines are made but not run, so that this says something about a driver without its device too.
    #[test]
    fn pipelines_of_the_shapes_of_models_can_be_made() {
        let context = match Context::open(None) {
            Ok(context) => context,
            Err(error) => {
                #[expect(clippy::print_stderr, reason = "a test that can't run says so")]
                {
                    eprintln!("skipped: {error}");
                }
                return;
            }
        };
        let pipelines = Pipelines::new(&context).unwrap();
        let features = context.features();
        for (heads, kv_heads, head_dim) in [(4, 1, 256), (8, 4, 256), (32, 16, 128), (8, 2, 64)] {
            for cache_dtype in [DType::F32, DType::F16, DType::Q8_0] {
                let (window, scale, ring) = (Some(1024), 0.1, 2048);
                let shape = AttentionShape { heads, kv_heads, head_dim, window, scale, cache_dtype, ring };
                for dispatch in every_kernel(features, &shape) {
                    pipelines.get(&dispatch.kernel).unwrap_or_else(|error| panic!("{}: {error}", dispatch.label));
                }
            }
        }
        // A driver without its device can't wait for it, as dropping does.
        std::mem::forget((pipelines, context));
    }

    /// The kernels between the projections, with addresses of nothing.
    fn every_kernel(features: &Features, shape: &AttentionShape) -> Vec<Dispatch> {
        let [query, key] =
            [shape.heads, shape.kv_heads].map(|heads| View { address: 0, width: heads * shape.head_dim });
        let tables = RopeAddresses::new(0, shape.head_dim);
        let arguments = HeadPrepare {
            query,
            key,
            value: key,
            query_weight: 0,
            key_weight: 0,
            epsilon: 1e-6,
            head_dim: shape.head_dim,
            tables,
            tokens: 0,
            cache: shape.cache(),
            keys: 0,
            values: 0,
        };
        let addresses = Addresses { query: 0, keys: 0, values: 0, output: 0 };
        let plan = Decode::new(features, shape, 1, 8192).expect("a fast path");
        let quantized = Also::Quantized(crate::kernel::Quantized::default());
        let scratch = Scratch { counters: 0, partial: 0 };
        let mut dispatches = vec![
            rope(features, query, shape.head_dim, tables, 0, 1),
            cache_write(features, shape.cache(), key, 0, 0, 1),
            head_prepare(features, &arguments, 1),
            prefill(features, shape, &addresses, 0, 1, 1),
            decode(features, (&plan, shape), &addresses, (0, 1), scratch, quantized, None),
            decode(features, (&plan, shape), &addresses, (0, 1), scratch, quantized, Some(&arguments)),
        ];
        dispatches.extend(prefill_matrix(features, shape, &addresses, 0, 1, 1));
        dispatches
    }
}
