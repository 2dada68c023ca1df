//! A machine whose GPUs compute as its CPU does, and fail when they are told to.

use backend_vulkan::{DeviceInfo, DeviceKind, Features};

/// A GPU with everything that is needed.
pub(crate) fn gpu(index: usize, name: &str, kind: DeviceKind) -> DeviceInfo {
    let features = Features {
        name: name.into(),
        driver: "fake 1.0".into(),
        kind,
        subgroup: 32,
        subgroup_range: (32, 32),
        integer_dot: true,
        matrix_f16: None,
        matrix_i8: None,
        pipeline_statistics: false,
        memory_budget: true,
        shared_bytes: 32 << 10,
        workgroup_max: 1024,
        timestamp_nanoseconds: Some(1),
        allocation_max: 1 << 30,
        memory_bytes: 8 << 30,
    };
    DeviceInfo { index, features, problem: None }
}
