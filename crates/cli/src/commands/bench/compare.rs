//! `bench compare`: two measurements beside each other, if they can be compared.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::super::report::{Bench, Input, Speed};
use crate::args::BenchCompareArgs;
use crate::output;

/// A case in both measurements.
struct Pair<'a> {
    before: &'a Speed,
    after: &'a Speed,
}

/// Prints how much faster the second one is.
///
/// # Errors
/// Files that are something else, measurements of different settings or cases.
pub(super) fn run(args: &BenchCompareArgs) -> Result<()> {
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    let pairs = pairs(&before, &after)?;
    if args.json {
        let settings = json!({ "precision": before.precision, "settings": before.settings });
        let runs = [&before, &after].map(|run| json!({ "model": run.model, "device": run.device }));
        let cases: Vec<Value> = pairs.iter().map(Pair::json).collect();
        return Ok(output::json(
            &json!({ "measured": settings, "before": runs[0], "after": runs[1], "cases": cases }),
        )?);
    }
    for (name, run) in [("before", &before), ("after", &after)] {
        output::notice(&format!("{name}: {} on {}", run.model, run.device.as_deref().unwrap_or("an unknown device")));
    }
    Ok(output::answer(&pairs.iter().map(Pair::line).collect::<String>())?)
}

fn read(path: &Path) -> Result<Bench> {
    let failed = || format!("`{}`", path.display());
    let text = fs::read_to_string(path).with_context(|| format!("can't read `{}`", path.display()))?;
    let value = serde_json::from_str(&text).context("it is not valid JSON").with_context(failed)?;
    match Input::new("", value).with_context(failed)? {
        Input::Bench(bench) => Ok(*bench),
        Input::Evaluation(_) => {
            bail!("{}: expected what `lapidary bench --json` prints, found an evaluation", failed())
        }
    }
}

/// What has to be equal apart from the cases.
fn check(before: &Bench, after: &Bench) -> Result<()> {
    ensure!(
        !before.settings.is_null() && !after.settings.is_null(),
        "one of the measurements does not tell its `settings`, so they can't be compared\n\nhint: measure again"
    );
    let mut differences = Vec::new();
    let mut compare = |name: &str, before: &Value, after: &Value| {
        if before != after {
            differences.push(format!("{name} is {before} and {after}"));
        }
    };
    compare("precision", &json!(before.precision), &json!(after.precision));
    let keys =
        |run: &Bench| run.settings.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect::<Vec<_>>();
    let mut names = [keys(before), keys(after)].concat();
    names.sort();
    names.dedup();
    for name in names {
        compare(&name, &before.settings[&name], &after.settings[&name]);
    }
    ensure!(
        differences.is_empty(),
        "the measurements have different settings: {}\n\nhint: measure again with the same ones",
        differences.join(", ")
    );
    Ok(())
}

fn pairs<'a>(before: &'a Bench, after: &'a Bench) -> Result<Vec<Pair<'a>>> {
    check(before, after)?;
    let missing = |here: &Bench, there: &Bench| -> Vec<String> {
        let is_missing = |one: &&Speed| !there.results.iter().any(|other| is_same(one, other));
        here.results.iter().filter(is_missing).map(case).collect()
    };
    for (which, missing) in [("second", missing(before, after)), ("first", missing(after, before))] {
        ensure!(
            missing.is_empty(),
            "the {which} measurement has no {}\n\nhint: measure the same cases in both",
            missing.join(", ")
        );
    }
    let pair = |before: &'a Speed| {
        after.results.iter().find(|after| is_same(before, after)).map(|after| Pair { before, after })
    };
    Ok(before.results.iter().filter_map(pair).collect())
}

fn is_same(one: &Speed, other: &Speed) -> bool {
    case(one) == case(other)
}

fn case(one: &Speed) -> String {
    let Speed { test, tokens, depth, sequences, threads, .. } = one;
    let threads = threads.map(|threads| format!(" · {threads} threads")).unwrap_or_default();
    let sequences = if *sequences == 1 { String::new() } else { format!(" · {sequences} sequences") };
    format!("{test:<7} {tokens:>5} at {depth:>5}{threads}{sequences}")
}

impl Pair<'_> {
    fn ratio(&self) -> f64 {
        self.after.tokens_per_second.median / self.before.tokens_per_second.median
    }

    /// Whether the runs of one are among those of the other, so that the difference may be chance.
    fn is_within_spread(&self) -> bool {
        let (before, after) = (&self.before.tokens_per_second, &self.after.tokens_per_second);
        before.slowest <= after.fastest && after.slowest <= before.fastest
    }

    fn line(&self) -> String {
        let [before, after] = [self.before, self.after].map(|one| one.tokens_per_second.median);
        let change = 100.0 * (self.ratio() - 1.0);
        let note = if self.is_within_spread() { ", within the spread of the runs" } else { "" };
        format!("{} · {before:8.2} → {after:8.2} tokens/s, {change:+.1} %{note}\n", case(self.before))
    }

    fn json(&self) -> Value {
        let Speed { test, tokens, depth, sequences, threads, tokens_per_second: before, .. } = self.before;
        json!({
            "test": test,
            "tokens": tokens,
            "depth": depth,
            "sequences": sequences,
            "threads": threads,
            "tokens_per_second_before": before.median,
            "tokens_per_second_after": self.after.tokens_per_second.median,
            "ratio": self.ratio(),
            "within_spread": self.is_within_spread(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(chunk: u64, rates: &[(u64, [f64; 3])]) -> Bench {
        let result = |(depth, [slowest, median, fastest]): &(u64, [f64; 3])| {
            json!({ "test": "decode", "tokens": 64, "depth": depth, "sequences": 1, "threads": 2,
                "tokens_per_second": { "median": median, "slowest": slowest, "fastest": fastest } })
        };
        let results: Vec<Value> = rates.iter().map(result).collect();
        let value = json!({ "model": "m", "parameters": 1, "weights_bytes_per_pass": 1, "precision": "fast",
            "settings": { "chunk": chunk }, "results": results });
        let Ok(Input::Bench(bench)) = Input::new("", value) else { panic!("another kind") };
        *bench
    }

    #[test]
    fn what_is_faster_by_how_much() {
        let before = bench(512, &[(0, [9.0, 10.0, 11.0]), (64, [8.0, 8.5, 9.0])]);
        let after = bench(512, &[(64, [9.0, 9.5, 9.9]), (0, [12.0, 12.5, 13.0])]);
        let lines: Vec<String> = pairs(&before, &after).unwrap().iter().map(Pair::line).collect();
        assert_eq!(lines[0], "decode     64 at     0 · 2 threads ·    10.00 →    12.50 tokens/s, +25.0 %\n");
        assert!(lines[1].ends_with("+11.8 %, within the spread of the runs\n"), "{lines:?}");
    }

    #[test]
    fn different_settings_and_cases_are_refused() {
        let refused = |before: &Bench, after: &Bench| pairs(before, after).err().unwrap().to_string();
        let before = bench(512, &[(0, [9.0, 10.0, 11.0])]);
        let error = refused(&before, &bench(64, &[(0, [9.0, 10.0, 11.0])]));
        assert!(error.starts_with("the measurements have different settings: chunk is 512 and 64"), "{error}");
        let more = bench(512, &[(0, [9.0, 10.0, 11.0]), (64, [8.0, 8.5, 9.0])]);
        assert!(refused(&before, &more).starts_with("the first measurement has no decode     64 at    64"));
        assert!(refused(&more, &before).starts_with("the second measurement has no"));
        let other = Bench { precision: Some("f32".into()), ..bench(512, &[]) };
        assert!(refused(&before, &other).contains("precision is \"fast\" and \"f32\""));
        let old = Bench { settings: Value::Null, ..bench(512, &[]) };
        assert!(refused(&before, &old).contains("does not tell its `settings`"));
    }
}
