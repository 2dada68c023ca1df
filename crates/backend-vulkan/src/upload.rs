//! Weights from the processor's memory to the device's.
//!
//! A ring of staging buffers: while the processor fills one, the device copies from others (on its transfer queue,
//! where it has one) and turns rows of blocks into planes. Where the device shares the processor's memory, nothing is
//! copied twice.

use std::sync::Arc;
use std::thread;

use ash::vk;
use tensor::{BackendError, WeightBytes};

use crate::commands::{self, Commands, barrier, record_dispatches};
use crate::context::Context;
use crate::dispatch::Dispatch;
use crate::features::{DeviceKind, Features};
use crate::kernel::trellis::{self, TrellisWeight};
use crate::layout::{Weight, is_plain, repack};
use crate::memory::{Arena, Place, Slice};
use crate::pipeline::Pipelines;

/// Bytes of one staging buffer.
pub(crate) const SLOT_BYTES: u64 = 32 << 20;

/// Staging buffers of the ring.
pub(crate) const SLOTS: usize = 4;

/// Bytes of the ring, in staging and once more on a device with memory of its own.
pub(crate) const RING_BYTES: u64 = SLOT_BYTES * SLOTS as u64;

/// Bytes that are worth a thread of their own when staging is filled.
const THREAD_BYTES: usize = 4 << 20;

struct Slot {
    staging: Slice,
    /// The same bytes on a device with memory of its own.
    copy: Option<Slice>,
    transfer: vk::CommandBuffer,
    compute: vk::CommandBuffer,
    /// The compute queue's timeline when the slot is free again.
    free_at: u64,
}

/// Fills weights. Dropping it waits for the device.
pub(crate) struct Uploader {
    context: Arc<Context>,
    // Before the transfers, whose semaphore its submissions wait for.
    compute: Commands,
    transfer: Commands,
    slots: Vec<Slot>,
    next: usize,
    threads: usize,
    // After the command pools, so that it is dropped when nothing runs any more.
    _memory: Vec<Arena>,
}

impl Uploader {
    /// A ring for a device.
    ///
    /// # Errors
    /// No memory, or a device that fails.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Uploader, BackendError> {
        let transfer = Commands::new(context, &context.transfer)?;
        let compute = Commands::new(context, &context.queue)?;
        let mut staging = Arena::new(context, Place::Upload, RING_BYTES);
        let mut memory = Arena::new(context, Place::Device, RING_BYTES);
        let separate = context.features().kind == DeviceKind::Discrete;
        let mut slots = Vec::new();
        for _ in 0..SLOTS {
            slots.push(Slot {
                staging: staging.allocate(SLOT_BYTES, "staging")?,
                copy: if separate { Some(memory.allocate(SLOT_BYTES, "staging")?) } else { None },
                transfer: transfer.allocate()?,
                compute: compute.allocate()?,
                free_at: 0,
            });
        }
        let _memory = vec![staging, memory];
        Ok(Uploader { context: context.clone(), transfer, compute, slots, next: 0, threads: threads(), _memory })
    }

    /// Copies a weight to where it belongs. It is there for submissions to the compute queue that come after
    /// [`Uploader::finish`].
    ///
    /// # Errors
    /// A device that fails.
    ///
    /// # Panics
    /// If the bytes are not those of the weight's format and shape.
    pub(crate) fn upload(
        &mut self,
        pipelines: &Pipelines,
        weight: &Weight,
        mut target: Slice,
        bytes: &dyn WeightBytes,
    ) -> Result<(), BackendError> {
        let row = weight.dtype.row_bytes(weight.columns).expect("a row of whole blocks");
        let source = bytes.bytes();
        assert_eq!(source.len(), row * weight.rows, "bytes of a weight");
        let plain = is_plain(weight.dtype, weight.columns);
        // SAFETY: the arena was made for this program, which does not run yet.
        if plain && let Some(into) = unsafe { target.bytes_mut() } {
            copy(source, &mut into[..source.len()], self.threads);
            bytes.release(0..source.len());
            return Ok(());
        }
        let most = (SLOT_BYTES as usize / row.max(weight.row_bytes())).max(1);
        for first in (0..weight.rows).step_by(most) {
            let rows = most.min(weight.rows - first);
            let range = first * row..(first + rows) * row;
            let part = target.part((first * weight.row_bytes()) as u64, (rows * weight.row_bytes()) as u64);
            let dispatch = (!plain).then_some(|features: &Features, source| {
                repack(features, source, part.address, weight.dtype, rows, weight.columns)
            });
            self.chunk(pipelines, &source[range.clone()], part, dispatch)?;
            bytes.release(range);
        }
        Ok(())
    }

    /// Copies a weight of tiles with its scales, as [`Uploader::upload`] does.
    ///
    /// # Errors
    /// A device that fails.
    ///
    /// # Panics
    /// If there are no scales, or the bytes are not those of the weight's format and shape.
    pub(crate) fn upload_trellis(
        &mut self,
        pipelines: &Pipelines,
        weight: &TrellisWeight,
        target: Slice,
        bytes: &dyn WeightBytes,
    ) -> Result<(), BackendError> {
        let source = bytes.bytes();
        assert_eq!(source.len(), weight.tile_bytes(), "bytes of a weight");
        let most = (SLOT_BYTES as usize / weight.group_bytes()).max(1);
        for first in (0..weight.groups()).step_by(most) {
            let groups = most.min(weight.groups() - first);
            let range = first * weight.group_bytes()..(first + groups) * weight.group_bytes();
            let dispatch =
                |features: &Features, source| trellis::repack(features, source, weight, target.address, first, groups);
            self.chunk(pipelines, &source[range.clone()], target, Some(dispatch))?;
            bytes.release(range);
        }
        let scales = bytes.scales().expect("a trellis has scales");
        let scales: Vec<u8> = scales.suh.iter().chain(&scales.svh).flat_map(|scale| scale.to_le_bytes()).collect();
        assert_eq!(weight.tile_bytes() + scales.len(), weight.bytes(), "scales of a weight");
        let part = target.part(weight.tile_bytes() as u64, scales.len() as u64);
        self.chunk(pipelines, &scales, part, None::<fn(&Features, u64) -> Dispatch>)
    }

    /// Copies bytes to a target, or gives their address to a dispatch that brings them there.
    fn chunk(
        &mut self,
        pipelines: &Pipelines,
        bytes: &[u8],
        target: Slice,
        dispatch: Option<impl Fn(&Features, u64) -> Dispatch>,
    ) -> Result<(), BackendError> {
        let index = self.next;
        self.next = (self.next + 1) % SLOTS;
        self.compute.wait(self.slots[index].free_at)?;
        let slot = &mut self.slots[index];
        // SAFETY: the device is done with the slot.
        let into = unsafe { slot.staging.bytes_mut() }.expect("staging is mapped");
        copy(bytes, &mut into[..bytes.len()], self.threads);
        let into = if dispatch.is_none() { Some(target) } else { slot.copy };
        let context = &self.context;
        let copied = match into {
            Some(into) => {
                self.transfer.record(slot.transfer, |buffer| {
                    commands::copy(context, buffer, slot.staging, into, bytes.len() as u64);
                    Ok(())
                })?;
                Some(self.transfer.submit(&[slot.transfer])?)
            }
            None => None,
        };
        let source = slot.copy.unwrap_or(slot.staging).address;
        let dispatch = dispatch.map(|dispatch| dispatch(context.features(), source));
        self.compute.record(slot.compute, |buffer| {
            record_dispatches(context, pipelines, buffer, dispatch.as_slice(), &mut None)
        })?;
        let after = copied.map(|value| (self.transfer.timeline(), value));
        slot.free_at = self.compute.submit_after(&[slot.compute], after)?;
        Ok(())
    }

    /// Waits until all is where it belongs.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn finish(self) -> Result<(), BackendError> {
        // First the one that the other waits for: lavapipe 25 crashes if its timeline goes before it was looked at.
        self.transfer.wait_all()?;
        self.compute.wait_all()
    }
}

/// Writes a few bytes to the device.
///
/// # Errors
/// No memory for them, or a device that fails.
pub(crate) fn write(
    context: &Arc<Context>,
    commands: &mut Commands,
    bytes: &[u8],
    target: Slice,
) -> Result<(), BackendError> {
    let mut arena = Arena::new(context, Place::Upload, 0);
    let mut staging = arena.allocate(bytes.len() as u64, "staging")?;
    // SAFETY: the device does not know the memory yet.
    unsafe { staging.bytes_mut() }.expect("staging is mapped")[..bytes.len()].copy_from_slice(bytes);
    commands.once(|buffer| {
        commands::copy(context, buffer, staging, target, bytes.len() as u64);
        barrier(context, buffer);
        Ok(())
    })
}

/// Threads that fill staging.
pub(crate) fn threads() -> usize {
    thread::available_parallelism().map_or(1, |count| count.get().min(8))
}

/// Copies with several threads: one alone does not fill the bus of a fast card.
pub(crate) fn copy(from: &[u8], into: &mut [u8], threads: usize) {
    let threads = threads.min(from.len() / THREAD_BYTES).max(1);
    let part = from.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let mut parts = from.chunks(part).zip(into.chunks_mut(part));
        let first = parts.next();
        for (from, into) in parts {
            scope.spawn(|| into.copy_from_slice(from));
        }
        if let Some((from, into)) = first {
            into.copy_from_slice(from);
        }
    });
}
