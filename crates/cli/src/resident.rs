//! Memory and processor time of this process, where the system tells.

use std::time::Duration;

/// Most bytes that were resident at once.
#[cfg(unix)]
pub(crate) fn peak() -> Option<u64> {
    let kilobytes = usage()?.ru_maxrss as u64;
    // macOS counts bytes, the others kilobytes.
    Some(if cfg!(target_os = "macos") { kilobytes } else { kilobytes * 1024 })
}

/// Processor time of all threads so far, that of the system on their behalf included.
#[cfg(unix)]
pub(crate) fn cpu_time() -> Option<Duration> {
    let usage = usage()?;
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(u64::from(time.tv_usec as u32))
    };
    Some(time(usage.ru_utime) + time(usage.ru_stime))
}

#[cfg(unix)]
fn usage() -> Option<libc::rusage> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for writing an `rusage`, which the call fills in.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
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
