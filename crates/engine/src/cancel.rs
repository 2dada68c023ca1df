//! Stopping work from another thread.
//!
//! A pass watches one flag, which stops it between two ops. What to do then is decided by the flags of the sequences
//! and of the engine: whoever is not meant goes on with the next pass from where it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Cancels one request, from any thread. Without effect once it has finished.
#[derive(Clone, Debug)]
pub struct CancelHandle {
    pub(crate) request: Arc<AtomicBool>,
    pub(crate) pass: Arc<AtomicBool>,
}

impl CancelHandle {
    /// Stops the pass that is running; the request finishes as cancelled.
    pub fn cancel(&self) {
        // In this order: who finds the pass stopped must find the reason.
        self.request.store(true, Ordering::SeqCst);
        self.pass.store(true, Ordering::SeqCst);
    }
}

/// Cancels all that an engine is doing, from any thread.
#[derive(Clone, Debug)]
pub struct InterruptHandle {
    pub(crate) all: Arc<AtomicBool>,
    pub(crate) pass: Arc<AtomicBool>,
}

impl InterruptHandle {
    /// Stops the pass that is running; all requests finish as cancelled, and [`crate::Engine::forward`] returns
    /// [`crate::EngineError::Interrupted`]. If nothing is running, it is remembered for what comes next.
    pub fn interrupt(&self) {
        self.all.store(true, Ordering::SeqCst);
        self.pass.store(true, Ordering::SeqCst);
    }

    /// Forgets an interruption that nothing has followed yet.
    pub fn clear(&self) {
        self.all.store(false, Ordering::SeqCst);
    }
}

/// The flags on the engine's side.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    pub(crate) all: Arc<AtomicBool>,
    pub(crate) pass: Arc<AtomicBool>,
}

impl Signals {
    /// Arms the flag of the next pass. Must come before the reasons are looked at, so that none set later is lost.
    pub(crate) fn arm(&self) {
        self.pass.store(false, Ordering::SeqCst);
    }

    /// Whether all work is to stop; asking uses it up.
    pub(crate) fn take_interrupt(&self) -> bool {
        self.all.swap(false, Ordering::SeqCst)
    }
}
