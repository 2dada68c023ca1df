//! Memory of this process.

/// Most bytes that were resident at once, where the system tells.
#[cfg(unix)]
pub(crate) fn peak() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for writing an `rusage`, which the call fills in.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: all-zero bytes are a valid `rusage`, and the call has filled it in.
    let kilobytes = unsafe { usage.assume_init() }.ru_maxrss as u64;
    // macOS counts bytes, the others kilobytes.
    Some(if cfg!(target_os = "macos") { kilobytes } else { kilobytes * 1024 })
}

/// Most bytes that were resident at once, where the system tells.
#[cfg(not(unix))]
pub(crate) fn peak() -> Option<u64> {
    None
}
