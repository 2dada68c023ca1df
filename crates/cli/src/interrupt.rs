//! Ctrl-C: the first asks the work to stop, the second ends the program.

use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::InterruptHandle;

/// Whether Ctrl-C was pressed and nobody has answered to it yet.
static PRESSED: AtomicBool = AtomicBool::new(false);
/// The engine that is told about it.
static ENGINE: Mutex<Option<InterruptHandle>> = Mutex::new(None);

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
        if let Ok(engine) = ENGINE.lock()
            && let Some(engine) = &*engine
        {
            engine.interrupt();
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
    if let Ok(mut watched) = ENGINE.lock() {
        *watched = Some(engine);
    }
}

/// Whether Ctrl-C was pressed.
pub(crate) fn is_pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}

/// Forgets that Ctrl-C was pressed.
pub(crate) fn forget() {
    if PRESSED.swap(false, Ordering::SeqCst)
        && let Ok(engine) = ENGINE.lock()
        && let Some(engine) = &*engine
    {
        engine.clear();
    }
}

/// Fails if Ctrl-C was pressed.
///
/// # Errors
/// `interrupted`.
pub(crate) fn check() -> anyhow::Result<()> {
    if is_pressed() { Err(anyhow::anyhow!("interrupted")) } else { Ok(()) }
}
