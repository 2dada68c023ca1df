//! Which device a model is loaded into. The one place that makes backends.

#[cfg(test)]
pub(crate) mod fake;

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Error, Result, anyhow};
use backend_cpu::CpuBackend;
use backend_vulkan::{Decomposed, DeviceInfo, DeviceKind, HessianSums, TrellisEncoder, VulkanBackend};
use engine::{Engine, EngineError, EngineOptions};
use quantize::{Decomposition, HessianDevice, ScaledSums, TileDevice, TileQueue};
use tensor::format::trellis::{Codebook, LEN, Rate};
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

    /// What finds trellis tiles there faster than the processor does, if anything.
    ///
    /// # Errors
    /// No memory for it, or a device that failed.
    fn tiles(&self) -> Result<Option<TileQueue>, BackendError> {
        Ok(None)
    }

    /// What decomposes Hessians there faster than the processor does, if anything.
    fn hessians(&self) -> Option<Box<dyn HessianDevice + '_>> {
        None
    }
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

    fn tiles(&self) -> Result<Option<TileQueue>, BackendError> {
        match self.device().features.kind {
            DeviceKind::Discrete | DeviceKind::Integrated | DeviceKind::Virtual => {
                let encoder = self.trellis_encoder()?;
                Ok(Some(TileQueue::new(Box::new(GpuTiles(Mutex::new(encoder))))))
            }
            // The processor itself has better instructions for it.
            DeviceKind::Software => Ok(None),
        }
    }

    fn hessians(&self) -> Option<Box<dyn HessianDevice + '_>> {
        let faster = self.decomposes() && self.device().features.kind != DeviceKind::Software;
        faster.then(|| Box::new(GpuHessians(self)) as Box<dyn HessianDevice>)
    }
}

/// A GPU that decomposes Hessians.
struct GpuHessians<'a>(&'a VulkanBackend);

impl HessianDevice for GpuHessians<'_> {
    fn decompose(&self, hessian: &ScaledSums<'_>) -> Result<Decomposition, String> {
        let ScaledSums { sums, count, suh, damping } = *hessian;
        match self.0.decompose(&HessianSums { sums, count: count as usize, scales: suh, damping }) {
            Ok(Ok(Decomposed { upper, roots })) => Ok(Decomposition::Done { upper, roots }),
            Ok(Err(failure)) => Ok(Decomposition::NotPositiveDefinite { input: failure.row, value: failure.pivot }),
            Err(BackendError::OutOfMemory { .. }) => Ok(Decomposition::NoRoom),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A GPU that finds trellis tiles.
struct GpuTiles(Mutex<TrellisEncoder>);

impl GpuTiles {
    fn encoder(&self) -> MutexGuard<'_, TrellisEncoder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TileDevice for GpuTiles {
    fn supports(&self, rate: Rate) -> bool {
        self.encoder().supports(rate)
    }

    fn tiles(&self) -> usize {
        self.encoder().tiles()
    }

    fn search(&self, codebook: Codebook, rate: Rate, targets: &[[i16; LEN]]) -> Result<Vec<[u16; LEN]>, String> {
        self.encoder().encode(codebook, rate, targets).map_err(|error| error.to_string())
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

    /// Says something about devices, in a line.
    fn tell(&self, text: &str) {
        output::notice(text);
    }
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

/// Opens the device that was asked for, for work that brings its own programs; `auto` takes the best GPU.
///
/// # Errors
/// A device that is not there or can't be used.
pub(crate) fn open(machine: &dyn Machine, wanted: DeviceArg) -> Result<Box<dyn Device>> {
    match wanted {
        DeviceArg::Cpu => Ok(machine.cpu()),
        DeviceArg::Vulkan(index) => machine.open_gpu(index).map_err(with_hint),
        DeviceArg::Auto => {
            let best = candidates(machine).into_iter().find(|gpu| gpu.problem.is_none());
            best.map_or(Ok(machine.cpu()), |gpu| machine.open_gpu(Some(gpu.index)).map_err(with_hint))
        }
    }
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
                tell(machine, name, &reasons);
                return Ok(loaded);
            }
            Err(error) => reasons.push(reason(name, &error).ok_or(error)?),
        }
    }
    tell(machine, "the CPU", &reasons);
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

fn tell(machine: &dyn Machine, place: &str, reasons: &[String]) {
    if !reasons.is_empty() {
        machine.tell(&format!("running on {place}: {}", reasons.join("; ")));
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
mod tests {
    use super::fake::{Fault, Gpu, machine, no_memory};
    use super::*;
    use crate::model_source::Model;

    /// The device that a machine's GPUs lead to, and what was said.
    fn chosen(wanted: DeviceArg, gpus: Vec<Gpu>, options: &EngineOptions) -> Result<(Option<usize>, Vec<String>)> {
        let machine = machine(gpus);
        let checkpoint = Model::open(None)?.checkpoint;
        let into = |device: &dyn Device, options: &EngineOptions| Engine::load(&checkpoint, device, options);
        let (_, device) = load(machine, wanted, options, &into)?;
        Ok((device.gpu().map(|gpu| gpu.index), machine.told()))
    }

    fn works(index: usize) -> Gpu {
        Gpu::failing(index, vec![None])
    }

    #[test]
    fn auto_takes_the_best_gpu_without_a_word_and_never_a_software_device() {
        let choose = |gpus| chosen(DeviceArg::Auto, gpus, &EngineOptions::default()).unwrap();
        assert_eq!(choose(vec![]), (None, vec![]));
        assert_eq!(choose(vec![works(0).of_kind(DeviceKind::Software)]), (None, vec![]));
        assert_eq!(choose(vec![works(0).of_kind(DeviceKind::Integrated), works(1)]), (Some(1), vec![]));
        let broken = || Gpu::with_problem(0, "the driver lacks shaderInt8");
        assert_eq!(choose(vec![broken(), works(1)]), (Some(1), vec![]));
        let (index, told) = choose(vec![Gpu::failing(0, vec![Some(Fault::Load(no_memory))]), works(1)]);
        assert_eq!((index, told.len()), (Some(1), 1));
        assert!(told[0].starts_with("running on GPU 1: out of memory on GPU 0"), "{told:?}");
    }

    #[test]
    fn auto_wants_room_for_a_conversation() {
        let choose = |memory, context| {
            let options = EngineOptions { context, ..EngineOptions::default() };
            chosen(DeviceArg::Auto, vec![Gpu::with_memory(0, memory)], &options).unwrap()
        };
        // Weights of 19.2 MB, and a position of all caches takes 1 to 4 kB.
        assert_eq!(choose(100_000_000, None), (Some(0), vec![]));
        let (index, told) = choose(22_000_000, None);
        assert_eq!((index, told.len()), (None, 1));
        assert!(told[0].contains("with a context of 20") && told[0].ends_with("GPU 0 has 22.0 MB free"), "{told:?}");
        // Who asks for less gets it.
        assert_eq!(choose(22_000_000, Some(64)), (Some(0), vec![]));
    }

    #[test]
    fn a_gpu_that_was_asked_for_is_taken_or_the_reason_is_an_error() {
        let choose = |gpus| chosen(DeviceArg::Vulkan(Some(0)), gpus, &EngineOptions::default());
        assert_eq!(choose(vec![works(0).of_kind(DeviceKind::Software)]).unwrap(), (Some(0), vec![]));
        let error = choose(vec![Gpu::failing(0, vec![Some(Fault::Open(fake::problem))])]).unwrap_err().to_string();
        assert!(error.contains("does not answer") && error.contains("hint: `lapidary inspect devices`"), "{error}");
        let error = choose(vec![Gpu::with_memory(0, 1000)]).unwrap_err().to_string();
        assert!(error.contains("out of memory") && error.contains("no context fits"), "{error}");
    }
}
