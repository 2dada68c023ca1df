//! [`tensor::Op::GeluMul`].

use tensor::reference::gelu_tanh;
use tensor::{Op, Rows};

use crate::bound::UNIT;
use crate::setup::{Outputs, PRECISIONS, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[Case { name: "gelu_mul", work: Work::Compare(run) }];

/// The largest slope of the function.
const SLOPE: f64 = 1.13;

/// Unit roundoffs of `1 + tanh(…)`. Its argument `z` has about 6 roundings, which change it by at most
/// `max z·(1 − tanh² z) · 6u < 3u`; an exponential of a few units and a quotient do the rest. The sum lies in 0..=2, so
/// that this is an absolute error: of small values at large negative gates little may be left.
const ROUNDINGS: f64 = 16.0;

/// With `g = gelu(x)`: `SLOPE·e₁·(|y| + e₂) + |g|·e₂ + 16u·|x|·|y| / 2 + 2u·|g·y|`.
pub(crate) fn error((x, ex): (&[f32], &[f64]), (y, ey): (&[f32], &[f64])) -> Vec<f64> {
    (0..x.len())
        .map(|index| {
            let (ex, ey) = (ex[index], ey[index]);
            let gelu = gelu_tanh(f64::from(x[index]));
            let (x, y) = (f64::from(x[index]).abs() + ex, f64::from(y[index]).abs() + ey);
            let value = gelu.abs() + SLOPE * ex;
            SLOPE * ex * y + value * ey + UNIT * y * (0.5 * ROUNDINGS * x + 2.0 * value)
        })
        .collect()
}

fn run(visit: Visit<'_>) -> Result<(), Failure> {
    for (seed, width) in [1, 3, 7, 16, 33, 128, 640, 2049].into_iter().enumerate() {
        for target in ["new", "gate", "up"] {
            let mut setup = Setup::new(seed as u64 ^ 0x6e);
            // Between −6 and 6 the function bends; far beyond, nothing may overflow.
            let gate = setup.input(width, if seed % 2 == 0 { Values::Normal(2.0) } else { Values::Awkward });
            let up = setup.input(width, Values::Awkward);
            let output = match target {
                "gate" => gate,
                "up" => up,
                _ => setup.scratch(Rows::Tokens, width),
            };
            setup.push(Op::GeluMul { gate, up, output });
            setup.read_copy(output, width);
            setup.passes_of(&[1, 2, 3, 5, 8, 15, 16, 17, 33, 70, 1]);
            setup.pass(&[(0, 0, 17)], Outputs::Third);
            visit(&setup.finish(format!("gelu_mul [tokens, {width}] into {target}"), PRECISIONS))?;
        }
    }
    Ok(())
}
