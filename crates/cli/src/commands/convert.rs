//! `convert`: a folder of trellis weights in another layout.

use std::time::Instant;

use anyhow::Result;
use backend_cpu::physical_cores;
use engine::ModelSource;
use quantize::pipeline::Conversion;
use serde_json::json;

use super::quantize::Watch;
use crate::args::ConvertArgs;
use crate::model_source::Model;
use crate::output;

/// Writes the folder.
///
/// # Errors
/// A model that can't be read or has no trellises, or has that layout; an embedding that would be lost; a target that
/// is there already or can't be written, Ctrl-C.
pub(crate) fn run(args: ConvertArgs) -> Result<()> {
    let start = Instant::now();
    let model = Model::open(Some(&args.model))?;
    let source = ModelSource::open(&model.checkpoint)?;
    let watch = Watch::default();
    let conversion = Conversion {
        source: &source,
        layout: args.layout.into(),
        drop_embedding: args.drop_embedding,
        threads: args.threads.unwrap_or_else(physical_cores),
        observer: &watch,
    };
    let bytes = conversion.run(&args.output, args.force)?;
    drop(watch);
    let (before, seconds) = (model.checkpoint.file_bytes(), start.elapsed().as_secs_f64());
    if args.json {
        let report = json!({ "output": args.output, "bytes": bytes, "bytes_before": before, "seconds": seconds });
        return Ok(output::json(&report)?);
    }
    let target = args.output.display();
    output::notice(&format!(
        "wrote `{target}`: {} from {}, {seconds:.1} s",
        output::bytes(bytes),
        output::bytes(before)
    ));
    Ok(())
}
