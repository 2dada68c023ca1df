//! The dot product in plain Rust: what the other instruction sets' files compute, written down simply.

use crate::activations::Activations;
use crate::isa::Sums;
use crate::panel::{BLOCK, BLOCK_VALUES, Panel, ROWS, scale_of};

/// For each block: unpack the values to bytes, then for each token and part
/// `sums[r] += scale[r] · a.scale · (Σ q[r][k] · a[k] − zero · Σ a[k]) + offset[r] · a.scale · Σ a[k]`.
pub(crate) fn dot(panel: &Panel<'_>, activations: &Activations, first: usize, tokens: usize, sums: &mut Sums) {
    let layout = panel.layout;
    let parts = layout.parts;
    let mut values = [0u8; BLOCK_VALUES];
    for block in 0..panel.blocks {
        let bytes = &panel.values[block * layout.block_bytes()..(block + 1) * layout.block_bytes()];
        unpack_block(&layout, bytes, &mut values);
        for part in 0..parts {
            let mut scales = [(0.0, 0.0); ROWS];
            for (lane, scale) in scales.iter_mut().enumerate() {
                *scale = scale_of(panel, block, part, lane);
            }
            let columns = BLOCK / parts;
            for (token, sums) in sums[..tokens].iter_mut().enumerate() {
                let row = first + token;
                let quants = &activations.row(row)[block * BLOCK + part * columns..][..columns];
                let scale = activations.scales[block * activations.stride + row];
                let sum = part_sum(activations, block, part, parts, row);
                let dots = dot_part(&values[part * columns * ROWS..], quants);
                for lane in 0..ROWS {
                    let (weight_scale, offset) = scales[lane];
                    let product = weight_scale * (dots[lane] - layout.zero * sum) as f32;
                    sums[lane] += scale * (product + offset * sum as f32);
                }
            }
        }
    }
}

/// The sum of the quants of one part of a block.
#[inline(always)]
pub(crate) fn part_sum(activations: &Activations, block: usize, part: usize, parts: usize, row: usize) -> i32 {
    let half = |half: usize| activations.sums[(2 * block + half) * activations.stride + row];
    if parts == 2 { half(part) } else { half(0) + half(1) }
}

/// `Σ q[r][k] · a[k]` for 16 rows.
#[inline(always)]
fn dot_part(values: &[u8], quants: &[i8]) -> [i32; ROWS] {
    let mut dots = [0i32; ROWS];
    for (four, values) in quants.chunks_exact(4).zip(values.chunks_exact(4 * ROWS)) {
        for lane in 0..ROWS {
            for k in 0..4 {
                dots[lane] += i32::from(values[lane * 4 + k]) * i32::from(four[k]);
            }
        }
    }
    dots
}

/// Unpacks a block to bytes `[group][row][4]`, a vector of 64 at a time.
#[inline(always)]
pub(crate) fn unpack_block(layout: &crate::panel::Layout, bytes: &[u8], values: &mut [u8; BLOCK_VALUES]) {
    let (low, high) = bytes.split_at(BLOCK_VALUES * layout.low / 8);
    unpack_plane(low, layout.low, values, |value, bits| *value = bits);
    let shift = layout.low;
    match layout.high {
        1 => unpack_plane(high, 1, values, |value, bits| *value |= bits << shift),
        2 => unpack_plane(high, 2, values, |value, bits| *value |= bits << shift),
        _ => {}
    }
}

/// Hands each value of a plane of `bits` bits to `put`.
#[inline(always)]
fn unpack_plane(plane: &[u8], bits: usize, values: &mut [u8; BLOCK_VALUES], put: impl Fn(&mut u8, u8)) {
    let mask = 0xff >> (8 - bits);
    for (group, values) in values.chunks_exact_mut(64).enumerate() {
        let source = &plane[group % bits * 64..][..64];
        let shift = group / bits * bits;
        for (value, &byte) in values.iter_mut().zip(source) {
            put(value, (byte >> shift) & mask);
        }
    }
}
