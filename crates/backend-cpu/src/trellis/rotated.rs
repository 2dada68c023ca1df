//! Inputs as the tiles see them: scaled, rotated, rounded, and in the order of the tiles' inputs.

use tensor::format::trellis::SIDE;

use super::{QUAD, UNIT};
use crate::aligned::Aligned;
use crate::level::{Level, Vectorized};
use crate::pool::Pool;

/// The largest rounded activation. The sum of 128 products with codes that are at most 2,048 away from their zero is
/// below 2³¹.
const LARGEST: f32 = 8_191.0;

/// The same for activations of 8 bits.
const LARGEST_BYTE: f32 = 127.0;

/// Blocks that a thread takes at once: below, handing them out costs more than the work.
const BLOCKS_MIN: usize = 16;

/// Rows of rotated activations, in blocks of 128 inputs, each in the order `[half 2][input of the tile 16][tile 4]`.
pub(crate) struct Rotated {
    /// Rows in use.
    pub(crate) rows: usize,
    /// Blocks of a row in use.
    pub(crate) blocks: usize,
    /// `[row][block][128]`: `value ≈ scale · quant`. Not used if nothing is to be rounded.
    pub(crate) quants: Aligned<i16>,
    /// `[row][block]`.
    pub(crate) scales: Aligned<f32>,
    /// Sums of the quants, `[row][block]`.
    pub(crate) sums: Aligned<i32>,
    /// The only row once more in 8 bits, if it is one and the level's kernels for one row take that.
    bytes: Option<RotatedBytes>,
    /// `[row][block][128]`, only there if nothing is to be rounded.
    pub(crate) values: Aligned<f32>,
    exact: bool,
}

/// A row of 8-bit activations.
pub(crate) struct RotatedBytes {
    /// `[block][128]`, each in both bytes: `value ≈ scale · quant`.
    pub(crate) quants: Aligned<i16>,
    /// `[block]`.
    pub(crate) scales: Aligned<f32>,
    /// Sums of the quants, `[block]`.
    pub(crate) sums: Aligned<i32>,
    /// Whether they are those of the row that was rotated last.
    fresh: bool,
}

impl Rotated {
    /// Room for `rows` rows of up to `columns` columns, exact or rounded.
    pub(crate) fn new(rows: usize, columns: usize, exact: bool) -> Self {
        let blocks = rows * columns.div_ceil(UNIT);
        let (exact_blocks, rounded_blocks) = if exact { (blocks, 0) } else { (0, blocks) };
        Rotated {
            rows: 0,
            blocks: 0,
            quants: Aligned::new(rounded_blocks * UNIT),
            scales: Aligned::new(rounded_blocks),
            sums: Aligned::new(rounded_blocks),
            bytes: (!exact && Level::available().into_iter().any(super::takes_bytes)).then(|| {
                let blocks = columns.div_ceil(UNIT);
                let (quants, scales, sums) = (Aligned::new(blocks * UNIT), Aligned::new(blocks), Aligned::new(blocks));
                RotatedBytes { quants, scales, sums, fresh: false }
            }),
            values: Aligned::new(exact_blocks * UNIT),
            exact,
        }
    }

    /// Whether nothing is rounded.
    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }

    /// The only row in 8 bits, if it is there.
    pub(crate) fn as_bytes(&self) -> Option<&RotatedBytes> {
        self.bytes.as_ref().filter(|bytes| bytes.fresh)
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let bytes = self.bytes.as_ref().map_or(0, |bytes| 2 * bytes.quants.len() + 8 * bytes.scales.len());
        bytes + 2 * self.quants.len() + 4 * (self.scales.len() + self.sums.len() + self.values.len())
    }

    /// Rotates `values` `[rows, columns]` under the scales `suh`, whose length is `columns` padded to a multiple of
    /// 128.
    ///
    /// # Panics
    /// If there is no room for them.
    pub(crate) fn rotate(&mut self, level: Level, pool: &Pool, values: &[f32], columns: usize, suh: &[f32]) {
        let (rows, blocks, exact) = (values.len() / columns, suh.len() / UNIT, self.is_exact());
        assert_eq!(suh.len(), columns.next_multiple_of(UNIT), "a scale for each input");
        let room = if exact { self.values.len() } else { self.quants.len() };
        assert!(rows * suh.len() <= room, "no room for {rows} rows of {columns} activations");
        (self.rows, self.blocks) = (rows, blocks);
        let takes_bytes = super::takes_bytes(level);
        let bytes = self.bytes.as_mut().map(|bytes| {
            bytes.fresh = rows == 1 && takes_bytes;
            (bytes.quants.as_mut_ptr(), bytes.scales.as_mut_ptr(), bytes.sums.as_mut_ptr())
        });
        let target = Target {
            bytes: bytes.filter(|_| rows == 1 && takes_bytes),
            quants: self.quants.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
            exact,
        };
        let grain = (rows * blocks).div_ceil(4 * pool.threads()).max(BLOCKS_MIN);
        pool.for_ranges(rows * blocks, grain, &|range| {
            for index in range {
                let (row, start) = (index / blocks, index % blocks * UNIT);
                let end = columns.min(start + UNIT);
                let (values, suh) = (&values[row * columns + start..row * columns + end], &suh[start..start + UNIT]);
                level.run(RotateBlock { target: &target, index, values, suh });
            }
        });
    }
}

/// Where blocks go: threads write different ones.
struct Target {
    /// Quants, scales and sums of 8 bits.
    bytes: Option<(*mut i16, *mut f32, *mut i32)>,
    quants: *mut i16,
    scales: *mut f32,
    sums: *mut i32,
    values: *mut f32,
    exact: bool,
}

// SAFETY: used by `Rotated::rotate` alone, which gives each block to one thread.
unsafe impl Sync for Target {}

struct RotateBlock<'a> {
    target: &'a Target,
    index: usize,
    values: &'a [f32],
    suh: &'a [f32],
}

impl Vectorized for RotateBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let mut block = [0.0; UNIT];
        for (into, (value, scale)) in block.iter_mut().zip(self.values.iter().zip(self.suh)) {
            *into = value * scale;
        }
        rotate_block(&mut block);
        let ordered = in_order_of_tiles(&block);
        let (target, index) = (self.target, self.index);
        // SAFETY: `Rotated::rotate` has checked that there is room for all blocks; no other thread has this one.
        unsafe {
            if target.exact {
                target.values.add(index * UNIT).cast::<[f32; UNIT]>().write_unaligned(ordered);
            } else {
                let (quants, scale, sum) = quantize(&ordered, LARGEST);
                target.quants.add(index * UNIT).cast::<[i16; UNIT]>().write_unaligned(quants);
                target.scales.add(index).write(scale);
                target.sums.add(index).write(sum);
                if let Some((all_quants, scales, sums)) = target.bytes {
                    let (mut quants, scale, sum) = quantize(&ordered, LARGEST_BYTE);
                    quants.iter_mut().for_each(|quant| *quant = (*quant & 0xff) | (*quant << 8));
                    all_quants.add(index * UNIT).cast::<[i16; UNIT]>().write_unaligned(quants);
                    scales.add(index).write(scale);
                    sums.add(index).write(sum);
                }
            }
        }
    }
}

/// `H · block`, as `tensor::format::trellis::hadamard` defines it, in loops that become vectors.
#[inline(always)]
pub(crate) fn rotate_block(block: &mut [f32; UNIT]) {
    const SCALE: f32 = 0.088_388_346;
    let rows: &mut [[f32; 8]; 16] = bytemuck::cast_mut(block);
    for distance in [1, 2, 4, 8] {
        for low in (0..16).filter(|row| row & distance == 0) {
            for lane in 0..8 {
                let (a, b) = (rows[low][lane], rows[low + distance][lane]);
                (rows[low][lane], rows[low + distance][lane]) = (a + b, a - b);
            }
        }
    }
    for row in rows {
        for distance in [1, 2, 4] {
            let (values, mut next) = (*row, [0.0; 8]);
            for lane in 0..8 {
                let sign = if lane & distance == 0 { 1.0 } else { -1.0 };
                next[lane] = values[lane ^ distance] + sign * values[lane];
            }
            *row = next;
        }
        row.iter_mut().for_each(|value| *value *= SCALE);
    }
}

/// From `[tile 8][input 16]` to `[half 2][input 16][tile 4]`.
#[inline(always)]
fn in_order_of_tiles(block: &[f32; UNIT]) -> [f32; UNIT] {
    let mut ordered = [0.0; UNIT];
    for (half, ordered) in ordered.chunks_exact_mut(UNIT / 2).enumerate() {
        for (input, ordered) in ordered.chunks_exact_mut(QUAD).enumerate() {
            for (tile, value) in ordered.iter_mut().enumerate() {
                *value = block[(half * QUAD + tile) * SIDE + input];
            }
        }
    }
    ordered
}

/// Rounds to the nearest multiples of `max|value| / most`; gives them, that step, and their sum.
#[inline(always)]
fn quantize(values: &[f32; UNIT], most: f32) -> ([i16; UNIT], f32, i32) {
    const MAGIC: f32 = 12_582_912.0;
    // Eight running maxima, so that the loop is vectors and not one long chain.
    let mut maxima = [0.0f32; 8];
    for eight in values.chunks_exact(8) {
        for lane in 0..8 {
            maxima[lane] = if eight[lane].abs() > maxima[lane] { eight[lane].abs() } else { maxima[lane] };
        }
    }
    let largest = maxima.iter().fold(0.0f32, |a, &b| if b > a { b } else { a });
    let inverse = if largest > 0.0 { most / largest } else { 0.0 };
    // A subnormal maximum has no finite inverse: its block is zero.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    let (mut quants, mut sum) = ([0i16; UNIT], 0);
    for (quant, value) in quants.iter_mut().zip(values) {
        // Beside 1.5 · 2²³ a float has no room for a fraction: the addition rounds.
        let rounded = ((value * inverse + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
        *quant = rounded as i16;
        sum += i32::from(rounded as i16);
    }
    (quants, if inverse > 0.0 { largest / most } else { 0.0 }, sum)
}

#[cfg(test)]
mod tests {
    use tensor::format::trellis::hadamard;

    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 7919 % 2003) as f32 - 1001.0) / 500.0).collect()
    }

    #[test]
    fn a_block_is_rotated_as_the_format_says() {
        let values = numbers(UNIT);
        let mut block: [f32; UNIT] = values.clone().try_into().unwrap();
        rotate_block(&mut block);
        let mut expected = values;
        hadamard::rotate(&mut expected);
        for (a, b) in block.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-5, "{a} instead of {b}");
        }
    }

    #[test]
    fn rounded_rows_are_the_exact_ones_to_half_a_step() {
        let (pool, columns) = (Pool::new(2), 200);
        let (input, suh) = (numbers(3 * columns), numbers(256));
        for level in Level::available() {
            let (mut exact, mut rounded) = (Rotated::new(3, columns, true), Rotated::new(3, columns, false));
            exact.rotate(level, &pool, &input, columns, &suh);
            rounded.rotate(level, &pool, &input, columns, &suh);
            for block in 0..6 {
                let (quants, scale) = (&rounded.quants[block * UNIT..][..UNIT], rounded.scales[block]);
                assert_eq!(rounded.sums[block], quants.iter().map(|&quant| i32::from(quant)).sum());
                for (&quant, value) in quants.iter().zip(&exact.values[block * UNIT..]) {
                    assert!((f32::from(quant) * scale - value).abs() <= 0.5001 * scale, "{level}, block {block}");
                }
            }
        }
    }

    #[test]
    fn blocks_of_zeros_and_of_tiny_numbers_are_zero() {
        for value in [0.0, 1e-44] {
            let (quants, scale, sum) = quantize(&[value; UNIT], LARGEST);
            assert_eq!((quants, scale, sum), ([0; UNIT], 0.0, 0));
        }
    }
}
