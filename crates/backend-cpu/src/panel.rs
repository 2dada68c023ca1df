//! Quantized matrices rearranged for integer dot products.
//!
//! # Layout
//! The matrix is cut into *panels* of 16 rows (the last one padded with zero weights), a panel into blocks of 32
//! columns. Column `k` of a block belongs to column group `g = k / 4`; the four columns of a group are the four bytes
//! that one dot product instruction multiplies for each row. So the 8-bit values of a block are 8 vectors
//! `[group][row][4]` of 64 bytes. Fewer bits are stored in planes of such vectors:
//!
//! | plane | vectors | bits of byte `[row][c]` of vector `j` |
//! |---|---|---|
//! | 8 bits | 8 | group `j` |
//! | 4 bits | 4 | low half: group `j`, high half: group `j + 4` |
//! | 2 bits | 2 | bits `2s, 2s+1`: group `j + 2s` |
//! | 1 bit | 1 | bit `s`: group `s` |
//!
//! A format has a low plane and perhaps a high plane, whose bits go above. A panel is the values of all its blocks,
//! one after the other, followed by its scales ([`Scales`]), each as 16 numbers, one per row. The value of a weight is
//! `scale · (q − zero) + offset`, with one scale and offset for every 32 or 16 columns.
//!
//! Everything fits into the bytes of the format that it came from, but for the 6-bit scales of Q3_K, Q4_K and Q5_K,
//! which take a byte each here (+2 to 4 %).

use tensor::DType;

use crate::aligned::Aligned;
use crate::pool::Pool;
use crate::unpack::{SplitRow, split_row};

/// Rows of a panel: the 32-bit lanes of an AVX-512 vector.
pub(crate) const ROWS: usize = 16;
/// Columns of a block.
pub(crate) const BLOCK: usize = 32;
/// Columns under one pair of super scales.
pub(crate) const SUPER: usize = 256;
/// Values of a block as bytes: 16 rows × 32 columns.
pub(crate) const BLOCK_VALUES: usize = ROWS * BLOCK;

/// How the scales and offsets of a panel are stored, each section for all blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// f16 scale `[block][row]`.
    Half,
    /// f16 scale `[block][row]`, f16 offset `[block][row]`.
    HalfOffset,
    /// f16 super scale `[super][row]`, i8 scale `[part][row]`.
    SignedByte,
    /// f16 super scale and super minimum `[super][row]`, u8 scale and u8 minimum `[part][row]`.
    ByteMinimum,
    /// f16 super scale and super minimum, then one byte `[part][row]`: low half scale, high half minimum.
    Nibbles,
}

/// What distinguishes one format's panels from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bits of the low plane: 2, 4 or 8.
    pub(crate) low: usize,
    /// Bits of the high plane: 0, 1 or 2.
    pub(crate) high: usize,
    /// Parts of a block with a scale of their own: 1 or 2.
    pub(crate) parts: usize,
    /// The stored value that stands for zero.
    pub(crate) zero: i32,
    /// Storage of the scales.
    pub(crate) scales: Scales,
}

impl Layout {
    /// The layout of a block format; `None` for floats, which have no panels.
    pub(crate) const fn of(dtype: DType) -> Option<Layout> {
        let (low, high, parts, zero, scales) = match dtype {
            DType::F32 | DType::F16 | DType::BF16 => return None,
            DType::Q4_0 => (4, 0, 1, 8, Scales::Half),
            DType::Q4_1 => (4, 0, 1, 0, Scales::HalfOffset),
            DType::Q5_0 => (4, 1, 1, 16, Scales::Half),
            DType::Q5_1 => (4, 1, 1, 0, Scales::HalfOffset),
            DType::Q8_0 => (8, 0, 1, 128, Scales::Half),
            DType::Q2_K => (2, 0, 2, 0, Scales::Nibbles),
            DType::Q3_K => (2, 1, 2, 4, Scales::SignedByte),
            DType::Q4_K => (4, 0, 1, 0, Scales::ByteMinimum),
            DType::Q5_K => (4, 1, 1, 0, Scales::ByteMinimum),
            DType::Q6_K => (4, 2, 2, 32, Scales::SignedByte),
        };
        Some(Layout { low, high, parts, zero, scales })
    }

    /// Bytes of the values of one block.
    pub(crate) const fn block_bytes(&self) -> usize {
        BLOCK_VALUES * (self.low + self.high) / 8
    }

    /// Whether weights have an offset besides the scale.
    pub(crate) const fn has_offset(&self) -> bool {
        !matches!(self.scales, Scales::Half | Scales::SignedByte)
    }

    /// Bytes of a panel of `blocks` blocks, scales included, a multiple of 64.
    pub(crate) fn panel_bytes(&self, blocks: usize) -> usize {
        let supers = blocks / (SUPER / BLOCK);
        let scales = match self.scales {
            Scales::Half => blocks * 2,
            Scales::HalfOffset => blocks * 4,
            Scales::SignedByte => supers * 2 + blocks * self.parts,
            Scales::ByteMinimum => supers * 4 + blocks * self.parts * 2,
            Scales::Nibbles => supers * 4 + blocks * self.parts,
        };
        (blocks * self.block_bytes() + scales * ROWS).next_multiple_of(64)
    }
}

/// A quantized matrix `[rows, columns]` as panels.
pub(crate) struct PanelMatrix {
    pub(crate) dtype: DType,
    pub(crate) layout: Layout,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    bytes: Aligned<u8>,
}

/// One panel.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub(crate) layout: Layout,
    /// Blocks per row.
    pub(crate) blocks: usize,
    /// Values of all blocks.
    pub(crate) values: &'a [u8],
    /// The scale sections.
    pub(crate) scales: &'a [u8],
}

/// The scale sections of a panel, in the order of [`Scales`]; absent ones are empty.
#[derive(Clone, Copy)]
pub(crate) struct Sections<'a> {
    /// f16 `[block or super][row]`: scales or super scales.
    pub(crate) half_scales: &'a [u8],
    /// f16 `[block or super][row]`: offsets or super minima.
    pub(crate) half_offsets: &'a [u8],
    /// `[part][row]`: scales, or scales and minima by halves.
    pub(crate) byte_scales: &'a [u8],
    /// `[part][row]`: minima.
    pub(crate) byte_minima: &'a [u8],
}

impl<'a> Panel<'a> {
    /// Splits [`Panel::scales`].
    #[inline(always)]
    pub(crate) fn sections(&self) -> Sections<'a> {
        let halves = ROWS * 2 * self.blocks;
        let supers = halves / (SUPER / BLOCK);
        let bytes = ROWS * self.blocks * self.layout.parts;
        let lengths = match self.layout.scales {
            Scales::Half => [halves, 0, 0, 0],
            Scales::HalfOffset => [halves, halves, 0, 0],
            Scales::SignedByte => [supers, 0, bytes, 0],
            Scales::ByteMinimum => [supers, supers, bytes, bytes],
            Scales::Nibbles => [supers, supers, bytes, 0],
        };
        let (half_scales, rest) = self.scales.split_at(lengths[0]);
        let (half_offsets, rest) = rest.split_at(lengths[1]);
        let (byte_scales, rest) = rest.split_at(lengths[2]);
        Sections { half_scales, half_offsets, byte_scales, byte_minima: &rest[..lengths[3]] }
    }
}

impl PanelMatrix {
    /// Rearranges a matrix. `source` gives the bytes of a range of rows, as the checkpoint stores them, and is told
    /// when they are not needed any more.
    pub(crate) fn pack(
        dtype: DType,
        rows: usize,
        columns: usize,
        source: &[u8],
        release: &(dyn Fn(std::ops::Range<usize>) + Sync),
        pool: &Pool,
    ) -> Option<PanelMatrix> {
        let layout = Layout::of(dtype)?;
        let blocks = columns / BLOCK;
        let panels = rows.div_ceil(ROWS);
        let panel_bytes = layout.panel_bytes(blocks);
        let bytes = Aligned::new(panels * panel_bytes);
        let matrix = PanelMatrix { dtype, layout, rows, columns, bytes };
        let row_bytes = dtype.row_bytes(columns)?;
        // Some megabytes at a time, so that mapped pages go while the panels come.
        let grain = (4_usize << 20).div_ceil(panel_bytes);
        pool.for_ranges(panels, grain, &|range| {
            let first = range.start * ROWS;
            let last = (range.end * ROWS).min(rows);
            for panel in range {
                // SAFETY: each panel is written by one call only, and nobody reads before `for_ranges` returns.
                let target = unsafe {
                    std::slice::from_raw_parts_mut(
                        matrix.bytes.as_ptr().cast_mut().add(panel * panel_bytes),
                        panel_bytes,
                    )
                };
                let start = panel * ROWS;
                let end = (start + ROWS).min(rows);
                pack_panel(dtype, layout, blocks, &source[start * row_bytes..end * row_bytes], row_bytes, target);
            }
            release(first * row_bytes..last * row_bytes);
        });
        Some(matrix)
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Blocks per row.
    pub(crate) fn blocks(&self) -> usize {
        self.columns / BLOCK
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// One panel.
    #[inline(always)]
    pub(crate) fn panel(&self, index: usize) -> Panel<'_> {
        let blocks = self.blocks();
        let size = self.layout.panel_bytes(blocks);
        let bytes = &self.bytes[index * size..(index + 1) * size];
        let (values, scales) = bytes.split_at(blocks * self.layout.block_bytes());
        Panel { layout: self.layout, blocks, values, scales }
    }

    /// Decodes one row.
    pub(crate) fn decode_row(&self, row: usize, values: &mut [f32]) {
        let panel = self.panel(row / ROWS);
        let lane = row % ROWS;
        for (block, values) in values.chunks_exact_mut(BLOCK).enumerate() {
            let bytes = &panel.values[block * self.layout.block_bytes()..];
            for (k, value) in values.iter_mut().enumerate() {
                let part = k * self.layout.parts / BLOCK;
                let (scale, offset) = scale_of(&panel, block, part, lane);
                let q = i32::from(value_of(&self.layout, bytes, k, lane));
                *value = scale * (q - self.layout.zero) as f32 + offset;
            }
        }
    }
}

/// The stored value of column `k` of a block in row `lane` of its panel.
pub(crate) fn value_of(layout: &Layout, block: &[u8], k: usize, lane: usize) -> u8 {
    let (group, byte) = (k / 4, lane * 4 + k % 4);
    let (low, high) = block.split_at(BLOCK_VALUES * layout.low / 8);
    let plane = |plane: &[u8], bits: usize| -> u8 {
        let vectors = bits;
        let (vector, shift) = (group % vectors, group / vectors * bits);
        (plane[vector * 64 + byte] >> shift) & (0xff >> (8 - bits))
    };
    let low_value = plane(low, layout.low);
    if layout.high == 0 { low_value } else { low_value | plane(high, layout.high) << layout.low }
}

/// Scale and offset of one part of a block for one row.
pub(crate) fn scale_of(panel: &Panel<'_>, block: usize, part: usize, lane: usize) -> (f32, f32) {
    let sections = panel.sections();
    let half = |section: &[u8], index: usize| {
        let at = (index * ROWS + lane) * 2;
        half::f16::from_le_bytes([section[at], section[at + 1]]).to_f32()
    };
    let super_block = block / (SUPER / BLOCK);
    let byte = (block * panel.layout.parts + part) * ROWS + lane;
    match panel.layout.scales {
        Scales::Half => (half(sections.half_scales, block), 0.0),
        Scales::HalfOffset => (half(sections.half_scales, block), half(sections.half_offsets, block)),
        Scales::SignedByte => {
            (half(sections.half_scales, super_block) * f32::from(sections.byte_scales[byte] as i8), 0.0)
        }
        Scales::ByteMinimum => (
            half(sections.half_scales, super_block) * f32::from(sections.byte_scales[byte]),
            -(half(sections.half_offsets, super_block) * f32::from(sections.byte_minima[byte])),
        ),
        Scales::Nibbles => (
            half(sections.half_scales, super_block) * f32::from(sections.byte_scales[byte] & 15),
            -(half(sections.half_offsets, super_block) * f32::from(sections.byte_scales[byte] >> 4)),
        ),
    }
}

/// Fills one zeroed panel from at most 16 rows.
fn pack_panel(dtype: DType, layout: Layout, blocks: usize, rows: &[u8], row_bytes: usize, target: &mut [u8]) {
    let (values, scales) = target.split_at_mut(blocks * layout.block_bytes());
    match dtype {
        DType::Q4_0 => pack_simple(18, 0, rows, row_bytes, values, scales),
        DType::Q8_0 => pack_simple(34, 0x80, rows, row_bytes, values, scales),
        _ => {
            let mut split = SplitRow::new(blocks);
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                split_row(dtype, row, &mut split);
                pack_values(&layout, &split, lane, values);
                pack_scales(&layout, blocks, &split, lane, scales);
            }
        }
    }
}

/// The fast way for Q4_0 and Q8_0, whose blocks are an f16 scale and then values that only have to be dealt out in
/// fours: the file's low halves are columns 0–15 and its high halves columns 16–31, as in a panel.
fn pack_simple(block_bytes: usize, flip: u8, rows: &[u8], row_bytes: usize, values: &mut [u8], scales: &mut [u8]) {
    let flip = u32::from_ne_bytes([flip; 4]);
    let vectors = (block_bytes - 2) / 4;
    for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
        for (block, bytes) in row.chunks_exact(block_bytes).enumerate() {
            let (scale, quants) = bytes.split_at(2);
            scales[(block * ROWS + lane) * 2..][..2].copy_from_slice(scale);
            for (vector, four) in quants.chunks_exact(4).enumerate() {
                let four = u32::from_ne_bytes([four[0], four[1], four[2], four[3]]) ^ flip;
                let at = ((block * vectors + vector) * ROWS + lane) * 4;
                values[at..at + 4].copy_from_slice(&four.to_ne_bytes());
            }
        }
    }
    // Rows that don't exist keep their zero scale: whatever their values stand for, the product is zero.
}

/// Deals one row's values out into the planes.
fn pack_values(layout: &Layout, split: &SplitRow, lane: usize, values: &mut [u8]) {
    for (block, quants) in split.quants.chunks_exact(BLOCK).enumerate() {
        let bytes = &mut values[block * layout.block_bytes()..(block + 1) * layout.block_bytes()];
        let (low, high) = bytes.split_at_mut(BLOCK_VALUES * layout.low / 8);
        for (k, &quant) in quants.iter().enumerate() {
            put(low, layout.low, k, lane, quant & (0xff >> (8 - layout.low)));
            if !high.is_empty() {
                put(high, layout.high, k, lane, quant >> layout.low);
            }
        }
    }
}

/// Puts the value of column `k` into a zeroed plane of `bits` bits.
fn put(plane: &mut [u8], bits: usize, k: usize, lane: usize, value: u8) {
    let (group, byte) = (k / 4, lane * 4 + k % 4);
    plane[group % bits * 64 + byte] |= value << (group / bits * bits);
}

/// Stores one row's scales.
fn pack_scales(layout: &Layout, blocks: usize, split: &SplitRow, lane: usize, scales: &mut [u8]) {
    let mut at = 0;
    let mut halves = |section: &[[u8; 2]], scales: &mut [u8]| {
        for (index, half) in section.iter().enumerate() {
            scales[at + (index * ROWS + lane) * 2..][..2].copy_from_slice(half);
        }
        at += section.len() * ROWS * 2;
    };
    halves(&split.half_scales, scales);
    if layout.has_offset() {
        halves(&split.half_offsets, scales);
    }
    let parts = blocks * layout.parts;
    let mut bytes = |value: &dyn Fn(usize) -> u8| {
        for index in 0..parts {
            scales[at + index * ROWS + lane] = value(index);
        }
        at += parts * ROWS;
    };
    match layout.scales {
        Scales::Half | Scales::HalfOffset => {}
        Scales::SignedByte => bytes(&|index| split.byte_scales[index]),
        Scales::Nibbles => bytes(&|index| split.byte_scales[index] | split.byte_minima[index] << 4),
        Scales::ByteMinimum => {
            bytes(&|index| split.byte_scales[index]);
            bytes(&|index| split.byte_minima[index]);
        }
    }
}
