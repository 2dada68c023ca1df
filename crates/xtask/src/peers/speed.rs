//! Tokens per second of both programs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::options::Options;
use super::programs::{Programs, output};

/// What is timed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    /// `prefill` or `decode`.
    test: String,
    tokens: u64,
    depth: u64,
}

/// A case's runs, in tokens per second.
#[derive(Clone, Debug, PartialEq)]
struct Runs {
    case: Case,
    rates: Vec<f64>,
}

/// What a program said in all of its turns.
#[derive(Clone, Debug, Default, PartialEq)]
struct Measured {
    /// What it is and on what it ran.
    about: String,
    runs: Vec<Runs>,
}

impl Measured {
    /// Adds the runs of another turn.
    fn add(&mut self, turn: Measured) {
        self.about = turn.about;
        for runs in turn.runs {
            match self.runs.iter_mut().find(|other| other.case == runs.case) {
                Some(all) => all.rates.extend(runs.rates),
                None => self.runs.push(runs),
            }
        }
    }
}

/// Runs both programs by turns and makes a table of it.
///
/// # Errors
/// A program that fails or says something else, cases that only one of them has; where the table is for a document,
/// runs that differ too much.
pub(super) fn measure(options: &Options, programs: &Programs, model: &Path) -> Result<String> {
    let file = model.to_str().context("the path of the model is not UTF-8")?;
    let [threads, repeat] = [options.threads, options.repeat].map(|count| count.to_string());
    let lists = [&options.prompt_tokens, &options.decode_tokens, &options.depth];
    let ours = ["bench", file, "--device", &options.device, "--threads", &threads, "--repeat", &repeat, "--json"];
    let ours = with_lists(&ours, ["--prompt-tokens", "--decode-tokens", "--depth"], lists);
    let theirs = ["-m", file, "-ngl", options.gpu_layers(), "-t", &threads, "-r", &repeat, "-o", "json"];
    let theirs = with_lists(&theirs, ["-p", "-n", "-d"], lists);
    let [mut lapidary, mut llama] = [Measured::default(), Measured::default()];
    for round in 1..=options.rounds {
        println!("round {round} of {}", options.rounds);
        lapidary.add(ours_of(&output(&programs.lapidary, &ours)?).context("what `lapidary bench` printed")?);
        llama.add(theirs_of(&output(&programs.llama, &theirs)?).context("what `llama-bench` printed")?);
    }
    let table = table(options, model, &lapidary, &llama)?;
    if !options.print {
        let checked = check_rest([("Lapidary", &lapidary), ("llama.cpp", &llama)]);
        checked.inspect_err(|_| println!("{table}"))?;
    }
    Ok(table)
}

fn with_lists(arguments: &[&str], names: [&str; 3], lists: [&String; 3]) -> Vec<String> {
    let lists = names.into_iter().zip(lists).flat_map(|(name, list)| [name.to_owned(), list.clone()]);
    arguments.iter().map(|&argument| argument.to_owned()).chain(lists).collect()
}

/// Reads what `lapidary bench --json` prints.
fn ours_of(text: &str) -> Result<Measured> {
    let report: Value = serde_json::from_str(text).context("it is not valid JSON")?;
    let runs = |result: &Value| {
        let case = Case {
            test: result["test"].as_str()?.into(),
            tokens: result["tokens"].as_u64()?,
            depth: result["depth"].as_u64()?,
        };
        let seconds = result["seconds"].as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<_>>>()?;
        let rates = seconds.into_iter().map(|seconds| case.tokens as f64 / seconds).collect();
        Some(Runs { case, rates })
    };
    let results = report["results"].as_array().context("expected `results`")?;
    let runs = results.iter().map(runs).collect::<Option<Vec<_>>>();
    Ok(Measured {
        about: report["device"].as_str().context("expected `device`")?.into(),
        runs: runs.context("expected `test`, `tokens`, `depth` and `seconds` in each of `results`")?,
    })
}

/// Reads what `llama-bench -o json` prints.
fn theirs_of(text: &str) -> Result<Measured> {
    let tests: Value = serde_json::from_str(text).context("it is not valid JSON")?;
    let tests = tests.as_array().context("expected a list of tests")?;
    let number = |test: &Value, key: &str| test[key].as_u64();
    let runs = |test: &Value| {
        // A prompt and an answer in one test are of a kind that is not asked for.
        let (test_name, tokens) = match (number(test, "n_prompt")?, number(test, "n_gen")?) {
            (tokens, 0) => ("prefill", tokens),
            (0, tokens) => ("decode", tokens),
            _ => return None,
        };
        // Older versions know no depth.
        let depth = number(test, "n_depth").unwrap_or(0);
        let rates = test["samples_ts"].as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<_>>>()?;
        Some(Runs { case: Case { test: test_name.into(), tokens, depth }, rates })
    };
    let all = tests.iter().map(runs).collect::<Option<Vec<_>>>();
    let runs = all.context("expected `n_prompt` or `n_gen`, and `samples_ts`, in each test")?;
    let first = tests.first().context("expected a test")?;
    let word = |key: &str| first[key].as_str().unwrap_or("unknown").trim().to_owned();
    let build = number(first, "build_number").map_or("unknown".into(), |build| build.to_string());
    let about = format!("build {build} ({}) with {}", word("build_commit"), word("backends"));
    Ok(Measured { about, runs })
}

/// The median, the least and the most.
fn spread(rates: &[f64]) -> Option<[f64; 3]> {
    let mut rates = rates.to_vec();
    rates.sort_by(f64::total_cmp);
    let last = rates.len().checked_sub(1)?;
    Some([rates[last / 2].midpoint(rates[rates.len() / 2]), rates[0], rates[last]])
}

/// A run that is slower than that share of the median shows that the machine had something else to do.
const SLOWEST_SHARE: f64 = 0.8;

/// Refuses runs that say more of what else the machine did than of the programs.
///
/// # Errors
/// The case whose runs differ too much.
fn check_rest(programs: [(&str, &Measured); 2]) -> Result<()> {
    for (name, measured) in programs {
        for Runs { case, rates } in &measured.runs {
            let Some([median, slowest, _]) = spread(rates) else { continue };
            ensure!(
                slowest >= SLOWEST_SHARE * median,
                "{name}, {} of {}: one run has {slowest:.1} tokens/s and the median {median:.1}, so the machine did \
                 something else too; no document is changed\n\nhint: try again when it rests",
                case.test,
                case.tokens
            );
        }
    }
    Ok(())
}

fn table(options: &Options, model: &Path, ours: &Measured, theirs: &Measured) -> Result<String> {
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    let threads = if options.device == "cpu" { format!(", {} threads", options.threads) } else { String::new() };
    let mut text = format!(
        "`{name}` on {}{threads}; llama.cpp: {}. {} turns of {} runs for each program: median (slowest – fastest).\n\n\
         | tokens/s | Lapidary | llama.cpp | ratio |\n|---|---|---|---|\n",
        ours.about, theirs.about, options.rounds, options.repeat
    );
    for Runs { case, rates } in &ours.runs {
        let other = theirs.runs.iter().find(|other| other.case == *case);
        let other = other.with_context(|| format!("llama.cpp has not timed {case:?}"))?;
        let none = || format!("no runs of {case:?}");
        let [mine, other] = [rates, &other.rates].map(|rates| spread(rates).with_context(none));
        let ([mine, slow, fast], [other, other_slow, other_fast]) = (mine?, other?);
        ensure!(other > 0.0, "llama.cpp says that {case:?} has no speed");
        let before = if case.depth == 0 { String::new() } else { format!(", {} tokens before", case.depth) };
        let (of, ratio) = (case.tokens, mine / other);
        let _ = writeln!(
            text,
            "| {} of {of}{before} | {mine:.1} ({slow:.1} – {fast:.1}) \
             | {other:.1} ({other_slow:.1} – {other_fast:.1}) | {ratio:.2} |",
            case.test
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEIRS: &str = r#"[
      { "build_commit": "0c1e570", "build_number": 7, "backends": "CPU", "n_prompt": 128, "n_gen": 0, "n_depth": 0,
        "avg_ts": 95.0, "samples_ts": [ 90.0, 100.0 ] },
      { "build_commit": "0c1e570", "build_number": 7, "backends": "CPU", "n_prompt": 0, "n_gen": 64, "n_depth": 512,
        "samples_ts": [ 9.0, 10.0, 11.0 ] }
    ]"#;
    const OURS: &str = r#"{ "device": "a chip", "results": [
      { "test": "prefill", "tokens": 128, "depth": 0, "seconds": [ 1.0, 0.64 ] },
      { "test": "decode", "tokens": 64, "depth": 512, "seconds": [ 3.2, 6.4, 4.0 ] }
    ] }"#;

    #[test]
    fn runs_of_all_turns_make_a_table() {
        let [mut ours, mut theirs] = [Measured::default(), Measured::default()];
        for _ in 0..2 {
            ours.add(ours_of(OURS).unwrap());
            theirs.add(theirs_of(THEIRS).unwrap());
        }
        assert_eq!(theirs.runs[0].rates, [90.0, 100.0, 90.0, 100.0]);
        let options = Options::parse(&["--threads", "2"]).unwrap();
        let text = table(&options, Path::new("folder/m.gguf"), &ours, &theirs).unwrap();
        let head = "`m.gguf` on a chip, 2 threads; llama.cpp: build 7 (0c1e570) with CPU. 2 turns of 5 runs for each \
                    program: median (slowest – fastest).\n";
        assert!(text.starts_with(head), "{text}");
        let rows: Vec<&str> = text.lines().skip(4).collect();
        assert_eq!(
            rows,
            [
                "| prefill of 128 | 164.0 (128.0 – 200.0) | 95.0 (90.0 – 100.0) | 1.73 |",
                "| decode of 64, 512 tokens before | 16.0 (10.0 – 20.0) | 10.0 (9.0 – 11.0) | 1.60 |"
            ]
        );
    }

    #[test]
    fn runs_on_a_busy_machine_are_refused() {
        let measured = |rates: &[f64]| {
            let case = Case { test: "decode".into(), tokens: 64, depth: 0 };
            Measured { about: String::new(), runs: vec![Runs { case, rates: rates.to_vec() }] }
        };
        let (quiet, busy) = (measured(&[10.0, 9.0, 11.0]), measured(&[10.0, 7.0, 11.0]));
        assert!(check_rest([("one", &quiet), ("two", &quiet)]).is_ok());
        let error = check_rest([("one", &quiet), ("two", &busy)]).unwrap_err().to_string();
        assert!(error.starts_with("two, decode of 64: one run has 7.0 tokens/s and the median 10.0"), "{error}");
    }

    #[test]
    fn other_output_is_refused() {
        for (text, part) in [("{}", "a list"), ("[", "JSON"), ("[]", "a test"), ("[{\"n_prompt\": 1}]", "`samples_ts`")]
        {
            let error = format!("{:#}", theirs_of(text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
        assert!(ours_of("{\"results\": [{}], \"device\": \"x\"}").is_err());
        let nothing = Measured::default();
        let options = Options::parse(&[]).unwrap();
        assert!(table(&options, Path::new("m"), &ours_of(OURS).unwrap(), &nothing).is_err());
    }
}
