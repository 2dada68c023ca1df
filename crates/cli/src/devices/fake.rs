//! A machine whose GPUs compute as its CPU does, and fail when they are told to.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use backend_cpu::CpuBackend;
use backend_vulkan::{DeviceInfo, DeviceKind, Features, VulkanBackend};
use tensor::{
    Backend, BackendError, Batch, BufferId, Capabilities, Continuation, LoadOptions, Loaded, MemoryUse, Program,
    TraceSpan, WeightSource,
};

use super::{Device, Machine};

/// A discrete GPU with everything that is needed, `GPU N`.
pub(crate) fn gpu(index: usize) -> DeviceInfo {
    let features = Features {
        name: format!("GPU {index}"),
        driver: "fake 1.0".into(),
        kind: DeviceKind::Discrete,
        subgroup: 32,
        subgroup_range: (32, 32),
        integer_dot: true,
        float64: true,
        matrix_f16: None,
        matrix_i8: None,
        matrix_16x8: false,
        matrix_layout: false,
        begins_in_order: false,
        pipeline_statistics: false,
        memory_budget: true,
        shared_bytes: 32 << 10,
        workgroup_max: 1024,
        timestamp_nanoseconds: Some(1),
        allocation_max: 1 << 30,
        memory_bytes: 8 << 30,
        pci_address: None,
    };
    DeviceInfo { index, features, problem: None }
}

/// Makes an error of a device.
pub(crate) type Failure = fn(&DeviceInfo) -> BackendError;

/// A device that failed.
pub(crate) fn problem(info: &DeviceInfo) -> BackendError {
    BackendError::Device { device: info.features.name.clone(), problem: "it does not answer".into() }
}

/// A driver without memory.
pub(crate) fn no_memory(info: &DeviceInfo) -> BackendError {
    let what = "weights".into();
    BackendError::OutOfMemory { device: info.features.name.clone(), what, needed: 100, available: 99 }
}

/// A device without a feature.
pub(crate) fn no_support(info: &DeviceInfo) -> BackendError {
    BackendError::Unsupported { device: info.features.name.clone(), problem: "no kernel".into() }
}

/// What goes wrong with an opened device.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It can't be opened.
    Open(Failure),
    /// It can't load.
    Load(Failure),
    /// It fails after that many passes (or calls for several), with that problem.
    Pass(usize, &'static str),
}

/// A GPU and what goes wrong each time that it is opened.
pub(crate) struct Gpu {
    info: DeviceInfo,
    memory_bytes: u64,
    faults: Mutex<Vec<Option<Fault>>>,
    /// Whether it computes on this machine's best Vulkan device, and not on its processor.
    real: bool,
}

impl Gpu {
    /// One that can be opened as often as there are faults to come, each time with that one.
    pub(crate) fn failing(index: usize, mut faults: Vec<Option<Fault>>) -> Gpu {
        faults.reverse();
        Gpu { info: gpu(index), memory_bytes: 8 << 30, faults: Mutex::new(faults), real: false }
    }

    /// One of another kind.
    pub(crate) fn of_kind(self, kind: DeviceKind) -> Gpu {
        let features = Features { kind, ..self.info.features };
        Gpu { info: DeviceInfo { features, ..self.info }, ..self }
    }

    /// One that computes on the best Vulkan device of this machine.
    pub(crate) fn real(self) -> Gpu {
        Gpu { real: true, ..self }
    }

    /// One that can't be used.
    pub(crate) fn with_problem(index: usize, problem: &str) -> Gpu {
        let info = DeviceInfo { problem: Some(problem.into()), ..gpu(index) };
        Gpu { info, ..Gpu::failing(index, vec![]) }
    }

    /// One of little memory.
    pub(crate) fn with_memory(index: usize, memory_bytes: u64) -> Gpu {
        Gpu { memory_bytes, ..Gpu::failing(index, vec![None]) }
    }
}

/// The machine.
pub(crate) struct FakeMachine {
    gpus: Vec<Gpu>,
    told: Mutex<Vec<String>>,
}

/// A machine that stays for the rest of the test.
pub(crate) fn machine(gpus: Vec<Gpu>) -> &'static FakeMachine {
    Box::leak(Box::new(FakeMachine { gpus, told: Mutex::default() }))
}

impl FakeMachine {
    /// What was told, without the line breaks before it.
    pub(crate) fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().iter().map(|line| line.trim_start_matches('\n').to_owned()).collect()
    }
}

impl Machine for FakeMachine {
    fn gpus(&self) -> Result<Vec<DeviceInfo>, String> {
        Ok(self.gpus.iter().map(|gpu| gpu.info.clone()).collect())
    }

    fn open_gpu(&self, index: Option<usize>) -> Result<Box<dyn Device>, BackendError> {
        let gpu = &self.gpus[index.unwrap_or(0)];
        let fault = gpu.faults.lock().unwrap().pop().expect("it is not opened more often than expected");
        match fault {
            Some(Fault::Open(failure)) => Err(failure(&gpu.info)),
            _ => {
                let backend: Box<dyn Backend> = match gpu.real {
                    true => Box::new(VulkanBackend::open(None)?),
                    false => Box::new(CpuBackend::new()),
                };
                Ok(Box::new(FakeGpu { backend, info: gpu.info.clone(), memory_bytes: gpu.memory_bytes, fault }))
            }
        }
    }

    fn cpu(&self) -> Box<dyn Device> {
        Box::new(CpuBackend::new())
    }

    fn tell(&self, text: &str) {
        self.told.lock().unwrap().push(text.to_owned());
    }
}

struct FakeGpu {
    backend: Box<dyn Backend>,
    info: DeviceInfo,
    memory_bytes: u64,
    fault: Option<Fault>,
}

impl Device for FakeGpu {
    fn gpu(&self) -> Option<&DeviceInfo> {
        Some(&self.info)
    }

    fn bandwidth(&self, _: usize) -> Result<f64, BackendError> {
        Ok(1e9)
    }
}

impl Backend for FakeGpu {
    fn capabilities(&self) -> Capabilities {
        Capabilities { memory_bytes: self.memory_bytes, ..self.backend.capabilities() }
    }

    fn required_memory(&self, program: &Program, options: &LoadOptions) -> MemoryUse {
        self.backend.required_memory(program, options)
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Loaded>, BackendError> {
        if let Some(Fault::Load(failure)) = self.fault {
            return Err(failure(&self.info));
        }
        let loaded = self.backend.load(program, weights, options)?;
        Ok(Box::new(FakeLoaded { loaded, info: self.info.clone(), fault: self.fault, passes: 0, trace: None }))
    }
}

struct FakeLoaded {
    loaded: Box<dyn Loaded>,
    info: DeviceInfo,
    fault: Option<Fault>,
    passes: usize,
    /// A span for each pass while tracing is on.
    trace: Option<Vec<TraceSpan>>,
}

impl FakeLoaded {
    /// Counts a call, or fails if it is time.
    fn fail(&mut self) -> Result<(), BackendError> {
        if let Some(Fault::Pass(passes, problem)) = self.fault
            && self.passes >= passes
        {
            let device = self.info.features.name.clone();
            return Err(BackendError::Device { device, problem: problem.into() });
        }
        self.passes += 1;
        Ok(())
    }
}

impl Loaded for FakeLoaded {
    fn run(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.fail()?;
        if let Some(trace) = &mut self.trace {
            let (start, duration) = (Duration::from_millis(self.passes as u64), Duration::from_micros(900));
            let operations = batch.tokens.len() as u64;
            trace.push(TraceSpan { name: "pass".into(), op: "pass", start, duration, bytes: 1000, operations });
        }
        self.loaded.run(batch)
    }

    fn read(&mut self, buffer: BufferId, into: &mut [f32]) -> Result<(), BackendError> {
        self.loaded.read(buffer, into)
    }

    fn decode(
        &mut self,
        logits: BufferId,
        continuations: &[Continuation<'_>],
        cancel: Option<&AtomicBool>,
    ) -> Result<Vec<Vec<u32>>, BackendError> {
        self.fail()?;
        self.loaded.decode(logits, continuations, cancel)
    }

    fn memory(&self) -> MemoryUse {
        self.loaded.memory()
    }

    fn set_tracing(&mut self, on: bool) -> bool {
        self.trace = on.then(Vec::new);
        on
    }

    fn take_trace(&mut self) -> Vec<TraceSpan> {
        self.trace.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
