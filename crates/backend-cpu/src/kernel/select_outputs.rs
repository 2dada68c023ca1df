//! Picks the rows whose outputs were asked for.

/// `output[i] = input[rows[i]]`, rows of `width` elements.
pub(crate) fn select_outputs(input: &[f32], rows: &[u32], output: &mut [f32], width: usize) {
    for (&row, output) in rows.iter().zip(output.chunks_exact_mut(width)) {
        output.copy_from_slice(&input[row as usize * width..][..width]);
    }
}
