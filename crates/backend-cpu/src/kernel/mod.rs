//! One file per op, named as the op is.

pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod cache_write;
pub(crate) mod embed;
pub(crate) mod gelu_mul;
pub(crate) mod linear;
pub(crate) mod math;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod select_outputs;
pub(crate) mod trellis;

use std::ops::Range;

use crate::pool::Pool;

/// Rows that a thread takes at once: below this many elements, handing work out costs more than the work.
const ELEMENTS_MIN: usize = 16_384;

/// Calls `body` with ranges of rows of `values` `[rows, width]` and the matching part of it.
pub(crate) fn for_rows(
    pool: &Pool,
    values: &mut [f32],
    width: usize,
    body: &(dyn Fn(Range<usize>, &mut [f32]) + Sync),
) {
    struct Rows(*mut f32);
    // SAFETY: each range of rows is handed to one call.
    unsafe impl Sync for Rows {}
    impl Rows {
        fn start(&self) -> *mut f32 {
            self.0
        }
    }
    let rows = values.len() / width;
    let grain = ELEMENTS_MIN.div_ceil(width).max(rows.div_ceil(4 * pool.threads()));
    let start = Rows(values.as_mut_ptr());
    pool.for_ranges(rows, grain, &|range| {
        // SAFETY: ranges are disjoint and inside `values`, which stays borrowed until `for_ranges` returns.
        let part =
            unsafe { std::slice::from_raw_parts_mut(start.start().add(range.start * width), range.len() * width) };
        body(range, part);
    });
}
