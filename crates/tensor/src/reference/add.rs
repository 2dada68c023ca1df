/// `output += input`, element by element.
pub fn add(input: &[f32], output: &mut [f32]) {
    assert_eq!(input.len(), output.len());
    for (output, input) in output.iter_mut().zip(input) {
        *output += input;
    }
}
