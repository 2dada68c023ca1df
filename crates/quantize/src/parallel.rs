//! Work for several threads.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::thread::ScopedJoinHandle;

/// What `work` makes of each item, in the order of the items. `threads` of them (at least one) take the next item
/// whenever they are free, so the results must not depend on who works on what.
pub(crate) fn map<I: Send, R: Send>(items: Vec<I>, threads: usize, work: impl Fn(I) -> R + Sync) -> Vec<R> {
    if threads <= 1 || items.len() <= 1 {
        return items.into_iter().map(work).collect();
    }
    let workers = threads.min(items.len());
    let results: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    let queue = Mutex::new(items.into_iter().enumerate());
    let next = || queue.lock().expect("no panics with the queue locked").next();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((index, item)) = next() {
                    let result = work(item);
                    results.lock().expect("no panics with the results locked")[index] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().expect("no panics with the results locked");
    results.into_iter().map(|result| result.expect("a result for each item")).collect()
}

/// What a thread found, or its panic.
pub(crate) fn join<R>(thread: ScopedJoinHandle<'_, R>) -> R {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_are_in_the_order_of_the_items() {
        for threads in [0, 1, 3, 200] {
            let squares = super::map((0..100).collect(), threads, |n: u32| n * n);
            assert!(squares.iter().enumerate().all(|(n, &square)| square == (n * n) as u32), "{threads} threads");
        }
    }
}
