//! From a program's ops to the steps that are dispatched: which ops are done by one kernel, and in which form their
//! activations pass from one to the next. A function of data; nothing here knows a device.
//!
//! Fusing leaves out buffers: a gate that only the product with up reads is never written. That is allowed where no
//! later op reads the buffer before it is written anew, and the contract lets nobody else read it.

use tensor::format::trellis::hadamard::BLOCK;
use tensor::{BufferId, BufferKind, DType, Op, Precision, Program, Rows, Scalar, TrellisFormat, WeightFormat};

use crate::kernel::matmul::PRODUCTS_MAX;
use crate::kernel::trellis::{Arithmetic, RotatedForm};
use crate::kernel::{Arrangement, HalfOrder, PADDING};

/// How products get their activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// f32 rows.
    Floats,
    /// 8-bit integers with a scale per block, for integer dot products.
    Quants(Arrangement),
    /// f16 rows with a scale each, for matrix instructions.
    Halfs,
    /// Scaled and rotated, for trellis weights.
    Rotated(Rotation),
}

/// How an input of products with trellis weights is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rotation {
    /// The scales' number: [`TrellisFormat::rotation`].
    pub(crate) number: u32,
    /// A weight that has these scales of its inputs.
    pub(crate) weight: BufferId,
    /// How it is written.
    pub(crate) form: RotatedForm,
}

impl Form {
    /// Whether both are of one kind, however arranged.
    pub(crate) fn is_like(self, other: Form) -> bool {
        match (self, other) {
            (Form::Rotated(one), Form::Rotated(other)) => (one.number, one.form) == (other.number, other.form),
            _ => std::mem::discriminant(&self) == std::mem::discriminant(&other),
        }
    }
}

/// What decides the form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Setting {
    /// As the caller asked.
    pub(crate) precision: Precision,
    /// Whether the device has integer dot products.
    pub(crate) integer_dot: bool,
    /// Whether the device multiplies f16 matrices.
    pub(crate) matrices: bool,
    /// Whether it holds their elements where products put weights that they decode.
    pub(crate) matrix_layout: bool,
    /// Whether the device is one of AMD's.
    pub(crate) amd: bool,
    /// Whether tokens are so few that products go row by row.
    pub(crate) few_tokens: bool,
    /// Whether output rows are.
    pub(crate) few_outputs: bool,
    /// Whether there is at most one token.
    pub(crate) one_token: bool,
    /// Whether there is at most one output row.
    pub(crate) one_output: bool,
}

impl Setting {
    fn few(&self, rows: Rows) -> bool {
        match rows {
            Rows::Tokens => self.few_tokens,
            Rows::Outputs => self.few_outputs,
        }
    }

    fn one(&self, rows: Rows) -> bool {
        match rows {
            Rows::Tokens => self.one_token,
            Rows::Outputs => self.one_output,
        }
    }

    /// What products with trellis weights may use.
    pub(crate) fn arithmetic(&self) -> Arithmetic {
        let Setting { precision, integer_dot, matrix_layout, amd, .. } = *self;
        Arithmetic { precision, integer_dot, matrix_layout, splats: amd }
    }

    /// The form for products with a trellis weight. Many rows are rotated by these products themselves.
    fn rotated(&self, rows: Rows, weight: BufferId, format: TrellisFormat) -> Form {
        if !self.few(rows) {
            return Form::Floats;
        }
        let columns = if self.one(rows) { 1 } else { 2 };
        let form = self.arithmetic().form(format, columns);
        Form::Rotated(Rotation { number: format.rotation, weight, form })
    }

    /// The form for a product with a weight.
    fn form(&self, rows: Rows, dtype: DType) -> Form {
        match (self.precision, self.few(rows)) {
            (Precision::F32, _) => Form::Floats,
            (Precision::Fast, true) if self.integer_dot && dtype.block_len() > 1 => {
                Form::Quants(Arrangement { order: HalfOrder::of(dtype), half_scales: false })
            }
            (Precision::Fast, false) if self.matrices && dtype != DType::F32 => Form::Halfs,
            (Precision::Fast, _) => Form::Floats,
        }
    }
}

/// A norm's weight and its epsilon.
pub(crate) type Norm = (BufferId, Scalar);

/// In which forms a step writes its output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Forms {
    pub(crate) floats: bool,
    pub(crate) quants: Option<Arrangement>,
    /// Never together with quants.
    pub(crate) rotated: Option<Rotation>,
}

/// The rope of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rope {
    pub(crate) head_dim: usize,
    pub(crate) base: Scalar,
    pub(crate) position_divisor: Scalar,
}

/// One or a few dispatches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// An op as it is; products and attention are never among these.
    Plain(Op),
    /// `residual += norm(update)`, `output = norm(residual)`; either may be missing.
    Norm { add: Option<(BufferId, Norm)>, residual: BufferId, output: Option<(Norm, BufferId)>, forms: Forms },
    /// A product's input in another form.
    Convert { input: BufferId, form: Form },
    /// Products of one input with weights of one format.
    Linear { parts: Vec<(BufferId, BufferId)>, input: BufferId, form: Form },
    /// Products of one input with trellis weights that have the same scales of their inputs.
    Trellis { parts: Vec<(BufferId, BufferId)>, input: BufferId, form: Form },
    /// `output = gelu(input · gate) · (input · up)`.
    GateUp { gate: BufferId, up: BufferId, input: BufferId, output: BufferId, form: Form, forms: Forms },
    /// Norm and rope of queries and keys, and the cache's new rows.
    HeadPrepare {
        query: (BufferId, Norm),
        key: (BufferId, Norm),
        value: BufferId,
        keys: BufferId,
        values: BufferId,
        rope: Rope,
    },
    /// [`Op::Attention`].
    Attention { op: Op, forms: Forms },
}

/// The steps of a program.
pub(crate) fn plan(program: &Program, setting: &Setting) -> Vec<Step> {
    let planner = Planner { program, setting, uses: uses(program) };
    planner.choose_forms(planner.fuse())
}

struct Planner<'a> {
    program: &'a Program,
    setting: &'a Setting,
    /// [`uses`].
    uses: Vec<Vec<(usize, bool)>>,
}

/// For each buffer the ops that use it, in order, and whether they read what was there before them.
fn uses(program: &Program) -> Vec<Vec<(usize, bool)>> {
    let mut uses = vec![Vec::new(); program.buffers().len()];
    for (at, op) in program.ops().iter().enumerate() {
        let reads = op.reads();
        reads.iter().for_each(|buffer| uses[buffer.index()].push((at, true)));
        if !reads.contains(&op.writes()) {
            uses[op.writes().index()].push((at, false));
        }
    }
    uses
}

impl Planner<'_> {
    fn fuse(&self) -> Vec<Step> {
        let ops = self.program.ops();
        let mut steps = Vec::new();
        let mut at = 0;
        while at < ops.len() {
            let fused = self
                .head_prepare(at)
                .or_else(|| self.norm_add(at))
                .or_else(|| self.norm(at))
                .or_else(|| self.gate_up(at))
                .or_else(|| self.trellis(at))
                .or_else(|| self.linear(at));
            let (step, taken) = fused.unwrap_or_else(|| match &ops[at] {
                op @ Op::Attention { .. } => (Step::Attention { op: op.clone(), forms: Forms::default() }, 1),
                op => (Step::Plain(op.clone()), 1),
            });
            steps.push(step);
            at += taken;
        }
        steps
    }

    /// Whether a buffer's value is read by an op from `at` on.
    fn is_read_from(&self, at: usize, buffer: BufferId) -> bool {
        let uses = &self.uses[buffer.index()];
        let next = uses.partition_point(|&(op, _)| op < at);
        uses.get(next).is_some_and(|&(_, reads)| reads)
    }

    /// Whether any op reads the buffer: if so, nobody else does.
    fn is_read_at_all(&self, buffer: BufferId) -> bool {
        self.uses[buffer.index()].iter().any(|&(_, reads)| reads)
    }

    /// Whether a value that is written before `at` need not exist: ops up to there are the only ones to read it.
    fn is_gone(&self, at: usize, buffer: BufferId) -> bool {
        self.is_read_at_all(buffer) && !self.is_read_from(at, buffer)
    }

    fn width(&self, buffer: BufferId) -> usize {
        match self.program.buffer(buffer).kind {
            BufferKind::Weight { columns, .. } => columns,
            BufferKind::Scratch { width, .. } | BufferKind::Cache { width, .. } => width,
        }
    }

    fn rows(&self, buffer: BufferId) -> Rows {
        match self.program.buffer(buffer).kind {
            BufferKind::Scratch { rows, .. } => rows,
            BufferKind::Weight { .. } | BufferKind::Cache { .. } => Rows::Tokens,
        }
    }

    /// Format, rows and columns of a weight of blocks; `None` if it is a trellis.
    fn weight(&self, buffer: BufferId) -> Option<(DType, usize, usize)> {
        match self.program.buffer(buffer).kind {
            BufferKind::Weight { format: WeightFormat::Blocks(dtype), rows, columns } => Some((dtype, rows, columns)),
            BufferKind::Weight { format: WeightFormat::Trellis(_), .. } => None,
            _ => unreachable!("the builder of programs checks that it is a weight"),
        }
    }

    /// The format of a trellis weight.
    fn trellis_format(&self, buffer: BufferId) -> Option<TrellisFormat> {
        match self.program.buffer(buffer).kind {
            BufferKind::Weight { format: WeightFormat::Trellis(format), .. } => Some(format),
            _ => None,
        }
    }

    /// A norm over whole rows that the fused kernel can do.
    fn is_row_norm(&self, input: BufferId, weight: BufferId) -> bool {
        let width = self.width(input);
        // The kernel keeps a row in registers.
        self.width(weight) == width && width.is_multiple_of(4) && width <= 32_768
    }

    fn norm_add(&self, at: usize) -> Option<(Step, usize)> {
        let [Op::RmsNorm { input, weight, epsilon, output }, Op::Add { input: update, output: residual }, rest @ ..] =
            &self.program.ops()[at..]
        else {
            return None;
        };
        let fits = output == update && residual != input && self.is_row_norm(*input, *weight);
        if !fits || self.is_read_from(at + 2, *update) {
            return None;
        }
        let add = Some((*input, (*weight, *epsilon)));
        match rest.first() {
            Some(Op::RmsNorm { input, weight, epsilon, output })
                if input == residual && output != input && self.is_row_norm(*input, *weight) =>
            {
                let output = Some(((*weight, *epsilon), *output));
                Some((Step::Norm { add, residual: *residual, output, forms: Forms::default() }, 3))
            }
            _ => Some((Step::Norm { add, residual: *residual, output: None, forms: Forms::default() }, 2)),
        }
    }

    fn norm(&self, at: usize) -> Option<(Step, usize)> {
        match &self.program.ops()[at] {
            Op::RmsNorm { input, weight, epsilon, output } if self.is_row_norm(*input, *weight) && input != output => {
                let output = Some(((*weight, *epsilon), *output));
                Some((Step::Norm { add: None, residual: *input, output, forms: Forms::default() }, 1))
            }
            _ => None,
        }
    }

    fn gate_up(&self, at: usize) -> Option<(Step, usize)> {
        let [
            Op::Linear { weight: gate, input, output: first },
            Op::Linear { weight: up, input: same, output: second },
            Op::GeluMul { gate: gated, up: upped, output },
            ..,
        ] = self.program.ops()[at..]
        else {
            return None;
        };
        let gone = |buffer| buffer == output || self.is_gone(at + 3, buffer);
        let fits = input == same && (gated, upped) == (first, second) && self.weight(gate) == self.weight(up);
        let form = self.gated_form(gate, up, self.rows(input))?;
        if !fits || first == second || output == input || !gone(first) || !gone(second) {
            return None;
        }
        if !self.setting.few(self.rows(input)) {
            return None;
        }
        Some((Step::GateUp { gate, up, input, output, form, forms: Forms::default() }, 3))
    }

    /// The form of the input for gate and up together, if there is a kernel for them.
    fn gated_form(&self, gate: BufferId, up: BufferId, rows: Rows) -> Option<Form> {
        if let Some((dtype, ..)) = self.weight(gate) {
            return Some(self.setting.form(rows, dtype));
        }
        let (format, other) = (self.trellis_format(gate)?, self.trellis_format(up)?);
        (format == other && self.width(gate) == self.width(up)).then(|| self.setting.rotated(rows, gate, format))
    }

    fn linear(&self, at: usize) -> Option<(Step, usize)> {
        let ops = &self.program.ops()[at..];
        let Op::Linear { weight, input, .. } = ops[0] else { return None };
        let (dtype, _, columns) = self.weight(weight)?;
        let form = self.setting.form(self.rows(input), dtype);
        let parts: Vec<(BufferId, BufferId)> = ops
            .iter()
            .map_while(|op| match *op {
                Op::Linear { weight, input: same, output } => {
                    let (format, _, width) = self.weight(weight)?;
                    (same == input && (format, width) == (dtype, columns)).then_some((weight, output))
                }
                _ => None,
            })
            .take(PRODUCTS_MAX)
            .collect();
        let taken = parts.len();
        Some((Step::Linear { parts, input, form }, taken))
    }

    /// Products with trellis weights, as many as share their rotated input.
    fn trellis(&self, at: usize) -> Option<(Step, usize)> {
        let ops = &self.program.ops()[at..];
        let Op::Linear { weight, input, .. } = ops[0] else { return None };
        let rows = self.rows(input);
        let form = self.setting.rotated(rows, weight, self.trellis_format(weight)?);
        let number = self.trellis_format(weight)?.rotation;
        let part = |op: &Op| match *op {
            Op::Linear { weight, input: same, output } if same == input => {
                let format = self.trellis_format(weight)?;
                let fits = format.rotation == number && self.setting.rotated(rows, weight, format).is_like(form);
                fits.then_some((weight, output))
            }
            _ => None,
        };
        let parts: Vec<(BufferId, BufferId)> = ops.iter().map_while(part).collect();
        let taken = parts.len();
        Some((Step::Trellis { parts, input, form }, taken))
    }

    fn head_prepare(&self, at: usize) -> Option<(Step, usize)> {
        let [
            Op::RmsNorm { input: query, weight: query_weight, epsilon: query_epsilon, output: query_normed },
            Op::RmsNorm { input: key, weight: key_weight, epsilon: key_epsilon, output: key_normed },
            Op::Rope { values: query_turned, head_dim, base, position_divisor },
            Op::Rope { values: key_turned, head_dim: key_dim, base: key_base, position_divisor: key_divisor },
            Op::CacheWrite { input: key_written, cache: keys },
            Op::CacheWrite { input: value, cache: values },
            ..,
        ] = self.program.ops()[at..]
        else {
            return None;
        };
        let in_place = [query_normed, query_turned] == [query; 2] && [key_normed, key_turned, key_written] == [key; 3];
        let same = (head_dim, base, position_divisor) == (key_dim, key_base, key_divisor);
        let whole_heads = self.width(query_weight) == head_dim && self.width(key_weight) == head_dim;
        let distinct = query != key && value != key && value != query;
        let supported = query_epsilon == key_epsilon && head_dim.is_multiple_of(PADDING);
        if !supported || !in_place || !same || !whole_heads || !distinct || !self.is_gone(at + 6, key) {
            return None;
        }
        let step = Step::HeadPrepare {
            query: (query, (query_weight, query_epsilon)),
            key: (key, (key_weight, key_epsilon)),
            value,
            keys,
            values,
            rope: Rope { head_dim, base, position_divisor },
        };
        Some((step, 6))
    }

    /// Decides in which forms outputs are written, and puts in conversions where a step can't write the form that a
    /// later one reads.
    fn choose_forms(&self, steps: Vec<Step>) -> Vec<Step> {
        let buffers = self.program.buffers().len();
        // Per buffer: the step that wrote it last, and the forms other than f32 that are up to date.
        let mut writer: Vec<Option<usize>> = vec![None; buffers];
        let mut fresh: Vec<Vec<Form>> = vec![Vec::new(); buffers];
        let mut done: Vec<Step> = Vec::new();
        for mut step in steps {
            for (buffer, form) in self.inputs(&step) {
                let known = fresh[buffer.index()].iter().find(|known| known.is_like(form)).copied();
                let found = match (form, known) {
                    (Form::Floats, _) => {
                        let writer = writer[buffer.index()].and_then(|index| forms_of(&mut done[index], buffer));
                        writer.into_iter().for_each(|forms| forms.floats = true);
                        continue;
                    }
                    (_, Some(found)) => found,
                    (_, None) => {
                        let made = self.provide(&mut done, writer[buffer.index()], buffer, form);
                        // A buffer has one place for what is rotated, however that is.
                        let rotates = |form: &Form| matches!(form, Form::Rotated(_));
                        fresh[buffer.index()].retain(|other| !(rotates(other) && rotates(&made)));
                        fresh[buffer.index()].push(made);
                        made
                    }
                };
                if let Step::Linear { form, .. } | Step::GateUp { form, .. } = &mut step {
                    *form = found;
                }
            }
            for buffer in outputs(&step) {
                writer[buffer.index()] = Some(done.len());
                fresh[buffer.index()].clear();
                if let Some(forms) = forms_of(&mut step, buffer).filter(|_| !self.is_read_at_all(buffer)) {
                    forms.floats = true;
                }
            }
            done.push(step);
        }
        done
    }

    /// Lets the writer of a buffer write another form of it, or converts it. The form as it will be.
    fn provide(&self, done: &mut Vec<Step>, writer: Option<usize>, buffer: BufferId, form: Form) -> Form {
        let whole_blocks = self.width(buffer).is_multiple_of(PADDING);
        if let Some(index) = writer {
            let can = whole_blocks && self.can_quantize(&done[index]);
            let can_rotate = self.can_rotate(&done[index]);
            // One row goes faster in halves of blocks (`matvec.rs`); more of them cost their readers registers.
            let half_scales = matches!(done[index], Step::GateUp { .. }) && self.setting.one(self.rows(buffer));
            if let Some(forms) = forms_of(&mut done[index], buffer) {
                let other = forms.quants.is_some() || forms.rotated.is_some();
                if let Form::Rotated(rotation) = form
                    && can_rotate
                    && !other
                {
                    forms.rotated = Some(rotation);
                    return form;
                }
                if let Form::Quants(arrangement) = form
                    && can
                    && !other
                {
                    let arrangement = Arrangement { half_scales, ..arrangement };
                    forms.quants = Some(arrangement);
                    return Form::Quants(arrangement);
                }
                forms.floats = true;
            }
        }
        done.push(Step::Convert { input: buffer, form });
        form
    }

    /// Whether a step can write rotated activations.
    fn can_rotate(&self, step: &Step) -> bool {
        match step {
            Step::Norm { output: Some((_, output)), .. } => self.setting.few(self.rows(*output)),
            Step::GateUp { form: Form::Rotated(_), .. } => true,
            Step::Attention { op: Op::Attention { query, keys, output, head_dim, .. }, .. } => {
                let group = self.width(*query) / self.width(*keys);
                self.setting.few(self.rows(*output)) && (group * head_dim).is_multiple_of(BLOCK)
            }
            _ => false,
        }
    }

    /// Whether a step can write 8-bit integers.
    fn can_quantize(&self, step: &Step) -> bool {
        match step {
            Step::GateUp { form: Form::Rotated(_), .. } => false,
            Step::Norm { output: Some((_, output)), .. } | Step::GateUp { output, .. } => {
                self.setting.few(self.rows(*output))
            }
            Step::Attention { op: Op::Attention { output, head_dim, .. }, .. } => {
                self.setting.few(self.rows(*output)) && head_dim.is_multiple_of(PADDING)
            }
            Step::Attention { .. }
            | Step::Norm { .. }
            | Step::Plain(_)
            | Step::Convert { .. }
            | Step::Linear { .. }
            | Step::Trellis { .. }
            | Step::HeadPrepare { .. } => false,
        }
    }

    /// The activations that a step reads, and in which form.
    fn inputs(&self, step: &Step) -> Vec<(BufferId, Form)> {
        let floats = |buffer| (buffer, Form::Floats);
        match step {
            Step::Plain(op) => op.reads().into_iter().map(floats).collect(),
            Step::Norm { add, residual, .. } => {
                add.iter().map(|(update, _)| *update).chain([*residual]).map(floats).collect()
            }
            Step::Convert { input, .. } => vec![floats(*input)],
            Step::Linear { input, form, .. } | Step::GateUp { input, form, .. } | Step::Trellis { input, form, .. } => {
                vec![(*input, *form)]
            }
            Step::HeadPrepare { query, key, value, .. } => [query.0, key.0, *value].into_iter().map(floats).collect(),
            Step::Attention { op, .. } => op.reads().into_iter().map(floats).collect(),
        }
    }
}

/// The forms in which a step writes a buffer, if it has a choice.
fn forms_of(step: &mut Step, buffer: BufferId) -> Option<&mut Forms> {
    match step {
        Step::Norm { forms, output: Some((_, output)), .. } | Step::GateUp { forms, output, .. } => {
            (*output == buffer).then_some(forms)
        }
        Step::Attention { forms, .. } => Some(forms),
        Step::Norm { .. }
        | Step::Plain(_)
        | Step::Convert { .. }
        | Step::Linear { .. }
        | Step::Trellis { .. }
        | Step::HeadPrepare { .. } => None,
    }
}

/// The activations that a step writes.
fn outputs(step: &Step) -> Vec<BufferId> {
    match step {
        Step::Plain(op) | Step::Attention { op, .. } => vec![op.writes()],
        Step::Norm { add, residual, output, .. } => {
            add.iter().map(|_| *residual).chain(output.iter().map(|(_, output)| *output)).collect()
        }
        Step::Convert { .. } => vec![],
        Step::Linear { parts, .. } | Step::Trellis { parts, .. } => parts.iter().map(|(_, output)| *output).collect(),
        Step::GateUp { output, .. } => vec![*output],
        Step::HeadPrepare { query, .. } => vec![query.0],
    }
}
