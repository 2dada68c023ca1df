//! Linear layers and embeddings whose weights are tiles of the trellis format.

use std::ops::Range;
use std::sync::Mutex;

use crate::isa::Output;
use crate::isa::trellis::{Sums, add_products};
use crate::level::{Level, Vectorized, multiply_add};
use crate::pool::Pool;
use crate::trellis::{
    DecodeValues, GROUPS, HALVES, LANES, POSITIONS, QUAD, Rotated, TrellisMatrix, UNIT, VECTORS, input_of, output_of,
    rotate_block, side_of,
};

/// Rows of activations that a task takes: their sums, 32 KiB, stay in a cache, and making the codes again for the next
/// rows costs a tenth of the products.
const ROWS: usize = 64;
/// Up to this many rows the inputs of a product are shared out too where there are few outputs.
const ROWS_FEW: usize = 8;
/// Tasks for each thread that sharing out the inputs aims at, so that all threads finish together.
const TASKS: usize = 8;
/// Blocks of inputs below which a task costs more to hand out than it takes.
const INPUTS_MIN: usize = 4;

/// One product of a group that shares its rotated input.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a TrellisMatrix,
    pub(crate) output: Output,
}

/// Multiplies rotated activations with several weights in one parallel region.
///
/// # Panics
/// If a weight has another number of inputs than the activations.
pub(crate) fn trellis(level: Level, pool: &Pool, rotated: &Rotated, products: &[Product<'_>]) {
    let blocks: usize = products.iter().map(|product| product.matrix.blocks()).sum();
    let splits = if rotated.rows <= ROWS_FEW { splits(blocks, rotated.blocks, pool.threads()) } else { 1 };
    let chunks = rotated.rows.div_ceil(ROWS);
    let gathered: Vec<Gathered> = (0..blocks * chunks).map(|_| Gathered::default()).collect();
    pool.for_shrinking_ranges(blocks * chunks * splits, 1, &|tasks| {
        for task in tasks {
            let (index, split) = (task / splits, task % splits);
            let (product, block) = block_of(products, index / chunks);
            assert_eq!(product.matrix.inputs(), rotated.blocks * UNIT, "inputs of a weight");
            let first = index % chunks * ROWS;
            let rows = first..(first + ROWS).min(rotated.rows);
            let inputs = split * rotated.blocks / splits..(split + 1) * rotated.blocks / splits;
            let mut sums = vec![[0.0; UNIT]; rows.len()];
            add_products(level, product.matrix, rotated, rows.clone(), (block, inputs), &mut sums);
            if gathered[index].add(split, splits, &mut sums) {
                finish(level, product, block, rows, &sums);
            }
        }
    });
}

/// How many tasks share the inputs of a block of outputs.
fn splits(blocks: usize, inputs: usize, threads: usize) -> usize {
    if threads == 1 {
        return 1;
    }
    (TASKS * threads).div_ceil(blocks).min(inputs / INPUTS_MIN).max(1)
}

/// The product that a block of outputs, counted over all of them, belongs to, and its number there.
fn block_of<'a, 'b>(products: &'a [Product<'b>], mut block: usize) -> (&'a Product<'b>, usize) {
    for product in products {
        match block.checked_sub(product.matrix.blocks()) {
            Some(rest) => block = rest,
            None => return (product, block),
        }
    }
    unreachable!("a task for each block")
}

/// Sums over parts of the inputs, until all are there.
#[derive(Default)]
struct Gathered(Mutex<Vec<(usize, Vec<Sums>)>>);

impl Gathered {
    /// Takes the sums of one of `splits` parts; with the last one, gives the sums of all, added in the order of the
    /// inputs, and true.
    fn add(&self, split: usize, splits: usize, sums: &mut Vec<Sums>) -> bool {
        if splits == 1 {
            return true;
        }
        let mut parts = self.0.lock().expect("no code panics while it holds this lock");
        parts.push((split, std::mem::take(sums)));
        if parts.len() < splits {
            return false;
        }
        parts.sort_unstable_by_key(|&(split, _)| split);
        let mut parts = parts.drain(..).map(|(_, part)| part);
        *sums = parts.next().expect("at least one part");
        for part in parts {
            for (sums, part) in sums.iter_mut().zip(part) {
                sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        }
        true
    }
}

/// Rotates and scales the sums of a block of outputs, and writes them.
fn finish(level: Level, product: &Product<'_>, block: usize, rows: Range<usize>, sums: &[Sums]) {
    let svh = &product.matrix.svh[block * UNIT..][..UNIT];
    for (row, sums) in rows.zip(sums) {
        let outputs = level.run(Finish { sums, svh });
        // SAFETY: one task finishes a block of outputs and its rows; outputs past the last one are dropped.
        unsafe { product.output.write(row, block * UNIT, &outputs) };
    }
}

struct Finish<'a> {
    sums: &'a Sums,
    svh: &'a [f32],
}

impl Vectorized for Finish<'_> {
    type Output = [f32; UNIT];
    #[inline(always)]
    fn run<const FMA: bool>(self) -> [f32; UNIT] {
        let mut outputs = [0.0; UNIT];
        for (index, &sum) in self.sums.iter().enumerate() {
            outputs[output_of(index)] = sum;
        }
        rotate_block(&mut outputs);
        outputs.iter_mut().zip(self.svh).for_each(|(output, scale)| *output *= scale);
        outputs
    }
}

/// Decodes one row of the weight, the inputs of one output: `suh ∘ H (C H[output]) · svh[output]`.
///
/// # Panics
/// If there is no such row, or `values` are not its columns.
pub(crate) fn decode_row(level: Level, matrix: &TrellisMatrix, row: usize, values: &mut [f32]) {
    assert_eq!(values.len(), matrix.columns, "columns of a row");
    let (block, mut signs) = (row / UNIT, [0.0; UNIT]);
    signs[row % UNIT] = matrix.svh[row];
    rotate_block(&mut signs);
    for (input, values) in values.chunks_mut(UNIT).enumerate() {
        let unit = matrix.units(block, input..input + 1);
        let suh = &matrix.suh[input * UNIT..][..UNIT];
        let weights = level.run(DecodeBlock { matrix, unit, signs: &signs, suh });
        values.copy_from_slice(&weights[..values.len()]);
    }
}

/// The weights of 128 inputs and one output, whose row of the rotation is `signs`.
struct DecodeBlock<'a> {
    matrix: &'a TrellisMatrix,
    unit: &'a [u16],
    signs: &'a [f32; UNIT],
    suh: &'a [f32],
}

impl Vectorized for DecodeBlock<'_> {
    type Output = [f32; UNIT];
    #[inline(always)]
    fn run<const FMA: bool>(self) -> [f32; UNIT] {
        let (rate, codebook) = (self.matrix.rate, self.matrix.codebook);
        let (mut values, mut sums) = ([[0.0; LANES]; VECTORS], [[0.0f32; LANES]; UNIT / QUAD]);
        for group in 0..GROUPS {
            // A vector's lanes have 8 outputs, 16 apart.
            let signs: [[f32; LANES]; 2] =
                std::array::from_fn(|side| std::array::from_fn(|lane| self.signs[lane / QUAD * 16 + side * 8 + group]));
            DecodeValues { rate, codebook, unit: self.unit, group, values: &mut values }.run::<FMA>();
            for (index, values) in values.iter().enumerate() {
                let (half, position) = (index / POSITIONS, index % POSITIONS);
                let (signs, sums) = (&signs[side_of(position)], &mut sums[half * 16 + input_of(position)]);
                for lane in 0..LANES {
                    sums[lane] = multiply_add::<FMA>(values[lane], signs[lane], sums[lane]);
                }
            }
        }
        let mut weights = [0.0; UNIT];
        for (index, sums) in sums.iter().enumerate() {
            for (lane, sum) in sums.iter().enumerate() {
                weights[(index / 16 * QUAD + lane % QUAD) * 16 + index % 16] += sum;
            }
        }
        rotate_block(&mut weights);
        weights.iter_mut().zip(self.suh).for_each(|(weight, scale)| *weight *= scale);
        weights
    }
}

const _: () = assert!(HALVES * 16 == UNIT / QUAD && std::mem::size_of::<[u16; LANES]>() == 64);

#[cfg(test)]
mod tests {
    use half::f16;
    use tensor::format::trellis::{Codebook, Linear, Rate};

    use super::*;
    use crate::trellis::TrellisShape;

    /// SplitMix64.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }

        /// Between −1 and 1.
        fn uniform(&mut self) -> f32 {
            (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
        }

        fn scales(&mut self, count: usize) -> Vec<f16> {
            (0..count).map(|_| f16::from_f32(self.uniform() * 2.0)).collect()
        }
    }

    /// A weight of random tiles: as the format's own code reads it, and rearranged.
    fn random_weight(
        random: &mut Random,
        (rate, codebook): (Rate, Codebook),
        (rows, columns): (usize, usize),
    ) -> (Linear<'static>, TrellisMatrix) {
        let suh = random.scales(columns.next_multiple_of(UNIT));
        let svh = random.scales(rows.next_multiple_of(UNIT));
        let mut linear = Linear::new(rate, codebook, suh, svh).unwrap();
        for row in 0..linear.inputs() / 16 {
            for column in 0..linear.outputs() / 16 {
                linear.tile_mut(row, column).fill_with(|| random.next() as u8);
            }
        }
        let shape = TrellisShape { rate, codebook, rotation: 0, rows, columns };
        let scales = |scales: &[f16]| scales.iter().map(|scale| scale.to_f32()).collect();
        let scales = (scales(linear.suh()), scales(linear.svh()));
        let matrix = TrellisMatrix::pack(shape, linear.trellis(), scales, &|_| {}, &Pool::new(2));
        (linear, matrix)
    }

    fn formats() -> impl Iterator<Item = (Rate, Codebook)> {
        let all = Codebook::ALL.into_iter().flat_map(|codebook| Rate::ALL.map(|rate| (rate, codebook)));
        all.filter(|(rate, codebook)| !rate.is_half() || *codebook == Codebook::Mul1)
    }

    /// The products in binary64, `[tokens, rows]`, and for each the root of the sum of squares of its terms.
    fn expected(weight: &[f32], inputs: usize, input: &[f32], (rows, columns): (usize, usize)) -> Vec<(f64, f64)> {
        let tokens = input.chunks_exact(columns);
        let products = tokens.flat_map(|token| {
            (0..rows).map(move |row| {
                let terms = weight[row * inputs..][..columns].iter().zip(token);
                let terms = terms.map(|(&weight, &value)| f64::from(weight) * f64::from(value));
                (terms.clone().sum(), terms.map(|term| term * term).sum::<f64>().sqrt())
            })
        });
        products.collect()
    }

    /// The largest error of a product with `tokens` rows, in standard deviations of a rotated sum.
    fn largest_error(
        level: Level,
        weight: &(Linear<'_>, TrellisMatrix),
        dequantized: &[f32],
        input: &[f32],
        exact: bool,
    ) -> f64 {
        let (linear, matrix) = weight;
        let (rows, columns, pool) = (matrix.rows, matrix.columns, Pool::new(3));
        let tokens = input.len() / columns;
        let mut rotated = Rotated::new(tokens, columns, exact);
        rotated.rotate(level, &pool, input, columns, &matrix.suh);
        let mut output = vec![f32::NAN; tokens * rows];
        trellis(level, &pool, &rotated, &[Product { matrix, output: Output::new(&mut output, rows) }]);
        let expected = expected(dequantized, linear.inputs(), input, (rows, columns));
        // Errors of single terms are spread over the 128 outputs that are rotated together.
        let blocks = output.chunks_exact(rows).zip(expected.chunks_exact(rows));
        let blocks = blocks.flat_map(|(output, expected)| output.chunks(UNIT).zip(expected.chunks(UNIT)));
        let mut largest = 0.0f64;
        for (index, (output, expected)) in blocks.enumerate() {
            let block = index % rows.div_ceil(UNIT);
            let svh = &matrix.svh[block * UNIT..][..output.len()];
            let size = expected.iter().zip(svh).map(|((_, size), svh)| size / f64::from(svh.abs().max(1e-3)));
            let size = size.fold(0.0, f64::max);
            for ((output, (expected, _)), svh) in output.iter().zip(expected).zip(svh) {
                let error = (f64::from(*output) - expected).abs() / (size * f64::from(svh.abs().max(1e-3)));
                assert!(error.is_finite(), "{level}: {output} instead of {expected}");
                largest = largest.max(error);
            }
        }
        largest
    }

    #[test]
    fn products_are_those_of_the_dequantized_weight() {
        let mut random = Random(1);
        for format in formats() {
            let (rows, columns) = (250, 300);
            let weight = random_weight(&mut random, format, (rows, columns));
            let dequantized = weight.0.dequantize();
            for tokens in [1, 2, 3, 8, 70] {
                let input: Vec<f32> = (0..tokens * columns).map(|_| random.uniform()).collect();
                for level in Level::available() {
                    let error = largest_error(level, &weight, &dequantized, &input, true);
                    assert!(error < 1e-5, "{level}, {format:?}, {tokens} tokens, exact: off by {error}");
                    let error = largest_error(level, &weight, &dequantized, &input, false);
                    // Rounding of the values by 2⁻¹⁰ at most, of activations by 2⁻¹⁴ of the largest; of 8 bits by
                    // half a step of 127, 1/50 of a deviation where the largest is five of them; of means of bytes,
                    // 1/200 of a weight's deviation each, at most four deviations of their sum.
                    let single = tokens == 1 && format.1 == Codebook::Mul1;
                    let most = match level {
                        Level::Avx512 | Level::Amx if tokens == 1 => 0.05,
                        Level::Avx2 if single && format.0.half_bits() <= 8 => 0.02,
                        _ => 3e-3,
                    };
                    assert!(error < most, "{level}, {format:?}, {tokens} tokens, rounded: off by {error}");
                }
            }
        }
    }

    #[test]
    fn few_outputs_share_out_their_inputs() {
        let mut random = Random(2);
        let format = (Rate::from_half_bits(5).unwrap(), Codebook::Mul1);
        let weight = random_weight(&mut random, format, (128, 2_000));
        assert_eq!(splits(weight.1.blocks(), 16, 3), 4);
        let dequantized = weight.0.dequantize();
        let input: Vec<f32> = (0..2 * 2_000).map(|_| random.uniform()).collect();
        for level in Level::available() {
            assert!(largest_error(level, &weight, &dequantized, &input, true) < 1e-5, "{level}");
            assert!(largest_error(level, &weight, &dequantized, &input, false) < 3e-3, "{level}");
        }
    }

    #[test]
    fn rows_are_those_of_the_dequantized_weight() {
        let mut random = Random(3);
        for format in formats() {
            let (linear, matrix) = random_weight(&mut random, format, (130, 200));
            let dequantized = linear.dequantize();
            for level in Level::available() {
                for row in [0, 1, 77, 127, 129] {
                    let mut values = vec![0.0; 200];
                    decode_row(level, &matrix, row, &mut values);
                    let expected = &dequantized[row * 256..][..200];
                    for (index, (value, expected)) in values.iter().zip(expected).enumerate() {
                        let error = (value - expected).abs();
                        assert!(error < 4e-5, "{level}, {format:?}: {value} instead of {expected} at {row}, {index}");
                    }
                }
            }
        }
    }
}
