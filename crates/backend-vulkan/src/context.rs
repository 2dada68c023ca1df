//! The Vulkan instance and an opened device with its queues.

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use ash::vk;
use tensor::BackendError;

use crate::faults::Faults;
use crate::features::{self, DeviceKind, Features};
use crate::kernel::trellis::layout;
use crate::memory::available;

/// How long the device may take for one submission before it counts as hung.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// A device of this machine.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its number in the order in which Vulkan lists the devices: the `N` of `vulkan:N`.
    pub index: usize,
    /// What it can do.
    pub features: Features,
    /// Why it can't be used, if so.
    pub problem: Option<String>,
}

/// The loader and an instance.
pub(crate) struct Instance {
    pub(crate) entry: ash::Entry,
    pub(crate) raw: ash::Instance,
    /// Whether a device of it is left that can't be destroyed.
    keep: bool,
}

impl Instance {
    /// Loads the Vulkan loader.
    ///
    /// # Errors
    /// That there is none, or that it is too old, in words.
    pub(crate) fn new() -> Result<Instance, String> {
        // SAFETY: the loader is a library that runs no code that could break ours when it is loaded.
        let entry = unsafe { ash::Entry::load() }.map_err(|error| {
            format!(
                "no Vulkan loader was found ({error})\n\nhint: install the Vulkan loader (Debian: libvulkan1) and the \
                 driver of the graphics card"
            )
        })?;
        // SAFETY: the entry was loaded just now.
        let version = unsafe { entry.try_enumerate_instance_version() }.ok().flatten().unwrap_or(vk::API_VERSION_1_0);
        if version < vk::API_VERSION_1_3 {
            let (major, minor) = (vk::api_version_major(version), vk::api_version_minor(version));
            return Err(format!("expected a loader of Vulkan 1.3, found {major}.{minor}"));
        }
        let application = vk::ApplicationInfo::default()
            .application_name(c"lapidary")
            .engine_name(c"lapidary")
            .api_version(vk::API_VERSION_1_3);
        let info = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: the structures live until the call returns.
        let raw = unsafe { entry.create_instance(&info, None) }
            .map_err(|error| format!("no Vulkan instance could be created: {error}"))?;
        Ok(Instance { entry, raw, keep: false })
    }

    /// All devices, usable or not. `lacking` names a feature that counts as missing, for tests.
    pub(crate) fn devices(&self, lacking: Option<&str>) -> Vec<(vk::PhysicalDevice, DeviceInfo)> {
        // SAFETY: the instance is alive.
        let devices = unsafe { self.raw.enumerate_physical_devices() }.unwrap_or_default();
        let describe = |(index, device)| {
            let (features, usable) = features::find(&self.entry, &self.raw, device, lacking);
            (device, DeviceInfo { index, features, problem: usable.err() })
        };
        devices.into_iter().enumerate().map(describe).collect()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // SAFETY: devices hold the instance in an `Arc`, so none is left.
        unsafe { self.raw.destroy_instance(None) };
    }
}

/// An opened device.
pub(crate) struct Context {
    pub(crate) instance: Instance,
    pub(crate) physical: vk::PhysicalDevice,
    pub(crate) raw: ash::Device,
    pub(crate) info: DeviceInfo,
    pub(crate) memory: vk::PhysicalDeviceMemoryProperties,
    /// For compute.
    pub(crate) queue: Queue,
    /// For uploads; the same as `queue` where the device has no other.
    pub(crate) transfer: Queue,
    /// Bytes per second that copies within the memory read and write, once measured.
    pub(crate) bandwidth: OnceLock<f64>,
    /// What is to go wrong, in tests.
    pub(crate) faults: Faults,
    /// Whether the device did not finish its work in time. What it may still use is never freed, and nobody waits for
    /// it again.
    hung: AtomicBool,
}

/// A queue and its family. Submissions take turns.
#[derive(Clone)]
pub(crate) struct Queue {
    pub(crate) family: u32,
    pub(crate) raw: Arc<Mutex<vk::Queue>>,
}

impl Context {
    /// Opens a device of a fresh instance.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] without Vulkan or such a device; [`BackendError::Device`] if it can't be opened.
    pub(crate) fn open(index: Option<usize>) -> Result<Arc<Context>, BackendError> {
        Self::open_with(index, Faults::default())
    }

    /// As [`Context::open`], with what is to go wrong.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub(crate) fn open_with(index: Option<usize>, faults: Faults) -> Result<Arc<Context>, BackendError> {
        let unsupported = |problem: String| BackendError::Unsupported { device: "vulkan".into(), problem };
        let instance = Instance::new().map_err(unsupported)?;
        let devices = instance.devices(faults.missing_feature());
        let (physical, info) = choose(devices, index).map_err(unsupported)?;
        let families = families(&instance.raw, physical);
        let (compute, transfer) = choose_families(&families).ok_or_else(|| unsupported("no queue computes".into()))?;
        let raw = create(&instance.raw, physical, &info.features, compute, transfer)
            .map_err(|error| BackendError::Device { device: info.features.name.clone(), problem: error.to_string() })?;
        // SAFETY: the families were asked for when the device was created.
        let queue = |family| Queue { family, raw: Arc::new(Mutex::new(unsafe { raw.get_device_queue(family, 0) })) };
        let first = queue(compute);
        let second = transfer.map_or_else(|| first.clone(), queue);
        // SAFETY: the device is of this instance.
        let memory = unsafe { instance.raw.get_physical_device_memory_properties(physical) };
        let mut context = Arc::new(Context {
            instance,
            physical,
            raw,
            info,
            memory,
            queue: first,
            transfer: second,
            bandwidth: OnceLock::new(),
            faults,
            hung: AtomicBool::new(false),
        });
        // Tests count what a device is asked to do before something goes wrong.
        if context.features().matrix_16x8 && !context.faults.any() {
            let found = layout::is_as_expected(&context)?;
            let context = Arc::get_mut(&mut context).expect("what was made for the test is gone");
            context.info.features.matrix_layout = found;
        }
        Ok(context)
    }

    /// What the device can do.
    pub(crate) fn features(&self) -> &Features {
        &self.info.features
    }

    /// Turns a result into an error of this device. `what` names what was done, for the message.
    pub(crate) fn failure(&self, what: &str, error: vk::Result) -> BackendError {
        let device = self.features().name.clone();
        let problem = match error {
            vk::Result::ERROR_DEVICE_LOST => format!(
                "the device was lost during {what}\n\nhint: the driver reset it, as it does when one piece of work \
                 takes too long or the system is short of memory; the kernel's log may say more. Starting again \
                 opens the device anew"
            ),
            vk::Result::TIMEOUT => format!(
                "{what} did not end within {} s\n\nhint: the device hangs, or another program keeps it busy. \
                 Starting again opens the device anew; if it still hangs, restart the machine",
                TIMEOUT.as_secs()
            ),
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY | vk::Result::ERROR_OUT_OF_HOST_MEMORY => format!(
                "out of memory during {what}; {} bytes of the device's memory are free\n\nhint: end other programs \
                 that use the device, or choose a shorter context",
                available(self)
            ),
            error => format!("{what}: {error}"),
        };
        BackendError::Device { device, problem }
    }

    /// Remembers that the device did not finish in time.
    pub(crate) fn set_hung(&self) {
        self.hung.store(true, Ordering::Relaxed);
    }

    /// Whether the device did not finish in time once, so that it may still use whatever it was given.
    pub(crate) fn is_hung(&self) -> bool {
        self.hung.load(Ordering::Relaxed)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.is_hung() {
            // Neither can be waited for nor destroyed. The instance below it stays too: see `Instance`.
            self.instance.keep = true;
            return;
        }
        // SAFETY: whoever made objects of the device holds it in an `Arc`, so none is left. A lost device does not
        // keep anyone waiting.
        unsafe {
            let _ = self.raw.device_wait_idle();
            self.raw.destroy_device(None);
        }
    }
}

/// The device of that number, or the best one.
fn choose(
    devices: Vec<(vk::PhysicalDevice, DeviceInfo)>,
    index: Option<usize>,
) -> Result<(vk::PhysicalDevice, DeviceInfo), String> {
    let count = devices.len();
    let (physical, info) = match index {
        Some(index) => devices.into_iter().nth(index).ok_or_else(|| {
            let found = match count {
                0 => "none".into(),
                count => format!("{count}, numbered from 0"),
            };
            format!("expected a device of number {index}, found {found}\n\nhint: `lapidary inspect devices` lists them")
        })?,
        None => {
            let best = devices.into_iter().min_by_key(|(_, info)| rank(info));
            best.ok_or_else(|| {
                String::from("no Vulkan device was found\n\nhint: is the driver of the graphics card installed?")
            })?
        }
    };
    match &info.problem {
        Some(problem) => Err(format!("{}: {problem}", info.features.name)),
        None => Ok((physical, info)),
    }
}

/// Usable ones first, then by kind, then by memory.
fn rank(info: &DeviceInfo) -> (bool, DeviceKind, std::cmp::Reverse<u64>) {
    (info.problem.is_some(), info.features.kind, std::cmp::Reverse(info.features.memory_bytes))
}

fn families(instance: &ash::Instance, device: vk::PhysicalDevice) -> Vec<vk::QueueFlags> {
    // SAFETY: the device is of this instance.
    let families = unsafe { instance.get_physical_device_queue_family_properties(device) };
    families.iter().map(|family| if family.queue_count > 0 { family.queue_flags } else { Default::default() }).collect()
}

/// The family for compute, and another one that only copies.
fn choose_families(families: &[vk::QueueFlags]) -> Option<(u32, Option<u32>)> {
    let compute = families.iter().position(|flags| flags.contains(vk::QueueFlags::COMPUTE))?;
    let busy = vk::QueueFlags::COMPUTE | vk::QueueFlags::GRAPHICS;
    let copies = |flags: &vk::QueueFlags| flags.contains(vk::QueueFlags::TRANSFER) && !flags.intersects(busy);
    let transfer = families.iter().position(copies);
    Some((compute as u32, transfer.map(|family| family as u32)))
}

fn create(
    instance: &ash::Instance,
    physical: vk::PhysicalDevice,
    features: &Features,
    compute: u32,
    transfer: Option<u32>,
) -> Result<ash::Device, vk::Result> {
    let priority = [1.0];
    let families = std::iter::once(compute).chain(transfer);
    let queues: Vec<_> = families
        .map(|family| vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&priority))
        .collect();
    let mut extensions: Vec<&CStr> = Vec::new();
    let mut required = features::enabled(features);
    let mut info = required.push(vk::DeviceCreateInfo::default().queue_create_infos(&queues));
    let mut matrix = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
    if features.matrix_f16.is_some() {
        extensions.push(ash::khr::cooperative_matrix::NAME);
        info = info.push_next(&mut matrix);
    }
    let mut statistics =
        vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
    if features.pipeline_statistics {
        extensions.push(ash::khr::pipeline_executable_properties::NAME);
        info = info.push_next(&mut statistics);
    }
    if features.memory_budget {
        extensions.push(ash::ext::memory_budget::NAME);
    }
    let names: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    info = info.enabled_extension_names(&names);
    // SAFETY: every structure that `info` points to lives until the call returns; the device has what is asked for.
    unsafe { instance.create_device(physical, &info, None) }
}
