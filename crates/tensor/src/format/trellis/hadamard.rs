//! Rotations by the Hadamard matrix of 128 × 128, in blocks along a vector.
//!
//! The matrix is Sylvester's: `H[i][j] = (−1)^(ones of i & j) / √128`. It is symmetric and its own inverse, so the same
//! function rotates there and back.

use std::ops::{Add, Sub};

/// Elements that are rotated together.
pub const BLOCK: usize = 128;

/// `1 / √128`.
const SCALE: f32 = 0.088_388_346;

/// Rotates each block of 128 elements.
///
/// # Panics
/// If `values` is no whole number of blocks.
pub fn rotate(values: &mut [f32]) {
    let (blocks, rest) = values.as_chunks_mut::<BLOCK>();
    assert!(rest.is_empty(), "{} elements are no whole number of blocks of {BLOCK}", BLOCK * blocks.len() + rest.len());
    for block in blocks {
        rotate_rows(block, 1);
    }
}

/// Rotates the columns of a matrix `[128, width]`.
///
/// # Panics
/// If `values` are not 128 rows of that width.
pub fn rotate_rows(values: &mut [f32], width: usize) {
    sum_and_subtract_rows(values, width);
    for value in values {
        *value *= SCALE;
    }
}

/// [`rotate_rows`] without its scale, √128: all sums and differences of the rows, in any precision.
///
/// # Panics
/// If `values` are not 128 rows of that width.
pub fn sum_and_subtract_rows<T: Copy + Add<Output = T> + Sub<Output = T>>(values: &mut [T], width: usize) {
    assert_eq!(values.len(), BLOCK * width, "{BLOCK} rows of {width}");
    let mut distance = width;
    while distance < values.len() {
        for pair in values.chunks_exact_mut(2 * distance) {
            let (low, high) = pair.split_at_mut(distance);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        distance *= 2;
    }
}

/// What an input goes through before it is multiplied with the decoded tiles: `H (scales · values)`.
///
/// # Panics
/// If the lengths differ, or are no whole number of blocks.
pub fn scale_and_rotate(values: &mut [f32], scales: &[f32]) {
    assert_eq!(values.len(), scales.len(), "one scale for each element");
    for (value, scale) in values.iter_mut().zip(scales) {
        *value *= scale;
    }
    rotate(values);
}

/// What an output goes through after that: `scales · (H values)`.
///
/// # Panics
/// If the lengths differ, or are no whole number of blocks.
pub fn rotate_and_scale(values: &mut [f32], scales: &[f32]) {
    assert_eq!(values.len(), scales.len(), "one scale for each element");
    rotate(values);
    for (value, scale) in values.iter_mut().zip(scales) {
        *value *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_vector_becomes_its_row_of_the_matrix() {
        for row in [0, 1, 5, 77, 127] {
            let mut values = [0.0; BLOCK];
            values[row] = 1.0;
            rotate(&mut values);
            for (column, value) in values.into_iter().enumerate() {
                let sign = if (row & column).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
                assert_eq!(value, sign * SCALE, "{row}, {column}");
            }
        }
        assert_eq!(SCALE, 128f64.sqrt().recip() as f32);
    }

    #[test]
    fn rows_are_rotated_as_blocks_are() {
        let matrix: Vec<f32> = (0..BLOCK * 3).map(|index| ((index * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let mut rotated = matrix.clone();
        rotate_rows(&mut rotated, 3);
        for column in 0..3 {
            let mut block: Vec<f32> = (0..BLOCK).map(|row| matrix[row * 3 + column]).collect();
            rotate(&mut block);
            for row in 0..BLOCK {
                assert_eq!(rotated[row * 3 + column], block[row]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "129 elements are no whole number of blocks")]
    fn other_lengths_panic() {
        rotate(&mut [0.0; 129]);
    }
}
