//! What a driver says of a compiled pipeline (`VK_KHR_pipeline_executable_properties`).

use ash::khr::pipeline_executable_properties::Device;
use ash::vk;

use crate::context::Context;
use crate::features::text;

/// The statistics of a pipeline and its machine code, for one that was made to be asked for them.
pub(super) fn find(context: &Context, pipeline: vk::Pipeline) -> Result<(Vec<(String, u64)>, String), vk::Result> {
    let api = Device::new(&context.instance.raw, &context.raw);
    // A compute pipeline is one executable.
    let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
    // SAFETY: the device has the extension, and the pipeline was made with both of the flags that this needs.
    let found = unsafe { api.get_pipeline_executable_statistics(&info) }?;
    let statistics = found.iter().map(|statistic| (text(&statistic.name), value(statistic))).collect();
    Ok((statistics, assembly(&api, &info)?))
}

fn value(statistic: &vk::PipelineExecutableStatisticKHR<'_>) -> u64 {
    let value = statistic.value;
    // SAFETY: the format says which field was written.
    unsafe {
        match statistic.format {
            vk::PipelineExecutableStatisticFormatKHR::BOOL32 => u64::from(value.b32),
            vk::PipelineExecutableStatisticFormatKHR::INT64 => value.i64.try_into().unwrap_or(0),
            vk::PipelineExecutableStatisticFormatKHR::FLOAT64 => value.f64 as u64,
            _ => value.u64,
        }
    }
}

/// The representation that is named so; empty if there is none.
fn assembly(api: &Device, info: &vk::PipelineExecutableInfoKHR<'_>) -> Result<String, vk::Result> {
    // SAFETY: as in `find`. The first call gives the sizes, the second one fills the memory that each points to.
    let mut all = unsafe { api.get_pipeline_executable_internal_representations(info) }?;
    let mut texts: Vec<Vec<u8>> = all.iter().map(|one| vec![0; one.data_size]).collect();
    for (one, text) in all.iter_mut().zip(&mut texts) {
        one.p_data = text.as_mut_ptr().cast();
    }
    let mut count = all.len() as u32;
    let get = api.fp().get_pipeline_executable_internal_representations_khr;
    // SAFETY: there are `count` structures, each with memory of the size that it says.
    unsafe { get(api.device(), info, &raw mut count, all.as_mut_ptr()) }.result()?;
    let named = all.iter().position(|one| one.is_text == vk::TRUE && text(&one.name) == "Assembly");
    let bytes = named.map(|index| texts.swap_remove(index)).unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}
