//! Configurations as people's files have them.

use model::{Config, ConfigError, GgufValue, LayerKind, Rope};

/// What the first release on the hub had for the 4B, all else being the class's defaults.
const HUB_4B: &str = r#"{
  "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
  "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
  "model_type": "gemma3",
  "text_config": { "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
    "num_hidden_layers": 34, "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024 },
  "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
  "vision_config": { "hidden_size": 1152, "image_size": 896, "patch_size": 14 } }"#;

const HUB_27B: &str = r#"{
  "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106], "model_type": "gemma3",
  "text_config": { "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32,
    "num_hidden_layers": 62, "num_key_value_heads": 16, "query_pre_attn_scalar": 168,
    "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024 } }"#;

/// A text model of the first release, everything spelled out.
const HUB_1B: &str = r#"{
  "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
  "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
  "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
  "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
  "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": null,
  "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144 }"#;

/// As version 5 of transformers writes it.
fn version_5() -> String {
    let types: Vec<_> =
        (1..=7).map(|layer| if layer % 3 == 0 { "full_attention" } else { "sliding_attention" }).collect();
    format!(
        r#"{{ "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 7,
        "layer_types": {types:?}, "sliding_window": 16, "tie_word_embeddings": false, "eos_token_id": 1,
        "use_bidirectional_attention": false, "rope_parameters": {{
          "full_attention": {{ "rope_theta": 500000.0, "rope_type": "linear", "factor": 4.0 }},
          "sliding_attention": {{ "rope_theta": 20000.0, "rope_type": "default" }} }} }}"#
    )
}

#[test]
fn hub_files_give_the_published_shapes() {
    for (json, shape) in [(HUB_1B, "1b"), (HUB_4B, "4b"), (HUB_27B, "27b")] {
        assert_eq!(Config::from_config_json(json).unwrap(), Config::shape(shape).unwrap(), "{shape}");
    }
}

#[test]
fn files_of_transformers_5_are_read() {
    let config = Config::from_config_json(&version_5()).unwrap();
    assert_eq!(config.global_rope, Rope { base: 500_000.0, divisor: 4.0 });
    assert_eq!(config.local_rope, Rope { base: 20_000.0, divisor: 1.0 });
    let global: Vec<_> = (0..7).filter(|&layer| config.layers[layer] == LayerKind::Global).collect();
    assert_eq!(global, [2, 5]);
    assert!(!config.tied_embeddings);
    assert_eq!(config.stop_tokens, [1]);
}

#[test]
fn a_flat_rope_parameters_is_that_of_global_layers() {
    let json = HUB_1B.replace(
        r#""rope_theta": 1000000"#,
        r#""rope_parameters": {"rope_theta": 5e5, "factor": 2, "rope_type": "linear"}"#,
    );
    let config = Config::from_config_json(&json).unwrap();
    assert_eq!(config.global_rope, Rope { base: 5e5, divisor: 2.0 });
    assert_eq!(config.local_rope, Rope { base: 1e4, divisor: 1.0 });
}

#[test]
fn other_architectures_are_named() {
    for (name, json) in [
        ("Qwen3ForCausalLM", HUB_1B.replace("Gemma3ForCausalLM", "Qwen3ForCausalLM")),
        ("Gemma3TextModel", HUB_1B.replace("Gemma3ForCausalLM", "Gemma3TextModel")),
        ("llama", r#"{"model_type": "llama"}"#.into()),
    ] {
        let error = Config::from_config_json(&json).unwrap_err();
        assert!(matches!(&error, ConfigError::Architecture { found } if found == name), "{error}");
    }
    assert!(matches!(Config::from_config_json("{}").unwrap_err(), ConfigError::Missing { .. }));
}

#[test]
fn weights_of_exllamav3_are_no_obstacle_and_others_are() {
    let with = |method: &str, nested: bool| {
        let config = format!(r#""quantization_config": {{"quant_method": {method}, "bits": 2.5}}"#);
        let json = if nested {
            format!(r#"{{"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {HUB_1B}, {config}}}"#)
        } else {
            HUB_1B.replacen('{', &format!("{{{config},"), 1)
        };
        Config::from_config_json(&json)
    };
    for nested in [false, true] {
        assert_eq!(with("\"exl3\"", nested).unwrap(), Config::from_config_json(HUB_1B).unwrap());
        let error = with("\"gptq\"", nested).unwrap_err().to_string();
        assert!(error.contains("`quant_method`") && error.contains("`exl3`") && error.contains("gptq"), "{error}");
        assert!(with("null", nested).is_err());
    }
}

/// Every field with values that it must refuse; the message names the field.
#[test]
fn absurd_values_are_refused() {
    let huge = (1u64 << 60).to_string();
    let cases = [
        ("hidden_size", "1152", vec!["0", "-1", huge.as_str(), "1.5", "\"1152\"", "18446744073709551615", "[]"]),
        ("intermediate_size", "6912", vec!["0", "-6912", huge.as_str()]),
        ("num_hidden_layers", "26", vec!["0", huge.as_str(), "1e30"]),
        ("num_attention_heads", "4", vec!["0", huge.as_str()]),
        ("num_key_value_heads", "1", vec!["0", huge.as_str()]),
        ("head_dim", "256", vec!["0", "7", huge.as_str()]),
        ("vocab_size", "262144", vec!["0", "1", huge.as_str()]),
        ("max_position_embeddings", "32768", vec!["0", huge.as_str()]),
        ("sliding_window", "512", vec!["0", huge.as_str()]),
        ("sliding_window_pattern", "6", vec!["0", "-1"]),
        ("query_pre_attn_scalar", "256", vec!["0", "-256", "1e300"]),
        ("rms_norm_eps", "1e-06", vec!["0", "-1e-6", "1"]),
        ("rope_theta", "1000000", vec!["0", "-1", "1e300"]),
        ("rope_local_base_freq", "10000", vec!["0", "\"x\""]),
        ("eos_token_id", "[1, 106]", vec!["-1", "[1, 1e9]", "\"1\"", huge.as_str()]),
        ("attn_logit_softcapping", "null", vec!["50.0"]),
        ("final_logit_softcapping", "null", vec!["30.0"]),
        ("attention_bias", "false", vec!["true", "1"]),
        ("hidden_activation", "\"gelu_pytorch_tanh\"", vec!["\"silu\""]),
    ];
    for (field, value, bad) in cases {
        for bad in bad {
            let (from, to) = (format!("\"{field}\": {value}"), format!("\"{field}\": {bad}"));
            assert!(HUB_1B.contains(&from), "{from}");
            let error = Config::from_config_json(&HUB_1B.replace(&from, &to)).unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{field}`")), "{to}: {error}");
        }
    }
    let heads = HUB_27B.replace("\"num_key_value_heads\": 16", "\"num_key_value_heads\": 12");
    let error = Config::from_config_json(&heads).unwrap_err().to_string();
    assert!(error.contains("`num_attention_heads`") && error.contains("12"), "{error}");
    let rope = HUB_4B.replace("linear", "yarn");
    assert!(Config::from_config_json(&rope).unwrap_err().to_string().contains("yarn"));
    let layers = version_5().replace("\"num_hidden_layers\": 7", "\"num_hidden_layers\": 8");
    assert!(Config::from_config_json(&layers).unwrap_err().to_string().contains("`layer_types`"));
}

#[test]
fn broken_json_is_an_error() {
    let deep = "[".repeat(1 << 20);
    for text in
        ["", "{", "null", "[]", &deep, "{\"architectures\": 3}", "{\"text_config\": 3, \"model_type\": \"gemma3\"}"]
    {
        assert!(Config::from_config_json(text).is_err(), "{}", &text[..text.len().min(40)]);
    }
}

/// The metadata of the GGUF file of a shape, as `to_gguf` has it, with changes.
fn gguf(config: &Config, changes: &[(&str, Option<GgufValue>)]) -> Result<Config, ConfigError> {
    let mut keys: Vec<(String, GgufValue)> =
        config.to_gguf()?.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    for (key, value) in changes {
        keys.retain(|(other, _)| other != key);
        keys.extend(value.clone().map(|value| (key.to_string(), value)));
    }
    let lookup = |key: &str| keys.iter().find(|(other, _)| other == key).map(|(_, value)| value.clone());
    Config::from_gguf(&lookup, config.vocabulary, config.tied_embeddings)
}

#[test]
fn gguf_metadata_comes_back_as_the_same_config() {
    for name in ["270m", "1b", "4b", "12b", "27b"] {
        let config = Config { stop_tokens: vec![], ..Config::shape(name).unwrap() };
        assert_eq!(gguf(&config, &[]).unwrap(), config, "{name}");
        assert_eq!(config.gguf_query_norm_factor(), 1.0, "{name}");
    }
    let odd = Config::from_config_json(&version_5()).unwrap();
    let odd = Config { stop_tokens: vec![], ..odd };
    assert_eq!(gguf(&odd, &[]).unwrap(), odd);
}

#[test]
fn another_query_scale_moves_into_the_query_norm() {
    let config = Config { query_pre_attn_scalar: 96.0, head_dim: 128, ..Config::shape("270m").unwrap() };
    let read = gguf(&config, &[]).unwrap();
    assert_eq!(read.query_pre_attn_scalar, 128.0);
    let product = config.gguf_query_norm_factor() * read.query_scale();
    assert!((product / config.query_scale() - 1.0).abs() < 1e-6);
}

#[test]
fn gguf_defaults_and_tokens() {
    let config = Config::shape("1b").unwrap();
    let read = gguf(
        &config,
        &[
            ("gemma3.rope.freq_base_swa", None),
            ("gemma3.rope.freq_base", None),
            ("tokenizer.ggml.eos_token_id", Some(GgufValue::Unsigned(1))),
            ("tokenizer.ggml.eot_token_id", Some(GgufValue::Unsigned(106))),
        ],
    );
    assert_eq!(read.unwrap(), config);
}

#[test]
fn bad_gguf_metadata_is_refused_by_key() {
    let config = Config::shape("1b").unwrap();
    for (key, value) in [
        ("gemma3.block_count", Some(GgufValue::Unsigned(0))),
        ("gemma3.block_count", None),
        ("gemma3.embedding_length", Some(GgufValue::Unsigned(u64::MAX))),
        ("gemma3.attention.head_count", Some(GgufValue::Signed(-4))),
        ("gemma3.attention.head_count", Some(GgufValue::Array(vec![GgufValue::Unsigned(4), GgufValue::Unsigned(8)]))),
        ("gemma3.attention.head_count_kv", Some(GgufValue::Unsigned(0))),
        ("gemma3.attention.key_length", Some(GgufValue::Text("256".into()))),
        ("gemma3.attention.value_length", Some(GgufValue::Unsigned(128))),
        ("gemma3.attention.layer_norm_rms_epsilon", Some(GgufValue::Float(f64::NAN))),
        ("gemma3.attention.sliding_window_pattern", Some(GgufValue::Array(vec![]))),
        ("gemma3.rope.freq_base", Some(GgufValue::Float(f64::INFINITY))),
        ("gemma3.rope.scaling.type", Some(GgufValue::Text("yarn".into()))),
        ("gemma3.final_logit_softcapping", Some(GgufValue::Float(30.0))),
    ] {
        let error = gguf(&config, &[(key, value)]).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")), "{error}");
    }
    let other = gguf(&config, &[("general.architecture", Some(GgufValue::Text("llama".into())))]).unwrap_err();
    assert!(other.to_string().contains("`llama`"), "{other}");
}
