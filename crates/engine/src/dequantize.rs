//! Trellis weights as matrices in F16, for devices that don't multiply them as they are.
//!
//! One weight at a time is decoded, when the device asks for it, in blocks of 128 rows: besides the matrix, each thread
//! has one block of it in f32.

use std::sync::{Mutex, PoisonError};
use std::thread;

use checkpoint::Checkpoint;
use tensor::format::trellis::Linear;
use tensor::format::trellis::hadamard::BLOCK;
use tensor::{DType, WeightBytes, WeightError};

use crate::SourceTensor;

/// Bytes of a number.
const F16_BYTES: usize = 2;

/// Magnitudes from here on are rounded to infinity.
const F16_LIMIT: f32 = 65_520.0;

/// The matrix `[rows, columns]` of a trellis weight, without the padding, in F16.
///
/// # Errors
/// A weight that is beyond the numbers of F16.
pub(crate) fn open(checkpoint: &Checkpoint, tensor: &SourceTensor) -> Result<Vec<u8>, WeightError> {
    let linear = checkpoint.linear(&tensor.name)?;
    let (rows, columns) = (tensor.entry.rows, tensor.entry.columns);
    let mut matrix = vec![0; rows * columns * F16_BYTES];
    let blocks = Mutex::new(matrix.chunks_mut(BLOCK * columns * F16_BYTES).enumerate());
    let next = || blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut values = vec![0.0; BLOCK * linear.inputs()];
        while let Some((block, into)) = next() {
            decode(&linear, block, columns, &mut values, into)?;
        }
        Ok::<(), String>(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(rows.div_ceil(BLOCK));
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let outcomes =
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        // The calling thread works too, before it waits.
        std::iter::once(work()).chain(outcomes).collect::<Result<(), String>>()
    })?;
    let tiles = checkpoint.tiles(&tensor.name)?;
    tiles.release(0..tiles.bytes().len());
    Ok(matrix)
}

/// The rows of one block that are no padding.
fn decode(
    linear: &Linear<'_>,
    block: usize,
    columns: usize,
    values: &mut [f32],
    into: &mut [u8],
) -> Result<(), String> {
    linear.dequantize_block(block, values);
    let rows = values.chunks_exact(linear.inputs()).zip(into.chunks_exact_mut(columns * F16_BYTES));
    for (row, (values, into)) in rows.enumerate() {
        let values = &values[..columns];
        let beyond = |value: &&f32| value.is_nan() || value.abs() >= F16_LIMIT;
        if let Some(value) = values.iter().find(beyond) {
            let row = block * BLOCK + row;
            return Err(format!("a weight of row {row} is {value}, expected less than {F16_LIMIT} for F16"));
        }
        DType::F16.codec().encode(values, into).map_err(|error| error.to_string())?;
    }
    Ok(())
}
