//! Finds trellis tiles on a device.

use std::sync::Arc;
use std::time::Instant;

use tensor::BackendError;
use tensor::format::trellis::search::Metric;
use tensor::format::trellis::{Codebook, LEN, Rate};

use crate::commands::{Commands, barrier, copy, host_barrier, record_dispatches};
use crate::context::{Context, DeviceInfo};
use crate::features::DeviceKind;
use crate::kernel::trellis_encode::{Addresses, supports, trellis_encode};
use crate::memory::{Arena, Place, Slice, available};
use crate::pipeline::Pipelines;
use crate::transfer::send;

/// Seconds that a submission should take, far below what a driver allows.
const SUBMISSION: f64 = 0.2;

/// Most tiles of a submission.
const TILES_MAX: usize = 8192;

/// Bytes of a tile's targets and of its states.
const TILE_BYTES: u64 = 2 * LEN as u64;

/// Most bytes of costs that a workgroup keeps: those of 2, 2.5, 3 and 4 bits.
const KEPT_BYTES_MAX: u64 = 2 << 20;

/// Finds the tiles that [`search::encode`](tensor::format::trellis::search::encode) finds, many at a time. Takes up to
/// a quarter of the memory that is free, 2 GiB at most.
pub struct TrellisEncoder {
    context: Arc<Context>,
    pipelines: Arc<Pipelines>,
    commands: Commands,
    /// Of the tables, the tiles and the costs.
    memory: Arena,
    tables: Vec<(Codebook, Slice)>,
    /// Of up to [`TILES_MAX`] tiles, on the device and mapped.
    targets: Slice,
    states: Slice,
    staging: [Slice; 2],
    /// Their arenas.
    _mapped: [Arena; 2],
    /// Costs of all workgroups, and how many there are.
    kept: Slice,
    groups: usize,
    workgroup: u32,
    /// Seconds of a tile at each rate, as far as known: the least so far.
    seconds: Vec<(Rate, f64)>,
}

impl TrellisEncoder {
    /// With workgroups of up to so many invocations.
    pub(crate) fn new(
        context: &Arc<Context>,
        pipelines: &Arc<Pipelines>,
        workgroup: u32,
    ) -> Result<TrellisEncoder, BackendError> {
        let features = context.features();
        let bytes = (available(context) / 4).min(features.allocation_max);
        let groups = (bytes / KEPT_BYTES_MAX).clamp(1, groups_max(features.kind) as u64);
        let tiles = TILES_MAX as u64 * TILE_BYTES;
        let mut memory = Arena::new(context, Place::Device, groups * KEPT_BYTES_MAX + 2 * tiles);
        let kept = memory.allocate(groups * KEPT_BYTES_MAX, "the costs of the search for tiles")?;
        let (targets, states) = (memory.allocate(tiles, "tiles")?, memory.allocate(tiles, "tiles")?);
        let mut mapped = [Place::Upload, Place::Download].map(|place| Arena::new(context, place, tiles));
        let [upload, download] = &mut mapped;
        let staging = [upload.allocate(tiles, "tiles")?, download.allocate(tiles, "tiles")?];
        Ok(TrellisEncoder {
            context: context.clone(),
            pipelines: pipelines.clone(),
            commands: Commands::new(context, &context.queue)?,
            memory,
            tables: Vec::new(),
            targets,
            states,
            staging,
            _mapped: mapped,
            kept,
            groups: groups as usize,
            workgroup,
            seconds: Vec::new(),
        })
    }

    /// The device.
    pub fn device(&self) -> &DeviceInfo {
        &self.context.info
    }

    /// How many tiles at a time, at least, keep the device busy: it holds about half of the workgroups at once.
    pub fn tiles(&self) -> usize {
        self.groups.div_ceil(2)
    }

    /// Whether it finds tiles of a rate: those whose costs fit into the device's shared memory, so never 1 or 1.5 bits,
    /// and the others where that has 32 KiB; 8 bits only where subgroups have 32 lanes or fewer.
    pub fn supports(&self, rate: Rate) -> bool {
        supports(self.context.features(), rate)
    }

    /// The states for tiles of weights in the fixed point of the search ([`Metric::target`]), in the order of the ring,
    /// as the walk finds them: [`close`](tensor::format::trellis::search::close) makes rings of those that are none.
    ///
    /// # Errors
    /// A device that fails.
    ///
    /// # Panics
    /// If the device doesn't support the rate, or a weight is beyond the codebook.
    pub fn encode(
        &mut self,
        codebook: Codebook,
        rate: Rate,
        targets: &[[i16; LEN]],
    ) -> Result<Vec<[u16; LEN]>, BackendError> {
        let metric = Metric::new(codebook, rate);
        let table = self.table(&metric, codebook)?;
        let (least, most) = metric.table().iter().fold((0, 0), |(least, most), &v| (v.min(least), v.max(most)));
        let within = targets.as_flattened().iter().all(|target| (least..=most).contains(target));
        assert!(within, "targets beyond the codebook");
        let mut states = Vec::with_capacity(targets.len());
        while states.len() < targets.len() {
            let rest = &targets[states.len()..];
            let count = rest.len().min(self.tiles_at_once(rate));
            let seconds = self.submit(&metric, table, &rest[..count])?;
            self.learn(rate, seconds / count as f64);
            // SAFETY: the device is done.
            let bytes = unsafe { self.staging[1].bytes_mut() }.expect("mapped memory");
            for tile in bytes[..count * TILE_BYTES as usize].as_chunks::<{ 2 * LEN }>().0 {
                let mut ring = [0; LEN];
                bytemuck::bytes_of_mut(&mut ring).copy_from_slice(tile);
                states.push(ring);
            }
        }
        Ok(states)
    }

    /// Lets the device work, and gives the seconds that it took.
    fn submit(&mut self, metric: &Metric, table: Slice, targets: &[[i16; LEN]]) -> Result<f64, BackendError> {
        let bytes: &[u8] = bytemuck::cast_slice(targets.as_flattened());
        // SAFETY: the device is done with what it was given before.
        unsafe { self.staging[0].bytes_mut() }.expect("mapped memory")[..bytes.len()].copy_from_slice(bytes);
        let (context, len, count) = (self.context.clone(), bytes.len() as u64, targets.len());
        let addresses = Addresses {
            table: table.address,
            targets: self.targets.address,
            states: self.states.address,
            kept: self.kept.address,
        };
        let groups = count.min(self.groups) as u32;
        let dispatch = trellis_encode(context.features(), metric, self.workgroup, addresses, 0..count, groups);
        let ([from, to], pipelines) = (self.staging, &self.pipelines);
        // Compiled before the clock runs.
        pipelines.get(&dispatch.kernel)?;
        let start = Instant::now();
        self.commands.once(|buffer| {
            copy(&context, buffer, from, self.targets, len);
            record_dispatches(&context, pipelines, buffer, &[dispatch], &mut None)?;
            barrier(&context, buffer);
            copy(&context, buffer, self.states, to, len);
            host_barrier(&context, buffer);
            Ok(())
        })?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// The values of a codebook on the device.
    fn table(&mut self, metric: &Metric, codebook: Codebook) -> Result<Slice, BackendError> {
        if let Some((_, table)) = self.tables.iter().find(|(of, _)| *of == codebook) {
            return Ok(*table);
        }
        let bytes: &[u8] = bytemuck::cast_slice(metric.table());
        let table = self.memory.allocate(bytes.len() as u64, "a codebook")?;
        send(&self.context, &mut self.commands, bytes, table)?;
        self.tables.push((codebook, table));
        Ok(table)
    }

    /// Tiles of a submission: few as long as nothing is known.
    fn tiles_at_once(&self, rate: Rate) -> usize {
        let first = if self.context.features().kind == DeviceKind::Software { 4 } else { 64 };
        let known = self.seconds.iter().find(|(of, _)| *of == rate);
        known.map_or(first, |(_, seconds)| ((SUBMISSION / seconds) as usize).clamp(1, TILES_MAX))
    }

    fn learn(&mut self, rate: Rate, seconds: f64) {
        match self.seconds.iter_mut().find(|(of, _)| *of == rate) {
            Some((_, known)) => *known = known.min(seconds),
            None => self.seconds.push((rate, seconds)),
        }
    }
}

/// Most workgroups at a time, each with a tile: at least as many as the largest device of a kind runs at once.
fn groups_max(kind: DeviceKind) -> usize {
    match kind {
        DeviceKind::Discrete | DeviceKind::Virtual => 1024,
        DeviceKind::Integrated => 128,
        DeviceKind::Software => 8,
    }
}

#[cfg(test)]
mod tests;
