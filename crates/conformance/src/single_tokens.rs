//! Passes over one token of each sequence, through ops in the order in which models have them: what backends fuse most
//! when they decode.

use tensor::{DType, Op, Rows, Scalar};

use crate::layer::{
    Buffers, SIZES, Sizes, attention_ops, attention_output, feed_forward_half, linear, norm, usual_scale,
};
use crate::setup::{CACHE_MODES, Mode, Outputs, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[
    Case { name: "single_tokens/attention", work: Work::Compare(attention) },
    Case { name: "single_tokens/layers", work: Work::Compare(layers) },
];

/// Norms and rotations of queries and keys, the caches, and the attention over them, for head sizes, heads and heads of
/// keys and values.
fn attention(visit: Visit<'_>) -> Result<(), Failure> {
    const SHAPES: [(usize, usize, usize); 4] = [(32, 2, 1), (64, 6, 2), (128, 4, 2), (256, 1, 1)];
    for (index, (head_dim, heads, kv_heads)) in SHAPES.into_iter().enumerate() {
        for window in [None, Some([7, 1, 33][index % 3])] {
            let sizes = Sizes { heads, kv_heads, head_dim, ..SIZES };
            let mut setup = Setup::new(index as u64 ^ 0x51);
            let mut input = |heads| setup.input(heads * head_dim, Values::Normal(2.0));
            let (query, key, value) = (input(heads), input(kv_heads), input(kv_heads));
            let buffers = Buffers { query, key, value, ..Buffers::new(&mut setup, Rows::Tokens, &sizes) };
            attention_ops(&mut setup, &sizes, &buffers, window, usual_scale(&sizes));
            setup.read(buffers.mixed);
            passes(&mut setup);
            let label = format!("single tokens, attention {heads}/{kv_heads} × {head_dim}, window {window:?}");
            visit(&setup.finish(label, CACHE_MODES))?;
        }
    }
    Ok(())
}

/// Prompts of three sequences, then single tokens of one of them and of all, far enough for a ring to wrap.
fn passes(setup: &mut Setup) {
    setup.pass(&[(0, 0, 1)], Outputs::All);
    setup.pass(&[(0, 1, 1)], Outputs::All);
    setup.pass(&[(0, 2, 3), (1, 0, 30), (2, 0, 1)], Outputs::Last);
    for step in 0..4 {
        setup.pass(&[(1, 30 + 2 * step, 1)], Outputs::All);
        setup.pass(&[(0, 5 + step, 1), (1, 31 + 2 * step, 1), (2, 1 + step, 1)], Outputs::All);
    }
    setup.pass(&[(1, 38, 40)], Outputs::None);
    setup.pass(&[(1, 78, 1)], Outputs::Last);
}

/// What layers add is hardly seen beside the residual stream: an error of one layer hardly matters to the next, so that
/// bounds stay useful; what was added is seen in the residual stream itself, whose bound is that of the updates alone.
const RESIDUAL: f32 = 1e4;

/// Caches that round little.
const MODES: &[Mode] = &[CACHE_MODES[0], CACHE_MODES[4]];

/// Three layers of Gemma 3 and the head, op by op as `model` builds them: once as they are, and once with copies of the
/// residual stream and of queries, keys and values where those are complete.
fn layers(visit: Visit<'_>) -> Result<(), Failure> {
    const SMALL: (usize, usize) = (256, 512);
    const LARGE: (usize, usize) = (512, 768);
    // About the size of what the two norms get from products with random weights of the format: a norm of values that
    // may all be errors has no bound.
    let (q4_0, q4_k) = ((DType::Q4_0, [1e3, 1e4].map(Scalar)), (DType::Q4_K, [1e10, 1e16].map(Scalar)));
    for ((dtype, post_epsilons), (hidden, inner)) in [(q4_0, SMALL), (q4_0, LARGE), (q4_k, SMALL), (q4_k, LARGE)] {
        for copies in [false, true] {
            let sizes = Sizes { format: dtype.into(), hidden, inner, post_epsilons, ..SIZES };
            let mut setup = Setup::new(0x52 ^ hidden as u64);
            model(&mut setup, &sizes, copies);
            setup.pass(&[(0, 0, 1)], Outputs::All);
            setup.pass(&[(0, 1, 1)], Outputs::All);
            setup.pass(&[(0, 2, 2), (1, 0, 4), (2, 0, 1)], Outputs::Last);
            setup.pass(&[(0, 4, 1), (1, 4, 1), (2, 1, 1)], Outputs::All);
            for position in 5..8 {
                setup.pass(&[(1, position, 1)], Outputs::All);
            }
            let label = format!("single tokens, layers of {hidden} in {dtype}, with copies: {copies}");
            visit(&setup.finish(label, MODES))?;
        }
    }
    Ok(())
}

fn model(setup: &mut Setup, sizes: &Sizes, copies: bool) {
    const WINDOWS: [Option<usize>; 3] = [Some(1), None, Some(5)];
    let &Sizes { format, hidden, heads, kv_heads, head_dim, .. } = sizes;
    let scale = Scalar(usual_scale(sizes).0 / 8.0);
    let residual = setup.input(hidden, Values::Normal(RESIDUAL));
    let tokens = Buffers::new(setup, Rows::Tokens, sizes);
    let outputs = Buffers::new(setup, Rows::Outputs, sizes);
    let last = setup.scratch(Rows::Outputs, hidden);
    for (layer, window) in WINDOWS.into_iter().enumerate() {
        norm(setup, residual, hidden, tokens.normed);
        let products = [(tokens.query, heads), (tokens.key, kv_heads), (tokens.value, kv_heads)];
        for (output, heads) in products {
            linear(setup, format, tokens.normed, (heads * head_dim, hidden), output);
        }
        if copies {
            setup.read_copy(residual, hidden);
            products.into_iter().for_each(|(output, heads)| setup.read_copy(output, heads * head_dim));
        }
        attention_ops(setup, sizes, &tokens, window, scale);
        if layer + 1 < WINDOWS.len() {
            attention_output(setup, sizes, &tokens, residual);
            feed_forward_half(setup, sizes, &tokens, residual);
        } else {
            setup.push(Op::SelectOutputs { input: tokens.mixed, output: outputs.mixed });
            setup.push(Op::SelectOutputs { input: residual, output: last });
            attention_output(setup, sizes, &outputs, last);
            feed_forward_half(setup, sizes, &outputs, last);
        }
    }
    norm(setup, last, hidden, outputs.normed);
    let logits = setup.scratch(Rows::Outputs, 130);
    linear(setup, format, outputs.normed, (130, hidden), logits);
    setup.read(logits);
}
