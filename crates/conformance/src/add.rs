//! [`tensor::Op::Add`]: exact but for one rounding.

use tensor::{Op, Rows};

use crate::bound::UNIT;
use crate::setup::{Outputs, PRECISIONS, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[Case { name: "add", work: Work::Compare(run) }];

/// `e₁ + e₂ + u·|x₁ + x₂|`, the rounding that of the erroneous sum.
pub(crate) fn error((a, ea): (&[f32], &[f64]), (b, eb): (&[f32], &[f64])) -> Vec<f64> {
    (0..a.len())
        .map(|index| {
            let come_in = ea[index] + eb[index];
            let sum = f64::from(a[index]) + f64::from(b[index]);
            come_in + 2.0 * UNIT * (sum.abs() + come_in)
        })
        .collect()
}

fn run(visit: Visit<'_>) -> Result<(), Failure> {
    for (seed, width) in [1, 3, 7, 16, 33, 128, 640, 1153].into_iter().enumerate() {
        let mut setup = Setup::new(seed as u64);
        let input = setup.input(width, Values::Awkward);
        let output = setup.input(width, Values::Awkward);
        setup.push(Op::Add { input, output });
        // Twice more, so that nothing but the sum of all three can be left; once on output rows.
        setup.push(Op::Add { input, output });
        let (selected, other) = (setup.scratch(Rows::Outputs, width), setup.scratch(Rows::Outputs, width));
        setup.push(Op::SelectOutputs { input: output, output: selected });
        setup.push(Op::SelectOutputs { input, output: other });
        setup.push(Op::Add { input: other, output: selected });
        setup.read(selected);
        setup.passes_of(&[1, 2, 3, 5, 8, 15, 16, 17, 33, 70, 1]);
        setup.pass(&[(0, 0, 17)], Outputs::Third);
        visit(&setup.finish(format!("add [rows, {width}]"), PRECISIONS))?;
    }
    Ok(())
}
