//! How fast a device's memory is.

use std::sync::Arc;
use std::time::Instant;

use ash::vk;
use tensor::BackendError;

use crate::commands::{Commands, barrier};
use crate::context::Context;
use crate::features::DeviceKind;
use crate::memory::{Arena, Place, available};

/// Bytes per second, read and written, of copies within the device's memory: the best of a few runs.
///
/// # Errors
/// No memory for it, or a device that fails.
pub(crate) fn copy_bandwidth(context: &Arc<Context>) -> Result<f64, BackendError> {
    let most: u64 = if context.features().kind == DeviceKind::Software { 64 << 20 } else { 1 << 30 };
    // Far larger than caches, and not more than a part of what is free.
    let bytes = most.min(available(context) / 8).max(1 << 20) & !0xff;
    let mut arena = Arena::new(context, Place::Device, 2 * bytes);
    let (from, to) = (arena.allocate(bytes, "a copy")?, arena.allocate(bytes, "a copy")?);
    let mut commands = Commands::new(context, &context.queue)?;
    let copies = if context.features().kind == DeviceKind::Discrete { 16 } else { 1 };
    let buffer = commands.allocate()?;
    commands.record(buffer, |buffer| {
        for _ in 0..copies {
            let region = vk::BufferCopy::default().src_offset(from.offset).dst_offset(to.offset).size(bytes);
            // SAFETY: both are that long.
            unsafe { context.raw.cmd_copy_buffer(buffer, from.buffer, to.buffer, &[region]) };
            barrier(context, buffer);
        }
        Ok(())
    })?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let done_at = commands.submit(&[buffer])?;
        commands.wait(done_at)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * bytes as f64 * f64::from(copies) / best)
}
