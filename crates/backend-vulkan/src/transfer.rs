//! Many bytes from the processor to the device and back.

use std::sync::Arc;
use std::thread;

use tensor::BackendError;

use crate::commands::{Commands, barrier, copy, host_barrier};
use crate::context::Context;
use crate::memory::{Arena, Place, Slice};

/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 64 << 20;

/// Threads that copy at once, and bytes that are worth one.
const THREADS_MAX: usize = 8;
const THREAD_BYTES: usize = 1 << 20;

/// Copies to the beginning of a slice.
///
/// # Errors
/// No memory to copy through, or a device that fails.
///
/// # Panics
/// If the slice is shorter.
pub(crate) fn send(
    context: &Arc<Context>,
    commands: &mut Commands,
    bytes: &[u8],
    target: Slice,
) -> Result<(), BackendError> {
    let mut arena = Arena::new(context, Place::Staging, 0);
    let mut staging = arena.allocate(bytes.len().min(CHUNK_BYTES) as u64, "staging")?;
    for (index, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
        let length = chunk.len() as u64;
        let target = target.part((index * CHUNK_BYTES) as u64, length);
        // SAFETY: the device is done with what it was given before: `once` waits.
        let staged = unsafe { staging.bytes_mut() }.expect("staging is mapped");
        copy_bytes(chunk, &mut staged[..chunk.len()]);
        commands.once(|buffer| {
            copy(context, buffer, staging, target, length);
            barrier(context, buffer);
            Ok(())
        })?;
    }
    Ok(())
}

/// Copies from the beginning of a slice.
///
/// # Errors
/// No memory to copy through, or a device that fails.
///
/// # Panics
/// If the slice is shorter.
pub(crate) fn receive<T: bytemuck::Pod>(
    context: &Arc<Context>,
    commands: &mut Commands,
    source: Slice,
    count: usize,
) -> Result<Vec<T>, BackendError> {
    let size = size_of::<T>();
    let each = CHUNK_BYTES / size;
    let mut arena = Arena::new(context, Place::Download, 0);
    let mut staging = arena.allocate((count.min(each) * size) as u64, "results")?;
    let mut values = vec![T::zeroed(); count];
    for (index, part) in values.chunks_mut(each).enumerate() {
        let bytes = size_of_val(part) as u64;
        let source = source.part((index * each * size) as u64, bytes);
        commands.once(|buffer| {
            barrier(context, buffer);
            copy(context, buffer, source, staging, bytes);
            host_barrier(context, buffer);
            Ok(())
        })?;
        // SAFETY: the copy is done.
        let found = unsafe { staging.bytes_mut() }.expect("results are mapped");
        copy_bytes(&found[..bytes as usize], bytemuck::cast_slice_mut(part));
    }
    Ok(values)
}

/// Copies with several threads: a single one is slower than the bus, above all where pages are touched for the first
/// time.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn copy_bytes(from: &[u8], into: &mut [u8]) {
    assert_eq!(from.len(), into.len(), "bytes to copy");
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let each = from.len().div_ceil(threads).max(THREAD_BYTES);
    let mut parts = from.chunks(each).zip(into.chunks_mut(each));
    let Some((first, first_into)) = parts.next() else { return };
    thread::scope(|scope| {
        parts.for_each(|(from, into)| drop(scope.spawn(move || into.copy_from_slice(from))));
        first_into.copy_from_slice(first);
    });
}
