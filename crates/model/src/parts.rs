//! Parts of the model as programs of their own, for work that goes through a model layer by layer.
//!
//! A part starts from the residual stream of some tokens, which it gets as a weight [`STATES`] in f32,
//! `[states, hidden]`: the token ids of a batch are rows of it. So any backend runs parts, and the states of many
//! batches are bound at once.

use tensor::program::ProgramError;
use tensor::{BufferId, DType, Op, Program, ProgramBuilder, Rows, Scalar, WeightFormat};

use crate::layer::{Activations, Builder};
use crate::{Config, Role, TensorEntry};

/// The name of the weight that holds the states.
pub const STATES: &str = "states";

/// A layer's program and what can be read after a pass. All buffers have a row for each output of the batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayerProgram {
    /// The ops.
    pub program: Program,
    /// What the layer's matrices multiply: what queries, keys and values share `[outputs, hidden]`, the attention's
    /// output `[outputs, heads · head_dim]`, what gate and up share `[outputs, hidden]`, and what the down projection
    /// gets `[outputs, feed_forward]`.
    pub inputs: [BufferId; 4],
    /// The residual stream after the layer `[outputs, hidden]`.
    pub states: BufferId,
}

/// The program of what comes after the last layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeadProgram {
    /// The ops.
    pub program: Program,
    /// What the head multiplies: the states after the final norm `[outputs, hidden]`.
    pub input: BufferId,
    /// `[outputs, vocabulary]`; `None` without the head.
    pub logits: Option<BufferId>,
}

/// One layer for `states` rows of the residual stream.
///
/// # Errors
/// As [`crate::build_program`].
///
/// # Panics
/// If there is no such layer.
pub fn build_layer_program(
    config: &Config,
    layer: usize,
    states: usize,
    formats: &dyn Fn(&TensorEntry) -> WeightFormat,
) -> Result<LayerProgram, ProgramError> {
    let mut builder = Builder { program: ProgramBuilder::new(), config, formats };
    let x = start(&mut builder, states);
    let projections = builder.projections();
    builder.attention(layer, &x, &projections);
    let attention = tap(&mut builder, "attention", x.normed, config.hidden);
    builder.output_and_feed_forward(layer, &x);
    let attended = tap(&mut builder, "attended", x.attended, config.query_width());
    let feed_forward = tap(&mut builder, "feed_forward", x.normed, config.hidden);
    let down = tap(&mut builder, "down", x.gate, config.feed_forward);
    let states = tap(&mut builder, "after", x.residual, config.hidden);
    Ok(LayerProgram { program: builder.program.build()?, inputs: [attention, attended, feed_forward, down], states })
}

/// The final norm and, with `logits`, the head for `states` rows of the residual stream.
///
/// # Errors
/// As [`crate::build_program`].
pub fn build_head_program(
    config: &Config,
    states: usize,
    formats: &dyn Fn(&TensorEntry) -> WeightFormat,
    logits: bool,
) -> Result<HeadProgram, ProgramError> {
    let mut builder = Builder { program: ProgramBuilder::new(), config, formats };
    let x = start(&mut builder, states);
    let norm = builder.weight(Role::FinalNorm, None);
    builder.final_norm(norm, &x, x.normed);
    let input = tap(&mut builder, "head", x.normed, config.hidden);
    let logits = logits.then(|| {
        let role = if config.tied_embeddings { Role::Embedding } else { Role::Head };
        let weight = builder.weight(role, None);
        // The head only runs on the rows of outputs; what is tapped has nothing that reads it.
        let rows = builder.program.scratch("normed.outputs", Rows::Outputs, config.hidden);
        builder.program.push(Op::SelectOutputs { input: x.normed, output: rows });
        let output = builder.program.scratch("logits", Rows::Outputs, config.vocabulary);
        builder.program.push(Op::Linear { weight, input: rows, output });
        output
    });
    Ok(HeadProgram { program: builder.program.build()?, input, logits })
}

/// Takes the rows of the batch out of the states.
fn start(builder: &mut Builder<'_>, states: usize) -> Activations {
    let table = builder.program.weight(STATES, DType::F32, states, builder.config.hidden);
    let x = builder.activations(Rows::Tokens);
    builder.program.push(Op::Embed { table, scale: Scalar(1.0), output: x.residual });
    x
}

/// Keeps the rows of outputs of a buffer that is overwritten or that a backend might not keep.
fn tap(builder: &mut Builder<'_>, name: &str, input: BufferId, width: usize) -> BufferId {
    let output = builder.program.scratch(format!("{name}.tap"), Rows::Outputs, width);
    builder.program.push(Op::SelectOutputs { input, output });
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_runs_from_states_to_states() {
        let config = Config::shape("270m").unwrap();
        let built = build_layer_program(&config, 3, 100, &|_| DType::F16.into()).unwrap();
        let text = built.program.to_string();
        assert!(text.starts_with("residual = embed(states)\nnormed = rms_norm(residual, blk.3.attn_norm.weight)\n"));
        assert!(text.ends_with("\nafter.tap = select_outputs(residual)\n"), "{text}");
        // Tapped before the feed-forward layer's norm overwrites it.
        let (tap, norm) = (text.find("attention.tap").unwrap(), text.find("blk.3.ffn_norm").unwrap());
        assert!(tap < norm, "{text}");
        for id in built.inputs.into_iter().chain([built.states]) {
            assert!(built.program.ops().iter().all(|op| !op.reads().contains(&id)));
        }
    }

    #[test]
    fn a_head_may_go_without_logits() {
        let config = Config::shape("270m").unwrap();
        let built = build_head_program(&config, 100, &|_| DType::F16.into(), false).unwrap();
        assert_eq!((built.logits, built.program.find("token_embd.weight")), (None, None));
        let built = build_head_program(&config, 100, &|_| DType::F16.into(), true).unwrap();
        assert!(built.program.to_string().ends_with("logits = linear(token_embd.weight, normed.outputs)\n"));
    }
}
