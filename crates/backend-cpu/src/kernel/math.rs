//! Elementary functions as plain arithmetic, so that loops over them become vectors.

use crate::level::multiply_add;

/// eˣ to about 2 units in the last place; 0 below −87 and e⁸⁸ above 88.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; eʳ by its Taylor polynomial of degree 6 (remainder < 2·10⁻⁸ relative), times
/// 2ⁿ put together from its bits.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with few enough bits for an exact product with n.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = multiply_add::<FMA>(clamped, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = multiply_add::<FMA>(n, -LN2_HIGH, clamped);
    let r = multiply_add::<FMA>(n, -LN2_LOW, r);
    let mut sum = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = multiply_add::<FMA>(sum, r, coefficient);
    }
    let exponent = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32) + 127;
    let power = f32::from_bits((exponent << 23) as u32);
    if x < -87.0 { 0.0 } else { sum * power }
}

/// `Σ a·b` with 64 running sums in four vectors, as a multiply-add takes four cycles.
#[inline(always)]
pub(crate) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let (mut first, mut second, mut third, mut fourth) = ([0.0; 16], [0.0; 16], [0.0; 16], [0.0; 16]);
    let (a_vectors, b_vectors) = (a.chunks_exact(64), b.chunks_exact(64));
    let (a_rest, b_rest) = (a_vectors.remainder(), b_vectors.remainder());
    for (a, b) in a_vectors.zip(b_vectors) {
        add_16::<FMA>(&a[..16], &b[..16], &mut first);
        add_16::<FMA>(&a[16..32], &b[16..32], &mut second);
        add_16::<FMA>(&a[32..48], &b[32..48], &mut third);
        add_16::<FMA>(&a[48..], &b[48..], &mut fourth);
    }
    for (index, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        first[index % 16] = multiply_add::<FMA>(*a, *b, first[index % 16]);
    }
    for lane in 0..16 {
        first[lane] = (first[lane] + second[lane]) + (third[lane] + fourth[lane]);
    }
    reduce(first)
}

/// [`dot`] of one vector with each of four that lie one behind the other.
#[inline(always)]
pub(crate) fn dots<const FMA: bool>(a: &[f32], four: &[f32]) -> [f32; 4] {
    let (first, rest) = four.split_at(a.len());
    let (second, rest) = rest.split_at(a.len());
    let (third, fourth) = rest.split_at(a.len());
    let vectors = [first, second, third, fourth];
    let mut sums = [[0.0; 16]; 4];
    let whole = a.len() / 16 * 16;
    for start in (0..whole).step_by(16) {
        for (vector, sums) in vectors.iter().zip(&mut sums) {
            add_16::<FMA>(&a[start..start + 16], &vector[start..start + 16], sums);
        }
    }
    for index in whole..a.len() {
        for (vector, sums) in vectors.iter().zip(&mut sums) {
            sums[index - whole] = multiply_add::<FMA>(a[index], vector[index], sums[index - whole]);
        }
    }
    sums.map(reduce)
}

#[inline(always)]
fn add_16<const FMA: bool>(a: &[f32], b: &[f32], sums: &mut [f32; 16]) {
    for lane in 0..16 {
        sums[lane] = multiply_add::<FMA>(a[lane], b[lane], sums[lane]);
    }
}

/// The sum of 16 numbers, by halves.
#[inline(always)]
pub(crate) fn reduce(mut sums: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::{dot, dots, exp};

    #[test]
    fn four_products_at_once_are_those_one_by_one() {
        for width in [1, 15, 16, 64, 128, 133] {
            let values: Vec<f32> = (0..5 * width).map(|index| ((index * 7919) % 101) as f32 / 16.0 - 3.0).collect();
            let (a, four) = values.split_at(width);
            let expected: Vec<f32> = four.chunks(width).map(|vector| dot::<false>(a, vector)).collect();
            for (found, expected) in dots::<false>(a, four).into_iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-3 * (1.0 + expected.abs()), "{width}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn exp_is_accurate_over_its_range() {
        for step in -8_700..=8_800 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            let relative = (f64::from(exp::<false>(x)) - expected).abs() / expected;
            assert!(relative < 4e-7, "{x}: off by {relative}");
        }
        assert_eq!(exp::<false>(-1000.0), 0.0);
        assert_eq!(exp::<false>(f32::NEG_INFINITY), 0.0);
    }
}
