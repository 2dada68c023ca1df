//! Embedding lookup.

use crate::level::Level;
use crate::pool::Pool;
use crate::weight::Weight;

/// `output[t] = table[token[t]] · scale`.
pub(crate) fn embed(
    level: Level,
    pool: &Pool,
    table: &Weight,
    tokens: &[u32],
    scale: f32,
    output: &mut [f32],
    width: usize,
) {
    super::for_rows(pool, output, width, &|rows, output| {
        for (&token, row) in tokens[rows].iter().zip(output.chunks_exact_mut(width)) {
            table.decode_row(level, token as usize, row);
            row.iter_mut().for_each(|value| *value *= scale);
        }
    });
}
