//! Any text as `config.json`: an error, or a model whose heads share the keys evenly.
#![no_main]

use libfuzzer_sys::fuzz_target;
use model::Config;

fuzz_target!(|text: &str| {
    let Ok(config) = Config::from_config_json(text) else { return };
    assert!(config.query_width().is_multiple_of(config.kv_width()));
    assert!(config.query_scale().is_finite() && config.embedding_scale().is_finite());
});
