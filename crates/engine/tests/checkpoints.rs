//! Checkpoints that are right in other forms, and checkpoints that are wrong.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, gguf};
use common::{finish, golden, greedy, integers, load, open, tokens};
use engine::{Engine, EngineError, EngineOptions, ModelSource};
use model::GgufValue;
use tensor::reference::ReferenceBackend;
use tensor::{DType, Precision, WeightSource};

const MODEL: &str = "text-27b-shape";

/// A folder that is gone after the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lapidary-engine-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A safetensors file, written by hand: name → (type, shape, bytes).
type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

fn read(path: &Path) -> Tensors {
    let checkpoint = Checkpoint::open(path).unwrap();
    let tensors = checkpoint.tensors().iter().map(|info| {
        let bytes = tensor::WeightBytes::bytes(&*checkpoint.bytes(&info.name).unwrap()).to_vec();
        (info.name.clone(), (info.dtype.name().to_uppercase(), info.shape.clone(), bytes))
    });
    tensors.collect()
}

fn write(folder: &Folder, config: &str, tensors: &Tensors) {
    let (mut header, mut data) = (String::new(), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let comma = if header.is_empty() { "" } else { "," };
        header += &format!(r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}"#);
        data.extend_from_slice(bytes);
    }
    let header = format!("{{{header}}}");
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    std::fs::write(folder.join("config.json"), config).unwrap();
}

fn config() -> String {
    std::fs::read_to_string(golden(MODEL).join("config.json")).unwrap()
}

/// The answer of the golden model to one of its prompts.
fn expected() -> Vec<u32> {
    answer(&golden(MODEL))
}

/// The answer of a checkpoint to the same prompt.
fn answer(path: &Path) -> Vec<u32> {
    let options = EngineOptions { precision: Precision::F32, ..Default::default() };
    let mut engine = Engine::load(&Checkpoint::open(path).unwrap(), &ReferenceBackend, &options).unwrap();
    engine.submit(greedy(&integers(MODEL, "prompt2.input_ids"), 24)).unwrap();
    tokens(&finish(&mut engine))
}

/// Writes a golden model as the GGUF file that llama.cpp would read, in BF16.
fn write_gguf(path: &Path) {
    let checkpoint = open(MODEL);
    let source = ModelSource::open(&checkpoint).unwrap();
    let mut metadata = gguf::Metadata::new();
    for (key, value) in source.config().to_gguf().unwrap() {
        let value = match value {
            GgufValue::Unsigned(value) => gguf::Value::U32(value as u32),
            GgufValue::Float(value) => gguf::Value::F32(value as f32),
            GgufValue::Text(value) => gguf::Value::String(value),
            other => panic!("{other}"),
        };
        metadata.insert(key, value);
    }
    let mut builder = gguf::Builder::new(metadata);
    for tensor in source.tensors() {
        let dtype = if tensor.entry.role.is_norm() { DType::F32 } else { tensor.decoded() };
        builder.tensor(&tensor.entry.name, dtype, &tensor.entry.shape()).unwrap();
    }
    let factor = source.config().gguf_query_norm_factor();
    let mut writer = builder.create(path).unwrap();
    for tensor in source.tensors() {
        let bytes = if tensor.entry.role == model::Role::QueryNorm {
            source.norm(tensor).unwrap().iter().flat_map(|value| (value * factor).to_le_bytes()).collect()
        } else {
            WeightSource::open(&source, &tensor.entry.name, tensor.decoded().into()).unwrap().bytes().to_vec()
        };
        writer.write_tensor(&tensor.entry.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// The model's query scale is not llama.cpp's, so this also shows that the factor in the query norm is right.
#[test]
fn a_gguf_file_answers_as_the_folder_it_was_made_from() {
    let folder = Folder::new("gguf");
    let path = folder.join("model.gguf");
    write_gguf(&path);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let source = ModelSource::open(&checkpoint).unwrap();
    assert_ne!(
        source.config().query_pre_attn_scalar,
        ModelSource::open(&open(MODEL)).unwrap().config().query_pre_attn_scalar
    );
    assert_eq!(answer(&path), expected());
}

#[test]
fn all_generations_of_names_are_found() {
    let tensors = read(&golden(MODEL));
    let nested = format!(
        r#"{{"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}}"#,
        config().replace("Gemma3ForCausalLM", "ignored")
    );
    let folder = Folder::new("names");
    for prefix in ["language_model.model.", "model.language_model."] {
        let mut renamed: Tensors = tensors
            .iter()
            .map(|(name, tensor)| (format!("{prefix}{}", name.strip_prefix("model.").unwrap()), tensor.clone()))
            .collect();
        renamed.insert("vision_tower.vision_model.x".into(), ("I64".into(), vec![1], vec![0; 8]));
        write(&folder, &nested, &renamed);
        assert_eq!(answer(&folder.0), expected(), "{prefix}");
    }
}

#[test]
fn other_float_formats_and_a_head_of_its_own() {
    let mut tensors = read(&golden(MODEL));
    for (name, (dtype, shape, bytes)) in &mut tensors {
        let mut values = vec![0.0; shape.iter().product()];
        DType::BF16.codec().decode(bytes, &mut values);
        let to = if name.contains("mlp") { DType::F16 } else { DType::F32 };
        *bytes = vec![0; to.tensor_bytes(1, values.len()).unwrap()];
        to.codec().encode(&values, bytes).unwrap();
        *dtype = to.name().to_uppercase();
    }
    let embedding = tensors["model.embed_tokens.weight"].clone();
    tensors.insert("lm_head.weight".into(), embedding);
    let folder = Folder::new("formats");
    let expected = expected();
    // Tied by default: the copy is not looked at.
    write(&folder, &config(), &tensors);
    assert_eq!(answer(&folder.0), expected);
    let untied = config().replacen('{', "{\"tie_word_embeddings\": false,", 1);
    write(&folder, &untied, &tensors);
    assert_eq!(answer(&folder.0), expected);
    tensors.get_mut("lm_head.weight").unwrap().2.fill(0);
    write(&folder, &untied, &tensors);
    assert_ne!(answer(&folder.0), expected);
    tensors.remove("lm_head.weight");
    write(&folder, &untied, &tensors);
    let error = ModelSource::open(&Checkpoint::open(&folder.0).unwrap()).unwrap_err();
    assert!(error.to_string().contains("`lm_head.weight`"), "{error}");
}

/// What a change to the tensors or the configuration leads to.
fn error(name: &str, change: impl Fn(&mut String, &mut Tensors)) -> EngineError {
    let (mut config, mut tensors) = (config(), read(&golden(MODEL)));
    change(&mut config, &mut tensors);
    let folder = Folder::new(name);
    write(&folder, &config, &tensors);
    ModelSource::open(&Checkpoint::open(&folder.0).unwrap()).unwrap_err()
}

const QUERY: &str = "model.layers.3.self_attn.q_proj.weight";

#[test]
fn wrong_tensors_are_named() {
    let missing = error("missing", |_, tensors| {
        tensors.remove(QUERY);
    });
    assert!(matches!(&missing, EngineError::MissingTensor { tensor, stranger: None } if tensor == QUERY), "{missing}");

    let renamed = error("renamed", |_, tensors| {
        let query = tensors.remove(QUERY).unwrap();
        tensors.insert("model.layers.3.self_attn.query.weight".into(), query);
    });
    let text = renamed.to_string();
    assert!(text.contains(QUERY) && text.contains("`model.layers.3.self_attn.query.weight`"), "{text}");

    let shape = error("shape", |_, tensors| tensors.get_mut(QUERY).unwrap().1.reverse());
    assert!(shape.to_string().contains("expected shape [256, 128] by the configuration, found [128, 256]"), "{shape}");

    let format = error("format", |_, tensors| tensors.get_mut(QUERY).unwrap().0 = "I16".into());
    assert!(format.to_string().contains(QUERY) && format.to_string().contains("I16"), "{format}");

    let bias = error("bias", |_, tensors| {
        tensors.insert("model.layers.3.self_attn.q_proj.bias".into(), ("F32".into(), vec![1], vec![0; 4]));
    });
    assert!(matches!(&bias, EngineError::UnknownTensor { tensor } if tensor.ends_with("q_proj.bias")), "{bias}");

    let layers = error("layers", |config, _| {
        *config = config.replace("\"num_hidden_layers\": 7", "\"num_hidden_layers\": 6");
    });
    assert!(matches!(&layers, EngineError::UnknownTensor { tensor } if tensor.contains("layers.6")), "{layers}");

    let other = error("other", |config, _| *config = config.replace("Gemma3ForCausalLM", "LlamaForCausalLM"));
    assert!(other.to_string().contains("`LlamaForCausalLM`"), "{other}");

    let huge = error("huge", |config, _| {
        *config = config.replace("\"vocab_size\": 512", "\"vocab_size\": 16777216").replace("128", "1048576");
    });
    assert!(matches!(huge, EngineError::Shape { .. }), "{huge}");
}

/// What a trellis in the place of a weight leads to, after a change to its tensors.
fn trellis(name: &str, change: impl Fn(&mut Tensors)) -> Result<(), String> {
    let mut tensors = read(&golden(MODEL));
    let prefix = QUERY.strip_suffix("weight").unwrap();
    tensors.remove(QUERY);
    let halves = |count, value: [u8; 2]| ("F16".to_owned(), vec![count], value.repeat(count));
    tensors.insert(format!("{prefix}trellis"), ("I16".into(), vec![8, 16, 16], vec![0; 8 * 16 * 32]));
    tensors.insert(format!("{prefix}suh"), halves(128, [0x00, 0x3c]));
    tensors.insert(format!("{prefix}svh"), halves(256, [0x00, 0x3c]));
    change(&mut tensors);
    let folder = Folder::new(name);
    write(&folder, &config(), &tensors);
    let checkpoint = Checkpoint::open(&folder.0).map_err(|error| error.to_string())?;
    let source = ModelSource::open(&checkpoint).map_err(|error| error.to_string())?;
    let trellises: Vec<_> = source.tensors().iter().filter(|tensor| tensor.format.blocks().is_none()).collect();
    assert_eq!(trellises.len(), 1);
    let open = |format| WeightSource::open(&source, "blk.3.attn_q.weight", format).map_err(|error| error.to_string());
    let decoded = open(DType::F16.into())?;
    assert_eq!((decoded.bytes().len(), decoded.scales()), (128 * 256 * 2, None));
    let tiles = open(trellises[0].format)?;
    assert_eq!(tiles.bytes().len(), 128 * 256 / 8);
    assert_eq!(tiles.scales().map(|scales| (scales.suh.len(), scales.svh.len())), Some((128, 256)));
    assert!(open(DType::Q4_0.into()).is_err_and(|error| error.contains("stored as 3inst 1, expected q4_0")));
    Ok(())
}

#[test]
fn trellis_weights_that_do_not_fit_are_named() {
    assert_eq!(trellis("trellis", |_| ()), Ok(()));
    let part = |name: &str| QUERY.replace("weight", name);
    let shape = trellis("trellis-shape", |tensors| {
        tensors.get_mut(&part("trellis")).unwrap().1 = vec![16, 8, 16];
        let suh = tensors[&part("suh")].clone();
        let svh = tensors.insert(part("svh"), suh).unwrap();
        tensors.insert(part("suh"), svh);
    });
    assert!(shape.unwrap_err().contains("expected shape [256, 128] by the configuration, found [128, 256]"));
    let bias = trellis("trellis-bias", |tensors| {
        let bias = tensors[&part("svh")].clone();
        tensors.insert(part("bias"), bias);
    });
    assert!(bias.unwrap_err().contains("`model.layers.3.self_attn.q_proj.bias` is not part of"));
    let twice = trellis("trellis-twice", |tensors| {
        let weight = read(&golden(MODEL)).remove(QUERY).unwrap();
        tensors.insert(QUERY.into(), weight);
    });
    assert!(twice.unwrap_err().contains("it has a part `weight`"));
    // All weights are the same before they are rotated, so that one is 128 times as large and all others 0.
    let large = trellis("trellis-large", |tensors| {
        for name in ["suh", "svh"] {
            tensors.get_mut(&part(name)).unwrap().2.as_chunks_mut().0.fill([0x00, 0x5c]);
        }
    });
    assert!(large.unwrap_err().contains("expected less than 65520 for F16"));
}

#[test]
fn a_device_without_kernels_for_a_format_is_named() {
    struct Few;
    impl tensor::Backend for Few {
        fn capabilities(&self) -> tensor::Capabilities {
            let description = "the test's device".into();
            tensor::Capabilities { description, weight_dtypes: vec![DType::Q4_0], ..ReferenceBackend.capabilities() }
        }
        fn load(
            &self,
            _: &tensor::Program,
            _: &dyn WeightSource,
            _: &tensor::LoadOptions,
        ) -> Result<Box<dyn tensor::Loaded>, tensor::BackendError> {
            unreachable!("the format is refused before")
        }
    }
    let error = Engine::load(&open(MODEL), &Few, &EngineOptions::default()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "tensor `model.embed_tokens.weight` is stored as bf16, which the test's device can't use; expected one of q4_0"
    );
}

#[test]
fn the_context_is_the_models_limit_where_that_is_less() {
    let engine = load(MODEL, EngineOptions::default());
    assert_eq!(engine.context(), 512);
    assert_eq!(engine.options().cache_dtype, DType::F32);
    assert!(engine.memory().caches > 0);
}
