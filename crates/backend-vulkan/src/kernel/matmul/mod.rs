//! [`tensor::Op::Linear`] for many tokens: products of matrices.

pub(super) mod measure;
#[cfg(test)]
mod tests;

pub use measure::measure;

use tensor::{DType, Precision};

use super::to_half::Halves;
use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;
use crate::layout::Weight;
use crate::pipeline::Kernel;

/// Products that one dispatch can compute.
pub(crate) const PRODUCTS_MAX: usize = 3;

/// Which kernel multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// [`matmul`]: f32 from f32 activations, on any device.
    Plain,
    /// [`matmul_matrix`]: matrix instructions on what [`to_half`](super::to_half::to_half) makes.
    Matrix,
}

/// The kernel for weights of a format.
///
/// With [`Precision::Fast`], f16 in place of f32 rounds activations and weights by less than the contract allows for
/// the activations alone; weights of f32 don't allow any.
pub(crate) fn path(features: &Features, precision: Precision, dtype: DType) -> Path {
    match (precision, dtype) {
        (Precision::F32, _) | (Precision::Fast, DType::F32) => Path::Plain,
        (
            Precision::Fast,
            DType::F16
            | DType::BF16
            | DType::Q4_0
            | DType::Q4_1
            | DType::Q5_0
            | DType::Q5_1
            | DType::Q8_0
            | DType::Q2_K
            | DType::Q3_K
            | DType::Q4_K
            | DType::Q5_K
            | DType::Q6_K,
        ) => {
            let shape = features.matrix_f16.is_some_and(|shape| (shape.m, shape.n, shape.k) == (16, 16, 16));
            let fits = features.workgroup_max >= 256 && matrix_subgroup(features).is_some();
            if shape && fits { Path::Matrix } else { Path::Plain }
        }
    }
}

/// Up to [`PRODUCTS_MAX`] products with one input, in f32. The weights have one format and one number of columns.
pub(crate) fn matmul(features: &Features, products: &[(Weight, View)], input: View, tokens: usize) -> Dispatch {
    const OWN: usize = 4;
    let lanes = features.workgroup_max.min(256);
    // 16 or 8 by 16 invocations.
    let (tile_tokens, tile_outputs) = (OWN * lanes as usize / 16, OWN * 16);
    let weight = products[0].0;
    assert_eq!(input.width, weight.columns);
    let constants = vec![tile_tokens as u32, tile_outputs as u32, OWN as u32];
    let mut kernel = kernel(features, format!("matmul.{}", weight.dtype), constants);
    kernel.workgroup = lanes / 16 * 16;
    let push = push_products(Push::default().address(input.address), products).number(tokens);
    let push = push.number(input.pitch() / 4).number(weight.pitch()).number(weight.units());
    Dispatch {
        groups: [tokens.div_ceil(tile_tokens) as u32, tiles(products, tile_outputs), 1],
        kernel,
        push: push.number(weight.columns.div_ceil(32)),
        reads: vec![input.address],
        writes: products.iter().map(|(_, output)| output.address).collect(),
        bytes: bytes(products, 4 * input.width, tokens),
        operations: operations(products, tokens),
        label: label("matmul", products, tokens),
        ..Dispatch::default()
    }
}

/// How [`matmul_matrix`] divides a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Tokens of a workgroup.
    pub(crate) tokens: usize,
    /// Outputs of a workgroup.
    pub(crate) outputs: usize,
    /// Columns that are brought into shared memory at a time: a multiple of 32.
    pub(crate) step: usize,
    /// Tokens and outputs of a subgroup.
    pub(crate) sub: (usize, usize),
    /// Tiles in shared memory: 1, or 2 to fill one while the other is read.
    pub(crate) buffers: usize,
    /// Slices of the columns that are summed by workgroups of their own, for products of few tiles.
    pub(crate) slices: usize,
}

impl Tile {
    /// Bytes of shared memory.
    pub(crate) fn shared_bytes(self) -> usize {
        self.buffers * (self.tokens + self.outputs) * (self.step / 8 + 1) * 16
    }

    /// Constants 2 to 7 of the shader.
    fn constants(self) -> [u32; 6] {
        [self.tokens, self.outputs, self.step, self.sub.0, self.sub.1, self.buffers].map(|constant| constant as u32)
    }

    /// Subgroups of a workgroup.
    pub(crate) fn subgroups(self) -> usize {
        self.tokens / self.sub.0 * (self.outputs / self.sub.1)
    }
}

/// Lanes of the subgroups that multiply matrices.
fn matrix_subgroup(features: &Features) -> Option<u32> {
    let (fewest, most) = features.subgroup_range;
    [features.subgroup, 32, 64].into_iter().find(|size| [32, 64].contains(size) && (fewest..=most).contains(size))
}

/// The tile for a number of tokens. Weights whose scales cost much to decode get wide tiles, so that they are decoded
/// less often (measured: `docs/vulkan-notes.md`); not on AMD, where matrix instructions want their operands twice, so
/// that such a tile does not fit into the registers.
pub(crate) fn tile(features: &Features, dtype: DType, tokens: usize) -> Tile {
    let wide = matrix_subgroup(features) == Some(64);
    let amd = features.is_amd();
    let costly = !amd && matches!(dtype, DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::Q5_K | DType::Q6_K);
    match (tokens, wide) {
        (..=16, false) => Tile { tokens: 16, outputs: 64, step: 64, sub: (16, 16), buffers: 1, slices: 1 },
        (..=64, false) => Tile { tokens: 64, outputs: 128, step: 64, sub: (32, 32), buffers: 1, slices: 1 },
        (..=64, true) => Tile { tokens: 64, outputs: 128, step: 32, sub: (32, 64), buffers: 2, slices: 1 },
        (_, false) if costly => Tile { tokens: 128, outputs: 256, step: 32, sub: (64, 64), buffers: 1, slices: 1 },
        (_, false) => Tile { tokens: 128, outputs: 128, step: 64, sub: (64, 32), buffers: 1, slices: 1 },
        (_, true) => Tile { tokens: 128, outputs: 128, step: 32, sub: (64, 64), buffers: 2, slices: 1 },
    }
}

/// Constants 2 to 7 of `matmul_matrix.comp` for a number of tokens, and the lanes of its subgroups.
///
/// # Panics
/// If no subgroup of the device multiplies matrices.
pub fn matrix_constants(features: &Features, dtype: DType, tokens: usize) -> (u32, [u32; 6]) {
    let lanes = matrix_subgroup(features).expect("a device with matrices");
    (lanes, tile(features, dtype, tokens).constants())
}

/// Rows of the widest weight whose columns are sliced.
const SLICED_ROWS_MAX: usize = 16_384;

/// Most slices.
const SLICES_MAX: usize = 16;

/// Slices of the columns for a product of so few tokens that its tiles don't fill a device.
pub(crate) fn slices(tile: Tile, weight: &Weight) -> usize {
    match tile.tokens <= 16 && weight.rows <= SLICED_ROWS_MAX {
        true => (weight.columns / tile.step / 16).clamp(1, SLICES_MAX),
        false => 1,
    }
}

/// Bytes of scratch memory for slices of a product with a weight.
pub(crate) fn slices_bytes(weight: &Weight) -> usize {
    if weight.rows <= SLICED_ROWS_MAX { SLICES_MAX * 16 * super::pitch(weight.rows) * 4 } else { 0 }
}

/// Up to [`PRODUCTS_MAX`] products with one input, with matrix instructions. The weights have one format, which is not
/// f32, and one number of columns. A product of several slices is the only one, and needs scratch memory for all of
/// them, each of the output's size.
pub(crate) fn matmul_matrix(
    features: &Features,
    products: &[(Weight, View)],
    input: Halves,
    tokens: usize,
    tile: Tile,
    scratch: u64,
) -> Vec<Dispatch> {
    let weight = products[0].0;
    assert_eq!(input.width, weight.columns);
    if tile.slices > 1 {
        let [(weight, output)] = *products else { panic!("slices of several products") };
        let slices = [(weight, View { address: scratch, ..output })];
        let product = matrix_dispatch(features, &slices, input, tokens, tile);
        return vec![product, sum(features, scratch, tile.slices, output, tokens)];
    }
    vec![matrix_dispatch(features, products, input, tokens, tile)]
}

fn matrix_dispatch(
    features: &Features,
    products: &[(Weight, View)],
    input: Halves,
    tokens: usize,
    tile: Tile,
) -> Dispatch {
    let weight = products[0].0;
    let subgroup = matrix_subgroup(features).expect("a device with matrices");
    let loads = tile.tokens.max(tile.outputs) * tile.step / 8 / (subgroup as usize * tile.subgroups());
    assert!(loads <= 8, "an invocation loads at most 8 vectors a step, not {loads}");
    let kernel = Kernel {
        shader: format!("matmul_matrix.{}", weight.dtype),
        subgroup,
        workgroup: subgroup * tile.subgroups() as u32,
        constants: tile.constants().to_vec(),
    };
    let push = push_products(Push::default().address(input.values).address(input.scales), products).number(tokens);
    let push = push.number(input.pitch() / 8).number(weight.pitch()).number(weight.units());
    Dispatch {
        groups: [tokens.div_ceil(tile.tokens) as u32, tiles(products, tile.outputs), tile.slices as u32],
        kernel,
        push: push.number(weight.columns.div_ceil(tile.step)),
        reads: vec![input.values, input.scales],
        writes: products.iter().map(|(_, output)| output.address).collect(),
        bytes: bytes(products, 2 * input.width, tokens),
        operations: operations(products, tokens),
        label: label("matmul matrix", products, tokens),
        ..Dispatch::default()
    }
}

/// `output = Σ slices`, for `count` slices of the output's size from `slices` on; zero for none.
pub(crate) fn sum(features: &Features, slices: u64, count: usize, output: View, tokens: usize) -> Dispatch {
    let kernel = kernel(features, "matmul_sum", vec![]);
    let vectors = tokens * output.pitch() / 4;
    Dispatch {
        groups: [vectors.div_ceil(kernel.workgroup as usize) as u32, 1, 1],
        kernel,
        push: Push::default().address(slices).address(output.address).number(vectors).number(count),
        reads: vec![slices],
        writes: vec![output.address],
        bytes: (16 * (count + 1) * vectors) as u64,
        operations: (4 * count * vectors) as u64,
        label: format!("matmul sum {count} × {tokens}×{}", output.width),
        ..Dispatch::default()
    }
}

/// Addresses of weights and outputs, then the rows of the weights.
fn push_products(mut push: Push, products: &[(Weight, View)]) -> Push {
    let first = products[0].0;
    assert!(products.len() <= PRODUCTS_MAX);
    for (weight, output) in products {
        assert_eq!((weight.dtype, weight.columns, weight.rows), (first.dtype, first.columns, output.width));
    }
    let padded = |index: usize| products.get(index);
    for index in 0..PRODUCTS_MAX {
        push = push.address(padded(index).map_or(0, |(weight, _)| weight.address));
    }
    for index in 0..PRODUCTS_MAX {
        push = push.address(padded(index).map_or(0, |(_, output)| output.address));
    }
    (0..PRODUCTS_MAX).fold(push, |push, index| push.number(padded(index).map_or(0, |(weight, _)| weight.rows)))
}

fn tiles(products: &[(Weight, View)], tile_outputs: usize) -> u32 {
    products.iter().map(|(weight, _)| weight.rows.div_ceil(tile_outputs) as u32).sum()
}

fn bytes(products: &[(Weight, View)], input: usize, tokens: usize) -> u64 {
    let each = products.iter().map(|(weight, output)| weight.bytes() + 4 * tokens * output.width);
    (each.sum::<usize>() + input * tokens) as u64
}

fn operations(products: &[(Weight, View)], tokens: usize) -> u64 {
    products.iter().map(|(weight, _)| 2 * (weight.rows * weight.columns * tokens) as u64).sum()
}

fn label(kernel: &str, products: &[(Weight, View)], tokens: usize) -> String {
    let rows: Vec<String> = products.iter().map(|(weight, _)| weight.rows.to_string()).collect();
    let weight = products[0].0;
    format!("{kernel} {} {tokens}×{}→{}", weight.dtype, weight.columns, rows.join("+"))
}
