use tensor::DType;

use super::tiling::matrix;
use super::*;
use crate::kernel::HalfOrder;
use crate::kernel::matmul::measure::{Random, random_weight};
use crate::kernel::quantize::quantize;
use crate::kernel::quantize::tests::in_order;
use crate::lab::Lab;
use crate::layout::repack;
use crate::memory::Slice;

/// Matrices, their weights, and activations in 8 bits.
struct Setup {
    lab: Lab,
    weights: Vec<(Weight, Vec<f32>)>,
    input: Quantized,
    values: Vec<f32>,
    outputs: Vec<(Slice, View)>,
}

impl Setup {
    fn new(mut lab: Lab, dtype: DType, order: HalfOrder, rows: &[usize], width: usize) -> Setup {
        let mut random = Random::new(width as u64);
        // Numbers that 8 bits hold exactly. The blocks of a row differ by powers of two.
        let mut value = |i: usize| {
            let number = if i.is_multiple_of(32) { 127.0 } else { random.uniform(-127.0, 127.0).round() };
            number * ((i / 32 * 7 % 25) as f32 - 16.0).exp2()
        };
        let values: Vec<f32> = (0..COLUMNS_MAX * width).map(&mut value).collect();
        let source = lab.upload(bytemuck::cast_slice(&values)).unwrap().address;
        let arrangement = Arrangement { order, half_scales: false };
        let numbers = lab.allocate(COLUMNS_MAX * width).unwrap();
        let sums = lab.allocate(COLUMNS_MAX * width / 2).unwrap();
        let input = Quantized { values: numbers, sums, arrangement };
        let quantized = quantize(lab.features(), View { address: source, width }, input, COLUMNS_MAX);
        lab.run(&[quantized]).unwrap();
        let mut setup = Setup { lab, weights: vec![], input, values, outputs: vec![] };
        for (index, &rows) in rows.iter().enumerate() {
            setup.add_weight(Weight { address: 0, dtype, rows, columns: width }, index as u64);
        }
        setup
    }

    fn add_weight(&mut self, mut weight: Weight, seed: u64) {
        let Weight { dtype, rows, columns, .. } = weight;
        let bytes = random_weight(dtype, rows, columns, seed);
        let mut decoded = vec![0.0; rows * columns];
        dtype.codec().decode(&bytes, &mut decoded);
        let source = self.lab.upload(&bytes).unwrap().address;
        weight.address = self.lab.allocate(weight.bytes()).unwrap();
        let features = self.lab.features();
        let repacked = repack(features, source, weight.address, dtype, rows, columns);
        self.lab.run(&[repacked]).unwrap();
        let slice = self.lab.upload(&vec![0xff; 4 * COLUMNS_MAX * crate::kernel::pitch(rows)]).unwrap();
        self.outputs.push((slice, View { address: slice.address, width: rows }));
        self.weights.push((weight, decoded));
    }

    /// The products of some columns: of each matrix, column after column.
    fn products(&mut self, columns: usize, tiling: Tiling) -> Vec<Vec<f32>> {
        let parts: Vec<_> =
            self.weights.iter().zip(&self.outputs).map(|(weight, output)| (weight.0, output.1)).collect();
        let dispatch = matvec(self.lab.features(), &parts, Input::Quantized(self.input), columns, tiling);
        self.lab.run(&[dispatch]).unwrap();
        (0..parts.len()).map(|index| self.output(index, columns)).collect()
    }

    fn output(&mut self, index: usize, columns: usize) -> Vec<f32> {
        let (slice, view) = self.outputs[index];
        let bytes = self.lab.download(slice, 4 * columns * view.pitch()).unwrap();
        let rows: &[f32] = bytemuck::cast_slice(&bytes);
        rows.chunks(view.pitch()).flat_map(|row| &row[..view.width]).copied().collect()
    }

    /// The exact products of a matrix with some columns, and √Σ (w·x)² for each.
    fn expected(&self, index: usize, columns: usize) -> Vec<(f64, f64)> {
        let (weight, decoded) = &self.weights[index];
        let product = |x: &[f32], row: &[f32]| {
            let terms = x.iter().zip(row).map(|(&x, &w)| f64::from(x) * f64::from(w));
            terms.fold((0.0, 0.0), |(sum, squares), term| (sum + term, squares + term * term))
        };
        let inputs = self.values.chunks(weight.columns).take(columns);
        let products = inputs.flat_map(|x| decoded.chunks(weight.columns).map(move |row| product(x, row)));
        products.map(|(sum, squares)| (sum, squares.sqrt())).collect()
    }
}

/// How far products with f16 may be off, as a fraction of √Σ (w·x)²: roundings of 2⁻¹² of weights, of activations and
/// of the scales of both; where a weight is a difference, of what is subtracted.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q2_K | DType::Q4_K | DType::Q5_K => 1e-2,
        _ => 2e-3,
    }
}

/// A device whose lanes hold the elements of matrices as the kernel expects them.
fn lab() -> Option<Lab> {
    Lab::for_tests_with("matrix instructions with that layout", |features| features.matrix_layout)
}

/// Widths with and without steps that not all lanes have units for, and less than a step.
fn widths(dtype: DType) -> &'static [usize] {
    if dtype.block_len() == 32 { &[32, 96, 352, 1280] } else { &[256, 768, 1280] }
}

#[test]
fn products_by_matrices_are_those_of_the_decoded_weights() {
    for dtype in DType::ALL.into_iter().filter(|dtype| dtype.block_len() > 1) {
        for (index, &width) in widths(dtype).iter().enumerate() {
            let Some(lab) = lab() else { return };
            let features = lab.features().clone();
            // Halves in an order of fours are for whole fours of them.
            let foreign = index % 2 == 1 && width.is_multiple_of(64);
            let order = if foreign { HalfOrder::Fours } else { HalfOrder::of(dtype) };
            let mut setup = Setup::new(lab, dtype, order, &[37, 16, 1], width);
            let chosen = matrix_tiling(&features, dtype);
            for (columns, tiling) in [(2, chosen), (5, matrix(&features, 4, 3, 1, 2)), (8, chosen)] {
                for (index, found) in setup.products(columns, tiling).iter().enumerate() {
                    let expected = setup.expected(index, columns);
                    assert_eq!(found.len(), expected.len());
                    for (at, (&found, (expected, size))) in found.iter().zip(expected).enumerate() {
                        let error = (f64::from(found) - expected).abs();
                        assert!(
                            error <= tolerance(dtype) * size,
                            "{dtype} {width}, matrix {index}, {columns} columns, {tiling:?}: \
                             {found} for {expected} at {at}, {} of {size}",
                            error / size
                        );
                    }
                }
            }
        }
    }
}

/// What goes out as f32, and in 8 bits (half a step is 4e-3) by one workgroup or several for a block.
#[test]
fn gate_and_up_by_matrices_are_those_of_the_decoded_weights() {
    let (dtype, rows, width, columns) = (DType::Q4_0, 96, 352, 7);
    let Some(lab) = lab() else { return };
    let features = lab.features().clone();
    let mut setup = Setup::new(lab, dtype, HalfOrder::Pairs, &[rows, rows], width);
    let (gate, up) = (setup.weights[0].0, setup.weights[1].0);
    let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
    let pairs = setup.expected(0, columns).into_iter().zip(setup.expected(1, columns));
    let expected: Vec<f64> = pairs.map(|((gate, _), (up, _))| gelu(gate) * up).collect();
    let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
    let (floats, spare) = (setup.outputs[0].1, setup.outputs[1].1);
    let arrangement = Arrangement { order: HalfOrder::Pairs, half_scales: false };
    let sums = setup.lab.upload(&vec![0; columns * rows / 2]).unwrap();
    let numbers = setup.lab.upload(&vec![0; columns * rows]).unwrap();
    let arrivals = setup.lab.upload(&[0; 64]).unwrap().address;
    let quantized = Quantized { values: numbers.address, sums: sums.address, arrangement };
    let shared = Gated::Shared { quantized, floats: spare, arrivals };
    for (target, tiling) in [
        (Gated::Floats(floats), matrix_gated_tiling(&features, dtype)),
        (Gated::Floats(floats), matrix(&features, 2, 2, 1, 1)),
        (Gated::Quantized(quantized), matrix_gated_tiling(&features, dtype)),
        (Gated::Quantized(quantized), matrix(&features, 4, 3, 2, 2)),
        (shared, matrix(&features, 2, 2, 1, 1)),
    ] {
        let input = Input::Quantized(setup.input);
        setup.lab.run(&[gate_up(&features, gate, up, input, target, columns, tiling)]).unwrap();
        let found = match target {
            Gated::Floats(_) => setup.output(0, columns),
            Gated::Quantized(_) | Gated::Shared { .. } => {
                let numbers = setup.lab.download(numbers, columns * rows).unwrap();
                let sums = setup.lab.download(sums, columns * rows / 2).unwrap();
                let rows = numbers.chunks(rows).zip(sums.chunks(rows / 2));
                let values = rows.flat_map(|(numbers, sums)| {
                    let (numbers, sums) = in_order(bytemuck::cast_slice(numbers), bytemuck::cast_slice(sums));
                    numbers.into_iter().enumerate().map(move |(at, number)| f32::from(number) * sums[at / 16][0])
                });
                values.collect()
            }
        };
        for (at, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            let error = (f64::from(found) - expected).abs();
            assert!(error <= 6e-3 * largest, "{target:?}, {tiling:?}: {found} for {expected} at {at}");
        }
    }
}
