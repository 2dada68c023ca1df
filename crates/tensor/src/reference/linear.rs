/// Products that are summed side by side, so that the compiler can use vector instructions.
const LANES: usize = 8;

/// `output = input · weightᵀ`.
///
/// `weight` is `[out, columns]`, `input` is `[rows, columns]`, `output` is `[rows, out]`.
pub fn linear(weight: &[f32], input: &[f32], columns: usize, output: &mut [f32]) {
    let out = weight.len() / columns;
    assert_eq!(input.len() / columns * out, output.len());
    for (input, output) in input.chunks_exact(columns).zip(output.chunks_exact_mut(out)) {
        for (weight, output) in weight.chunks_exact(columns).zip(output) {
            *output = dot(weight, input) as f32;
        }
    }
}

/// `Σ a · b`.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0f64; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    sums.iter().sum::<f64>() + rest
}
