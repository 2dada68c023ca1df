//! From the steps of a plan to dispatches, for a number of tokens and outputs.

use std::collections::HashMap;

use tensor::{BufferId, Op, Program, Rows};

use crate::dispatch::Dispatch;
use crate::features::Features;
use crate::kernel::attention::{Addresses, Also, AttentionShape, Decode, Scratch, decode, prefill, prefill_matrix};
use crate::kernel::cache_write::cache_write;
use crate::kernel::head_prepare::{HeadPrepare, head_prepare};
use crate::kernel::matmul::{matmul, matmul_matrix, slices, tile};
use crate::kernel::matvec::{
    COLUMNS_MAX, Gated, Input, gate_up, gated_tiling, matrix_gated_tiling, matrix_tiling, matvec, shared_tiling,
    tiling, uses_matrices,
};
use crate::kernel::norm::{Output, Scale, norm};
use crate::kernel::rope::{RopeAddresses, rope};
use crate::kernel::trellis::{self, Arithmetic, Rotated, TrellisScratch, TrellisWeight};
use crate::kernel::{View, add, embed, gelu_mul, quantize, rms_norm, select_outputs, to_half};
use crate::layout::Weight;
use crate::place::{Buffers, Placed};
use crate::plan::{Form, Forms, Norm, Rope, Rotation, Step};

/// Addresses of what changes from pass to pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchAddresses {
    /// `{token, position, sequence, 0}` for each token.
    pub(crate) tokens: u64,
    /// The token of each output row.
    pub(crate) outputs: u64,
    /// Tiles of queries, for attention over many tokens.
    pub(crate) tiles: u64,
    /// A word for each block of 32 elements of the widest activation; zero between dispatches.
    pub(crate) arrivals: u64,
    /// For products of matrices in slices.
    pub(crate) slices: u64,
    /// For products with trellis weights.
    pub(crate) trellis: TrellisScratch,
}

/// How much there is in a batch; a recording is made for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Counts {
    pub(crate) tokens: usize,
    pub(crate) outputs: usize,
    /// Tiles of consecutive tokens.
    pub(crate) tiles: usize,
    /// Whether every token is one of its own sequence: decoding.
    pub(crate) single: bool,
}

/// What dispatches are made from.
pub(crate) struct Recorder<'a> {
    pub(crate) features: &'a Features,
    pub(crate) program: &'a Program,
    pub(crate) buffers: &'a Buffers,
    pub(crate) ropes: &'a HashMap<Rope, RopeAddresses>,
    pub(crate) batch: BatchAddresses,
    /// What products with trellis weights may use.
    pub(crate) arithmetic: Arithmetic,
    /// Whether products and attention over many tokens may use f16 matrices.
    pub(crate) matrices: bool,
    /// For attention over single tokens.
    pub(crate) scratch: Scratch,
    /// Positions of a sequence.
    pub(crate) context: usize,
    pub(crate) counts: Counts,
}

impl Recorder<'_> {
    /// The dispatches of all steps, in order.
    pub(crate) fn dispatches(&self, steps: &[Step]) -> Vec<Dispatch> {
        let mut dispatches = Vec::new();
        let mut rest = steps;
        while let [step, after @ ..] = rest {
            let fused = after.first().and_then(|next| self.prepare_and_attend(step, next));
            let (made, left) = fused.map_or_else(|| (self.step(step), after), |made| (made, &after[1..]));
            dispatches.extend(made);
            rest = left;
        }
        dispatches
    }

    /// The preparation of heads and the attention right after it in one dispatch, in decoding.
    fn prepare_and_attend(&self, step: &Step, next: &Step) -> Option<Vec<Dispatch>> {
        let (Step::HeadPrepare { query, key, value, keys, values, rope }, Step::Attention { op, forms }) = (step, next)
        else {
            return None;
        };
        let Op::Attention { query: read, keys: same_keys, values: same_values, output, head_dim, .. } = *op else {
            return None;
        };
        let same = (query.0, *keys, *values, rope.head_dim) == (read, same_keys, same_values, head_dim);
        let apart = ![query.0, key.0, *value].contains(&output);
        if !same || !apart || !self.is_last_reader(op, read) {
            return None;
        }
        // With this much in registers already, AMD's compiler spills (`docs/vulkan-gfx1103.md`).
        let shape = attention_shape(self.buffers, op);
        if shape.fills_registers() {
            return None;
        }
        let prepare = self.prepared_heads(*query, *key, *value, [*keys, *values], *rope);
        self.decode(op, *forms, Some(&prepare))
    }

    /// Whether no op after `op` reads the buffer before it is written anew.
    fn is_last_reader(&self, op: &Op, buffer: BufferId) -> bool {
        let ops = self.program.ops();
        let touches = |op: &&Op| op.reads().contains(&buffer) || op.writes() == buffer;
        let is_read = |rest: &[Op]| rest.iter().find(touches).is_some_and(|next| next.reads().contains(&buffer));
        ops.iter().enumerate().filter(|(_, other)| *other == op).all(|(at, _)| !is_read(&ops[at + 1..]))
    }

    fn step(&self, step: &Step) -> Vec<Dispatch> {
        match step {
            Step::Plain(op) => self.plain(op),
            Step::Norm { add, residual, output, forms } => {
                let rows = self.rows(*residual);
                let add = add.map(|(update, scale)| (self.buffers.view(update), self.scale(scale)));
                let output = output.map(|(scale, output)| self.norm_output(scale, output, *forms));
                let residual = self.buffers.view(*residual);
                (rows > 0).then(|| norm(self.features, add, residual, output, rows)).into_iter().collect()
            }
            Step::Convert { input, form } => self.convert(*input, *form),
            Step::Linear { parts, input, form } => self.linear(parts, *input, *form),
            Step::Trellis { parts, input, form } => self.trellis(parts, *input, *form),
            Step::GateUp { gate, up, input, output, form: Form::Rotated(rotation), forms } => {
                self.trellis_gate_up([*gate, *up], *input, *output, *rotation, *forms)
            }
            Step::GateUp { gate, up, input, output, form, forms } => {
                self.gate_up([*gate, *up], *input, *output, *form, *forms)
            }
            Step::HeadPrepare { query, key, value, keys, values, rope } => {
                let arguments = self.prepared_heads(*query, *key, *value, [*keys, *values], *rope);
                vec![head_prepare(self.features, &arguments, self.counts.tokens)]
            }
            Step::Attention { op, forms } => self.attention(op, *forms),
        }
    }

    /// Rows of an activation in this batch.
    fn rows(&self, buffer: BufferId) -> usize {
        match self.program.buffer(buffer).kind {
            tensor::BufferKind::Scratch { rows: Rows::Outputs, .. } => self.counts.outputs,
            _ => self.counts.tokens,
        }
    }

    fn scale(&self, (weight, epsilon): Norm) -> Scale {
        Scale { weight: self.buffers.weight_of(weight).address, epsilon: epsilon.0 }
    }

    fn norm_output(&self, scale: Norm, output: BufferId, forms: Forms) -> Output {
        Output {
            scale: self.scale(scale),
            floats: forms.floats.then(|| self.buffers.view(output)),
            quantized: forms.quants.map(|arrangement| self.buffers.quants(output, arrangement)),
            rotated: forms.rotated.map(|rotation| self.rotated(output, rotation)),
        }
    }

    /// Where rotated activations go, and the address of the scales that they are multiplied by before.
    fn rotated(&self, buffer: BufferId, rotation: Rotation) -> (Rotated, u64) {
        let scales = self.buffers.trellis_of(rotation.weight).input_scales();
        (self.buffers.rotated(buffer, rotation.form), scales)
    }

    fn plain(&self, op: &Op) -> Vec<Dispatch> {
        let (features, buffers) = (self.features, self.buffers);
        let rows = self.rows(op.writes());
        if rows == 0 {
            return vec![];
        }
        let dispatch = match *op {
            Op::Embed { table, scale, output } => self.embed(table, scale.0, output, rows),
            Op::RmsNorm { input, weight, epsilon, output } => {
                let weight = buffers.weight_of(weight);
                let (input, output) = (buffers.view(input), buffers.view(output));
                rms_norm::rms_norm(features, input, weight.address, weight.columns, epsilon.0, output, rows)
            }
            Op::Rope { values, head_dim, base, position_divisor } => {
                let tables = self.ropes[&Rope { head_dim, base, position_divisor }];
                rope(features, buffers.view(values), head_dim, tables, self.batch.tokens, rows)
            }
            Op::CacheWrite { input, cache } => {
                let (shape, address) = buffers.cache_of(cache);
                cache_write(features, shape, buffers.view(input), address, self.batch.tokens, rows)
            }
            Op::GeluMul { gate, up, output } => {
                gelu_mul::gelu_mul(features, buffers.view(gate), buffers.view(up), buffers.view(output), rows)
            }
            Op::Add { input, output } => add::add(features, buffers.view(input), buffers.view(output), rows),
            Op::SelectOutputs { input, output } => {
                let (input, output) = (buffers.view(input), buffers.view(output));
                select_outputs::select_outputs(features, input, output, self.batch.outputs, rows)
            }
            Op::Linear { .. } | Op::Attention { .. } => unreachable!("they have steps of their own"),
        };
        vec![dispatch]
    }

    fn embed(&self, table: BufferId, scale: f32, output: BufferId, rows: usize) -> Dispatch {
        let (output, tokens) = (self.buffers.view(output), self.batch.tokens);
        match self.buffers.get(table) {
            Placed::Trellis(table, _) => trellis::embed(self.features, &table, scale, output, tokens, rows),
            _ => embed::embed(self.features, &self.buffers.weight_of(table), scale, output, tokens, rows),
        }
    }

    fn convert(&self, input: BufferId, form: Form) -> Vec<Dispatch> {
        let rows = self.rows(input);
        match form {
            Form::Floats => vec![],
            _ if rows == 0 => vec![],
            Form::Quants(arrangement) => {
                let (view, quants) = (self.buffers.view(input), self.buffers.quants(input, arrangement));
                vec![quantize::quantize(self.features, view, quants, rows)]
            }
            Form::Rotated(rotation) => {
                let weight = self.buffers.trellis_of(rotation.weight);
                let (view, (rotated, _)) = (self.buffers.view(input), self.rotated(input, rotation));
                vec![trellis::rotate(self.features, view, &weight, rotated, rows)]
            }
            Form::Halfs => {
                vec![to_half::to_half(self.features, self.buffers.view(input), self.buffers.halfs(input), rows)]
            }
        }
    }

    fn input(&self, input: BufferId, form: Form) -> Input {
        match form {
            Form::Quants(arrangement) => Input::Quantized(self.buffers.quants(input, arrangement)),
            Form::Floats | Form::Halfs | Form::Rotated(_) => Input::Floats(self.buffers.view(input)),
        }
    }

    fn linear(&self, parts: &[(BufferId, BufferId)], input: BufferId, form: Form) -> Vec<Dispatch> {
        let rows = self.rows(input);
        let parts: Vec<(Weight, View)> =
            parts.iter().map(|&(weight, output)| (self.buffers.weight_of(weight), self.buffers.view(output))).collect();
        match form {
            _ if rows == 0 => vec![],
            Form::Halfs => {
                let mut tile = tile(self.features, parts[0].0.dtype, rows);
                if let [(weight, _)] = &parts[..] {
                    tile.slices = slices(tile, weight);
                }
                matmul_matrix(self.features, &parts, self.buffers.halfs(input), rows, tile, self.batch.slices)
            }
            Form::Floats if rows > COLUMNS_MAX => {
                vec![matmul(self.features, &parts, self.buffers.view(input), rows)]
            }
            Form::Rotated(_) => unreachable!("only trellis weights have rotated inputs"),
            Form::Floats | Form::Quants(_) => {
                let all = parts.iter().map(|(weight, _)| weight.rows).sum();
                let weight = parts[0].0;
                let tiling = match form {
                    Form::Quants(_) if uses_matrices(self.features, rows) => matrix_tiling(self.features, weight.dtype),
                    _ => tiling(self.features, weight.dtype, all, weight.units(), rows),
                };
                vec![matvec(self.features, &parts, self.input(input, form), rows, tiling)]
            }
        }
    }

    fn trellis(&self, parts: &[(BufferId, BufferId)], input: BufferId, form: Form) -> Vec<Dispatch> {
        let rows = self.rows(input);
        if rows == 0 {
            return vec![];
        }
        let parts: Vec<(TrellisWeight, View)> = parts
            .iter()
            .map(|&(weight, output)| (self.buffers.trellis_of(weight), self.buffers.view(output)))
            .collect();
        let (features, scratch) = (self.features, &self.batch.trellis);
        if let Form::Rotated(rotation) = form {
            let (input, _) = self.rotated(input, rotation);
            return trellis::rotated_linear(features, &parts, input, rows, scratch);
        }
        let input = self.buffers.view(input);
        trellis::linear(features, &parts, input, rows, (self.arithmetic, self.matrices), scratch)
    }

    fn trellis_gate_up(
        &self,
        weights: [BufferId; 2],
        input: BufferId,
        output: BufferId,
        rotation: Rotation,
        forms: Forms,
    ) -> Vec<Dispatch> {
        let rows = self.rows(input);
        if rows == 0 {
            return vec![];
        }
        let (features, view) = (self.features, self.buffers.view(output));
        let weights = weights.map(|weight| self.buffers.trellis_of(weight));
        let tiling = trellis::Tiling::gate_up(features, &weights[0], rows);
        let (input, _) = self.rotated(input, rotation);
        let target = match forms.rotated {
            Some(rotation) if !forms.floats => {
                let (rotated, scales) = self.rotated(output, rotation);
                trellis::Gated::Rotated(rotated, scales)
            }
            _ => trellis::Gated::Floats(view),
        };
        let meeting = self.batch.trellis.meeting;
        let mut dispatches = vec![trellis::gate_up(features, weights, input, target, rows, tiling, meeting)];
        if let (Some(rotation), trellis::Gated::Floats(_)) = (forms.rotated, target) {
            dispatches.extend(self.convert(output, Form::Rotated(rotation)));
        }
        dispatches
    }

    fn gate_up(
        &self,
        [gate, up]: [BufferId; 2],
        input: BufferId,
        output: BufferId,
        form: Form,
        forms: Forms,
    ) -> Vec<Dispatch> {
        let rows = self.rows(input);
        if rows == 0 {
            return vec![];
        }
        let (gate, up) = (self.buffers.weight_of(gate), self.buffers.weight_of(up));
        let floats = self.buffers.view(output);
        let dtype = gate.dtype;
        // With many columns a workgroup of whole blocks does not fit AMD's registers.
        let shares = forms.floats || rows > 4 && self.features.is_amd();
        let quantized = forms.quants.map(|arrangement| self.buffers.quants(output, arrangement));
        let (target, tiling) = match (quantized, shares) {
            (None, _) => (Gated::Floats(floats), shared_tiling(self.features, rows)),
            (Some(quantized), false) => (Gated::Quantized(quantized), gated_tiling(self.features, dtype, rows)),
            (Some(quantized), true) => {
                let target = Gated::Shared { quantized, floats, arrivals: self.batch.arrivals };
                (target, shared_tiling(self.features, rows))
            }
        };
        let by_matrices = matches!(form, Form::Quants(_)) && uses_matrices(self.features, rows);
        let tiling = if by_matrices { matrix_gated_tiling(self.features, dtype) } else { tiling };
        vec![gate_up(self.features, gate, up, self.input(input, form), target, rows, tiling)]
    }

    fn prepared_heads(
        &self,
        (query, query_norm): (BufferId, Norm),
        (key, key_norm): (BufferId, Norm),
        value: BufferId,
        [keys, values]: [BufferId; 2],
        rope: Rope,
    ) -> HeadPrepare {
        let (shape, keys) = self.buffers.cache_of(keys);
        let (_, values) = self.buffers.cache_of(values);
        HeadPrepare {
            query: self.buffers.view(query),
            key: self.buffers.view(key),
            value: self.buffers.view(value),
            query_weight: self.scale(query_norm).weight,
            key_weight: self.scale(key_norm).weight,
            epsilon: query_norm.1.0,
            head_dim: rope.head_dim,
            tables: self.ropes[&rope],
            tokens: self.batch.tokens,
            cache: shape,
            keys,
            values,
        }
    }

    /// Where an attention's operands are.
    fn addresses(&self, op: &Op) -> Addresses {
        let Op::Attention { query, keys, values, output, .. } = *op else {
            unreachable!("the plan puts no other op here")
        };
        let (_, keys) = self.buffers.cache_of(keys);
        let (_, values) = self.buffers.cache_of(values);
        let (query, target) = (self.buffers.view(query), self.buffers.view(output));
        Addresses { query: query.address, keys, values, output: target.address }
    }

    /// Attention over single tokens, if this pass is about those and there is a kernel for their heads; `prepare` is to
    /// be done before.
    fn decode(&self, op: &Op, forms: Forms, prepare: Option<&HeadPrepare>) -> Option<Vec<Dispatch>> {
        let shape = attention_shape(self.buffers, op);
        let Counts { tokens, single, .. } = self.counts;
        let plan = single.then(|| Decode::new(self.features, &shape, tokens, self.context)).flatten()?;
        let also = match forms {
            Forms { quants: Some(arrangement), .. } => Also::Quantized(self.buffers.quants(op.writes(), arrangement)),
            Forms { rotated: Some(rotation), floats: false, .. } => {
                let (rotated, scales) = self.rotated(op.writes(), rotation);
                Also::OnlyRotated(rotated, scales)
            }
            Forms { .. } => Also::Nothing,
        };
        let (addresses, rows) = (self.addresses(op), (self.batch.tokens, tokens));
        let decode = decode(self.features, (&plan, &shape), &addresses, rows, self.scratch, also, prepare);
        let rotation = forms.rotated.filter(|_| forms.floats);
        let rotate = rotation.map(|rotation| self.convert(op.writes(), Form::Rotated(rotation)));
        Some(std::iter::once(decode).chain(rotate.into_iter().flatten()).collect())
    }

    fn attention(&self, op: &Op, forms: Forms) -> Vec<Dispatch> {
        if let Some(dispatches) = self.decode(op, forms, None) {
            return dispatches;
        }
        let (shape, addresses) = (attention_shape(self.buffers, op), self.addresses(op));
        let Counts { tokens, tiles, .. } = self.counts;
        let tile_table = self.batch.tiles;
        let matrix =
            self.matrices.then(|| prefill_matrix(self.features, &shape, &addresses, tile_table, tiles, tokens));
        let attention =
            matrix.flatten().unwrap_or_else(|| prefill(self.features, &shape, &addresses, tile_table, tiles, tokens));
        let quants = forms.quants.map(|arrangement| self.convert(op.writes(), Form::Quants(arrangement)));
        let rotated = forms.rotated.map(|rotation| self.convert(op.writes(), Form::Rotated(rotation)));
        std::iter::once(attention).chain(quants.into_iter().flatten()).chain(rotated.into_iter().flatten()).collect()
    }
}

/// What the kernels of attention need to know of an [`Op::Attention`].
///
/// # Panics
/// If it is another op.
pub(crate) fn attention_shape(buffers: &Buffers, op: &Op) -> AttentionShape {
    let Op::Attention { query, keys, head_dim, window, scale, .. } = *op else {
        unreachable!("`{}` is no attention", op.name())
    };
    let (cache, _) = buffers.cache_of(keys);
    AttentionShape {
        heads: buffers.view(query).width / head_dim,
        kv_heads: cache.width / head_dim,
        head_dim,
        window,
        scale: scale.0,
        cache_dtype: cache.dtype,
        ring: cache.ring,
    }
}
