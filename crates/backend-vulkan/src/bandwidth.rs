//! How fast a device's memory is.

use std::sync::Arc;
use std::time::Instant;

use tensor::BackendError;

use crate::commands::{Commands, record_dispatches};
use crate::context::Context;
use crate::dispatch::{Dispatch, Push};
use crate::features::DeviceKind;
use crate::kernel::kernel;
use crate::memory::{Arena, Place, available};
use crate::pipeline::Pipelines;

/// Bytes per second, read and written, of copies within the device's memory: the best of a few runs.
///
/// # Errors
/// No memory for it, or a device that fails.
pub(crate) fn copy_bandwidth(context: &Arc<Context>, pipelines: &Pipelines) -> Result<f64, BackendError> {
    if let Some(&known) = context.bandwidth.get() {
        return Ok(known);
    }
    let measured = measure(context, pipelines)?;
    Ok(*context.bandwidth.get_or_init(|| measured))
}

fn measure(context: &Arc<Context>, pipelines: &Pipelines) -> Result<f64, BackendError> {
    let most: u64 = if context.features().kind == DeviceKind::Software { 16 << 20 } else { 512 << 20 };
    // Far larger than caches, and not more than a part of what is free.
    let bytes = most.min(available(context) / 8).max(1 << 20) & !0xff;
    let mut arena = Arena::new(context, Place::Device, 2 * bytes);
    let (from, to) = (arena.allocate(bytes, "a copy")?, arena.allocate(bytes, "a copy")?);
    let mut commands = Commands::new(context, &context.queue)?;
    let copies = if context.features().kind == DeviceKind::Discrete { 16 } else { 1 };
    // By a kernel: drivers give copy commands to slower engines.
    let kernel = kernel(context.features(), "copy", vec![]);
    let block = 64 * u64::from(kernel.workgroup);
    let bytes = bytes / block * block;
    let dispatch = Dispatch {
        groups: [(bytes / block) as u32, 1, 1],
        kernel,
        push: Push::default().address(from.address).address(to.address),
        reads: vec![from.address],
        writes: vec![to.address],
        ..Dispatch::default()
    };
    let buffer = commands.allocate()?;
    commands
        .record(buffer, |buffer| record_dispatches(context, pipelines, buffer, &vec![dispatch; copies], &mut None))?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        let done_at = commands.submit(&[buffer])?;
        commands.wait(done_at)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * bytes as f64 * copies as f64 / best)
}
