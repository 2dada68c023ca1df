//! A small random model in a folder of its own, for tests that quantize one.

use std::path::{Path, PathBuf};

use checkpoint::safetensors::{Declared, Element, ShardedWriter};
use half::bf16;
use model::Config;
use model::tensors::tensors;
use serde_json::{Value, json};
use tensor::philox;

/// A folder that is gone after the test, with what lies beside it.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lapidary-quantize-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One layer of the smallest sizes that have blocks of 128 to share, padding of outputs (keys and values have 64) and
/// of inputs (the down projection has 200), and two groups of inputs that feed back errors.
pub(crate) fn small() -> Value {
    json!({
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": 64,
        "hidden_size": 128,
        "hidden_activation": "gelu_pytorch_tanh",
        "intermediate_size": 200,
        "max_position_embeddings": 512,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 64,
        "rms_norm_eps": 1e-6,
        "sliding_window": 8,
        "sliding_window_pattern": 6,
        "vocab_size": 256,
        "eos_token_id": 1,
    })
}

/// Writes a model of normal weights in bfloat16, of which `edit` may change some by their names.
pub(crate) fn write(folder: &Path, config: &Value, edit: impl Fn(&str, &mut [f32])) {
    std::fs::create_dir_all(folder).unwrap();
    let text = config.to_string();
    let entries = tensors(&Config::from_config_json(&text).unwrap());
    let name = |entry: &model::TensorEntry| entry.hugging_face_names()[0].clone();
    let declared: Vec<Declared> = entries
        .iter()
        .map(|entry| Declared { name: name(entry), element: Element::BF16, shape: entry.shape() })
        .collect();
    let mut writer = ShardedWriter::create(folder, &declared, 1 << 30).unwrap();
    for (index, entry) in entries.iter().enumerate() {
        let deviation = if entry.role.is_norm() { 0.1 } else { (entry.columns as f32).sqrt().recip() };
        let count = entry.rows * entry.columns;
        let mut values: Vec<f32> = (0..count).map(|at| deviation * normal(index as u64, at as u64)).collect();
        edit(&name(entry), &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        writer.write_tensor(&name(entry), &bytes).unwrap();
    }
    writer.finish().unwrap();
    std::fs::write(folder.join("config.json"), text).unwrap();
}

/// Nearly normal, of deviation 1: the sum of four uniform numbers.
fn normal(seed: u64, index: u64) -> f32 {
    let bits = philox::bits(seed, index);
    let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
    (sum as f32 / 65_536.0 - 2.0) * 3f32.sqrt()
}

/// Tokens of a text for a vocabulary of 256, each sequence beginning with `<bos>`.
pub(crate) fn sequences(count: u32, tokens: u32) -> Vec<Vec<u32>> {
    let sequence =
        |first: u32| (0..tokens).map(move |index| if index == 0 { 2 } else { 4 + (first + index * index * 37) % 250 });
    (0..count).map(|number| sequence(number * 91).collect()).collect()
}
