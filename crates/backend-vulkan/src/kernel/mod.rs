//! One file per kernel: how its arguments become a [`Dispatch`].
//!
//! Activations are f32 rows whose length is padded to [`PADDING`] elements; the padding is zero, so that kernels can
//! read whole vectors. Kernels never write other values there.

pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod cache_write;
pub(crate) mod decompose;
pub(crate) mod embed;
pub(crate) mod gelu_mul;
pub(crate) mod head_prepare;
pub(crate) mod matmul;
pub(crate) mod matvec;
pub(crate) mod norm;
pub(crate) mod quantize;
pub(crate) mod rank_update;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod select_outputs;
pub(crate) mod to_half;
pub(crate) mod trellis;
pub(crate) mod trellis_encode;

use tensor::DType;

use crate::features::Features;
use crate::pipeline::Kernel;

/// Rows of activations are padded to a multiple of this many elements.
pub(crate) const PADDING: usize = 32;

/// Elements from one row of activations to the next.
pub(crate) fn pitch(width: usize) -> usize {
    width.next_multiple_of(PADDING)
}

/// Rows in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// The device's address of the first element: also the buffer's name in hazards.
    pub(crate) address: u64,
    /// Elements of a row that count.
    pub(crate) width: usize,
}

impl View {
    /// Elements from one row to the next.
    pub(crate) fn pitch(self) -> usize {
        pitch(self.width)
    }
}

/// The order of the halves of blocks in a row of 8-bit activations (`shaders/quantize.glsl`): that in which products
/// with weights of certain formats take them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum HalfOrder {
    /// For units of two consecutive halves.
    #[default]
    Pairs,
    /// For units of four.
    Fours,
    /// For those of Q6_K.
    SixBits,
    /// For those of Q2_K and Q3_K.
    TwoBits,
}

impl HalfOrder {
    /// The order for weights of a format.
    pub(crate) fn of(dtype: DType) -> HalfOrder {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => HalfOrder::Pairs,
            DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 => HalfOrder::Pairs,
            DType::Q4_K | DType::Q5_K => HalfOrder::Fours,
            DType::Q6_K => HalfOrder::SixBits,
            DType::Q2_K | DType::Q3_K => HalfOrder::TwoBits,
        }
    }
}

/// How a row of 8-bit activations is arranged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Arrangement {
    /// Where its halves of blocks lie.
    pub(crate) order: HalfOrder,
    /// Whether each half has a scale of its own.
    pub(crate) half_scales: bool,
}

/// Activations as 8-bit integers with a scale per block of 32 (`shaders/quantize.glsl`): `[rows, width]`, not padded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quantized {
    /// Address of the integers.
    pub(crate) values: u64,
    /// Address of the scales and sums.
    pub(crate) sums: u64,
    /// How its rows are arranged.
    pub(crate) arrangement: Arrangement,
}

/// A kernel with the device's usual subgroups and workgroups of about 256.
pub(crate) fn kernel(features: &Features, shader: impl Into<String>, constants: Vec<u32>) -> Kernel {
    let workgroup = 256.min(features.workgroup_max);
    Kernel { shader: shader.into(), subgroup: features.subgroup, workgroup, constants }
}
