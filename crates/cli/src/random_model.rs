//! Models of random weights: any shape and format, made in memory, so that its speed can be measured.

use std::f32::consts::TAU;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use bytemuck::Pod;
use checkpoint::gguf::{Array, Builder, Metadata, Value};
use half::f16;
use model::tensors::tensors;
use model::{Config, GgufValue, TensorEntry};
use tensor::format::trellis::{Codebook, Rate, Scales};
use tensor::format::{q2_k, q3_k, q4_k, q5_k, q6_k};
use tensor::{DType, TrellisFormat, WeightBytes, WeightError, WeightFormat, WeightSource};

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

/// What the matrices of a model are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RandomFormat {
    /// In blocks, as far as the length of their rows allows it.
    Blocks(DType),
    /// Trellises.
    Trellis(Rate, Codebook),
}

impl RandomFormat {
    /// Of the name of a block format, or of a codebook and the bits per weight: `mul1:2.5`. `trellis` is `mul1`.
    pub(crate) fn from_name(name: &str) -> Option<RandomFormat> {
        let Some((codebook, bits)) = name.split_once(':') else {
            return DType::from_name(name).map(RandomFormat::Blocks);
        };
        let codebook = match codebook {
            "trellis" => Codebook::Mul1,
            name => Codebook::ALL.into_iter().find(|codebook| codebook.name() == name)?,
        };
        let rate = Rate::ALL.into_iter().find(|rate| rate.to_string() == bits)?;
        (!rate.is_half() || codebook == Codebook::Mul1).then_some(RandomFormat::Trellis(rate, codebook))
    }
}

impl fmt::Display for RandomFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RandomFormat::Blocks(dtype) => dtype.fmt(f),
            RandomFormat::Trellis(rate, codebook) => write!(f, "{codebook} {rate}"),
        }
    }
}

/// A model of random weights.
#[derive(Clone, Debug)]
pub(crate) struct RandomModel {
    config: Config,
    format: RandomFormat,
    seed: u64,
    entries: Vec<TensorEntry>,
    /// Blocks of each format that occurs.
    pools: Vec<(DType, Vec<u8>)>,
    threads: usize,
}

impl RandomModel {
    /// A model of that shape, its matrices in that format as far as their rows allow it.
    pub(crate) fn new(config: Config, format: RandomFormat, seed: u64) -> RandomModel {
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        let entries = tensors(&config);
        let mut formats: Vec<DType> = match format {
            RandomFormat::Blocks(format) => {
                let matrices = entries.iter().filter(|entry| !entry.role.is_norm());
                matrices.map(|entry| fitting(format, entry.columns)).collect()
            }
            RandomFormat::Trellis(..) => Vec::new(),
        };
        formats.sort_unstable();
        formats.dedup();
        let pools = formats.into_iter().map(|format| (format, pool(format, seed))).collect();
        RandomModel { config, format, seed, entries, pools, threads }
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The format of a matrix or norm of the model.
    pub(crate) fn format_of(&self, entry: &TensorEntry) -> WeightFormat {
        match self.format {
            _ if entry.role.is_norm() => DType::F32.into(),
            RandomFormat::Blocks(format) => fitting(format, entry.columns).into(),
            RandomFormat::Trellis(rate, codebook) => {
                TrellisFormat { rate, codebook, rotation: self.rotation_of(entry) }.into()
            }
        }
    }

    /// The number of a matrix's first neighbour that multiplies the same activations.
    fn rotation_of(&self, entry: &TensorEntry) -> u32 {
        let first = self.entries.iter().position(|other| {
            let shared = other.layer == entry.layer && other.role.shared_input() == entry.role.shared_input();
            other.name == entry.name || shared && entry.role.shared_input().is_some()
        });
        first.map_or(0, |index| index as u32)
    }

    /// Bytes of all weights.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |entry| self.format_of(entry).tensor_bytes(entry.rows, entry.columns).unwrap_or(0) as u64;
        self.entries.iter().map(bytes).sum()
    }

    /// A trellis: random bits, random signs, and scales of the outputs that give the deviation.
    fn generate_trellis(&self, index: usize, format: TrellisFormat) -> Trellis {
        let entry = &self.entries[index];
        let (inputs, outputs) = TrellisFormat::padded(entry.rows, entry.columns).unwrap_or_default();
        let seed = |number: u64| mix(self.seed ^ mix(number));
        let signs = |seed: u64, count: usize, scale: f32| {
            let mut random = Random(seed);
            (0..count).map(|_| f16::from_f32(if random.next() >> 63 == 1 { -scale } else { scale })).collect()
        };
        let suh = signs(seed(u64::from(format.rotation) + (1 << 32)), inputs, 1.0);
        let svh = signs(seed(index as u64 + (2 << 32)), outputs, DEVIATION / format.codebook.deviation());
        let len = WeightFormat::Trellis(format).data_bytes(entry.rows, entry.columns).unwrap_or(0);
        let (mut tiles, seed) = (vec![0; len], seed(index as u64 + 1));
        // Whole numbers of 8 bytes, as all tiles are.
        let part = len.div_ceil(self.threads).next_multiple_of(8).max(8);
        thread::scope(|scope| {
            for (number, tiles) in tiles.chunks_mut(part).enumerate() {
                scope.spawn(move || {
                    for (place, bytes) in tiles.as_chunks_mut().0.iter_mut().enumerate() {
                        *bytes = mix(seed.wrapping_add((number * part / 8 + place) as u64)).to_le_bytes();
                    }
                });
            }
        });
        Trellis { tiles, scales: Scales { suh, svh } }
    }

    /// The bytes of a norm, or of a matrix in blocks: always the same for a seed.
    fn generate(&self, index: usize) -> Vec<u8> {
        let entry = &self.entries[index];
        let seed = mix(self.seed ^ mix(index as u64 + 1));
        if entry.role.is_norm() {
            let mut random = Random(seed);
            return (0..entry.columns).flat_map(|_| (1.0 + 0.05 * random.gaussian()).to_le_bytes()).collect();
        }
        let WeightFormat::Blocks(format) = self.format_of(entry) else { return Vec::new() };
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
            let format = self.format_of(entry);
            let dtype = format.blocks().with_context(|| format!("GGUF files have no weights in {format}"))?;
            builder.tensor(&entry.name, dtype, &entry.shape())?;
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
        match self.format_of(&self.entries[index]) {
            WeightFormat::Blocks(_) => Ok(Arc::new(self.generate(index))),
            WeightFormat::Trellis(format) => Ok(Arc::new(self.generate_trellis(index, format))),
        }
    }
}

/// A trellis in memory.
struct Trellis {
    tiles: Vec<u8>,
    scales: Scales,
}

impl WeightBytes for Trellis {
    fn bytes(&self) -> &[u8] {
        &self.tiles
    }

    fn scales(&self) -> Option<&Scales> {
        Some(&self.scales)
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
            let model =
                RandomModel { threads, ..RandomModel::new(config.clone(), RandomFormat::Blocks(DType::Q4_0), seed) };
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
    fn trellises_have_the_deviation_and_share_their_rotations() {
        let mut config = Config::shape("270m").unwrap();
        config.layers.truncate(2);
        config.vocabulary = 512;
        let format = RandomFormat::from_name("trellis:2.5").unwrap();
        let model = RandomModel { threads: 3, ..RandomModel::new(config, format, 1) };
        let open = |name: &str| {
            let entry = model.entries.iter().find(|entry| entry.name == name).unwrap();
            let WeightFormat::Trellis(format) = model.format_of(entry) else { panic!("{name} is no trellis") };
            let data = model.open(name, format.into()).unwrap();
            let linear = format.linear(entry.rows, entry.columns, &*data).unwrap();
            let (weights, suh) = (linear.dequantize(), linear.suh().to_vec());
            (format.rotation, suh, weights)
        };
        let (gate, up, other) =
            (open("blk.0.ffn_gate.weight"), open("blk.0.ffn_up.weight"), open("blk.1.ffn_up.weight"));
        assert!(gate.0 == up.0 && gate.1 == up.1 && gate.2 != up.2);
        assert!(up.0 != other.0 && up.1 != other.1);
        let square = up.2.iter().map(|value| value * value).sum::<f32>() / up.2.len() as f32;
        assert!((square.sqrt() / DEVIATION - 1.0).abs() < 0.05, "{}", square.sqrt());
        let single = RandomModel { threads: 1, ..model.clone() };
        let bytes =
            |model: &RandomModel| model.open("blk.1.ffn_up.weight", DType::F32.into()).unwrap().bytes().to_vec();
        assert_eq!(bytes(&model), bytes(&single));
        assert!(model.write(Path::new("never made"), "x").unwrap_err().to_string().contains("no weights in mul1 2.5"));
        for name in ["trellis:2.25", "mcg:2.5", "mul1", "q4:2"] {
            assert_eq!(RandomFormat::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn rows_that_blocks_do_not_divide_get_another_format() {
        assert_eq!(fitting(DType::Q4_K, 1152), DType::Q5_0);
        assert_eq!(fitting(DType::Q4_K, 6912), DType::Q4_K);
        assert_eq!(fitting(DType::Q4_0, 40), DType::F16);
    }
}
