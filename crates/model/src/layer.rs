//! One layer of Gemma 3, as the technical report and the transformers library's `modeling_gemma3.py` have it.

use tensor::{BufferId, DType, Op, ProgramBuilder, Rows, Scalar, WeightFormat};

use crate::{Config, LayerKind, Role, TensorEntry};

/// Declares the weights and pushes the ops of one model.
pub(crate) struct Builder<'a> {
    pub(crate) program: ProgramBuilder,
    pub(crate) config: &'a Config,
    pub(crate) formats: &'a dyn Fn(&TensorEntry) -> WeightFormat,
}

/// Activations that all layers share, one row per token or per output.
pub(crate) struct Activations {
    /// The residual stream `[rows, hidden]`.
    pub(crate) residual: BufferId,
    /// The residual stream after a norm `[rows, hidden]`.
    pub(crate) normed: BufferId,
    /// What attention or the feed-forward layer adds to the residual stream `[rows, hidden]`.
    update: BufferId,
    /// `[rows, heads · head_dim]`.
    pub(crate) attended: BufferId,
    /// `[rows, feed_forward]`; after a layer, what its down projection got.
    pub(crate) gate: BufferId,
    /// `[rows, feed_forward]`.
    up: BufferId,
}

/// Activations that only tokens have.
pub(crate) struct Projections {
    /// `[tokens, heads · head_dim]`.
    query: BufferId,
    /// `[tokens, kv_heads · head_dim]`.
    key: BufferId,
    /// `[tokens, kv_heads · head_dim]`.
    value: BufferId,
}

impl Builder<'_> {
    /// Declares the activations for tokens or for outputs.
    pub(crate) fn activations(&mut self, rows: Rows) -> Activations {
        let config = self.config;
        let suffix = match rows {
            Rows::Tokens => "",
            Rows::Outputs => ".outputs",
        };
        let mut scratch = |name: &str, width| self.program.scratch(format!("{name}{suffix}"), rows, width);
        Activations {
            residual: scratch("residual", config.hidden),
            normed: scratch("normed", config.hidden),
            update: scratch("update", config.hidden),
            attended: scratch("attended", config.query_width()),
            gate: scratch("gate", config.feed_forward),
            up: scratch("up", config.feed_forward),
        }
    }

    /// Declares queries, keys and values.
    pub(crate) fn projections(&mut self) -> Projections {
        let config = self.config;
        Projections {
            query: self.program.scratch("query", Rows::Tokens, config.query_width()),
            key: self.program.scratch("key", Rows::Tokens, config.kv_width()),
            value: self.program.scratch("value", Rows::Tokens, config.kv_width()),
        }
    }

    /// `attended = attention(norm(residual))`, before the output projection.
    pub(crate) fn attention(&mut self, layer: usize, x: &Activations, p: &Projections) {
        let config = self.config;
        let kind = config.layers[layer];
        // [tokens, hidden] → [tokens, hidden]
        self.norm(Role::AttentionNorm, layer, x.residual, x.normed);
        // [tokens, hidden] → [tokens, heads · head_dim]; side by side, because they share an input.
        self.linear(Role::Query, layer, x.normed, p.query);
        self.linear(Role::Key, layer, x.normed, p.key);
        self.linear(Role::Value, layer, x.normed, p.value);
        // Each head on its own.
        self.norm(Role::QueryNorm, layer, p.query, p.query);
        self.norm(Role::KeyNorm, layer, p.key, p.key);
        self.rope(kind, p.query);
        self.rope(kind, p.key);
        let keys = self.program.cache(format!("blk.{layer}.keys"), config.kv_width(), kind.window());
        let values = self.program.cache(format!("blk.{layer}.values"), config.kv_width(), kind.window());
        self.program.push(Op::CacheWrite { input: p.key, cache: keys });
        self.program.push(Op::CacheWrite { input: p.value, cache: values });
        self.program.push(Op::Attention {
            query: p.query,
            keys,
            values,
            head_dim: config.head_dim,
            window: kind.window(),
            scale: Scalar(config.query_scale()),
            output: x.attended,
        });
    }

    /// `residual += norm(output(attended))`, then `residual += norm(down(gelu(gate(x)) · up(x)))` with
    /// `x = norm(residual)`.
    pub(crate) fn output_and_feed_forward(&mut self, layer: usize, x: &Activations) {
        self.linear(Role::AttentionOutput, layer, x.attended, x.update);
        self.norm(Role::PostAttentionNorm, layer, x.update, x.update);
        self.program.push(Op::Add { input: x.update, output: x.residual });

        self.norm(Role::FeedForwardNorm, layer, x.residual, x.normed);
        // [rows, hidden] → [rows, feed_forward]
        self.linear(Role::Gate, layer, x.normed, x.gate);
        self.linear(Role::Up, layer, x.normed, x.up);
        self.program.push(Op::GeluMul { gate: x.gate, up: x.up, output: x.gate });
        // [rows, feed_forward] → [rows, hidden]
        self.linear(Role::Down, layer, x.gate, x.update);
        self.norm(Role::PostFeedForwardNorm, layer, x.update, x.update);
        self.program.push(Op::Add { input: x.update, output: x.residual });
    }

    /// Copies the rows of outputs of what the rest of the last layer needs.
    pub(crate) fn select(&mut self, from: &Activations, to: &Activations) {
        self.program.push(Op::SelectOutputs { input: from.attended, output: to.attended });
        self.program.push(Op::SelectOutputs { input: from.residual, output: to.residual });
    }

    /// `output = norm(residual)` with the final norm's weight.
    pub(crate) fn final_norm(&mut self, weight: BufferId, x: &Activations, output: BufferId) {
        let epsilon = Scalar(self.config.epsilon);
        self.program.push(Op::RmsNorm { input: x.residual, weight, epsilon, output });
    }

    /// Declares a weight.
    pub(crate) fn weight(&mut self, role: Role, layer: Option<usize>) -> BufferId {
        let entry = TensorEntry::new(self.config, role, layer);
        let format = if role.is_norm() { DType::F32.into() } else { (self.formats)(&entry) };
        self.program.weight(entry.name, format, entry.rows, entry.columns)
    }

    fn linear(&mut self, role: Role, layer: usize, input: BufferId, output: BufferId) {
        let weight = self.weight(role, Some(layer));
        self.program.push(Op::Linear { weight, input, output });
    }

    fn norm(&mut self, role: Role, layer: usize, input: BufferId, output: BufferId) {
        let weight = self.weight(role, Some(layer));
        self.program.push(Op::RmsNorm { input, weight, epsilon: Scalar(self.config.epsilon), output });
    }

    fn rope(&mut self, kind: LayerKind, values: BufferId) {
        let rope = self.config.rope(kind);
        self.program.push(Op::Rope {
            values,
            head_dim: self.config.head_dim,
            base: Scalar(rope.base),
            position_divisor: Scalar(rope.divisor),
        });
    }
}
