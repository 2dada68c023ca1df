//! Plots of long runs: speed, temperatures and power over time.

use std::collections::BTreeMap;

use super::super::input::{Bench, Input, Interval, LongRun, benches};
use super::place;
use crate::plot::{Axis, Look, Plot, Point, Series};

/// What there is of each.
pub(super) fn plots(inputs: &[Input]) -> Vec<Option<Plot>> {
    vec![
        speed(inputs),
        readings(inputs, "stability-temperature", "Temperatures of a long run", Axis::around("°C"), |one| {
            &one.celsius
        }),
        readings(
            inputs,
            "stability-power",
            "Power of a long run",
            Axis::from_zero("W (mean of the interval)"),
            |one| &one.watts,
        ),
    ]
}

fn runs(inputs: &[Input]) -> impl Iterator<Item = (&Bench, &LongRun)> + Clone {
    benches(inputs).flat_map(|bench| bench.stability.iter().map(move |run| (bench, run)))
}

fn minutes() -> Axis {
    Axis::from_zero("minutes")
}

/// A line for each run, and its trend.
fn speed(inputs: &[Input]) -> Option<Plot> {
    let mut series = Vec::new();
    for (colour, (bench, run)) in runs(inputs).enumerate() {
        let points: Vec<Point> =
            run.intervals.iter().map(|one| Point::new(one.end_seconds / 60.0, one.tokens_per_second)).collect();
        let last = points.last()?.x;
        if let Some(trend) = &run.trend {
            let at = |minutes: f64| {
                let rate = trend.tokens_per_second_at_start + minutes * trend.tokens_per_second_per_minute;
                Point::new(minutes, rate)
            };
            series.push(Series { name: "trend".into(), colour, look: Look::Dashes, points: vec![at(0.0), at(last)] });
        }
        series.push(Series { name: place(bench, run.threads), colour, look: Look::Line, points });
    }
    (!series.is_empty()).then(|| Plot {
        name: "stability-speed".into(),
        title: "Decoding over time".into(),
        x: minutes(),
        y: Axis::from_zero("tokens/s (mean of the interval)"),
        series,
    })
}

/// A line for each thermometer or counter of each run.
fn readings(
    inputs: &[Input],
    name: &str,
    title: &str,
    y: Axis,
    of: fn(&Interval) -> &BTreeMap<String, f64>,
) -> Option<Plot> {
    let is_single = runs(inputs).count() == 1;
    let mut series: Vec<Series> = Vec::new();
    for (bench, run) in runs(inputs) {
        let mut names: Vec<&String> = run.intervals.iter().flat_map(|one| of(one).keys()).collect();
        names.sort();
        names.dedup();
        for reading in names {
            let point = |one: &Interval| Some(Point::new(one.end_seconds / 60.0, *of(one).get(reading)?));
            let name = if is_single { reading.clone() } else { format!("{}, {reading}", place(bench, run.threads)) };
            let points = run.intervals.iter().filter_map(point).collect();
            series.push(Series { name, colour: series.len(), look: Look::Line, points });
        }
    }
    (!series.is_empty()).then(|| Plot { name: name.into(), title: title.into(), x: minutes(), y, series })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_long_run_has_its_speed_its_trend_and_what_was_read() {
        let celsius = json!({ "a": 60.0, "b": 40.0 });
        let interval =
            |end: f64, rate: f64| json!({ "end_seconds": end, "tokens_per_second": rate, "celsius": celsius.clone() });
        let run = json!({ "threads": 2, "intervals": [interval(60.0, 10.0), interval(120.0, 9.0)],
            "trend": { "tokens_per_second_at_start": 11.0, "tokens_per_second_per_minute": -1.0 } });
        let bench = json!({ "model": "m", "parameters": 1, "weights_bytes_per_pass": 1, "results": [],
            "stability": [run] });
        let inputs = [Input::new("b", bench).unwrap()];
        let plots: Vec<Plot> = plots(&inputs).into_iter().flatten().collect();
        assert_eq!(
            plots.iter().map(|plot| plot.name.as_str()).collect::<Vec<_>>(),
            ["stability-speed", "stability-temperature"]
        );
        let [trend, speed] = &plots[0].series[..] else { panic!("{plots:?}") };
        assert_eq!([trend.points[1].x, trend.points[1].y], [2.0, 9.0]);
        assert_eq!([speed.points[1].x, speed.points[1].y], [2.0, 9.0]);
        assert_eq!(plots[1].series.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }
}
