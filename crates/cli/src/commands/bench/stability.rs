//! A long run: tokens per second, temperatures and power over time.

use std::time::{Duration, Instant};

use anyhow::{Error, Result, bail};
use serde_json::{Map, Value, json};

use super::engine_cache;
use super::measure::{Bench, Case};
use super::report::{Report, spread};
use crate::args::BenchArgs;
use crate::sensors::{Energy, Reading};
use crate::{interrupt, output};

/// About how many intervals a run has.
const INTERVALS: f64 = 60.0;
/// The shortest interval, in seconds: long enough for counters that are renewed ten times a second.
const INTERVAL_MIN: f64 = 2.5;

/// A part of the run.
#[derive(Clone, Debug, Default)]
pub(super) struct Interval {
    /// When it ended, in seconds since the start of the run.
    end: f64,
    /// Of all sequences.
    tokens: usize,
    /// Time of decoding: without starting new answers.
    seconds: f64,
    /// In degrees Celsius, at the end.
    temperatures: Vec<(String, f64)>,
    energy: Vec<Energy>,
}

impl Interval {
    fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    /// For people, while it goes on.
    fn line(&self) -> String {
        let temperatures = self.temperatures.iter().map(|(name, celsius)| format!(" · {name} {celsius:.1} °C"));
        let watts = self.energy.iter().map(|energy| format!(" · {:.1} W ({})", energy.watts(), energy.counter));
        let rest: String = temperatures.chain(watts).collect();
        format!("{:7.2} min · {:8.2} tokens/s{rest}\n", self.end / 60.0, self.rate())
    }

    fn json(&self) -> Value {
        let temperatures: Map<String, Value> =
            self.temperatures.iter().map(|(name, celsius)| (name.clone(), json!(celsius))).collect();
        let watts: Map<String, Value> =
            self.energy.iter().map(|energy| (energy.counter.clone(), json!(energy.watts()))).collect();
        json!({
            "end_seconds": self.end,
            "tokens": self.tokens,
            "tokens_per_second": self.rate(),
            "celsius": temperatures,
            "watts": watts,
        })
    }
}

/// What came out of a long run.
#[derive(Clone, Debug)]
pub(super) struct Stability {
    pub(super) case: Case,
    /// What was asked for.
    minutes: f64,
    intervals: Vec<Interval>,
    /// All that were decoded, in intervals or not.
    tokens: usize,
    /// Of the whole run.
    energy: Vec<Energy>,
    /// Why it ended early, if it did.
    ended: Option<String>,
}

/// Decodes for some minutes, and adds that to the report. The error of a device that failed in between is returned,
/// and what was before is in the report.
///
/// # Errors
/// Nothing was measured, or what was can't be printed.
pub(super) fn measure(
    args: &BenchArgs,
    case: Case,
    minutes: f64,
    bench: &mut Bench<'_>,
    report: &mut Report,
) -> Result<Option<Error>> {
    let tell = |text: &str| if args.json { Ok(()) } else { output::answer(text) };
    for _ in 0..args.warmup {
        bench.begin(case)?;
        bench.finish()?;
    }
    let mut run = Stability { case, minutes, intervals: Vec::new(), tokens: 0, energy: Vec::new(), ended: None };
    let before = bench.sensors.read();
    let failed = decode(bench, &mut run, |interval| Ok(tell(&interval.line())?)).err();
    run.energy = bench.sensors.since(&before);
    let failed = failed.filter(|_| !interrupt::is_pressed());
    run.ended = match &failed {
        Some(error) => Some(format!("{error:#}")),
        None => interrupt::is_pressed().then(|| "interrupted".into()),
    };
    if run.intervals.is_empty() {
        bail!(failed.unwrap_or_else(|| Error::msg("interrupted before anything was measured")));
    }
    tell(&report.add_long_run(run, engine_cache(args)))?;
    Ok(failed)
}

/// Answers one after the other until the time is over; `told` hears of each interval.
fn decode(bench: &mut Bench<'_>, run: &mut Stability, told: impl Fn(&Interval) -> Result<()>) -> Result<()> {
    let whole = Duration::from_secs_f64(60.0 * run.minutes);
    let length = Duration::from_secs_f64((60.0 * run.minutes / INTERVALS).max(INTERVAL_MIN)).min(whole);
    let start = Instant::now();
    let (mut begun, mut reading, mut interval) = (start, bench.sensors.read(), Interval::default());
    loop {
        bench.begin(run.case)?;
        let (mut last, mut left) = (Instant::now(), run.case.all_tokens());
        while left > 0 {
            let step = bench.step_tokens();
            let now = Instant::now();
            interval.seconds += (now - last).as_secs_f64();
            last = now;
            if let Ok(tokens) = step {
                interval.tokens += tokens;
                run.tokens += tokens;
                left = left.saturating_sub(tokens);
            }
            let is_over = now - start >= whole || step.is_err();
            if now - begun >= length || is_over {
                // What is left of the time at the end would be a rate of a few tokens.
                if run.intervals.is_empty() && interval.tokens > 0 || 2 * (now - begun) >= length {
                    run.intervals.push(close(bench, interval, now - start, &reading));
                    run.intervals.last().map_or(Ok(()), &told)?;
                }
                (begun, reading, interval) = (now, bench.sensors.read(), Interval::default());
            }
            step?;
            if is_over {
                return Ok(());
            }
        }
    }
}

/// What an interval has beside its tokens.
fn close(bench: &Bench<'_>, interval: Interval, end: Duration, before: &Reading) -> Interval {
    let (temperatures, energy) = (bench.sensors.temperatures(), bench.sensors.since(before));
    Interval { end: end.as_secs_f64(), temperatures, energy, ..interval }
}

impl Stability {
    /// Tokens per second of the intervals: the median, the least and the most.
    pub(super) fn rates(&self) -> Option<[f64; 3]> {
        let rates: Vec<f64> = self.intervals.iter().map(Interval::rate).collect();
        (!rates.is_empty()).then(|| spread(&rates))
    }

    fn seconds(&self) -> f64 {
        self.intervals.last().map_or(0.0, |interval| interval.end)
    }

    /// The straight line through the speeds that is nearest in its squares: tokens per second at the start, and by how
    /// much they rise in a second.
    fn trend(&self) -> Option<(f64, f64)> {
        let count = self.intervals.len() as f64;
        let mean = |value: &dyn Fn(&Interval) -> f64| self.intervals.iter().map(value).sum::<f64>() / count;
        let (time, rate) = (mean(&|one| one.end), mean(&Interval::rate));
        let together = mean(&|one| (one.end - time) * (one.rate() - rate));
        let alone = mean(&|one| (one.end - time).powi(2));
        (alone > 0.0).then(|| (rate - together / alone * time, together / alone))
    }

    /// The change along the trend over the whole run, as a share of where it starts.
    fn change(&self) -> Option<f64> {
        self.trend().map(|(start, slope)| slope * self.seconds() / start)
    }

    /// For people.
    pub(super) fn summary(&self) -> String {
        let Some([median, least, most]) = self.rates() else { return String::new() };
        let minutes = self.seconds() / 60.0;
        let change = self.change().map(|change| format!(" · trend {:+.1} %", 100.0 * change)).unwrap_or_default();
        let ended = self.ended.as_ref().map(|why| format!(" · {why}")).unwrap_or_default();
        let mut text = format!(
            "{minutes:.2} min of decoding · {median:.2} tokens/s ({least:.2} – {most:.2} in intervals){change}{ended}\n"
        );
        for (index, (name, _)) in self.intervals[0].temperatures.iter().enumerate() {
            let values = self.intervals.iter().filter_map(|one| one.temperatures.get(index)).map(|(_, value)| *value);
            let [median, least, most] = spread(&values.collect::<Vec<_>>());
            text += &format!("{name} {median:.1} °C ({least:.1} – {most:.1})\n");
        }
        text + &self.energy.iter().map(|one| format!("energy {}\n", one.per_token(self.tokens))).collect::<String>()
    }

    /// As one of the results, so that two runs can be compared.
    pub(super) fn result_json(&self, threads: Option<usize>) -> Option<Value> {
        let [median, slowest, fastest] = self.rates()?;
        Some(json!({
            "test": "stability",
            "tokens": self.case.tokens,
            "depth": self.case.depth,
            "sequences": self.case.sequences,
            "threads": threads,
            "tokens_per_second": { "median": median, "slowest": slowest, "fastest": fastest },
            "energy": self.energy.iter().map(|one| one.json(self.tokens)).collect::<Vec<_>>(),
        }))
    }

    /// The whole series.
    pub(super) fn json(&self, threads: Option<usize>) -> Value {
        json!({
            "threads": threads,
            "minutes": self.minutes,
            "seconds": self.seconds(),
            "ended": self.ended,
            "trend": self.trend().map(|(start, slope)| json!({
                "tokens_per_second_at_start": start,
                "tokens_per_second_per_minute": 60.0 * slope,
            })),
            "intervals": self.intervals.iter().map(Interval::json).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::Measurement;
    use super::*;

    fn run(rates: &[usize]) -> Stability {
        let interval = |(index, tokens): (usize, &usize)| Interval {
            end: 60.0 * (index + 1) as f64,
            tokens: *tokens,
            seconds: 1.0,
            temperatures: vec![("chip".into(), 50.0 + index as f64)],
            energy: Vec::new(),
        };
        Stability {
            case: Case { depth: 0, measurement: Measurement::Decode, tokens: 64, sequences: 1 },
            minutes: 3.0,
            intervals: rates.iter().enumerate().map(interval).collect(),
            tokens: rates.iter().sum(),
            energy: vec![Energy { counter: "c".into(), joules: 600.0, seconds: 180.0 }],
            ended: None,
        }
    }

    #[test]
    fn the_trend_is_the_line_through_the_speeds() {
        let falling = run(&[100, 90, 80]);
        let (start, slope) = falling.trend().unwrap();
        assert!((start - 110.0).abs() < 1e-9 && (60.0 * slope + 10.0).abs() < 1e-9, "{start} {slope}");
        assert!((falling.change().unwrap() + 30.0 / 110.0).abs() < 1e-9);
        assert_eq!(run(&[100]).trend(), None);
        let text = falling.summary();
        let first = "3.00 min of decoding · 90.00 tokens/s (80.00 – 100.00 in intervals) · trend -27.3 %\n";
        assert_eq!(text, format!("{first}chip 51.0 °C (50.0 – 52.0)\nenergy 2.222 J per token, 3.3 W (c)\n"));
    }

    #[test]
    fn the_series_is_kept() {
        let json = run(&[100, 90, 80]).json(Some(2));
        assert_eq!(json["intervals"][2]["tokens_per_second"], 80.0);
        assert_eq!(json["intervals"][2]["celsius"]["chip"], 52.0);
        let result = run(&[100, 90, 80]).result_json(Some(2)).unwrap();
        assert_eq!((&result["test"], &result["tokens_per_second"]["median"]), (&"stability".into(), &90.0.into()));
    }
}
