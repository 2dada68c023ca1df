//! A comparison with the original, for people and for programs.

use evaluate::{Comparison, Divergence, Estimate};
use serde_json::{Value, json};

/// The most points of [`along`].
const POINTS: usize = 400;

/// KL divergence along the text, for plots: means and maxima of as many predictions each as make few points.
pub(super) fn along(divergences: &[Divergence]) -> Value {
    let per_point = divergences.len().div_ceil(POINTS).max(1);
    let mean = |part: &[Divergence]| part.iter().map(|one| one.kl).sum::<f64>() / part.len() as f64;
    let max = |part: &[Divergence]| part.iter().map(|one| one.kl).fold(0.0, f64::max);
    json!({
        "predictions_per_point": per_point,
        "mean": divergences.chunks(per_point).map(mean).collect::<Vec<_>>(),
        "max": divergences.chunks(per_point).map(max).collect::<Vec<_>>(),
    })
}

/// A comparison for people.
pub(super) fn table(found: &Comparison) -> String {
    let line = |label: &str, Estimate { value, error }: Estimate| format!("  {label:<40} {value:>9.5} ± {error:.5}\n");
    let percent = |label: &str, Estimate { value, error }: Estimate| {
        format!("  {label:<40} {:>8.3} % ± {:.3} %\n", 100.0 * value, 100.0 * error)
    };
    let kl = &found.kl;
    let mut text = line("perplexity", found.perplexity)
        + &line("perplexity of the original", found.original_perplexity)
        + &line("ln of their ratio", found.ln_ratio)
        + &line("KL divergence, mean", kl.mean);
    let quantiles = [("median", kl.median), ("90 %", kl.p90), ("95 %", kl.p95), ("99 %", kl.p99), ("99.9 %", kl.p999)];
    for (label, value) in quantiles.into_iter().chain([("largest", kl.max)]) {
        text += &format!("    {label:<38} {value:>9.5}\n");
    }
    if let Some(tail) = &found.tail {
        text += &format!(
            "    among tokens of which only the sum is saved ({:.2} % of the probability), estimated from a sample and \
             a part of the mean: {:.5} ± {:.5}; certain is that the mean is {:.5} to {:.5}\n",
            100.0 * tail.mass,
            tail.inside.value,
            tail.inside.error,
            tail.kl_min,
            tail.kl_max
        );
    }
    text + &percent("same most probable token", found.same_top)
        + &percent("probability of the token, RMS change", found.token_change_rms)
        + &percent("probability of the top one, RMS change", found.top_change_rms)
}

/// A comparison for programs.
pub(super) fn json(found: &Comparison) -> Value {
    let kl = &found.kl;
    json!({
        "predictions": found.predictions,
        "perplexity": found.perplexity.value,
        "perplexity_error": found.perplexity.error,
        "original_perplexity": found.original_perplexity.value,
        "original_perplexity_error": found.original_perplexity.error,
        "ln_ratio": found.ln_ratio.value,
        "ln_ratio_error": found.ln_ratio.error,
        "kl": {
            "mean": kl.mean.value,
            "mean_error": kl.mean.error,
            "median": kl.median,
            "p90": kl.p90,
            "p95": kl.p95,
            "p99": kl.p99,
            "p99.9": kl.p999,
            "max": kl.max,
            "tail": found.tail.map(|tail| json!({
                "probability": tail.mass,
                "inside": tail.inside.value,
                "inside_error": tail.inside.error,
                "mean_min": tail.kl_min,
                "mean_max": tail.kl_max,
            })),
        },
        "same_top": found.same_top.value,
        "same_top_error": found.same_top.error,
        "token_change_rms": found.token_change_rms.value,
        "token_change_rms_error": found.token_change_rms.error,
        "top_change_rms": found.top_change_rms.value,
        "top_change_rms_error": found.top_change_rms.error,
    })
}
