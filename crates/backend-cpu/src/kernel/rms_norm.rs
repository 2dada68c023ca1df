//! Root-mean-square normalization (Zhang & Sennrich 2019, arXiv 1910.07467).

use crate::kernel::math::dot;
use crate::level::{Level, Vectorized};
use crate::pool::Pool;

struct RmsNorm<'a> {
    weight: &'a [f32],
    epsilon: f32,
    values: &'a mut [f32],
}

impl Vectorized for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let size = self.weight.len();
        for group in self.values.chunks_exact_mut(size) {
            let mean = dot::<FMA>(group, group) / size as f32;
            let scale = 1.0 / (mean + self.epsilon).sqrt();
            for (value, weight) in group.iter_mut().zip(self.weight) {
                *value = *value * scale * weight;
            }
        }
    }
}

/// Normalizes each group of `weight.len()` columns of `values` `[rows, width]`, in place or, where there is one, from
/// `input`.
pub(crate) fn rms_norm(
    level: Level,
    pool: &Pool,
    input: Option<&[f32]>,
    (weight, epsilon): (&[f32], f32),
    values: &mut [f32],
    width: usize,
) {
    super::for_rows(pool, values, width, &|rows, values| {
        if let Some(input) = input {
            values.copy_from_slice(&input[rows.start * width..rows.end * width]);
        }
        level.run(RmsNorm { weight, epsilon, values });
    });
}
