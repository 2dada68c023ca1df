//! Runs programs on any GPU with Vulkan 1.3.

mod announce;
mod bandwidth;
mod commands;
mod context;
mod decode;
mod decompose;
mod dispatch;
mod encode;
mod faults;
mod features;
mod footprint;
mod gram;
mod kernel;
mod lab;
mod layout;
mod leave;
mod loaded;
mod memory;
mod pace;
mod pipeline;
#[doc(hidden)]
pub mod pipelines;
mod place;
mod plan;
mod record;
mod scene;
mod touch;
mod trace;
mod transfer;
mod upload;

pub use context::DeviceInfo;
pub use decompose::{Decomposed, HessianSums, NotPositive};
pub use encode::TrellisEncoder;
#[cfg(any(test, debug_assertions))]
#[doc(hidden)]
pub use faults::Fault;
pub use features::{DeviceKind, Features, MatrixShape};
#[doc(hidden)]
pub use kernel::attention::measure as measure_attention;
pub use kernel::matmul::{matrix_constants, measure as measure_matmul};
#[doc(hidden)]
pub use kernel::matvec::{measure as measure_matvec, measure_columns, measure_layer};
#[doc(hidden)]
pub use kernel::trellis::measure as measure_trellis;
#[doc(hidden)]
pub use lab::{ffn::measure as measure_ffn, upload::measure as measure_upload};

use std::sync::Arc;

use tensor::{Backend, BackendError, Capabilities, DType, LoadOptions, Loaded, MemoryUse, Program, WeightSource};

use context::Context;
#[cfg(any(test, debug_assertions))]
use faults::Faults;
use pipeline::Pipelines;

/// A device that Vulkan lists.
pub struct VulkanBackend {
    context: Arc<Context>,
    /// Compiled once for all programs that are loaded.
    pipelines: Arc<Pipelines>,
}

impl VulkanBackend {
    /// Opens the device of a number, or the best one.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] without Vulkan or without such a device; [`BackendError::Device`] if it can't be
    /// opened.
    pub fn open(index: Option<usize>) -> Result<VulkanBackend, BackendError> {
        Self::with(Context::open(index)?)
    }

    /// As [`VulkanBackend::open`], with a failure to come: for tests of what is made of it.
    ///
    /// # Errors
    /// As [`VulkanBackend::open`], or the failure.
    #[cfg(any(test, debug_assertions))]
    #[doc(hidden)]
    pub fn open_with_fault(index: Option<usize>, fault: Fault) -> Result<VulkanBackend, BackendError> {
        Self::with(Context::open_with(index, Faults::new(Some(fault)))?)
    }

    fn with(context: Arc<Context>) -> Result<VulkanBackend, BackendError> {
        let pipelines = Arc::new(Pipelines::new(&context)?);
        Ok(VulkanBackend { context, pipelines })
    }

    /// Measures how many bytes per second the device copies within its own memory, read and written ones counted.
    ///
    /// # Errors
    /// No memory for it, or a device that fails.
    pub fn copy_bandwidth(&self) -> Result<f64, BackendError> {
        bandwidth::copy_bandwidth(&self.context, &self.pipelines)
    }

    /// Makes an encoder of trellis tiles on the device.
    ///
    /// # Errors
    /// No memory for it, or a device that fails.
    pub fn trellis_encoder(&self) -> Result<TrellisEncoder, BackendError> {
        self.trellis_encoder_with(kernel::trellis_encode::WORKGROUP)
    }

    /// As [`VulkanBackend::trellis_encoder`], with workgroups of up to so many invocations: for measuring.
    ///
    /// # Errors
    /// As there.
    #[doc(hidden)]
    pub fn trellis_encoder_with(&self, workgroup: u32) -> Result<TrellisEncoder, BackendError> {
        TrellisEncoder::new(&self.context, &self.pipelines, workgroup)
    }

    /// Whether [`VulkanBackend::decompose`] can be called: the device has double precision.
    pub fn decomposes(&self) -> bool {
        decompose::supports(self.context.features())
    }

    /// Decomposes a Hessian, in double precision. Takes `12 · inputs²` bytes of the device's memory.
    ///
    /// # Errors
    /// No memory for it, or a device that fails; and inside, that the Hessian is not positive definite.
    ///
    /// # Panics
    /// If sizes don't fit to each other or are no multiples of 128, or the device can't.
    pub fn decompose(&self, hessian: &HessianSums<'_>) -> Result<Result<Decomposed, NotPositive>, BackendError> {
        assert!(self.decomposes(), "{} can't decompose Hessians", self.context.features().name);
        decompose::decompose(&self.context, &self.pipelines, hessian)
    }

    /// The device.
    pub fn device(&self) -> &DeviceInfo {
        &self.context.info
    }
}

/// All devices that Vulkan lists, usable or not.
///
/// # Errors
/// That there is no Vulkan, in words.
pub fn devices() -> Result<Vec<DeviceInfo>, String> {
    let instance = context::Instance::new()?;
    Ok(instance.devices(None).into_iter().map(|(_, info)| info).collect())
}

impl Backend for VulkanBackend {
    fn capabilities(&self) -> Capabilities {
        let features = self.context.features();
        Capabilities {
            description: format!("{} ({})", features.name, features.driver),
            weight_dtypes: DType::ALL.to_vec(),
            trellis: true,
            cache_dtypes: loaded::CACHE_DTYPES.to_vec(),
            memory_bytes: memory::available(&self.context),
            decodes: true,
            grams: gram::supports(&self.context),
        }
    }

    fn required_memory(&self, program: &Program, options: &LoadOptions) -> MemoryUse {
        footprint::required(&self.context, program, options)
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<Box<dyn Loaded>, BackendError> {
        Ok(Box::new(loaded::VulkanLoaded::load(&self.context, &self.pipelines, program, weights, options)?))
    }
}
