//! A model in the format of exllamav3 against the same weights as plain matrices, on every backend.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;

use backend_cpu::CpuBackend;
use backend_vulkan::VulkanBackend;
use checkpoint::exl3::{LinearTensors, QuantizationConfig};
use checkpoint::safetensors::{Declared, Element, ShardedWriter};
use checkpoint::{Checkpoint, TensorInfo};
use engine::{Engine, EngineOptions, ModelSource};
use half::f16;
use quantize::Encoder;
use tensor::format::trellis::hadamard::{self, BLOCK};
use tensor::format::trellis::{Codebook, Linear, Rate, SIDE, tile};
use tensor::reference::ReferenceBackend;
use tensor::{Backend, DType, Precision, WeightBytes, WeightFormat, WeightSource, philox};

/// Most bytes of a file: so few that the model has several.
const FILE_BYTES: u64 = 100_000;

/// The name of the layers' weights, their rates and codebooks, the scales for these, and the squared error that they
/// leave at most, of 1.
const ATTENTION: (usize, Codebook, f32, f64) = (8, Codebook::Mcg, 1.12, 0.0052);
const FEED_FORWARD: (usize, Codebook, f32, f64) = (5, Codebook::Mul1, 1.04, 0.0360);
const HEAD: (usize, Codebook, f32, f64) = (12, Codebook::ThreeInst, 1.28, 0.0005);

/// A folder that is gone after the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lapidary-conformance-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A matrix `[rows, columns]`.
struct Matrix {
    name: String,
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

/// The first layer of a golden model, enough to round in a few seconds: the configuration, and its tensors.
struct Original {
    config: serde_json::Value,
    checkpoint: Checkpoint,
}

impl Original {
    fn open() -> Original {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../goldens/text-1b-shape"));
        let checkpoint = Checkpoint::open(folder).expect("the golden models are part of the repository");
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["num_hidden_layers"] = 1.into();
        Original { config, checkpoint }
    }

    fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        let kept = |name: &str| !(1..8).any(|layer| name.contains(&format!("layers.{layer}.")));
        self.checkpoint.tensors().iter().filter(move |info| kept(&info.name))
    }

    /// The matrices of the layers, and the embedding once more as the head.
    fn matrices(&self) -> Vec<Matrix> {
        let infos = self.tensors().filter(|info| info.shape.len() == 2);
        let matrices = infos.map(|info| {
            let (rows, columns) = info.rows_columns();
            let mut values = vec![0.0; rows * columns];
            info.dtype.codec().decode(self.checkpoint.bytes(&info.name).unwrap().bytes(), &mut values);
            let name = info.name.trim_end_matches(".weight").replace("model.embed_tokens", "lm_head");
            Matrix { name, rows, columns, values }
        });
        matrices.collect()
    }

    /// The tensors that stay as they are.
    fn plain(&self) -> Vec<(Declared, Vec<u8>)> {
        let plain = self.tensors().filter(|info| info.shape.len() == 1 || info.name.contains("embed_tokens"));
        let declare = |info: &TensorInfo| {
            let element = Element::of(info.dtype).unwrap();
            let declared = Declared { name: info.name.clone(), element, shape: info.shape.clone() };
            (declared, self.checkpoint.bytes(&info.name).unwrap().bytes().to_vec())
        };
        plain.map(declare).collect()
    }
}

fn quality(name: &str) -> (usize, Codebook, f32, f64) {
    match name {
        name if name.contains("self_attn") => ATTENTION,
        name if name.contains("mlp") => FEED_FORWARD,
        _ => HEAD,
    }
}

/// Rounds a matrix to the trellis: zeros up to multiples of 128, random signs, rotations, and the nearest tiles.
fn round(matrix: &Matrix) -> Linear<'static> {
    let (half_bits, codebook, scale, _) = quality(&matrix.name);
    let rate = Rate::from_half_bits(half_bits).unwrap();
    let (inputs, outputs) = (matrix.columns.next_multiple_of(BLOCK), matrix.rows.next_multiple_of(BLOCK));
    let mut values = vec![0.0; inputs * outputs];
    for (row, from) in values.chunks_exact_mut(inputs).zip(matrix.values.chunks_exact(matrix.columns)) {
        row[..from.len()].copy_from_slice(from);
    }
    let rms = (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
    let signs = |seed: u64, count: usize, size: f32| -> Vec<f16> {
        (0..count as u64).map(|at| f16::from_f32(if philox::bits(seed, at) & 1 == 0 { size } else { -size })).collect()
    };
    let (suh, svh) = (signs(1, inputs, rms * scale / codebook.deviation()), signs(2, outputs, 1.0));
    for (row, svh) in values.chunks_exact_mut(inputs).zip(&svh) {
        row.iter_mut().zip(&suh).for_each(|(value, suh)| *value /= suh.to_f32() * svh.to_f32());
        hadamard::rotate(row);
    }
    values.chunks_exact_mut(BLOCK * inputs).for_each(|rows| hadamard::rotate_rows(rows, inputs));
    let encoder = Encoder::new(codebook, rate);
    let mut scratch = encoder.scratch();
    let mut linear = Linear::new(rate, codebook, suh, svh).unwrap();
    for row in 0..inputs / SIDE {
        for column in 0..outputs / SIDE {
            let weights = tile::RING.map(|index| {
                let (input, output) = (usize::from(index) / SIDE, usize::from(index) % SIDE);
                values[(column * SIDE + output) * inputs + row * SIDE + input]
            });
            let states = encoder.encode(&mut scratch, &weights);
            tile::pack(rate, &states, linear.tile_mut(row, column));
        }
    }
    linear
}

/// All matrices, on the threads of the machine.
fn round_all(matrices: &[Matrix]) -> BTreeMap<&str, Linear<'static>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let part = |first: usize| matrices.iter().skip(first).step_by(threads);
        let tasks: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || part(first).map(|one| (&*one.name, round(one))).collect::<Vec<_>>()))
            .collect();
        tasks.into_iter().flat_map(|task| task.join().unwrap()).collect()
    })
}

/// A weight without its padding, in F16.
fn dequantized(matrix: &Matrix, linear: &Linear<'_>) -> Vec<u8> {
    let rows = linear.dequantize();
    let rows = rows.chunks_exact(linear.inputs()).take(matrix.rows).map(|row| &row[..matrix.columns]);
    rows.flatten().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()
}

/// The squared error, of 1.
fn error(matrix: &Matrix, found: &[u8]) -> f64 {
    let mut values = vec![0.0; matrix.values.len()];
    DType::F16.codec().decode(found, &mut values);
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
    let difference = squares(&mut matrix.values.iter().zip(values).map(|(a, b)| a - b));
    difference / squares(&mut matrix.values.iter().copied())
}

fn write(folder: &Folder, config: &serde_json::Value, tensors: &[(Declared, Vec<u8>)]) {
    let declared: Vec<Declared> = tensors.iter().map(|(declared, _)| declared.clone()).collect();
    let mut writer = ShardedWriter::create(&folder.0, &declared, FILE_BYTES).unwrap();
    for (declared, bytes) in tensors {
        let (begin, end) = bytes.split_at(bytes.len() / 3);
        writer.write_chunk(&declared.name, begin).unwrap();
        writer.write_chunk(&declared.name, end).unwrap();
    }
    writer.finish().unwrap();
    std::fs::write(folder.0.join("config.json"), config.to_string()).unwrap();
}

/// Every backend that can run here, by name.
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
fn backends() -> Vec<(String, Box<dyn Backend>)> {
    let mut backends: Vec<(String, Box<dyn Backend>)> =
        vec![("reference".into(), Box::new(ReferenceBackend)), ("CPU".into(), Box::new(CpuBackend::new()))];
    match VulkanBackend::open(None) {
        Ok(backend) => backends.push(("Vulkan".into(), Box::new(backend))),
        Err(error) => eprintln!("skipped: Vulkan: {error}"),
    }
    backends
}

fn logits(checkpoint: &Checkpoint, backend: &dyn Backend) -> Vec<f32> {
    let options = EngineOptions { precision: Precision::F32, outputs_max: 64, ..Default::default() };
    let mut engine = Engine::load(checkpoint, backend, &options).expect("it loads");
    let tokens: Vec<u32> = (0..20).map(|index| 2 + index * 37 % 500).collect();
    let mut logits = Vec::new();
    engine.forward(&tokens, 0..tokens.len(), &mut |row| logits.extend_from_slice(row.logits)).expect("a pass");
    logits
}

/// The root mean square of the differences over that of the expected numbers.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
    let differences = squares(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    (differences / squares(&mut expected.iter().copied())).sqrt()
}

#[test]
fn a_folder_runs_as_its_dequantized_weights_do() {
    let original = Original::open();
    let matrices = original.matrices();
    let linears = round_all(&matrices);
    let (mut packed, mut plain) = (original.plain(), original.plain());
    for matrix in &matrices {
        let tensors = LinearTensors::new(&matrix.name, &linears[&*matrix.name]);
        packed.extend(tensors.declared().cloned().zip(tensors.iter().map(|(_, bytes)| bytes.to_vec())));
        let (name, shape) = (format!("{}.weight", matrix.name), vec![matrix.rows, matrix.columns]);
        let declared = Declared { name, element: Element::F16, shape };
        plain.push((declared, dequantized(matrix, &linears[&*matrix.name])));
    }
    let (packed_folder, plain_folder) = (Folder::new("exl3"), Folder::new("plain"));
    let mut config = original.config.clone();
    let about = QuantizationConfig { version: Some("1.6.5".into()), bits: Some(2.9), ..Default::default() };
    config["quantization_config"] = about.to_json();
    write(&packed_folder, &config, &packed);
    // The embedding is tied for the one, as Gemma has it, and for the other the head is a weight of its own.
    config = original.config.clone();
    config["tie_word_embeddings"] = false.into();
    write(&plain_folder, &config, &plain);

    let open = |folder: &Folder| Checkpoint::open(&folder.0).unwrap();
    let (packed, plain) = (open(&packed_folder), open(&plain_folder));
    assert!(packed.files().len() > 2, "{:?}", packed.files());
    let (source, expected) = (ModelSource::open(&packed).unwrap(), ModelSource::open(&plain).unwrap());
    let trellises = |source: &ModelSource<'_>| {
        source.tensors().iter().filter(|tensor| matches!(tensor.format, WeightFormat::Trellis(_))).count()
    };
    assert_eq!((trellises(&source), trellises(&expected)), (8, 0));
    assert_eq!((source.config().tied_embeddings, packed.trellis().len()), (false, 8));
    for matrix in &matrices {
        let name = format!("{}.weight", matrix.name);
        assert_eq!(packed.linear(&name).unwrap(), linears[&*matrix.name], "{name}");
        let tensor = source.tensors().iter().find(|tensor| tensor.name == name).unwrap();
        let found = source.open(&tensor.entry.name, DType::F16.into()).unwrap();
        assert!(*found.bytes() == *expected.open(&tensor.entry.name, DType::F16.into()).unwrap().bytes(), "{name}");
        let (error, bound) = (error(matrix, found.bytes()), quality(&matrix.name).3);
        assert!((bound / 2.0..bound).contains(&error), "{name}: {error}, expected about {bound}");
    }
    for (name, backend) in backends() {
        let (found, expected) = (logits(&packed, &*backend), logits(&plain, &*backend));
        assert_eq!(found.len(), 20 * 512);
        assert!(found.iter().all(|logit| logit.is_finite()));
        // A device that has the trellises themselves does not round their weights to F16.
        let error = relative_error(&found, &expected);
        let bound = if backend.capabilities().trellis { 2e-3 } else { 0.0 };
        assert!(error <= bound && (bound == 0.0 || error > 0.0), "{name}: {error}, expected at most {bound}");
    }
}
