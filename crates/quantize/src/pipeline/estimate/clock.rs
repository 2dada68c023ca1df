//! Time that was worked, whatever else the machine does.

use std::fs;
use std::time::Instant;

/// Each measurement takes about so long, and at least this many turns, unless they take longer than that.
const SECONDS: f64 = 0.2;
const TURNS: u32 = 3;
const SECONDS_MAX: f64 = 0.5;

/// Ticks of `/proc/PID/stat` in a second, on every Linux.
const TICKS: f64 = 100.0;

/// Seconds of one thread for a turn of `work`, which does not start threads.
pub(super) fn of_thread(work: impl FnMut()) -> f64 {
    turns(thread_seconds, work)
}

/// Seconds of all threads together for a turn of `work`, if the processor does it.
pub(super) fn of_process(work: impl FnMut()) -> Option<f64> {
    process_seconds()?;
    Some(turns(process_seconds, work))
}

/// The mean of some turns by the clock of the work, or the shortest of them where there is only the one on the wall:
/// what other programs take is no part of it.
pub(super) fn turns(clock: impl Fn() -> Option<f64>, mut work: impl FnMut()) -> f64 {
    // The first turn reads what is on disk, and makes room.
    work();
    let (begin, before, mut turns, mut least) = (Instant::now(), clock(), 0, f64::INFINITY);
    let goes_on = |turns| match begin.elapsed().as_secs_f64() {
        seconds if seconds < SECONDS => true,
        seconds => turns < TURNS && seconds < SECONDS_MAX,
    };
    while goes_on(turns) {
        let start = Instant::now();
        work();
        least = least.min(start.elapsed().as_secs_f64());
        turns += 1;
    }
    match (before, clock()) {
        (Some(before), Some(after)) if after > before => (after - before) / f64::from(turns),
        _ => least,
    }
}

fn thread_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}

/// Of threads that have ended too.
fn process_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program comes before, in parentheses, and may have spaces.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_averaged_or_the_shortest_counts() {
        let mut turn = 0;
        let shortest = turns(
            || None,
            || {
                turn += 1;
                std::thread::sleep(std::time::Duration::from_millis(if turn == 3 { 1 } else { 60 }));
            },
        );
        assert!(turn >= 4 && (0.001..0.06).contains(&shortest), "{shortest} s, {turn} turns");
        // A thread that sleeps does not work.
        if thread_seconds().is_some() {
            let asleep = of_thread(|| std::thread::sleep(std::time::Duration::from_millis(50)));
            assert!(asleep < 0.025, "{asleep}");
        }
    }
}
