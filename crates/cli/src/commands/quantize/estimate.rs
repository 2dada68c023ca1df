//! `quantize --estimate`: what it would take.

use anyhow::Result;
use quantize::pipeline::Task;
use serde_json::json;

use crate::args::QuantizeArgs;
use crate::output;

/// Says size, memory and time.
///
/// # Errors
/// A budget that can't be met, a model that can't be read.
pub(super) fn run(args: &QuantizeArgs, task: &Task<'_>) -> Result<()> {
    let report = task.check()?;
    if args.json {
        return Ok(output::json(&json!({ "bytes": report.bytes, "bits_per_weight": report.bits_per_weight() }))?);
    }
    output::answer(&format!("{}, {:.3} bits per weight\n", output::bytes(report.bytes), report.bits_per_weight()))?;
    Ok(())
}
