//! Time of the products of a layer of the 27B model with trellis weights, for few columns, in several variants.

use std::io::Write;

use tensor::format::trellis::{Codebook, Rate};
use tensor::{BackendError, TrellisFormat};

use super::product::{Gated, Meeting, Tiling, gate_up, product};
use super::rotated::{Rotated, RotatedForm};
use super::weight::TrellisWeight;
use crate::dispatch::Dispatch;
use crate::features::Features;
use crate::kernel::View;
use crate::kernel::matvec::COLUMNS_MAX;
use crate::kernel::norm::{Output, Scale, norm};
use crate::lab::Lab;
use crate::leave;

/// Layers that are gone through, so that no cache holds their weights.
const LAYERS: usize = 16;

/// Outputs and inputs of queries, keys, values, out, gate, up and down.
const SHAPES: [(usize, usize); 7] =
    [(4096, 5376), (2048, 5376), (2048, 5376), (5376, 4096), (21504, 5376), (21504, 5376), (5376, 21504)];

/// Weights of layers and memory for their activations; whatever is in it.
struct Layers {
    weights: Vec<[TrellisWeight; 7]>,
    input: (u64, u64),
    other: (u64, u64),
    targets: [View; 3],
    residual: View,
    norm: Scale,
    meeting: Meeting,
    left: u64,
}

/// The products of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    QueryKeyValue,
    Out,
    GateUp,
    Down,
}

impl Layers {
    fn new(lab: &mut Lab) -> Result<Layers, BackendError> {
        let format =
            TrellisFormat { rate: Rate::from_half_bits(5).expect("a rate"), codebook: Codebook::Mul1, rotation: 0 };
        let zeros = lab.upload(&[0; 1 << 16])?.address;
        let mut memory = |bytes: usize| lab.allocate(bytes);
        let mut weights = Vec::new();
        for _ in 0..LAYERS {
            let mut layer = SHAPES.map(|(rows, columns)| TrellisWeight { address: 0, format, rows, columns });
            for weight in &mut layer {
                weight.address = memory(weight.bytes())?;
            }
            weights.push(layer);
        }
        let mut activations =
            || -> Result<_, BackendError> { Ok((memory(4 * COLUMNS_MAX * 21504)?, memory(COLUMNS_MAX * 21504)?)) };
        let (input, other) = (activations()?, activations()?);
        let mut view = |width: usize| -> Result<View, BackendError> {
            Ok(View { address: memory(4 * COLUMNS_MAX * width)?, width })
        };
        let targets = [view(5376)?, view(2048)?, view(2048)?];
        let residual = view(5376)?;
        let norm = Scale { weight: memory(4 * 5376)?, epsilon: 1e-6 };
        let meeting = Meeting { partials: memory(64 << 20)?, arrivals: zeros };
        Ok(Layers { weights, input, other, targets, residual, norm, meeting, left: memory(64 << 20)? })
    }

    fn tiling(features: &Features, part: Part, columns: usize) -> Tiling {
        let (matrices, blocks, steps) = match part {
            Part::QueryKeyValue => (1, 64, 42),
            Part::Out => (1, 42, 32),
            Part::GateUp => (2, 168, 42),
            Part::Down => (1, 42, 168),
        };
        Tiling::new(features, matrices, blocks, steps, columns)
    }

    fn part(
        &self,
        features: &Features,
        part: Part,
        layer: usize,
        (form, columns): (RotatedForm, usize),
        tiling: Tiling,
    ) -> Dispatch {
        let [query, key, value, out, gate, up, down] = self.weights[layer];
        let (input, other) = match part {
            Part::Down => (self.other, self.input),
            Part::QueryKeyValue | Part::Out | Part::GateUp => (self.input, self.other),
        };
        let rotated = |(values, sums): (u64, u64)| Rotated { form, values, sums };
        let view = |index: usize, width: usize| View { width, ..self.targets[index] };
        let parts = match part {
            Part::QueryKeyValue => vec![(query, view(0, 4096)), (key, view(1, 2048)), (value, view(2, 2048))],
            Part::Out => vec![(out, view(0, 5376))],
            Part::Down => vec![(down, view(0, 5376))],
            Part::GateUp => {
                let target = Gated::Rotated(rotated(other), down.input_scales());
                return gate_up(features, [gate, up], rotated(input), target, columns, tiling, self.meeting);
            }
        };
        product(features, &parts, rotated(input), columns, tiling, self.meeting)
    }

    fn norm(&self, features: &Features, layer: usize, (form, columns): (RotatedForm, usize)) -> Dispatch {
        let rotated = Rotated { form, values: self.input.0, sums: self.input.1 };
        let scales = self.weights[layer][0].input_scales();
        let output = Output { scale: self.norm, floats: None, quantized: None, rotated: Some((rotated, scales)) };
        norm(features, Some((View { width: 5376, ..self.targets[0] }, self.norm)), self.residual, Some(output), columns)
    }
}

/// Prints a table of times.
///
/// # Errors
/// A device that fails.
pub fn measure(index: Option<usize>, out: &mut dyn Write) -> Result<(), BackendError> {
    let mut lab = Lab::open(index)?;
    let features = lab.features().clone();
    let _ = writeln!(out, "matrices 16x8: {}, layout: {}", features.matrix_16x8, features.matrix_layout);
    let layers = Layers::new(&mut lab)?;
    let mut columns = vec![(RotatedForm::Integers, 1), (RotatedForm::Integers, 8)];
    if features.matrix_layout {
        columns.extend([(RotatedForm::Halfs, 1), (RotatedForm::Halfs, 8)]);
    }
    for columns in columns {
        let parts = [Part::QueryKeyValue, Part::Out, Part::GateUp, Part::Down];
        let mut best = Vec::new();
        for part in parts {
            best.push(tilings(&mut lab, &layers, part, columns, out)?);
        }
        let usual = parts.map(|part| Layers::tiling(&features, part, columns.1));
        for (name, tilings) in [("usual", usual.to_vec()), ("best", best)] {
            let layer = |layer: usize| {
                let product = |index: usize| layers.part(&features, parts[index], layer, columns, tilings[index]);
                let norm = || layers.norm(&features, layer, columns);
                [norm(), product(0), product(1), norm(), product(2), product(3)]
            };
            let mut dispatches: Vec<Dispatch> = (0..LAYERS).flat_map(layer).collect();
            let mut measure = |dispatches: &[Dispatch], what: &str| -> Result<(), BackendError> {
                let time = lab.time(dispatches, 3)?.as_secs_f64() / (3 * LAYERS) as f64;
                let _ = writeln!(out, "{columns:?} a layer, {name} tilings, {what}: {:.1} us", time * 1e6);
                Ok(())
            };
            measure(&dispatches, "products add up")?;
            leave::insert(layers.left, &mut dispatches);
            measure(&dispatches, "norms add up")?;
        }
    }
    Ok(())
}

/// One product in several tilings, one behind the other and not waiting for each other; the best one behind the other.
fn tilings(
    lab: &mut Lab,
    layers: &Layers,
    part: Part,
    columns: (RotatedForm, usize),
    out: &mut dyn Write,
) -> Result<Tiling, BackendError> {
    let features = lab.features().clone();
    let usual = Layers::tiling(&features, part, columns.1);
    let mut best = (f64::MAX, usual);
    for tiling in variants(part) {
        let dispatches: Vec<Dispatch> =
            (0..LAYERS).map(|layer| layers.part(&features, part, layer, columns, tiling)).collect();
        let mut times = [0.0; 2];
        for (chained, time) in [true, false].into_iter().zip(&mut times) {
            let region = |number: usize| vec![if chained { 1 } else { number as u64 }];
            let all: Vec<Dispatch> = dispatches
                .iter()
                .enumerate()
                .map(|(number, dispatch)| Dispatch {
                    reads: region(number),
                    writes: region(number),
                    ..dispatch.clone()
                })
                .collect();
            // Slices of dispatches that don't wait would meet in the same place.
            if chained || tiling.slices == 1 {
                *time = lab.time(&all, 3)?.as_secs_f64() / (3 * LAYERS) as f64 * 1e6;
            }
        }
        let Tiling { split, slices } = tiling;
        let usually = if tiling == usual { " (usual)" } else { "" };
        let [chained, free] = times;
        let _ = writeln!(
            out,
            "{part:?} {columns:?} split {split} slices {slices}: {chained:.2} us, not waiting {free:.2} us{usually}"
        );
        let _ = out.flush();
        if chained < best.0 {
            best = (chained, tiling);
        }
    }
    Ok(best.1)
}

fn variants(part: Part) -> Vec<Tiling> {
    let variants: &[(u32, usize)] = match part {
        Part::QueryKeyValue => &[(7, 2), (6, 2), (3, 4)],
        Part::Out => &[(8, 3), (4, 3), (2, 6)],
        Part::GateUp => &[(2, 3), (3, 2), (1, 6)],
        Part::Down => &[(8, 3), (4, 3), (4, 6)],
    };
    variants.iter().map(|&(split, slices)| Tiling { split, slices }).collect()
}
