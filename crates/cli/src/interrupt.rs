//! Ctrl-C: the first asks the work to stop, the second ends the program.

use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::InterruptHandle;

/// Whether Ctrl-C was pressed and nobody has answered to it yet.
static PRESSED: AtomicBool = AtomicBool::new(false);
/// The engines that are told about it.
static ENGINES: Mutex<Vec<InterruptHandle>> = Mutex::new(Vec::new());

/// Whether the program waits for somebody to type.
static WAITING: AtomicBool = AtomicBool::new(false);

/// Takes Ctrl-C over from the system. Where that is not possible the system's own handling stays.
pub(crate) fn install() {
    let _ = ctrlc::set_handler(|| {
        let waiting = WAITING.load(Ordering::SeqCst);
        if PRESSED.swap(true, Ordering::SeqCst) {
            std::process::exit(if waiting { 0 } else { 1 });
        }
        if waiting {
            // Reading goes on where it was.
            let _ = write!(io::stderr().lock(), "\n(Ctrl-C once more, Ctrl-D or /bye to leave)\n>>> ");
            return;
        }
        if let Ok(engines) = ENGINES.lock() {
            engines.iter().for_each(InterruptHandle::interrupt);
        }
    });
}

/// Runs something that waits for somebody to type: Ctrl-C then says how to leave, and the second time leaves.
pub(crate) fn while_waiting<T>(wait: impl FnOnce() -> T) -> T {
    WAITING.store(true, Ordering::SeqCst);
    let result = wait();
    WAITING.store(false, Ordering::SeqCst);
    PRESSED.store(false, Ordering::SeqCst);
    result
}

/// From now on Ctrl-C interrupts this engine.
pub(crate) fn watch(engine: InterruptHandle) {
    if let Ok(mut watched) = ENGINES.lock() {
        *watched = vec![engine];
    }
}

/// From now on Ctrl-C interrupts these two.
pub(crate) fn watch_both(one: InterruptHandle, other: InterruptHandle) {
    if let Ok(mut watched) = ENGINES.lock() {
        *watched = vec![one, other];
    }
}

/// Whether Ctrl-C was pressed.
pub(crate) fn is_pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}

/// Forgets that Ctrl-C was pressed.
pub(crate) fn forget() {
    if PRESSED.swap(false, Ordering::SeqCst)
        && let Ok(engines) = ENGINES.lock()
    {
        engines.iter().for_each(InterruptHandle::clear);
    }
}

/// Fails if Ctrl-C was pressed.
///
/// # Errors
/// `interrupted`.
pub(crate) fn check() -> anyhow::Result<()> {
    if is_pressed() { Err(anyhow::anyhow!("interrupted")) } else { Ok(()) }
}
