//! `logits`: what the model computes for each token of a text.

use anyhow::{Context, Result, ensure};
use checkpoint::{CheckpointError, safetensors};
use engine::{EngineOptions, ModelSource, Row};
use serde_json::json;
use tensor::DType;

use crate::args::LogitsArgs;
use crate::devices::ThisMachine;
use crate::model_source::Model;
use crate::runner::Runner;
use crate::session::outputs_max;
use crate::{interrupt, output};

/// Writes logits, and hidden states if asked for.
///
/// # Errors
/// A model that can't be loaded, tokens that it doesn't know, a file that can't be written.
pub(crate) fn run(args: LogitsArgs) -> Result<()> {
    let tokens = &args.token_ids;
    let model = Model::open(args.model.as_deref())?;
    let source = ModelSource::open(&model.checkpoint)?;
    let config = source.config();
    let context = args.load.context.unwrap_or(tokens.len().min(config.context));
    let options = EngineOptions {
        context: Some(context),
        outputs_max: outputs_max(config.vocabulary),
        hidden: args.hidden,
        ..args.load.engine_options()
    };
    let (vocabulary, width, layers) = (config.vocabulary, config.hidden, config.layers.len());
    let mut runner = Runner::load(&model.checkpoint, &ThisMachine, args.load.device, &options)?;
    runner.keep(model.checkpoint);
    interrupt::watch(runner.engine.interrupt_handle());
    // Checked before the file is begun.
    ensure!(
        tokens.len() <= runner.engine.context(),
        "there are {} tokens, the context holds {}\n\nhint: --context {} where the model allows it",
        tokens.len(),
        runner.engine.context(),
        tokens.len()
    );
    let states = if args.hidden { layers + 1 } else { 0 };
    let names: Vec<String> = (0..states).map(|state| format!("hidden{state:02}")).collect();
    let (logits_shape, hidden_shape) = ([tokens.len(), vocabulary], [tokens.len(), width]);
    let mut declared: Vec<(&str, DType, &[usize])> = vec![("logits", DType::F32, &logits_shape)];
    declared.extend(names.iter().map(|name| (name.as_str(), DType::F32, &hidden_shape[..])));
    let mut writer = safetensors::Writer::create(&args.output, &declared, &[])?;

    let mut hidden: Vec<Vec<u8>> = vec![Vec::new(); states];
    let mut written: Result<(), CheckpointError> = Ok(());
    let mut take = |row: Row<'_>| {
        if written.is_ok() {
            written = writer.write_chunk("logits", &bytes(row.logits));
        }
        for (state, values) in hidden.iter_mut().zip(row.hidden) {
            state.extend(bytes(values));
        }
    };
    runner.forward(tokens, &mut take)?;
    written?;
    for (name, state) in names.iter().zip(&hidden) {
        writer.write_tensor(name, state)?;
    }
    writer.finish().context("the file could not be completed")?;
    if args.json {
        let report = json!({
            "output": args.output,
            "tokens": tokens.len(),
            "vocabulary": vocabulary,
            "hidden_states": states,
        });
        return Ok(output::json(&report)?);
    }
    output::notice(&format!("wrote {} × {vocabulary} logits to `{}`", tokens.len(), args.output.display()));
    Ok(())
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
