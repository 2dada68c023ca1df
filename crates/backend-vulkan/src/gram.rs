//! Sums of the products of activations, kept on the device beside a program.

use std::collections::HashMap;
use std::sync::Arc;

use tensor::{BackendError, BufferId};

use crate::commands::{Commands, barrier, record_dispatches};
use crate::context::Context;
use crate::kernel::View;
use crate::kernel::rank_update::{Number, RankUpdate, WORKGROUP, rank_update};
use crate::memory::{Arena, Place, Slice};
use crate::pace::Pace;
use crate::pipeline::Pipelines;
use crate::transfer::receive;

/// Sides of Gram matrices are multiples of it.
const BLOCK: usize = 128;

/// The Gram matrices of some buffers.
#[derive(Default)]
pub(crate) struct Grams(HashMap<BufferId, Gram>);

struct Gram {
    /// Its memory.
    _memory: Arena,
    sums: Slice,
    side: usize,
}

/// Whether a device can add them up.
pub(crate) fn supports(context: &Context) -> bool {
    context.features().workgroup_max >= WORKGROUP
}

impl Grams {
    /// Adds the products of `rows` rows of a buffer.
    pub(crate) fn add(
        &mut self,
        context: &Arc<Context>,
        (pipelines, commands): (&Pipelines, &mut Commands),
        buffer: BufferId,
        (view, rows): (View, usize),
    ) -> Result<(), BackendError> {
        let gram = match self.0.entry(buffer) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(Gram::new(context, commands, view.width)?),
        };
        let update = RankUpdate {
            number: Number::F32,
            rows: view.address,
            rows_pitch: view.pitch(),
            sums: gram.sums.address,
            sums_pitch: gram.side,
            depth: rows,
            first: 0,
            end: view.pitch(),
            columns: view.pitch(),
            factor: 1.0,
        };
        let dispatches = rank_update(context.features(), &update);
        for piece in Pace::new(context.features().kind).pieces(&dispatches) {
            commands.once(|buffer| record_dispatches(context, pipelines, buffer, &dispatches[piece], &mut None))?;
        }
        Ok(())
    }

    /// The sums of a buffer, or `None` if nothing was added; they are gone from the device then.
    pub(crate) fn take(
        &mut self,
        context: &Arc<Context>,
        commands: &mut Commands,
        buffer: BufferId,
    ) -> Result<Option<Vec<f32>>, BackendError> {
        let Some(gram) = self.0.remove(&buffer) else { return Ok(None) };
        receive(context, commands, gram.sums, gram.side * gram.side).map(Some)
    }
}

impl Gram {
    fn new(context: &Arc<Context>, commands: &mut Commands, width: usize) -> Result<Gram, BackendError> {
        let side = width.next_multiple_of(BLOCK);
        let mut memory = Arena::new(context, Place::Device, 0);
        let sums = memory.allocate((4 * side * side) as u64, "sums of activations' products")?;
        commands.once(|buffer| {
            // SAFETY: the slice is that long, a multiple of 4.
            unsafe { context.raw.cmd_fill_buffer(buffer, sums.buffer, sums.offset, sums.size, 0) };
            barrier(context, buffer);
            Ok(())
        })?;
        Ok(Gram { _memory: memory, sums, side })
    }
}
