//! What `evaluate --json` and `bench --json` have printed, as far as reports need it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// The measurements of one file.
pub(crate) enum Input {
    /// Of `evaluate`.
    Evaluation(Box<Evaluation>),
    /// Of `bench`.
    Bench(Box<Bench>),
}

/// What `evaluate` has found about a model.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Evaluation {
    /// The model, or the file where two have the same model.
    #[serde(skip)]
    pub(crate) label: String,
    /// The file without its ending.
    #[serde(skip)]
    file: String,
    pub(crate) model: Option<String>,
    pub(crate) against: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) file_bytes: Option<u64>,
    pub(crate) parameters: Option<u64>,
    pub(crate) text: BTreeMap<String, Text>,
    pub(crate) instructions: Option<Instructions>,
    pub(crate) choices: Option<Choices>,
    pub(crate) verdict: Option<Verdict>,
}

/// A text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Text {
    pub(crate) perplexity: Option<f64>,
    pub(crate) perplexity_error: Option<f64>,
    pub(crate) original_perplexity: Option<f64>,
    pub(crate) same_top: Option<f64>,
    pub(crate) kl: Option<Kl>,
    pub(crate) kl_along: Option<Along>,
}

/// KL divergences of a text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Kl {
    pub(crate) mean: Option<f64>,
    pub(crate) mean_error: Option<f64>,
    pub(crate) p99: Option<f64>,
}

/// KL divergences along a text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Along {
    pub(crate) predictions_per_point: usize,
    pub(crate) mean: Vec<f64>,
}

/// Answers to instructions.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Instructions {
    pub(crate) passed: usize,
    pub(crate) total: usize,
    pub(crate) bleu_of_expected_answers: Option<f64>,
    pub(crate) bleu_of_original_answers: Option<f64>,
    pub(crate) coherence: Coherence,
    pub(crate) original: Option<Box<Instructions>>,
}

/// How coherent these are.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Coherence {
    pub(crate) repetition: Option<f64>,
    pub(crate) distinct_2: Option<f64>,
    pub(crate) not_stopped: Option<f64>,
}

/// Multiple choice.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Choices {
    pub(crate) accuracy: Option<f64>,
    pub(crate) accuracy_normalized: Option<f64>,
    pub(crate) chance: Option<f64>,
    pub(crate) original: Option<Box<Choices>>,
}

/// What is kept of the original's quality.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Verdict {
    pub(crate) retained: Option<f64>,
    pub(crate) worst: Option<String>,
    pub(crate) scores: Vec<Score>,
}

/// One score of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Score {
    pub(crate) score: String,
    pub(crate) retained: Option<f64>,
    pub(crate) retained_error: Option<f64>,
}

/// What `bench` has found.
#[derive(Debug, Deserialize)]
pub(crate) struct Bench {
    pub(crate) model: String,
    #[serde(default)]
    pub(crate) device: Option<String>,
    #[serde(default)]
    pub(crate) precision: Option<String>,
    /// How it was measured; null where that was not told.
    #[serde(default)]
    pub(crate) settings: Value,
    pub(crate) parameters: u64,
    #[serde(default)]
    pub(crate) head_parameters: u64,
    pub(crate) weights_bytes_per_pass: u64,
    #[serde(default)]
    pub(crate) loads: Vec<Load>,
    pub(crate) results: Vec<Speed>,
    /// Long runs.
    #[serde(default)]
    pub(crate) stability: Vec<LongRun>,
}

/// A long run of decoding.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LongRun {
    pub(crate) threads: Option<usize>,
    pub(crate) trend: Option<Trend>,
    pub(crate) intervals: Vec<Interval>,
}

/// The straight line through its speeds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Trend {
    pub(crate) tokens_per_second_at_start: f64,
    pub(crate) tokens_per_second_per_minute: f64,
}

/// A part of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Interval {
    pub(crate) end_seconds: f64,
    pub(crate) tokens_per_second: f64,
    /// Temperatures by the name of the thermometer.
    pub(crate) celsius: BTreeMap<String, f64>,
    /// Mean power by the name of the counter.
    pub(crate) watts: BTreeMap<String, f64>,
}

/// A device with a number of threads.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Load {
    pub(crate) threads: Option<usize>,
    pub(crate) memory_read_bytes_per_second: Option<f64>,
    pub(crate) memory_copy_bytes_per_second: Option<f64>,
}

/// A timed case.
#[derive(Debug, Deserialize)]
pub(crate) struct Speed {
    pub(crate) test: String,
    pub(crate) tokens: u64,
    pub(crate) depth: u64,
    pub(crate) sequences: u64,
    pub(crate) threads: Option<usize>,
    pub(crate) tokens_per_second: Rate,
    #[serde(default)]
    pub(crate) share_of_memory_bandwidth: Option<f64>,
    /// By each counter that could tell.
    #[serde(default)]
    pub(crate) energy: Vec<Energy>,
}

/// Energy by one counter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Energy {
    pub(crate) counter: String,
    pub(crate) joules_per_token: f64,
    pub(crate) watts: f64,
}

/// Tokens per second.
#[derive(Debug, Deserialize)]
pub(crate) struct Rate {
    pub(crate) median: f64,
    pub(crate) slowest: f64,
    pub(crate) fastest: f64,
}

impl Input {
    /// What a file of that name holds.
    ///
    /// # Errors
    /// Something else.
    pub(crate) fn new(file: &str, value: Value) -> Result<Input> {
        const EXPECTED: &str = "expected what `lapidary evaluate --json` or `lapidary bench --json` prints";
        let has = |key: &str| value.get(key).is_some();
        if has("results") && has("weights_bytes_per_pass") {
            return Ok(Input::Bench(serde_json::from_value(value).context(EXPECTED)?));
        }
        if !["text", "instructions", "choices"].into_iter().any(has) {
            let keys = value.as_object().map(|object| object.keys().take(8).cloned().collect::<Vec<_>>().join("`, `"));
            bail!("{EXPECTED}, found {}", keys.map_or("no object".into(), |keys| format!("an object with `{keys}`")));
        }
        let mut found: Evaluation = serde_json::from_value(value).context(EXPECTED)?;
        found.file = file.into();
        found.label = found.model.clone().unwrap_or_else(|| file.into());
        Ok(Input::Evaluation(Box::new(found)))
    }
}

impl Evaluation {
    /// Bits of its files per parameter.
    pub(crate) fn bits_per_weight(&self) -> Option<f64> {
        Some(8.0 * self.file_bytes? as f64 / self.parameters? as f64)
    }
}

/// The evaluations.
pub(crate) fn evaluations(inputs: &[Input]) -> impl Iterator<Item = &Evaluation> + Clone {
    inputs.iter().filter_map(|input| match input {
        Input::Evaluation(found) => Some(&**found),
        Input::Bench(_) => None,
    })
}

/// The timings.
pub(crate) fn benches(inputs: &[Input]) -> impl Iterator<Item = &Bench> + Clone {
    inputs.iter().filter_map(|input| match input {
        Input::Bench(found) => Some(&**found),
        Input::Evaluation(_) => None,
    })
}

/// Calls evaluations of models of one name by their files.
pub(crate) fn name_apart(inputs: &mut [Input]) {
    let labels: Vec<String> = evaluations(inputs).map(|one| one.label.clone()).collect();
    for input in inputs {
        if let Input::Evaluation(one) = input
            && labels.iter().filter(|label| **label == one.label).count() > 1
        {
            one.label.clone_from(&one.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_are_told_apart_and_names_too() {
        let evaluation = |file: &str| Input::new(file, json!({ "model": "m", "text": {}, "file_bytes": 10 })).unwrap();
        let bench = json!({ "model": "m", "parameters": 5, "weights_bytes_per_pass": 4, "results": [] });
        let mut inputs = [evaluation("a"), evaluation("b"), Input::new("c", bench).unwrap()];
        name_apart(&mut inputs);
        assert_eq!(evaluations(&inputs).map(|one| one.label.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(benches(&inputs).count(), 1);
        let error = Input::new("d", json!({ "x": 1 })).err().unwrap().to_string();
        assert!(error.contains("evaluate --json") && error.contains("an object with `x`"), "{error}");
        assert!(Input::new("d", json!([])).err().unwrap().to_string().contains("found no object"));
        assert!(Input::new("d", json!({ "text": 4 })).is_err());
    }
}
