//! What a device can do, found out once, as data.

use std::ffi::CStr;
use std::ptr::null_mut;

use ash::vk;

/// Kinds of devices, the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// A card with memory of its own.
    Discrete,
    /// Shares the processor's memory.
    Integrated,
    /// A part of a device of another machine or of the host.
    Virtual,
    /// The processor, as Mesa's lavapipe.
    Software,
}

/// A shape of matrices that a subgroup multiplies together (`VK_KHR_cooperative_matrix`): `[m, k] × [k, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    /// Rows of the result.
    pub m: u32,
    /// Columns of the result.
    pub n: u32,
    /// Length of the sums.
    pub k: u32,
}

/// What the engine uses of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// The device's name.
    pub name: String,
    /// Name and version of its driver.
    pub driver: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Lanes of a subgroup when nothing is asked for.
    pub subgroup: u32,
    /// Fewest and most lanes that a pipeline can ask for; both are `subgroup` where it can't.
    pub subgroup_range: (u32, u32),
    /// Products of four 8-bit numbers in one instruction (`VK_KHR_shader_integer_dot_product`).
    pub integer_dot: bool,
    /// Numbers of 64 bits with a fraction (`shaderFloat64`).
    pub float64: bool,
    /// Products of f16 matrices summed in f32.
    pub matrix_f16: Option<MatrixShape>,
    /// Products of 8-bit matrices summed in 32-bit integers.
    pub matrix_i8: Option<MatrixShape>,
    /// f16 matrices of 16 × 16 by 16 × 8, summed in f32, for subgroups of 32.
    pub matrix_16x8: bool,
    /// Whether lanes hold the elements of these where products put weights that they decode: found out when a device
    /// is opened, so never true in a list of devices.
    pub matrix_layout: bool,
    /// Whether all workgroups of a dispatch begin before those of the next one, so that these may wait for them in the
    /// shader. Vulkan does not promise it; NVIDIA's driver does so, and lavapipe, which ends one dispatch before the
    /// next.
    pub begins_in_order: bool,
    /// Statistics of compiled pipelines (`VK_KHR_pipeline_executable_properties`).
    pub pipeline_statistics: bool,
    /// How much of each memory heap is in use can be asked (`VK_EXT_memory_budget`).
    pub memory_budget: bool,
    /// Most bytes of shared memory of a workgroup.
    pub shared_bytes: u32,
    /// Most invocations of a workgroup.
    pub workgroup_max: u32,
    /// Nanoseconds of a step of the timestamp counter; `None` without timestamps.
    pub timestamp_nanoseconds: Option<u32>,
    /// Most bytes of one allocation.
    pub allocation_max: u64,
    /// Bytes in heaps of the device's own memory.
    pub memory_bytes: u64,
    /// Where it is on the PCI bus (`VK_EXT_pci_bus_info`), as Linux writes it: `0000:c4:00.0`.
    pub pci_address: Option<String>,
}

impl Features {
    /// Whether the device is one of AMD's: nobody else has both sizes of subgroups.
    pub(crate) fn is_amd(&self) -> bool {
        self.subgroup_range == (32, 64)
    }
}

/// The features that every device must have, with the words of a message.
pub(crate) struct Required<'a> {
    core: vk::PhysicalDeviceFeatures,
    v11: vk::PhysicalDeviceVulkan11Features<'a>,
    v12: vk::PhysicalDeviceVulkan12Features<'a>,
    v13: vk::PhysicalDeviceVulkan13Features<'a>,
}

impl Required<'_> {
    /// Asks the device for what it has.
    pub(crate) fn query(instance: &ash::Instance, device: vk::PhysicalDevice) -> Self {
        let mut v11 = vk::PhysicalDeviceVulkan11Features::default();
        let mut v12 = vk::PhysicalDeviceVulkan12Features::default();
        let mut v13 = vk::PhysicalDeviceVulkan13Features::default();
        let mut all =
            vk::PhysicalDeviceFeatures2::default().push_next(&mut v11).push_next(&mut v12).push_next(&mut v13);
        // SAFETY: the device is of this instance, which has Vulkan 1.3, so that it knows the three structures.
        unsafe { instance.get_physical_device_features2(device, &mut all) };
        let core = all.features;
        // They pointed to each other.
        (v11.p_next, v12.p_next, v13.p_next) = (null_mut(), null_mut(), null_mut());
        Required { core, v11, v12, v13 }
    }

    /// The required features that are missing; `lacking` is one in any case.
    pub(crate) fn missing(&self, lacking: Option<&str>) -> Vec<&'static str> {
        let required = [
            (self.core.shader_int16, "shaderInt16"),
            (self.core.shader_int64, "shaderInt64"),
            (self.v11.storage_buffer16_bit_access, "storageBuffer16BitAccess"),
            (self.v12.storage_buffer8_bit_access, "storageBuffer8BitAccess"),
            (self.v12.shader_float16, "shaderFloat16"),
            (self.v12.shader_int8, "shaderInt8"),
            (self.v12.buffer_device_address, "bufferDeviceAddress"),
            (self.v12.timeline_semaphore, "timelineSemaphore"),
            (self.v12.vulkan_memory_model, "vulkanMemoryModel"),
            (self.v12.vulkan_memory_model_device_scope, "vulkanMemoryModelDeviceScope"),
            (self.v12.scalar_block_layout, "scalarBlockLayout"),
            (self.v13.synchronization2, "synchronization2"),
            (self.v13.maintenance4, "maintenance4"),
        ];
        required
            .into_iter()
            .filter(|(has, name)| *has == vk::FALSE || lacking == Some(name))
            .map(|(_, name)| name)
            .collect()
    }

    /// Whether pipelines can ask for the size of their subgroups.
    pub(crate) fn subgroup_size_control(&self) -> bool {
        self.v13.subgroup_size_control == vk::TRUE && self.v13.compute_full_subgroups == vk::TRUE
    }

    /// Whether shaders can use integer dot products.
    pub(crate) fn integer_dot(&self) -> bool {
        self.v13.shader_integer_dot_product == vk::TRUE
    }
}

/// The features to switch on when a device is created.
pub(crate) fn enabled<'a>(features: &Features) -> Required<'a> {
    let control = features.subgroup_range.0 < features.subgroup_range.1 || features.subgroup_range.0 > 0;
    Required {
        core: vk::PhysicalDeviceFeatures::default()
            .shader_int16(true)
            .shader_int64(true)
            .shader_float64(features.float64),
        v11: vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(true),
        v12: vk::PhysicalDeviceVulkan12Features::default()
            .storage_buffer8_bit_access(true)
            .shader_float16(true)
            .shader_int8(true)
            .buffer_device_address(true)
            .timeline_semaphore(true)
            .vulkan_memory_model(true)
            .vulkan_memory_model_device_scope(true)
            .scalar_block_layout(true),
        v13: vk::PhysicalDeviceVulkan13Features::default()
            .synchronization2(true)
            .maintenance4(true)
            .subgroup_size_control(control)
            .compute_full_subgroups(control)
            .shader_integer_dot_product(features.integer_dot),
    }
}

impl<'a> Required<'a> {
    /// Hangs the structures behind a device's creation.
    pub(crate) fn push<'b>(&'b mut self, info: vk::DeviceCreateInfo<'b>) -> vk::DeviceCreateInfo<'b>
    where
        'a: 'b,
    {
        info.enabled_features(&self.core).push_next(&mut self.v11).push_next(&mut self.v12).push_next(&mut self.v13)
    }
}

/// Finds out what a device can do. `lacking` names a required feature that counts as missing, for tests.
///
/// # Errors
/// Why it can't be used, in words.
pub(crate) fn find(
    entry: &ash::Entry,
    instance: &ash::Instance,
    device: vk::PhysicalDevice,
    lacking: Option<&str>,
) -> (Features, Result<(), String>) {
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let mut v11 = vk::PhysicalDeviceVulkan11Properties::default();
    let mut v13 = vk::PhysicalDeviceVulkan13Properties::default();
    let mut all = vk::PhysicalDeviceProperties2::default();
    // SAFETY: the device is of this instance.
    let version = unsafe { instance.get_physical_device_properties(device) }.api_version;
    let new_enough = version >= vk::API_VERSION_1_3;
    if new_enough {
        all = all.push_next(&mut driver).push_next(&mut v11).push_next(&mut v13);
    }
    // SAFETY: as above; structures of Vulkan 1.3 are only asked of a device that has it.
    unsafe { instance.get_physical_device_properties2(device, &mut all) };
    let limits = all.properties.limits;
    let mut features = Features {
        name: text(&all.properties.device_name),
        driver: String::new(),
        kind: kind(all.properties.device_type),
        subgroup: 0,
        subgroup_range: (0, 0),
        integer_dot: false,
        float64: false,
        matrix_f16: None,
        matrix_i8: None,
        matrix_16x8: false,
        matrix_layout: false,
        begins_in_order: false,
        pipeline_statistics: false,
        memory_budget: false,
        shared_bytes: limits.max_compute_shared_memory_size,
        workgroup_max: limits.max_compute_work_group_invocations,
        timestamp_nanoseconds: (limits.timestamp_compute_and_graphics == vk::TRUE)
            .then_some(limits.timestamp_period.round().max(1.0) as u32),
        allocation_max: 1 << 30,
        memory_bytes: memory_bytes(instance, device),
        pci_address: None,
    };
    if !new_enough {
        return (features, Err(too_old(version)));
    }
    features.driver = format!("{} {}", text(&driver.driver_name), text(&driver.driver_info)).trim().to_owned();
    features.begins_in_order = begins_in_order(driver.driver_id);
    features.subgroup = v11.subgroup_size;
    features.allocation_max = allocation_max(instance, device);
    let required = Required::query(instance, device);
    features.subgroup_range = match required.subgroup_size_control() {
        true => (v13.min_subgroup_size, v13.max_subgroup_size),
        false => (v11.subgroup_size, v11.subgroup_size),
    };
    features.integer_dot = required.integer_dot();
    features.float64 = required.core.shader_float64 == vk::TRUE;
    let extensions = extensions(instance, device);
    let has = |name: &CStr| extensions.iter().any(|extension| extension.as_str() == name.to_str().unwrap_or_default());
    features.pipeline_statistics = has(ash::khr::pipeline_executable_properties::NAME);
    features.memory_budget = has(ash::ext::memory_budget::NAME);
    features.pci_address = has(ash::ext::pci_bus_info::NAME).then(|| pci_address(instance, device));
    if has(ash::khr::cooperative_matrix::NAME) {
        let all = all_matrices(entry, instance, device);
        (features.matrix_f16, features.matrix_i8) = matrices(&all);
        features.matrix_16x8 = features.subgroup == 32 && all.iter().any(is_16x8);
    }
    let usable = usable(&features, &required.missing(lacking), &v11);
    (features, usable)
}

fn usable(features: &Features, missing: &[&str], v11: &vk::PhysicalDeviceVulkan11Properties<'_>) -> Result<(), String> {
    if let Some(problem) = known_problem(&features.name, &features.driver) {
        return Err(problem);
    }
    const HINT: &str = "hint: a newer driver may have it";
    if !missing.is_empty() {
        return Err(format!("the driver lacks {}\n\n{HINT}", missing.join(", ")));
    }
    let operations = vk::SubgroupFeatureFlags::ARITHMETIC | vk::SubgroupFeatureFlags::SHUFFLE;
    if !v11.subgroup_supported_operations.contains(operations) {
        return Err(format!("the driver lacks subgroup arithmetic and shuffles\n\n{HINT}"));
    }
    if features.subgroup_range.1 < 8 {
        return Err(format!("expected subgroups of at least 8 lanes, found {}", features.subgroup_range.1));
    }
    Ok(())
}

fn too_old(version: u32) -> String {
    let (major, minor) = (vk::api_version_major(version), vk::api_version_minor(version));
    format!("expected Vulkan 1.3, found {major}.{minor}\n\nhint: a newer driver may have it")
}

/// Drivers known for [`Features::begins_in_order`].
fn begins_in_order(driver: vk::DriverId) -> bool {
    [vk::DriverId::NVIDIA_PROPRIETARY, vk::DriverId::MESA_LLVMPIPE].contains(&driver)
}

/// Drivers that compute wrong results.
pub(crate) fn known_problem(name: &str, driver: &str) -> Option<String> {
    // Mesa's lavapipe before 23 ends loops after 65,535 iterations in all, without an error.
    let mesa = driver.split("Mesa ").nth(1)?;
    let major: u32 = mesa.split('.').next()?.trim().parse().ok()?;
    (name.contains("llvmpipe") && major < 23).then(|| {
        format!(
            "Mesa {} computes wrong results (its loops end after 65,535 iterations)\n\nhint: install Mesa 25 or newer",
            mesa.split_whitespace().next().unwrap_or(mesa)
        )
    })
}

fn kind(device: vk::PhysicalDeviceType) -> DeviceKind {
    match device {
        vk::PhysicalDeviceType::DISCRETE_GPU => DeviceKind::Discrete,
        vk::PhysicalDeviceType::INTEGRATED_GPU => DeviceKind::Integrated,
        vk::PhysicalDeviceType::CPU => DeviceKind::Software,
        _ => DeviceKind::Virtual,
    }
}

pub(crate) fn text(characters: &[std::ffi::c_char]) -> String {
    let bytes = characters.iter().map(|&character| character as u8).take_while(|&byte| byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}

fn memory_bytes(instance: &ash::Instance, device: vk::PhysicalDevice) -> u64 {
    // SAFETY: the device is of this instance.
    let memory = unsafe { instance.get_physical_device_memory_properties(device) };
    let heaps = memory.memory_heaps_as_slice().iter();
    heaps.filter(|heap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL)).map(|heap| heap.size).sum()
}

fn allocation_max(instance: &ash::Instance, device: vk::PhysicalDevice) -> u64 {
    let mut v11 = vk::PhysicalDeviceMaintenance3Properties::default();
    let mut v13 = vk::PhysicalDeviceMaintenance4Properties::default();
    let mut all = vk::PhysicalDeviceProperties2::default().push_next(&mut v11).push_next(&mut v13);
    // SAFETY: the device is of this instance and has Vulkan 1.3.
    unsafe { instance.get_physical_device_properties2(device, &mut all) };
    v11.max_memory_allocation_size.min(v13.max_buffer_size)
}

/// For devices with `VK_EXT_pci_bus_info`.
fn pci_address(instance: &ash::Instance, device: vk::PhysicalDevice) -> String {
    let mut place = vk::PhysicalDevicePCIBusInfoPropertiesEXT::default();
    let mut all = vk::PhysicalDeviceProperties2::default().push_next(&mut place);
    // SAFETY: the device is of this instance and has the extension.
    unsafe { instance.get_physical_device_properties2(device, &mut all) };
    format!("{:04x}:{:02x}:{:02x}.{:x}", place.pci_domain, place.pci_bus, place.pci_device, place.pci_function)
}

fn extensions(instance: &ash::Instance, device: vk::PhysicalDevice) -> Vec<String> {
    // SAFETY: the device is of this instance.
    let extensions = unsafe { instance.enumerate_device_extension_properties(device) }.unwrap_or_default();
    extensions.iter().map(|extension| text(&extension.extension_name)).collect()
}

/// Matrices that a subgroup multiplies.
struct Matrices {
    shape: MatrixShape,
    /// Of both factors and of the sums; no others are listed.
    types: (vk::ComponentTypeKHR, vk::ComponentTypeKHR),
}

/// All that a device multiplies whose factors are of one type.
fn all_matrices(entry: &ash::Entry, instance: &ash::Instance, device: vk::PhysicalDevice) -> Vec<Matrices> {
    let api = ash::khr::cooperative_matrix::Instance::new(entry, instance);
    // SAFETY: the device is of this instance and has the extension.
    let all = unsafe { api.get_physical_device_cooperative_matrix_properties(device) }.unwrap_or_default();
    let plain = all.iter().filter(|found| {
        let types = found.a_type == found.b_type && found.c_type == found.result_type;
        found.scope == vk::ScopeKHR::SUBGROUP && found.saturating_accumulation == vk::FALSE && types
    });
    let shape = |found: &vk::CooperativeMatrixPropertiesKHR<'_>| Matrices {
        shape: MatrixShape { m: found.m_size, n: found.n_size, k: found.k_size },
        types: (found.a_type, found.c_type),
    };
    plain.map(shape).collect()
}

const F16_TO_F32: (vk::ComponentTypeKHR, vk::ComponentTypeKHR) =
    (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);

fn is_16x8(found: &Matrices) -> bool {
    found.shape == MatrixShape { m: 16, n: 8, k: 16 } && found.types == F16_TO_F32
}

/// The shapes for f16 → f32 and for signed 8-bit → 32-bit; the largest `k` first.
fn matrices(all: &[Matrices]) -> (Option<MatrixShape>, Option<MatrixShape>) {
    let find = |types| {
        let fits = all.iter().filter(|found| found.types == types && found.shape.m == 16).map(|found| found.shape);
        fits.filter(|shape| shape.n == 16 || shape.n == 8).max_by_key(|shape| (shape.n, shape.k == 16, shape.k))
    };
    (find(F16_TO_F32), find((vk::ComponentTypeKHR::SINT8, vk::ComponentTypeKHR::SINT32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_lavapipe_is_refused_by_name() {
        let refused = |name, driver| known_problem(name, driver).is_some();
        assert!(refused("llvmpipe (LLVM 15.0.6, 256 bits)", "llvmpipe Mesa 22.3.6 (LLVM 15.0.6)"));
        assert!(!refused("llvmpipe (LLVM 15.0.6, 256 bits)", "llvmpipe Mesa 25.0.7-2~bpo12+1 (LLVM 15.0.6)"));
        assert!(!refused("AMD Radeon 780M (RADV PHOENIX)", "radv Mesa 22.3.6"));
        assert!(!refused("NVIDIA H200", "NVIDIA 580.159.04"));
    }
}
