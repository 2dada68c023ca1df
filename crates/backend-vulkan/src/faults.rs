//! Failures on demand, so that tests see what the backend makes of them: each goes the way of a real one from the call
//! that would have reported it.

use std::sync::atomic::{AtomicUsize, Ordering};

use ash::vk;

/// Whether failures can be asked for: not in what people run.
const ENABLED: bool = cfg!(any(test, debug_assertions));

/// A failure, and when it happens. Calls are counted from 0 from the opening of the device on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A submission finds the device lost, and so does everything after it.
    DeviceLost {
        /// Its number.
        submission: usize,
    },
    /// A wait for the device ends without the device being done.
    Timeout {
        /// Its number.
        wait: usize,
    },
    /// An allocation of memory fails, and so do all after it.
    OutOfMemory {
        /// Its number.
        allocation: usize,
    },
    /// The driver lacks a feature that is required.
    MissingFeature(&'static str),
}

/// The failure that a device was opened with, and how far it is.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    fault: Option<Fault>,
    submissions: AtomicUsize,
    waits: AtomicUsize,
    allocations: AtomicUsize,
}

impl Faults {
    /// None, or one.
    pub(crate) fn new(fault: Option<Fault>) -> Faults {
        Faults { fault: fault.filter(|_| ENABLED), ..Faults::default() }
    }

    /// Whether there is one.
    pub(crate) fn any(&self) -> bool {
        self.fault.is_some()
    }

    /// The feature that is to be missing.
    pub(crate) fn missing_feature(&self) -> Option<&'static str> {
        match self.fault {
            Some(Fault::MissingFeature(name)) => Some(name),
            Some(Fault::DeviceLost { .. } | Fault::Timeout { .. } | Fault::OutOfMemory { .. }) | None => None,
        }
    }

    /// Before a submission. Nothing is submitted where this is an error.
    pub(crate) fn submission(&self) -> Result<(), vk::Result> {
        let number = self.submissions.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Some(Fault::DeviceLost { submission }) if number >= submission => Err(vk::Result::ERROR_DEVICE_LOST),
            _ => Ok(()),
        }
    }

    /// After a wait with this result. The device is done all the same, so that tests leave nothing running.
    pub(crate) fn wait(&self, result: Result<(), vk::Result>) -> Result<(), vk::Result> {
        let number = self.waits.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Some(Fault::DeviceLost { submission }) if self.submissions.load(Ordering::Relaxed) > submission => {
                Err(vk::Result::ERROR_DEVICE_LOST)
            }
            Some(Fault::Timeout { wait }) if number == wait => Err(vk::Result::TIMEOUT),
            _ => result,
        }
    }

    /// Before an allocation. Nothing is allocated where this is an error.
    pub(crate) fn allocation(&self) -> Result<(), vk::Result> {
        let number = self.allocations.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Some(Fault::OutOfMemory { allocation }) if number >= allocation => {
                Err(vk::Result::ERROR_OUT_OF_DEVICE_MEMORY)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
