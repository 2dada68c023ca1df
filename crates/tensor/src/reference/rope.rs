/// Rotary position embedding in place: in each head, element `i` turns with element `i + head_dim/2` by
/// [`rope_angle`].
///
/// `values` is `[tokens, heads · head_dim]`, one position per token.
///
/// Source: Su et al., "RoFormer", 2021, arXiv:2104.09864; the pairing of halves is that of GPT-NeoX.
pub fn rope(values: &mut [f32], positions: &[usize], head_dim: usize, base: f32, position_divisor: f32) {
    let width = values.len() / positions.len();
    for (values, &position) in values.chunks_exact_mut(width).zip(positions) {
        for head in values.chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(head_dim / 2);
            for (i, (a, b)) in first.iter_mut().zip(second).enumerate() {
                let (sin, cos) = rope_angle(position, i, head_dim, base, position_divisor).sin_cos();
                let (x, y) = (f64::from(*a), f64::from(*b));
                *a = (x * cos - y * sin) as f32;
                *b = (x * sin + y * cos) as f32;
            }
        }
    }
}

/// The angle of pair `i` at `position`: `position / position_divisor · base^(-2i/head_dim)`, in radians.
pub fn rope_angle(position: usize, i: usize, head_dim: usize, base: f32, position_divisor: f32) -> f64 {
    let exponent = -2.0 * i as f64 / head_dim as f64;
    position as f64 / f64::from(position_divisor) * f64::from(base).powf(exponent)
}
