//! Folders of exllamav3: what is put together, and what is wrong with damaged ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::exl3::{LinearTensors, QuantizationConfig};
use checkpoint::safetensors::{Declared, Element, ShardedWriter};
use checkpoint::{Checkpoint, CheckpointError};
use half::f16;
use tensor::WeightBytes;
use tensor::format::trellis::{Codebook, Linear, Rate};

use crate::scratch;

const NAME: &str = "model.layers.0.mlp.up_proj";

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, (Element, Vec<usize>, Vec<u8>)>;

/// A weight of 128 inputs and 256 outputs at 2.5 bits.
fn linear() -> Linear<'static> {
    let halves = |count: usize| (0..count).map(|at| f16::from_f32(at as f32 / 64.0 - 1.0)).collect();
    let rate = Rate::from_half_bits(5).expect("a rate");
    let mut linear = Linear::new(rate, Codebook::Mul1, halves(128), halves(256)).expect("a weight");
    for row in 0..8 {
        for column in 0..16 {
            linear.tile_mut(row, column).fill((row * 16 + column) as u8);
        }
    }
    linear
}

pub(crate) fn tensors() -> Tensors {
    let linear = linear();
    let parts = LinearTensors::new(NAME, &linear);
    let mut tensors: Tensors = parts
        .declared()
        .zip(parts.iter())
        .map(|(declared, (name, bytes))| (name.to_owned(), (declared.element, declared.shape.clone(), bytes.to_vec())))
        .collect();
    tensors.insert("model.norm.weight".into(), (Element::BF16, vec![3], vec![0; 6]));
    tensors
}

fn config() -> QuantizationConfig {
    QuantizationConfig {
        version: Some("1.6.5".into()),
        bits: Some(2.5),
        head_bits: Some(6.0),
        codebook: Some(Codebook::Mul1),
    }
}

fn write(folder: &Path, config: &str, tensors: &Tensors, file_bytes: u64) {
    let declared: Vec<Declared> = tensors
        .iter()
        .map(|(name, (element, shape, _))| Declared { name: name.clone(), element: *element, shape: shape.clone() })
        .collect();
    let mut writer = ShardedWriter::create(folder, &declared, file_bytes).expect("the folder can be written");
    for (name, (.., bytes)) in tensors {
        writer.write_tensor(name, bytes).expect("it was declared");
    }
    writer.finish().expect("all are there");
    std::fs::write(folder.join("config.json"), config).expect("the folder can be written");
}

fn config_json(config: &QuantizationConfig) -> String {
    format!("{{\"quantization_config\": {}}}", config.to_json())
}

pub(crate) fn folder(test: &str, tensors: &Tensors, file_bytes: u64) -> PathBuf {
    let folder = scratch(&format!("exl3_{test}"));
    write(&folder, &config_json(&config()), tensors, file_bytes);
    folder
}

#[test]
fn a_weight_is_put_together_from_several_files() {
    for (file_bytes, files) in [(u64::MAX, 1), (10_240, 3), (1, 5)] {
        let folder = folder(&format!("files_{files}"), &tensors(), file_bytes);
        let checkpoint = Checkpoint::open(&folder).expect("a sound folder");
        assert_eq!(checkpoint.files().len(), files, "{:?}", checkpoint.files());
        assert_eq!(checkpoint.files().iter().map(|file| file.bytes).sum::<u64>(), checkpoint.file_bytes());
        let [info] = checkpoint.trellis() else { panic!("one weight, found {:?}", checkpoint.trellis()) };
        assert_eq!(info.name, "model.layers.0.mlp.up_proj.weight");
        assert_eq!((info.inputs, info.outputs, info.has_bias), (128, 256, false));
        assert_eq!(info.byte_len(), 8 * 16 * 80 + 2 * 128 + 2 * 256 + 4);
        assert_eq!(checkpoint.linear(&info.name).expect("it is there"), linear());
        // Its tensors are no others.
        assert_eq!((checkpoint.tensors().len(), checkpoint.unsupported().len()), (1, 0));
        let groups: Vec<_> =
            checkpoint.bytes_by_encoding().into_iter().map(|group| group.encoding.to_string()).collect();
        assert_eq!(groups, ["exl3 2.5 mul1", "bf16"]);
        assert!(matches!(checkpoint.linear("model.norm.weight"), Err(CheckpointError::MissingTensor { .. })));
    }
}

#[test]
fn the_signs_of_old_files_are_read() {
    let mut tensors = tensors();
    tensors.remove(&format!("{NAME}.suh"));
    tensors.insert(format!("{NAME}.su"), (Element::I16, vec![8], vec![0x01; 16]));
    let checkpoint = Checkpoint::open(&folder("signs", &tensors, u64::MAX)).expect("a sound folder");
    let linear = checkpoint.linear("model.layers.0.mlp.up_proj.weight").expect("it is there");
    let signs: Vec<f32> = linear.suh()[..9].iter().map(|sign| sign.to_f32()).collect();
    assert_eq!(signs, [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0]);
}

#[test]
fn the_tensors_of_a_weight_are_given_as_they_are() {
    let mut tensors = tensors();
    tensors.remove(&format!("{NAME}.suh"));
    tensors.insert(format!("{NAME}.su"), (Element::I16, vec![8], vec![0x01; 16]));
    // A single number may be stored with a dimension.
    part(&mut tensors, "mul1").1 = vec![1];
    let checkpoint = Checkpoint::open(&folder("as_they_are", &tensors, 10_240)).expect("a sound folder");
    let stored = checkpoint.trellis_tensors("model.layers.0.mlp.up_proj.weight").expect("it is there");
    let names: Vec<&str> = stored.iter().map(|(declared, _)| declared.name.rsplit_once('.').unwrap().1).collect();
    assert_eq!(names, ["svh", "su", "trellis", "mul1"]);
    for (declared, data) in stored {
        let expected = &tensors[&declared.name];
        assert_eq!((&declared.element, &declared.shape, data.bytes()), (&expected.0, &expected.1, &expected.2[..]));
    }
}

#[test]
fn the_configuration_is_read_back() {
    let read = |text: &str| QuantizationConfig::parse("config.json", text).map_err(|error| error.to_string());
    assert_eq!(read(&config_json(&config())), Ok(Some(config())));
    assert_eq!(read(&format!("{{\"text_config\": {}}}", config_json(&config()))), Ok(Some(config())));
    assert_eq!(read("{\"quantization_config\": {\"quant_method\": \"gptq\", \"version\": \"9\"}}"), Ok(None));
    assert_eq!(read("no JSON"), Ok(None));
}

type Change = fn(&mut Tensors);

/// The tensor of a part.
fn part<'a>(tensors: &'a mut Tensors, name: &str) -> &'a mut (Element, Vec<usize>, Vec<u8>) {
    tensors.get_mut(&format!("{NAME}.{name}")).expect("it is there")
}

/// Gives another tensor what a part has.
fn copy(tensors: &mut Tensors, from: &str, to: &str) {
    let tensor = part(tensors, from).clone();
    tensors.insert(to.to_owned(), tensor);
}

fn remove(tensors: &mut Tensors, name: &str) {
    tensors.remove(&format!("{NAME}.{name}")).expect("it is there");
}

#[test]
fn damaged_weights_are_named() {
    let cases: [(&str, Change, &str); 13] = [
        ("trellis", |t| remove(t, "trellis"), "no tensor ends in `.trellis`"),
        ("other_trellis", |t| copy(t, "suh", "b.suh"), "`b`: `suh` is there, but no"),
        ("suh", |t| remove(t, "suh"), "neither `suh` nor `su` is there"),
        ("mark", |t| remove(t, "mul1"), "2.5 bits per weight in the codebook `3inst`"),
        ("multiplier", |t| part(t, "mul1").2[0] ^= 1, "`mul1` is 0x83dcd12c, expected 0x83dcd12d"),
        ("two_marks", |t| copy(t, "mul1", &format!("{NAME}.mcg")), "`mcg` and `mul1` are both"),
        ("size", |t| copy(t, "suh", &format!("{NAME}.svh")), "`svh` has 256 bytes, expected 512"),
        ("rate", |t| part(t, "trellis").1 = vec![8, 80, 8], "tiles of 8 words"),
        ("dimensions", |t| part(t, "trellis").1 = vec![128, 40], "has the shape [128, 40], expected 3 dimensions"),
        ("kind", |t| part(t, "suh").0 = Element::BF16, "`suh` is stored as bf16, expected F16"),
        ("unknown", |t| copy(t, "suh", &format!("{NAME}.lut")), "it has a part `lut`"),
        ("embedding", |t| copy(t, "suh", &format!("{NAME}.signs")), "without `--embed_bits`"),
        ("infinite", |t| part(t, "suh").2[..2].copy_from_slice(&[0x00, 0x7c]), "`suh` has inf at 0"),
    ];
    for (case, change, expected) in cases {
        let mut tensors = tensors();
        change(&mut tensors);
        let error = Checkpoint::open(&folder(case, &tensors, u64::MAX)).expect_err(case).to_string();
        assert!(error.contains(expected), "{case}: found `{error}`, expected `{expected}`");
        let named = error.contains(NAME) || case.contains("trellis");
        assert!(named, "{case}: `{error}` names no weight");
    }
}

#[test]
fn damaged_folders_are_named() {
    let refused = |case: &str, change: &dyn Fn(&Path), expected: &str| {
        let folder = folder(case, &tensors(), 10_240);
        change(&folder);
        let error = Checkpoint::open(&folder).expect_err(case).to_string();
        assert!(error.contains(expected), "{case}: found `{error}`, expected `{expected}`");
    };
    let file = "model-00002-of-00003.safetensors";
    refused("no_file", &|folder| std::fs::remove_file(folder.join(file)).expect("it is there"), file);
    let cut = |folder: &Path| {
        let bytes = std::fs::read(folder.join(file)).expect("it is there");
        std::fs::write(folder.join(file), &bytes[..bytes.len() - 1]).expect("it can be written");
    };
    refused("cut", &cut, "is cut off or damaged");
    let other = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut config = serde_json::json!({ "quantization_config": config().to_json() });
        change(&mut config["quantization_config"]);
        config.to_string()
    };
    let version = other(&|config| config["version"] = "2.0.0".into());
    let newer = |folder: &Path| std::fs::write(folder.join("config.json"), &version).expect("it can be written");
    refused("version", &newer, "it is of version `2.0.0` of exllamav3, expected 0 or 1");
    let codebook = other(&|config| config["codebook"] = "2mad".into());
    let unknown = |folder: &Path| std::fs::write(folder.join("config.json"), &codebook).expect("it can be written");
    refused("codebook", &unknown, "its codebook is `2mad`, expected `3inst`, `mcg` or `mul1`");
}

#[test]
fn a_folder_lacks_nothing_before_it_is_finished() {
    let folder = scratch("exl3_unfinished");
    let declared = |name: &str| Declared { name: name.into(), element: Element::I32, shape: vec![2] };
    let mut writer = ShardedWriter::create(&folder, &[declared("a"), declared("b")], 8).expect("it can be written");
    writer.write_chunk("a", &[0; 3]).expect("it was declared");
    assert!(
        writer.write_tensor("b", &[0; 8]).expect_err("`a` is not complete").to_string().contains("`a` was declared")
    );
    writer.write_chunk("a", &[0; 5]).expect("it was declared");
    let error = writer.finish().expect_err("`b` is missing").to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
    assert!(!folder.join("model.safetensors.index.json").exists());
    let huge = Declared { name: "c".into(), element: Element::I16, shape: vec![usize::MAX, 2] };
    assert!(huge.bytes().expect_err("too large").to_string().contains("is impossible"));
}
