//! Where a device's time goes: its spans of work summed by op, and written for viewers of traces.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use checkpoint::AtomicFile;
use serde_json::{Value, json};
use tensor::TraceSpan;

use super::measure::{Bench, Case, Measurement};
use crate::output;

/// Tokens of each sequence that are decoded for the sums.
pub(super) const DECODE_TOKENS: usize = 16;

/// What the device did for some cases.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    parts: Vec<Part>,
}

/// What it did for one.
#[derive(Clone, Debug)]
struct Part {
    case: Case,
    spans: Vec<TraceSpan>,
}

/// The sums of a part, per pass over the weights (decode) or per prompt.
#[derive(Clone, Debug, PartialEq)]
struct Summary {
    /// Passes or prompts.
    count: usize,
    /// Seconds from the first to the last moment.
    total: f64,
    /// Of these, seconds in which nothing ran.
    gaps: f64,
    /// The longest of these in the whole part.
    longest_gap: f64,
    /// The most time first, each with the sums of its spans of one name.
    ops: Vec<(Sum, Vec<Sum>)>,
}

/// All spans of one kind or name, per pass or prompt.
#[derive(Clone, Debug, PartialEq)]
struct Sum {
    name: String,
    dispatches: f64,
    seconds: f64,
    bytes: f64,
    operations: f64,
}

/// Sums over the spans of each name, divided by `count`; the most time first.
fn sums<'a>(
    spans: impl Iterator<Item = &'a TraceSpan>,
    count: usize,
    name: impl Fn(&'a TraceSpan) -> &'a str,
) -> Vec<Sum> {
    let mut sums: Vec<Sum> = Vec::new();
    for span in spans {
        let at = sums.iter().position(|sum| sum.name == name(span)).unwrap_or_else(|| {
            sums.push(Sum { name: name(span).into(), dispatches: 0.0, seconds: 0.0, bytes: 0.0, operations: 0.0 });
            sums.len() - 1
        });
        let sum = &mut sums[at];
        sum.dispatches += 1.0 / count as f64;
        sum.seconds += span.duration.as_secs_f64() / count as f64;
        sum.bytes += span.bytes as f64 / count as f64;
        sum.operations += span.operations as f64 / count as f64;
    }
    sums.sort_by(|one, two| two.seconds.total_cmp(&one.seconds));
    sums
}

impl Sum {
    /// A row of a table. `total` is in seconds, `bandwidth` in bytes per second.
    fn row(&self, indent: &str, total: f64, bandwidth: Option<f64>) -> String {
        let seconds = self.seconds.max(1e-12);
        let rate = self.bytes / seconds;
        let share = bandwidth.map_or("-".into(), |bandwidth| format!("{:.0} %", rate / bandwidth * 100.0));
        format!(
            "{:<44} {:>10.1} {:>11.4} {:>5.1} % {:>11.2} {:>9.1} {share:>10} {:>8.0}\n",
            format!("{indent}{}", self.name),
            self.dispatches,
            self.seconds * 1e3,
            seconds / total.max(1e-12) * 100.0,
            self.bytes / 1e6,
            rate / 1e9,
            self.operations / seconds / 1e9
        )
    }

    fn json(&self, total: f64, bandwidth: Option<f64>) -> Value {
        let rate = self.bytes / self.seconds.max(1e-12);
        json!({
            "name": self.name,
            "dispatches": self.dispatches,
            "seconds": self.seconds,
            "share": self.seconds / total.max(1e-12),
            "bytes": self.bytes,
            "bytes_per_second": rate,
            "share_of_memory_bandwidth": bandwidth.map(|bandwidth| rate / bandwidth),
            "operations": self.operations,
        })
    }
}

/// Whether the device tells what it does.
pub(super) fn is_possible(bench: &mut Bench<'_>) -> bool {
    let possible = bench.engine.set_tracing(true);
    bench.engine.set_tracing(false);
    possible
}

/// Runs the first case of each kind again, with tracing; `None` if the device does not tell.
///
/// # Errors
/// A device that failed, Ctrl-C.
pub(super) fn record(bench: &mut Bench<'_>, cases: &[Case]) -> Result<Option<Trace>> {
    if !bench.engine.set_tracing(true) {
        return Ok(None);
    }
    let first = |kind: Measurement| cases.iter().find(move |case| case.measurement == kind);
    let mut parts = Vec::new();
    if let Some(case) = first(Measurement::Decode) {
        let case = Case { tokens: DECODE_TOKENS.min(case.tokens), ..*case };
        bench.begin(case)?;
        bench.engine.take_trace();
        bench.finish()?;
        parts.push(Part { case, spans: bench.engine.take_trace() });
    }
    if let Some(&case) = first(Measurement::Prefill) {
        bench.begin_prefill(case)?;
        bench.engine.take_trace();
        bench.finish()?;
        parts.push(Part { case, spans: bench.engine.take_trace() });
    }
    bench.engine.set_tracing(false);
    parts.retain(|part| !part.spans.is_empty());
    Ok(Some(Trace { parts }))
}

impl Part {
    fn summary(&self) -> Summary {
        // A pass begins with the same work each time; the device may have run more of them than were asked for.
        let first = self.spans.first().map_or("", |span| span.name.as_str());
        let count = match self.case.measurement {
            Measurement::Decode => self.spans.iter().filter(|span| span.name == first).count().max(1),
            Measurement::Prefill => 1,
        };
        let (start, mut end) = (self.spans.first().map_or(Duration::ZERO, |span| span.start), Duration::ZERO);
        let (mut gaps, mut longest_gap) = (Duration::ZERO, Duration::ZERO);
        for (index, span) in self.spans.iter().enumerate() {
            if index > 0 {
                let gap = span.start.saturating_sub(end);
                gaps += gap;
                longest_gap = longest_gap.max(gap);
            }
            end = end.max(span.start + span.duration);
        }
        let per = |time: Duration| time.as_secs_f64() / count as f64;
        let ops = sums(self.spans.iter(), count, |span| span.op);
        let ops = ops.into_iter().map(|sum| {
            let of_op = self.spans.iter().filter(|span| span.op == sum.name);
            let parts = sums(of_op, count, |span| &span.name);
            (sum, parts)
        });
        Summary {
            count,
            total: per(end.saturating_sub(start)),
            gaps: per(gaps),
            longest_gap: longest_gap.as_secs_f64(),
            ops: ops.collect(),
        }
    }

    /// A heading and a row for each op. `bandwidth` is in bytes per second.
    fn table(&self, bandwidth: Option<f64>) -> String {
        let Summary { count, total, gaps, longest_gap, ops } = self.summary();
        let Case { tokens, depth, sequences, measurement } = self.case;
        let what = match measurement {
            Measurement::Decode => format!("decode of {sequences} at {depth}, per pass (of {count})"),
            Measurement::Prefill => format!("prefill of {tokens} at {depth}"),
        };
        let mut text = format!(
            "\n{what}: {:.3} ms by the device's clock, of them {:.3} ms between dispatches, at most {:.3} ms at once\n",
            total * 1e3,
            gaps * 1e3,
            longest_gap * 1e3
        );
        text += &format!("{:<44} dispatches          ms   share          MB      GB/s  of copies    Gop/s\n", "op");
        for (sum, parts) in ops {
            text += &sum.row("", total, bandwidth);
            if parts.len() > 1 {
                parts.iter().for_each(|part| text += &part.row("  ", total, bandwidth));
            }
        }
        text
    }

    fn json(&self, bandwidth: Option<f64>) -> Value {
        let Summary { count, total, gaps, longest_gap, ops } = self.summary();
        let ops = ops.iter().map(|(sum, parts)| {
            let mut value = sum.json(total, bandwidth);
            value["parts"] = parts.iter().map(|part| part.json(total, bandwidth)).collect();
            value
        });
        json!({
            "test": self.case.measurement.name(),
            "tokens": self.case.tokens,
            "depth": self.case.depth,
            "sequences": self.case.sequences,
            "passes": count,
            "seconds": total,
            "seconds_between_dispatches": gaps,
            "longest_gap_seconds": longest_gap,
            "ops": ops.collect::<Vec<_>>(),
        })
    }
}

impl Trace {
    /// For people: a table for each case, per pass or prompt.
    pub(super) fn tables(&self, bandwidth: Option<f64>) -> String {
        self.parts.iter().map(|part| part.table(bandwidth)).collect()
    }

    /// For programs.
    pub(super) fn json(&self, bandwidth: Option<f64>) -> Value {
        self.parts.iter().map(|part| part.json(bandwidth)).collect()
    }

    /// Writes all spans in Chrome's trace format, which chrome://tracing and Perfetto show.
    ///
    /// # Errors
    /// No span at all; a file that can't be written.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let events: Vec<String> = self.parts.iter().flat_map(Part::events).collect();
        if events.is_empty() {
            bail!("the device told of no work, so there is no trace to write");
        }
        AtomicFile::replace(path, format!("[\n{}\n]\n", events.join(",\n")).as_bytes())?;
        output::notice(&format!("wrote {} spans to `{}`", events.len(), path.display()));
        Ok(())
    }
}

impl Part {
    /// One complete event for each span, in microseconds.
    fn events(&self) -> impl Iterator<Item = String> {
        let thread = match self.case.measurement {
            Measurement::Decode => 1,
            Measurement::Prefill => 2,
        };
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        self.spans.iter().map(move |span| {
            json!({
                "name": span.name,
                "cat": span.op,
                "ph": "X",
                "ts": micros(span.start),
                "dur": micros(span.duration),
                "pid": 1,
                "tid": thread,
                "args": { "bytes": span.bytes, "operations": span.operations },
            })
            .to_string()
        })
    }
}

#[cfg(test)]
mod tests {
    use engine::{Engine, EngineOptions};

    use super::*;
    use crate::devices::Machine;
    use crate::devices::fake::{Gpu, machine};
    use crate::model_source::Model;
    use crate::sensors::Sensors;

    const CASE: Case = Case { depth: 0, measurement: Measurement::Decode, tokens: 4, sequences: 1 };

    fn span(name: &str, op: &'static str, start: u64, micros: u64) -> TraceSpan {
        let [start, duration] = [start, micros].map(Duration::from_micros);
        TraceSpan { name: name.into(), op, start, duration, bytes: 1000 * micros, operations: 0 }
    }

    #[test]
    fn spans_are_summed_per_pass() {
        // Two passes; the second begins 10 µs after the first, and two spans overlap.
        let pass = |start| {
            [
                span("embed a", "embed", start, 10),
                span("linear b", "linear", start + 20, 60),
                span("linear c", "linear", start + 40, 60),
            ]
        };
        let spans = [pass(0), pass(110)].concat();
        let summary = Part { case: CASE, spans: spans.clone() }.summary();
        assert_eq!(summary.count, 2);
        let close = |found: f64, micros: f64| assert!((found * 1e6 - micros).abs() < 1e-6, "{found} {micros}");
        close(summary.total, 105.0);
        close(summary.gaps, (10.0 + 10.0 + 10.0) / 2.0);
        close(summary.longest_gap, 10.0);
        let ops: Vec<_> = summary
            .ops
            .iter()
            .map(|(sum, parts)| (sum.name.as_str(), sum.dispatches, sum.bytes, parts.len()))
            .collect();
        assert_eq!(ops, [("linear", 2.0, 120_000.0, 2), ("embed", 1.0, 10_000.0, 1)]);

        let part = Part { case: CASE, spans };
        let table = part.table(Some(2e9));
        // 120 kB in 120 µs are 1 GB/s, half of the copies' rate.
        let row = table.lines().find(|line| line.starts_with("linear")).unwrap();
        assert!(row.contains(" 1.0 ") && row.contains("50 %"), "{table}");
        assert_eq!(part.json(Some(2e9))["ops"][0]["share_of_memory_bandwidth"], 0.5);
        assert!(table.contains("\n  linear b ") && !table.contains("\n  embed a "), "{table}");
        assert_eq!(part.json(None)["ops"][0]["parts"][1]["dispatches"], 1.0);
        assert_eq!(part.json(None)["ops"][0]["share_of_memory_bandwidth"], Value::Null);
    }

    #[test]
    fn traces_are_arrays_of_complete_events() {
        let path = std::env::temp_dir().join(format!("lapidary-trace-{}.json", std::process::id()));
        let spans = vec![span("embed \"a\"", "embed", 5, 10), span("linear b", "linear", 20, 60)];
        Trace { parts: vec![Part { case: CASE, spans }] }.write(&path).unwrap();
        let events: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(events.as_array().unwrap().len(), 2);
        assert_eq!((&events[0]["name"], &events[0]["ph"]), (&json!("embed \"a\""), &json!("X")));
        assert_eq!((&events[1]["ts"], &events[1]["dur"]), (&json!(20.0), &json!(60.0)));
        assert!(Trace::default().write(&path).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn only_the_passes_of_a_case_are_in_its_trace() {
        let checkpoint = Model::open(None).unwrap().checkpoint;
        let device = machine(vec![Gpu::failing(0, vec![None])]).open_gpu(None).unwrap();
        let options = EngineOptions { context: Some(64), sequences: 2, ..EngineOptions::default() };
        let mut engine = Engine::load(&checkpoint, &*device, &options).unwrap();
        let sensors = Sensors::find(Path::new("nowhere"), None);
        let mut bench = Bench::new(&mut engine, &sensors, 1, 64);
        assert!(is_possible(&mut bench));
        let prefill = Case { depth: 8, measurement: Measurement::Prefill, tokens: 20, sequences: 1 };
        let decode = Case { depth: 8, tokens: 5, sequences: 2, ..CASE };
        let trace = record(&mut bench, &[prefill, decode]).unwrap().unwrap();
        // The fake device tells of one span for each pass, with the number of its tokens as operations.
        let operations = |part: &Part| part.spans.iter().map(|span| span.operations).collect::<Vec<_>>();
        assert_eq!(trace.parts.iter().map(operations).collect::<Vec<_>>(), [vec![2; 5], vec![20]]);
        assert_eq!(trace.parts[0].summary().count, 5);
        let mut cpu = Engine::load(&checkpoint, &*machine(vec![]).cpu(), &options).unwrap();
        assert!(record(&mut Bench::new(&mut cpu, &sensors, 1, 64), &[decode]).unwrap().is_none());
    }
}
