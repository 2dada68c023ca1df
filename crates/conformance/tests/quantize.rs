//! A whole model, quantized where the text runs and Hessians are decomposed on a GPU, beside one of the processor.

use std::path::{Path, PathBuf};

use backend_cpu::CpuBackend;
use backend_vulkan::{HessianSums, VulkanBackend};
use checkpoint::safetensors::{Declared, Element, ShardedWriter};
use checkpoint::{Checkpoint, TensorInfo};
use engine::{ModelSource, SourceTensor};
use quantize::pipeline::{Allocation, Budget, Observer, Options, Report, Stage, Task};
use quantize::{Decomposition, HessianDevice, ScaledSums};
use tensor::format::trellis::Rate;
use tensor::{Backend, WeightBytes, WeightSource, philox};

/// Layers of the model.
const LAYERS: usize = 2;

/// Looks away.
struct Nobody;

impl Observer for Nobody {
    fn progress(&self, _: Stage, _: u64, _: u64) {}

    fn cancelled(&self) -> bool {
        false
    }
}

/// A GPU that decomposes Hessians.
struct Gpu<'a>(&'a VulkanBackend);

impl HessianDevice for Gpu<'_> {
    fn decompose(&self, hessian: &ScaledSums<'_>) -> Result<Decomposition, String> {
        let ScaledSums { sums, count, suh, damping } = *hessian;
        let sums = HessianSums { sums, count: count as usize, scales: suh, damping };
        let done = self.0.decompose(&sums).map_err(|error| error.to_string())?;
        let done = done.map_err(|failure| format!("{failure:?}"))?;
        Ok(Decomposition::Done { upper: done.upper, roots: done.roots })
    }
}

/// A folder that is gone after the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The first two layers of a golden model: enough, and a device that is a program is slow.
fn original(folder: &Folder) -> PathBuf {
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens/text-1b-shape"));
    let checkpoint = Checkpoint::open(golden).expect("the golden models are part of the repository");
    let layer = |name: &str| name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
    let kept = checkpoint.tensors().iter().filter(|info| layer(&info.name).is_none_or(|layer: usize| layer < LAYERS));
    let kept: Vec<&TensorInfo> = kept.collect();
    let declare = |info: &&TensorInfo| {
        let element = Element::of(info.dtype).unwrap();
        Declared { name: info.name.clone(), element, shape: info.shape.clone() }
    };
    let declared: Vec<Declared> = kept.iter().map(declare).collect();
    let original = folder.0.join("original");
    std::fs::create_dir_all(&original).expect("a folder for the model");
    let mut writer = ShardedWriter::create(&original, &declared, u64::MAX).expect("a file");
    for info in kept {
        writer.write_tensor(&info.name, checkpoint.bytes(&info.name).expect("a tensor").bytes()).expect("a tensor");
    }
    writer.finish().expect("a file");
    let config = std::fs::read_to_string(golden.join("config.json")).expect("a configuration");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("a configuration");
    config["num_hidden_layers"] = LAYERS.into();
    std::fs::write(original.join("config.json"), config.to_string()).expect("a configuration");
    original
}

/// Quantizes the model, and gives the report and the mean square of the errors over that of the weights.
fn quantize(
    folder: &Folder,
    name: &str,
    source: &ModelSource<'_>,
    backend: &dyn Backend,
    hessians: Option<&dyn HessianDevice>,
) -> (Report, f64) {
    let token = |index: u64| (philox::bits(3, index) % 500 + 5) as u32;
    let sequences: Vec<Vec<u32>> =
        (0..12).map(|row| (0..64).map(|column| token(64 * row + column)).collect()).collect();
    let options = Options {
        allocation: Allocation::Estimated,
        rates: [6, 8].into_iter().filter_map(Rate::from_half_bits).collect(),
        head: Rate::from_half_bits(8),
        threads: 2,
        probe_tokens: 64,
        ..Options::new(Budget::BitsPerWeight(4.2))
    };
    let task =
        Task { source, backend, sequences: &sequences, options: &options, tiles: None, hessians, observer: &Nobody };
    let target = folder.0.join(name);
    let report = task.run(&target, false).expect("a quantized model");
    let checkpoint = Checkpoint::open(&target).expect("a folder");
    let quantized = ModelSource::open(&checkpoint).expect("a model");
    let (mut errors, mut squares) = (0.0, 0.0);
    for (tensor, of_quantized) in source.tensors().iter().zip(quantized.tensors()) {
        if tensor.entry.role.is_norm() {
            continue;
        }
        for (value, found) in values(source, tensor).into_iter().zip(values(&quantized, of_quantized)) {
            errors += (f64::from(value) - f64::from(found)).powi(2);
            squares += f64::from(value).powi(2);
        }
    }
    (report, errors / squares)
}

/// A tensor in f32.
fn values(source: &ModelSource<'_>, tensor: &SourceTensor) -> Vec<f32> {
    let bytes = source.open(&tensor.entry.name, tensor.decoded().into()).expect("a weight");
    let mut values = vec![0.0; tensor.entry.rows * tensor.entry.columns];
    tensor.decoded().codec().decode(bytes.bytes(), &mut values);
    values
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn a_gpu_quantizes_as_well_as_the_processor() {
    let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
    let gpu = match VulkanBackend::open(index) {
        Ok(gpu) if gpu.decomposes() && gpu.capabilities().grams => gpu,
        Ok(gpu) => return eprintln!("skipped: {} can't decompose Hessians", gpu.device().features.name),
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let folder = Folder(std::env::temp_dir().join(format!("lapidary-quantize-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).expect("a folder for the test");
    let checkpoint = Checkpoint::open(&original(&folder)).expect("a folder");
    let source = ModelSource::open(&checkpoint).expect("a model");
    let (on_cpu, expected) = quantize(&folder, "cpu", &source, &CpuBackend::new(), None);
    let (on_gpu, found) = quantize(&folder, "gpu", &source, &gpu, Some(&Gpu(&gpu)));
    assert!((found / expected - 1.0).abs() < 0.05, "{found}, the processor's {expected}");
    for (gpu, cpu) in on_gpu.weights.iter().zip(&on_cpu.weights) {
        assert_eq!(gpu.name, cpu.name);
        assert!((0.5..2.0).contains(&(gpu.cost / cpu.cost)), "{}: {}, {}", gpu.name, gpu.cost, cpu.cost);
    }
}
