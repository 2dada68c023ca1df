//! Models of random weights: any shape and format, made in memory, so that its speed can be measured.

use std::f32::consts::TAU;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use bytemuck::Pod;
use checkpoint::gguf::{Array, Builder, Metadata, Value};
use model::tensors::tensors;
use model::{Config, GgufValue, TensorEntry};
use tensor::format::{q2_k, q3_k, q4_k, q5_k, q6_k};
use tensor::{DType, WeightBytes, WeightError, WeightFormat, WeightSource};

use crate::progress::{Progress, Unit};
use crate::{gguf_text, interrupt};

/// Standard deviation of the weights, that of Gemma's initialisation: activations stay finite.
const DEVIATION: f32 = 0.02;
/// Different blocks of a format; a power of two.
const POOL: usize = 1 << 14;
/// Blocks of the pool that are copied at once: copies of single blocks would take longer than to load the model.
const RUN_BLOCKS: usize = 1 << 7;
/// Weights of a block of a format that has none of its own.
const RUN: usize = 32;

/// A model of random weights.
#[derive(Clone, Debug)]
pub(crate) struct RandomModel {
    config: Config,
    format: DType,
    seed: u64,
    entries: Vec<TensorEntry>,
    /// Blocks of each format that occurs.
    pools: Vec<(DType, Vec<u8>)>,
    threads: usize,
}

impl RandomModel {
    /// A model of that shape, its matrices in that format as far as their rows allow it.
    pub(crate) fn new(config: Config, format: DType, seed: u64) -> RandomModel {
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        let entries = tensors(&config);
        let matrices = entries.iter().filter(|entry| !entry.role.is_norm());
        let mut formats: Vec<DType> = matrices.map(|entry| fitting(format, entry.columns)).collect();
        formats.sort_unstable();
        formats.dedup();
        let pools = formats.into_iter().map(|format| (format, pool(format, seed))).collect();
        RandomModel { config, format, seed, entries, pools, threads }
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The format of a matrix.
    pub(crate) fn format_of(&self, entry: &TensorEntry) -> DType {
        if entry.role.is_norm() { DType::F32 } else { fitting(self.format, entry.columns) }
    }

    /// Bytes of all weights.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |entry| self.format_of(entry).tensor_bytes(entry.rows, entry.columns).unwrap_or(0) as u64;
        self.entries.iter().map(bytes).sum()
    }

    /// The bytes of a tensor: always the same for a seed.
    fn generate(&self, index: usize) -> Vec<u8> {
        let entry = &self.entries[index];
        let seed = mix(self.seed ^ mix(index as u64 + 1));
        if entry.role.is_norm() {
            let mut random = Random(seed);
            return (0..entry.columns).flat_map(|_| (1.0 + 0.05 * random.gaussian()).to_le_bytes()).collect();
        }
        let format = self.format_of(entry);
        let len = format.tensor_bytes(entry.rows, entry.columns).unwrap_or(0);
        let pool = self.pools.iter().find(|(of, _)| *of == format).map_or(&[][..], |(_, pool)| pool);
        let block = pool.len() / POOL;
        let mut bytes = vec![0; len];
        // Whole runs, so that the bytes don't depend on the number of threads.
        let part = (len / (RUN_BLOCKS * block)).div_ceil(self.threads).max(1) * RUN_BLOCKS;
        thread::scope(|scope| {
            for (number, bytes) in bytes.chunks_mut(part * block).enumerate() {
                scope.spawn(move || fill(bytes, pool, block, seed, number * part / RUN_BLOCKS));
            }
        });
        bytes
    }

    /// Writes the model to a GGUF file that llama.cpp loads.
    ///
    /// # Errors
    /// A file that can't be written, Ctrl-C.
    pub(crate) fn write(&self, path: &Path, name: &str) -> Result<u64> {
        let mut metadata = Metadata::new();
        put_config(&self.config, name, &mut metadata)?;
        gguf_text::write_synthetic(self.config.vocabulary, &mut metadata);
        let mut builder = Builder::new(metadata);
        for entry in &self.entries {
            builder.tensor(&entry.name, self.format_of(entry), &entry.shape())?;
        }
        let total = builder.file_bytes();
        let mut writer = builder.create(path)?;
        let mut progress = Progress::new("writing", Unit::Bytes, total);
        let mut written = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            interrupt::check()?;
            let bytes = self.generate(index);
            writer.write_tensor(&entry.name, &bytes)?;
            written += bytes.len() as u64;
            progress.set(written);
        }
        writer.finish()?;
        Ok(total)
    }
}

impl WeightSource for RandomModel {
    fn open(&self, name: &str, _: WeightFormat) -> Result<Arc<dyn WeightBytes>, WeightError> {
        let index = self.entries.iter().position(|entry| entry.name == name);
        let index = index.ok_or_else(|| format!("the model has no weight `{name}`"))?;
        Ok(Arc::new(self.generate(index)))
    }
}

/// The metadata of a model, without its tokenizer.
///
/// # Errors
/// Something that GGUF files can't say.
pub(crate) fn put_config(config: &Config, name: &str, metadata: &mut Metadata) -> Result<()> {
    for (key, value) in config.to_gguf()? {
        metadata.insert(key, value_of(value));
    }
    metadata.insert("general.name", name);
    metadata.insert("general.quantization_version", 2u32);
    Ok(())
}

/// A value of the configuration as a file holds it.
fn value_of(value: GgufValue) -> Value {
    match value {
        GgufValue::Unsigned(value) => Value::U32(u32::try_from(value).unwrap_or(u32::MAX)),
        GgufValue::Signed(value) => Value::I64(value),
        GgufValue::Float(value) => Value::F32(value as f32),
        GgufValue::Bool(value) => Value::Bool(value),
        GgufValue::Text(value) => Value::String(value),
        GgufValue::Array(values) => {
            Value::Array(Array::Bool(values.iter().map(|value| *value == GgufValue::Bool(true)).collect()))
        }
    }
}

/// The format, or for rows that its blocks don't divide the one that llama.cpp takes instead.
pub(crate) fn fitting(format: DType, columns: usize) -> DType {
    if format.row_bytes(columns).is_some() {
        return format;
    }
    let smaller = match format {
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        _ => DType::F16,
    };
    if smaller.row_bytes(columns).is_some() { smaller } else { DType::F16 }
}

/// Fills `bytes` with runs of blocks of the pool: where each begins there is chosen by its number, from `first` on.
fn fill(bytes: &mut [u8], pool: &[u8], block: usize, seed: u64, first: usize) {
    for (number, into) in bytes.chunks_mut(RUN_BLOCKS * block).enumerate() {
        let choice = mix(seed.wrapping_add((first + number) as u64));
        let at = choice as usize % (POOL - RUN_BLOCKS + 1) * block;
        into.copy_from_slice(&pool[at..at + into.len()]);
    }
}

/// Blocks of random weights in a format.
fn pool(format: DType, seed: u64) -> Vec<u8> {
    let mut random = Random(mix(seed ^ format as u64));
    let run = format.block_len().max(RUN);
    let len = format.tensor_bytes(POOL, run).unwrap_or(0);
    let mut bytes = vec![0; len];
    let values: Vec<f32> = (0..POOL * run).map(|_| DEVIATION * random.gaussian()).collect();
    if format.codec().encode(&values, &mut bytes).is_ok() {
        return bytes;
    }
    // A format that can only be read: random bits under a scale that gives the deviation.
    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]));
    set_scales(format, &mut bytes, 1.0);
    let mut values = values;
    format.codec().decode(&bytes, &mut values);
    let square = values.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>() / values.len() as f64;
    set_scales(format, &mut bytes, DEVIATION / square.sqrt() as f32);
    bytes
}

/// Sets the scale of all blocks, and the scale of their minima so that the mean is about 0.
fn set_scales(format: DType, bytes: &mut [u8], scale: f32) {
    let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
    fn each<B: Pod>(bytes: &mut [u8], set: impl Fn(&mut B)) {
        bytemuck::cast_slice_mut(bytes).iter_mut().for_each(set);
    }
    match format {
        DType::Q2_K => each::<q2_k::Block>(bytes, |block| {
            (block.scale, block.minimum) = (half(scale), half(1.5 * scale));
        }),
        DType::Q3_K => each::<q3_k::Block>(bytes, |block| block.scale = half(scale)),
        DType::Q4_K => each::<q4_k::Block>(bytes, |block| {
            (block.scale, block.minimum) = (half(scale), half(7.5 * scale));
        }),
        DType::Q5_K => each::<q5_k::Block>(bytes, |block| {
            (block.scale, block.minimum) = (half(scale), half(15.5 * scale));
        }),
        DType::Q6_K => each::<q6_k::Block>(bytes, |block| block.scale = half(scale)),
        // They have an encoder.
        DType::F32 | DType::F16 | DType::BF16 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 => {
        }
    }
}

/// A counter-based generator (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number with the standard normal distribution.
    fn gaussian(&mut self) -> f32 {
        let uniform = |bits: u64| ((bits >> 40) as f32 + 0.5) / (1 << 24) as f32;
        let (radius, angle) = (uniform(self.next()), uniform(self.next()));
        (-2.0 * radius.ln()).sqrt() * (TAU * angle).cos()
    }
}

/// The output function of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators").
fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_weights_of_the_deviation() {
        for format in DType::ALL {
            let bytes = pool(format, 7);
            let mut values = vec![0.0; POOL * format.block_len().max(RUN)];
            format.codec().decode(&bytes, &mut values);
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
            assert!((square.sqrt() / DEVIATION - 1.0).abs() < 0.05, "{format}: {}", square.sqrt());
            assert!(mean.abs() < 0.1 * DEVIATION, "{format}: {mean}");
        }
    }

    #[test]
    fn weights_depend_on_seed_and_tensor_alone() {
        let mut config = Config::shape("270m").unwrap();
        config.layers.truncate(2);
        config.vocabulary = 512;
        let open = |threads, seed, name: &str| {
            let model = RandomModel { threads, ..RandomModel::new(config.clone(), DType::Q4_0, seed) };
            model.open(name, DType::Q4_0.into()).unwrap().bytes().to_vec()
        };
        let (first, second) = ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight");
        assert_eq!(open(2, 1, first), open(7, 1, first));
        assert_ne!(open(2, 1, first), open(2, 1, second));
        assert_ne!(open(2, 1, first), open(2, 2, first));
        assert_eq!(open(1, 1, first).len(), 640 * 2048 / 32 * 18);
        let norm = open(1, 1, "blk.0.attn_norm.weight");
        assert_eq!(norm.len(), 640 * 4);
        assert!((f32::from_le_bytes(norm[..4].try_into().unwrap()) - 1.0).abs() < 0.5);
    }

    #[test]
    fn rows_that_blocks_do_not_divide_get_another_format() {
        assert_eq!(fitting(DType::Q4_K, 1152), DType::Q5_0);
        assert_eq!(fitting(DType::Q4_K, 6912), DType::Q4_K);
        assert_eq!(fitting(DType::Q4_0, 40), DType::F16);
    }
}
