//! The whole model as a [`Program`].

use tensor::program::ProgramError;
use tensor::{BufferId, Op, Program, ProgramBuilder, Rows, Scalar, WeightFormat};

use crate::layer::{Activations, Builder};
use crate::{Config, Role, TensorEntry};

/// What a program shall give besides logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProgramOptions {
    /// Keep the hidden states of the output rows.
    pub hidden: bool,
}

/// A model's program and the buffers that are worth reading after a pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gemma3Program {
    /// The ops.
    pub program: Program,
    /// `[outputs, vocabulary]`.
    pub logits: BufferId,
    /// `[outputs, hidden]` each, empty without [`ProgramOptions::hidden`]: the scaled embeddings, the residual stream
    /// after each layer but the last, and that of the last layer after the final norm; `layers + 1` buffers named
    /// `hidden00`, `hidden01`, ….
    pub hidden: Vec<BufferId>,
}

/// Turns a model into a program. `formats` says how each matrix is stored; norms are f32.
///
/// The last layer's output projection and feed-forward layer, the final norm and the head only run on the rows whose
/// outputs are asked for.
///
/// # Errors
/// Shapes that don't fit each other, or a format whose blocks don't divide a matrix's rows.
pub fn build_program(
    config: &Config,
    formats: &dyn Fn(&TensorEntry) -> WeightFormat,
    options: ProgramOptions,
) -> Result<Gemma3Program, ProgramError> {
    let mut builder = Builder { program: ProgramBuilder::new(), config, formats };
    let mut hidden = Vec::new();
    let table = builder.weight(Role::Embedding, None);
    let tokens = builder.activations(Rows::Tokens);
    let outputs = builder.activations(Rows::Outputs);
    let projections = builder.projections();

    let scale = Scalar(config.embedding_scale());
    builder.program.push(Op::Embed { table, scale, output: tokens.residual });
    for layer in 0..config.layers.len() {
        if options.hidden {
            hidden.push(tap(&mut builder, &tokens, layer));
        }
        builder.attention(layer, &tokens, &projections);
        if layer + 1 < config.layers.len() {
            builder.output_and_feed_forward(layer, &tokens);
        } else {
            builder.select(&tokens, &outputs);
            builder.output_and_feed_forward(layer, &outputs);
        }
    }
    let norm = builder.weight(Role::FinalNorm, None);
    if options.hidden {
        // A buffer of its own: backends keep those that nothing reads, and the head reads `normed`.
        let name = format!("hidden{:02}", config.layers.len());
        let output = builder.program.scratch(name, Rows::Outputs, config.hidden);
        builder.final_norm(norm, &outputs, output);
        hidden.push(output);
    }
    builder.final_norm(norm, &outputs, outputs.normed);
    let logits = builder.program.scratch("logits", Rows::Outputs, config.vocabulary);
    let head = if config.tied_embeddings { table } else { builder.weight(Role::Head, None) };
    builder.program.push(Op::Linear { weight: head, input: outputs.normed, output: logits });
    Ok(Gemma3Program { program: builder.program.build()?, logits, hidden })
}

/// Copies the output rows of the residual stream before a layer.
fn tap(builder: &mut Builder<'_>, tokens: &Activations, layer: usize) -> BufferId {
    let output = builder.program.scratch(format!("hidden{layer:02}"), Rows::Outputs, builder.config.hidden);
    builder.program.push(Op::SelectOutputs { input: tokens.residual, output });
    output
}

#[cfg(test)]
mod tests {
    use tensor::{BufferKind, DType};

    use super::*;
    use crate::LayerKind;

    fn two_layers() -> Config {
        let mut config = Config::shape("270m").unwrap();
        config.layers = vec![LayerKind::Local { window: 512 }, LayerKind::Global];
        config
    }

    /// The whole program of a model of two layers, so that a change of the order of ops is seen.
    #[test]
    fn a_program_reads_like_the_paper() {
        let program = build_program(&two_layers(), &|_| DType::Q4_0.into(), ProgramOptions::default()).unwrap().program;
        let expected = "\
residual = embed(token_embd.weight)
normed = rms_norm(residual, blk.0.attn_norm.weight)
query = linear(blk.0.attn_q.weight, normed)
key = linear(blk.0.attn_k.weight, normed)
value = linear(blk.0.attn_v.weight, normed)
query = rms_norm(query, blk.0.attn_q_norm.weight)
key = rms_norm(key, blk.0.attn_k_norm.weight)
query = rope(query)
key = rope(key)
blk.0.keys = cache_write(key)
blk.0.values = cache_write(value)
attended = attention(query, blk.0.keys, blk.0.values)
update = linear(blk.0.attn_output.weight, attended)
update = rms_norm(update, blk.0.post_attention_norm.weight)
residual = add(update, residual)
normed = rms_norm(residual, blk.0.ffn_norm.weight)
gate = linear(blk.0.ffn_gate.weight, normed)
up = linear(blk.0.ffn_up.weight, normed)
gate = gelu_mul(gate, up)
update = linear(blk.0.ffn_down.weight, gate)
update = rms_norm(update, blk.0.post_ffw_norm.weight)
residual = add(update, residual)
normed = rms_norm(residual, blk.1.attn_norm.weight)
query = linear(blk.1.attn_q.weight, normed)
key = linear(blk.1.attn_k.weight, normed)
value = linear(blk.1.attn_v.weight, normed)
query = rms_norm(query, blk.1.attn_q_norm.weight)
key = rms_norm(key, blk.1.attn_k_norm.weight)
query = rope(query)
key = rope(key)
blk.1.keys = cache_write(key)
blk.1.values = cache_write(value)
attended = attention(query, blk.1.keys, blk.1.values)
attended.outputs = select_outputs(attended)
residual.outputs = select_outputs(residual)
update.outputs = linear(blk.1.attn_output.weight, attended.outputs)
update.outputs = rms_norm(update.outputs, blk.1.post_attention_norm.weight)
residual.outputs = add(update.outputs, residual.outputs)
normed.outputs = rms_norm(residual.outputs, blk.1.ffn_norm.weight)
gate.outputs = linear(blk.1.ffn_gate.weight, normed.outputs)
up.outputs = linear(blk.1.ffn_up.weight, normed.outputs)
gate.outputs = gelu_mul(gate.outputs, up.outputs)
update.outputs = linear(blk.1.ffn_down.weight, gate.outputs)
update.outputs = rms_norm(update.outputs, blk.1.post_ffw_norm.weight)
residual.outputs = add(update.outputs, residual.outputs)
normed.outputs = rms_norm(residual.outputs, output_norm.weight)
logits = linear(token_embd.weight, normed.outputs)
";
        assert_eq!(program.to_string(), expected);
    }

    #[test]
    fn caches_of_local_layers_hold_the_window() {
        let program = build_program(&two_layers(), &|_| DType::BF16.into(), ProgramOptions::default()).unwrap().program;
        let kind = |name| program.buffer(program.find(name).unwrap()).kind.clone();
        assert_eq!(kind("blk.0.keys"), BufferKind::Cache { width: 256, window: Some(512) });
        assert_eq!(kind("blk.1.values"), BufferKind::Cache { width: 256, window: None });
    }

    #[test]
    fn hidden_states_have_buffers_that_nothing_reads() {
        let built = build_program(&two_layers(), &|_| DType::BF16.into(), ProgramOptions { hidden: true }).unwrap();
        assert_eq!(built.hidden.len(), 3);
        for (index, &id) in built.hidden.iter().enumerate() {
            assert_eq!(built.program.buffer(id).name, format!("hidden{index:02}"));
            assert!(built.program.ops().iter().all(|op| !op.reads().contains(&id)));
        }
    }

    #[test]
    fn every_weight_of_the_table_is_declared_in_its_shape() {
        for name in ["270m", "1b", "4b", "12b", "27b"] {
            let mut config = Config::shape(name).unwrap();
            config.tied_embeddings = name != "1b";
            let built = build_program(&config, &|_| DType::Q8_0.into(), ProgramOptions::default()).unwrap();
            let mut weights = 0;
            for entry in crate::tensors::tensors(&config) {
                let id = built.program.find(&entry.name).unwrap();
                let dtype = if entry.role.is_norm() { DType::F32 } else { DType::Q8_0 };
                let kind = BufferKind::Weight { format: dtype.into(), rows: entry.rows, columns: entry.columns };
                assert_eq!(built.program.buffer(id).kind, kind, "{}", entry.name);
                weights += 1;
            }
            let declared =
                built.program.buffers().iter().filter(|buffer| matches!(buffer.kind, BufferKind::Weight { .. }));
            assert_eq!(declared.count(), weights);
        }
    }

    #[test]
    fn a_format_whose_blocks_do_not_fit_is_an_error() {
        // 640 is no multiple of 256.
        let error = build_program(&two_layers(), &|_| DType::Q4_K.into(), ProgramOptions::default()).unwrap_err();
        assert!(error.to_string().contains("columns"), "{error}");
    }
}
