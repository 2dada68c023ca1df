//! Takes the rows of block formats apart into values, scales and minima, for [`crate::panel`]. The layouts are
//! documented in `tensor::format`.

use tensor::DType;

/// One row, taken apart. What a format lacks stays empty.
pub(crate) struct SplitRow {
    /// One stored value per column, not negative.
    pub(crate) quants: Vec<u8>,
    /// f16 scales per block or super block.
    pub(crate) half_scales: Vec<[u8; 2]>,
    /// f16 offsets per block, or minima per super block.
    pub(crate) half_offsets: Vec<[u8; 2]>,
    /// Integer scales per part (two's complement where signed).
    pub(crate) byte_scales: Vec<u8>,
    /// Integer minima per part.
    pub(crate) byte_minima: Vec<u8>,
}

impl SplitRow {
    /// Room for a row of `blocks` blocks of 32.
    pub(crate) fn new(blocks: usize) -> Self {
        SplitRow {
            quants: Vec::with_capacity(blocks * 32),
            half_scales: Vec::with_capacity(blocks),
            half_offsets: Vec::with_capacity(blocks),
            byte_scales: Vec::with_capacity(blocks * 2),
            byte_minima: Vec::with_capacity(blocks * 2),
        }
    }

    fn clear(&mut self) {
        self.quants.clear();
        self.half_scales.clear();
        self.half_offsets.clear();
        self.byte_scales.clear();
        self.byte_minima.clear();
    }
}

/// Takes one row apart.
pub(crate) fn split_row(dtype: DType, row: &[u8], into: &mut SplitRow) {
    into.clear();
    let split: fn(&[u8], &mut SplitRow) = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("floats have no panels"),
        DType::Q4_0 => |block, row| split_32(block, 2, 0, row),
        DType::Q4_1 => |block, row| split_32(block, 4, 0, row),
        DType::Q5_0 => |block, row| split_32(block, 2, 4, row),
        DType::Q5_1 => |block, row| split_32(block, 4, 4, row),
        DType::Q8_0 => split_q8_0,
        DType::Q2_K => split_q2_k,
        DType::Q3_K => split_q3_k,
        DType::Q4_K => split_q4_k,
        DType::Q5_K => split_q5_k,
        DType::Q6_K => split_q6_k,
    };
    for block in row.chunks_exact(dtype.block_bytes()) {
        split(block, into);
    }
}

/// Q4_0, Q4_1, Q5_0, Q5_1: `head` bytes of f16 scale (and offset), `high` bytes of fifth bits, 16 bytes of halves.
fn split_32(block: &[u8], head: usize, high: usize, row: &mut SplitRow) {
    row.half_scales.push([block[0], block[1]]);
    if head == 4 {
        row.half_offsets.push([block[2], block[3]]);
    }
    let fifth = match high {
        0 => 0,
        _ => u32::from_le_bytes([block[head], block[head + 1], block[head + 2], block[head + 3]]),
    };
    let halves = &block[head + high..];
    let bit = |k: usize| ((fifth >> k & 1) as u8) << 4;
    row.quants.extend((0..16).map(|k| (halves[k] & 15) | bit(k)));
    row.quants.extend((0..16).map(|k| (halves[k] >> 4) | bit(k + 16)));
}

fn split_q8_0(block: &[u8], row: &mut SplitRow) {
    row.half_scales.push([block[0], block[1]]);
    row.quants.extend(block[2..34].iter().map(|&quant| quant ^ 0x80));
}

fn split_q2_k(block: &[u8], row: &mut SplitRow) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    row.half_scales.push([block[80], block[81]]);
    row.half_offsets.push([block[82], block[83]]);
    row.byte_scales.extend(scales.iter().map(|scale| scale & 15));
    row.byte_minima.extend(scales.iter().map(|scale| scale >> 4));
    row.quants.extend((0..256).map(|k| quants[k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3));
}

fn split_q3_k(block: &[u8], row: &mut SplitRow) {
    let (high, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    row.half_scales.push([block[108], block[109]]);
    row.byte_scales.extend((0..16).map(|part| {
        let low = if part < 8 { scales[part] & 15 } else { scales[part - 8] >> 4 };
        let top = scales[8 + part % 4] >> (part / 4 * 2) & 3;
        (low | top << 4).wrapping_sub(32)
    }));
    row.quants.extend((0..256).map(|k| {
        let low = quants[k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3;
        low | (high[k % 32] >> (k / 32) & 1) << 2
    }));
}

/// The 6-bit scale and minimum of one of the 8 parts of a Q4_K or Q5_K block.
fn scale_and_minimum(scales: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        (scales[part] & 63, scales[part + 4] & 63)
    } else {
        let low = scales[part + 4];
        ((low & 15) | (scales[part - 4] >> 6) << 4, (low >> 4) | (scales[part] >> 6) << 4)
    }
}

/// The head that Q4_K and Q5_K share: super scale, super minimum, 12 bytes of scales.
fn split_k_head(block: &[u8], row: &mut SplitRow) {
    row.half_scales.push([block[0], block[1]]);
    row.half_offsets.push([block[2], block[3]]);
    for part in 0..8 {
        let (scale, minimum) = scale_and_minimum(&block[4..16], part);
        row.byte_scales.push(scale);
        row.byte_minima.push(minimum);
    }
}

/// Value `k` of the 128 bytes of halves that Q4_K and Q5_K share.
fn k_half(halves: &[u8], k: usize) -> u8 {
    halves[k / 64 * 32 + k % 32] >> (k % 64 / 32 * 4) & 15
}

fn split_q4_k(block: &[u8], row: &mut SplitRow) {
    split_k_head(block, row);
    row.quants.extend((0..256).map(|k| k_half(&block[16..], k)));
}

fn split_q5_k(block: &[u8], row: &mut SplitRow) {
    split_k_head(block, row);
    let (high, halves) = (&block[16..48], &block[48..]);
    row.quants.extend((0..256).map(|k| k_half(halves, k) | (high[k % 32] >> (k / 32) & 1) << 4));
}

fn split_q6_k(block: &[u8], row: &mut SplitRow) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    row.half_scales.push([block[208], block[209]]);
    row.byte_scales.extend_from_slice(scales);
    row.quants.extend((0..256).map(|k| {
        let (half, at) = (k / 128, k % 128);
        let four = low[half * 64 + at % 64] >> (at / 64 * 4) & 15;
        let two = high[half * 32 + at % 32] >> (at / 32 * 2) & 3;
        four | two << 4
    }));
}
