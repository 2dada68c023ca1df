/// Copies the rows `outputs` of `input` `[tokens, width]` to `output` `[outputs.len(), width]`.
pub fn select_outputs(input: &[f32], outputs: &[u32], width: usize, output: &mut [f32]) {
    assert_eq!(output.len(), outputs.len() * width);
    for (&row, output) in outputs.iter().zip(output.chunks_exact_mut(width)) {
        output.copy_from_slice(&input[row as usize * width..][..width]);
    }
}
