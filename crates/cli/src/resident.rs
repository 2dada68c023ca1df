//! Memory and processor time of this process, where the system tells.

use std::time::Duration;

/// Most bytes that were resident at once.
#[cfg(unix)]
pub(crate) fn peak() -> Option<u64> {
    let kilobytes = usage(libc::RUSAGE_SELF)?.ru_maxrss as u64;
    // macOS counts bytes, the others kilobytes.
    Some(if cfg!(target_os = "macos") { kilobytes } else { kilobytes * 1024 })
}

/// Processor time of all threads so far, that of the system on their behalf included.
#[cfg(unix)]
pub(crate) fn cpu_time() -> Option<Duration> {
    usage(libc::RUSAGE_SELF).map(|usage| time_of(&usage))
}

/// Processor time of this thread so far.
#[cfg(target_os = "linux")]
pub(crate) fn thread_cpu_time() -> Option<Duration> {
    usage(libc::RUSAGE_THREAD).map(|usage| time_of(&usage))
}

#[cfg(unix)]
fn time_of(usage: &libc::rusage) -> Duration {
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(u64::from(time.tv_usec as u32))
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[cfg(unix)]
fn usage(of: libc::c_int) -> Option<libc::rusage> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for writing an `rusage`, which the call fills in.
    let result = unsafe { libc::getrusage(of, usage.as_mut_ptr()) };
    // SAFETY: all-zero bytes are a valid `rusage`, and the call has filled it in.
    (result == 0).then(|| unsafe { usage.assume_init() })
}

/// Most bytes that were resident at once.
#[cfg(not(unix))]
pub(crate) fn peak() -> Option<u64> {
    None
}

/// Processor time of all threads so far.
#[cfg(not(unix))]
pub(crate) fn cpu_time() -> Option<Duration> {
    None
}

/// Processor time of this thread so far.
#[cfg(not(target_os = "linux"))]
pub(crate) fn thread_cpu_time() -> Option<Duration> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_its_own_time() {
        let spun = std::thread::spawn(|| {
            let start = std::time::Instant::now();
            while start.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
            thread_cpu_time().unwrap()
        });
        let (before, of_thread) = (thread_cpu_time().unwrap(), spun.join().unwrap());
        let own = thread_cpu_time().unwrap() - before;
        assert!(of_thread > own, "{of_thread:?} of the thread that spun, {own:?} of the one that waited");
        assert!(cpu_time().unwrap() >= of_thread);
    }
}
