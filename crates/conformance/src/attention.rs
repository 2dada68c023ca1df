//! [`tensor::Op::Attention`] over caches of every format.

use tensor::reference::AttentionShape;
use tensor::{DType, Op, Precision, Rows, Scalar};

use crate::bound::{TINY_F16, UNIT, UNIT_F16, sum_of_roundings, sum_roundings};
use crate::cache_write;
use crate::linear::integer_rounding;
use crate::setup::{CACHE_MODES, Mode, Outputs, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[Case { name: "attention", work: Work::Compare(run) }];

/// Unit roundoffs of one exponential, beside that of its argument.
const EXP_ROUNDINGS: f64 = 8.0;

/// One head of one token, and what is known of its input's errors.
struct Head<'a> {
    query: &'a [f32],
    error: &'a [f64],
    /// Rounding of the query, see [`query_rounding`].
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

/// Independent roundings within ±cᵢ.
#[derive(Clone, Copy, Default)]
struct Roundings {
    sum: f64,
    squares: f64,
}

impl Roundings {
    fn add(&mut self, most: f64) {
        self.sum += most;
        self.squares += most * most;
    }

    fn bound(self) -> f64 {
        sum_of_roundings(self.sum, self.squares)
    }
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
///
/// Where f16 is allowed, see [`halves`], `pⱼ` errs by `u₁₆·pⱼ` and, where f16 has no smaller numbers, by half of its
/// smallest step relative to the largest weight, `t₁₆·pmax`: more independent terms, times `|vⱼ − o|` because it is the
/// rounded weights that are summed up. Values that are rounded again make independent terms `p·(u₁₆·|v| + t₁₆)`.
pub(crate) fn error(
    shape: &AttentionShape,
    mode: Mode,
    position: usize,
    (query, query_error): (&[f32], &[f64]),
    (keys, key_error): (&[f32], &[f64]),
    (values, value_error): (&[f32], &[f64]),
) -> Vec<f64> {
    let (head_dim, kv_width) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let key_rounding: Vec<f64> = rows_rounding(mode.cache_dtype, kv_width, keys, key_error);
    let value_rounding: Vec<f64> = rows_rounding(mode.cache_dtype, kv_width, values, value_error);
    let mut errors = Vec::with_capacity(query.len());
    for (index, query) in query.chunks_exact(head_dim).enumerate() {
        let (token, head) = (index / shape.heads, index % shape.heads);
        let error = &query_error[index * head_dim..][..head_dim];
        let rounding = query_rounding(mode, f64::from(shape.scale), query, error);
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
        let values: Vec<Cached<'_>> = cached.iter().map(|&(_, value)| value).collect();
        errors.extend(mix_error(&scores, &values, head_dim, mode));
    }
    errors
}

/// Whether queries, weights of positions and cached rows may be rounded to f16, as [`Precision::Fast`] allows.
fn halves(mode: Mode) -> bool {
    mode.precision == Precision::Fast && [DType::F16, DType::Q8_0].contains(&mode.cache_dtype)
}

/// The largest error of each element from rounding a query: to 8 bits for integer products with Q8_0, to f16 for
/// products with F16, after it was multiplied by the scale or before. Rounding query and key to f16 for products with
/// Q8_0 is less than the former: `2·2⁻¹¹·|q·k|` in all, of `max|q|·|k| / 254`.
fn query_rounding(mode: Mode, scale: f64, query: &[f32], error: &[f64]) -> Vec<f64> {
    if !halves(mode) {
        return vec![0.0; query.len()];
    }
    if mode.cache_dtype == DType::Q8_0 {
        return integer_rounding(query, error);
    }
    let tiny = if scale == 0.0 { 0.0 } else { TINY_F16 / scale.abs().min(1.0) };
    query.iter().zip(error).map(|(&x, e)| UNIT_F16 * (f64::from(x).abs() + e) + tiny).collect()
}

fn rows_rounding(dtype: DType, width: usize, x: &[f32], e: &[f64]) -> Vec<f64> {
    x.chunks(width).zip(e.chunks(width)).flat_map(|(x, e)| cache_write::rounding(dtype, x, e)).collect()
}

/// `s = scale · q·k`. What came in: `Σ(|q|·e₂ + e₁·(|k| + e₂))`; rounding the query: independent terms `r₁·|k|`;
/// rounding the key: independent terms `|q|·r₂`; arithmetic: that of a sum of `head_dim` products.
fn score(query: &Head<'_>, key: &Cached<'_>, scale: f64) -> Score {
    let scale = scale.abs();
    let (mut value, mut magnitude, mut come_in) = (0.0, 0.0, 0.0);
    let (mut from_query, mut from_key) = (Roundings::default(), Roundings::default());
    for i in 0..query.query.len() {
        let (q, k) = (f64::from(query.query[i]), f64::from(key.value[i]));
        let (eq, ek) = (query.error[i], key.error[i]);
        value += q * k;
        let (q, k) = (q.abs() + eq, k.abs() + ek + key.rounding[i]);
        magnitude += q * k;
        come_in += q * ek + eq * k;
        from_query.add(query.rounding[i] * k);
        from_key.add(q * key.rounding[i]);
    }
    let arithmetic = UNIT * sum_roundings(query.query.len()) * magnitude;
    Score { value, common: scale * (come_in + arithmetic + from_query.bound()), independent: scale * from_key.bound() }
        .scaled(scale)
}

impl Score {
    /// With the value scaled too; the errors are already.
    fn scaled(self, scale: f64) -> Score {
        Score { value: self.value * scale, ..self }
    }
}

/// One position's share of the softmax and its possible errors.
struct Weight {
    value: f64,
    /// From [`Score::common`].
    common: f64,
    /// From [`Score::independent`].
    independent: f64,
    /// From rounding it to f16.
    rounding: f64,
}

/// The error of the weighted sum of one head.
fn mix_error(scores: &[Score], values: &[Cached<'_>], head_dim: usize, mode: Mode) -> Vec<f64> {
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
    let (unit, tiny) = if halves(mode) { (UNIT_F16, TINY_F16) } else { (0.0, 0.0) };
    let weights: Vec<Weight> = (0..scores.len())
        .map(|j| Weight {
            value: weights[j],
            common: weights[j] * common[j].exp_m1(),
            independent: weights[j] * common[j].exp() * scores[j].independent.exp_m1(),
            // The largest weight is 1 / total.
            rounding: unit * weights[j] + tiny / total,
        })
        .collect();
    let arithmetic = UNIT * sum_roundings(scores.len());
    (0..head_dim).map(|i| element_error(&weights, values, i, arithmetic, (largest + unit).exp(), mode)).collect()
}

/// The error of element `i` of the weighted sum.
fn element_error(weights: &[Weight], values: &[Cached<'_>], i: usize, arithmetic: f64, growth: f64, mode: Mode) -> f64 {
    let output: f64 = values.iter().zip(weights).map(|(value, weight)| weight.value * f64::from(value.value[i])).sum();
    // What is in f16 already is not rounded again.
    let rounds_again = halves(mode) && mode.cache_dtype != DType::F16;
    let (mut common, mut come_in, mut magnitude) = (0.0, 0.0, 0.0);
    let (mut from_weights, mut from_values) = (Roundings::default(), Roundings::default());
    for (value, weight) in values.iter().zip(weights) {
        let distance = (f64::from(value.value[i]) - output).abs();
        let size = f64::from(value.value[i]).abs() + value.error[i] + value.rounding[i];
        common += weight.common * distance;
        from_weights.add(weight.independent * distance);
        from_weights.add(weight.rounding * distance);
        come_in += weight.value * value.error[i];
        from_values.add(weight.value * value.rounding[i]);
        if rounds_again {
            from_values.add(weight.value * (UNIT_F16 * size + TINY_F16));
        }
        magnitude += weight.value * size;
    }
    let own = come_in + from_values.bound() + arithmetic * magnitude;
    growth * (common + from_weights.bound()) + growth * growth * own
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
