//! Which plots measurements make.

mod stability;

use super::input::{Along, Bench, Evaluation, Input, Speed, benches, evaluations};
use crate::plot::{Axis, Look, Plot, Point, Series};

/// All plots that there is something for.
pub(super) fn all(inputs: &[Input]) -> Vec<Plot> {
    let mut plots = vec![retained_by_size(inputs), divergence_by_size(inputs)];
    plots.extend(along(inputs));
    plots.push(speed(inputs, &BY_DEPTH));
    plots.push(speed(inputs, &PREFILL_BY_DEPTH));
    plots.push(speed(inputs, &PREFILL_BY_LENGTH));
    plots.push(speed(inputs, &BY_BATCH));
    plots.push(roofline(inputs));
    plots.extend(stability::plots(inputs));
    plots.into_iter().flatten().filter_map(|mut plot| plot.clean().then_some(plot)).collect()
}

/// The unit for the size of all files: its name, and how many bytes it has.
fn unit(inputs: &[Input]) -> (&'static str, f64) {
    let largest = evaluations(inputs).filter_map(|one| one.file_bytes).max().unwrap_or(0);
    if largest >= 1_000_000_000 { ("GB", 1e9) } else { ("MB", 1e6) }
}

/// One dot for each model whose size and another value are known.
fn by_size(inputs: &[Input], value: impl Fn(&Evaluation) -> Option<(f64, Option<f64>)>) -> Option<(Series, Axis)> {
    let (unit, bytes) = unit(inputs);
    let point = |one: &Evaluation| {
        let (y, error) = value(one)?;
        let spread = error.map(|error| [y - error, y + error]);
        Some(Point { x: one.file_bytes? as f64 / bytes, y, spread, label: one.label.clone() })
    };
    let mut points: Vec<Point> = evaluations(inputs).filter_map(point).collect();
    points.sort_by(|one, other| one.x.total_cmp(&other.x));
    let series = Series { name: String::new(), colour: 0, look: Look::Dots, points };
    (!series.points.is_empty()).then(|| (series, Axis::around(&format!("size of the files, {unit}"))))
}

fn retained_by_size(inputs: &[Input]) -> Option<Plot> {
    let (series, x) = by_size(inputs, |one| {
        let verdict = one.verdict.as_ref()?;
        let worst = verdict.scores.iter().find(|score| Some(&score.score) == verdict.worst.as_ref());
        let error = worst.and_then(|score| score.retained_error).map(|error| 100.0 * error);
        Some((100.0 * verdict.retained?, error))
    })?;
    Some(Plot {
        name: "quality-size".into(),
        title: "Quality retained by size (with standard error)".into(),
        x,
        y: Axis::around("quality retained, %"),
        series: vec![series],
    })
}

fn divergence_by_size(inputs: &[Input]) -> Option<Plot> {
    let (mut series, mut axis) = (Vec::new(), None);
    for (colour, name) in text_names(inputs).into_iter().enumerate() {
        let found = by_size(inputs, |one| {
            let kl = one.text.get(name)?.kl.as_ref()?;
            Some((kl.mean?, kl.mean_error))
        });
        if let Some((one, x)) = found {
            series.push(Series { name: name.clone(), colour, ..one });
            axis = Some(x);
        }
    }
    // One set of labels is enough.
    for other in series.iter_mut().skip(1) {
        other.points.iter_mut().for_each(|point| point.label.clear());
    }
    Some(Plot {
        name: "divergence-size".into(),
        title: "KL divergence from the original by size".into(),
        x: axis?,
        y: Axis::from_zero("mean KL divergence, nats"),
        series,
    })
}

fn text_names(inputs: &[Input]) -> Vec<&String> {
    let mut names: Vec<&String> = evaluations(inputs).flat_map(|one| one.text.keys()).collect();
    names.sort();
    names.dedup();
    names
}

/// The most points of a line along a text.
const ALONG_POINTS: usize = 130;

/// For each text, KL divergence along it.
fn along(inputs: &[Input]) -> Vec<Option<Plot>> {
    let plot = |(index, name): (usize, &String)| {
        let of_model = |(colour, one): (usize, &Evaluation)| {
            let (per_point, points) = smooth(one.text.get(name)?.kl_along.as_ref()?);
            Some((per_point, Series { name: one.label.clone(), colour, look: Look::Line, points }))
        };
        let found: Vec<(usize, Series)> = evaluations(inputs).enumerate().filter_map(of_model).collect();
        let per_point = found.iter().map(|(per_point, _)| *per_point).max()?;
        Some(Plot {
            name: format!("divergence-along-{}-{}", index + 1, file_name(name)),
            title: format!("KL divergence along {name}"),
            x: Axis::from_zero("scored prediction"),
            y: Axis::logarithmic(&match per_point {
                1 => "KL divergence per token, nats".into(),
                count => format!("KL divergence per token, nats (mean of {count})"),
            }),
            series: found.into_iter().map(|(_, series)| series).collect(),
        })
    };
    text_names(inputs).into_iter().enumerate().map(plot).collect()
}

/// Means of so many predictions that a line has few points, and how many these are. What is next to nothing is drawn as
/// a ten-thousandth of the largest value.
fn smooth(along: &Along) -> (usize, Vec<Point>) {
    let merged = along.mean.len().div_ceil(ALONG_POINTS).max(1);
    let step = (along.predictions_per_point * merged) as f64;
    let means: Vec<f64> = along.mean.chunks(merged).map(|part| part.iter().sum::<f64>() / part.len() as f64).collect();
    let least = 1e-4 * means.iter().copied().fold(0.0, f64::max);
    let point = |(index, mean): (usize, &f64)| Point::new((index as f64 + 0.5) * step, mean.max(least));
    (along.predictions_per_point * merged, means.iter().enumerate().map(point).collect())
}

/// Letters, digits and hyphens of a name.
fn file_name(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    name.trim_matches('-').chars().take(60).collect()
}

/// A plot of speeds: which are in it, and by what.
struct Speeds {
    name: &'static str,
    title: &'static str,
    x_label: &'static str,
    is_meant: fn(&Speed) -> bool,
    x: fn(&Speed) -> u64,
    /// What else has to be the same along a line.
    rest: fn(&Speed) -> String,
}

const BY_DEPTH: Speeds = Speeds {
    name: "decode-context",
    title: "Decoding by the length of the context",
    x_label: "tokens in the cache before",
    is_meant: |one| one.test == "decode",
    x: |one| one.depth,
    rest: |one| if one.sequences == 1 { String::new() } else { format!(", {} conversations", one.sequences) },
};

const PREFILL_BY_DEPTH: Speeds = Speeds {
    name: "prefill-context",
    title: "Reading prompts by the length of the context",
    x_label: "tokens in the cache before",
    is_meant: |one| one.test == "prefill",
    x: |one| one.depth,
    rest: |one| format!(", prompt of {}", one.tokens),
};

const PREFILL_BY_LENGTH: Speeds = Speeds {
    name: "prefill-length",
    title: "Reading prompts by their length",
    x_label: "tokens of the prompt",
    is_meant: |one| one.test == "prefill" && one.depth == 0,
    x: |one| one.tokens,
    rest: |_| String::new(),
};

const BY_BATCH: Speeds = Speeds {
    name: "decode-batch",
    title: "Decoding by the number of conversations",
    x_label: "conversations at once",
    is_meant: |one| one.test == "decode",
    x: |one| one.sequences,
    rest: |one| if one.depth == 0 { String::new() } else { format!(", {} before", one.depth) },
};

/// Lines of two points and more; `None` if there are none.
fn speed(inputs: &[Input], which: &Speeds) -> Option<Plot> {
    let mut series: Vec<Series> = Vec::new();
    for bench in benches(inputs) {
        for one in bench.results.iter().filter(|one| (which.is_meant)(one)) {
            let name = format!("{}{}", place(bench, one.threads), (which.rest)(one));
            let rate = &one.tokens_per_second;
            let (x, y, spread) = ((which.x)(one) as f64, rate.median, Some([rate.slowest, rate.fastest]));
            let point = Point { x, y, spread, label: String::new() };
            match series.iter_mut().find(|series| series.name == name) {
                Some(series) => series.points.push(point),
                None => series.push(Series { name, colour: 0, look: Look::DotsAndLine, points: vec![point] }),
            }
        }
    }
    for series in &mut series {
        series.points.sort_by(|one, other| one.x.total_cmp(&other.x));
    }
    series.retain(|series| series.points.first().map(|point| point.x) != series.points.last().map(|point| point.x));
    series.iter_mut().enumerate().for_each(|(colour, series)| series.colour = colour);
    (!series.is_empty()).then(|| Plot {
        name: which.name.into(),
        title: which.title.into(),
        x: Axis::from_zero(which.x_label),
        y: Axis::from_zero("tokens/s (median, slowest to fastest)"),
        series,
    })
}

/// The model and where it ran.
fn place(bench: &Bench, threads: Option<usize>) -> String {
    let on = match threads {
        Some(1) => "1 thread".into(),
        Some(threads) => format!("{threads} threads"),
        None => bench.device.clone().unwrap_or_default(),
    };
    format!("{}, {on}", bench.model)
}

/// What the memory's speed allows, and what was reached with nothing in the cache before.
fn roofline(inputs: &[Input]) -> Option<Plot> {
    // Runs of one model in one place belong together: place, the fastest memory that was measured, points.
    let mut places: Vec<(String, Option<f64>, Vec<Point>)> = Vec::new();
    for bench in benches(inputs) {
        for load in &bench.loads {
            let is_meant = |one: &&Speed| matches!(one.test.as_str(), "decode" | "prefill") && one.depth == 0;
            let cases = bench.results.iter().filter(is_meant).filter(|one| one.threads == load.threads);
            let points: Vec<Point> = cases.map(|one| reached(bench, one)).collect();
            let bandwidth = load.memory_read_bytes_per_second.or(load.memory_copy_bytes_per_second);
            let name = place(bench, load.threads);
            match places.iter_mut().find(|(other, ..)| *other == name) {
                Some((_, best, all)) => {
                    *best = (*best).into_iter().chain(bandwidth).max_by(f64::total_cmp);
                    all.extend(points);
                }
                None => places.push((name, bandwidth, points)),
            }
        }
    }
    places.retain(|(_, _, points)| !points.is_empty());
    let roofs =
        places.iter().enumerate().filter_map(|(colour, (_, bandwidth, points))| roof(*bandwidth, points, colour));
    let mut series: Vec<Series> = roofs.collect();
    series.extend(places.into_iter().enumerate().map(|(colour, (name, _, points))| Series {
        name,
        colour,
        look: Look::Dots,
        points,
    }));
    (!series.is_empty()).then(|| Plot {
        name: "roofline".into(),
        title: "Roofline: products with weights against bytes of weights read".into(),
        x: Axis::logarithmic("operations per byte of weights"),
        y: Axis::logarithmic("billion operations/s"),
        series,
    })
}

/// The slope that the memory's speed allows, up to the fastest point.
fn roof(bandwidth: Option<f64>, points: &[Point], colour: usize) -> Option<Series> {
    let bandwidth = bandwidth?;
    let ends = |value: fn(&Point) -> f64| {
        let values = points.iter().map(value);
        [values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max)]
    };
    let ([left, right], [_, top]) = (ends(|point| point.x), ends(|point| point.y));
    let at = |x: f64| Point::new(x, bandwidth / 1e9 * x);
    let end = (1.5 * top / (bandwidth / 1e9)).min(1.5 * right).max(2.0 * left);
    let name = format!("memory: {:.1} GB/s", bandwidth / 1e9);
    Some(Series { name, colour, look: Look::Dashes, points: vec![at(left / 2.0), at(end)] })
}

/// A case as a point: operations per byte, and billions of them per second. A pass reads the weights once, for each
/// conversation or for a chunk of a prompt, of which only the last token needs the head.
fn reached(bench: &Bench, one: &Speed) -> Point {
    let layers = bench.parameters.saturating_sub(bench.head_parameters) as f64;
    let head = bench.head_parameters as f64;
    let (per_pass, heads) = match one.test.as_str() {
        "decode" => (one.sequences, one.sequences as f64),
        _ => {
            let chunk = one.tokens.min(bench.settings["chunk"].as_u64().unwrap_or(512)).max(1);
            (chunk, chunk as f64 / one.tokens.max(1) as f64)
        }
    };
    let operations = 2.0 * (layers * per_pass as f64 + head * heads);
    let passes = one.tokens_per_second.median / per_pass as f64;
    let label = match (one.test.as_str(), one.sequences) {
        ("decode", 1) => "decode".into(),
        ("decode", sequences) => format!("decode of {sequences}"),
        (test, _) => format!("{test} {}", one.tokens),
    };
    Point {
        x: operations / bench.weights_bytes_per_pass.max(1) as f64,
        y: operations * passes / 1e9,
        spread: None,
        label,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn result(test: &str, tokens: u64, depth: u64, sequences: u64, rate: f64) -> Value {
        json!({ "test": test, "tokens": tokens, "depth": depth, "sequences": sequences, "threads": 2,
            "tokens_per_second": { "median": rate, "slowest": rate - 1.0, "fastest": rate + 1.0 } })
    }

    fn bench(results: Vec<Value>) -> Input {
        let value = json!({ "model": "m", "parameters": 1_000_000, "head_parameters": 200_000, "results": results,
            "weights_bytes_per_pass": 500_000, "settings": { "chunk": 100 },
            "loads": [{ "threads": 2, "memory_read_bytes_per_second": 1e9 }] });
        Input::new("b", value).unwrap()
    }

    #[test]
    fn points_of_the_roofline_by_hand() {
        let inputs = [bench(vec![result("decode", 64, 0, 1, 10.0), result("prefill", 200, 0, 1, 100.0)])];
        let plots = all(&inputs);
        assert_eq!(plots.iter().map(|plot| plot.name.as_str()).collect::<Vec<_>>(), ["roofline"]);
        let [roof, dots] = &plots[0].series[..] else { panic!("{plots:?}") };
        assert_eq!((roof.look, dots.look), (Look::Dashes, Look::Dots));
        // Two operations for each parameter, half a byte each, ten times a second.
        assert_eq!((dots.points[0].x, dots.points[0].y), (4.0, 0.02));
        // A chunk of 100 tokens, with the head for the last of 200; one pass a second.
        let operations = 2.0 * (800_000.0 * 100.0 + 200_000.0 * 0.5);
        assert_eq!((dots.points[1].x, dots.points[1].y), (operations / 5e5, operations / 1e9));
        assert!(roof.points.iter().all(|point| (point.y / point.x - 1.0).abs() < 1e-12));
    }

    #[test]
    fn lines_along_texts_have_few_points() {
        let along = Along { predictions_per_point: 3, mean: (0..400).map(|index| f64::from(index % 4)).collect() };
        let (per_point, points) = smooth(&along);
        assert_eq!((per_point, points.len()), (12, 100));
        assert!(points.iter().all(|point| point.y == 1.5) && points[1].x == 18.0);
        let (_, points) = smooth(&Along { predictions_per_point: 1, mean: vec![-1e-9, 2.0] });
        assert_eq!(points.iter().map(|point| point.y).collect::<Vec<_>>(), [2e-4, 2.0]);
    }

    #[test]
    fn speeds_of_several_files_make_one_line() {
        let inputs = [bench(vec![result("decode", 64, 0, 1, 10.0)]), bench(vec![result("decode", 64, 0, 4, 30.0)])];
        let plots = all(&inputs);
        assert_eq!(plots[0].name, "decode-batch");
        assert_eq!(plots[0].series.len(), 1);
        assert_eq!(
            plots[0].series[0].points.iter().map(|point| (point.x, point.y)).collect::<Vec<_>>(),
            [(1.0, 10.0), (4.0, 30.0)]
        );
    }
}
