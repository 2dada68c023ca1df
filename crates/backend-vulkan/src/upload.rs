//! Weights from where they are kept to the device's memory.
//!
//! Weights come as chunks. Each of several threads takes the next chunk, reads it into staging memory of its own and
//! lets the device copy it from there (on its transfer queue, where it has one) and turn rows of blocks into planes.
//! While the device does that, the thread reads the next chunk into another of its buffers. Threads share nothing but
//! the list of chunks. Where the device shares the processor's memory, nothing is copied twice.

mod chunk;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use tensor::BackendError;

pub(crate) use self::chunk::{Chunk, chunks, trellis_chunks};
pub(crate) use self::worker::Worker;
use crate::context::Context;
use crate::memory::Place;
use crate::pipeline::Pipelines;

/// Threads that read: twice as many as it takes to read from memory as fast as a fast bus copies.
const THREADS_MAX: usize = 16;

/// Staging buffers of each thread: one is filled while the device reads the other.
const SLOTS: usize = 2;

/// Bytes of one staging buffer: shorter copies are slower.
const SLOT_BYTES: u64 = 4 << 20;

/// Bytes of all staging at most, and once more on a device with memory of its own.
pub(crate) const RING_BYTES: u64 = (THREADS_MAX * SLOTS) as u64 * SLOT_BYTES;

/// How many threads upload, through what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    /// Threads.
    pub(crate) threads: usize,
    /// Staging buffers of each.
    pub(crate) slots: usize,
    /// Bytes of one staging buffer.
    pub(crate) slot_bytes: u64,
    /// What memory they are of.
    pub(crate) place: Place,
}

impl Ring {
    /// What loading uses on this machine.
    pub(crate) fn new() -> Ring {
        let threads = thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
        Ring { threads, slots: SLOTS, slot_bytes: SLOT_BYTES, place: Place::Staging }
    }

    /// One for each of its threads.
    pub(crate) fn workers(&self, context: &Arc<Context>) -> Vec<Worker> {
        let turn = Arc::default();
        (0..self.threads).map(|_| Worker::new(context, *self, &turn)).collect()
    }
}

/// Brings chunks to where they belong. They are there for all that is submitted to the compute queue afterwards.
/// `weights` gives the chunks of one weight after the other, on this thread, while others are under way.
///
/// # Errors
/// The first that occurs: of `weights`, weights that can't be read, no memory, or a device that fails.
pub(crate) fn upload(
    context: &Arc<Context>,
    pipelines: &Pipelines,
    ring: Ring,
    weights: impl Iterator<Item = Result<Vec<Chunk>, BackendError>>,
) -> Result<(), BackendError> {
    for_each(&mut ring.workers(context), weights, |worker, chunk| worker.upload(pipelines, chunk))
}

/// Does something with each chunk, a thread for each worker, and waits for the device. No thread is left when it
/// returns.
///
/// # Errors
/// The first that occurs, of `weights` or of `step`. The others stop when they are done with their chunk.
pub(crate) fn for_each(
    workers: &mut [Worker],
    weights: impl Iterator<Item = Result<Vec<Chunk>, BackendError>>,
    step: impl Fn(&mut Worker, &Chunk) -> Result<(), BackendError> + Sync,
) -> Result<(), BackendError> {
    let (sender, receiver) = sync_channel(workers.len());
    // Of the threads alone: when the last of them has gone, sending fails and nobody waits for a place.
    let receiver = Arc::new(Mutex::new(receiver));
    let failure = OnceLock::new();
    let (step, stop) = (&step, &failure);
    thread::scope(|scope| {
        for worker in workers {
            let receiver = receiver.clone();
            scope.spawn(move || {
                let result = work(worker, &receiver, step, stop);
                result.unwrap_or_else(|error| drop(stop.set(error)));
            });
        }
        drop(receiver);
        feed(sender, weights).unwrap_or_else(|error| drop(stop.set(error)));
    });
    failure.into_inner().map_or(Ok(()), Err)
}

/// One thread: chunk after chunk, until there are no more or something failed.
fn work(
    worker: &mut Worker,
    receiver: &Mutex<Receiver<Chunk>>,
    step: &impl Fn(&mut Worker, &Chunk) -> Result<(), BackendError>,
    stop: &OnceLock<BackendError>,
) -> Result<(), BackendError> {
    // Whoever waits for a chunk holds the lock, and the others wait for the lock.
    let next = || receiver.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
    while stop.get().is_none() {
        match next() {
            Some(chunk) => step(worker, &chunk)?,
            None => return worker.finish(),
        }
    }
    Ok(())
}

fn feed(
    sender: SyncSender<Chunk>,
    weights: impl Iterator<Item = Result<Vec<Chunk>, BackendError>>,
) -> Result<(), BackendError> {
    for chunks in weights {
        for chunk in chunks? {
            if sender.send(chunk).is_err() {
                // All threads have gone, and one of them has said why.
                return Ok(());
            }
        }
    }
    Ok(())
}
