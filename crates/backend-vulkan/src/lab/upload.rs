//! How long weights take onto a device, beside what has to be done for it at least.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tensor::{BackendError, DType, WeightBytes, WeightError};

use super::Lab;
use crate::layout::Weight;
use crate::memory::{Arena, Place, Slice};
use crate::upload::{Chunk, Ring, Worker, chunks, for_each};

/// Columns of the matrices that the bytes are taken for.
const COLUMNS: usize = 5376;

/// Rows of each.
const ROWS: usize = 21_504;

/// Times that everything is measured.
const REPEAT: usize = 5;

/// Staging memory that is copied from as fast as can be: long copies, several of them waiting.
const BULK: Ring = Ring { threads: 1, slots: 4, slot_bytes: 32 << 20, place: Place::Upload };

/// A part of the bytes, as the loader gets a matrix.
struct Part {
    whole: Arc<dyn WeightBytes>,
    range: Range<usize>,
}

impl Part {
    fn within(&self, range: Range<usize>) -> Range<usize> {
        self.range.start + range.start..self.range.start + range.end
    }
}

impl WeightBytes for Part {
    fn bytes(&self) -> &[u8] {
        &self.whole.bytes()[self.range.clone()]
    }

    fn release(&self, range: Range<usize>) {
        self.whole.release(self.within(range));
    }

    fn read(&self, range: Range<usize>, into: &mut [u8]) -> Result<(), WeightError> {
        self.whole.read(self.within(range), into)
    }
}

/// What [`measure`] found for one way to upload: medians, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Upload {
    /// Reading into the staging memory, by the loader's threads, without the device.
    pub reading: f64,
    /// Copying from the staging memory to the device, whatever is in it, without reading; or from [`BULK`], if that is
    /// faster.
    pub copying: f64,
    /// The upload as the loader does it, with staging memory that is there.
    pub upload: f64,
    /// The same with what the loader does before and after: making threads' queues and staging memory, freeing them.
    pub whole: f64,
}

impl Upload {
    /// The upload beside the slower one of the two.
    pub fn ratio(&self) -> f64 {
        self.upload / self.reading.max(self.copying)
    }
}

/// Gives the bytes anew, as they are when a program starts.
type Open<'a> = dyn FnMut() -> std::io::Result<Arc<dyn WeightBytes>> + 'a;

/// Times reading alone, copying alone, and the upload of the same bytes as matrices in Q4_0, in turn, and prints the
/// medians; `every` for many numbers of threads and sizes of staging memory, in place of those of the loader. What is
/// less than a row at the end of the bytes is left out.
///
/// # Errors
/// Bytes that can't be read, no memory, or a device that fails.
pub fn measure(
    index: Option<usize>,
    open: &mut Open<'_>,
    every: bool,
    out: &mut dyn Write,
) -> Result<Vec<Upload>, BackendError> {
    let lab = Lab::open(index)?;
    let mut scene = Scene::new(&lab, open)?;
    let bytes = scene.bytes();
    let size = bytes as f64 / 1e9;
    let _ = writeln!(out, "{}: {size:.2} GB in {} matrices", lab.features().name, scene.weights.len());
    let _ = writeln!(out, "threads slots  MiB memory   reading copying upload  ratio  with staging made");
    let mut all = Vec::new();
    for ring in rings(every) {
        let found = scene.time(ring)?;
        let Ring { threads, slots, slot_bytes, place } = ring;
        let memory = if place == Place::Staging { "cached" } else { "" };
        let _ = write!(out, "{threads:7} {slots:5} {:4} {memory:8} ", slot_bytes >> 20);
        let Upload { reading, copying, upload, whole } = found;
        let ratio = found.ratio();
        let _ = writeln!(out, "{reading:7.3} {copying:7.3} {upload:7.3} {ratio:6.3} {whole:7.3}");
        all.push(found);
    }
    let best = |time: fn(&Upload) -> f64| all.iter().map(time).fold(f64::INFINITY, f64::min);
    let (reading, copying) = (best(|found| found.reading), best(|found| found.copying));
    let (upload, whole) = (best(|found| found.upload), best(|found| found.whole));
    let _ = writeln!(out, "reading alone {reading:.3} s, {:.1} GB/s", size / reading);
    let _ = writeln!(out, "copying alone {copying:.3} s, {:.1} GB/s", size / copying);
    let _ = writeln!(out, "upload {upload:.3} s, {:.1} GB/s; with its staging {whole:.3} s", size / upload);
    let _ = writeln!(out, "ratio of the upload to the slower one: {:.3}", upload / reading.max(copying));
    Ok(all)
}

/// Ways to upload: that of the loader, or many.
fn rings(every: bool) -> Vec<Ring> {
    let own = Ring::new();
    let shapes =
        [(4, 4, 8), (8, 2, 2), (8, 2, 4), (8, 3, 4), (8, 2, 8), (12, 2, 4), (16, 1, 4), (16, 2, 2), (16, 2, 4)];
    let shaped = |(threads, slots, mib): (usize, usize, u64)| Ring { threads, slots, slot_bytes: mib << 20, ..own };
    let uncached = Ring { place: Place::Upload, ..own };
    match every {
        true => shapes.into_iter().map(shaped).chain([uncached, own]).collect(),
        false => vec![own],
    }
}

/// The matrices, and where they go.
struct Scene<'a, 'b> {
    lab: &'a Lab,
    open: &'a mut Open<'b>,
    weights: Vec<Weight>,
    targets: Vec<Slice>,
    _memory: Arena,
}

impl Scene<'_, '_> {
    fn new<'a, 'b>(lab: &'a Lab, open: &'a mut Open<'b>) -> Result<Scene<'a, 'b>, BackendError> {
        let bytes = opened(open)?;
        let row = DType::Q4_0.row_bytes(COLUMNS).expect("whole blocks");
        let rows = bytes.bytes().len() / row;
        let weight = |first| Weight { address: 0, dtype: DType::Q4_0, rows: ROWS.min(rows - first), columns: COLUMNS };
        let mut weights: Vec<Weight> = (0..rows).step_by(ROWS).map(weight).collect();
        let expected = weights.iter().map(|weight| weight.bytes() as u64 + 256).sum();
        let mut memory = Arena::new(&lab.context, Place::Device, expected);
        let mut targets = Vec::new();
        for weight in &mut weights {
            let target = memory.allocate(weight.bytes() as u64, "the weights")?;
            weight.address = target.address;
            targets.push(target);
        }
        Ok(Scene { lab, open, weights, targets, _memory: memory })
    }

    /// Bytes that are uploaded.
    fn bytes(&self) -> usize {
        let bytes = |weight: &Weight| weight.rows * weight.dtype.row_bytes(COLUMNS).expect("whole blocks");
        self.weights.iter().map(bytes).sum()
    }

    /// Medians of one way to upload.
    fn time(&mut self, ring: Ring) -> Result<Upload, BackendError> {
        let (context, pipelines) = (&self.lab.context, &self.lab.pipelines);
        let upload = |worker: &mut Worker, chunk: &Chunk| worker.upload(pipelines, chunk);
        let (mut workers, mut bulk) = (ring.workers(context), BULK.workers(context));
        for worker in workers.iter_mut().chain(&mut bulk) {
            worker.prepare()?;
        }
        // The device's memory is touched before anything is timed.
        self.once(ring, &mut workers, &|worker, chunk| worker.copy(chunk))?;
        let mut times: [Vec<f64>; 5] = Default::default();
        for _ in 0..REPEAT {
            times[0].push(self.once(ring, &mut workers, &|worker, chunk| worker.read(chunk).map(drop))?);
            times[1].push(self.once(ring, &mut workers, &|worker, chunk| worker.copy(chunk))?);
            times[2].push(self.once(BULK, &mut bulk, &|worker, chunk| worker.copy(chunk))?);
            times[3].push(self.once(ring, &mut workers, &upload)?);
        }
        drop((workers, bulk));
        for _ in 0..REPEAT {
            let opened = opened(self.open)?;
            let start = Instant::now();
            let mut workers = ring.workers(context);
            for_each(&mut workers, self.chunks(ring, &opened), upload)?;
            drop(workers);
            times[4].push(start.elapsed().as_secs_f64());
        }
        let [reading, copying, bulk, upload, whole] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[REPEAT / 2]
        });
        Ok(Upload { reading, copying: copying.min(bulk), upload, whole })
    }

    /// Seconds that a step takes with all chunks.
    fn once(
        &mut self,
        ring: Ring,
        workers: &mut [Worker],
        step: &(dyn Fn(&mut Worker, &Chunk) -> Result<(), BackendError> + Sync),
    ) -> Result<f64, BackendError> {
        let opened = opened(self.open)?;
        let start = Instant::now();
        for_each(workers, self.chunks(ring, &opened), step)?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn chunks(
        &self,
        ring: Ring,
        whole: &Arc<dyn WeightBytes>,
    ) -> impl Iterator<Item = Result<Vec<Chunk>, BackendError>> {
        let mut start = 0;
        self.weights.iter().zip(&self.targets).map(move |(weight, target)| {
            let bytes = weight.rows * weight.dtype.row_bytes(COLUMNS).expect("whole blocks");
            let part: Arc<dyn WeightBytes> = Arc::new(Part { whole: whole.clone(), range: start..start + bytes });
            start += bytes;
            Ok(chunks("the file", weight, *target, &part, ring.slot_bytes))
        })
    }
}

fn opened(open: &mut Open<'_>) -> Result<Arc<dyn WeightBytes>, BackendError> {
    open().map_err(|error| BackendError::Weight { name: "the file".into(), source: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_timed() {
        if Lab::for_tests().is_none() {
            return;
        }
        let index = std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok());
        let (mut opened, mut text) = (0, Vec::new());
        let mut open = || {
            opened += 1;
            Ok(Arc::new(vec![7u8; 70 << 20]) as Arc<dyn WeightBytes>)
        };
        let found = measure(index, &mut open, false, &mut text).unwrap();
        let [Upload { reading, copying, upload, whole }] = found[..] else { panic!("{found:?}") };
        assert!(reading > 0.0 && copying > 0.0 && upload > 0.0 && whole > 0.0, "{found:?}");
        let text = String::from_utf8(text).unwrap();
        assert!(
            opened == 2 + 5 * REPEAT && text.contains("in 2 matrices") && text.contains("ratio of the upload"),
            "{text}"
        );
    }
}
