//! A feed-forward layer for one token: the engine's dispatches beside plain shaders (`shaders/lab/`), one for each op,
//! in one run.

use std::io::Write;
use std::sync::Arc;

use tensor::{
    BackendError, Batch, BufferId, DType, LoadOptions, Loaded, Op, Precision, Program, ProgramBuilder, Rows, Scalar,
    Segment, WeightBytes, WeightError, WeightFormat, WeightSource,
};

use super::Lab;
use crate::dispatch::{Dispatch, Push};
use crate::kernel::kernel;
use crate::loaded::VulkanLoaded;
use crate::memory::Slice;
use crate::pipeline::Pipelines;
use crate::record::Counts;

/// Runs that are timed together.
const REPEAT: u32 = 20;

/// Bytes of the weights' format for 32 numbers.
const BLOCK_BYTES: usize = 18;

/// The layer's input and its three matrices in Q4_0, as they lie in files.
struct Layer {
    hidden: usize,
    inner: usize,
    input: Vec<f32>,
    weights: [(&'static str, Arc<Vec<u8>>); 3],
}

impl WeightSource for Layer {
    fn open(&self, name: &str, _: WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError> {
        if name == "input" {
            return Ok(Arc::new(bytemuck::cast_slice(&self.input).to_vec()));
        }
        let found = self.weights.iter().find(|(other, _)| *other == name);
        Ok(found.ok_or("no such weight")?.1.clone())
    }
}

/// Numbers that look random (Marsaglia's xorshift, 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Between -1 and 1.
    fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A matrix whose products with numbers of about 1 are numbers of about 1: scales of about 1 / (4 · √columns).
    fn matrix(&mut self, rows: usize, columns: usize) -> Arc<Vec<u8>> {
        let mut bytes = vec![0; rows * columns / 32 * BLOCK_BYTES];
        for block in bytes.chunks_exact_mut(BLOCK_BYTES) {
            let scale = (1.0 + 0.5 * self.number()) / (4.0 * (columns as f32).sqrt());
            block[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
            block[2..10].copy_from_slice(&self.next().to_le_bytes());
            block[10..].copy_from_slice(&self.next().to_le_bytes());
        }
        Arc::new(bytes)
    }
}

impl Layer {
    fn new(hidden: usize, inner: usize) -> Layer {
        let mut random = Random(0x5eed);
        let weights = [
            ("gate", random.matrix(inner, hidden)),
            ("up", random.matrix(inner, hidden)),
            ("down", random.matrix(hidden, inner)),
        ];
        Layer { hidden, inner, input: (0..hidden).map(|_| 2.0 * random.number()).collect(), weights }
    }

    /// `output = down(gelu(gate(input)) · up(input))`; the input is the only row of a table.
    fn program(&self) -> (Program, BufferId) {
        let mut builder = ProgramBuilder::new();
        let table = builder.weight("input", DType::F32, 1, self.hidden);
        let mut scratch = |name: &str, width| builder.scratch(name, Rows::Tokens, width);
        let (row, gate, up) = (scratch("row", self.hidden), scratch("gated", self.inner), scratch("upped", self.inner));
        let output = scratch("output", self.hidden);
        builder.push(Op::Embed { table, scale: Scalar(1.0), output: row });
        for (name, output) in [("gate", gate), ("up", up)] {
            let weight = builder.weight(name, DType::Q4_0, self.inner, self.hidden);
            builder.push(Op::Linear { weight, input: row, output });
        }
        builder.push(Op::GeluMul { gate, up, output: gate });
        let weight = builder.weight("down", DType::Q4_0, self.hidden, self.inner);
        builder.push(Op::Linear { weight, input: gate, output });
        (builder.build().expect("a good program"), output)
    }

    /// One shader for each op, each behind the last; the result's memory.
    fn plain(&self, lab: &mut Lab) -> Result<(Vec<Dispatch>, Slice), BackendError> {
        let [gate, up, down] = &self.weights;
        let mut upload = |weight: &(&str, Arc<Vec<u8>>)| Ok::<u64, BackendError>(lab.upload(&weight.1)?.address);
        let (gate, up, down) = (upload(gate)?, upload(up)?, upload(down)?);
        let input = lab.upload(bytemuck::cast_slice(&self.input))?.address;
        let gated = lab.allocate(4 * self.inner)?;
        let upped = lab.allocate(4 * self.inner)?;
        let output = lab.upload(&vec![0; 4 * self.hidden])?;
        let features = lab.features();
        // A region that all of them read and write: barriers between all.
        let after_all = Dispatch { reads: vec![1], writes: vec![1], ..Dispatch::default() };
        let product = |weights: u64, from: u64, columns: usize, to: u64, rows: usize| Dispatch {
            kernel: kernel(features, "lab.product", vec![]),
            groups: [rows as u32, 1, 1],
            push: Push::default().address(weights).address(from).address(to).number(columns / 32),
            ..after_all.clone()
        };
        let element_wise = |name: &str, addresses: &[u64]| {
            let kernel = kernel(features, name, vec![]);
            let push = addresses.iter().fold(Push::default(), |push, &address| push.address(address));
            let groups = [self.inner.div_ceil(kernel.workgroup as usize) as u32, 1, 1];
            Dispatch { kernel, groups, push: push.number(self.inner), ..after_all.clone() }
        };
        let dispatches = vec![
            product(gate, input, self.hidden, gated, self.inner),
            product(up, input, self.hidden, upped, self.inner),
            element_wise("lab.gelu", &[gated]),
            element_wise("lab.multiply", &[gated, upped]),
            product(down, gated, self.inner, output.address, self.hidden),
        ];
        Ok((dispatches, output))
    }

    /// The dispatches of the engine's pass over one token, and what it gives.
    fn fused(&self, lab: &Lab) -> Result<(VulkanLoaded, Vec<Dispatch>, Vec<f32>), BackendError> {
        let (program, output) = self.program();
        let options = LoadOptions {
            tokens_max: 1,
            outputs_max: 1,
            sequences_max: 1,
            context_max: 1,
            cache_dtype: DType::F16,
            precision: Precision::Fast,
            threads: None,
        };
        let pipelines = Arc::new(Pipelines::new(&lab.context)?);
        let mut loaded = VulkanLoaded::load(&lab.context, &pipelines, &program, self, &options)?;
        let segments = [Segment { sequence: 0, position: 0, tokens: 1 }];
        loaded.run(&Batch { tokens: &[0], segments: &segments, outputs: &[], cancel: None })?;
        let mut result = vec![0.0; self.hidden];
        loaded.read(output, &mut result)?;
        let counts = Counts { tokens: 1, outputs: 0, tiles: 1, single: true };
        let mut dispatches = loaded.scene().dispatches(counts);
        // The plain shaders get their input as it is.
        assert!(dispatches.remove(0).label.starts_with("embed"), "the input comes first");
        Ok((loaded, dispatches, result))
    }
}

/// What [`measure`] found.
#[derive(Clone, Copy, Debug)]
pub struct Ffn {
    /// Seconds of the plain shaders.
    pub plain: f64,
    /// Seconds of the engine's.
    pub fused: f64,
    /// The largest difference of the results, relative to the largest result.
    pub difference: f32,
}

/// Times a feed-forward layer in Q4_0 both ways, and prints it.
///
/// # Errors
/// No memory, or a device that fails or has no timestamps.
pub fn measure(index: Option<usize>, hidden: usize, inner: usize, out: &mut dyn Write) -> Result<Ffn, BackendError> {
    let mut lab = Lab::open(index)?;
    let layer = Layer::new(hidden, inner);
    let (plain, slice) = layer.plain(&mut lab)?;
    let (_loaded, fused, found) = layer.fused(&lab)?;
    let seconds = |lab: &mut Lab, dispatches: &[Dispatch]| -> Result<f64, BackendError> {
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            best = best.min(lab.time(dispatches, REPEAT)?.as_secs_f64() / f64::from(REPEAT));
        }
        Ok(best)
    };
    let times = [seconds(&mut lab, &plain)?, seconds(&mut lab, &fused)?];
    let expected = lab.download(slice, 4 * hidden)?;
    let expected: &[f32] = bytemuck::cast_slice(&expected);
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |most, x| most.max(x.abs()));
    let difference =
        largest(&mut expected.iter().zip(&found).map(|(a, b)| a - b)) / largest(&mut expected.iter().copied());
    let bytes = layer.weights.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() as f64;
    let _ = writeln!(out, "{}: {hidden} → 2 × {inner} → {hidden}, q4_0, one token", lab.features().name);
    for (name, time, count) in [("plain", times[0], plain.len()), ("fused", times[1], fused.len())] {
        let rate = bytes / time / 1e9;
        let _ = writeln!(out, "{name}: {:9.1} us, {count} dispatches, {rate:.0} GB/s of weights", time * 1e6);
    }
    let _ = writeln!(out, "ratio: {:.2}; results differ by up to {difference:.1e} of the largest", times[0] / times[1]);
    Ok(Ffn { plain: times[0], fused: times[1], difference })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_give_the_same_result() {
        let Some(lab) = Lab::for_tests() else { return };
        if lab.features().timestamp_nanoseconds.is_none() {
            return;
        }
        let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
        let mut text = Vec::new();
        let found = measure(index, 256, 512, &mut text).unwrap();
        // Two roundings to 8 bits are between them.
        assert!(found.difference < 0.03, "{found:?}");
        assert!(found.difference > 0.0 || !lab.features().integer_dot, "{found:?}");
        assert!(found.plain > 0.0 && found.fused > 0.0);
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("plain: ") && text.contains("5 dispatches") && text.contains("ratio: "), "{text}");
    }
}
