//! One thread's side of the device: staging memory and command buffers of its own.

use std::sync::{Arc, Mutex, PoisonError};

use ash::vk;
use tensor::BackendError;

use super::{Chunk, Ring};
use crate::commands::{self, Commands, record_dispatches};
use crate::context::Context;
use crate::features::DeviceKind;
use crate::memory::{Arena, Place, Slice};
use crate::pipeline::Pipelines;

/// Uploads one chunk after the other. Dropping it waits for the device.
///
/// It has nothing of the device until the first chunk needs it. Drivers make memory and command pools for one thread at
/// a time; workers take turns in getting all of theirs, so that the first is at work while the others wait.
pub(crate) struct Worker {
    context: Arc<Context>,
    ring: Ring,
    turn: Arc<Mutex<()>>,
    queues: Option<Queues>,
    slots: Vec<Slot>,
    next: usize,
    /// The transfers' timeline when all chunks are there that were only copied.
    plain_at: u64,
    // After the queues, so that they are dropped when nothing runs any more.
    staging: Arena,
    memory: Arena,
}

struct Queues {
    // Before the transfers, whose semaphore its submissions wait for.
    compute: Commands,
    transfer: Commands,
}

#[derive(Clone, Copy)]
struct Slot {
    staging: Slice,
    /// The same bytes on a device with memory of its own, for chunks that need a dispatch.
    copy: Option<Slice>,
    transfer: vk::CommandBuffer,
    compute: vk::CommandBuffer,
    /// The timelines' values when the slot is free again; 0 if they have nothing to do with it.
    transferred_at: u64,
    computed_at: u64,
}

impl Worker {
    /// For an opened device. `turn` is that of all workers.
    pub(super) fn new(context: &Arc<Context>, ring: Ring, turn: &Arc<Mutex<()>>) -> Worker {
        Worker {
            context: context.clone(),
            ring,
            turn: turn.clone(),
            queues: None,
            slots: Vec::new(),
            next: 0,
            plain_at: 0,
            // Blocks of one buffer each, so that the first is there early.
            staging: Arena::new(context, ring.place, 0),
            memory: Arena::new(context, Place::Device, 0),
        }
    }

    /// Reads a chunk and lets the device bring it to where it belongs, without waiting for that.
    ///
    /// # Errors
    /// A chunk that can't be read, no memory, or a device that fails.
    pub(crate) fn upload(&mut self, pipelines: &Pipelines, chunk: &Chunk) -> Result<(), BackendError> {
        let mut target = chunk.plain_target();
        // SAFETY: the target was made for a program that does not run yet, and no other chunk has this part of it.
        if let Some(into) = target.as_mut().and_then(|target| unsafe { target.bytes_mut() }) {
            return chunk.read(into);
        }
        let index = self.read(chunk)?;
        self.submit(pipelines, index, chunk)
    }

    /// Reads a chunk into the next slot, which it gives, as soon as that is free.
    ///
    /// # Errors
    /// As [`Worker::upload`].
    pub(crate) fn read(&mut self, chunk: &Chunk) -> Result<usize, BackendError> {
        let index = self.free_slot(chunk.len() as u64)?;
        // SAFETY: the device is done with the slot, which only this worker knows.
        let into = unsafe { self.slots[index].staging.bytes_mut() }.expect("staging is mapped");
        chunk.read(into)?;
        Ok(index)
    }

    /// Copies whatever is in the next slot to where the chunk belongs: for measuring.
    ///
    /// # Errors
    /// No memory, or a device that fails.
    pub(crate) fn copy(&mut self, chunk: &Chunk) -> Result<(), BackendError> {
        let index = self.free_slot(chunk.len() as u64)?;
        self.transfer(index, chunk.any_target(), chunk.len() as u64)
    }

    /// Makes all staging memory now: for measuring.
    ///
    /// # Errors
    /// No memory, or a device that fails.
    pub(crate) fn prepare(&mut self) -> Result<(), BackendError> {
        (0..self.ring.slots).try_for_each(|_| self.free_slot(self.ring.slot_bytes).map(drop))
    }

    /// Waits until all is where it belongs, for whatever the compute queue gets from now on.
    ///
    /// # Errors
    /// A device that fails.
    pub(super) fn finish(&mut self) -> Result<(), BackendError> {
        let Some(Queues { compute, transfer }) = &mut self.queues else { return Ok(()) };
        // First the one that the other waits for: lavapipe 25 crashes if its timeline goes before it was looked at.
        transfer.wait_all()?;
        if self.plain_at > 0 {
            // No dispatch has waited for these copies, so that the queue does not have to see them yet.
            compute.submit_after(&[], Some((transfer.timeline(), self.plain_at)))?;
            self.plain_at = 0;
        }
        compute.wait_all()
    }

    fn queues(&mut self) -> Result<&mut Queues, BackendError> {
        let queues = match self.queues.take() {
            Some(queues) => queues,
            None => Queues {
                compute: Commands::new(&self.context, &self.context.queue)?,
                transfer: Commands::new(&self.context, &self.context.transfer)?,
            },
        };
        Ok(self.queues.insert(queues))
    }

    /// The slots take turns; waits for the device if it still uses this one.
    fn free_slot(&mut self, bytes: u64) -> Result<usize, BackendError> {
        let index = self.next;
        self.next = (self.next + 1) % self.ring.slots;
        if index == self.slots.len() {
            let slot = self.slot(bytes)?;
            self.slots.push(slot);
        }
        let Slot { staging, transferred_at, computed_at, .. } = self.slots[index];
        let Queues { compute, transfer } = self.queues()?;
        if transferred_at > 0 {
            transfer.wait(transferred_at)?;
        }
        if computed_at > 0 {
            compute.wait(computed_at)?;
        }
        if staging.size < bytes {
            // A single row that is longer.
            self.slots[index] = self.slot(bytes)?;
        }
        Ok(index)
    }

    fn slot(&mut self, bytes: u64) -> Result<Slot, BackendError> {
        let turn = self.turn.clone();
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = bytes.max(self.ring.slot_bytes);
        let separate = self.context.features().kind == DeviceKind::Discrete;
        let staging = self.staging.allocate(bytes, "staging")?;
        let copy = if separate { Some(self.memory.allocate(bytes, "staging")?) } else { None };
        let Queues { compute, transfer } = self.queues()?;
        let (transfer, compute) = (transfer.allocate()?, compute.allocate()?);
        Ok(Slot { staging, copy, transfer, compute, transferred_at: 0, computed_at: 0 })
    }

    /// What is in a slot goes to where the chunk belongs.
    fn submit(&mut self, pipelines: &Pipelines, index: usize, chunk: &Chunk) -> Result<(), BackendError> {
        if let Some(target) = chunk.plain_target() {
            self.transfer(index, target, chunk.len() as u64)?;
            self.plain_at = self.slots[index].transferred_at;
            return Ok(());
        }
        if let Some(copy) = self.slots[index].copy {
            self.transfer(index, copy, chunk.len() as u64)?;
        }
        let (slot, context) = (self.slots[index], self.context.clone());
        let source = slot.copy.unwrap_or(slot.staging).address;
        let dispatch = chunk.dispatch(context.features(), source);
        let Queues { compute, transfer } = self.queues()?;
        compute.record(slot.compute, |buffer| {
            record_dispatches(&context, pipelines, buffer, dispatch.as_slice(), &mut None)
        })?;
        let after = slot.copy.map(|_| (transfer.timeline(), slot.transferred_at));
        self.slots[index].computed_at = compute.submit_after(&[slot.compute], after)?;
        Ok(())
    }

    fn transfer(&mut self, index: usize, into: Slice, bytes: u64) -> Result<(), BackendError> {
        let (slot, context) = (self.slots[index], self.context.clone());
        let Queues { transfer, .. } = self.queues()?;
        transfer.record(slot.transfer, |buffer| {
            commands::copy(&context, buffer, slot.staging, into, bytes);
            Ok(())
        })?;
        self.slots[index].transferred_at = transfer.submit(&[slot.transfer])?;
        Ok(())
    }
}
