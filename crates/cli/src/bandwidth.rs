//! How fast this machine's memory can be read.

use std::time::Instant;

/// Far beyond all caches.
const BUFFER_BYTES: usize = 768 << 20;
const PASSES: usize = 4;

/// Bytes per second that `threads` threads together read, each its own part of a buffer that no cache holds; the best
/// of a few passes.
pub(crate) fn read_rate(threads: usize) -> f64 {
    // Numbers that are not zero, so that no page is shared.
    let buffer: Vec<u64> = (0..(BUFFER_BYTES / 8) as u64).map(|index| index | 1 << 63).collect();
    let part = buffer.len().div_ceil(threads);
    let mut best = 0.0f64;
    for _ in 0..PASSES {
        let start = Instant::now();
        let sum = std::thread::scope(|scope| {
            let parts: Vec<_> = buffer.chunks(part).map(|part| scope.spawn(move || sum(part))).collect();
            parts.into_iter().filter_map(|part| part.join().ok()).fold(0, u64::wrapping_add)
        });
        std::hint::black_box(sum);
        best = best.max(size_of_val(&buffer[..]) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// The sum, by more additions at once than the processor has units for.
fn sum(values: &[u64]) -> u64 {
    let mut lanes = [0u64; 64];
    let (groups, rest) = values.as_chunks::<64>();
    for group in groups {
        for (lane, value) in lanes.iter_mut().zip(group) {
            *lane = lane.wrapping_add(*value);
        }
    }
    lanes.iter().chain(rest).fold(0, |sum, value| sum.wrapping_add(*value))
}
