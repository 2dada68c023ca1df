//! Times of what a decoding pass consists of, in several variants: for choosing among them on a device.

use std::io::Write;

use tensor::{BackendError, DType};

use super::{Gated, Input, Tiling, gate_up, matvec};
use crate::dispatch::Dispatch;
use crate::kernel::norm::{Output, Scale, norm};
use crate::kernel::{Arrangement, HalfOrder, Quantized, View, add, pitch};
use crate::lab::Lab;
use crate::layout::Weight;

/// Bytes of weights that a measurement goes through, so that no cache holds them.
const BYTES: usize = 600 << 20;

/// Name, columns, rows of the matrices, and whether they are gate and up.
const SHAPES: [(&str, usize, &[usize], bool); 9] = [
    ("27b qkv", 5376, &[4096, 2048, 2048], false),
    ("27b out", 4096, &[5376], false),
    ("27b gate up", 5376, &[21504, 21504], true),
    ("27b down", 21504, &[5376], false),
    ("27b head", 5376, &[262_208], false),
    ("1b qkv", 1152, &[1024, 256, 256], false),
    ("1b out", 1024, &[1152], false),
    ("1b gate up", 1152, &[6912, 6912], true),
    ("1b down", 6912, &[1152], false),
];

const fn tiling(rows: u32, abreast: u32, split: u32, subgroups: u32, unroll: u32) -> Tiling {
    Tiling { rows, split, subgroups, unroll, abreast, matrices: false }
}

/// Tilings worth a try.
const TILINGS: [Tiling; 14] = [
    tiling(2, 4, 4, 4, 1),
    tiling(2, 2, 2, 2, 1),
    tiling(2, 2, 2, 8, 1),
    tiling(2, 2, 8, 8, 1),
    tiling(2, 2, 16, 16, 1),
    tiling(2, 1, 8, 8, 1),
    tiling(2, 1, 16, 16, 1),
    tiling(4, 1, 1, 2, 1),
    tiling(4, 1, 2, 2, 1),
    tiling(4, 1, 2, 4, 1),
    tiling(4, 1, 8, 8, 1),
    tiling(3, 1, 1, 2, 1),
    tiling(3, 1, 4, 4, 1),
    tiling(4, 1, 1, 3, 1),
];

/// Tilings for gate and up: 32 rows a workgroup, or multiples.
const GATED: [Tiling; 7] = [
    tiling(2, 2, 1, 8, 1),
    tiling(2, 2, 2, 16, 1),
    tiling(2, 4, 1, 4, 1),
    tiling(2, 1, 1, 16, 1),
    tiling(4, 1, 1, 8, 1),
    tiling(4, 2, 1, 4, 1),
    tiling(1, 2, 1, 16, 1),
];

/// A lab with activations.
struct Bench<'a> {
    lab: &'a mut Lab,
    input: Quantized,
    output: View,
    quants: Quantized,
    arrivals: u64,
}

impl Bench<'_> {
    /// Time of one dispatch among dispatches that depend on each other, and its bytes per second.
    fn line(&mut self, name: &str, dispatches: &[Dispatch], out: &mut dyn Write) -> Result<(), BackendError> {
        let chained: Vec<Dispatch> = dispatches
            .iter()
            .map(|dispatch| Dispatch { reads: vec![1], writes: vec![1], ..dispatch.clone() })
            .collect();
        let time = self.lab.time(&chained, 3)?.as_secs_f64() / (3 * chained.len()) as f64;
        let bytes = dispatches.iter().map(|dispatch| dispatch.bytes).sum::<u64>() as f64 / dispatches.len() as f64;
        let _ = writeln!(out, "{name:34} {:8.2} us {:7.0} GB/s", time * 1e6, bytes / time / 1e9);
        let _ = out.flush();
        Ok(())
    }

    fn products(&mut self, dtype: DType, columns: usize, out: &mut dyn Write) -> Result<(), BackendError> {
        let memory = self.lab.allocate(BYTES + (900 << 20))?;
        for (name, width, rows, gated) in SHAPES {
            if name.starts_with("1b") || columns > 1 && name.ends_with("head") {
                continue;
            }
            let weight = |address, rows| Weight { address, dtype, rows, columns: width };
            let bytes: usize = rows.iter().map(|&rows| weight(0, rows).bytes().next_multiple_of(256)).sum();
            let copies = (BYTES / bytes).clamp(1, 64);
            let tilings: &[Tiling] = if gated { &GATED } else { &TILINGS };
            for &tiling in tilings.iter().filter(|tiling| tiling.rows as usize * columns <= 32) {
                let dispatches: Vec<Dispatch> = (0..copies)
                    .map(|copy| {
                        let mut at = memory + (copy * bytes) as u64;
                        let parts: Vec<(Weight, View)> = rows
                            .iter()
                            .map(|&rows| {
                                let weight = weight(at, rows);
                                at += weight.bytes().next_multiple_of(256) as u64;
                                (weight, View { width: rows, ..self.output })
                            })
                            .collect();
                        let arrangement = Arrangement { order: HalfOrder::of(dtype), half_scales: false };
                        let input = Input::Quantized(Quantized { arrangement, ..self.input });
                        let features = self.lab.features();
                        if gated {
                            let whole = tiling.group_rows().is_multiple_of(32);
                            let shared =
                                Gated::Shared { quantized: self.quants, floats: self.output, arrivals: self.arrivals };
                            let target = if whole { Gated::Quantized(self.quants) } else { shared };
                            return gate_up(features, parts[0].0, parts[1].0, input, target, columns, tiling);
                        }
                        matvec(features, &parts, input, columns, tiling)
                    })
                    .collect();
                let Tiling { rows, split, subgroups, unroll, abreast, .. } = tiling;
                let name = format!("{name} {dtype}×{columns} {rows}·{abreast} {split} {subgroups} {unroll}");
                self.line(&name, &dispatches, out)?;
            }
        }
        Ok(())
    }

    fn norms(&mut self, out: &mut dyn Write) -> Result<(), BackendError> {
        for width in [1152, 5376] {
            let update = View { address: self.output.address, width };
            let residual = View { address: self.output.address + (1 << 20), width };
            let scale = Scale { weight: self.input.values, epsilon: 1e-6 };
            let output = Output { scale, floats: None, quantized: Some(self.quants), rotated: None };
            let dispatch = norm(self.lab.features(), Some((update, scale)), residual, Some(output), 1);
            self.line(&format!("norm {width}"), &vec![dispatch; 100], out)?;
        }
        let view = View { address: self.output.address, width: 128 };
        let dispatch = add::add(self.lab.features(), view, view, 1);
        self.line("one workgroup", &vec![dispatch; 200], out)
    }
}

/// Prints a table of times.
///
/// # Errors
/// A device that fails.
pub fn measure(index: Option<usize>, out: &mut dyn Write) -> Result<(), BackendError> {
    let mut lab = Lab::open(index)?;
    let _ = writeln!(out, "{:?}", lab.features());
    let values = lab.allocate(1 << 20)?;
    let quants = Quantized { values, sums: values + (1 << 19), ..Quantized::default() };
    let output = View { address: lab.allocate(8 * 4 * pitch(262_208) + (2 << 20))?, width: 1 };
    let input = Quantized { values: lab.allocate(1 << 20)?, sums: lab.allocate(1 << 20)?, ..Quantized::default() };
    let arrivals = lab.upload(&[0; 1 << 14])?.address;
    let output = View { width: 21504, ..output };
    let mut bench = Bench { lab: &mut lab, input, output, quants, arrivals };
    bench.norms(out)?;
    for (dtype, columns) in [(DType::Q4_0, 8), (DType::Q4_K, 8), (DType::Q4_0, 4)] {
        bench.products(dtype, columns, out)?;
    }
    Ok(())
}
