//! Perplexity and KL divergence of the same files by both programs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::options::Options;
use super::programs::{Programs, output};

/// What is compared, in the units of llama.cpp's tool: how its line begins there, what a table calls it, where it is in
/// what `evaluate --json` prints, times which factor, and with how many decimals.
const SCORES: [(&str, &str, &str, f64, usize); 8] = [
    ("Mean PPL(base)", "perplexity of the original", "/original_perplexity", 1.0, 3),
    ("Mean PPL(Q)  ", "perplexity", "/perplexity", 1.0, 3),
    ("Mean    KLD", "KL divergence, mean", "/kl/mean", 1.0, 6),
    ("Median  KLD", "median", "/kl/median", 1.0, 4),
    ("99.0%   KLD", "99 %", "/kl/p99", 1.0, 4),
    ("99.9%   KLD", "99.9 %", "/kl/p99.9", 1.0, 3),
    ("Same top p", "same top token, %", "/same_top", 100.0, 3),
    ("RMS Δp", "RMS change of the token's probability, %", "/token_change_rms", 100.0, 3),
];

/// Runs both programs and makes a table of it.
///
/// # Errors
/// A program that fails or says something else.
pub(super) fn measure(options: &Options, programs: &Programs, model: &Path, original: &Path) -> Result<String> {
    let text = options.text.as_deref().context("`--quality` needs `--text`")?;
    let tool = &programs.llama;
    let [model_file, original_file, text_file] = [model, original, text].map(|path| path.to_str());
    let files = model_file.zip(original_file).zip(text_file);
    let ((model_file, original_file), text_file) = files.context("a path is not UTF-8")?;
    let threads = options.threads.to_string();
    let ours = ["evaluate", model_file, "--against", original_file, "--text", text_file, "--protocol", "llama.cpp"];
    let ours = [&ours[..], &["--device", &options.device, "--threads", &threads, "--json"]].concat();
    let ours = ours_of(&output(&programs.lapidary, &owned(&ours))?).context("what `lapidary evaluate` printed")?;
    let base = std::env::temp_dir().join(format!("lapidary-peers-{}.logits", std::process::id()));
    let base_file = base.to_str().context("a path is not UTF-8")?;
    let common = ["-ngl", options.gpu_layers(), "-t", &threads, "--kl-divergence-base", base_file];
    output(tool, &owned(&[&["-m", original_file, "-f", text_file][..], &common].concat()))?;
    let found = output(tool, &owned(&[&["-m", model_file, "--kl-divergence"][..], &common].concat()));
    // Hundreds of megabytes that nobody needs any more; that they may stay is no reason to fail.
    let _ = fs::remove_file(&base);
    let theirs = theirs_of(&found?).context("what `llama-perplexity` printed")?;
    let [model, original, text] = [model, original, text].map(|path| path.file_name().unwrap_or_default());
    let head = format!(
        "`{}` against `{}` on `{}`.\n\n| | llama.cpp | `evaluate` | ratio |\n|---|---|---|---|\n",
        model.display(),
        original.display(),
        text.display()
    );
    let row = |((_, name, .., decimals), (ours, theirs)): (&(_, &str, _, _, usize), (&f64, &f64))| {
        format!("| {name} | {theirs:.decimals$} | {ours:.decimals$} | {:.4} |\n", ours / theirs)
    };
    Ok(head + &SCORES.iter().zip(ours.iter().zip(&theirs)).map(row).collect::<String>())
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}

/// Reads what `lapidary evaluate --json` prints of one text.
fn ours_of(text: &str) -> Result<Vec<f64>> {
    let report: Value = serde_json::from_str(text).context("it is not valid JSON")?;
    let texts = report["text"].as_object().context("expected `text`")?;
    let found = texts.values().next().context("expected one text")?;
    let score = |(_, _, path, factor, _): &(_, _, &str, f64, _)| {
        let value = found.pointer(path).and_then(Value::as_f64);
        Ok(factor * value.with_context(|| format!("expected `{path}`"))?)
    };
    SCORES.iter().map(score).collect()
}

/// Reads what `llama-perplexity --kl-divergence` prints: lines such as `Mean    KLD:   0.031153 ±   0.000273`.
fn theirs_of(text: &str) -> Result<Vec<f64>> {
    let score = |(name, ..): &(&str, _, _, _, _)| {
        let line = text.lines().find(|line| line.trim_start().starts_with(name));
        let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim_start());
        let number = value.and_then(|value| value.split([' ', '%']).next()).and_then(|value| value.parse().ok());
        number.with_context(|| format!("expected a line that begins with `{}`", name.trim_end()))
    };
    SCORES.iter().map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEIRS: &str = "\
chunk  PPL  KL Divergence
====== Perplexity statistics ======
Mean PPL(Q)                   :  37.937000 ±   0.700000
Mean PPL(base)                :  37.159000 ±   0.690000
Mean PPL(Q)/PPL(base)         :   1.020000 ±   0.001000

====== KL divergence statistics ======
Mean    KLD:   0.031153 ±   0.000273
Maximum KLD:   2.000000
99.9%   KLD:   0.469000
99.0%   KLD:   0.178100
Median  KLD:   0.021800
====== Token probability statistics ======
RMS Δp    :  4.015 ± 0.040 %
Same top p: 88.016 ± 0.220 %
";

    #[test]
    fn both_are_read_in_one_order() {
        let theirs = theirs_of(THEIRS).unwrap();
        assert_eq!(theirs, [37.159, 37.937, 0.031153, 0.0218, 0.1781, 0.469, 88.016, 4.015]);
        let ours = r#"{ "text": { "book": { "original_perplexity": 37.0, "perplexity": 38.0, "same_top": 0.875,
            "token_change_rms": 0.0625, "kl": { "mean": 0.5, "median": 0.25, "p99": 1.0, "p99.9": 2.0 } } } }"#;
        assert_eq!(ours_of(ours).unwrap(), [37.0, 38.0, 0.5, 0.25, 1.0, 2.0, 87.5, 6.25]);
    }

    #[test]
    fn a_missing_line_is_named() {
        let cut = THEIRS.replace("Same top p", "Other");
        assert!(theirs_of(&cut).unwrap_err().to_string().contains("`Same top p`"));
        assert!(ours_of("{ \"text\": { \"a\": {} } }").unwrap_err().to_string().contains("/original_perplexity"));
    }
}
