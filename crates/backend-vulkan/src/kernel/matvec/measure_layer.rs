//! Time of a layer's products and norms in decoding, one behind the other, in several variants.

use std::io::Write;

use tensor::{BackendError, DType};

use super::{Gated, Input, Tiling, gate_up, gated_tiling, matvec, tiling};
use crate::announce;
use crate::dispatch::Dispatch;
use crate::features::Features;
use crate::kernel::attention::measure::LAYERS;
use crate::kernel::attention::{self, AttentionShape};
use crate::kernel::norm::{Output, Scale, norm};
use crate::kernel::{Arrangement, HalfOrder, Quantized, View};
use crate::lab::Lab;
use crate::layout::Weight;

/// Position of the token.
const DEPTH: usize = 64;

/// Dispatches of a layer.
const DISPATCHES: usize = 7;

/// Layers of the 27B model.
struct Layers {
    /// Out, gate, up, down, queries, keys, values.
    weights: Vec<[Weight; 7]>,
    attended: Quantized,
    normed: Quantized,
    gated: Quantized,
    residual: View,
    update: View,
    /// Address of marks.
    marks: u64,
    attention: Vec<Dispatch>,
    targets: [View; 3],
    norm: Scale,
}

impl Layers {
    fn new(lab: &mut Lab, dtype: DType) -> Result<Layers, BackendError> {
        let arrangement = Arrangement { order: HalfOrder::of(dtype), half_scales: false };
        let mut memory = |bytes: usize| lab.allocate(bytes);
        let mut quantized = |width: usize| -> Result<Quantized, BackendError> {
            Ok(Quantized { values: memory(width)?, sums: memory(width)?, arrangement })
        };
        let (attended, normed, mut gated) = (quantized(4096)?, quantized(5376)?, quantized(21504)?);
        gated.arrangement.half_scales = true;
        let mut view = |width: usize| -> Result<View, BackendError> { Ok(View { address: memory(4 * width)?, width }) };
        let (residual, update) = (view(5376)?, view(5376)?);
        let targets = [view(4096)?, view(2048)?, view(2048)?];
        let norm = Scale { weight: memory(4 * 5376)?, epsilon: 1e-6 };
        let shapes =
            [(5376, 4096), (21504, 5376), (21504, 5376), (5376, 21504), (4096, 5376), (2048, 5376), (2048, 5376)];
        let mut weights = Vec::new();
        for _ in 0..LAYERS {
            let mut layer = shapes.map(|(rows, columns)| Weight { address: 0, dtype, rows, columns });
            for weight in &mut layer {
                weight.address = memory(weight.bytes())?;
            }
            weights.push(layer);
        }
        let shape = AttentionShape {
            heads: 32,
            kv_heads: 16,
            head_dim: 128,
            window: None,
            scale: 0.1,
            cache_dtype: DType::F16,
            ring: 4096,
        };
        let mut attention = attention::measure::Layers::new(lab, shape)?;
        attention.quantized = attended;
        (attention.prepare.query, attention.prepare.key, attention.prepare.value) =
            (targets[0], targets[1], targets[2]);
        let attention = attention.dispatches(lab, DEPTH)?;
        let marks = lab.upload(&vec![0; 4 * announce::MARKS])?.address;
        Ok(Layers { weights, attended, normed, gated, residual, update, marks, attention, targets, norm })
    }

    fn dispatches(&self, features: &Features, variant: &Variant) -> Vec<Dispatch> {
        let output = Output { scale: self.norm, floats: None, quantized: Some(self.normed), rotated: None };
        let between = || norm(features, Some((self.update, self.norm)), self.residual, Some(output), 1);
        let product = |parts: &[(Weight, View)], input: Quantized, tiling: Tiling| {
            matvec(features, parts, Input::Quantized(input), 1, tiling)
        };
        let layer = |(&[out, gate, up, down, query, key, value], attention): (&[Weight; 7], &Dispatch)| {
            let last = [query, key, value].into_iter().zip(self.targets).collect::<Vec<_>>();
            let (input, target) = (Input::Quantized(self.normed), Gated::Quantized(self.gated));
            [
                product(&[(out, self.update)], self.attended, variant.out),
                between(),
                gate_up(features, gate, up, input, target, 1, variant.gate_up),
                product(&[(down, self.update)], self.gated, variant.down),
                between(),
                product(&last, self.normed, variant.qkv),
                attention.clone(),
            ]
        };
        let mut dispatches: Vec<Dispatch> = self.weights.iter().zip(&self.attention).flat_map(layer).collect();
        if variant.joins {
            announce::insert(features, self.marks, &mut dispatches);
        }
        dispatches
    }
}

/// How the products are divided.
#[derive(Clone, Copy, Debug)]
struct Variant {
    out: Tiling,
    gate_up: Tiling,
    down: Tiling,
    qkv: Tiling,
    /// Whether products begin together with norms and attention.
    joins: bool,
}

/// A product of a layer.
#[derive(Clone, Copy, Debug)]
enum Product {
    GateUp,
    Down,
    QueryKeyValue,
    Out,
}

impl Product {
    const ALL: [Product; 4] = [Product::GateUp, Product::Down, Product::QueryKeyValue, Product::Out];

    fn tilings(self) -> &'static [Tiling] {
        match self {
            Product::GateUp => &GATED,
            Product::Down | Product::QueryKeyValue | Product::Out => &PLAIN,
        }
    }
}

impl Variant {
    fn with(self, product: Product, tiling: Tiling) -> Variant {
        match product {
            Product::GateUp => Variant { gate_up: tiling, ..self },
            Product::Down => Variant { down: tiling, ..self },
            Product::QueryKeyValue => Variant { qkv: tiling, ..self },
            Product::Out => Variant { out: tiling, ..self },
        }
    }
}

fn short(tiling: Tiling) -> String {
    let Tiling { rows, split, subgroups, unroll, .. } = tiling;
    format!("{rows}/{split}/{subgroups}/{unroll}")
}

/// Prints a table of times.
///
/// # Errors
/// A device that fails.
pub fn measure_layer(index: Option<usize>, out: &mut dyn Write) -> Result<(), BackendError> {
    let mut lab = Lab::open(index)?;
    let features = lab.features().clone();
    for dtype in [DType::Q4_0, DType::Q4_K] {
        let layers = Layers::new(&mut lab, dtype)?;
        let usual =
            |rows, columns| tiling(&features, dtype, rows, Weight { address: 0, dtype, rows, columns }.units(), 1);
        let usual = Variant {
            out: usual(5376, 4096),
            gate_up: gated_tiling(&features, dtype, 1),
            down: usual(5376, 21504),
            qkv: usual(8192, 5376),
            joins: false,
        };
        parts(&mut lab, &layers, &usual, out)?;
        let mut line = |variant: Variant| -> Result<f64, BackendError> {
            let dispatches = layers.dispatches(&features, &variant);
            let bytes: u64 = dispatches.iter().map(|dispatch| dispatch.bytes).sum();
            let time = lab.time(&dispatches, 5)?.as_secs_f64() / (5 * LAYERS) as f64;
            let speed = bytes as f64 / LAYERS as f64 / time / 1e9;
            let Variant { out: first, gate_up, down, qkv, joins } = variant;
            let _ = writeln!(
                out,
                "{dtype} out {:10} gate_up {:10} down {:10} qkv {:10} {} {:8.2} us {speed:5.0} GB/s",
                short(first),
                short(gate_up),
                short(down),
                short(qkv),
                if joins { "joins" } else { "waits" },
                time * 1e6
            );
            let _ = out.flush();
            Ok(time)
        };
        let joined = Variant { joins: true, ..usual };
        let mut best = (line(usual)?, usual);
        let time = line(joined)?;
        if time < best.0 {
            best = (time, joined);
        }
        // One product after the other, each with the best tilings of those before.
        for product in Product::ALL {
            for &tiling in product.tilings() {
                let variant = best.1.with(product, tiling);
                let time = line(variant)?;
                if time < best.0 {
                    best = (time, variant);
                }
            }
        }
        line(best.1)?;
    }
    Ok(())
}

/// Each product and norm by itself: one behind the other, and without waiting for each other.
fn parts(lab: &mut Lab, layers: &Layers, variant: &Variant, out: &mut dyn Write) -> Result<(), BackendError> {
    let features = lab.features().clone();
    let dispatches = layers.dispatches(&features, variant);
    for (index, name) in ["out", "norm", "gate up", "down", "norm", "qkv", "attention"].into_iter().enumerate() {
        let mut times = [0.0; 2];
        for (chained, time) in [true, false].into_iter().zip(&mut times) {
            let region = |number: usize| if chained { 1 } else { number as u64 };
            let part: Vec<Dispatch> = dispatches
                .iter()
                .skip(index)
                .step_by(DISPATCHES)
                .enumerate()
                .map(|(number, dispatch)| {
                    let regions = vec![region(number)];
                    Dispatch { reads: regions.clone(), writes: regions, ..dispatch.clone() }
                })
                .collect();
            *time = lab.time(&part, 5)?.as_secs_f64() / (5 * LAYERS) as f64;
        }
        let ideal = dispatches[index].bytes as f64 / 4.15e12;
        let [chained, free] = times.map(|time| time * 1e6);
        let _ = writeln!(
            out,
            "{name:9} waiting {chained:6.2} us, not waiting {free:6.2} us, at 4.15 TB/s {:6.2} us",
            ideal * 1e6
        );
    }
    Ok(())
}

const fn of(rows: u32, split: u32, subgroups: u32, unroll: u32) -> Tiling {
    Tiling { rows, split, subgroups, unroll, abreast: 1, matrices: false }
}

/// For gate and up: 16 rows a workgroup, or 32.
const GATED: [Tiling; 5] = [of(2, 1, 8, 1), of(2, 1, 8, 2), of(1, 1, 16, 1), of(1, 1, 16, 2), of(2, 1, 16, 1)];

/// For the others.
const PLAIN: [Tiling; 6] =
    [of(1, 1, 1, 1), of(1, 1, 4, 1), of(1, 1, 4, 4), of(1, 1, 8, 1), of(2, 1, 1, 2), of(2, 1, 2, 1)];
