//! How products with few columns are divided among subgroups and workgroups.

use tensor::DType;

use crate::features::Features;
use crate::layout::unit_len;

/// How the rows are divided: constants 2 and 4 of the shader, and the workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Rows of a subgroup.
    pub(crate) rows: u32,
    /// Subgroups that share a set of rows.
    pub(crate) split: u32,
    /// Subgroups of a workgroup.
    pub(crate) subgroups: u32,
    /// Units that a lane loads before it multiplies the first of them.
    pub(crate) unroll: u32,
    /// Rows side by side in a subgroup: its lanes divided by those at a row.
    pub(crate) abreast: u32,
    /// Whether matrix instructions multiply (`shaders/matvec_matrix.comp`): four lanes are at a row then, and `rows` is
    /// even.
    pub(crate) matrices: bool,
}

impl Tiling {
    /// Rows of a workgroup.
    pub(super) fn group_rows(self) -> usize {
        (self.rows * self.abreast * self.subgroups / self.split) as usize
    }
}

/// The tiling for matrices of `rows` rows in all and `units` units a row. Small workgroups of one row a subgroup come
/// and go, so that the device is always full; few rows are split among subgroups, so that enough of them read at once
/// (measured: `docs/vulkan-notes.md`). With several columns a subgroup takes more rows, because the activations are
/// what it reads most.
pub(crate) fn tiling(features: &Features, dtype: DType, rows: usize, units: usize, columns: usize) -> Tiling {
    // Subgroups that a large card holds at once.
    const WANTED: usize = 4096;
    let subgroups = (128 / features.subgroup).clamp(1, 4);
    let is_long = units >= 8 * features.subgroup as usize;
    if columns > 1 {
        return match (is_long, columns > 4) {
            (true, true) => {
                Tiling { rows: 4, split: 1, subgroups: subgroups.min(2), unroll: 1, abreast: 1, matrices: false }
            }
            (true, false) => {
                Tiling { rows: 4, split: 8, subgroups: 8, unroll: 1, abreast: abreast(features, 2), matrices: false }
            }
            (false, _) => {
                Tiling { rows: 2, split: 4, subgroups: 4, unroll: 1, abreast: abreast(features, 4), matrices: false }
            }
        };
    }
    if rows >= WANTED {
        return match (is_costly(dtype), is_long) {
            (false, false) => Tiling { rows: 1, split: 1, subgroups, unroll: 1, abreast: 1, matrices: false },
            (_, true) => Tiling { rows: 2, split: 1, subgroups: 1, unroll: 2, abreast: 1, matrices: false },
            (true, false) => {
                Tiling { rows: 2, split: 1, subgroups: subgroups.min(2), unroll: 1, abreast: 1, matrices: false }
            }
        };
    }
    let mut split = 1;
    while split < 2 * subgroups && rows * (split as usize) < WANTED && units >= (2 * split * features.subgroup) as usize
    {
        split *= 2;
    }
    Tiling { rows: 1, split, subgroups: subgroups.max(split), unroll: 1, abreast: 1, matrices: false }
}

/// Rows side by side in a subgroup for products with several columns: these load many activations, and lanes of
/// different rows load the same ones. `wanted` of them, with four lanes or more each.
fn abreast(features: &Features, wanted: u32) -> u32 {
    (features.subgroup / 4).clamp(1, wanted)
}

/// The tiling for gate and up whose rows are whole blocks for a workgroup, or halves of them for one column, so that it
/// can quantize them.
pub(crate) fn gated_tiling(features: &Features, dtype: DType, columns: usize) -> Tiling {
    if columns > 1 {
        let (wanted, unroll) = if columns > 4 { (2, 1) } else { (4, 2) };
        let abreast = abreast(features, wanted);
        return Tiling { rows: 2, split: 1, subgroups: 16 / abreast, unroll, abreast, matrices: false };
    }
    // On AMD more than two rows of both matrices take registers that other subgroups of the SIMD need
    // (`docs/vulkan-gfx1103.md`).
    let amd = features.is_amd();
    let lanes = if amd { 8 * features.subgroup } else { 256 };
    let subgroups = (lanes / features.subgroup).clamp(1, 16).min(features.workgroup_max / features.subgroup);
    let unroll = if is_costly(dtype) && !amd { 2 } else { 1 };
    Tiling { rows: 16u32.div_ceil(subgroups), split: 1, subgroups, unroll, abreast: 1, matrices: false }
}

/// Whether a unit's scales take more work than its quants, so that a lane better has several rows at hand.
fn is_costly(dtype: DType) -> bool {
    matches!(dtype, DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::Q5_K | DType::Q6_K)
}

/// The tiling for gate and up where workgroups share blocks.
pub(crate) fn shared_tiling(features: &Features, columns: usize) -> Tiling {
    let subgroups = (128 / features.subgroup).clamp(1, 4);
    Tiling { rows: if columns > 1 { 2 } else { 1 }, split: 1, subgroups, unroll: 1, abreast: 1, matrices: false }
}

/// Whether products with that many columns of 8-bit activations go by matrix instructions: where lanes hold the
/// elements as `shaders/matvec_matrix.comp` has them. These take as long for two columns as for eight, and integers
/// are faster for two.
pub(crate) fn uses_matrices(features: &Features, columns: usize) -> bool {
    features.matrix_layout && columns > 2
}

/// [`tiling`] for matrix instructions (measured: `docs/vulkan-notes.md`): lanes take two rows, which leaves registers
/// for many subgroups, and so many of these share them that enough read at once.
pub(crate) fn matrix_tiling(features: &Features, dtype: DType) -> Tiling {
    match has_long_steps(dtype) {
        true => matrix(features, 2, 4, 1, 2),
        false => matrix(features, 2, 8, 1, 1),
    }
}

/// [`gated_tiling`] and [`shared_tiling`] for matrix instructions: workgroups of a block of 32 rows.
pub(crate) fn matrix_gated_tiling(features: &Features, dtype: DType) -> Tiling {
    matrix(features, 2, if has_long_steps(dtype) { 2 } else { 4 }, 2, 1)
}

/// Whether four lanes take 256 columns in a step, twice as many as of other formats: there are fewer to be shared.
fn has_long_steps(dtype: DType) -> bool {
    unit_len(dtype) > 32
}

/// `rows` of a lane, an even number, `split` subgroups at a set of rows, and `sets` of them.
pub(super) fn matrix(features: &Features, rows: u32, split: u32, sets: u32, unroll: u32) -> Tiling {
    Tiling { rows, split, subgroups: split * sets, unroll, abreast: features.subgroup / 4, matrices: true }
}
