//! `inspect devices`: what models can run on here.

use anyhow::Result;
use backend_cpu::{CpuBackend, physical_cores};
use backend_vulkan::{DeviceInfo, DeviceKind, Features, MatrixShape};
use serde_json::{Value, json};
use tensor::{Backend, DType};

use crate::devices::{Machine, ThisMachine};
use crate::output::{self, bytes};

/// Lists the CPU and all that Vulkan lists.
///
/// # Errors
/// A closed pipe.
pub(super) fn run(json: bool) -> Result<()> {
    let gpus = ThisMachine.gpus();
    if json {
        let mut devices = vec![cpu_json()];
        devices.extend(gpus.iter().flatten().map(gpu_json));
        return Ok(output::json(&json!({ "devices": devices, "vulkan_problem": gpus.err() }))?);
    }
    let text = match &gpus {
        Ok(gpus) if gpus.is_empty() => "vulkan: no device was found\n".into(),
        Ok(gpus) => gpus.iter().map(gpu_text).collect(),
        Err(problem) => format!("vulkan: {}\n", indented(problem)),
    };
    Ok(output::answer(&(cpu_text() + &text))?)
}

fn formats(dtypes: &[DType]) -> Vec<&'static str> {
    dtypes.iter().map(|dtype| dtype.name()).collect()
}

fn levels() -> Vec<&'static str> {
    CpuBackend::available_levels().into_iter().map(|level| level.name()).collect()
}

/// Bytes that models can have, where the system tells.
fn cpu_memory(backend: &CpuBackend) -> Option<u64> {
    Some(backend.capabilities().memory_bytes).filter(|&bytes| bytes != u64::MAX)
}

fn cpu_text() -> String {
    let backend = CpuBackend::new();
    format!(
        "cpu: {}\n  instruction sets  {}\n  memory            {} available\n",
        backend.capabilities().description,
        levels().join(", "),
        cpu_memory(&backend).map_or("unknown".into(), bytes)
    )
}

fn cpu_json() -> Value {
    let backend = CpuBackend::new();
    let capabilities = backend.capabilities();
    json!({
        "name": "cpu",
        "description": capabilities.description,
        "physical_cores": physical_cores(),
        "instruction_sets": levels(),
        "instruction_set_in_use": backend.level().name(),
        "available_memory_bytes": cpu_memory(&backend),
        "weight_formats": formats(&capabilities.weight_dtypes),
        "cache_formats": formats(&capabilities.cache_dtypes),
    })
}

fn kind(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Discrete => "discrete",
        DeviceKind::Integrated => "integrated",
        DeviceKind::Virtual => "virtual",
        DeviceKind::Software => "software",
    }
}

/// A message whose further lines stand under the first.
fn indented(message: &str) -> String {
    message.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n  ")
}

fn gpu_text(info: &DeviceInfo) -> String {
    let DeviceInfo { index, features, problem } = info;
    let Features { name, driver, subgroup, subgroup_range: (least, most), .. } = features;
    let subgroups = match least == most {
        true => format!("{subgroup} lanes"),
        false => format!("{subgroup} lanes, {least} to {most} on request"),
    };
    let mut lines = vec![
        format!("vulkan:{index}: {name} ({})", kind(features.kind)),
        format!("  driver            {driver}"),
        format!("  memory            {}", bytes(features.memory_bytes)),
    ];
    match problem {
        Some(problem) => lines.push(format!("  can't be used     {}", indented(problem))),
        None => lines.extend([
            format!("  subgroups         {subgroups}"),
            format!("  integer dot       {}", if features.integer_dot { "yes" } else { "no" }),
            format!("  matrices          {}", matrices(features)),
        ]),
    }
    lines.join("\n") + "\n"
}

/// Shapes that a subgroup multiplies together.
fn matrices(features: &Features) -> String {
    let shape = |(name, shape): (&str, MatrixShape)| format!("{name} {}×{}×{}", shape.m, shape.n, shape.k);
    let f16 = features.matrix_f16.map(|found| shape(("f16", found)));
    let i8 = features.matrix_i8.map(|found| shape(("8-bit", found)));
    let found: Vec<String> = f16.into_iter().chain(i8).collect();
    if found.is_empty() { "no".into() } else { found.join(", ") }
}

fn gpu_json(info: &DeviceInfo) -> Value {
    let DeviceInfo { index, features, problem } = info;
    let shape = |shape: Option<MatrixShape>| shape.map(|MatrixShape { m, n, k }| json!({ "m": m, "n": n, "k": k }));
    json!({
        "name": format!("vulkan:{index}"),
        "description": features.name,
        "driver": features.driver,
        "kind": kind(features.kind),
        "problem": problem,
        "memory_bytes": features.memory_bytes,
        "allocation_max_bytes": features.allocation_max,
        "pci_address": features.pci_address,
        "subgroup": features.subgroup,
        "subgroup_range": [features.subgroup_range.0, features.subgroup_range.1],
        "integer_dot": features.integer_dot,
        "matrix_f16": shape(features.matrix_f16),
        "matrix_i8": shape(features.matrix_i8),
        "shared_memory_bytes": features.shared_bytes,
        "workgroup_invocations_max": features.workgroup_max,
        "timestamp_nanoseconds": features.timestamp_nanoseconds,
        "memory_budget": features.memory_budget,
        "pipeline_statistics": features.pipeline_statistics,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::fake::gpu;

    #[test]
    fn a_gpu_is_described() {
        let mut info = gpu(3);
        info.features.subgroup_range = (32, 64);
        info.features.matrix_f16 = Some(MatrixShape { m: 16, n: 8, k: 16 });
        let text = gpu_text(&info);
        for part in ["vulkan:3: GPU 3 (discrete)", "32 to 64 on request", "integer dot       yes", "f16 16×8×16"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(gpu_json(&info)["matrix_f16"]["n"], 8);
        info.problem = Some("the driver lacks shaderInt8\n\nhint: a newer one may have it".into());
        let text = gpu_text(&info);
        assert!(text.contains("can't be used     the driver lacks shaderInt8\n  hint: a newer"), "{text}");
        assert!(!text.contains("matrices") && gpu_json(&info)["problem"].is_string());
    }
}
