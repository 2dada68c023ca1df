//! Root-mean-square normalization (Zhang & Sennrich 2019, arXiv 1910.07467).

use crate::kernel::math::dot;
use crate::level::{Level, Vectorized};
use crate::pool::Pool;

struct RmsNorm<'a> {
    input: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    output: &'a mut [f32],
}

impl Vectorized for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let size = self.weight.len();
        for (input, output) in self.input.chunks_exact(size).zip(self.output.chunks_exact_mut(size)) {
            let mean = dot::<FMA>(input, input) / size as f32;
            let scale = 1.0 / (mean + self.epsilon).sqrt();
            for index in 0..size {
                output[index] = input[index] * scale * self.weight[index];
            }
        }
    }
}

/// Normalizes each group of `weight.len()` columns of `[rows, width]`.
pub(crate) fn rms_norm(
    level: Level,
    pool: &Pool,
    input: &[f32],
    (weight, epsilon): (&[f32], f32),
    output: &mut [f32],
    width: usize,
) {
    super::for_rows(pool, output, width, &|rows, output| {
        level.run(RmsNorm { input: &input[rows.start * width..rows.end * width], weight, epsilon, output });
    });
}
