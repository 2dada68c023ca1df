/// `output[t] = table[tokens[t]] · scale`.
///
/// `table` is `[vocabulary, hidden]`, `output` is `[tokens, hidden]`.
///
/// # Panics
/// If a token is not in the table.
pub fn embed(table: &[f32], tokens: &[u32], scale: f32, output: &mut [f32]) {
    let hidden = output.len() / tokens.len();
    for (&token, output) in tokens.iter().zip(output.chunks_exact_mut(hidden)) {
        let row = &table[token as usize * hidden..][..hidden];
        for (output, value) in output.iter_mut().zip(row) {
            *output = value * scale;
        }
    }
}
