use crate::DType;

/// Writes the rows `input` `[tokens, width]` over `cache`, the positions of these tokens, rounded as a cache of the
/// format `dtype` rounds them.
///
/// # Panics
/// If the format can't be written, or `width` is no multiple of its block.
pub fn cache_write(input: &[f32], dtype: DType, width: usize, cache: &mut [f32]) {
    assert_eq!(input.len(), cache.len());
    let mut bytes = vec![0; dtype.row_bytes(width).expect("a width of whole blocks")];
    for (input, cache) in input.chunks_exact(width).zip(cache.chunks_exact_mut(width)) {
        dtype.codec().encode(input, &mut bytes).expect("a format for caches");
        dtype.codec().decode(&bytes, cache);
    }
}
