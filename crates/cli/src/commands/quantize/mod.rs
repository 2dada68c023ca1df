//! `quantize`: a model that is smaller.

mod estimate;
mod gguf;
mod trellis;

use anyhow::Result;
use quantize::pipeline::Budget;
pub(super) use trellis::Watch;

use crate::args::QuantizeArgs;
use crate::failure::Usage;

/// Writes a folder of trellis weights, or a GGUF file.
///
/// # Errors
/// A command line that does not say which; a model that can't be read, a target that is there already or can't be
/// written, Ctrl-C.
pub(crate) fn run(args: QuantizeArgs) -> Result<()> {
    let budget = match (args.bpw, args.size) {
        (Some(bits), _) => Budget::BitsPerWeight(bits),
        (None, Some(bytes)) => Budget::Bytes(bytes),
        (None, None) => {
            let (Some(format), Some(output)) = (args.format, &args.output) else {
                let hint = "--bpw 2.5 or --size 9GB for a folder of trellis weights, --format q4_0 for a GGUF file";
                return Err(Usage(format!("how small the model shall be is missing\n\nhint: {hint}")).into());
            };
            return gguf::run(&args, format, output);
        }
    };
    trellis::run(&args, budget)
}
