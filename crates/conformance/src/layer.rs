//! Ops next to each other as models have them: what backends fuse.

use tensor::{BufferId, DType, Op, Rows, Scalar, WeightFormat};

use crate::setup::{CACHE_MODES, Mode, Outputs, PRECISIONS, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[
    Case { name: "layer/norm_linear", work: Work::Compare(norm_linear) },
    Case { name: "layer/feed_forward", work: Work::Compare(feed_forward) },
    Case { name: "layer/attention", work: Work::Compare(attention) },
    Case { name: "layer/model", work: Work::Compare(model) },
];

const EPSILON: Scalar = Scalar(1e-6);

/// Sizes of a small model.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) format: WeightFormat,
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Of the norms after attention and after the feed-forward layer.
    pub(crate) post_epsilons: [Scalar; 2],
}

pub(crate) const SIZES: Sizes = Sizes {
    format: WeightFormat::Blocks(DType::Q8_0),
    hidden: 256,
    inner: 512,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    post_epsilons: [EPSILON; 2],
};

/// Activations that all layers share.
pub(crate) struct Buffers {
    pub(crate) normed: BufferId,
    pub(crate) query: BufferId,
    pub(crate) key: BufferId,
    pub(crate) value: BufferId,
    pub(crate) mixed: BufferId,
    pub(crate) gate: BufferId,
    pub(crate) up: BufferId,
    pub(crate) output: BufferId,
}

impl Buffers {
    /// Of tokens or of outputs.
    pub(crate) fn new(setup: &mut Setup, rows: Rows, sizes: &Sizes) -> Self {
        let mut scratch = |width: usize| setup.scratch(rows, width);
        Buffers {
            normed: scratch(sizes.hidden),
            query: scratch(sizes.heads * sizes.head_dim),
            key: scratch(sizes.kv_heads * sizes.head_dim),
            value: scratch(sizes.kv_heads * sizes.head_dim),
            mixed: scratch(sizes.heads * sizes.head_dim),
            gate: scratch(sizes.inner),
            up: scratch(sizes.inner),
            output: scratch(sizes.hidden),
        }
    }
}

pub(crate) fn norm(setup: &mut Setup, input: BufferId, width: usize, output: BufferId) {
    let weight = setup.norm_weight(width);
    setup.push(Op::RmsNorm { input, weight, epsilon: EPSILON, output });
}

/// `residual += norm(update)`.
fn norm_and_add(setup: &mut Setup, (width, epsilon): (usize, Scalar), update: BufferId, residual: BufferId) {
    let weight = setup.norm_weight(width);
    setup.push(Op::RmsNorm { input: update, weight, epsilon, output: update });
    setup.push(Op::Add { input: update, output: residual });
}

pub(crate) fn linear(
    setup: &mut Setup,
    format: impl Into<WeightFormat>,
    input: BufferId,
    (rows, columns): (usize, usize),
    output: BufferId,
) {
    let weight = setup.weight(format, rows, columns);
    setup.push(Op::Linear { weight, input, output });
}

/// One norm that three products share, as for queries, keys and values.
fn norm_linear(visit: Visit<'_>) -> Result<(), Failure> {
    for dtype in DType::ALL {
        let mut setup = Setup::new(1);
        let input = setup.input(256, Values::Awkward);
        let normed = setup.scratch(Rows::Tokens, 256);
        norm(&mut setup, input, 256, normed);
        for out in [128, 33, 33] {
            let output = setup.scratch(Rows::Tokens, out);
            linear(&mut setup, dtype, normed, (out, 256), output);
            setup.read(output);
        }
        setup.passes_of(&[1, 2, 17, 70]);
        visit(&setup.finish(format!("norm and linear {dtype}"), PRECISIONS))?;
    }
    Ok(())
}

/// Gate and up, their product, down, and the residual sum.
fn feed_forward(visit: Visit<'_>) -> Result<(), Failure> {
    for dtype in DType::ALL {
        let sizes = Sizes { format: dtype.into(), ..SIZES };
        let mut setup = Setup::new(2);
        let (input, residual) = (setup.input(256, Values::Normal(1.0)), setup.input(256, Values::Normal(1.0)));
        let buffers = Buffers::new(&mut setup, Rows::Tokens, &sizes);
        feed_forward_ops(&mut setup, &sizes, &buffers, input);
        setup.push(Op::Add { input: buffers.output, output: residual });
        setup.read_copy(residual, 256);
        setup.passes_of(&[1, 2, 17]);
        visit(&setup.finish(format!("feed-forward {dtype}"), PRECISIONS))?;
    }
    Ok(())
}

/// `output = down(gelu(gate(input)) · up(input))`.
fn feed_forward_ops(setup: &mut Setup, sizes: &Sizes, buffers: &Buffers, input: BufferId) {
    let &Buffers { gate, up, output, .. } = buffers;
    linear(setup, sizes.format, input, (sizes.inner, sizes.hidden), gate);
    linear(setup, sizes.format, input, (sizes.inner, sizes.hidden), up);
    setup.push(Op::GeluMul { gate, up, output: gate });
    linear(setup, sizes.format, gate, (sizes.hidden, sizes.inner), output);
}

/// Norms and rotations of queries and keys, the caches, and the attention over them.
fn attention(visit: Visit<'_>) -> Result<(), Failure> {
    for window in [None, Some(7)] {
        let mut setup = Setup::new(3);
        let width = |heads: usize| heads * SIZES.head_dim;
        let buffers = Buffers {
            query: setup.input(width(SIZES.heads), Values::Normal(2.0)),
            key: setup.input(width(SIZES.kv_heads), Values::Normal(2.0)),
            value: setup.input(width(SIZES.kv_heads), Values::Normal(2.0)),
            ..Buffers::new(&mut setup, Rows::Tokens, &SIZES)
        };
        attention_ops(&mut setup, &SIZES, &buffers, window, usual_scale(&SIZES));
        setup.read(buffers.mixed);
        model_passes(&mut setup);
        visit(&setup.finish(format!("attention with its norms and rope, window {window:?}"), CACHE_MODES))?;
    }
    Ok(())
}

/// What scores are multiplied by.
pub(crate) fn usual_scale(sizes: &Sizes) -> Scalar {
    Scalar(1.0 / (sizes.head_dim as f32).sqrt())
}

/// `mixed = attention(rope(norm(query)), rope(norm(key)), value)`.
pub(crate) fn attention_ops(setup: &mut Setup, sizes: &Sizes, buffers: &Buffers, window: Option<usize>, scale: Scalar) {
    let &Buffers { query, key, value, mixed, .. } = buffers;
    let Sizes { head_dim, kv_heads, .. } = *sizes;
    let base = Scalar(if window.is_some() { 1e4 } else { 1e6 });
    norm(setup, query, head_dim, query);
    norm(setup, key, head_dim, key);
    for values in [query, key] {
        setup.push(Op::Rope { values, head_dim, base, position_divisor: Scalar(8.0) });
    }
    let (keys, values) = (setup.cache(kv_heads * head_dim, window), setup.cache(kv_heads * head_dim, window));
    setup.push(Op::CacheWrite { input: key, cache: keys });
    setup.push(Op::CacheWrite { input: value, cache: values });
    setup.push(Op::Attention { query, keys, values, head_dim, window, scale, output: mixed });
}

fn model_passes(setup: &mut Setup) {
    setup.pass(&[(0, 0, 33)], Outputs::Last);
    setup.pass(&[(0, 33, 1)], Outputs::All);
    setup.pass(&[(1, 0, 17), (0, 34, 1)], Outputs::Third);
    setup.pass(&[(0, 35, 8), (1, 17, 1)], Outputs::All);
}

/// Full precision and caches that round little: through half a layer, the bound of roundings to 8 bits says nothing.
const FULL: &[Mode] = &[CACHE_MODES[0], CACHE_MODES[1]];

/// A local and a global layer as Gemma 3 has them, over the same activations, and a head. Each half of a layer starts
/// from an exact residual of its own, because errors that go through more have no useful bound.
fn model(visit: Visit<'_>) -> Result<(), Failure> {
    for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q6_K] {
        layers_in(dtype, visit)?;
    }
    Ok(())
}

/// That in one format.
pub(crate) fn layers_in(format: impl Into<WeightFormat>, visit: Visit<'_>) -> Result<(), Failure> {
    let format = format.into();
    let sizes = Sizes { format, ..SIZES };
    let mut setup = Setup::new(4);
    let buffers = Buffers::new(&mut setup, Rows::Tokens, &sizes);
    for window in [Some(7), None] {
        let residual = setup.input(sizes.hidden, Values::Normal(20.0));
        attention_half(&mut setup, &sizes, &buffers, window, residual);
        setup.read_copy(residual, sizes.hidden);
        let residual = setup.input(sizes.hidden, Values::Normal(20.0));
        feed_forward_half(&mut setup, &sizes, &buffers, residual);
        setup.read_copy(residual, sizes.hidden);
    }
    let residual = setup.input(sizes.hidden, Values::Normal(20.0));
    head(&mut setup, &sizes, residual);
    model_passes(&mut setup);
    visit(&setup.finish(format!("layers in {format}"), FULL))
}

pub(crate) fn attention_half(
    setup: &mut Setup,
    sizes: &Sizes,
    buffers: &Buffers,
    window: Option<usize>,
    residual: BufferId,
) {
    let Sizes { format, hidden, heads, kv_heads, head_dim, .. } = *sizes;
    let &Buffers { normed, query, key, value, .. } = buffers;
    norm(setup, residual, hidden, normed);
    linear(setup, format, normed, (heads * head_dim, hidden), query);
    linear(setup, format, normed, (kv_heads * head_dim, hidden), key);
    linear(setup, format, normed, (kv_heads * head_dim, hidden), value);
    attention_ops(setup, sizes, buffers, window, usual_scale(sizes));
    attention_output(setup, sizes, buffers, residual);
}

/// `residual += norm(output(mixed))`.
pub(crate) fn attention_output(setup: &mut Setup, sizes: &Sizes, buffers: &Buffers, residual: BufferId) {
    let Sizes { format, hidden, heads, head_dim, .. } = *sizes;
    let &Buffers { mixed, output, .. } = buffers;
    linear(setup, format, mixed, (hidden, heads * head_dim), output);
    norm_and_add(setup, (hidden, sizes.post_epsilons[0]), output, residual);
}

pub(crate) fn feed_forward_half(setup: &mut Setup, sizes: &Sizes, buffers: &Buffers, residual: BufferId) {
    let &Buffers { normed, output, .. } = buffers;
    norm(setup, residual, sizes.hidden, normed);
    feed_forward_ops(setup, sizes, buffers, normed);
    norm_and_add(setup, (sizes.hidden, sizes.post_epsilons[1]), output, residual);
}

/// Logits of the output rows.
fn head(setup: &mut Setup, sizes: &Sizes, residual: BufferId) {
    let (selected, logits) = (setup.scratch(Rows::Outputs, sizes.hidden), setup.scratch(Rows::Outputs, 61));
    setup.push(Op::SelectOutputs { input: residual, output: selected });
    norm(setup, selected, sizes.hidden, selected);
    linear(setup, sizes.format, selected, (61, sizes.hidden), logits);
    setup.read(logits);
}
