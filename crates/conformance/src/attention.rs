//! [`tensor::Op::Attention`] over caches of every format.

use tensor::reference::AttentionShape;
use tensor::{DType, Op, Rows, Scalar};

use crate::bound::{UNIT, sum_of_roundings, sum_roundings};
use crate::cache_write;
use crate::linear::integer_rounding;
use crate::setup::{CACHE_MODES, Outputs, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[Case { name: "attention", work: Work::Compare(run) }];

/// Unit roundoffs of one exponential, beside that of its argument.
const EXP_ROUNDINGS: f64 = 8.0;

/// How a cache is kept and read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheMode {
    /// Its format.
    pub(crate) dtype: DType,
    /// Whether queries may be rounded to 8 bits for integer products with it.
    pub(crate) integer_scores: bool,
}

/// One head of one token, and what is known of its input's errors.
struct Head<'a> {
    query: &'a [f32],
    error: &'a [f64],
    /// Rounding of the query for integer products; zeros if there is none.
    rounding: &'a [f64],
}

/// One head of one cached position.
#[derive(Clone, Copy)]
struct Cached<'a> {
    value: &'a [f32],
    error: &'a [f64],
    /// Rounding to the cache's format.
    rounding: &'a [f64],
}

/// A score and its possible errors.
struct Score {
    value: f64,
    /// From what came in and from arithmetic: may conspire with those of other positions.
    common: f64,
    /// From rounding this position's key.
    independent: f64,
}

/// Scores err by `δⱼ`, see [`score`]. With `p` the exact softmax and `o` the exact output, `Σp·(v − o) = 0` and
/// therefore the weights' errors make `e^δmax · Σ pⱼ·(e^δⱼ − 1)·|vⱼ − o|`; the parts that come from rounding the keys
/// are independent. The values' own errors make `Σ p·e` and, from rounding them, independent terms `p·r`, both times
/// `e^2δmax`. The running sum makes `c·u·Σ p·|v|`.
pub(crate) fn error(
    shape: &AttentionShape,
    mode: CacheMode,
    position: usize,
    (query, query_error): (&[f32], &[f64]),
    (keys, key_error): (&[f32], &[f64]),
    (values, value_error): (&[f32], &[f64]),
) -> Vec<f64> {
    let (head_dim, kv_width) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let key_rounding: Vec<f64> = rows_rounding(mode.dtype, kv_width, keys, key_error);
    let value_rounding: Vec<f64> = rows_rounding(mode.dtype, kv_width, values, value_error);
    let mut errors = Vec::with_capacity(query.len());
    for (index, query) in query.chunks_exact(head_dim).enumerate() {
        let (token, head) = (index / shape.heads, index % shape.heads);
        let error = &query_error[index * head_dim..][..head_dim];
        let rounding = if mode.integer_scores { integer_rounding(query, error) } else { vec![0.0; head_dim] };
        let query = Head { query, error, rounding: &rounding };
        let row = |position: usize| {
            let start = position * kv_width + shape.kv_head(head) * head_dim;
            start..start + head_dim
        };
        let visible = shape.first_visible(position + token)..position + token + 1;
        let cached: Vec<(Cached<'_>, Cached<'_>)> = visible
            .map(row)
            .map(|row| {
                let key = Cached {
                    value: &keys[row.clone()],
                    error: &key_error[row.clone()],
                    rounding: &key_rounding[row.clone()],
                };
                let value = Cached {
                    value: &values[row.clone()],
                    error: &value_error[row.clone()],
                    rounding: &value_rounding[row],
                };
                (key, value)
            })
            .collect();
        let scores: Vec<Score> = cached.iter().map(|(key, _)| score(&query, key, f64::from(shape.scale))).collect();
        errors.extend(mix_error(&scores, &cached.iter().map(|&(_, value)| value).collect::<Vec<_>>(), head_dim));
    }
    errors
}

fn rows_rounding(dtype: DType, width: usize, x: &[f32], e: &[f64]) -> Vec<f64> {
    x.chunks(width).zip(e.chunks(width)).flat_map(|(x, e)| cache_write::rounding(dtype, x, e)).collect()
}

/// `s = scale · q·k`. What came in: `Σ(|q|·e₂ + e₁·(|k| + e₂))`; rounding the query: independent terms `r₁·|k|`;
/// rounding the key: independent terms `|q|·r₂`; arithmetic: that of a sum of `head_dim` products.
fn score(query: &Head<'_>, key: &Cached<'_>, scale: f64) -> Score {
    let scale = scale.abs();
    let (mut value, mut magnitude, mut come_in) = (0.0, 0.0, 0.0);
    let (mut query_sum, mut query_squares, mut key_sum, mut key_squares) = (0.0, 0.0, 0.0, 0.0);
    for i in 0..query.query.len() {
        let (q, k) = (f64::from(query.query[i]), f64::from(key.value[i]));
        let (eq, ek) = (query.error[i], key.error[i]);
        value += q * k;
        let (q, k) = (q.abs() + eq, k.abs() + ek + key.rounding[i]);
        magnitude += q * k;
        come_in += q * ek + eq * k;
        let (from_query, from_key) = (query.rounding[i] * k, q * key.rounding[i]);
        query_sum += from_query;
        query_squares += from_query * from_query;
        key_sum += from_key;
        key_squares += from_key * from_key;
    }
    let arithmetic = UNIT * sum_roundings(query.query.len()) * magnitude;
    Score {
        value,
        common: scale * (come_in + arithmetic + sum_of_roundings(query_sum, query_squares)),
        independent: scale * sum_of_roundings(key_sum, key_squares),
    }
    .scaled(scale)
}

impl Score {
    /// With the value scaled too; the errors are already.
    fn scaled(self, scale: f64) -> Score {
        Score { value: self.value * scale, ..self }
    }
}

/// The error of the weighted sum of one head.
fn mix_error(scores: &[Score], values: &[Cached<'_>], head_dim: usize) -> Vec<f64> {
    let max = scores.iter().map(|score| score.value).fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = scores.iter().map(|score| (score.value - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    for weight in &mut weights {
        *weight /= total;
    }
    // The argument of each exponential is rounded in proportion to its distance from the largest score.
    let common: Vec<f64> = scores
        .iter()
        .map(|score| score.common + UNIT * (EXP_ROUNDINGS + 2.0 * (score.value - max).abs() + 2.0 * max.abs()))
        .collect();
    let largest = scores.iter().zip(&common).map(|(score, common)| score.independent + common).fold(0.0, f64::max);
    let factors: Vec<[f64; 3]> = (0..scores.len())
        .map(|j| {
            let independent = common[j].exp() * scores[j].independent.exp_m1();
            [weights[j], weights[j] * common[j].exp_m1(), weights[j] * independent]
        })
        .collect();
    let arithmetic = UNIT * sum_roundings(scores.len());
    (0..head_dim).map(|i| element_error(&factors, values, i, arithmetic, largest.exp())).collect()
}

/// The error of element `i` of the weighted sum. `factors` are each position's weight and its weight's common and
/// independent errors.
fn element_error(factors: &[[f64; 3]], values: &[Cached<'_>], i: usize, arithmetic: f64, growth: f64) -> f64 {
    let output: f64 = values.iter().zip(factors).map(|(value, [weight, ..])| weight * f64::from(value.value[i])).sum();
    let (mut common, mut come_in, mut magnitude) = (0.0, 0.0, 0.0);
    let (mut score_sum, mut score_squares, mut rounding_sum, mut rounding_squares) = (0.0, 0.0, 0.0, 0.0);
    for (value, [weight, weight_common, weight_independent]) in values.iter().zip(factors) {
        let distance = (f64::from(value.value[i]) - output).abs();
        common += weight_common * distance;
        let independent = weight_independent * distance;
        score_sum += independent;
        score_squares += independent * independent;
        come_in += weight * value.error[i];
        let rounding = weight * value.rounding[i];
        rounding_sum += rounding;
        rounding_squares += rounding * rounding;
        magnitude += weight * (f64::from(value.value[i]).abs() + value.error[i] + value.rounding[i]);
    }
    let from_values = come_in + sum_of_roundings(rounding_sum, rounding_squares) + arithmetic * magnitude;
    growth * (common + sum_of_roundings(score_sum, score_squares)) + growth * growth * from_values
}

/// Head sizes, heads and heads of keys and values.
const SHAPES: [(usize, usize, usize); 6] = [(64, 4, 1), (96, 3, 3), (128, 8, 4), (256, 4, 1), (128, 2, 1), (64, 6, 2)];

fn run(visit: Visit<'_>) -> Result<(), Failure> {
    for (seed, (head_dim, heads, kv_heads)) in SHAPES.into_iter().enumerate() {
        let windows: &[Option<usize>] =
            if seed < 2 { &[None, Some(1), Some(2), Some(7), Some(33)] } else { &[None, Some(7)] };
        for &window in windows {
            let mut setup = Setup::new(seed as u64 ^ 0xa7);
            // Scores of a standard deviation of about 1 to 3, so that a few positions count.
            let query = setup.input(heads * head_dim, Values::Normal(1.0 + seed as f32 * 0.4));
            let key = setup.input(kv_heads * head_dim, Values::Normal(1.0));
            let value = setup.input(kv_heads * head_dim, Values::Normal(4.0));
            // One cache remembers more than is asked of it.
            let kept = if seed == 4 { window.map(|window| window + 9) } else { window };
            let (keys, values) = (setup.cache(kv_heads * head_dim, kept), setup.cache(kv_heads * head_dim, kept));
            setup.push(Op::CacheWrite { input: key, cache: keys });
            setup.push(Op::CacheWrite { input: value, cache: values });
            let output = setup.scratch(Rows::Tokens, heads * head_dim);
            let scale = Scalar(1.0 / (head_dim as f32).sqrt());
            setup.push(Op::Attention { query, keys, values, head_dim, window, scale, output });
            setup.read(output);
            passes(&mut setup);
            let label = format!("attention {heads}/{kv_heads} × {head_dim}, window {window:?}");
            visit(&setup.finish(label, CACHE_MODES))?;
        }
    }
    Ok(())
}

/// Chunks of many sizes until rings of a window and a batch have wrapped, several sequences in one batch, a few
/// positions taken back, and a slot used anew.
fn passes(setup: &mut Setup) {
    setup.pass(&[(0, 0, 5)], Outputs::None);
    setup.pass(&[(0, 5, 1)], Outputs::None);
    setup.pass(&[(0, 6, 70)], Outputs::None);
    setup.pass(&[(0, 76, 1)], Outputs::None);
    setup.pass(&[(1, 0, 17), (0, 77, 1), (2, 0, 3)], Outputs::None);
    setup.pass(&[(0, 78, 33), (2, 3, 1), (1, 17, 2)], Outputs::None);
    setup.pass(&[(0, 108, 2), (2, 4, 1)], Outputs::None);
    setup.pass(&[(0, 110, 16), (1, 19, 1)], Outputs::None);
    setup.pass(&[(1, 0, 2), (0, 126, 1)], Outputs::None);
    setup.pass(&[(1, 2, 1)], Outputs::None);
}
