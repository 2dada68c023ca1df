//! `gelu(gate) · up`, with GELU's tanh approximation (Hendrycks & Gimpel 2016, arXiv 1606.08415).

use crate::kernel::math::exp;
use crate::level::{Level, Vectorized, multiply_add};
use crate::pool::Pool;

struct GeluMul<'a> {
    up: &'a [f32],
    gate: &'a mut [f32],
}

impl Vectorized for GeluMul<'_> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (gate, up) in self.gate.iter_mut().zip(self.up) {
            *gate = gelu::<FMA>(*gate) * up;
        }
    }
}

/// `x/2 · (1 + tanh u)` with `u = √(2/π) · (x + 0.044715 x³)`, which is `x / (1 + e^(−2u))`.
#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> f32 {
    const SCALE: f32 = 1.595_769_2;
    let twice_u = SCALE * x * multiply_add::<FMA>(0.044_715 * x, x, 1.0);
    x / (1.0 + exp::<FMA>(-twice_u))
}

/// `gate = gelu(gate) · up`, both `[rows, width]`.
pub(crate) fn gelu_mul(level: Level, pool: &Pool, gate: &mut [f32], up: &[f32], width: usize) {
    super::for_rows(pool, gate, width, &|rows, gate| {
        level.run(GeluMul { up: &up[rows.start * width..rows.end * width], gate });
    });
}
