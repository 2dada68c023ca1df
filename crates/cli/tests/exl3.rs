//! What the program says about a folder of exllamav3, and that it runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use checkpoint::Checkpoint;
use checkpoint::exl3::{LinearTensors, QuantizationConfig};
use checkpoint::safetensors::{Declared, Element, ShardedWriter};
use half::f16;
use tensor::WeightBytes;
use tensor::format::trellis::{Codebook, Linear, Rate};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/text-27b-shape")
}

/// A folder that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lapidary-cli-exl3-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary")).args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Weights of that shape from arbitrary bits, at 2.5 bits for the feed-forward layers and 4 for all else.
fn linear(name: &str, outputs: usize, inputs: usize) -> Linear<'static> {
    let rate = Rate::from_half_bits(if name.contains("mlp") { 5 } else { 8 }).unwrap();
    let (suh, svh) = (vec![f16::from_f32(0.02); inputs], vec![f16::ONE; outputs.next_multiple_of(128)]);
    let mut linear = Linear::new(rate, Codebook::Mul1, suh, svh).unwrap();
    for row in 0..inputs / 16 {
        for column in 0..outputs / 16 {
            let seed = (row * 1000 + column) as u64;
            let bytes = linear.tile_mut(row, column);
            bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = tensor::philox::bits(seed, at as u64) as u8);
        }
    }
    linear
}

/// A golden model with other weights, and a quantized head although the embedding is tied.
fn write(folder: &Folder, config: &QuantizationConfig) {
    let checkpoint = Checkpoint::open(&golden()).expect("the golden models are part of the repository");
    let mut tensors: Vec<(Declared, Vec<u8>)> = Vec::new();
    for info in checkpoint.tensors() {
        if info.shape.len() == 1 || info.name.contains("embed_tokens") {
            let element = Element::of(info.dtype).unwrap();
            let declared = Declared { name: info.name.clone(), element, shape: info.shape.clone() };
            tensors.push((declared, checkpoint.bytes(&info.name).unwrap().bytes().to_vec()));
        }
        if let &[outputs, inputs] = &info.shape[..] {
            let name = info.name.trim_end_matches(".weight").replace("model.embed_tokens", "lm_head");
            let linear = linear(&name, outputs, inputs);
            let parts = LinearTensors::new(&name, &linear);
            tensors.extend(parts.declared().cloned().zip(parts.iter().map(|(_, bytes)| bytes.to_vec())));
        }
    }
    let declared: Vec<Declared> = tensors.iter().map(|(declared, _)| declared.clone()).collect();
    let mut writer = ShardedWriter::create(&folder.0, &declared, 300_000).unwrap();
    for (declared, bytes) in &tensors {
        writer.write_tensor(&declared.name, bytes).unwrap();
    }
    writer.finish().unwrap();
    let model = std::fs::read_to_string(golden().join("config.json")).unwrap();
    let mut model: serde_json::Value = serde_json::from_str(&model).unwrap();
    model["quantization_config"] = config.to_json();
    std::fs::write(folder.0.join("config.json"), model.to_string()).unwrap();
}

#[test]
fn a_folder_is_described_and_runs() {
    let folder = Folder::new("described");
    write(&folder, &QuantizationConfig { version: Some("1.6.5".into()), ..Default::default() });
    let output = run(&["inspect", folder.path(), "--tensors"]);
    let report = text(&output.stdout);
    let expected = [
        "EXL3 folder, 94 tensors",
        "exl3 2.5 mul1  21 tensors",
        "by exllamav3 1.6.5",
        // 128 × 256 weights: 4 bits, a mark and 16 bits for each input and output.
        "query      4.188: 7 × exl3 4 mul1",
        "down       2.657: 7 × exl3 2.5 mul1",
        "head       4.157: 1 × exl3 4 mul1",
        "embedding  16.000: 1 × bf16",
        "model-00002-of-0000",
        "model.layers.6.mlp.down_proj.weight",
    ];
    for part in expected {
        assert!(report.contains(part), "`{part}` is not in\n{report}{}", text(&output.stderr));
    }
    let json: serde_json::Value = serde_json::from_slice(&run(&["inspect", folder.path(), "--json"]).stdout).unwrap();
    assert_eq!(json["exl3"]["kinds"]["query"]["formats"]["exl3 4 mul1"], 7);
    let file = folder.0.join("logits");
    let arguments = ["logits", folder.path(), "--token-ids", "2,17,5", "--device", "cpu", "--output"];
    let output = run(&[&arguments[..], &[file.to_str().unwrap()]].concat());
    let notes = text(&output.stderr);
    // The processor multiplies trellises as they are.
    assert!(output.status.success() && !notes.contains("decoded"), "{notes}");
}

#[test]
fn layouts_are_converted() {
    let folder = Folder::new("converted");
    let source = Folder(folder.0.join("source"));
    std::fs::create_dir_all(&source.0).unwrap();
    write(&source, &QuantizationConfig::default());
    let [small, large] = ["small", "large"].map(|name| folder.0.join(name).to_str().unwrap().to_owned());
    let convert = |from: &str, layout: &str, into: &str, more: &[&str]| {
        run(&[&["convert", from, "--layout", layout, "--output", into], more].concat())
    };
    let refused = |output: &Output, parts: &[&str]| {
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    let lost = convert(source.path(), "compact", &small, &[]);
    refused(&lost, &["`model.embed_tokens.weight` is not what the head is decoded to", "--drop-embedding"]);
    let done = convert(source.path(), "compact", &small, &["--drop-embedding"]);
    assert!(done.status.success() && text(&done.stderr).contains("wrote `"), "{}", text(&done.stderr));
    refused(&convert(&small, "compact", &large, &[]), &["the layout compact already"]);
    refused(&convert(&small, "exllamav3", source.path(), &[]), &["exists already", "--force"]);
    refused(&convert(golden().to_str().unwrap(), "compact", &large, &[]), &["no folder of trellis weights"]);
    let json = text(&convert(&small, "exllamav3", &large, &["--json"]).stdout);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["bytes"].as_u64() > json["bytes_before"].as_u64(), "{json}");
    let logits = |folder: &str| {
        let file = format!("{folder}-logits");
        let arguments = ["logits", folder, "--token-ids", "2,17,5", "--device", "cpu", "--precision", "f32"];
        let output = run(&[&arguments[..], &["--output", &file]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let bytes = std::fs::read(file).unwrap();
        let tensors = checkpoint::safetensors::parse("logits", &bytes).unwrap();
        bytes[tensors[0].range.clone()]
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect::<Vec<f32>>()
    };
    let (small, large) = (logits(&small), logits(&large));
    let largest = small.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
    let worst = small.iter().zip(&large).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst < 0.002 * largest, "{worst} of {largest}");
}

#[test]
fn an_estimate_says_size_memory_and_time() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/tiny");
    if !model.exists() {
        #[expect(clippy::print_stderr, reason = "a test that can't run says so")]
        return eprintln!("skipped: {} is not there", model.display());
    }
    let folder = Folder::new("estimate");
    let calibration = folder.0.join("text");
    let sentence = "The ship came late, and the storm had taken two of her masts.\n";
    std::fs::write(&calibration, sentence.repeat(100)).unwrap();
    let estimate = |more: &[&str]| {
        let arguments = ["quantize", model.to_str().unwrap(), "--calibration", calibration.to_str().unwrap()];
        let more = [&["--sequence-tokens", "128", "--estimate", "--allocation", "uniform"], more].concat();
        run(&[&arguments[..], &more].concat())
    };
    let output = estimate(&["--bpw", "4"]);
    let lines = text(&output.stdout);
    let names: Vec<&str> = lines.lines().map(|line| line.split_ascii_whitespace().next().unwrap()).collect();
    assert_eq!(names[..3], ["size", "memory", "time"], "{lines}{}", text(&output.stderr));
    let shares = names[3..].iter().map(|share| share.parse::<f64>().expect("a share"));
    let total: f64 = shares.sum();
    assert!((99.0..101.0).contains(&total), "{lines}");
    let least = text(&estimate(&["--size", "1MB"]).stderr);
    assert!(least.contains("can't be met: the least possible is "), "{least}");
}

#[test]
fn another_version_is_refused() {
    let folder = Folder::new("version");
    write(&folder, &QuantizationConfig { version: Some("3.1".into()), ..Default::default() });
    let output = run(&["inspect", folder.path()]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("version `3.1` of exllamav3") && message.contains("hint: "), "{message}");
}
