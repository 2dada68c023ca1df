//! Going on after a device has failed.

use tensor::{Backend, BackendError, BufferId, Loaded, MemoryUse, WeightSource};

use crate::cached::Cached;
use crate::load::check_formats;
use crate::{Engine, EngineError, EngineOptions, memory};

impl Engine {
    /// Loads the model anew, with the same context, into the same device or another one, after a step has failed with
    /// [`BackendError::Device`]. All sequences stay: the next steps run their tokens so far again, and their answers go
    /// on with the tokens that would have come (on a device of other arithmetic: within its rounding). `weights` has to
    /// give what the engine was loaded with.
    ///
    /// # Errors
    /// As [`Engine::load`]. What was loaded is gone then: steps fail with [`BackendError::Device`] until another try
    /// succeeds.
    pub fn recover(&mut self, weights: &dyn WeightSource, backend: &dyn Backend) -> Result<(), EngineError> {
        // Its memory has to be free before the new one's is planned.
        self.loaded = Box::new(Lost);
        self.sequences.iter_mut().for_each(|sequence| sequence.cached = Cached::default());
        let capabilities = backend.capabilities();
        let context = self.options.context_max;
        let wanted = EngineOptions { context: Some(context), ..self.wanted.clone() };
        check_formats(&self.program.program, &capabilities)?;
        let options = memory::plan(
            &|load| backend.required_memory(&self.program.program, load),
            &wanted,
            context,
            capabilities.memory_bytes,
        )?;
        self.loaded = backend.load(&self.program.program, weights, &options)?;
        self.decodes = capabilities.decodes;
        Ok(())
    }
}

/// Stands where a device was.
struct Lost;

fn lost<T>() -> Result<T, BackendError> {
    let problem = "it was given up, and no other has loaded the model".into();
    Err(BackendError::Device { device: "the device".into(), problem })
}

impl Loaded for Lost {
    fn run(&mut self, _: &tensor::Batch<'_>) -> Result<(), BackendError> {
        lost()
    }

    fn read(&mut self, _: BufferId, _: &mut [f32]) -> Result<(), BackendError> {
        lost()
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }

    fn decode(
        &mut self,
        _: BufferId,
        _: &[tensor::Continuation<'_>],
        _: Option<&std::sync::atomic::AtomicBool>,
    ) -> Result<Vec<Vec<u32>>, BackendError> {
        lost()
    }
}
