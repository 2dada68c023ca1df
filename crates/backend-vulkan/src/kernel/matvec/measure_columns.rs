//! Time of a layer's products with several columns: by integer dot products and by matrix instructions.

use std::io::Write;
use std::time::Duration;

use tensor::{BackendError, DType};

use super::tiling::{Tiling, gated_tiling, matrix, matrix_gated_tiling, matrix_tiling, tiling};
use super::{COLUMNS_MAX, Gated, Input, gate_up, matvec};
use crate::dispatch::Dispatch;
use crate::features::Features;
use crate::kernel::norm::{Output, Scale, norm};
use crate::kernel::{Arrangement, HalfOrder, Quantized, View};
use crate::lab::Lab;
use crate::layout::Weight;

/// Layers that are gone through, so that no cache holds their weights nor the addresses of all of them.
const LAYERS: usize = 12;

/// Columns and rows of the products of a layer of the 27B model.
const SHAPES: [(&str, usize, &[usize]); 4] = [
    ("out", 4096, &[5376]),
    ("gate up", 5376, &[21504, 21504]),
    ("down", 21504, &[5376]),
    ("qkv", 5376, &[4096, 2048, 2048]),
];

/// Rows of a lane, subgroups that share them, such sets of a workgroup, and `unroll`.
type Variant = (u32, u32, u32, u32);

/// For all but gate and up.
const PLAIN: [Variant; 6] = [(2, 4, 1, 1), (2, 4, 1, 2), (2, 8, 1, 1), (2, 8, 1, 2), (4, 8, 1, 1), (2, 4, 2, 1)];

/// For gate and up: whole blocks of 32 rows.
const GATED: [Variant; 6] = [(2, 2, 2, 1), (2, 2, 2, 2), (2, 3, 2, 1), (2, 4, 2, 1), (2, 2, 4, 1), (4, 2, 1, 1)];

/// A lab with weights and activations; whatever is in them.
struct Bench {
    lab: Lab,
    memory: u64,
    input: Quantized,
    quants: Quantized,
    output: View,
    norm: Scale,
}

impl Bench {
    fn new(index: Option<usize>, dtype: DType) -> Result<Bench, BackendError> {
        let mut lab = Lab::open(index)?;
        let bytes: usize = SHAPES.iter().map(|(_, width, rows)| product_bytes(dtype, *width, rows)).sum();
        let memory = lab.allocate(LAYERS * bytes)?;
        let mut quantized = || -> Result<Quantized, BackendError> {
            let bytes = COLUMNS_MAX * 21504;
            Ok(Quantized { values: lab.allocate(bytes)?, sums: lab.allocate(bytes)?, ..Quantized::default() })
        };
        let (input, quants) = (quantized()?, quantized()?);
        let output = View { address: lab.allocate(COLUMNS_MAX * 4 * 21504)?, width: 21504 };
        let norm = Scale { weight: lab.allocate(4 * 5376)?, epsilon: 1e-6 };
        Ok(Bench { lab, memory, input, quants, output, norm })
    }

    fn norm(&self, dtype: DType, columns: usize) -> Dispatch {
        let view = View { width: 5376, ..self.output };
        let quantized = Some(Quantized { arrangement: arrangement(dtype), ..self.quants });
        let target = Output { scale: self.norm, floats: None, quantized, rotated: None };
        norm(self.lab.features(), Some((view, self.norm)), view, Some(target), columns)
    }

    /// One product of all layers.
    fn product(&self, dtype: DType, columns: usize, index: usize, tiling: Tiling) -> Vec<Dispatch> {
        let arrangement = arrangement(dtype);
        let before: usize = SHAPES[..index].iter().map(|(_, width, rows)| product_bytes(dtype, *width, rows)).sum();
        let (name, width, rows) = SHAPES[index];
        let mut at = self.memory + (LAYERS * before) as u64;
        let features = self.lab.features();
        let one = |_| {
            let weights = rows.iter().map(|&rows| {
                let weight = Weight { address: at, dtype, rows, columns: width };
                at += weight.bytes().next_multiple_of(256) as u64;
                (weight, View { width: rows, ..self.output })
            });
            let parts: Vec<_> = weights.collect();
            let input = Input::Quantized(Quantized { arrangement, ..self.input });
            match name {
                "gate up" => {
                    let target = Gated::Quantized(Quantized { arrangement, ..self.quants });
                    gate_up(features, parts[0].0, parts[1].0, input, target, columns, tiling)
                }
                _ => matvec(features, &parts, input, columns, tiling),
            }
        };
        (0..LAYERS).map(one).collect()
    }

    /// Microseconds of each of these dispatches, one behind the other and without waiting.
    fn times(&mut self, dispatches: &[Dispatch]) -> Result<[f64; 2], BackendError> {
        let mut times = [0.0; 2];
        for (chained, time) in [true, false].into_iter().zip(&mut times) {
            let all = dispatches.iter().enumerate().map(|(number, dispatch)| {
                let region = vec![if chained { 1 } else { number as u64 }];
                Dispatch { reads: region.clone(), writes: region, ..dispatch.clone() }
            });
            let all: Vec<Dispatch> = all.collect();
            *time = self.lab.time(&all, 5)?.as_secs_f64() / (5 * all.len()) as f64 * 1e6;
        }
        Ok(times)
    }

    /// A layer's products, with the norms between them, of these tilings.
    fn layer(&mut self, dtype: DType, columns: usize, ways: &[Tiling]) -> Result<f64, BackendError> {
        let norm = self.norm(dtype, columns);
        let products: Vec<_> =
            ways.iter().enumerate().map(|(index, &way)| self.product(dtype, columns, index, way)).collect();
        let layer = |layer: usize| {
            let [out, gate_up, down, qkv] = [0, 1, 2, 3].map(|index| products[index][layer].clone());
            [out, norm.clone(), gate_up, down, norm.clone(), qkv]
        };
        let all: Vec<Dispatch> = (0..LAYERS).flat_map(layer).collect();
        let chained: Vec<Dispatch> =
            all.into_iter().map(|dispatch| Dispatch { reads: vec![1], writes: vec![1], ..dispatch }).collect();
        Ok(self.lab.time(&chained, 5)?.as_secs_f64() / (5 * LAYERS) as f64 * 1e6)
    }
}

fn arrangement(dtype: DType) -> Arrangement {
    Arrangement { order: HalfOrder::of(dtype), half_scales: false }
}

fn product_bytes(dtype: DType, columns: usize, rows: &[usize]) -> usize {
    rows.iter().map(|&rows| Weight { address: 0, dtype, rows, columns }.bytes().next_multiple_of(256)).sum()
}

/// By integers as they would be, by matrices as they would be, and by matrices in other ways.
fn ways(features: &Features, dtype: DType, columns: usize, index: usize) -> Vec<Tiling> {
    let (name, width, rows) = SHAPES[index];
    let weight = Weight { address: 0, dtype, rows: rows.iter().sum(), columns: width };
    let gated = name == "gate up";
    let old = match gated {
        true => gated_tiling(features, dtype, columns),
        false => tiling(features, dtype, weight.rows, weight.units(), columns),
    };
    if !features.matrix_layout {
        return vec![old];
    }
    let new = match gated {
        true => matrix_gated_tiling(features, dtype),
        false => matrix_tiling(features, dtype),
    };
    let variants = if gated { &GATED[..] } else { &PLAIN[..] };
    let others = variants.iter().map(|&(rows, split, sets, unroll)| matrix(features, rows, split, sets, unroll));
    [old, new].into_iter().chain(others.filter(|&tiling| tiling != new)).collect()
}

/// Prints a table of times for products with weights of a format and that many columns, 2 to 8.
///
/// # Errors
/// A device that fails.
pub fn measure_columns(
    index: Option<usize>,
    dtype: DType,
    columns: usize,
    out: &mut dyn Write,
) -> Result<(), BackendError> {
    let mut bench = Bench::new(index, dtype)?;
    let features = bench.lab.features().clone();
    let ways: Vec<Vec<Tiling>> = (0..SHAPES.len()).map(|index| ways(&features, dtype, columns, index)).collect();
    // While a pipeline is compiled clocks fall, so that is done before.
    for (index, &way) in ways.iter().enumerate().flat_map(|(index, ways)| ways.iter().map(move |way| (index, way))) {
        bench.lab.run(&bench.product(dtype, columns, index, way)[..1])?;
    }
    let mut best = Vec::new();
    for (index, ways) in ways.iter().enumerate() {
        let mut tried = (f64::MAX, ways[0]);
        for &tiling in ways {
            let dispatches = bench.product(dtype, columns, index, tiling);
            let [chained, free] = bench.times(&dispatches)?;
            bench.lab.warm_up = Duration::from_millis(50);
            let Tiling { rows, split, subgroups, unroll, matrices, .. } = tiling;
            let (name, what) = (SHAPES[index].0, if matrices { "matrices" } else { "integers" });
            let way = format!("rows {rows} split {split} subgroups {subgroups} unroll {unroll}");
            let mark = if ways.get(1) == Some(&tiling) { " (chosen)" } else { "" };
            let line = format!("{dtype}×{columns} {name:8} {what} {way:38}");
            let _ = writeln!(out, "{line} {chained:7.2} us, not waiting {free:7.2} us{mark}");
            if matrices && chained < tried.0 {
                tried = (chained, tiling);
            }
        }
        best.push(tried.1);
    }
    let chosen = |number: usize| -> Vec<Tiling> { ways.iter().filter_map(|ways| ways.get(number)).copied().collect() };
    for (name, ways) in [("integers", chosen(0)), ("matrices, chosen", chosen(1)), ("matrices, best", best)] {
        if ways.len() == SHAPES.len() {
            let time = bench.layer(dtype, columns, &ways)?;
            let _ = writeln!(out, "{dtype}×{columns} a layer, {name}: {time:.2} us");
        }
    }
    let _ = out.flush();
    Ok(())
}
