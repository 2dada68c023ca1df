//! Compiled shaders: made when they are first needed, kept in memory and in a file of the user's cache folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{env, fs};

use ash::vk;
use tensor::BackendError;

use crate::context::Context;

include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// Bytes of push constants that every device has.
pub(crate) const PUSH_BYTES: usize = 128;

/// A shader's variant and the values of its specialization constants.
///
/// Constant 0 is the number of lanes of a subgroup, constant 1 the invocations of a workgroup; the others are the
/// shader's own, from 2 on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    pub(crate) shader: String,
    pub(crate) subgroup: u32,
    pub(crate) workgroup: u32,
    pub(crate) constants: Vec<u32>,
}

/// The pipelines of one device, for all programs that are loaded there.
pub(crate) struct Pipelines {
    context: Arc<Context>,
    pub(crate) layout: vk::PipelineLayout,
    cache: vk::PipelineCache,
    file: Option<PathBuf>,
    made: Mutex<HashMap<Kernel, vk::Pipeline>>,
}

impl Pipelines {
    /// An empty set, with what an earlier run left in the cache folder.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Pipelines, BackendError> {
        let file = cache_file(context);
        let data = file.as_deref().and_then(read_cache).unwrap_or_default();
        let range = vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(PUSH_BYTES as u32);
        let layout = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(std::slice::from_ref(&range));
        // SAFETY: plain creation. Drivers check the header of the data and must take any bytes.
        unsafe {
            let device = &context.raw;
            let cache = device
                .create_pipeline_cache(&vk::PipelineCacheCreateInfo::default().initial_data(&data), None)
                .or_else(|_| device.create_pipeline_cache(&Default::default(), None))
                .map_err(|error| context.failure("making a pipeline cache", error))?;
            let layout = device
                .create_pipeline_layout(&layout, None)
                .map_err(|error| context.failure("making a pipeline layout", error))?;
            Ok(Pipelines { context: context.clone(), layout, cache, file, made: Mutex::default() })
        }
    }

    /// The pipeline of a kernel.
    ///
    /// # Errors
    /// A driver that can't compile it.
    ///
    /// # Panics
    /// If there is no shader of that name.
    pub(crate) fn get(&self, kernel: &Kernel) -> Result<vk::Pipeline, BackendError> {
        let mut made = self.made();
        if let Some(&pipeline) = made.get(kernel) {
            return Ok(pipeline);
        }
        let flags = vk::PipelineCreateFlags::empty();
        let pipeline = create(&self.context, self.layout, self.cache, kernel, flags)
            .map_err(|error| self.context.failure(&format!("compiling `{}`", kernel.shader), error))?;
        made.insert(kernel.clone(), pipeline);
        Ok(pipeline)
    }

    fn made(&self) -> MutexGuard<'_, HashMap<Kernel, vk::Pipeline>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what was compiled for the next run. That it fails is no harm.
    fn save(&self) {
        let Some(file) = self.file.as_ref().filter(|_| !self.made().is_empty()) else { return };
        // SAFETY: the cache is alive.
        let Ok(data) = (unsafe { self.context.raw.get_pipeline_cache_data(self.cache) }) else { return };
        if fs::metadata(file).is_ok_and(|old| old.len() == data.len() as u64) {
            return;
        }
        let temporary = file.with_extension(format!("{}.part", std::process::id()));
        let folder = file.parent().map_or(Ok(()), fs::create_dir_all);
        let written = folder.and_then(|()| fs::write(&temporary, data)).and_then(|()| fs::rename(&temporary, file));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }
}

impl Drop for Pipelines {
    fn drop(&mut self) {
        self.save();
        if self.context.is_hung() {
            return;
        }
        // SAFETY: whoever drops them has waited for the device.
        unsafe {
            let device = &self.context.raw;
            self.made().values().for_each(|&pipeline| device.destroy_pipeline(pipeline, None));
            device.destroy_pipeline_layout(self.layout, None);
            device.destroy_pipeline_cache(self.cache, None);
        }
    }
}

/// Most bytes of a file of compiled pipelines. Nothing is ever taken out of one, so what is larger is mostly of kernels
/// that no program makes any more: it is begun anew.
const CACHE_BYTES_MAX: u64 = 64 << 20;

/// What an earlier run left, if it is worth reading.
fn read_cache(file: &Path) -> Option<Vec<u8>> {
    let small = fs::metadata(file).is_ok_and(|file| file.len() <= CACHE_BYTES_MAX);
    small.then(|| fs::read(file).ok()).flatten()
}

/// The words of a shader.
///
/// # Panics
/// If there is none of that name: a bug, which the test of all kernels finds.
fn words(name: &str) -> Vec<u32> {
    let shader = SHADERS.iter().find(|(shader, _)| *shader == name);
    let (_, bytes) = shader.unwrap_or_else(|| panic!("no shader is named `{name}`"));
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// Compiles a kernel.
pub(crate) fn create(
    context: &Context,
    layout: vk::PipelineLayout,
    cache: vk::PipelineCache,
    kernel: &Kernel,
    flags: vk::PipelineCreateFlags,
) -> Result<vk::Pipeline, vk::Result> {
    let words = words(&kernel.shader);
    let values: Vec<u32> = [kernel.subgroup, kernel.workgroup].iter().chain(&kernel.constants).copied().collect();
    let entries: Vec<_> = (0..values.len() as u32)
        .map(|id| vk::SpecializationMapEntry::default().constant_id(id).offset(4 * id).size(4))
        .collect();
    let specialization = vk::SpecializationInfo::default().map_entries(&entries).data(bytemuck::cast_slice(&values));
    let (fewest, most) = context.features().subgroup_range;
    let mut size =
        vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default().required_subgroup_size(kernel.subgroup);
    let device = &context.raw;
    // SAFETY: all that the structures point to lives until the calls return; the SPIR-V comes from the compiler.
    unsafe {
        let module = device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&words), None)?;
        let mut stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(c"main")
            .specialization_info(&specialization);
        if fewest < most {
            stage = stage.flags(vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS).push_next(&mut size);
        }
        let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout).flags(flags);
        let pipelines = device.create_compute_pipelines(cache, &[info], None);
        device.destroy_shader_module(module, None);
        pipelines.map(|pipelines| pipelines[0]).map_err(|(_, error)| error)
    }
}

/// A file for this device and driver in the user's cache folder.
fn cache_file(context: &Context) -> Option<PathBuf> {
    // SAFETY: the device is of this instance.
    let properties = unsafe { context.instance.raw.get_physical_device_properties(context.physical) };
    let uuid = properties.pipeline_cache_uuid.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Some(cache_folder()?.join("lapidary").join(format!("pipelines-{uuid}.bin")))
}

/// Where programs keep what they can make again.
fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if cfg!(windows) {
        return folder("LOCALAPPDATA");
    }
    folder("XDG_CACHE_HOME").or_else(|| {
        let home = folder("HOME")?;
        Some(if cfg!(target_os = "macos") { home.join("Library/Caches") } else { home.join(".cache") })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_grown_too_large_is_not_read() {
        let path = env::temp_dir().join(format!("lapidary-pipelines-{}.bin", std::process::id()));
        assert_eq!(read_cache(&path), None);
        fs::write(&path, b"pipelines").unwrap();
        assert_eq!(read_cache(&path).as_deref(), Some(&b"pipelines"[..]));
        // A hole: it takes no room on the disk.
        fs::File::create(&path).unwrap().set_len(CACHE_BYTES_MAX + 1).unwrap();
        assert_eq!(read_cache(&path), None);
        fs::remove_file(&path).unwrap();
    }
}
