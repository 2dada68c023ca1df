//! What `bench` says.

use std::time::Duration;

use model::{Config, Role};
use serde_json::{Value, json};
use tensor::DType;

use super::Stored;
use super::measure::{Case, Measurement, Timing};
use crate::{output, resident};

/// Everything that was measured.
pub(super) struct Report {
    model: String,
    config: Config,
    /// Bytes of weights that one pass reads.
    pass_bytes: u64,
    weights_bytes: u64,
    device: String,
    loads: Vec<Load>,
    lines: Vec<Line>,
}

/// The machine with a number of threads, and the model in its memory.
struct Load {
    threads: usize,
    /// Bytes per second.
    bandwidth: f64,
    time: Duration,
}

struct Line {
    threads: usize,
    timing: Timing,
    /// Bytes per second of one pass after the other; for decode.
    rate: Option<f64>,
    /// Of the bandwidth.
    share: Option<f64>,
}

impl Line {
    /// Tokens per second: of the median run, the slowest and the fastest.
    fn rates(&self) -> [f64; 3] {
        let mut seconds = self.timing.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let (low, high) = (seconds[(seconds.len() - 1) / 2], seconds[seconds.len() / 2]);
        let tokens = self.timing.case.tokens as f64;
        [2.0 * tokens / (low + high), tokens / seconds[seconds.len() - 1], tokens / seconds[0]]
    }
}

impl Report {
    /// A report about a model on a device.
    pub(super) fn new(model: String, config: &Config, stored: &[Stored], device: String) -> Report {
        let bytes = |(entry, dtype): &Stored| dtype.tensor_bytes(entry.rows, entry.columns).unwrap_or(0) as u64;
        let weights_bytes = stored.iter().map(bytes).sum();
        // Of an embedding that is not the head too, a pass reads a few rows.
        let is_read = |(entry, _): &&Stored| entry.role != Role::Embedding || config.tied_embeddings;
        let pass_bytes = stored.iter().filter(is_read).map(bytes).sum();
        let (loads, lines) = (Vec::new(), Vec::new());
        Report { model, config: config.clone(), pass_bytes, weights_bytes, device, loads, lines }
    }

    /// The model was loaded for a number of threads.
    pub(super) fn loaded(&mut self, threads: usize, bandwidth: f64, time: Duration) {
        self.loads.push(Load { threads, bandwidth, time });
    }

    /// A case was measured.
    pub(super) fn add(&mut self, threads: usize, timing: Timing, cache: DType) {
        let mut line = Line { threads, timing, rate: None, share: None };
        if line.timing.case.measurement == Measurement::Decode {
            let bytes = self.pass_bytes + self.cache_bytes(line.timing.case, cache);
            let rate = bytes as f64 * line.rates()[0];
            let load = self.loads.iter().find(|load| load.threads == threads);
            line.rate = Some(rate);
            line.share = load.map(|load| rate / load.bandwidth);
        }
        self.lines.push(line);
    }

    /// Bytes of keys and values that the pass in the middle of a decode reads.
    fn cache_bytes(&self, case: Case, cache: DType) -> u64 {
        let positions = case.depth + 1 + case.tokens / 2;
        let row = 2 * cache.row_bytes(self.config.kv_width()).unwrap_or(0);
        let seen = |kind: &model::LayerKind| kind.window().map_or(positions, |window| window.min(positions));
        self.config.layers.iter().map(|kind| (seen(kind) * row) as u64).sum()
    }

    /// What is said before the results of a number of threads.
    pub(super) fn heading(&self) -> String {
        let Some(load) = self.loads.last() else { return String::new() };
        format!(
            "{}: {} parameters, {} of weights; {}\n{} threads: loaded in {:.2} s, memory reads at {:.1} GB/s",
            self.model,
            output::count(self.config.parameters()),
            output::bytes(self.weights_bytes),
            self.device,
            load.threads,
            load.time.as_secs_f64(),
            load.bandwidth / 1e9
        )
    }

    /// The newest result.
    pub(super) fn last_line(&self) -> String {
        let Some(line) = self.lines.last() else { return String::new() };
        let Timing { case, hash, .. } = &line.timing;
        let [median, slowest, fastest] = line.rates();
        let name = match case.measurement {
            Measurement::Prefill => "prefill",
            Measurement::Decode => "decode",
        };
        let mut text = format!(
            "{name:<7} {:>5} at {:>5} · {} threads · {median:8.2} tokens/s ({slowest:.2} – {fastest:.2})",
            case.tokens, case.depth, line.threads
        );
        if let (Some(rate), Some(share)) = (line.rate, line.share) {
            text += &format!(" · {:5.1} GB/s, {:.0} % of the memory's", rate / 1e9, share * 100.0);
        }
        text += &match hash {
            Some(hash) => format!(" · tokens {hash:016x}\n"),
            None => " · tokens differ between runs\n".into(),
        };
        text
    }

    /// All of it for programs.
    pub(super) fn json(&self) -> Value {
        let loads = self.loads.iter().map(|load| {
            json!({
                "threads": load.threads,
                "load_seconds": load.time.as_secs_f64(),
                "memory_read_bytes_per_second": load.bandwidth,
            })
        });
        json!({
            "model": self.model,
            "device": self.device,
            "parameters": self.config.parameters(),
            "weights_bytes": self.weights_bytes,
            "weights_bytes_per_pass": self.pass_bytes,
            "peak_resident_bytes": resident::peak(),
            "loads": loads.collect::<Vec<_>>(),
            "results": self.lines.iter().map(line_json).collect::<Vec<_>>(),
        })
    }
}

fn line_json(line: &Line) -> Value {
    let Timing { case, seconds, hash } = &line.timing;
    let [median, slowest, fastest] = line.rates();
    json!({
        "test": match case.measurement {
            Measurement::Prefill => "prefill",
            Measurement::Decode => "decode",
        },
        "tokens": case.tokens,
        "depth": case.depth,
        "threads": line.threads,
        "tokens_per_second": { "median": median, "slowest": slowest, "fastest": fastest },
        "seconds": seconds,
        "bytes_per_second": line.rate,
        "share_of_memory_bandwidth": line.share,
        "tokens_hash": hash.map(|hash| format!("{hash:016x}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seconds: &[f64]) -> Line {
        let case = Case { depth: 0, measurement: Measurement::Decode, tokens: 10 };
        Line { threads: 1, timing: Timing { case, seconds: seconds.to_vec(), hash: Some(1) }, rate: None, share: None }
    }

    #[test]
    fn rates_are_of_the_median_run() {
        assert_eq!(line(&[5.0, 1.0, 2.0]).rates(), [5.0, 2.0, 10.0]);
        assert_eq!(line(&[1.0, 3.0]).rates(), [5.0, 10.0 / 3.0, 10.0]);
    }

    #[test]
    fn a_decode_reads_the_weights_and_what_it_sees_of_the_caches() {
        let config = Config::shape("1b").unwrap();
        let mut report = Report::new("x".into(), &config, &[], "y".into());
        report.loaded(1, 1e9, Duration::ZERO);
        let case = Case { depth: 4095, measurement: Measurement::Decode, tokens: 0 };
        // 22 local layers of 512 positions and 4 global ones of 4096; keys and values of 256 in f16.
        assert_eq!(report.cache_bytes(case, DType::F16), (22 * 512 + 4 * 4096) * 2 * 256 * 2);
        report.add(1, line(&[1.0]).timing, DType::F16);
        assert_eq!(report.lines[0].rate.map(|rate| rate / 1e9), report.lines[0].share);
        assert!(report.last_line().contains("10.00 tokens/s") && report.json()["results"][0]["threads"] == 1);
    }
}
