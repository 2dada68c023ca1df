//! [`tensor::Op::CacheWrite`]: seen through an attention with a window of one position, whose softmax is 1, and
//! through one whose scores are all 0, which gives the mean of the visible rows.

use tensor::{DType, Op, Rows, Scalar};

use crate::bound::{TINY_F16, UNIT_F16};
use crate::setup::{CACHE_MODES, Outputs, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[Case { name: "cache_write", work: Work::Compare(run) }];

/// The largest error of each element from rounding a row to a cache's format: none, half a step of f16, or half a step
/// of Q8_0 and the rounding of its scale to f16 (127 steps of a scale that errs by half a step of f16).
pub(crate) fn rounding(dtype: DType, x: &[f32], e: &[f64]) -> Vec<f64> {
    let size = |(&x, e): (&f32, &f64)| f64::from(x).abs() + e;
    match dtype {
        DType::F16 => x.iter().zip(e).map(size).map(|size| UNIT_F16 * size + TINY_F16).collect(),
        DType::Q8_0 => {
            let steps = crate::linear::integer_rounding(x, e);
            let scale = |(half_step, size): (f64, f64)| half_step + UNIT_F16 * size + 127.0 * TINY_F16;
            steps.into_iter().zip(x.iter().zip(e).map(size)).map(scale).collect()
        }
        _ => vec![0.0; x.len()],
    }
}

fn run(visit: Visit<'_>) -> Result<(), Failure> {
    for (seed, (head_dim, window)) in [(64, 1), (96, 1), (64, 5), (128, 3), (256, 2)].into_iter().enumerate() {
        let mut setup = Setup::new(seed as u64 ^ 0xca);
        // No rows beyond binary16: a cache of that format can't hold them.
        let query = setup.input(2 * head_dim, Values::Normal(1.0));
        let input = setup.input(2 * head_dim, Values::Normal(10.0));
        let (keys, values) = (setup.cache(2 * head_dim, Some(window)), setup.cache(2 * head_dim, Some(window)));
        setup.push(Op::CacheWrite { input, cache: keys });
        setup.push(Op::CacheWrite { input, cache: values });
        let output = setup.scratch(Rows::Tokens, 2 * head_dim);
        let (window, scale) = (Some(window), Scalar(0.0));
        setup.push(Op::Attention { query, keys, values, head_dim, window, scale, output });
        setup.read(output);
        let mut position = 0;
        for tokens in [1, 2, 16, 70, 1, 33, 70, 17, 1, 1] {
            setup.pass(&[(0, position, tokens)], Outputs::None);
            position += tokens;
        }
        // Other sequences, this one going on between them, and one that starts anew.
        setup.pass(&[(2, 0, 5), (0, position, 1), (1, 0, 40)], Outputs::None);
        setup.pass(&[(1, 40, 7), (2, 5, 1), (0, position + 1, 2)], Outputs::None);
        setup.pass(&[(0, 0, 3), (2, 6, 1), (1, 47, 1)], Outputs::None);
        visit(&setup.finish(format!("cache_write 2 × {head_dim}, window {window:?}"), CACHE_MODES))?;
    }
    Ok(())
}
