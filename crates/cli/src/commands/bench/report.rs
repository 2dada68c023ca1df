//! What `bench` says.

use std::time::Duration;

use backend_vulkan::DeviceInfo;
use model::{Config, Role};
use serde_json::{Value, json};
use tensor::{DType, MemoryUse, Precision};

use super::Stored;
use super::measure::{Case, FIRST_TOKEN_PROMPT, Measurement, Timing};
use super::stability::Stability;
use super::trace::Trace;
use crate::devices::Device;
use crate::sensors::{CounterInfo, Sensors};
use crate::{output, resident};

/// Everything that was measured.
pub(super) struct Report {
    model: String,
    config: Config,
    /// Bytes of weights that one pass reads.
    pass_bytes: u64,
    weights_bytes: u64,
    precision: Precision,
    /// What was asked for, for who compares.
    settings: Value,
    loads: Vec<Load>,
    lines: Vec<Line>,
    /// Long runs, each with the index of its load.
    long_runs: Vec<(usize, Stability)>,
}

/// A device.
pub(super) struct Place {
    device: String,
    /// Name and version; for GPUs.
    driver: Option<String>,
    /// For the CPU.
    threads: Option<usize>,
    /// Bytes per second; `None` if the device does not tell.
    bandwidth: Option<f64>,
    /// How long loading took.
    time: Duration,
}

impl Place {
    /// Where a model was loaded in some time.
    pub(super) fn of(device: &dyn Device, threads: usize, bandwidth: Option<f64>, time: Duration) -> Place {
        match device.gpu() {
            Some(DeviceInfo { features, .. }) => {
                let driver = Some(features.driver.clone());
                Place { device: features.name.clone(), driver, threads: None, bandwidth, time }
            }
            None => {
                let device = device.capabilities().description;
                Place { device, driver: None, threads: Some(threads), bandwidth, time }
            }
        }
    }

    /// Whether it is a GPU, to which threads mean nothing.
    pub(super) fn is_gpu(&self) -> bool {
        self.threads.is_none()
    }

    /// Where something ran: ` · 2 threads`.
    fn threads_text(&self) -> String {
        self.threads.map(|threads| format!(" · {threads} threads")).unwrap_or_default()
    }
}

/// The model in a device's memory.
struct Load {
    place: Place,
    memory: MemoryUse,
    /// Seconds from a short prompt to the first token.
    first_token: Vec<f64>,
    /// What the device did, if it tells.
    trace: Trace,
    /// What counts energy.
    counters: Vec<CounterInfo>,
    /// Why nothing does, or why not more.
    no_counter: Vec<String>,
}

struct Line {
    /// Index into the loads.
    load: usize,
    timing: Timing,
    /// Bytes per second of one pass after the other; for decode.
    rate: Option<f64>,
    /// Of the bandwidth.
    share: Option<f64>,
}

/// The median, the least and the most.
pub(super) fn spread(values: &[f64]) -> [f64; 3] {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    [(low + high) / 2.0, values[0], values[values.len() - 1]]
}

impl Line {
    /// Tokens per second: of the median run, the slowest and the fastest.
    fn rates(&self) -> [f64; 3] {
        let [median, least, most] = spread(&self.timing.seconds);
        [median, most, least].map(|seconds| self.timing.case.all_tokens() as f64 / seconds)
    }
}

impl Report {
    /// A report about a model.
    pub(super) fn new(model: String, config: &Config, stored: &[Stored], precision: Precision) -> Report {
        let bytes = |(entry, format): &Stored| format.tensor_bytes(entry.rows, entry.columns).unwrap_or(0) as u64;
        let weights_bytes = stored.iter().map(bytes).sum();
        // Of an embedding that is not the head too, a pass reads a few rows.
        let is_read = |(entry, _): &&Stored| entry.role != Role::Embedding || config.tied_embeddings;
        let pass_bytes = stored.iter().filter(is_read).map(bytes).sum();
        let (settings, config) = (Value::Null, config.clone());
        let (loads, lines, long_runs) = (Vec::new(), Vec::new(), Vec::new());
        Report { model, config, pass_bytes, weights_bytes, precision, settings, loads, lines, long_runs }
    }

    /// How it is measured, apart from the cases themselves.
    pub(super) fn with_settings(self, settings: Value) -> Report {
        Report { settings, ..self }
    }

    /// The model was loaded somewhere.
    pub(super) fn loaded(&mut self, place: Place, memory: MemoryUse, sensors: &Sensors) {
        let (counters, no_counter) = (sensors.list(), sensors.missing().to_vec());
        self.loads.push(Load { place, memory, first_token: Vec::new(), trace: Trace::default(), counters, no_counter });
    }

    /// Short prompts were answered, in so many seconds each.
    pub(super) fn first_token(&mut self, seconds: Vec<f64>) {
        if let Some(load) = self.loads.last_mut() {
            load.first_token = seconds;
        }
    }

    /// The device told what it did.
    pub(super) fn traced(&mut self, trace: Trace) {
        if let Some(load) = self.loads.last_mut() {
            load.trace = trace;
        }
    }

    /// What the device did.
    pub(super) fn tables(&self) -> String {
        self.loads.last().map(|load| load.trace.tables(load.place.bandwidth)).unwrap_or_default()
    }

    /// A case was measured.
    pub(super) fn add(&mut self, timing: Timing, cache: DType) {
        let load = self.loads.len() - 1;
        let mut line = Line { load, timing, rate: None, share: None };
        let case = line.timing.case;
        if case.measurement == Measurement::Decode {
            let rate = self.read_rate(case, cache, line.rates()[0]);
            line.rate = Some(rate);
            line.share = self.loads[load].place.bandwidth.map(|bandwidth| rate / bandwidth);
        }
        self.lines.push(line);
    }

    /// Bytes of weights and caches that are read in a second of decoding so many tokens of all sequences.
    fn read_rate(&self, case: Case, cache: DType, tokens_per_second: f64) -> f64 {
        let bytes = self.pass_bytes + case.sequences as u64 * self.cache_bytes(case, cache);
        bytes as f64 * tokens_per_second / case.sequences as f64
    }

    /// A long run was made; what it says is returned.
    pub(super) fn add_long_run(&mut self, run: Stability, cache: DType) -> String {
        let load = self.loads.len() - 1;
        let mut text = run.summary();
        if let Some([median, ..]) = run.rates() {
            let rate = self.read_rate(run.case, cache, median);
            let share = self.loads[load].place.bandwidth.map(|bandwidth| 100.0 * rate / bandwidth);
            let share = share.map(|share| format!(", {share:.0} % of the memory's")).unwrap_or_default();
            text += &format!("reads {:.1} GB/s{share}\n", rate / 1e9);
        }
        self.long_runs.push((load, run));
        text
    }

    /// That some case was too short for all counters, if so.
    pub(super) fn too_short_for_energy(&self) -> Option<String> {
        let load = self.loads.last()?;
        let needed = load.counters.iter().min_by_key(|counter| counter.shortest)?;
        let here = self.lines.iter().filter(|line| line.load + 1 == self.loads.len());
        here.into_iter().any(|line| line.timing.energy.is_empty()).then(|| {
            format!(
                "energy: not measured where a run is shorter than {} s ({}): more tokens, or --minutes",
                needed.shortest.as_secs_f64(),
                needed.name
            )
        })
    }

    /// Bytes of keys and values that the pass in the middle of a decode reads.
    fn cache_bytes(&self, case: Case, cache: DType) -> u64 {
        let positions = case.depth + 1 + case.tokens / 2;
        let row = 2 * cache.row_bytes(self.config.kv_width()).unwrap_or(0);
        let seen = |kind: &model::LayerKind| kind.window().map_or(positions, |window| window.min(positions));
        self.config.layers.iter().map(|kind| (seen(kind) * row) as u64).sum()
    }

    /// What is said before the results of a device.
    pub(super) fn heading(&self) -> String {
        let Some(Load { place, memory, counters, no_counter, .. }) = self.loads.last() else { return String::new() };
        let on = match (&place.driver, place.threads) {
            (Some(driver), _) => format!("driver {driver}"),
            (None, threads) => format!("{} threads", threads.unwrap_or(1)),
        };
        let rate = match (place.bandwidth, place.threads) {
            (Some(rate), Some(_)) => format!("memory reads at {:.1} GB/s", rate / 1e9),
            (Some(rate), None) => format!("memory copies at {:.1} GB/s", rate / 1e9),
            (None, _) => "the memory's speed is not known".into(),
        };
        let energy = match counters.is_empty() {
            true => format!("\nenergy: not measured: {}", no_counter.join("; ")),
            false => String::new(),
        };
        format!(
            "{}: {} parameters, {} of weights; {}\n{on}: loaded in {:.2} s, {} in use, {rate}{energy}",
            self.model,
            output::count(self.config.parameters()),
            output::bytes(self.weights_bytes),
            place.device,
            place.time.as_secs_f64(),
            output::bytes(memory.weights + memory.caches + memory.scratch),
        )
    }

    /// How long the first token takes.
    pub(super) fn last_first_token(&self) -> String {
        let Some(load) = self.loads.last() else { return String::new() };
        let [median, fastest, slowest] = spread(&load.first_token).map(|seconds| seconds * 1e3);
        let threads = load.place.threads_text();
        let times = format!("{median:.1} ms ({fastest:.1} – {slowest:.1})");
        format!("first token after {FIRST_TOKEN_PROMPT} of a prompt{threads} · {times}\n")
    }

    /// The newest result.
    pub(super) fn last_line(&self) -> String {
        let Some(line) = self.lines.last() else { return String::new() };
        let Timing { case, hash, latency, energy, .. } = &line.timing;
        let [median, slowest, fastest] = line.rates();
        let sequences = match case.sequences {
            1 => String::new(),
            sequences => format!(" · {sequences} sequences"),
        };
        let mut text = format!(
            "{:<7} {:>5} at {:>5}{}{sequences} · {median:8.2} tokens/s ({slowest:.2} – {fastest:.2})",
            case.measurement.name(),
            case.tokens,
            case.depth,
            self.loads[line.load].place.threads_text()
        );
        if let Some(rate) = line.rate {
            text += &format!(" · {:5.1} GB/s", rate / 1e9);
        }
        if let Some(share) = line.share {
            text += &format!(", {:.0} % of the memory's", share * 100.0);
        }
        text += &match hash {
            Some(hash) => format!(" · tokens {hash:016x}\n"),
            None => " · tokens differ between runs\n".into(),
        };
        if case.measurement == Measurement::Decode {
            text += &latency.line();
        }
        let tokens = line.timing.tokens();
        text + &energy.iter().map(|one| format!("        energy {}\n", one.per_token(tokens))).collect::<String>()
    }

    /// All of it for programs.
    pub(super) fn json(&self) -> Value {
        let first = self.loads.first().map(|load| &load.place);
        let long_runs = self.long_runs.iter().map(|(load, run)| (self.loads[*load].place.threads, run));
        let long_results = long_runs.clone().filter_map(|(threads, run)| run.result_json(threads));
        json!({
            "model": self.model,
            "device": first.map(|place| place.device.as_str()),
            "driver": first.and_then(|place| place.driver.as_deref()),
            "precision": match self.precision {
                Precision::Fast => "fast",
                Precision::F32 => "f32",
            },
            "settings": self.settings,
            "parameters": self.config.parameters(),
            "head_parameters": self.config.vocabulary as u64 * self.config.hidden as u64,
            "weights_bytes": self.weights_bytes,
            "weights_bytes_per_pass": self.pass_bytes,
            "peak_resident_bytes": resident::peak(),
            "loads": self.loads.iter().map(load_json).collect::<Vec<_>>(),
            "results": self.lines.iter().map(|line| self.line_json(line)).chain(long_results).collect::<Vec<_>>(),
            "stability": long_runs.map(|(threads, run)| run.json(threads)).collect::<Vec<_>>(),
        })
    }

    fn line_json(&self, line: &Line) -> Value {
        let Timing { case, seconds, hash, latency, energy } = &line.timing;
        let tokens = line.timing.tokens();
        let [median, slowest, fastest] = line.rates();
        json!({
            "test": case.measurement.name(),
            "tokens": case.tokens,
            "depth": case.depth,
            "sequences": case.sequences,
            "threads": self.loads[line.load].place.threads,
            "tokens_per_second": { "median": median, "slowest": slowest, "fastest": fastest },
            "seconds": seconds,
            "bytes_per_second": line.rate,
            "share_of_memory_bandwidth": line.share,
            "latency": (case.measurement == Measurement::Decode).then(|| latency.json()),
            "energy": energy.iter().map(|one| one.json(tokens)).collect::<Vec<_>>(),
            "tokens_hash": hash.map(|hash| format!("{hash:016x}")),
        })
    }
}

fn load_json(load: &Load) -> Value {
    let Load { place, memory, first_token, trace, counters, no_counter } = load;
    let gpu = place.is_gpu();
    let counters =
        counters.iter().map(|one| json!({ "name": one.name, "shortest_run_seconds": one.shortest.as_secs_f64() }));
    json!({
        "threads": place.threads,
        "load_seconds": place.time.as_secs_f64(),
        "memory_read_bytes_per_second": place.bandwidth.filter(|_| !gpu),
        "memory_copy_bytes_per_second": place.bandwidth.filter(|_| gpu),
        "memory_use": {
            "weights_bytes": memory.weights,
            "caches_bytes": memory.caches,
            "scratch_bytes": memory.scratch,
        },
        "energy_counters": counters.collect::<Vec<_>>(),
        "energy_not_measured": no_counter,
        "device_work": trace.json(place.bandwidth),
        "first_token": { "prompt_tokens": FIRST_TOKEN_PROMPT, "seconds": first_token },
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::latency::Latency;
    use super::*;

    const CASE: Case = Case { depth: 0, measurement: Measurement::Decode, tokens: 10, sequences: 1 };

    fn timing(case: Case, seconds: &[f64]) -> Timing {
        Timing { case, seconds: seconds.to_vec(), hash: Some(1), latency: Latency::default(), energy: Vec::new() }
    }

    fn line(seconds: &[f64]) -> Line {
        Line { load: 0, timing: timing(CASE, seconds), rate: None, share: None }
    }

    fn report() -> Report {
        let config = Config::shape("1b").unwrap();
        let mut report = Report::new("x".into(), &config, &[], Precision::Fast);
        let time = Duration::ZERO;
        let place = Place { device: "y".into(), driver: None, threads: Some(1), bandwidth: Some(1e9), time };
        report.loaded(place, MemoryUse::default(), &Sensors::find(Path::new("nowhere"), None));
        report
    }

    #[test]
    fn rates_are_of_the_median_run() {
        assert_eq!(line(&[5.0, 1.0, 2.0]).rates(), [5.0, 2.0, 10.0]);
        assert_eq!(line(&[1.0, 3.0]).rates(), [5.0, 10.0 / 3.0, 10.0]);
    }

    #[test]
    fn a_decode_reads_the_weights_and_what_it_sees_of_the_caches() {
        let mut report = report();
        let case = Case { depth: 4095, tokens: 0, ..CASE };
        // 22 local layers of 512 positions and 4 global ones of 4096; keys and values of 256 in f16.
        assert_eq!(report.cache_bytes(case, DType::F16), (22 * 512 + 4 * 4096) * 2 * 256 * 2);
        report.add(timing(CASE, &[1.0]), DType::F16);
        assert_eq!(report.lines[0].rate.map(|rate| rate / 1e9), report.lines[0].share);
        assert!(report.last_line().contains("10.00 tokens/s") && report.json()["results"][0]["threads"] == 1);
    }

    #[test]
    fn tokens_of_all_sequences_count_and_weights_are_read_once_for_all() {
        let mut report = report();
        report.pass_bytes = 1 << 40;
        for sequences in [1, 4] {
            report.add(timing(Case { sequences, ..CASE }, &[1.0]), DType::F16);
        }
        assert!(report.last_line().contains("4 sequences ·    40.00 tokens/s"), "{}", report.last_line());
        let [one, four] = [0, 1].map(|line| report.lines[line].rate.unwrap());
        assert!((four / one - 1.0).abs() < 1e-3, "{one} {four}");
    }
}
