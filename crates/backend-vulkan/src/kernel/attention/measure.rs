//! Time of a token's attention in decoding, with the preparation of its heads, for several depths.

use std::io::Write;

use tensor::{BackendError, DType};

use super::super::add::add;
use super::super::head_prepare::HeadPrepare;
use super::super::rope::{RopeAddresses, RopeTables};
use super::super::{Arrangement, HalfOrder, Quantized, View};
use super::{Addresses, Also, AttentionShape, Decode, Scratch, decode};
use crate::announce::MARKS;
use crate::dispatch::Dispatch;
use crate::lab::Lab;

/// Layers with caches of their own, so that no cache of the device holds them.
pub(crate) const LAYERS: usize = 24;

/// Positions that there is room for.
const CONTEXT: usize = 9216;

/// Positions of the token.
const DEPTHS: [usize; 8] = [16, 64, 120, 200, 600, 1000, 4096, 8192];

/// Name, heads, heads of keys, size of a head.
const SHAPES: [(&str, usize, usize, usize); 3] = [("27b", 32, 16, 128), ("4b", 8, 4, 256), ("1b", 4, 1, 256)];

/// Prints a table of times: of attention of a token, one behind the other, and of the smallest dispatch there is.
///
/// # Errors
/// A device that fails.
pub fn measure(index: Option<usize>, out: &mut dyn Write) -> Result<(), BackendError> {
    let mut lab = Lab::open(index)?;
    let small = View { address: lab.allocate(4096)?, width: 32 };
    let smallest = vec![add(lab.features(), small, small, 1); LAYERS];
    let floor = chained(&mut lab, smallest)?;
    let _ = writeln!(out, "smallest dispatch and its barrier {floor:6.2} us");
    for (name, heads, kv_heads, head_dim) in SHAPES {
        for cache_dtype in [DType::F16, DType::Q8_0] {
            let shape =
                AttentionShape { heads, kv_heads, head_dim, window: None, scale: 0.1, cache_dtype, ring: CONTEXT };
            let _ = write!(out, "{name} {cache_dtype}:");
            let layers = Layers::new(&mut lab, shape)?;
            for depth in DEPTHS {
                let dispatches = layers.dispatches(&mut lab, depth)?;
                let _ = write!(out, "  {depth}: {:6.2} us", chained(&mut lab, dispatches)?);
                let _ = out.flush();
            }
            let _ = writeln!(out);
        }
    }
    Ok(())
}

/// Microseconds of each of the dispatches, each waiting for the one before.
fn chained(lab: &mut Lab, mut dispatches: Vec<Dispatch>) -> Result<f64, BackendError> {
    for dispatch in &mut dispatches {
        (dispatch.reads, dispatch.writes) = (vec![1], vec![1]);
    }
    let time = lab.time(&dispatches, 5)?.as_secs_f64() / (5 * dispatches.len()) as f64;
    Ok(time * 1e6)
}

/// Caches of all layers, and what they share.
pub(crate) struct Layers {
    shape: AttentionShape,
    caches: Vec<[u64; 2]>,
    pub(crate) prepare: HeadPrepare,
    output: u64,
    pub(crate) quantized: Quantized,
}

impl Layers {
    pub(crate) fn new(lab: &mut Lab, shape: AttentionShape) -> Result<Layers, BackendError> {
        let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut caches = Vec::new();
        for _ in 0..LAYERS {
            let bytes = shape.cache().bytes(1) as usize;
            caches.push([lab.allocate(bytes)?, lab.allocate(bytes)?]);
        }
        let mut view =
            |width: usize| -> Result<View, BackendError> { Ok(View { address: lab.allocate(4 * width)?, width }) };
        let (query, key, value) = (view(width)?, view(kv_width)?, view(kv_width)?);
        let weight = view(shape.head_dim)?.address;
        let output = view(width)?.address;
        let arrangement = Arrangement { order: HalfOrder::of(DType::Q4_0), half_scales: false };
        let quantized = Quantized { values: view(width)?.address, sums: view(width)?.address, arrangement };
        let tables = RopeTables::new(10_000.0, 1.0, shape.head_dim, CONTEXT).bytes();
        let prepare = HeadPrepare {
            query,
            key,
            value,
            query_weight: weight,
            key_weight: weight,
            epsilon: 1e-6,
            head_dim: shape.head_dim,
            tables: RopeAddresses::new(lab.upload(&tables)?.address, shape.head_dim),
            tokens: 0,
            cache: shape.cache(),
            keys: 0,
            values: 0,
        };
        Ok(Layers { shape, caches, prepare, output, quantized })
    }

    /// One for each layer, for a token at position `depth`.
    pub(crate) fn dispatches(&self, lab: &mut Lab, depth: usize) -> Result<Vec<Dispatch>, BackendError> {
        let shape = &self.shape;
        let Some(plan) = Decode::new(lab.features(), shape, 1, CONTEXT) else { return Ok(Vec::new()) };
        let tokens = lab.upload(bytemuck::cast_slice(&[7, depth as u32, 0, 0]))?.address;
        let counters = lab.upload(&vec![0; Decode::counter_bytes(shape, 1) as usize + 4 * MARKS])?.address;
        let partial = lab.allocate(plan.partial_bytes(shape, 1) as usize)?;
        let scratch = Scratch { counters, partial };
        let dispatch = |&[keys, values]: &[u64; 2]| {
            let prepare = HeadPrepare { tokens, keys, values, ..self.prepare };
            let addresses = Addresses { query: prepare.query.address, keys, values, output: self.output };
            let also = Also::Quantized(self.quantized);
            decode(lab.features(), (&plan, shape), &addresses, (tokens, 1), scratch, also, Some(&prepare))
        };
        Ok(self.caches.iter().map(dispatch).collect())
    }
}
