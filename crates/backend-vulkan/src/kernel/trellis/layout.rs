//! Where lanes hold the elements of matrices: products of few columns write weights into a matrix lane by lane.
//!
//! Vulkan leaves that to the driver, so it is found out on the device, with a shader that numbers the elements.

use std::sync::Arc;

use tensor::BackendError;

use crate::commands::{Commands, copy, host_barrier, record_dispatches};
use crate::context::Context;
use crate::dispatch::{Dispatch, Push};
use crate::kernel::kernel;
use crate::memory::{Arena, Place};
use crate::pipeline::Pipelines;

/// Elements of the matrices: of weights, of activations, of the result, and of the result of the smallest numbers.
const ELEMENTS: usize = 16 * 16 + 3 * 16 * 8;

/// Whether elements of matrices of 16 × 8 × 16 lie where `trellis_matvec.comp` and `matvec_matrix.comp` put them, and
/// numbers below the smallest normal one of binary16 are multiplied as they are, which the former needs.
///
/// # Errors
/// A device that fails.
pub(crate) fn is_as_expected(context: &Arc<Context>) -> Result<bool, BackendError> {
    let pipelines = Pipelines::new(context)?;
    let mut commands = Commands::new(context, &context.queue)?;
    let (mut memory, mut downloads) = (Arena::new(context, Place::Device, 0), Arena::new(context, Place::Download, 0));
    let bytes = 4 * ELEMENTS as u64;
    let (target, mut found) = (memory.allocate(bytes, "a test")?, downloads.allocate(bytes, "a test")?);
    let mut kernel = kernel(context.features(), "matrix_layout", vec![]);
    kernel.workgroup = kernel.subgroup;
    let push = Push::default().address(target.address).number(3);
    let dispatch = Dispatch { kernel, push, groups: [1; 3], writes: vec![target.address], ..Dispatch::default() };
    let shared = context.clone();
    commands.once(|buffer| {
        record_dispatches(&shared, &pipelines, buffer, &[dispatch], &mut None)?;
        crate::commands::barrier(&shared, buffer);
        copy(&shared, buffer, target, found, bytes);
        host_barrier(&shared, buffer);
        Ok(())
    })?;
    // SAFETY: the copy is done.
    let found = unsafe { found.bytes_mut() }.expect("mapped memory");
    Ok(bytemuck::cast_slice::<u8, u32>(&found[..4 * ELEMENTS]) == expected())
}

/// The numbers of the elements, row after row: elements of a lane are neighbours.
fn expected() -> Vec<u32> {
    let mut numbers = Vec::with_capacity(ELEMENTS);
    // Lane `4 g + k` has rows `g` and `g + 8`, and two pairs of columns: `2 k` and `2 k + 8`.
    for (row, column) in (0..16).flat_map(|row| (0..16).map(move |column| (row, column))) {
        numbers.push(8 * (row % 8 * 4 + column % 8 / 2) + 4 * (row / 8) + 2 * (column / 8) + column % 2);
    }
    // Column `g`, two pairs of rows.
    for (row, column) in (0..16).flat_map(|row| (0..8).map(move |column| (row, column))) {
        numbers.push(4 * (column * 4 + row % 8 / 2) + 2 * (row / 8) + row % 2);
    }
    // Rows `g` and `g + 8`, a pair of columns.
    for (row, column) in (0..16).flat_map(|row| (0..8).map(move |column| (row, column))) {
        numbers.push(4 * (row % 8 * 4 + column / 2) + 2 * (row / 8) + column % 2);
    }
    numbers.resize(ELEMENTS, 16 * 3);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    #[test]
    fn numbers_are_those_of_all_lanes() {
        let numbers = expected();
        for (matrix, elements) in [(&numbers[..256], 256), (&numbers[256..384], 128), (&numbers[384..512], 128)] {
            let mut sorted = matrix.to_vec();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..elements));
        }
    }

    /// Products with blocks put four weights of a unit, those of places 0 to 3, into each instruction: what they are
    /// multiplied with has to be of the same unit and place, in a row and a column that the result is that of.
    #[test]
    fn lanes_of_a_row_bring_the_same_places_of_the_same_units() {
        let numbers = expected();
        let of_right = |row: usize, column: usize| numbers[256 + 8 * row + column] as usize;
        for (row, inner) in (0..16).flat_map(|row| (0..16).map(move |inner| (row, inner))) {
            let (lane, element) = (numbers[16 * row + inner] as usize / 8, numbers[16 * row + inner] as usize % 8);
            assert_eq!(row, lane / 4 + 8 * (element / 4), "the row that the lane decodes");
            for column in 0..8 {
                let (other, place) = (of_right(inner, column) / 4, of_right(inner, column) % 4);
                assert_eq!((column, lane % 4, element % 4), (other / 4, other % 4, place));
                let result = numbers[384 + 8 * row + column] as usize;
                let (lane, element) = (result / 4, result % 4);
                assert_eq!((row, column), (lane / 4 + 8 * (element / 2), 2 * (lane % 4) + element % 2));
            }
        }
    }

    /// A device that multiplies such matrices but is not used for it is worth a look.
    #[test]
    fn devices_with_such_matrices_are_used() {
        let Some(lab) = Lab::for_tests() else { return };
        if lab.features().matrix_16x8 {
            assert!(lab.features().matrix_layout, "{} holds elements elsewhere", lab.features().name);
        }
    }
}
