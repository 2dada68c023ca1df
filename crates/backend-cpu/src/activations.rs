//! Activations rounded to 8 bits for integer dot products.

use crate::aligned::Aligned;
use crate::level::{Level, Vectorized};
use crate::panel::BLOCK;
use crate::pool::Pool;

/// More rows than fit one call of a vector kernel are padded to a multiple of this, for kernels that take 16 at once.
pub(crate) const ROW_MULTIPLE: usize = 16;

/// Rows of activations in blocks of 32 columns: `value ≈ scale · q`, `scale = max|value| / 127`.
pub(crate) struct Activations {
    /// Rows in use.
    pub(crate) rows: usize,
    /// Columns.
    pub(crate) columns: usize,
    /// Distance in [`Activations::scales`] and [`Activations::sums`] from one block to the next.
    pub(crate) stride: usize,
    /// `[row][column]`.
    pub(crate) quants: Aligned<i8>,
    /// `[block][row]`.
    pub(crate) scales: Aligned<f32>,
    /// Sums of the quants over half blocks, `[block][half][row]`.
    pub(crate) sums: Aligned<i32>,
    /// Rows that there is room for, padding included.
    capacity: usize,
    columns_max: usize,
}

impl Activations {
    /// Room for `rows` rows of up to `columns` columns.
    pub(crate) fn new(rows: usize, columns: usize) -> Self {
        let stride = padded(rows);
        let blocks = columns.div_ceil(BLOCK);
        Activations {
            rows: 0,
            columns: 0,
            stride,
            // Tiles of 64 bytes may be read past the last row.
            quants: Aligned::new(stride * blocks * BLOCK + 64),
            scales: Aligned::new(stride * blocks),
            sums: Aligned::new(2 * stride * blocks),
            capacity: stride,
            columns_max: columns,
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.quants.len() + 4 * self.scales.len() + 4 * self.sums.len()
    }

    /// The quants of one row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[i8] {
        &self.quants[row * self.columns..(row + 1) * self.columns]
    }

    /// Rounds `values` `[rows, columns]`.
    pub(crate) fn quantize(&mut self, level: Level, pool: &Pool, values: &[f32], columns: usize) {
        let rows = values.len() / columns;
        self.stride = padded(rows);
        assert!(self.stride <= self.capacity && columns <= self.columns_max && columns.is_multiple_of(BLOCK));
        self.rows = rows;
        self.columns = columns;
        let target = Target {
            quants: self.quants.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            stride: self.stride,
            columns,
        };
        pool.for_ranges(rows, rows.div_ceil(pool.threads()).max(4), &|range| {
            for row in range {
                level.run(QuantizeRow { target: &target, row, values: &values[row * columns..(row + 1) * columns] });
            }
        });
        // Kernels that take 16 rows multiply the padding too. What comes out is dropped, but scales left over from an
        // earlier batch could overflow.
        for block in 0..columns / BLOCK {
            self.scales[block * self.stride + rows..(block + 1) * self.stride].fill(0.0);
        }
    }
}

/// Rows with padding.
fn padded(rows: usize) -> usize {
    if rows <= crate::isa::TOKENS { rows } else { rows.next_multiple_of(ROW_MULTIPLE) }
}

/// Where a row goes: threads write different rows of the same arrays.
struct Target {
    quants: *mut i8,
    scales: *mut f32,
    sums: *mut i32,
    stride: usize,
    columns: usize,
}

// SAFETY: used by `Activations::quantize` alone, which gives each row to one thread.
unsafe impl Sync for Target {}

struct QuantizeRow<'a> {
    target: &'a Target,
    row: usize,
    values: &'a [f32],
}

impl Vectorized for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let target = self.target;
        for (block, values) in self.values.chunks_exact(BLOCK).enumerate() {
            let values: &[f32; BLOCK] = values.try_into().expect("chunks of that length");
            let (quants, scale) = quantize_block(values);
            let mut halves = [0i32; 2];
            for (index, &quant) in quants.iter().enumerate() {
                halves[index / (BLOCK / 2)] += i32::from(quant);
            }
            // SAFETY: `row` is below the stride and `block` below the blocks that the arrays were made for; no other
            // thread has this row.
            unsafe {
                let at = target.quants.add(self.row * target.columns + block * BLOCK);
                at.cast::<[i8; BLOCK]>().write_unaligned(quants);
                target.scales.add(block * target.stride + self.row).write(scale);
                target.sums.add(2 * block * target.stride + self.row).write(halves[0]);
                target.sums.add((2 * block + 1) * target.stride + self.row).write(halves[1]);
            }
        }
    }
}

/// Rounds one block to the nearest multiples of `max|value| / 127`.
#[inline(always)]
fn quantize_block(values: &[f32; BLOCK]) -> ([i8; BLOCK], f32) {
    // Eight running maxima, so that the loop is vectors and not one long chain.
    let mut maxima = [0.0f32; 8];
    for eight in values.chunks_exact(8) {
        for lane in 0..8 {
            maxima[lane] = if eight[lane].abs() > maxima[lane] { eight[lane].abs() } else { maxima[lane] };
        }
    }
    let largest = maxima.iter().fold(0.0f32, |a, &b| if b > a { b } else { a });
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    // A subnormal maximum has no finite inverse: its block is zero.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    let mut quants = [0i8; BLOCK];
    for index in 0..BLOCK {
        quants[index] = round_to_i32(values[index] * inverse) as i8;
    }
    (quants, if inverse > 0.0 { largest / 127.0 } else { 0.0 })
}

/// Rounds |x| ≤ 2²² to the nearest integer, ties to even, with an addition that every vector unit has: beside
/// 1.5 · 2²³ a float has no room for a fraction.
#[inline(always)]
fn round_to_i32(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32
}
