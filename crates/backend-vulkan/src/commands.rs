//! Command buffers: recorded once from a list of dispatches, submitted any number of times, waited for by a timeline
//! semaphore.

use std::sync::Arc;

use ash::vk;
use tensor::BackendError;

use crate::context::{Context, Queue, TIMEOUT};
use crate::dispatch::{Dispatch, barriers};
use crate::memory::Slice;
use crate::pipeline::Pipelines;

/// Makes command buffers for one queue and counts what was submitted.
pub(crate) struct Commands {
    context: Arc<Context>,
    queue: Queue,
    pool: vk::CommandPool,
    timeline: vk::Semaphore,
    /// The timeline's value when all that was submitted is done.
    submitted: u64,
}

impl Commands {
    /// For the queue of that context.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn new(context: &Arc<Context>, queue: &Queue) -> Result<Commands, BackendError> {
        let pool = vk::CommandPoolCreateInfo::default()
            .queue_family_index(queue.family)
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
        let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
        let semaphore = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        // SAFETY: plain creation.
        unsafe {
            let pool = context.raw.create_command_pool(&pool, None);
            let pool = pool.map_err(|error| context.failure("making a command pool", error))?;
            let timeline = context.raw.create_semaphore(&semaphore, None).map_err(|error| {
                context.raw.destroy_command_pool(pool, None);
                context.failure("making a semaphore", error)
            })?;
            Ok(Commands { context: context.clone(), queue: queue.clone(), pool, timeline, submitted: 0 })
        }
    }

    /// An empty command buffer.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn allocate(&self) -> Result<vk::CommandBuffer, BackendError> {
        let info = vk::CommandBufferAllocateInfo::default().command_pool(self.pool).command_buffer_count(1);
        // SAFETY: the pool is alive and used by this thread alone.
        let buffers = unsafe { self.context.raw.allocate_command_buffers(&info) };
        Ok(buffers.map_err(|error| self.context.failure("making a command buffer", error))?[0])
    }

    /// Begins to record; the buffer can be submitted again and again, also while it is still running.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn begin(&self, buffer: vk::CommandBuffer) -> Result<(), BackendError> {
        let info = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::SIMULTANEOUS_USE);
        // SAFETY: the buffer is of this pool and not running: the caller has waited for it.
        let result = unsafe { self.context.raw.begin_command_buffer(buffer, &info) };
        result.map_err(|error| self.context.failure("recording", error))
    }

    /// Ends what [`Commands::begin`] began.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn end(&self, buffer: vk::CommandBuffer) -> Result<(), BackendError> {
        // SAFETY: the buffer is being recorded.
        let result = unsafe { self.context.raw.end_command_buffer(buffer) };
        result.map_err(|error| self.context.failure("recording", error))
    }

    /// Records with `record` between [`Commands::begin`] and [`Commands::end`].
    ///
    /// # Errors
    /// A device that fails, or what `record` returns.
    pub(crate) fn record(
        &self,
        buffer: vk::CommandBuffer,
        record: impl FnOnce(vk::CommandBuffer) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.begin(buffer)?;
        record(buffer)?;
        self.end(buffer)
    }

    /// Gives buffers back that are not running.
    pub(crate) fn free(&self, buffers: &[vk::CommandBuffer]) {
        // SAFETY: the caller has waited for them.
        unsafe { self.context.raw.free_command_buffers(self.pool, buffers) };
    }

    /// Submits; gives the value of the timeline at which it is done.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn submit(&mut self, buffers: &[vk::CommandBuffer]) -> Result<u64, BackendError> {
        self.submit_after(buffers, None)
    }

    /// As [`Commands::submit`], to begin when another timeline has reached a value.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn submit_after(
        &mut self,
        buffers: &[vk::CommandBuffer],
        after: Option<(vk::Semaphore, u64)>,
    ) -> Result<u64, BackendError> {
        let value = self.submitted + 1;
        let infos: Vec<_> =
            buffers.iter().map(|&buffer| vk::CommandBufferSubmitInfo::default().command_buffer(buffer)).collect();
        let signal = vk::SemaphoreSubmitInfo::default()
            .semaphore(self.timeline)
            .value(value)
            .stage_mask(vk::PipelineStageFlags2::ALL_COMMANDS);
        let waits: Vec<_> = after
            .iter()
            .map(|&(semaphore, value)| {
                let wait = vk::SemaphoreSubmitInfo::default().semaphore(semaphore).value(value);
                wait.stage_mask(vk::PipelineStageFlags2::ALL_COMMANDS)
            })
            .collect();
        let info = vk::SubmitInfo2::default()
            .wait_semaphore_infos(&waits)
            .command_buffer_infos(&infos)
            .signal_semaphore_infos(std::slice::from_ref(&signal));
        let queue = self.queue.raw.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: the buffers are recorded; the lock keeps the queue to this thread.
        let submit = || unsafe { self.context.raw.queue_submit2(*queue, &[info], vk::Fence::null()) };
        let result = if self.context.is_hung() { Err(vk::Result::TIMEOUT) } else { self.context.faults.submission() };
        result.and_then(|()| submit()).map_err(|error| self.context.failure("a submission", error))?;
        self.submitted = value;
        Ok(value)
    }

    /// Sleeps until the timeline has that value.
    ///
    /// # Errors
    /// A device that fails or takes too long.
    pub(crate) fn wait(&self, value: u64) -> Result<(), BackendError> {
        let (semaphores, values) = ([self.timeline], [value]);
        let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        // A device that has hung once is only asked.
        let timeout = if self.context.is_hung() { 0 } else { TIMEOUT.as_nanos() as u64 };
        // SAFETY: the semaphore is alive.
        let result = unsafe { self.context.raw.wait_semaphores(&info, timeout) };
        let result = self.context.faults.wait(result);
        if result == Err(vk::Result::TIMEOUT) {
            self.context.set_hung();
        }
        result.map_err(|error| self.context.failure("a pass", error))
    }

    /// The semaphore that [`Commands::submit`] counts on.
    pub(crate) fn timeline(&self) -> vk::Semaphore {
        self.timeline
    }

    /// Waits for all that was submitted.
    ///
    /// # Errors
    /// As [`Commands::wait`].
    pub(crate) fn wait_all(&self) -> Result<(), BackendError> {
        self.wait(self.submitted)
    }

    /// Records, submits and waits: for what is done once.
    ///
    /// # Errors
    /// As the three.
    pub(crate) fn once(
        &mut self,
        record: impl FnOnce(vk::CommandBuffer) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let buffer = self.allocate()?;
        self.record(buffer, record)?;
        let value = self.submit(&[buffer])?;
        let result = self.wait(value);
        if !self.context.is_hung() {
            // SAFETY: it is done, or the device is lost.
            unsafe { self.context.raw.free_command_buffers(self.pool, &[buffer]) };
        }
        result
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        let _ = self.wait_all();
        if self.context.is_hung() {
            return;
        }
        // SAFETY: nothing is running any more, or the device is lost.
        unsafe {
            self.context.raw.destroy_semaphore(self.timeline, None);
            self.context.raw.destroy_command_pool(self.pool, None);
        }
    }
}

/// Two timestamps around each dispatch, and the pool they go to.
#[derive(Clone, Copy)]
pub(crate) struct Stamps {
    pub(crate) pool: vk::QueryPool,
    /// The next query that is free.
    pub(crate) next: u32,
}

/// Records dispatches with as few barriers as their reads and writes allow ([`barriers`]).
///
/// # Errors
/// A kernel that can't be compiled.
pub(crate) fn record_dispatches(
    context: &Context,
    pipelines: &Pipelines,
    buffer: vk::CommandBuffer,
    dispatches: &[Dispatch],
    stamps: &mut Option<Stamps>,
) -> Result<(), BackendError> {
    // What came before may have written anything.
    barrier(context, buffer);
    for (dispatch, waits) in dispatches.iter().zip(barriers(dispatches)) {
        if waits {
            dispatch_barrier(context, buffer);
        }
        let pipeline = pipelines.get(&dispatch.kernel)?;
        stamp(context, buffer, stamps);
        // SAFETY: the pipeline has this layout; whoever made the dispatch has seen to its addresses.
        unsafe {
            let device = &context.raw;
            device.cmd_bind_pipeline(buffer, vk::PipelineBindPoint::COMPUTE, pipeline);
            let stages = vk::ShaderStageFlags::COMPUTE;
            device.cmd_push_constants(buffer, pipelines.layout, stages, 0, dispatch.push.bytes());
            let [x, y, z] = dispatch.groups;
            device.cmd_dispatch(buffer, x, y, z);
        }
        stamp(context, buffer, stamps);
    }
    Ok(())
}

fn stamp(context: &Context, buffer: vk::CommandBuffer, stamps: &mut Option<Stamps>) {
    let Some(stamps) = stamps else { return };
    // SAFETY: the pool has room for two queries per dispatch and was reset by the caller.
    unsafe {
        context.raw.cmd_write_timestamp2(buffer, vk::PipelineStageFlags2::COMPUTE_SHADER, stamps.pool, stamps.next);
    }
    stamps.next += 1;
}

/// Everything before is seen by everything after.
pub(crate) fn barrier(context: &Context, buffer: vk::CommandBuffer) {
    let stages = vk::PipelineStageFlags2::COMPUTE_SHADER | vk::PipelineStageFlags2::TRANSFER;
    let (from, to) = (vk::AccessFlags2::MEMORY_WRITE, vk::AccessFlags2::MEMORY_READ | vk::AccessFlags2::MEMORY_WRITE);
    memory_barrier(context, buffer, (stages, from), (stages, to));
}

/// Copies the first `bytes` bytes of a slice to the beginning of another one.
///
/// # Panics
/// If one of them is shorter.
pub(crate) fn copy(context: &Context, buffer: vk::CommandBuffer, from: Slice, to: Slice, bytes: u64) {
    assert!(bytes <= from.size && bytes <= to.size, "{bytes} bytes of {} to {}", from.size, to.size);
    if bytes > 0 {
        let region = vk::BufferCopy::default().src_offset(from.offset).dst_offset(to.offset).size(bytes);
        // SAFETY: both are that long; the buffer is being recorded.
        unsafe { context.raw.cmd_copy_buffer(buffer, from.buffer, to.buffer, &[region]) };
    }
}

/// What dispatches before wrote is seen by those after.
fn dispatch_barrier(context: &Context, buffer: vk::CommandBuffer) {
    let stage = vk::PipelineStageFlags2::COMPUTE_SHADER;
    let (read, write) = (vk::AccessFlags2::SHADER_STORAGE_READ, vk::AccessFlags2::SHADER_STORAGE_WRITE);
    memory_barrier(context, buffer, (stage, write), (stage, read | write));
}

fn memory_barrier(
    context: &Context,
    buffer: vk::CommandBuffer,
    (from, written): (vk::PipelineStageFlags2, vk::AccessFlags2),
    (to, accessed): (vk::PipelineStageFlags2, vk::AccessFlags2),
) {
    let barrier = vk::MemoryBarrier2::default()
        .src_stage_mask(from)
        .src_access_mask(written)
        .dst_stage_mask(to)
        .dst_access_mask(accessed);
    let dependency = vk::DependencyInfo::default().memory_barriers(std::slice::from_ref(&barrier));
    // SAFETY: the buffer is being recorded.
    unsafe { context.raw.cmd_pipeline_barrier2(buffer, &dependency) };
}

/// Results of the device are seen by the processor.
pub(crate) fn host_barrier(context: &Context, buffer: vk::CommandBuffer) {
    let stages = vk::PipelineStageFlags2::COMPUTE_SHADER | vk::PipelineStageFlags2::TRANSFER;
    let from = (stages, vk::AccessFlags2::MEMORY_WRITE);
    memory_barrier(context, buffer, from, (vk::PipelineStageFlags2::HOST, vk::AccessFlags2::HOST_READ));
}
