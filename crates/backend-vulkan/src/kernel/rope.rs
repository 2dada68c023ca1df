//! [`tensor::Op::Rope`], and the tables of its angles.
//!
//! A device's sine and cosine are not accurate enough for angles of thousands of turns, so that cosines and sines are
//! computed here, in f64: for the last 8 bits of a position and for the rest. The product of the two complex numbers
//! is the position's.

use super::{View, kernel};
use crate::dispatch::{Dispatch, Push};
use crate::features::Features;

/// Positions of the fine table, and between two rows of the coarse one.
const FINE: usize = 256;

/// `{cos, sin}` of angles, `[rows][head_dim / 2]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeTables {
    /// One row for each of 256 positions.
    pub(crate) fine: Vec<[f32; 2]>,
    /// One row for each 256th position.
    pub(crate) coarse: Vec<[f32; 2]>,
}

/// Where the tables are in device memory, as [`RopeTables::bytes`] gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RopeAddresses {
    /// Of [`RopeTables::fine`].
    pub(crate) fine: u64,
    /// Of [`RopeTables::coarse`].
    pub(crate) coarse: u64,
}

impl RopeAddresses {
    /// Of tables for heads of `head_dim` at an address.
    pub(crate) fn new(address: u64, head_dim: usize) -> RopeAddresses {
        RopeAddresses { fine: address, coarse: address + (FINE * (head_dim / 2) * size_of::<[f32; 2]>()) as u64 }
    }
}

impl RopeTables {
    /// The fine table, then the coarse one.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        bytemuck::cast_slice(&[self.fine.as_slice(), self.coarse.as_slice()].concat()).to_vec()
    }

    /// Bytes of both tables.
    pub(crate) fn bytes_of(head_dim: usize, context: usize) -> usize {
        (FINE + context.div_ceil(FINE)) * (head_dim / 2) * size_of::<[f32; 2]>()
    }

    /// For positions below `context`; `base`, `divisor` and `head_dim` as in [`tensor::Op::Rope`].
    pub(crate) fn new(base: f32, divisor: f32, head_dim: usize, context: usize) -> RopeTables {
        let pairs = head_dim / 2;
        let turns: Vec<f64> =
            (0..pairs).map(|i| f64::from(base).powf(-2.0 * i as f64 / head_dim as f64) / f64::from(divisor)).collect();
        let table = |rows: usize, step: usize| {
            let angle = |(row, turn): (usize, &f64)| (row * step) as f64 * turn;
            let rows = (0..rows).flat_map(|row| turns.iter().map(move |turn| (row, turn)));
            rows.map(|place| [angle(place).cos() as f32, angle(place).sin() as f32]).collect()
        };
        RopeTables { fine: table(FINE, 1), coarse: table(context.div_ceil(FINE), FINE) }
    }
}

/// Turns the heads of `rows` rows in place; `tokens` is the address of a `{token, position, sequence, 0}` for each.
pub(crate) fn rope(
    features: &Features,
    values: View,
    head_dim: usize,
    tables: RopeAddresses,
    tokens: u64,
    rows: usize,
) -> Dispatch {
    assert!(head_dim.is_multiple_of(2) && values.width.is_multiple_of(head_dim));
    let kernel = kernel(features, "rope", vec![head_dim as u32 / 2]);
    let pairs = values.width / 2;
    let push = Push::default().address(values.address).address(tables.fine).address(tables.coarse);
    Dispatch {
        groups: [pairs.div_ceil(kernel.workgroup as usize) as u32, rows as u32, 1],
        kernel,
        push: push.address(tokens).number(values.pitch()).number(pairs),
        reads: vec![values.address, tokens],
        writes: vec![values.address],
        bytes: (2 * 4 * rows * values.width) as u64,
        operations: (6 * rows * pairs) as u64,
        label: format!("rope {rows}×{}", values.width),
        ..Dispatch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::attention::testing::{Random, rows, token_table, unpad};
    use crate::lab::Lab;

    /// Unit roundoffs of the result relative to the pair's length: of the two tables, the product of the complex
    /// numbers and the product with the pair, three of each; the reference's own.
    const ROUNDINGS: f32 = 10.0;

    #[test]
    fn heads_turn_as_in_the_reference() {
        let Some(mut lab) = Lab::for_tests() else { return };
        let mut random = Random(4);
        let positions = [0, 1, 255, 256, 257, 511, 4095, 8191, 131_071];
        for (head_dim, heads) in [(64, 1), (96, 3), (6, 5), (128, 4), (256, 1)] {
            for (base, divisor) in [(10_000.0, 1.0), (1_000_000.0, 8.0)] {
                let width = heads * head_dim;
                let mut expected = random.normal(positions.len() * width, 5.0);
                let values = lab.upload(&rows(&expected, width)).unwrap();
                let tables = RopeTables::new(base, divisor, head_dim, 131_072);
                let addresses = RopeAddresses::new(lab.upload(&tables.bytes()).unwrap().address, head_dim);
                let tokens = lab.upload(&token_table(&positions.map(|position| (position, 0)))).unwrap();
                let view = View { address: values.address, width };
                let dispatch = rope(lab.features(), view, head_dim, addresses, tokens.address, positions.len());
                lab.run(&[dispatch]).unwrap();
                let found = lab.download(values, positions.len() * view.pitch() * 4).unwrap();
                let before = expected.clone();
                tensor::reference::rope(&mut expected, &positions, head_dim, base, divisor);
                for (index, (found, expected)) in unpad(&found, width).into_iter().zip(expected).enumerate() {
                    let (head, i) = (index / head_dim * head_dim, index % (head_dim / 2));
                    let length = before[head + i].hypot(before[head + i + head_dim / 2]);
                    let bound = ROUNDINGS * f32::EPSILON / 2.0 * length;
                    assert!((found - expected).abs() <= bound, "{head_dim} {index}: {found}, expected {expected}");
                }
            }
        }
    }
}
