//! The largest error that correct arithmetic may have made, carried from op to op.
//!
//! Beside every number `x` of the reference stands an `e`: a correct backend's number is in `x − e ..= x + e`. Each
//! op's file derives its output's `e` from its inputs' values and `e`s and from the roundings that the contract allows.
//! Two kinds of terms occur.
//!
//! - *What came in* is passed on by the worst case: the errors of neighbouring elements may conspire. (Only
//!   `linear` has a reason to do better.)
//! - *Roundings* of many elements are independent of each other. The sum of independent errors of mean 0 within ±cᵢ
//!   exceeds `7·√Σc²` once in 2·10¹⁰ times (Hoeffding, "Probability inequalities for sums of bounded random variables",
//!   1963), so [`sum_of_roundings`] takes that where it is below the worst case `Σc`. It keeps the bounds of long sums
//!   sharp enough to show mistakes. For the running error of a sum of `n` products this is `7·√n·u·Σ|a·b|` instead of
//!   `n·u·Σ|a·b|` (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019).

use tensor::reference::ReferenceLoaded;
use tensor::{Batch, BufferId, BufferKind, LoadOptions, Op, Program, Rows, Segment, WeightFormat};

use crate::format::RandomWeight;
use crate::setup::{Experiment, Mode};
use crate::{add, attention, embed, gelu_mul, linear, rms_norm, rope, trellis};

/// The unit roundoff of f32: the relative error of one operation.
pub const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// Of f16, which has 11 significant bits.
pub const UNIT_F16: f64 = 1.0 / (1 << 11) as f64;

/// Of bf16, which has 8.
pub const UNIT_BF16: f64 = 1.0 / (1 << 8) as f64;

/// Half of the smallest step of f16.
pub const TINY_F16: f64 = 1.0 / (1 << 25) as f64;

/// Standard deviations, so to speak, of [`sum_of_roundings`].
const CONFIDENCE: f64 = 7.0;

/// A bound of the sum of independent roundings within ±cᵢ, from `Σc` and `Σc²`.
pub fn sum_of_roundings(sum: f64, squares: f64) -> f64 {
    sum.min(CONFIDENCE * squares.sqrt())
}

/// Unit roundoffs of a sum of `n` products in f32, in any order, fused or not, relative to the sum of magnitudes. The
/// four are for a conversion, a scale and the store.
pub fn sum_roundings(n: usize) -> f64 {
    let n = n as f64;
    n.min(CONFIDENCE * n.sqrt()) + 4.0
}

/// The errors of all buffers of an experiment in one mode.
#[derive(Debug)]
pub struct Errors<'a> {
    program: &'a Program,
    options: &'a LoadOptions,
    experiment: &'a Experiment,
    mode: Mode,
    /// Of every scratch buffer and cache, in the layout of the reference; weights have none. A cache's errors are
    /// those of what was written, before it was rounded to the cache's format.
    errors: Vec<Vec<f64>>,
}

impl<'a> Errors<'a> {
    /// No errors yet.
    pub fn new(experiment: &'a Experiment, mode: Mode) -> Self {
        let options = &experiment.options;
        let len = |kind: &BufferKind| match *kind {
            BufferKind::Weight { .. } => 0,
            BufferKind::Scratch { width, .. } => options.tokens_max * width,
            BufferKind::Cache { width, .. } => options.sequences_max * options.context_max * width,
        };
        let errors = experiment.program.buffers().iter().map(|buffer| vec![0.0; len(&buffer.kind)]).collect();
        Errors { program: &experiment.program, options, experiment, mode, errors }
    }

    /// The errors of a scratch buffer, row by row.
    pub fn of(&self, buffer: BufferId) -> &[f64] {
        &self.errors[buffer.index()]
    }

    /// Updates the errors for an op that the reference is about to run on `buffers`.
    pub fn step(&mut self, op: &Op, buffers: &ReferenceLoaded, batch: &Batch<'_>) {
        match *op {
            Op::Embed { table, scale, output } => {
                let errors = self.embed(table, batch.tokens, scale.0);
                self.set(output, errors);
            }
            Op::RmsNorm { input, weight, epsilon, output } => {
                let (x, e) = self.rows(input, buffers, batch);
                let errors = rms_norm::error(x, e, buffers.values(weight), epsilon.0);
                self.set(output, errors);
            }
            Op::Linear { weight, input, output } => {
                let errors = self.multiply(weight, self.rows(input, buffers, batch));
                self.set(output, errors);
            }
            Op::Rope { values, head_dim, base, position_divisor } => {
                let (x, e) = self.rows(values, buffers, batch);
                let positions = positions(batch.segments);
                let errors = rope::error(x, e, &positions, head_dim, (base.0, position_divisor.0));
                self.set(values, errors);
            }
            Op::CacheWrite { input, cache } => self.write_cache(input, cache, batch),
            Op::Attention { .. } => self.attend(op, buffers, batch),
            Op::GeluMul { gate, up, output } => {
                let errors = gelu_mul::error(self.rows(gate, buffers, batch), self.rows(up, buffers, batch));
                self.set(output, errors);
            }
            Op::Add { input, output } => {
                let errors = add::error(self.rows(input, buffers, batch), self.rows(output, buffers, batch));
                self.set(output, errors);
            }
            Op::SelectOutputs { input, output } => {
                let width = self.width(input);
                let row = |&row: &u32| &self.errors[input.index()][row as usize * width..][..width];
                let errors = batch.outputs.iter().flat_map(row).copied().collect();
                self.set(output, errors);
            }
        }
    }

    fn embed(&self, table: BufferId, tokens: &[u32], scale: f32) -> Vec<f64> {
        let (weight, format, columns) = self.weight(table);
        match format {
            WeightFormat::Blocks(dtype) => embed::error(dtype, &weight.magnitudes, columns, tokens, scale),
            WeightFormat::Trellis(_) => trellis::embed_error(weight, self.mode.precision, columns, tokens, scale),
        }
    }

    fn multiply(&self, weight: BufferId, (x, e): (&[f32], &[f64])) -> Vec<f64> {
        let (weight, format, columns) = self.weight(weight);
        match format {
            WeightFormat::Blocks(dtype) => {
                let rounding = linear::input_rounding(self.mode.precision, dtype, columns, x, e);
                linear::error(&weight.magnitudes, columns, x, e, &rounding)
            }
            WeightFormat::Trellis(_) => trellis::error(weight, self.mode.precision, columns, x, e),
        }
    }

    /// A weight, its format and its columns.
    fn weight(&self, id: BufferId) -> (&RandomWeight, WeightFormat, usize) {
        let buffer = self.program.buffer(id);
        let BufferKind::Weight { format, columns, .. } = buffer.kind else {
            unreachable!("programs are checked");
        };
        (&self.experiment.weights.0[&buffer.name], format, columns)
    }

    fn write_cache(&mut self, input: BufferId, cache: BufferId, batch: &Batch<'_>) {
        let width = self.width(input);
        let mut token = 0;
        for segment in batch.segments {
            let rows = self.errors[input.index()][token * width..][..segment.tokens * width].to_vec();
            let start = (segment.sequence * self.options.context_max + segment.position) * width;
            self.errors[cache.index()][start..][..rows.len()].copy_from_slice(&rows);
            token += segment.tokens;
        }
    }

    fn attend(&mut self, op: &Op, buffers: &ReferenceLoaded, batch: &Batch<'_>) {
        let Op::Attention { query, keys, values, output, .. } = *op else { return };
        let shape = buffers.attention_shape(op).expect("an attention");
        let (x, e) = self.rows(query, buffers, batch);
        let width = shape.heads * shape.head_dim;
        let (mut token, mut errors) = (0, Vec::new());
        for segment in batch.segments {
            let range = token * width..(token + segment.tokens) * width;
            errors.extend(attention::error(
                &shape,
                self.mode,
                segment.position,
                (&x[range.clone()], &e[range]),
                self.cached(keys, buffers, segment),
                self.cached(values, buffers, segment),
            ));
            token += segment.tokens;
        }
        self.set(output, errors);
    }

    /// Values and errors of a sequence's cache, up to the end of the segment.
    fn cached<'b>(
        &'b self,
        cache: BufferId,
        buffers: &'b ReferenceLoaded,
        segment: &Segment,
    ) -> (&'b [f32], &'b [f64]) {
        let width = self.width(cache);
        let start = segment.sequence * self.options.context_max * width;
        let range = start..start + (segment.position + segment.tokens) * width;
        (&buffers.values(cache)[range.clone()], &self.errors[cache.index()][range])
    }

    /// Values and errors of the batch's rows of a scratch buffer.
    fn rows<'b>(&'b self, id: BufferId, buffers: &'b ReferenceLoaded, batch: &Batch<'_>) -> (&'b [f32], &'b [f64]) {
        let rows = match self.program.buffer(id).kind {
            BufferKind::Scratch { rows: Rows::Outputs, .. } => batch.outputs.len(),
            _ => batch.tokens.len(),
        };
        let len = rows * self.width(id);
        (&buffers.values(id)[..len], &self.errors[id.index()][..len])
    }

    fn width(&self, id: BufferId) -> usize {
        match self.program.buffer(id).kind {
            BufferKind::Scratch { width, .. } | BufferKind::Cache { width, .. } => width,
            BufferKind::Weight { columns, .. } => columns,
        }
    }

    fn set(&mut self, output: BufferId, errors: Vec<f64>) {
        self.errors[output.index()][..errors.len()].copy_from_slice(&errors);
    }
}

/// The position of every token.
fn positions(segments: &[Segment]) -> Vec<usize> {
    segments.iter().flat_map(|segment| segment.position..segment.position + segment.tokens).collect()
}
