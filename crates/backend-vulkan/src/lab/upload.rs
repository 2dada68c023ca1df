//! How long weights take onto a device, beside what has to be done for it at least.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use tensor::{BackendError, DType, WeightBytes};

use super::Lab;
use crate::commands;
use crate::context::Context;
use crate::layout::Weight;
use crate::memory::{Arena, Place, Slice};
use crate::upload::{SLOT_BYTES, SLOTS, Uploader, copy, threads};

/// Columns of the matrices that the bytes are taken for.
const COLUMNS: usize = 5376;

/// Rows of each.
const ROWS: usize = 21_504;

/// A part of the bytes, as the loader gets a matrix.
struct Part<'a>(&'a [u8]);

impl WeightBytes for Part<'_> {
    fn bytes(&self) -> &[u8] {
        self.0
    }
}

/// What [`measure`] found, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Upload {
    /// Reading, with the loader's threads, into memory that is overwritten again and again.
    pub reading: f64,
    /// Copying to the device what was read before.
    pub copying: f64,
    /// The upload as the loader does it.
    pub upload: f64,
}

impl Upload {
    /// The upload beside the slower one of the two.
    pub fn ratio(&self) -> f64 {
        self.upload / self.reading.max(self.copying)
    }
}

/// Times reading alone, copying alone, and the upload of the same bytes as matrices in Q4_0, and prints it. `open`
/// gives the bytes anew for each, as they are when a program starts; what is less than a row at their end is left out.
///
/// # Errors
/// Bytes that can't be read, no memory, or a device that fails.
pub fn measure(
    index: Option<usize>,
    open: &mut dyn FnMut() -> std::io::Result<Arc<dyn WeightBytes>>,
    out: &mut dyn Write,
) -> Result<Upload, BackendError> {
    let lab = Lab::open(index)?;
    let context = &lab.context;
    let failed = |error: std::io::Error| BackendError::Weight { name: "the file".into(), source: error.into() };
    let row = DType::Q4_0.row_bytes(COLUMNS).expect("whole blocks");
    let bytes = open().map_err(failed)?;
    let rows = bytes.bytes().len() / row;
    drop(bytes);
    let weights: Vec<Weight> = (0..rows)
        .step_by(ROWS)
        .map(|first| Weight { address: 0, dtype: DType::Q4_0, rows: ROWS.min(rows - first), columns: COLUMNS })
        .collect();
    let expected = weights.iter().map(|weight| weight.bytes() as u64 + 256).sum();
    let mut memory = Arena::new(context, Place::Device, expected);
    let mut targets = Vec::new();
    for weight in &weights {
        targets.push(memory.allocate(weight.bytes() as u64, "the weights")?);
    }
    // The device's memory is touched before it is timed.
    copying(context, &targets)?;
    let copying = copying(context, &targets)?;
    let reading = reading(&*open().map_err(failed)?, rows * row);
    let upload = upload(&lab, &*open().map_err(failed)?, (&weights, &targets), row)?;
    let found = Upload { reading, copying, upload };
    let size = (rows * row) as f64;
    let _ = writeln!(out, "{}: {:.2} GB in {} matrices", lab.features().name, size / 1e9, weights.len());
    for (name, time) in [("reading alone", reading), ("copying alone", copying), ("upload", upload)] {
        let _ = writeln!(out, "{name:14} {time:8.3} s, {:6.2} GB/s", size / time / 1e9);
    }
    let _ = writeln!(out, "ratio of the upload to the slower one: {:.3}", found.ratio());
    Ok(found)
}

fn reading(source: &dyn WeightBytes, len: usize) -> f64 {
    let mut into = vec![1; SLOT_BYTES as usize];
    let start = Instant::now();
    for (index, part) in source.bytes()[..len].chunks(into.len()).enumerate() {
        copy(part, &mut into[..part.len()], threads());
        let from = index * into.len();
        source.release(from..from + part.len());
    }
    std::hint::black_box(&into);
    start.elapsed().as_secs_f64()
}

/// From a ring of staging memory whose bytes stay the same, as many at a time as the loader has.
fn copying(context: &Arc<Context>, targets: &[Slice]) -> Result<f64, BackendError> {
    let mut staging = Arena::new(context, Place::Upload, SLOT_BYTES * SLOTS as u64);
    let mut commands = commands::Commands::new(context, &context.transfer)?;
    let mut slots = Vec::new();
    for _ in 0..SLOTS {
        let mut slot = staging.allocate(SLOT_BYTES, "staging")?;
        // SAFETY: the device does not know the memory yet.
        unsafe { slot.bytes_mut() }.expect("staging is mapped").fill(0x3c);
        slots.push((slot, commands.allocate()?, 0));
    }
    let parts = targets.iter().flat_map(|target| {
        let starts = (0..target.size).step_by(SLOT_BYTES as usize);
        starts.map(|start| target.part(start, SLOT_BYTES.min(target.size - start)))
    });
    let start = Instant::now();
    for (index, part) in parts.enumerate() {
        let (slot, buffer, done_at) = &mut slots[index % SLOTS];
        commands.wait(*done_at)?;
        commands.record(*buffer, |buffer| {
            commands::copy(context, buffer, *slot, part, part.size);
            Ok(())
        })?;
        *done_at = commands.submit(&[*buffer])?;
    }
    commands.wait_all()?;
    Ok(start.elapsed().as_secs_f64())
}

fn upload(
    lab: &Lab,
    source: &dyn WeightBytes,
    (weights, targets): (&[Weight], &[Slice]),
    row: usize,
) -> Result<f64, BackendError> {
    let start = Instant::now();
    let mut uploader = Uploader::new(&lab.context)?;
    for ((weight, target), bytes) in weights.iter().zip(targets).zip(source.bytes().chunks(ROWS * row)) {
        let part = Part(&bytes[..weight.rows * row]);
        uploader.upload(&lab.pipelines, &Weight { address: target.address, ..*weight }, *target, &part)?;
    }
    uploader.finish()?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_are_timed() {
        if Lab::for_tests().is_none() {
            return;
        }
        let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
        let (mut opened, mut text) = (0, Vec::new());
        let mut open = || {
            opened += 1;
            Ok(Arc::new(vec![7u8; 70 << 20]) as Arc<dyn WeightBytes>)
        };
        let found = measure(index, &mut open, &mut text).unwrap();
        assert!(found.reading > 0.0 && found.copying > 0.0 && found.upload > 0.0, "{found:?}");
        let text = String::from_utf8(text).unwrap();
        assert!(opened == 3 && text.contains("in 2 matrices") && text.contains("ratio of the upload"), "{text}");
    }
}
