//! Decides the context before anything is loaded.

use tensor::{LoadOptions, MemoryUse};

use crate::{EngineError, EngineOptions};

/// Contexts that are chosen are multiples of it.
const STEP: usize = 256;

/// What a device takes for a model, [`tensor::Backend::required_memory`].
pub(crate) type Required<'a> = &'a dyn Fn(&LoadOptions) -> MemoryUse;

/// The options for the device: with the context that was asked for, or by default with the longest up to `context_max`
/// that fits.
///
/// # Errors
/// [`EngineError::OutOfMemory`] with what is missing and what would fit.
pub(crate) fn plan(
    required: Required<'_>,
    options: &EngineOptions,
    context_max: usize,
    available: u64,
) -> Result<LoadOptions, EngineError> {
    let wanted = options.load_options(options.context.unwrap_or(context_max));
    if needed(required(&wanted)) <= available {
        return Ok(wanted);
    }
    let fits = longest(required, options, wanted.context_max, available);
    match (options.context, fits) {
        (None, Some(context)) if context >= options.context_min => Ok(options.load_options(context)),
        (_, fits) => {
            // Told is the least that would do.
            let least = match options.context {
                None if options.context_min > 1 => options.load_options(options.context_min.min(wanted.context_max)),
                _ => wanted,
            };
            let used = required(&least);
            Err(EngineError::OutOfMemory {
                weights: used.weights,
                caches: used.caches,
                scratch: used.scratch,
                available,
                context: least.context_max,
                fits,
            })
        }
    }
}

fn needed(used: MemoryUse) -> u64 {
    used.weights.saturating_add(used.caches).saturating_add(used.scratch)
}

/// The longest context below `wanted` that fits: a multiple of [`STEP`]. Memory grows with the context, so halving the
/// range finds it.
fn longest(required: Required<'_>, options: &EngineOptions, wanted: usize, available: u64) -> Option<usize> {
    let fits = |steps: usize| needed(required(&options.load_options(steps * STEP))) <= available;
    // Invariant: `low` steps fit (or are none), `high` don't.
    let (mut low, mut high) = (0, wanted.div_ceil(STEP));
    while low + 1 < high {
        let middle = low.midpoint(high);
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low > 0).then_some(low * STEP)
}

#[cfg(test)]
mod tests {
    use model::{Config, ProgramOptions, build_program};
    use tensor::DType;
    use tensor::backend::required_memory;

    use super::*;

    #[test]
    fn the_context_is_what_fits() {
        let config = Config::shape("1b").unwrap();
        let program = build_program(&config, &|_| DType::Q4_0.into(), ProgramOptions::default()).unwrap().program;
        let required = |options: &LoadOptions| required_memory(&program, options);
        let options = EngineOptions::default();
        let all = needed(required(&options.load_options(8192)));
        assert_eq!(plan(&required, &options, 8192, all).unwrap().context_max, 8192);

        let less = plan(&required, &options, 8192, all - 1).unwrap();
        assert!(less.context_max < 8192 && less.context_max.is_multiple_of(STEP));
        assert!(needed(required(&less)) < all);
        assert!(needed(required(&options.load_options(less.context_max + STEP))) >= all);

        let asked = EngineOptions { context: Some(8192), ..options.clone() };
        let error = plan(&required, &asked, 8192, all - 1).unwrap_err();
        assert!(error.to_string().ends_with(&format!("hint: a context of {} fits", less.context_max)), "{error}");
        let roomy = EngineOptions { context_min: less.context_max + 1, ..options.clone() };
        let error = plan(&required, &roomy, 8192, all - 1).unwrap_err();
        assert!(error.to_string().contains(&format!("a context of {}", less.context_max + 1)), "{error}");
        let error = plan(&required, &options, 8192, 1000).unwrap_err();
        assert!(error.to_string().contains("no context fits"), "{error}");
    }

    #[test]
    fn local_layers_cost_only_their_window() {
        let config = Config::shape("27b").unwrap();
        let program = build_program(&config, &|_| DType::Q4_0.into(), ProgramOptions::default()).unwrap().program;
        let options = EngineOptions::default();
        let caches = |context| required_memory(&program, &options.load_options(context)).caches;
        // Per position beyond the windows: keys and values of the 10 global layers, 16 heads of 128, in f16.
        assert_eq!(caches(65_536) - caches(32_768), 32_768 * 10 * 2 * 16 * 128 * 2);
    }
}
