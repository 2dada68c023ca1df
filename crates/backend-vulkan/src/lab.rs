//! Single kernels on real data: for tests of kernels and for measuring one variant against another.

pub(crate) mod ffn;
pub(crate) mod upload;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ash::vk;
use tensor::BackendError;

use crate::commands::{Commands, Stamps, barrier, record_dispatches};
use crate::context::Context;
use crate::dispatch::Dispatch;
use crate::features::Features;
use crate::memory::{Arena, Place, Slice};
use crate::pipeline::Pipelines;
use crate::transfer::{receive, send};

/// Time that a device that was idle works before something is timed.
const WARM_UP: Duration = Duration::from_millis(300);

/// A device with memory, and nothing loaded.
pub(crate) struct Lab {
    pub(crate) context: Arc<Context>,
    pub(crate) pipelines: Pipelines,
    /// Time that a device works before something is timed.
    pub(crate) warm_up: Duration,
    commands: Commands,
    memory: Arena,
}

impl Lab {
    /// Opens a device.
    ///
    /// # Errors
    /// No device.
    pub(crate) fn open(index: Option<usize>) -> Result<Lab, BackendError> {
        let context = Context::open(index)?;
        Ok(Lab {
            pipelines: Pipelines::new(&context)?,
            warm_up: WARM_UP,
            commands: Commands::new(&context, &context.queue)?,
            memory: Arena::new(&context, Place::Device, 256 << 20),
            context,
        })
    }

    /// The best device, or `None` and a word about it where there is none. `LAPIDARY_VULKAN_DEVICE` chooses by number.
    #[cfg(test)]
    #[expect(clippy::print_stderr, reason = "a test that can't run says so")]
    pub(crate) fn for_tests() -> Option<Lab> {
        let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
        match Lab::open(index) {
            Ok(lab) => Some(lab),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    /// As [`Lab::for_tests`], but also `None` and a word about it for a device that does not have what a test needs.
    #[cfg(test)]
    #[expect(clippy::print_stderr, reason = "a test that can't run says so")]
    pub(crate) fn for_tests_with(what: &str, has: impl Fn(&Features) -> bool) -> Option<Lab> {
        let lab = Lab::for_tests()?;
        if has(lab.features()) {
            return Some(lab);
        }
        eprintln!("skipped: {} has no {what}", lab.features().name);
        None
    }

    /// What the device can do.
    pub(crate) fn features(&self) -> &Features {
        self.context.features()
    }

    /// Device memory with these bytes.
    ///
    /// # Errors
    /// No memory, or a device that fails.
    pub(crate) fn upload(&mut self, bytes: &[u8]) -> Result<Slice, BackendError> {
        let slice = self.memory.allocate(bytes.len() as u64, "the lab")?;
        send(&self.context, &mut self.commands, bytes, slice)?;
        Ok(slice)
    }

    /// The address of device memory with anything in it.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<u64, BackendError> {
        Ok(self.memory.allocate(bytes as u64, "the lab")?.address)
    }

    /// What is in device memory.
    ///
    /// # Errors
    /// No memory, or a device that fails.
    pub(crate) fn download(&mut self, slice: Slice, len: usize) -> Result<Vec<u8>, BackendError> {
        receive(&self.context, &mut self.commands, slice, len)
    }

    /// Runs the dispatches once, in order, with barriers where they are needed.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn run(&mut self, dispatches: &[Dispatch]) -> Result<(), BackendError> {
        let (context, pipelines) = (&self.context, &self.pipelines);
        self.commands.once(|buffer| record_dispatches(context, pipelines, buffer, dispatches, &mut None))
    }

    /// Device time of `repeat` runs of the dispatches, each run behind the last, when the device has worked on them for
    /// a while: clocks fall within a moment of idleness, and rise slowly.
    ///
    /// # Errors
    /// A device that fails or has no timestamps.
    pub(crate) fn time(&mut self, dispatches: &[Dispatch], repeat: u32) -> Result<Duration, BackendError> {
        let start = Instant::now();
        while start.elapsed() < self.warm_up {
            for _ in 0..8 {
                self.run(dispatches)?;
            }
        }
        let step = self.features().timestamp_nanoseconds.ok_or_else(|| BackendError::Unsupported {
            device: self.features().name.clone(),
            problem: "it has no timestamps".into(),
        })?;
        let context = self.context.clone();
        let failure = |error| context.failure("timing", error);
        let info = vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(2);
        // SAFETY: plain creation; destroyed below when the device is done.
        let pool = unsafe { context.raw.create_query_pool(&info, None) }.map_err(failure)?;
        let pipelines = &self.pipelines;
        let result = self.commands.once(|buffer| {
            let stamps = Stamps { pool, next: 0 };
            let all = vk::PipelineStageFlags2::ALL_COMMANDS;
            // SAFETY: the pool has two queries.
            unsafe {
                context.raw.cmd_reset_query_pool(buffer, stamps.pool, 0, 2);
                barrier(&context, buffer);
                context.raw.cmd_write_timestamp2(buffer, all, pool, 0);
            }
            for _ in 0..repeat {
                record_dispatches(&context, pipelines, buffer, dispatches, &mut None)?;
            }
            // SAFETY: as above.
            unsafe { context.raw.cmd_write_timestamp2(buffer, all, pool, 1) };
            Ok(())
        });
        let mut stamps = [0u64; 2];
        let flags = vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT;
        // SAFETY: the work is done, so the results are there.
        let read = result
            .and_then(|()| unsafe { context.raw.get_query_pool_results(pool, 0, &mut stamps, flags).map_err(failure) });
        // SAFETY: nothing uses the pool any more.
        unsafe { context.raw.destroy_query_pool(pool, None) };
        read?;
        Ok(Duration::from_nanos((stamps[1] - stamps[0]) * u64::from(step)))
    }
}
