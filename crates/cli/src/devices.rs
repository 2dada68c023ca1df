//! Which device a model is loaded into. The one place that makes backends.

use anyhow::{Error, Result, anyhow};
use backend_cpu::CpuBackend;
use backend_vulkan::{DeviceInfo, DeviceKind, VulkanBackend};
use engine::{Engine, EngineError, EngineOptions};
use tensor::{Backend, BackendError};

use crate::args::DeviceArg;
use crate::output;

/// Positions that a model should have room for on a GPU, or it is better off on the CPU.
const CONTEXT_MIN: usize = 2048;

/// A device that models can be loaded into.
pub(crate) trait Device: Backend {
    /// What Vulkan says about it; `None` for the CPU.
    fn gpu(&self) -> Option<&DeviceInfo>;

    /// Bytes per second at which it moves large amounts of memory: on the CPU, reads with that many threads; on a GPU,
    /// what a copy reads and writes.
    ///
    /// # Errors
    /// A device that can't or that failed.
    fn bandwidth(&self, threads: usize) -> Result<f64, BackendError>;
}

impl Device for CpuBackend {
    fn gpu(&self) -> Option<&DeviceInfo> {
        None
    }

    fn bandwidth(&self, threads: usize) -> Result<f64, BackendError> {
        Ok(backend_cpu::memory_read_rate(threads))
    }
}

impl Device for VulkanBackend {
    fn gpu(&self) -> Option<&DeviceInfo> {
        Some(self.device())
    }

    fn bandwidth(&self, _: usize) -> Result<f64, BackendError> {
        self.copy_bandwidth()
    }
}

/// Where devices come from: this machine, or in tests one that fails as they need it.
pub(crate) trait Machine {
    /// All GPUs that are listed, usable or not.
    ///
    /// # Errors
    /// That there is no Vulkan, in words.
    fn gpus(&self) -> Result<Vec<DeviceInfo>, String>;

    /// Opens the GPU of a number, or the best one.
    ///
    /// # Errors
    /// As [`VulkanBackend::open`].
    fn open_gpu(&self, index: Option<usize>) -> Result<Box<dyn Device>, BackendError>;

    /// The processor.
    fn cpu(&self) -> Box<dyn Device>;
}

/// The machine that this runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThisMachine;

impl Machine for ThisMachine {
    fn gpus(&self) -> Result<Vec<DeviceInfo>, String> {
        backend_vulkan::devices()
    }

    fn open_gpu(&self, index: Option<usize>) -> Result<Box<dyn Device>, BackendError> {
        Ok(Box::new(VulkanBackend::open(index)?))
    }

    fn cpu(&self) -> Box<dyn Device> {
        Box::new(CpuBackend::new())
    }
}

/// Loads a model into a device.
pub(crate) type LoadInto<'a> = dyn Fn(&dyn Device, &EngineOptions) -> Result<Engine, EngineError> + 'a;

/// Loads a model into the device that was asked for.
///
/// # Errors
/// A device that is not there or can't be used, and whatever loading says.
pub(crate) fn load(
    machine: &dyn Machine,
    wanted: DeviceArg,
    options: &EngineOptions,
    load: &LoadInto<'_>,
) -> Result<(Engine, Box<dyn Device>)> {
    let device = match wanted {
        DeviceArg::Auto => return load_anywhere(machine, options, load),
        DeviceArg::Cpu => machine.cpu(),
        DeviceArg::Vulkan(index) => machine.open_gpu(index).map_err(with_hint)?,
    };
    Ok((load(&*device, options)?, device))
}

/// Loads into the best GPU that has room, else into the CPU. Says why, if a GPU was there and is not taken.
fn load_anywhere(
    machine: &dyn Machine,
    options: &EngineOptions,
    load: &LoadInto<'_>,
) -> Result<(Engine, Box<dyn Device>)> {
    let mut reasons = Vec::new();
    let roomy = EngineOptions { context_min: CONTEXT_MIN, ..options.clone() };
    for info in candidates(machine) {
        let name = &info.features.name;
        if let Some(problem) = &info.problem {
            reasons.push(format!("{name}: {}", first_line(problem)));
            continue;
        }
        match machine.open_gpu(Some(info.index)).map_err(EngineError::from).and_then(|device| {
            let engine = load(&*device, &roomy)?;
            Ok((engine, device))
        }) {
            Ok(loaded) => {
                tell(name, &reasons);
                return Ok(loaded);
            }
            Err(error) => reasons.push(reason(name, &error).ok_or(error)?),
        }
    }
    tell("the CPU", &reasons);
    let device = machine.cpu();
    Ok((load(&*device, options)?, device))
}

/// The GPUs, the best first; the processor in a GPU's clothes is none.
fn candidates(machine: &dyn Machine) -> Vec<DeviceInfo> {
    let mut gpus = machine.gpus().unwrap_or_default();
    gpus.retain(|gpu| gpu.features.kind != DeviceKind::Software);
    gpus.sort_by_key(|gpu| (gpu.problem.is_some(), gpu.features.kind, std::cmp::Reverse(gpu.features.memory_bytes)));
    gpus
}

fn tell(place: &str, reasons: &[String]) {
    if !reasons.is_empty() {
        output::notice(&format!("running on {place}: {}", reasons.join("; ")));
    }
}

/// Why a GPU is not taken; `None` if the error is not the GPU's.
fn reason(name: &str, error: &EngineError) -> Option<String> {
    match error {
        EngineError::OutOfMemory { weights, caches, scratch, available, context, .. } => Some(format!(
            "the model needs {} with a context of {context}, {name} has {} free",
            output::bytes(weights + caches + scratch),
            output::bytes(*available)
        )),
        EngineError::Format { .. }
        | EngineError::Backend(
            BackendError::OutOfMemory { .. } | BackendError::Unsupported { .. } | BackendError::Device { .. },
        ) => Some(first_line(&error.to_string()).to_owned()),
        EngineError::Config(_)
        | EngineError::Checkpoint(_)
        | EngineError::MissingTensor { .. }
        | EngineError::UnknownTensor { .. }
        | EngineError::Shape { .. }
        | EngineError::Program(_)
        | EngineError::Option { .. }
        | EngineError::EmptyPrompt
        | EngineError::Token { .. }
        | EngineError::PromptTooLong { .. }
        | EngineError::UnknownSequence(_)
        | EngineError::Busy(_)
        | EngineError::NoSlot { .. }
        | EngineError::Logits { .. }
        | EngineError::Interrupted
        | EngineError::Backend(BackendError::Weight { .. } | BackendError::Logits { .. } | BackendError::Cancelled) => {
            None
        }
    }
}

/// A message without its hints.
pub(crate) fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

/// Why a device that was asked for can't be had, and where to look.
fn with_hint(error: BackendError) -> Error {
    let text = error.to_string();
    if text.contains("\nhint: ") {
        return error.into();
    }
    anyhow!("{text}\n\nhint: `lapidary inspect devices` lists what there is; `--device cpu` always works")
}

#[cfg(test)]
pub(crate) mod fake;
