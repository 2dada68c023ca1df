//! [`tensor::Op::Rope`].

use tensor::reference::rope_angle;
use tensor::{Op, Scalar};

use crate::bound::UNIT;
use crate::setup::{Outputs, PRECISIONS, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[Case { name: "rope", work: Work::Compare(run) }];

/// Unit roundoffs of an angle that is computed in f32: of the power, the quotient, the product, and the reduction to
/// one turn. At position 5,000 that is 0.001 radians, as in the model's own f32 implementation; f64 does better.
const ANGLE_ROUNDINGS: f64 = 4.0;

/// With the angle off by `a = 4u·(angle + 1)`, each of a pair `(x, y)` errs by
/// `|cos|·e₁ + |sin|·e₂ + (a + 4u)·(|x| + e₁ + |y| + e₂)`.
pub(crate) fn error(
    x: &[f32],
    e: &[f64],
    positions: &[usize],
    head_dim: usize,
    (base, divisor): (f32, f32),
) -> Vec<f64> {
    let (width, half) = (x.len() / positions.len(), head_dim / 2);
    let mut errors = vec![0.0; x.len()];
    for (token, &position) in positions.iter().enumerate() {
        for i in 0..half {
            let angle = rope_angle(position, i, head_dim, base, divisor);
            let (sin, cos) = (angle.sin().abs(), angle.cos().abs());
            let own = ANGLE_ROUNDINGS * UNIT * (angle + 1.0) + 4.0 * UNIT;
            for head in (token * width..(token + 1) * width).step_by(head_dim) {
                let (a, b) = (head + i, head + half + i);
                let size = f64::from(x[a]).abs() + e[a] + f64::from(x[b]).abs() + e[b];
                errors[a] = cos * e[a] + sin * e[b] + own * size;
                errors[b] = sin * e[a] + cos * e[b] + own * size;
            }
        }
    }
    errors
}

fn run(visit: Visit<'_>) -> Result<(), Failure> {
    let shapes = [(64, 1), (64, 5), (96, 3), (128, 4), (128, 1), (256, 1), (256, 4)];
    for (seed, (head_dim, heads)) in shapes.into_iter().enumerate() {
        for (base, divisor) in [(10_000.0, 1.0), (1_000_000.0, 8.0), (1_000_000.0, 1.0)] {
            let mut setup = Setup::new(seed as u64 ^ 0x40);
            let values = setup.input(head_dim * heads, Values::Awkward);
            let (base, position_divisor) = (Scalar(base), Scalar(divisor));
            setup.push(Op::Rope { values, head_dim, base, position_divisor });
            setup.read_copy(values, head_dim * heads);
            setup.pass(&[(0, 0, 70)], Outputs::All);
            setup.pass(&[(0, 70, 1)], Outputs::All);
            setup.pass(&[(0, 2_000, 17)], Outputs::All);
            setup.pass(&[(0, 131_055, 17)], Outputs::All);
            setup.pass(&[(3, 511, 2), (0, 8_191, 1), (2, 0, 5), (1, 1_023, 3)], Outputs::All);
            let label = format!("rope {heads} × {head_dim}, base {}, positions / {divisor}", base.0);
            visit(&setup.finish(label, PRECISIONS))?;
        }
    }
    Ok(())
}
