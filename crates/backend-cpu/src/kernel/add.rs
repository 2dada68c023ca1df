//! `output += input`.

use crate::level::{Level, Vectorized};
use crate::pool::Pool;

struct Add<'a> {
    input: &'a [f32],
    output: &'a mut [f32],
}

impl Vectorized for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (output, input) in self.output.iter_mut().zip(self.input) {
            *output += input;
        }
    }
}

/// Both `[rows, width]`.
pub(crate) fn add(level: Level, pool: &Pool, input: &[f32], output: &mut [f32], width: usize) {
    super::for_rows(pool, output, width, &|rows, output| {
        level.run(Add { input: &input[rows.start * width..rows.end * width], output });
    });
}
