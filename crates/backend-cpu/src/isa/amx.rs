//! AMX: one instruction multiplies the bytes of 16 tokens with those of 16 rows.
//!
//! A panel is unpacked to bytes once and used for all tokens. For each tile of 16 tokens and each part of a block, the
//! tile unit computes the integer products `[token][row]`, which are then scaled and added up as floats:
//! `sums[t][r] += scale[r] · (a.scale[t] · dot[t][r] − zero · a.scale[t] · Σa[t]) + offset[r] · a.scale[t] · Σa[t]`.
//!
//! The instructions have no stable intrinsics, so they are written as inline assembly (Intel's Architecture Manual,
//! volume 2, "TDPBSUD"). The operating system has to be asked before a process may use the tiles (Linux: `arch_prctl`).

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use crate::activations::Activations;
use crate::aligned::Aligned;
use crate::isa::{ForFormat, Output, layout};
use crate::panel::{BLOCK, BLOCK_VALUES, Layout, Panel, PanelMatrix, ROWS};

/// Tokens of a tile.
const TILE: usize = 16;

/// Whether the processor has AMX int8 and the system lets this process use it.
pub(crate) fn available() -> bool {
    // CPUID leaf 7: EDX bit 24 AMX-TILE, bit 25 AMX-INT8.
    let leaf = __cpuid_count(7, 0);
    leaf.edx >> 24 & 3 == 3 && request_permission()
}

#[cfg(target_os = "linux")]
fn request_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn request_permission() -> bool {
    false
}

/// The 64 bytes that say how many rows and bytes per row each tile has.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<TileConfig>() == 64);

impl TileConfig {
    /// Tiles 0 and 1 hold products, 2 and 3 activations, 4 and 5 weights of `columns` columns.
    const fn new(columns: usize) -> Self {
        let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let tiles = [(TILE, 64), (TILE, 64), (TILE, columns), (TILE, columns), (columns / 4, 64), (columns / 4, 64)];
        let mut tile = 0;
        while tile < tiles.len() {
            config.rows[tile] = tiles[tile].0 as u8;
            config.row_bytes[tile] = tiles[tile].1 as u16;
            tile += 1;
        }
        config
    }
}

/// A panel unpacked for the tile unit.
struct Unpacked {
    /// Bytes `[block][group][row][4]`; unused where the panel has them already.
    values: Aligned<u8>,
    /// `[block][part][row]`.
    scales: Aligned<f32>,
    /// `[block][part][row]`.
    offsets: Aligned<f32>,
}

/// See [`crate::isa::multiply_panels`].
pub(crate) struct MultiplyPanels<'a> {
    pub(crate) matrix: &'a PanelMatrix,
    pub(crate) activations: &'a Activations,
    pub(crate) panels: Range<usize>,
    pub(crate) output: Output,
}

impl ForFormat for MultiplyPanels<'_> {
    type Output = ();

    fn run<const D: usize>(self) {
        // SAFETY: only called at `Level::Amx`, which exists where `available` said so.
        unsafe { multiply::<D>(self.matrix, self.activations, self.panels, self.output) }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn multiply<const D: usize>(
    matrix: &PanelMatrix,
    activations: &Activations,
    panels: Range<usize>,
    output: Output,
) {
    let layout = const { layout::<D>() };
    let config = const { TileConfig::new(BLOCK / self::layout::<D>().parts) };
    let scalars = matrix.blocks() * layout.parts * ROWS;
    let mut unpacked = Unpacked {
        values: Aligned::new(if layout.low == 8 { 0 } else { matrix.blocks() * BLOCK_VALUES }),
        scales: Aligned::new(scalars),
        offsets: Aligned::new(if layout.has_offset() { scalars } else { 0 }),
    };
    // SAFETY: a valid configuration of palette 1, of 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
    for index in panels {
        let panel = matrix.panel(index);
        // SAFETY: the features are there.
        unsafe { unpack_panel::<D>(&panel, &mut unpacked) };
        let values = if layout.low == 8 { panel.values } else { &unpacked.values };
        for first in (0..activations.rows).step_by(TILE) {
            // SAFETY: the tiles are configured for this layout; activations are padded to 16 rows.
            let sums = unsafe { multiply_tile::<D>(values, &unpacked, activations, first) };
            for (token, sums) in sums.iter().enumerate().take(activations.rows - first) {
                // SAFETY: the panels of the caller's range are this thread's alone.
                unsafe { output.write(first + token, index * ROWS, sums) };
            }
        }
    }
    // SAFETY: gives the tiles back, so that the system need not save them.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn unpack_panel<const D: usize>(panel: &Panel<'_>, unpacked: &mut Unpacked) {
    let layout: Layout = const { layout::<D>() };
    let sections = panel.sections();
    for block in 0..panel.blocks {
        if layout.low != 8 {
            let block_bytes = layout.block_bytes();
            let bytes = &panel.values[block * block_bytes..(block + 1) * block_bytes];
            // SAFETY: a whole block, as just sliced.
            let values = unsafe { super::avx512::unpack::<D>(bytes.as_ptr()) };
            let target = &mut unpacked.values[block * BLOCK_VALUES..(block + 1) * BLOCK_VALUES];
            for (target, value) in target.chunks_exact_mut(64).zip(values) {
                // SAFETY: chunks of 64 bytes.
                unsafe { _mm512_storeu_si512(target.as_mut_ptr().cast(), value) };
            }
        }
        for part in 0..layout.parts {
            let (scale, offset) = super::avx512::scales::<D>(&sections, block, part);
            let at = (block * layout.parts + part) * ROWS;
            // SAFETY: 16 floats each, as just sliced.
            unsafe {
                _mm512_storeu_ps(unpacked.scales[at..at + ROWS].as_mut_ptr(), scale);
                if layout.has_offset() {
                    _mm512_storeu_ps(unpacked.offsets[at..at + ROWS].as_mut_ptr(), offset);
                }
            }
        }
    }
}

/// The products of 16 tokens with the 16 rows of a panel.
///
/// # Safety
/// The processor has the features, the tiles are configured for the layout's parts, and the activations have 16 rows
/// from `first` on (padding included).
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn multiply_tile<const D: usize>(
    values: &[u8],
    unpacked: &Unpacked,
    activations: &Activations,
    first: usize,
) -> [[f32; ROWS]; TILE] {
    let layout = const { layout::<D>() };
    let blocks = activations.columns / BLOCK;
    assert!(values.len() >= blocks * BLOCK_VALUES && first + TILE <= activations.stride);
    assert!(unpacked.scales.len() >= blocks * layout.parts * ROWS);
    assert!(activations.quants.len() >= (first + TILE) * activations.columns);
    assert!(activations.scales.len() >= blocks * activations.stride);
    assert!(activations.sums.len() >= 2 * blocks * activations.stride);
    let columns = BLOCK / layout.parts;
    let multiply = |step: usize, products: &mut Products| {
        // SAFETY: `columns` bytes of 16 rows lie inside the activations, and `columns / 4` vectors in `values`, as
        // asserted.
        unsafe {
            let a = activations.quants.as_ptr().add(first * activations.columns + step * columns);
            let b = values.as_ptr().add(step * columns * ROWS);
            multiply_bytes(a, activations.columns, b, products);
        }
    };
    let mut totals = [_mm512_setzero_ps(); TILE];
    // The tile unit computes the next products while the vector unit adds these.
    let mut now = Products([[0; ROWS]; TILE]);
    let mut next = Products([[0; ROWS]; TILE]);
    multiply(0, &mut now);
    let steps = blocks * layout.parts;
    for step in (0..steps).step_by(2) {
        if step + 1 < steps {
            multiply(step + 1, &mut next);
        }
        // SAFETY: `step` is one of the panel's steps; the arrays are as long as asserted.
        unsafe { add_products::<D>(&now, unpacked, activations, first, step, &mut totals) };
        if step + 2 < steps {
            multiply(step + 2, &mut now);
        }
        if step + 1 < steps {
            // SAFETY: as above.
            unsafe { add_products::<D>(&next, unpacked, activations, first, step + 1, &mut totals) };
        }
    }
    // SAFETY: 16 vectors of 16 floats are an array of them.
    unsafe { std::mem::transmute::<[__m512; TILE], [[f32; ROWS]; TILE]>(totals) }
}

/// Scales the products of one part of a block and adds them to the sums.
///
/// # Safety
/// The processor has the features; part number `step` and 16 rows from `first` on exist.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
unsafe fn add_products<const D: usize>(
    products: &Products,
    unpacked: &Unpacked,
    activations: &Activations,
    first: usize,
    step: usize,
    totals: &mut [__m512; TILE],
) {
    let layout = const { layout::<D>() };
    let (block, part) = (step / layout.parts, step % layout.parts);
    // SAFETY: all indices are inside by the contract.
    let (a_scales, sums, scale) = unsafe {
        let half = |half: usize| {
            _mm512_loadu_si512(activations.sums.as_ptr().add((2 * block + half) * activations.stride + first).cast())
        };
        let sums = if layout.parts == 2 { half(part) } else { _mm512_add_epi32(half(0), half(1)) };
        let a_scales = activations.scales.as_ptr().add(block * activations.stride + first);
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(a_scales));
        let factor = if layout.has_offset() { 1.0 } else { -layout.zero as f32 };
        let scaled = _mm512_mul_ps(scaled, _mm512_set1_ps(factor));
        let mut sums = [0.0f32; TILE];
        _mm512_storeu_ps(sums.as_mut_ptr(), scaled);
        (a_scales, sums, _mm512_loadu_ps(unpacked.scales.as_ptr().add(step * ROWS)))
    };
    let offset = if layout.has_offset() {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(unpacked.offsets.as_ptr().add(step * ROWS)) }
    } else {
        _mm512_setzero_ps()
    };
    for token in 0..TILE {
        // SAFETY: a row of 16 integers, and 16 scales from `first` on.
        let (dot, a_scale) =
            unsafe { (_mm512_loadu_si512(products.0[token].as_ptr().cast()), _mm512_set1_ps(*a_scales.add(token))) };
        let dot = _mm512_cvtepi32_ps(dot);
        let sum = _mm512_set1_ps(sums[token]);
        totals[token] = if layout.has_offset() {
            let total = _mm512_fmadd_ps(offset, sum, totals[token]);
            _mm512_fmadd_ps(_mm512_mul_ps(dot, a_scale), scale, total)
        } else {
            _mm512_fmadd_ps(_mm512_fmadd_ps(dot, a_scale, sum), scale, totals[token])
        };
    }
}

/// Integer products `[token][row]`.
#[repr(C, align(64))]
struct Products([[i32; ROWS]; TILE]);

/// `products[t][r] = Σ a[t][k] · b[k][r]` over one configured tile.
///
/// # Safety
/// 16 rows of activations lie at `a`, `a_stride` bytes apart, and the weights' vectors at `b`, both as large as the
/// tile configuration says.
#[inline(always)]
unsafe fn multiply_bytes(a: *const i8, a_stride: usize, b: *const u8, products: &mut Products) {
    // SAFETY: reads and writes what the contract says.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tileloadd tmm2, [{a} + {a_stride}*1]",
            "tileloadd tmm4, [{b} + {stride}*1]",
            "tdpbsud tmm0, tmm2, tmm4",
            "tilestored [{c} + {stride}*1], tmm0",
            a = in(reg) a,
            a_stride = in(reg) a_stride,
            b = in(reg) b,
            c = in(reg) products,
            stride = in(reg) 64usize,
            out("tmm0") _, out("tmm2") _, out("tmm4") _,
            options(nostack)
        );
    }
}
