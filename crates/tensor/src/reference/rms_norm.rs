/// Root-mean-square normalization of each group of `weight.len()` elements: `x / √(mean(x²) + epsilon) · weight`.
///
/// `input` and `output` are `[rows, weight.len() · groups]`.
///
/// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
pub fn rms_norm(input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
    assert_eq!(input.len(), output.len());
    for (input, output) in input.chunks_exact(weight.len()).zip(output.chunks_exact_mut(weight.len())) {
        let squares: f64 = input.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let inverse = 1.0 / (squares / weight.len() as f64 + f64::from(epsilon)).sqrt();
        for (output, (&x, &weight)) in output.iter_mut().zip(input.iter().zip(weight)) {
            *output = (f64::from(x) * inverse * f64::from(weight)) as f32;
        }
    }
}
