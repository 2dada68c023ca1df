//! [`tensor::Op::Embed`]: a decoded row times a scale.

use tensor::{DType, Op, Rows, Scalar};

use crate::bound::UNIT;
use crate::setup::{Outputs, PRECISIONS, Setup, VOCABULARY};
use crate::{Case, Failure, Visit, Work};

pub(crate) const CASES: &[Case] = &[Case { name: "embed", work: Work::Compare(run) }];

/// Products of a binary16 scale, an integer scale and a quantized value fit in f32's 24 bits, so that decoding rounds
/// at most once, when a minimum is taken off; multiplying by `scale` rounds once more. Where the backend puts `scale`
/// into the block's scale and minimum first, each term rounds up to three times: `4·u·(|d·q| + |m·z|)·scale`.
/// A plain float times 1 is exact.
pub(crate) fn error(dtype: DType, magnitudes: &[f32], hidden: usize, tokens: &[u32], scale: f32) -> Vec<f64> {
    let exact = scale == 1.0 && dtype.block_len() == 1;
    let factor = if exact { 0.0 } else { 4.0 * UNIT * f64::from(scale.abs()) };
    let row = |&token: &u32| &magnitudes[token as usize * hidden..][..hidden];
    tokens.iter().flat_map(row).map(|&magnitude| factor * f64::from(magnitude)).collect()
}

fn run(visit: Visit<'_>) -> Result<(), Failure> {
    for dtype in DType::ALL {
        let columns: &[usize] = match dtype.block_len() {
            1 => &[1, 7, 33, 64, 640],
            32 => &[32, 96, 160, 640],
            _ => &[256, 768, 1280],
        };
        for (index, &hidden) in columns.iter().enumerate() {
            let mut setup = Setup::new(index as u64 ^ 0xe3);
            let scale = if index == 0 { 1.0 } else { (hidden as f32).sqrt() };
            let table = setup.weight(dtype, VOCABULARY, hidden);
            let output = setup.scratch(Rows::Tokens, hidden);
            setup.push(Op::Embed { table, scale: Scalar(scale), output });
            setup.read(output);
            setup.passes_of(&[1, 2, 17, 70]);
            setup.pass(&[(2, 5, 3), (0, 0, 1), (1, 40, 7)], Outputs::None);
            visit(&setup.finish(format!("embed {dtype} [{VOCABULARY}, {hidden}] · {scale}"), PRECISIONS))?;
        }
    }
    Ok(())
}
