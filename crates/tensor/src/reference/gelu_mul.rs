/// `output = gelu_tanh(gate) · up`, element by element.
pub fn gelu_mul(gate: &[f32], up: &[f32], output: &mut [f32]) {
    assert!(gate.len() == output.len() && up.len() == output.len());
    for (output, (&gate, &up)) in output.iter_mut().zip(gate.iter().zip(up)) {
        *output = (gelu_tanh(f64::from(gate)) * f64::from(up)) as f32;
    }
}

/// The Gaussian error linear unit in its tanh form: `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
///
/// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, arXiv:1606.08415.
pub fn gelu_tanh(x: f64) -> f64 {
    let argument = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + argument.tanh())
}
