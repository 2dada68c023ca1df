//! Programs with the ops of Gemma 3, two layers each: everything that its passes dispatch occurs in them.

use tensor::{BufferId, DType, Op, Program, ProgramBuilder, Rows, Scalar, TrellisFormat, WeightFormat};

/// The sizes of a published model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    hidden: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: usize,
}

/// All sizes of Gemma 3: 270M, 1B, 4B, 12B and 27B.
pub(crate) const SHAPES: [Shape; 5] = [
    Shape { hidden: 640, feed_forward: 2048, heads: 4, kv_heads: 1, head_dim: 256, window: 512 },
    Shape { hidden: 1152, feed_forward: 6912, heads: 4, kv_heads: 1, head_dim: 256, window: 512 },
    Shape { hidden: 2560, feed_forward: 10240, heads: 8, kv_heads: 4, head_dim: 256, window: 1024 },
    Shape { hidden: 3840, feed_forward: 15360, heads: 16, kv_heads: 8, head_dim: 256, window: 1024 },
    Shape { hidden: 5376, feed_forward: 21504, heads: 32, kv_heads: 16, head_dim: 128, window: 1024 },
];

/// Tokens that Gemma 3 knows, as the checkpoints' embeddings have them.
const VOCABULARY: usize = 262_144;

/// Activations for tokens or for outputs.
struct Activations {
    residual: BufferId,
    normed: BufferId,
    update: BufferId,
    attended: BufferId,
    gate: BufferId,
    up: BufferId,
}

struct Builder {
    program: ProgramBuilder,
    shape: Shape,
    format: WeightFormat,
    /// Numbers of the scales of trellis weights' inputs so far, and the input that has the last one.
    rotation: (u32, Option<BufferId>),
}

/// The program of a local and a global layer, the final norm and the head; weights of a format, or of [`DType::Q8_0`]
/// where its blocks don't divide a row, as converters do it. Gives the buffer of the logits too.
pub(crate) fn program(shape: Shape, format: WeightFormat) -> (Program, BufferId) {
    let mut builder = Builder { program: ProgramBuilder::new(), shape, format, rotation: (0, None) };
    let table = builder.matrix("embedding", VOCABULARY, shape.hidden);
    let (tokens, outputs) = (builder.activations(Rows::Tokens), builder.activations(Rows::Outputs));
    builder.program.push(Op::Embed { table, scale: Scalar(1.0), output: tokens.residual });
    builder.attention("local", Some(shape.window), &tokens);
    builder.output_and_feed_forward("local", &tokens);
    builder.attention("global", None, &tokens);
    builder.program.push(Op::SelectOutputs { input: tokens.attended, output: outputs.attended });
    builder.program.push(Op::SelectOutputs { input: tokens.residual, output: outputs.residual });
    builder.output_and_feed_forward("global", &outputs);
    builder.norm("final", outputs.residual, outputs.normed, shape.hidden);
    let logits = builder.program.scratch("logits", Rows::Outputs, VOCABULARY);
    builder.program.push(Op::Linear { weight: table, input: outputs.normed, output: logits });
    (builder.program.build().expect("shapes that fit"), logits)
}

impl Builder {
    fn matrix(&mut self, name: impl Into<String>, rows: usize, columns: usize) -> BufferId {
        let format: WeightFormat = match self.format {
            WeightFormat::Blocks(dtype) if !columns.is_multiple_of(dtype.block_len()) => DType::Q8_0.into(),
            WeightFormat::Blocks(dtype) => dtype.into(),
            WeightFormat::Trellis(format) => TrellisFormat { rotation: self.rotation.0, ..format }.into(),
        };
        self.program.weight(name, format, rows, columns)
    }

    fn activations(&mut self, rows: Rows) -> Activations {
        let Shape { hidden, feed_forward, heads, head_dim, .. } = self.shape;
        let mut scratch = |name: &str, width| self.program.scratch(format!("{name} {rows:?}"), rows, width);
        Activations {
            residual: scratch("residual", hidden),
            normed: scratch("normed", hidden),
            update: scratch("update", hidden),
            attended: scratch("attended", heads * head_dim),
            gate: scratch("gate", feed_forward),
            up: scratch("up", feed_forward),
        }
    }

    fn norm(&mut self, name: &str, input: BufferId, output: BufferId, width: usize) {
        let weight = self.program.weight(format!("{name} norm"), DType::F32, 1, width);
        self.program.push(Op::RmsNorm { input, weight, epsilon: Scalar(1e-6), output });
    }

    fn linear(&mut self, name: &str, (rows, columns): (usize, usize), input: BufferId, output: BufferId) {
        // Weights with the same input, one after the other, share the scales of their inputs.
        if self.rotation.1 != Some(input) {
            self.rotation = (self.rotation.0 + 1, Some(input));
        }
        let weight = self.matrix(name, rows, columns);
        self.program.push(Op::Linear { weight, input, output });
    }

    /// `attended = attention(norm(residual))`.
    fn attention(&mut self, layer: &str, window: Option<usize>, x: &Activations) {
        let Shape { hidden, heads, kv_heads, head_dim, .. } = self.shape;
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let [query, key, value] = [("query", width), ("key", kv_width), ("value", kv_width)]
            .map(|(name, width)| self.program.scratch(format!("{layer} {name}"), Rows::Tokens, width));
        self.norm(&format!("{layer} attention"), x.residual, x.normed, hidden);
        self.linear(&format!("{layer} query weight"), (width, hidden), x.normed, query);
        self.linear(&format!("{layer} key weight"), (kv_width, hidden), x.normed, key);
        self.linear(&format!("{layer} value weight"), (kv_width, hidden), x.normed, value);
        self.norm(&format!("{layer} query"), query, query, head_dim);
        self.norm(&format!("{layer} key"), key, key, head_dim);
        let base = Scalar(if window.is_some() { 1e4 } else { 1e6 });
        for values in [query, key] {
            self.program.push(Op::Rope { values, head_dim, base, position_divisor: Scalar(1.0) });
        }
        let [keys, values] =
            ["keys", "values"].map(|name| self.program.cache(format!("{layer} {name}"), kv_width, window));
        self.program.push(Op::CacheWrite { input: key, cache: keys });
        self.program.push(Op::CacheWrite { input: value, cache: values });
        let scale = Scalar(1.0 / (head_dim as f32).sqrt());
        self.program.push(Op::Attention { query, keys, values, head_dim, window, scale, output: x.attended });
    }

    /// `residual += norm(output(attended))`, then `residual += norm(down(gelu(gate(x)) · up(x)))`.
    fn output_and_feed_forward(&mut self, layer: &str, x: &Activations) {
        let Shape { hidden, feed_forward, heads, head_dim, .. } = self.shape;
        self.linear(&format!("{layer} output weight"), (hidden, heads * head_dim), x.attended, x.update);
        self.norm(&format!("{layer} output"), x.update, x.update, hidden);
        self.program.push(Op::Add { input: x.update, output: x.residual });
        self.norm(&format!("{layer} feed-forward"), x.residual, x.normed, hidden);
        self.linear(&format!("{layer} gate weight"), (feed_forward, hidden), x.normed, x.gate);
        self.linear(&format!("{layer} up weight"), (feed_forward, hidden), x.normed, x.up);
        self.program.push(Op::GeluMul { gate: x.gate, up: x.up, output: x.gate });
        self.linear(&format!("{layer} down weight"), (hidden, feed_forward), x.gate, x.update);
        self.norm(&format!("{layer} down"), x.update, x.update, hidden);
        self.program.push(Op::Add { input: x.update, output: x.residual });
    }
}
