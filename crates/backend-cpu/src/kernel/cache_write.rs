//! Appends keys or values to a cache.

use tensor::Segment;

use crate::cache::Cache;

/// Stores each token's row of `input` `[tokens, width]` at the token's position.
pub(crate) fn cache_write(input: &[f32], segments: &[Segment], cache: &mut Cache) {
    let mut rows = input.chunks_exact(cache.width());
    for segment in segments {
        for (offset, row) in rows.by_ref().take(segment.tokens).enumerate() {
            cache.write(segment.sequence, segment.position + offset, row);
        }
    }
}
