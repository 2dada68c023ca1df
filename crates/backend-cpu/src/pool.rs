//! Threads that work on one job at a time.
//!
//! A decode step has hundreds of jobs of some ten microseconds, too short for a sleeping thread to be woken for each.
//! So a worker looks for the next job for a moment ([`SPIN`]) before it goes to sleep, and an idle program uses no
//! processor time. The thread that hands out a job works on it as well: `threads` counts it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker looks for the next job before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// A job: called once by every thread with the thread's number.
type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Counts jobs; a change says that `job` is new.
    generation: AtomicUsize,
    /// Workers that have not finished the current job.
    running: AtomicUsize,
    /// A worker panicked in the current job.
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Workers that are asleep, or about to be.
    sleepers: AtomicUsize,
    job: Mutex<Option<SendJob>>,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct SendJob(Job);
// SAFETY: the pointee is `Sync`, and `Pool::run` keeps it alive until every worker has finished with it.
unsafe impl Send for SendJob {}

/// A fixed set of worker threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; at least one.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            generation: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            job: Mutex::new(None),
            wake: Condvar::new(),
        });
        let workers = (1..threads.max(1)).map_while(|number| {
            let shared = Arc::clone(&shared);
            // With fewer threads than asked for, the work is still done.
            std::thread::Builder::new().name(format!("cpu-{number}")).spawn(move || work(&shared, number)).ok()
        });
        Pool { workers: workers.collect(), shared }
    }

    /// Number of threads that a job runs on.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job` on every thread at once and returns when all calls have.
    ///
    /// # Panics
    /// If a call panics.
    pub(crate) fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; this function does not return before `running` is zero again, which each
        // worker lets happen after its last use of the job, also when it panics.
        let erased = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job) };
        shared.running.store(self.workers.len(), Ordering::Relaxed);
        *shared.job.lock().expect("no code panics while it holds this lock") = Some(SendJob(erased));
        shared.generation.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.job.lock());
            shared.wake.notify_all();
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(0)));
        let mut spins = 0u32;
        while shared.running.load(Ordering::Acquire) > 0 {
            relax(&mut spins);
        }
        if let Err(payload) = outcome {
            std::panic::resume_unwind(payload);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a worker thread panicked");
    }

    /// Calls `body` with every range of at most `grain` indices below `count`; free threads take the next range.
    pub(crate) fn for_ranges(&self, count: usize, grain: usize, body: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
        let grain = grain.max(1);
        if count <= grain || self.workers.is_empty() {
            for start in (0..count).step_by(grain) {
                body(start..(start + grain).min(count));
            }
            return;
        }
        let next = AtomicUsize::new(0);
        self.run(&|_| {
            loop {
                let start = next.fetch_add(grain, Ordering::Relaxed);
                if start >= count {
                    return;
                }
                body(start..(start + grain).min(count));
            }
        });
    }
}

impl Pool {
    /// As [`Pool::for_ranges`], but with ranges that start large and shrink to `grain`: long consecutive runs for data
    /// that streams from memory, and short ones at the end, so that all threads finish together. (Guided
    /// self-scheduling, Polychronopoulos & Kuck 1987.)
    pub(crate) fn for_shrinking_ranges(
        &self,
        count: usize,
        grain: usize,
        body: &(dyn Fn(std::ops::Range<usize>) + Sync),
    ) {
        if count <= grain || self.workers.is_empty() {
            if count > 0 {
                body(0..count);
            }
            return;
        }
        let next = AtomicUsize::new(0);
        self.run(&|_| {
            let mut start = next.load(Ordering::Relaxed);
            while start < count {
                let size = ((count - start) / (2 * self.threads())).max(grain).min(count - start);
                match next.compare_exchange_weak(start, start + size, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => {
                        body(start..start + size);
                        start = next.load(Ordering::Relaxed);
                    }
                    Err(now) => start = now,
                }
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        drop(self.shared.job.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panic was reported by `run`.
            let _ = worker.join();
        }
    }
}

/// Waits a little: with pause instructions first, giving up the processor once in a while for whoever shares it.
fn relax(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(512) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// A worker's life.
fn work(shared: &Shared, number: usize) {
    let mut seen = 0;
    loop {
        wait_for_job(shared, seen);
        seen = shared.generation.load(Ordering::SeqCst);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let job = *shared.job.lock().expect("no code panics while it holds this lock");
        let Some(SendJob(job)) = job else { continue };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // SAFETY: `Pool::run` keeps the job alive until `running` is decremented below.
            unsafe { (*job)(number) }
        }));
        if outcome.is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// Returns when the generation differs from `seen`: spins for [`SPIN`], then sleeps.
fn wait_for_job(shared: &Shared, seen: usize) {
    let started = Instant::now();
    let mut spins = 0u32;
    while shared.generation.load(Ordering::Acquire) == seen {
        relax(&mut spins);
        if spins.is_multiple_of(64) && started.elapsed() > SPIN {
            let mut guard = shared.job.lock().expect("no code panics while it holds this lock");
            shared.sleepers.fetch_add(1, Ordering::SeqCst);
            while shared.generation.load(Ordering::SeqCst) == seen {
                guard = shared.wake.wait(guard).expect("no code panics while it holds this lock");
            }
            shared.sleepers.fetch_sub(1, Ordering::SeqCst);
            return;
        }
    }
}

/// Cores that this process may use, hyperthreads of one core counted once where the system tells.
pub fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, |count| count.get());
    match hyperthreads_per_core() {
        Some(siblings) if siblings > 1 => logical.div_ceil(siblings),
        _ => logical,
    }
}

/// Threads per core of the first core, from Linux's topology files.
fn hyperthreads_per_core() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list").ok()?;
    let mut count = 0;
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    (count > 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn every_index_is_visited_once() {
        for (threads, count) in [1, 3].into_iter().flat_map(|t| [0usize, 1, 2, 7, 100, 1001].map(|count| (t, count))) {
            let sum = AtomicU64::new(0);
            Pool::new(threads).for_ranges(count, 7, &|range| {
                assert!(range.len() <= 7);
                sum.fetch_add(range.map(|index| index as u64 + 1).sum(), Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), (count * (count + 1) / 2) as u64);
            let sum = AtomicU64::new(0);
            Pool::new(threads).for_shrinking_ranges(count, 7, &|range| {
                sum.fetch_add(range.map(|index| index as u64 + 1).sum(), Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), (count * (count + 1) / 2) as u64);
        }
    }

    #[test]
    fn sleeping_workers_are_woken() {
        let pool = Pool::new(2);
        for _ in 0..20 {
            std::thread::sleep(SPIN * 3);
            let calls = AtomicUsize::new(0);
            pool.run(&|_| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.into_inner(), 2);
        }
    }

    #[test]
    #[should_panic(expected = "a worker thread panicked")]
    fn a_workers_panic_is_passed_on() {
        Pool::new(2).run(&|number| assert_eq!(number, 0, "only the caller is fine"));
    }
}
