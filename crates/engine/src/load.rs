//! Puts a model into a device's memory.

use std::collections::HashMap;

use checkpoint::Checkpoint;
use model::{Config, Gemma3Program, ProgramOptions, TensorEntry, build_program};
use tensor::{
    Backend, BufferKind, Capabilities, LoadOptions, Loaded, MemoryUse, Op, Program, WeightFormat, WeightSource,
};

use crate::cached::Rings;
use crate::cancel::{InterruptHandle, Signals};
use crate::memory;
use crate::options::CONTEXT_DEFAULT;
use crate::schedule::Limits;
use crate::sequence::Sequence;
use crate::{EngineError, EngineOptions, ModelSource};

/// A model on a device, and the sequences that are being worked on.
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) program: Gemma3Program,
    pub(crate) options: LoadOptions,
    pub(crate) limits: Limits,
    pub(crate) rings: Rings,
    pub(crate) loaded: Box<dyn Loaded>,
    /// Whether the device chooses tokens itself.
    pub(crate) decodes: bool,
    /// Whether it did so in the last step.
    pub(crate) went_on_alone: bool,
    /// What was asked for.
    pub(crate) wanted: EngineOptions,
    pub(crate) signals: Signals,
    /// In the order in which they were submitted.
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) next_id: u64,
    /// Rows of logits `[outputs, vocabulary]` of the last pass.
    pub(crate) logits: Vec<f32>,
}

impl Engine {
    /// Loads a checkpoint.
    ///
    /// # Errors
    /// A checkpoint that is no Gemma 3 model, formats that the device can't use, options that make no sense, memory
    /// that is not there; the last is found before any weight is read.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: &dyn Backend,
        options: &EngineOptions,
    ) -> Result<Engine, EngineError> {
        let source = ModelSource::open(checkpoint)?;
        Engine::load_source(&source, backend, options)
    }

    /// Loads a model that has been found in a checkpoint.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_source(
        source: &ModelSource<'_>,
        backend: &dyn Backend,
        options: &EngineOptions,
    ) -> Result<Engine, EngineError> {
        let capabilities = backend.capabilities();
        let mut formats = HashMap::new();
        for tensor in source.tensors().iter().filter(|tensor| !tensor.entry.role.is_norm()) {
            let format = tensor.format_on(&capabilities);
            check_format(&tensor.name, format, &capabilities)?;
            formats.insert(tensor.entry.name.as_str(), format);
        }
        let formats = |entry: &TensorEntry| formats[entry.name.as_str()];
        Engine::from_source(source.config().clone(), &formats, source, backend, options)
    }

    /// Loads weights from anywhere. `formats` says how each matrix is stored; norms are f32, their 1 added.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn from_source(
        config: Config,
        formats: &dyn Fn(&TensorEntry) -> WeightFormat,
        weights: &dyn WeightSource,
        backend: &dyn Backend,
        options: &EngineOptions,
    ) -> Result<Engine, EngineError> {
        options.check(&config)?;
        let capabilities = backend.capabilities();
        let program = build_program(&config, formats, ProgramOptions { hidden: options.hidden })?;
        check_formats(&program.program, &capabilities)?;
        let context_max = CONTEXT_DEFAULT.min(config.context);
        let load_options = memory::plan(
            &|load| backend.required_memory(&program.program, load),
            options,
            context_max,
            capabilities.memory_bytes,
        )?;
        let limits =
            Limits { chunk: options.chunk, tokens_max: load_options.tokens_max, outputs_max: load_options.outputs_max };
        let loaded = backend.load(&program.program, weights, &load_options)?;
        Ok(Engine {
            rings: Rings::new(&program.program, &load_options),
            config,
            program,
            options: load_options,
            limits,
            loaded,
            decodes: capabilities.decodes,
            went_on_alone: false,
            wanted: options.clone(),
            signals: Signals::default(),
            sequences: Vec::new(),
            next_id: 0,
            logits: Vec::new(),
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Positions per sequence.
    pub fn context(&self) -> usize {
        self.options.context_max
    }

    /// What was decided for the device.
    pub fn options(&self) -> &LoadOptions {
        &self.options
    }

    /// What runs on it.
    pub fn program(&self) -> &Program {
        &self.program.program
    }

    /// Bytes in use on the device.
    pub fn memory(&self) -> MemoryUse {
        self.loaded.memory()
    }

    /// Stops everything from another thread.
    pub fn interrupt_handle(&self) -> InterruptHandle {
        InterruptHandle { all: self.signals.all.clone(), pass: self.signals.pass.clone() }
    }
}

/// Refuses matrices whose formats the device has no kernels for.
pub(crate) fn check_formats(program: &Program, capabilities: &Capabilities) -> Result<(), EngineError> {
    for op in program.ops() {
        let (Op::Embed { table: weight, .. } | Op::Linear { weight, .. }) = op else { continue };
        let buffer = program.buffer(*weight);
        if let BufferKind::Weight { format, .. } = buffer.kind {
            check_format(&buffer.name, format, capabilities)?;
        }
    }
    Ok(())
}

/// Refuses a format that the device has no kernels for.
fn check_format(tensor: &str, format: WeightFormat, capabilities: &Capabilities) -> Result<(), EngineError> {
    let supported = match format {
        WeightFormat::Blocks(dtype) => capabilities.weight_dtypes.contains(&dtype),
        WeightFormat::Trellis(_) => capabilities.trellis,
    };
    if supported {
        return Ok(());
    }
    Err(EngineError::Format {
        tensor: tensor.into(),
        format,
        device: capabilities.description.clone(),
        supported: capabilities.weight_dtypes.clone(),
    })
}
