//! Timestamps around every dispatch, for the report of `bench`.

use std::sync::Arc;
use std::time::Duration;

use ash::vk;
use tensor::{BackendError, TraceSpan};

use crate::commands::Stamps;
use crate::context::Context;
use crate::dispatch::Dispatch;

/// Dispatches that can be timed in one submission.
const DISPATCHES_MAX: u32 = 4096;

/// What was timed since tracing was switched on.
pub(crate) struct Trace {
    context: Arc<Context>,
    pool: vk::QueryPool,
    spans: Vec<TraceSpan>,
    /// The device's clock at the first timestamp.
    origin: Option<u64>,
}

impl Trace {
    /// Nothing yet; `None` if the device has no timestamps.
    pub(crate) fn new(context: &Arc<Context>) -> Option<Trace> {
        context.features().timestamp_nanoseconds?;
        let info =
            vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(2 * DISPATCHES_MAX);
        // SAFETY: plain creation.
        let pool = unsafe { context.raw.create_query_pool(&info, None) }.ok()?;
        Some(Trace { context: context.clone(), pool, spans: Vec::new(), origin: None })
    }

    /// Queries for `dispatches`, cleared by the command buffer that is being recorded; `None` if there are too many.
    pub(crate) fn begin(&self, buffer: vk::CommandBuffer, dispatches: &[Dispatch]) -> Option<Stamps> {
        let queries = 2 * dispatches.len() as u32;
        if queries > 2 * DISPATCHES_MAX {
            return None;
        }
        // SAFETY: the pool has as many queries, and nothing that uses it is under way.
        unsafe { self.context.raw.cmd_reset_query_pool(buffer, self.pool, 0, queries) };
        Some(Stamps { pool: self.pool, next: 0 })
    }

    /// Reads the times of dispatches that are done.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn end(&mut self, dispatches: &[Dispatch]) -> Result<(), BackendError> {
        let Some(step) = self.context.features().timestamp_nanoseconds else { return Ok(()) };
        let mut stamps = vec![0u64; 2 * dispatches.len()];
        let flags = vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT;
        // SAFETY: the dispatches are done, so their results are there.
        let read = unsafe { self.context.raw.get_query_pool_results(self.pool, 0, &mut stamps, flags) };
        read.map_err(|error| self.context.failure("reading timestamps", error))?;
        let origin = *self.origin.get_or_insert_with(|| stamps.first().copied().unwrap_or(0));
        let time = |ticks: u64| Duration::from_nanos(ticks * u64::from(step));
        self.spans.extend(dispatches.iter().zip(stamps.chunks(2)).map(|(dispatch, stamps)| TraceSpan {
            name: dispatch.label.clone(),
            op: op(&dispatch.kernel.shader),
            start: time(stamps[0].saturating_sub(origin)),
            duration: time(stamps[1].saturating_sub(stamps[0])),
            bytes: dispatch.bytes,
            operations: dispatch.operations,
        }));
        Ok(())
    }

    /// What there is so far.
    pub(crate) fn take(&mut self) -> Vec<TraceSpan> {
        std::mem::take(&mut self.spans)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if self.context.is_hung() {
            return;
        }
        // SAFETY: whoever drops it has waited for what uses it.
        unsafe { self.context.raw.destroy_query_pool(self.pool, None) };
    }
}

/// The kind of work of a shader.
fn op(shader: &str) -> &'static str {
    const KINDS: [(&str, &str); 16] = [
        ("matvec", "linear"),
        ("matmul", "linear"),
        ("attention", "attention"),
        ("head_prepare", "head_prepare"),
        ("norm", "norm"),
        ("rms_norm", "rms_norm"),
        ("quantize", "quantize"),
        ("to_half", "to_half"),
        ("sample", "sample"),
        ("embed", "embed"),
        ("gelu_mul", "gelu_mul"),
        ("select_outputs", "select_outputs"),
        ("add", "add"),
        ("rope", "rope"),
        ("cache_write", "cache_write"),
        ("repack", "repack"),
    ];
    KINDS.iter().find(|(prefix, _)| shader.starts_with(prefix)).map_or("other", |(_, kind)| kind)
}
