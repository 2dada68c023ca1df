//! Every pipeline that the engine makes for the published models, compiled but not run: what the compiler of a driver
//! makes of the shaders can be looked at without the driver's device.

mod model;
mod statistics;

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use ash::vk;
use tensor::format::trellis::{Codebook, Rate};
use tensor::{BackendError, BufferId, DType, LoadOptions, Op, Precision, Program, TrellisFormat, WeightFormat};

use crate::context::Context;
use crate::dispatch::Dispatch;
use crate::kernel::View;
use crate::kernel::attention::Scratch;
use crate::kernel::rank_update::{self, Number};
use crate::kernel::rope::RopeAddresses;
use crate::kernel::sample::{Rows, SamplePlan, Sampler};
use crate::kernel::trellis::TrellisScratch;
use crate::kernel::{decompose, trellis_encode};
use crate::layout::{repack, unit_len};
use crate::loaded::CACHE_DTYPES;
use crate::memory::{Arena, Place};
use crate::pipeline::{Kernel, Pipelines, create};
use crate::place::Buffers;
use crate::plan::Rope;
use crate::record::{BatchAddresses, Counts};
use crate::scene::{Scene, plans};
use model::{SHAPES, Shape};

/// Tokens and output rows of the passes whose pipelines are compiled, and whether every token is of its own sequence.
const PASSES: [(usize, usize, bool); 9] = [
    (1, 1, true),
    (2, 2, true),
    (4, 4, true),
    (8, 8, true),
    // The end of a prompt, short ones, a long one, and one whose logits are all wanted.
    (4, 1, false),
    (16, 1, false),
    (64, 1, false),
    (512, 1, false),
    (512, 512, false),
];

/// What is said of a compiled pipeline.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Name of the shader's variant.
    pub name: String,
    /// Its specialization constants by name, but for the subgroup's size.
    pub specialization: Vec<(&'static str, u32)>,
    /// Invocations of a subgroup.
    pub subgroup: u32,
    /// Subgroups that a SIMD of an AMD device has to hold at once, so that they hide each other's waits.
    pub declared_waves: u32,
    /// The driver's statistics by the driver's names.
    pub statistics: Vec<(String, u64)>,
    /// Whether its loop decodes weights, so that its time per weight counts.
    pub hot_loop: bool,
    /// Weights that one lane decodes in an iteration of the loop, where one is decoded for each time it is read.
    pub weights_per_iteration: Option<u32>,
    /// The machine code as text; empty if the driver gives none.
    pub assembly: String,
}

/// Compiles every pipeline for the published sizes of Gemma 3 whose name begins with `start`, and gives each to
/// `found`. `index` chooses the device. The number of pipelines is returned.
///
/// The device is not closed: a driver without its device, as RADV's null device is, can't wait for it to be idle.
///
/// # Errors
/// No device, one that says nothing about its pipelines, or a pipeline that can't be compiled.
pub fn compile(index: Option<usize>, start: &str, found: &mut dyn FnMut(&Compiled)) -> Result<usize, BackendError> {
    let context = ManuallyDrop::new(Context::open(index)?);
    if !context.features().pipeline_statistics {
        return Err(BackendError::Unsupported {
            device: context.features().name.clone(),
            problem: "its driver says nothing about pipelines (`VK_KHR_pipeline_executable_properties` is missing)\n\n\
                      hint: a newer driver may have it"
                .into(),
        });
    }
    let mut count = 0;
    for subgroup in subgroups(&context) {
        let context = ManuallyDrop::new(with_subgroup(index, subgroup)?);
        let pipelines = ManuallyDrop::new(Pipelines::new(&context)?);
        let kernels = kernels(&context, &SHAPES, &formats());
        for kernel in kernels.into_iter().filter(|kernel| kernel.shader.starts_with(start)) {
            let failure = |error| context.failure(&format!("compiling `{}`", kernel.shader), error);
            let compiled = compile_one(&context, pipelines.layout, &kernel).map_err(failure)?;
            found(&compiled);
            count += 1;
        }
    }
    Ok(count)
}

/// The sizes of subgroups to compile for: both of an AMD device, otherwise the device's.
fn subgroups(context: &Context) -> Vec<u32> {
    let features = context.features();
    let (fewest, most) = features.subgroup_range;
    if (fewest..=most).contains(&32) && most == 64 { vec![32, 64] } else { vec![features.subgroup] }
}

/// A device that is taken for one of subgroups of a size.
fn with_subgroup(index: Option<usize>, subgroup: u32) -> Result<Arc<Context>, BackendError> {
    let mut context = Context::open(index)?;
    Arc::get_mut(&mut context).expect("nobody else has it yet").info.features.subgroup = subgroup;
    Ok(context)
}

/// All block formats, and the trellis at the rates and with the codebooks that models are likely to have.
pub(crate) fn formats() -> Vec<WeightFormat> {
    let trellis =
        [(4, Codebook::Mul1), (5, Codebook::Mul1), (6, Codebook::Mul1), (8, Codebook::Mul1), (8, Codebook::Mcg)];
    let trellis = trellis.into_iter().filter_map(|(half_bits, codebook)| {
        Some(WeightFormat::Trellis(TrellisFormat { rate: Rate::from_half_bits(half_bits)?, codebook, rotation: 0 }))
    });
    DType::ALL.into_iter().map(WeightFormat::Blocks).chain(trellis).collect()
}

/// The distinct kernels of passes over models of these sizes with weights in these formats.
pub(crate) fn kernels(context: &Arc<Context>, shapes: &[Shape], formats: &[WeightFormat]) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for (&shape, &format) in shapes.iter().flat_map(|shape| formats.iter().map(move |format| (shape, format))) {
        let (program, logits) = model::program(shape, format);
        for precision in [Precision::Fast, Precision::F32] {
            for cache_dtype in CACHE_DTYPES {
                let options = options(precision, cache_dtype);
                for dispatch in dispatches(context, &program, logits, &options) {
                    kernels.push(dispatch.kernel);
                }
            }
        }
    }
    kernels.push(repack(context.features(), 0, 0, DType::Q4_0, 1, 256).kernel);
    kernels.extend(trellis_encode::kernels(context.features()));
    kernels.push(rank_update::kernel_of(context.features(), Number::F32));
    if context.features().float64 {
        kernels.push(rank_update::kernel_of(context.features(), Number::F64));
        kernels.extend(decompose::kernels(context.features()));
    }
    kernels.sort_by(|a, b| key(a).cmp(&key(b)));
    kernels.dedup();
    kernels
}

fn key(kernel: &Kernel) -> (&str, &[u32], u32) {
    (&kernel.shader, &kernel.constants, kernel.workgroup)
}

fn options(precision: Precision, cache_dtype: DType) -> LoadOptions {
    LoadOptions {
        tokens_max: 512,
        outputs_max: 512,
        sequences_max: 8,
        context_max: 8192,
        cache_dtype,
        precision,
        threads: None,
    }
}

/// What all of [`PASSES`] dispatch, at addresses of nothing.
fn dispatches(context: &Arc<Context>, program: &Program, logits: BufferId, options: &LoadOptions) -> Vec<Dispatch> {
    let plans = plans(context, program, options);
    let arena = Arena::new(context, Place::Nowhere, 0);
    let scene = Scene {
        context: context.clone(),
        program: program.clone(),
        options: options.clone(),
        buffers: Buffers::new(arena, program, options, &plans).expect("addresses are there without end"),
        ropes: ropes(program),
        batch: BatchAddresses {
            tokens: 0,
            outputs: 0,
            tiles: 0,
            arrivals: 0,
            slices: 0,
            trellis: TrellisScratch { room: (256 << 20, 64 << 20), ..TrellisScratch::default() },
        },
        scratch: Scratch { counters: 0, partial: 0 },
        sink: 0,
        plans,
    };
    let counts = |(tokens, outputs, single): (usize, usize, bool)| Counts {
        tokens,
        outputs,
        tiles: tokens.div_ceil(32),
        single,
    };
    let mut all: Vec<Dispatch> = PASSES.into_iter().flat_map(|pass| scene.dispatches(counts(pass))).collect();
    all.extend(samples(context, scene.buffers.view(logits)));
    all
}

fn samples(context: &Context, logits: View) -> Vec<Dispatch> {
    let sampler = Sampler::new(context.features(), 0, 1, logits.width);
    let rows = Rows { settings: 0, tokens: 0, occurred: 0, results: 0 };
    sampler.dispatches(context.features(), SamplePlan::Any, logits, &rows, 1)
}

fn ropes(program: &Program) -> HashMap<Rope, RopeAddresses> {
    let rope = |op: &Op| match *op {
        Op::Rope { head_dim, base, position_divisor, .. } => Some(Rope { head_dim, base, position_divisor }),
        _ => None,
    };
    program.ops().iter().filter_map(rope).map(|rope| (rope, RopeAddresses { fine: 0, coarse: 0 })).collect()
}

fn compile_one(context: &Context, layout: vk::PipelineLayout, kernel: &Kernel) -> Result<Compiled, vk::Result> {
    let flags =
        vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
    let pipeline = create(context, layout, vk::PipelineCache::null(), kernel, flags)?;
    let found = statistics::find(context, pipeline);
    // SAFETY: the pipeline was made above and never ran.
    unsafe { context.raw.destroy_pipeline(pipeline, None) };
    let (statistics, assembly) = found?;
    let weights_per_iteration = weights_per_iteration(kernel);
    Ok(Compiled {
        name: kernel.shader.clone(),
        specialization: specialization(kernel),
        subgroup: kernel.subgroup,
        declared_waves: declared_lanes(kernel) / kernel.subgroup,
        statistics,
        hot_loop: weights_per_iteration.is_some() || kernel.shader.starts_with("matmul_matrix"),
        weights_per_iteration,
        assembly,
    })
}

/// The file that a variant of a shader is made of.
fn stem(shader: &str) -> &str {
    shader.split('.').next().unwrap_or(shader)
}

/// Names of a shader's own constants, from number 2 on.
fn constants(shader: &str) -> &'static [&'static str] {
    match stem(shader) {
        "matvec" | "matvec_floats" | "matvec_matrix" => &[
            "ROWS",
            "COLUMNS",
            "SPLIT",
            "EPILOGUE",
            "UNROLL",
            "ORDER",
            "HALF_SCALES",
            "TARGET_ORDER",
            "TARGET_HALF_SCALES",
            "LANES",
            "ANNOUNCING",
        ],
        "matmul" => &["TILE_TOKENS", "TILE_OUTPUTS", "OWN"],
        "matmul_matrix" => &["TILE_TOKENS", "TILE_OUTPUTS", "STEP", "SUB_TOKENS", "SUB_OUTPUTS", "BUFFERS"],
        "trellis_matvec" => &["HALF_BITS", "CODEBOOK", "COLUMNS", "SPLIT", "EPILOGUE", "AMD", "LEAVES"],
        "trellis_decode" | "trellis_embed" | "trellis_repack" => &["HALF_BITS", "CODEBOOK"],
        "trellis_rotate" => &["FORM"],
        "norm" => &["HELD", "ADDS", "WRITES_FLOATS", "WRITES_QUANTS", "ORDER", "ROTATES", "AWAITED", "LEFT"],
        "attention_decode" => &[
            "CACHE_WIDTH",
            "HEAD_DIM",
            "GROUP",
            "TEAM",
            "QUANTIZE",
            "STEP",
            "PREPARES",
            "EPSILON",
            "ORDER",
            "ROTATES",
            "AWAITED",
        ],
        "attention_prefill" => &["CACHE_WIDTH", "HEAD_DIM", "GROUP", "HEADS", "UNROLL"],
        "attention_prefill_matrix" => &["CACHE_WIDTH", "HEAD_DIM", "GROUP", "HEADS", "COLUMN_GROUPS"],
        "head_prepare" => &["CACHE_WIDTH", "HEAD_DIM", "HEADS", "KV_HEADS"],
        "quantize" => &["ORDER"],
        "trellis_encode" => &["ODD", "EVEN", "PERIOD", "DOUBLINGS", "SPARE"],
        "cache_write" => &["CACHE_WIDTH"],
        "hessian_rotate" => &["COLUMNS"],
        "rope" => &["HALF"],
        _ => &[],
    }
}

fn specialization(kernel: &Kernel) -> Vec<(&'static str, u32)> {
    let own = constants(&kernel.shader).iter().copied().zip(kernel.constants.iter().copied());
    std::iter::once(("WORKGROUP", kernel.workgroup)).chain(own).collect()
}

/// Lanes that a SIMD of an AMD device has to hold at once for a kernel to be as fast as it was meant to be.
///
/// A SIMD of RDNA 3 holds 16 subgroups of 32 lanes at most, and 1024 registers for 32 lanes on gfx1103. There are 24
/// SIMDs in a Radeon 780M; at 89.6 GB/s and about a microsecond until a load is back, 89.6 KB must be on the way, 3.7
/// KB to a SIMD. 8 subgroups of 32 lanes with one load of 16 bytes each are 4 KB.
fn declared_lanes(kernel: &Kernel) -> u32 {
    match stem(&kernel.shader) {
        // Bound by memory: as above.
        "matvec" | "matvec_floats" if kernel.constants[1] == 1 => 8 * 32,
        // With several columns a lane takes two rows or more, so that half as many have as much on the way, and every
        // weight is multiplied several times.
        "matvec" | "matvec_floats" | "matvec_matrix" => 4 * 32,
        // Bound by arithmetic; words of weights are on the way while those before them are decoded.
        "trellis_matvec" => 4 * 32,
        // Bound by memory, but a lane has four positions in flight, each with a load or two of 16 bytes.
        "attention_decode" => 4 * 32,
        // Bound by arithmetic, and most of their registers are sums: two subgroups hide the latency of the ALU, and
        // while one workgroup waits for its tile another one computes.
        "matmul"
        | "matmul_matrix"
        | "rank_update"
        | "cholesky_rows"
        | "attention_prefill"
        | "attention_prefill_matrix" => 2 * 32,
        // Bound by arithmetic too, with many costs in registers.
        "trellis_encode" => 4 * 32,
        // Little work, in one or a few workgroups: more than these would not run at once.
        _ => 8 * 32,
    }
}

/// Weights that one lane decodes in an iteration of the loop of a product by few columns.
fn weights_per_iteration(kernel: &Kernel) -> Option<u32> {
    if stem(&kernel.shader) == "trellis_matvec" {
        return Some(128);
    }
    let [rows, _, _, epilogue, ref rest @ ..] = kernel.constants[..] else { return None };
    // Those by matrix instructions share the weights of a row among lanes.
    if !matches!(stem(&kernel.shader), "matvec" | "matvec_floats") {
        return None;
    }
    let dtype = kernel.shader.split('.').nth(1)?;
    let dtype = DType::ALL.into_iter().find(|candidate| candidate.to_string() == dtype)?;
    let matrices = if epilogue == 0 { 1 } else { 2 };
    let unroll = rest.first().copied().unwrap_or(1);
    Some(unroll * matrices * rows * unit_len(dtype) as u32)
}

#[cfg(test)]
mod tests;
