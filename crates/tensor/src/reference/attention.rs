use super::linear::dot;

/// What [`attention`] needs to know beside its arrays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads: a divisor of `heads`.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Positions that a token sees, itself included; `None` for all.
    pub window: Option<usize>,
    /// Multiplies the scores before the softmax.
    pub scale: f32,
}

impl AttentionShape {
    /// The first position that a token at `position` sees.
    pub fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The head of keys and values that query head `head` uses.
    pub fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}

/// Causal attention of the tokens of one sequence, of which the first is at `position`.
///
/// `query` and `output` are `[tokens, heads, head_dim]`; `keys` and `values` are `[positions, kv_heads, head_dim]` from
/// position 0 on and hold the tokens' own rows.
///
/// `output[t, h] = Σⱼ pⱼ · values[j]` with `p = softmax(scale · query[t, h] · keys[j])` over the visible `j`.
///
/// Source: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762; heads grouped as in Ainslie et al.,
/// "GQA", 2023, arXiv:2305.13245.
pub fn attention(
    shape: &AttentionShape,
    position: usize,
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    output: &mut [f32],
) {
    let (head_dim, kv_width) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    assert!(query.len() == output.len() && query.len().is_multiple_of(shape.heads * head_dim));
    for (index, (query, output)) in query.chunks_exact(head_dim).zip(output.chunks_exact_mut(head_dim)).enumerate() {
        let (token, head) = (index / shape.heads, index % shape.heads);
        let offset = shape.kv_head(head) * head_dim;
        let last = position + token;
        let visible = shape.first_visible(last)..last + 1;
        let weights = softmax(
            visible.clone().map(|j| f64::from(shape.scale) * dot(query, &keys[j * kv_width + offset..][..head_dim])),
        );
        let mut sums = vec![0f64; head_dim];
        for (j, weight) in visible.zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(&values[j * kv_width + offset..][..head_dim]) {
                *sum += weight * f64::from(value);
            }
        }
        for (output, sum) in output.iter_mut().zip(sums) {
            *output = sum as f32;
        }
    }
}

/// `exp(s) / Σ exp(s)`, with the largest score taken off first so that nothing overflows.
fn softmax(scores: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut weights: Vec<f64> = scores.collect();
    let max = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for weight in &mut weights {
        *weight = (*weight - max).exp();
    }
    let sum: f64 = weights.iter().sum();
    for weight in &mut weights {
        *weight /= sum;
    }
    weights
}
