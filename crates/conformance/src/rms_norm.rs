//! [`tensor::Op::RmsNorm`].

use tensor::{Op, Rows, Scalar};

use crate::bound::{UNIT, sum_roundings};
use crate::setup::{Outputs, PRECISIONS, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[Case { name: "rms_norm", work: Work::Compare(run) }];

/// With `R = √(mean(x²) + ε)` and `y = x·w/R`: `R` moves by at most `D = √mean(e²)`, because it is the length of the
/// vector `(x/√n, √ε)`, and never below `√ε`. So what came in makes `|w|·(e/R' + |x|·D/(R·R'))` with
/// `R' = max(R − D, √ε)`. The arithmetic makes `(c/2 + 8)·u·|y|`: half of a sum's relative error through the root, and
/// a few for mean, root, quotient and products.
pub(crate) fn error(x: &[f32], e: &[f64], weight: &[f32], epsilon: f32) -> Vec<f64> {
    let n = weight.len();
    let epsilon = f64::from(epsilon);
    let mean = |squares: f64| squares / n as f64;
    let roundings = UNIT * (0.5 * sum_roundings(n) + 8.0);
    let mut errors = Vec::with_capacity(x.len());
    for (x, e) in x.chunks_exact(n).zip(e.chunks_exact(n)) {
        let root = (mean(x.iter().map(|&x| f64::from(x).powi(2)).sum()) + epsilon).sqrt();
        let moved = mean(e.iter().map(|e| e * e).sum()).sqrt();
        let least = (root - moved).max(epsilon.sqrt());
        for (index, &weight) in weight.iter().enumerate() {
            let (x, w) = (f64::from(x[index]).abs(), f64::from(weight).abs());
            let come_in = if moved > 0.0 { w * (e[index] / least + x * moved / (root * least)) } else { 0.0 };
            errors.push(come_in + roundings * (w * x / root + come_in));
        }
    }
    errors
}

fn run(visit: Visit<'_>) -> Result<(), Failure> {
    let sizes = [1, 3, 7, 16, 33, 64, 96, 128, 256, 640, 1152, 5376];
    for (seed, width) in sizes.into_iter().enumerate() {
        for groups in if width <= 256 { &[1, 3, 8][..] } else { &[1][..] } {
            let mut setup = Setup::new(seed as u64 ^ 0x45);
            let epsilon = Scalar(1e-6);
            let input = setup.input(width * groups, Values::Awkward);
            let (first, second) = (setup.norm_weight(width), setup.norm_weight(width));
            // Into another buffer, of output rows, and in place, of all.
            let output = setup.scratch(Rows::Tokens, width * groups);
            setup.push(Op::RmsNorm { input, weight: first, epsilon, output });
            setup.read(output);
            let selected = setup.scratch(Rows::Outputs, width * groups);
            let output = setup.scratch(Rows::Outputs, width * groups);
            setup.push(Op::SelectOutputs { input, output: selected });
            setup.push(Op::RmsNorm { input: selected, weight: second, epsilon, output });
            setup.read(output);
            setup.push(Op::RmsNorm { input, weight: second, epsilon, output: input });
            setup.read_copy(input, width * groups);
            setup.passes_of(&[1, 2, 3, 5, 7, 8, 15, 16, 17, 33, 70, 1]);
            setup.pass(&[(0, 0, 13)], Outputs::Third);
            visit(&setup.finish(format!("rms_norm [rows, {groups} × {width}]"), PRECISIONS))?;
        }
    }
    Ok(())
}
