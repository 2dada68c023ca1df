//! `quantize --estimate`: what it would take.

use anyhow::Result;
use quantize::pipeline::{Estimate, Report, Task};
use serde_json::{Value, json};

use crate::args::QuantizeArgs;
use crate::output;

/// Says size, memory and time.
///
/// # Errors
/// A budget that can't be met, a text that is too short, a model that can't be read.
pub(super) fn run(args: &QuantizeArgs, task: &Task<'_>) -> Result<()> {
    let (report, estimate) = (task.check()?, task.estimate()?);
    if args.json {
        return Ok(output::json(&as_json(&report, &estimate))?);
    }
    Ok(output::answer(&as_text(&report, &estimate))?)
}

fn as_text(report: &Report, estimate: &Estimate) -> String {
    let peak = estimate.peak();
    let device = if estimate.overlaps { " and a GPU" } else { "" };
    let mut text = format!(
        "size     {}, {:.3} bits per weight\nmemory   {} at most ({}), besides pages of the checkpoint\n\
         time     {}, {} threads with a core each{device}\n",
        output::bytes(report.bytes),
        report.bits_per_weight(),
        output::bytes(peak.bytes),
        peak.what,
        duration(estimate.seconds()),
        estimate.threads
    );
    let total = estimate.processor_seconds();
    for (part, seconds) in estimate.parts.iter().filter(|(_, seconds)| *seconds > 0.0) {
        text += &format!("  {:>5.1} %  {}\n", 100.0 * seconds / total, part.name());
    }
    text
}

fn as_json(report: &Report, estimate: &Estimate) -> Value {
    let phases = estimate.phases.iter().map(|phase| json!({ "what": phase.what, "bytes": phase.bytes }));
    let parts = estimate.parts.iter().map(|(part, seconds)| json!({ "what": part.name(), "seconds": seconds }));
    let (work, speeds) = (&estimate.work, &estimate.speeds);
    let tiles = work
        .tiles
        .iter()
        .map(|(rate, count)| json!({ "bits": rate.bits(), "tiles": count, "seconds_each": speeds.tiles.get(rate) }));
    json!({
        "bytes": report.bytes,
        "bits_per_weight": report.bits_per_weight(),
        "memory_bytes": estimate.peak().bytes,
        "memory": phases.collect::<Vec<_>>(),
        "seconds": estimate.seconds(),
        "processor_seconds": estimate.processor_seconds(),
        "threads": estimate.threads,
        "parts": parts.collect::<Vec<_>>(),
        "tiles": tiles.collect::<Vec<_>>(),
        "products": {
            "feedback": work.feedback,
            "hessians": work.hessians,
            "decomposition_cubes": work.cubes,
            "feedback_per_second": speeds.product.recip(),
            "hessians_per_second": speeds.hessian_product.recip(),
            "text_per_second": speeds.pass_product.recip(),
        },
    })
}

/// Seconds as people say them.
fn duration(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        120.0..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}
