//! [`tensor::Op::SelectOutputs`]: a copy, so every bit counts.

use crate::setup::{Outputs, PRECISIONS, Setup, Values};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[Case { name: "select_outputs", work: Work::Compare(run) }];

fn run(visit: Visit<'_>) -> Result<(), Failure> {
    for (seed, width) in [1, 3, 16, 33, 640].into_iter().enumerate() {
        let mut setup = Setup::new(seed as u64 ^ 0x5e);
        let input = setup.input(width, Values::Awkward);
        setup.read_copy(input, width);
        for tokens in [1, 2, 17, 70] {
            for outputs in [Outputs::All, Outputs::Last, Outputs::Third, Outputs::None] {
                setup.pass(&[(0, 0, tokens)], outputs);
            }
        }
        setup.pass(&[(1, 0, 4), (0, 9, 5)], Outputs::Third);
        visit(&setup.finish(format!("select_outputs [tokens, {width}]"), PRECISIONS))?;
    }
    Ok(())
}
