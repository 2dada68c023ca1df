//! A whole weight as exllamav3 stores it: several tensors under one name.

use std::borrow::Cow;

use half::f16;
use thiserror::Error;

use super::hadamard::{self, BLOCK};
use super::{Codebook, LEN, Rate, SIDE, Scales, tile};

/// The weight of a linear layer, `output = input · W + bias`, in tiles:
///
/// ```text
/// W [inputs, outputs] = diag(suh) · H · C · H · diag(svh)
/// ```
///
/// where `C` are the values of the tiles and `H` rotates blocks of 128 ([`hadamard`]). Both sizes are multiples of 128:
/// what is not is padded with zeros before it is encoded, and whoever knows the true sizes leaves the rest out.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear<'a> {
    rate: Rate,
    codebook: Codebook,
    trellis: Cow<'a, [u8]>,
    suh: Vec<f16>,
    svh: Vec<f16>,
    bias: Option<Vec<f16>>,
}

/// The tensors of a [`Linear`] as a file has them, little-endian.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts<'a> {
    /// The shape of `trellis`: `[inputs / 16, outputs / 16, 16 · bits]` 16-bit words.
    pub trellis_shape: [usize; 3],
    /// `trellis`: the tiles, each as in [`tile`], those of the same inputs side by side.
    pub trellis: &'a [u8],
    /// `suh`: binary16 `[inputs]`, signs and scales.
    pub suh: Option<&'a [u8]>,
    /// `svh`: binary16 `[outputs]`.
    pub svh: Option<&'a [u8]>,
    /// `su`, in the place of `suh` in the oldest files: 16-bit words `[inputs / 16]`, where bit `i` of word `j` is set
    /// if the factor of input `16 · j + i` is −1 and not 1.
    pub su: Option<&'a [u8]>,
    /// `sv`, in the place of `svh`.
    pub sv: Option<&'a [u8]>,
    /// `mcg`: there if the codebook is [`Codebook::Mcg`], whose multiplier it holds as a 32-bit integer.
    pub mcg: Option<&'a [u8]>,
    /// `mul1`: there if it is [`Codebook::Mul1`].
    pub mul1: Option<&'a [u8]>,
    /// `bias`: binary16 `[outputs]`.
    pub bias: Option<&'a [u8]>,
}

/// The numbers of a [`StoredTensor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredKind {
    /// 16-bit integers.
    I16,
    /// 32-bit integers.
    I32,
    /// IEEE 754 binary16.
    F16,
}

/// One tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor<'a> {
    /// The last part of its name: `trellis`, `suh`, …
    pub suffix: &'static str,
    /// What the file says of its numbers.
    pub kind: StoredKind,
    /// Empty for a single number.
    pub shape: Vec<usize>,
    /// Little-endian.
    pub bytes: Cow<'a, [u8]>,
}

/// Tensors that are no [`Linear`].
#[derive(Debug, Error, PartialEq)]
pub enum LinearError {
    /// Tiles of a size that no rate has.
    #[error(
        "`trellis` has tiles of {0} words, expected 16, 24, 32, 40, 48, 56, 64, 80, 96, 112 or 128 (1 to 8 bits)\n\n\
         hint: is it from a newer version of exllamav3?"
    )]
    Rate(usize),
    /// A half rate in another codebook.
    #[error("{rate} bits per weight in the codebook `{codebook}`, expected `mul1`: half rates exist for no other one")]
    HalfRate {
        /// The rate of the tiles.
        rate: Rate,
        /// The codebook of the marks.
        codebook: Codebook,
    },
    /// A size that can't be rotated.
    #[error("{0} inputs and {1} outputs, expected multiples of {BLOCK}, and not 0")]
    Sizes(usize, usize),
    /// A tensor with more or fewer bytes than the shape of `trellis` asks for.
    #[error("`{name}` has {found} bytes, expected {expected}")]
    Length {
        /// The last part of the tensor's name.
        name: &'static str,
        /// Its bytes.
        found: usize,
        /// What the shape of `trellis` asks for.
        expected: usize,
    },
    /// Neither scales nor signs of one side.
    #[error("neither `{0}` nor `{1}` is there, expected one of them")]
    NoScales(&'static str, &'static str),
    /// The marks of two codebooks.
    #[error("`mcg` and `mul1` are both there, expected at most one of them")]
    TwoCodebooks,
    /// The mark of a codebook with another multiplier than that codebook has.
    #[error(
        "`{name}` is {found:#010x}, expected {expected:#010x}, the multiplier of that codebook\n\n\
         hint: is it from a newer version of exllamav3?"
    )]
    Mark {
        /// The last part of the tensor's name.
        name: &'static str,
        /// What it holds.
        found: u32,
        /// [`Codebook::multiplier`].
        expected: u32,
    },
    /// A scale that is not a finite number.
    #[error("`{name}` has {value} at {index}, expected finite numbers")]
    NotFinite {
        /// The last part of the tensor's name.
        name: &'static str,
        /// Which element.
        index: usize,
        /// What it is.
        value: f16,
    },
}

impl<'a> Linear<'a> {
    /// Takes the tensors of a file, and copies none of the tiles.
    ///
    /// # Errors
    /// If the tensors don't fit together; see [`LinearError`].
    pub fn from_parts(parts: Parts<'a>) -> Result<Linear<'a>, LinearError> {
        let [rows, columns, words] = parts.trellis_shape;
        let rate = Rate::from_tile_words(words).ok_or(LinearError::Rate(words))?;
        let codebook = match (parts.mcg, parts.mul1) {
            (None, None) => Codebook::ThreeInst,
            (Some(_), None) => Codebook::Mcg,
            (None, Some(_)) => Codebook::Mul1,
            (Some(_), Some(_)) => return Err(LinearError::TwoCodebooks),
        };
        let (inputs, outputs) = (rows.saturating_mul(SIDE), columns.saturating_mul(SIDE));
        check(rate, codebook, inputs, outputs)?;
        for (name, mark) in [("mcg", parts.mcg), ("mul1", parts.mul1)] {
            mark.map_or(Ok(()), |bytes| check_mark(name, bytes, codebook))?;
        }
        let trellis_bytes = rows.saturating_mul(columns).saturating_mul(rate.tile_bytes());
        check_length("trellis", parts.trellis, trellis_bytes)?;
        Ok(Linear {
            rate,
            codebook,
            trellis: Cow::Borrowed(parts.trellis),
            suh: scales(("suh", parts.suh), ("su", parts.su), inputs)?,
            svh: scales(("svh", parts.svh), ("sv", parts.sv), outputs)?,
            bias: parts.bias.map(|bytes| halves("bias", bytes, outputs)).transpose()?,
        })
    }

    /// A weight whose tiles are all still 0, to be written with [`Linear::tile_mut`].
    ///
    /// # Errors
    /// If the sizes, which the scales have, are no multiples of 128, a scale is not finite, or the rate is a half one
    /// and the codebook not [`Codebook::Mul1`].
    pub fn new(rate: Rate, codebook: Codebook, suh: Vec<f16>, svh: Vec<f16>) -> Result<Linear<'static>, LinearError> {
        check(rate, codebook, suh.len(), svh.len())?;
        check_finite("suh", &suh)?;
        check_finite("svh", &svh)?;
        let tiles = (suh.len() / SIDE) * (svh.len() / SIDE);
        Ok(Linear { rate, codebook, trellis: Cow::Owned(vec![0; tiles * rate.tile_bytes()]), suh, svh, bias: None })
    }

    /// Tiles and their scales. The tiles are not copied.
    ///
    /// # Errors
    /// As [`Linear::new`], or if there are more or fewer tiles than the scales ask for.
    pub fn from_tiles(
        rate: Rate,
        codebook: Codebook,
        scales: Scales,
        tiles: &'a [u8],
    ) -> Result<Linear<'a>, LinearError> {
        let Scales { suh, svh } = scales;
        check(rate, codebook, suh.len(), svh.len())?;
        check_finite("suh", &suh)?;
        check_finite("svh", &svh)?;
        check_length("trellis", tiles, (suh.len() / SIDE) * (svh.len() / SIDE) * rate.tile_bytes())?;
        Ok(Linear { rate, codebook, trellis: Cow::Borrowed(tiles), suh, svh, bias: None })
    }

    /// Adds a bias `[outputs]`.
    ///
    /// # Errors
    /// If it is of another length, or not finite.
    pub fn with_bias(self, bias: Vec<f16>) -> Result<Linear<'a>, LinearError> {
        if bias.len() != self.outputs() {
            return Err(LinearError::Length { name: "bias", found: 2 * bias.len(), expected: 2 * self.outputs() });
        }
        check_finite("bias", &bias)?;
        Ok(Linear { bias: Some(bias), ..self })
    }

    /// Bits per weight.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// What makes weights of states.
    pub fn codebook(&self) -> Codebook {
        self.codebook
    }

    /// Length of an input, with padding.
    pub fn inputs(&self) -> usize {
        self.suh.len()
    }

    /// Length of an output, with padding.
    pub fn outputs(&self) -> usize {
        self.svh.len()
    }

    /// Signs and scales of the inputs.
    pub fn suh(&self) -> &[f16] {
        &self.suh
    }

    /// Signs and scales of the outputs.
    pub fn svh(&self) -> &[f16] {
        &self.svh
    }

    /// What is added to the outputs.
    pub fn bias(&self) -> Option<&[f16]> {
        self.bias.as_deref()
    }

    /// All tiles, `[inputs / 16, outputs / 16]`.
    pub fn trellis(&self) -> &[u8] {
        &self.trellis
    }

    /// The tile of the inputs from `16 · row` and the outputs from `16 · column`.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn tile(&self, row: usize, column: usize) -> &[u8] {
        &self.trellis[self.tile_range(row, column)]
    }

    /// The same, for writing. Copies all tiles if they were borrowed.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn tile_mut(&mut self, row: usize, column: usize) -> &mut [u8] {
        let range = self.tile_range(row, column);
        &mut self.trellis.to_mut()[range]
    }

    fn tile_range(&self, row: usize, column: usize) -> std::ops::Range<usize> {
        let columns = self.outputs() / SIDE;
        assert!(row < self.inputs() / SIDE && column < columns, "no tile {row}, {column}");
        let start = (row * columns + column) * self.rate.tile_bytes();
        start..start + self.rate.tile_bytes()
    }

    /// The weight as Hugging Face files have it, `[outputs, inputs]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.outputs() * self.inputs()];
        for (block, rows) in weight.chunks_exact_mut(BLOCK * self.inputs()).enumerate() {
            self.dequantize_block(block, rows);
        }
        weight
    }

    /// The first rows and `columns` of [`Linear::dequantize`], as many as there are values: a weight `[rows, columns]`
    /// without its padding.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn dequantize_unpadded(&self, columns: usize, values: &mut [f32]) {
        let mut block = vec![0.0; BLOCK * self.inputs()];
        for (index, rows) in values.chunks_mut(BLOCK * columns).enumerate() {
            self.dequantize_block(index, &mut block);
            for (row, padded) in rows.chunks_exact_mut(columns).zip(block.chunks_exact(self.inputs())) {
                row.copy_from_slice(&padded[..columns]);
            }
        }
    }

    /// The 128 rows `[128, inputs]` of [`Linear::dequantize`] from row `128 · block`, the fewest that can be had.
    ///
    /// # Panics
    /// If there is no such block, or `rows` is of another size.
    pub fn dequantize_block(&self, block: usize, rows: &mut [f32]) {
        let (inputs, first) = (self.inputs(), block * BLOCK);
        assert!(first < self.outputs(), "no block {block} of {} outputs", self.outputs());
        assert_eq!(rows.len(), BLOCK * inputs, "{BLOCK} rows of {inputs}");
        // Rotations stay within 128 inputs and 128 outputs: a square that fits into a cache.
        let mut square = vec![0.0; BLOCK * BLOCK];
        let suh: Vec<f32> = self.suh.iter().map(|scale| scale.to_f32()).collect();
        for start in (0..inputs).step_by(BLOCK) {
            self.decode_square(start, first, &mut square);
            hadamard::rotate_rows(&mut square, BLOCK);
            let scales = self.svh[first..].iter().zip(square.chunks_exact_mut(BLOCK));
            for (row, (svh, weights)) in rows.chunks_exact_mut(inputs).zip(scales) {
                hadamard::rotate(weights);
                let (svh, scaled) = (svh.to_f32(), row[start..].iter_mut().zip(&suh[start..]));
                for ((into, suh), weight) in scaled.zip(weights) {
                    *into = *weight * (suh * svh);
                }
            }
        }
    }

    /// The values of the tiles of 128 inputs and 128 outputs, `[outputs, inputs]`.
    fn decode_square(&self, input: usize, output: usize, square: &mut [f32]) {
        for row in 0..BLOCK / SIDE {
            for column in 0..BLOCK / SIDE {
                let tile = self.tile(input / SIDE + row, output / SIDE + column);
                let values = tile::decode(self.codebook, self.rate, tile);
                let outputs = square[column * SIDE * BLOCK..].chunks_exact_mut(BLOCK).take(SIDE);
                for (output, weights) in outputs.enumerate() {
                    for (input, weight) in weights[row * SIDE..][..SIDE].iter_mut().enumerate() {
                        *weight = values[input * SIDE + output];
                    }
                }
            }
        }
    }

    /// The tensors that exllamav3 expects in a file, in the order in which it writes them.
    pub fn tensors(&self) -> Vec<StoredTensor<'_>> {
        let shape = vec![self.inputs() / SIDE, self.outputs() / SIDE, self.rate.tile_words()];
        let trellis =
            StoredTensor { suffix: "trellis", kind: StoredKind::I16, shape, bytes: Cow::Borrowed(&*self.trellis) };
        let mut tensors = vec![stored_halves("suh", &self.suh), stored_halves("svh", &self.svh), trellis];
        tensors.extend(self.bias.iter().map(|bias| stored_halves("bias", bias)));
        let mark = match self.codebook {
            Codebook::ThreeInst => None,
            Codebook::Mcg => Some("mcg"),
            Codebook::Mul1 => Some("mul1"),
        };
        tensors.extend(mark.map(|suffix| {
            let bytes = Cow::Owned(self.codebook.multiplier().to_le_bytes().to_vec());
            StoredTensor { suffix, kind: StoredKind::I32, shape: Vec::new(), bytes }
        }));
        tensors
    }
}

fn check(rate: Rate, codebook: Codebook, inputs: usize, outputs: usize) -> Result<(), LinearError> {
    if rate.is_half() && codebook != Codebook::Mul1 {
        return Err(LinearError::HalfRate { rate, codebook });
    }
    let fits = |size: usize| size != 0 && size.is_multiple_of(BLOCK);
    if fits(inputs) && fits(outputs) { Ok(()) } else { Err(LinearError::Sizes(inputs, outputs)) }
}

fn check_length(name: &'static str, bytes: &[u8], expected: usize) -> Result<(), LinearError> {
    let found = bytes.len();
    if found == expected { Ok(()) } else { Err(LinearError::Length { name, found, expected }) }
}

/// Compares the mark of a codebook with its multiplier: with another one the same states would be other weights.
fn check_mark(name: &'static str, bytes: &[u8], codebook: Codebook) -> Result<(), LinearError> {
    check_length(name, bytes, 4)?;
    let found = bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte));
    let expected = codebook.multiplier();
    if found == expected { Ok(()) } else { Err(LinearError::Mark { name, found, expected }) }
}

fn check_finite(name: &'static str, values: &[f16]) -> Result<(), LinearError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(LinearError::NotFinite { name, index, value: values[index] }),
        None => Ok(()),
    }
}

fn halves(name: &'static str, bytes: &[u8], count: usize) -> Result<Vec<f16>, LinearError> {
    check_length(name, bytes, 2 * count)?;
    let values: Vec<f16> = bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect();
    check_finite(name, &values)?;
    Ok(values)
}

/// The scales of one side: those that are there, else the signs of an old file.
fn scales(
    scales: (&'static str, Option<&[u8]>),
    signs: (&'static str, Option<&[u8]>),
    count: usize,
) -> Result<Vec<f16>, LinearError> {
    match (scales, signs) {
        ((name, Some(bytes)), _) => halves(name, bytes, count),
        (_, (name, Some(bytes))) => {
            check_length(name, bytes, count / 8)?;
            let negative = (0..count).map(|index| bytes[index / 8] >> (index % 8) & 1 == 1);
            Ok(negative.map(|negative| if negative { f16::NEG_ONE } else { f16::ONE }).collect())
        }
        ((scales, None), (signs, None)) => Err(LinearError::NoScales(scales, signs)),
    }
}

fn stored_halves(suffix: &'static str, values: &[f16]) -> StoredTensor<'static> {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    StoredTensor { suffix, kind: StoredKind::F16, shape: vec![values.len()], bytes: Cow::Owned(bytes) }
}

const _: () = assert!(BLOCK.is_multiple_of(SIDE) && LEN == 256);
