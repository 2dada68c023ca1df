//! How fast this machine's memory can be read: the limit of decoding.

use std::time::Instant;

use crate::aligned::Aligned;
use crate::level::{Level, Vectorized};

/// Far beyond all caches.
const BUFFER_BYTES: usize = 512 << 20;
const PASSES: usize = 5;

/// Bytes per second that `threads` threads together read, each its own part of a buffer that no cache holds; the best
/// of a few passes.
pub fn memory_read_rate(threads: usize) -> f64 {
    let mut buffer = Aligned::<f32>::new(BUFFER_BYTES / size_of::<f32>());
    // Written once, so that every page exists.
    buffer.fill(1.0);
    let level = Level::detect();
    let part = buffer.len().div_ceil(threads.max(1));
    let mut best = 0.0f64;
    for _ in 0..PASSES {
        let start = Instant::now();
        let sum: f32 = std::thread::scope(|scope| {
            let parts: Vec<_> = buffer.chunks(part).map(|part| scope.spawn(move || level.run(Sum(part)))).collect();
            parts.into_iter().filter_map(|part| part.join().ok()).sum()
        });
        std::hint::black_box(sum);
        best = best.max(BUFFER_BYTES as f64 / start.elapsed().as_secs_f64());
    }
    best
}

struct Sum<'a>(&'a [f32]);

impl Vectorized for Sum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<const FMA: bool>(self) -> f32 {
        let (mut first, mut second) = ([0.0; 16], [0.0; 16]);
        for lines in self.0.chunks_exact(32) {
            prefetch(lines.as_ptr());
            for lane in 0..16 {
                first[lane] += lines[lane];
                second[lane] += lines[16 + lane];
            }
        }
        first.iter().chain(&second).sum()
    }
}

/// Asks for the two cache lines that come some kilobytes later, as the product kernels do.
#[inline(always)]
fn prefetch(lines: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        const AHEAD: usize = 8192;
        let ahead = lines.cast::<i8>().wrapping_add(AHEAD);
        // SAFETY: every x86-64 processor has the instruction, and prefetching never faults, whatever the address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(ahead);
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = lines;
}
