use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tensor::{BackendError, DType, WeightBytes, WeightError};

use super::{Chunk, Ring, chunks, for_each, upload};
use crate::context::Context;
use crate::faults::{Fault, Faults};
use crate::lab::Lab;
use crate::layout::Weight;
use crate::memory::{Arena, Place, Slice};
use crate::pipeline::Pipelines;

/// So small that all weights come in many pieces.
const RING: Ring = Ring { threads: 3, slots: 2, slot_bytes: 4096, place: Place::Staging };

/// What the tests upload: floats that lie on the device as they are, blocks that don't, and rows that are longer than
/// a staging buffer.
const WEIGHTS: [(DType, usize, usize); 3] = [(DType::F32, 300, 64), (DType::Q4_0, 700, 64), (DType::F32, 5, 2048)];

/// Bytes that differ from chunk to chunk, of which all up to `good` can be read.
struct Bytes {
    bytes: Vec<u8>,
    good: usize,
    read: AtomicUsize,
}

impl Bytes {
    fn new(len: usize) -> Bytes {
        let bytes = (0..len).map(|index| (index * 7 + index / 251) as u8).collect();
        Bytes { bytes, good: len, read: AtomicUsize::new(0) }
    }
}

impl WeightBytes for Bytes {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn read(&self, range: Range<usize>, into: &mut [u8]) -> Result<(), WeightError> {
        if range.end > self.good {
            return Err("the disk is gone".into());
        }
        self.read.fetch_add(range.len(), Ordering::Relaxed);
        into.copy_from_slice(&self.bytes[range]);
        Ok(())
    }
}

fn index() -> Option<usize> {
    std::env::var("LAPIDARY_VULKAN_DEVICE").ok().and_then(|number| number.parse().ok())
}

/// The weights' bytes.
fn sources() -> Vec<Arc<Bytes>> {
    let len = |(dtype, rows, columns): (DType, usize, usize)| rows * dtype.row_bytes(columns).unwrap();
    WEIGHTS.into_iter().map(|weight| Arc::new(Bytes::new(len(weight)))).collect()
}

/// Where the weights go: device memory, as a device that shares none of it has it.
fn targets(memory: &mut Arena) -> Result<Vec<(Weight, Slice)>, BackendError> {
    let place = |(dtype, rows, columns)| {
        let mut weight = Weight { address: 0, dtype, rows, columns };
        let slice = memory.allocate(weight.bytes() as u64, "the weights")?;
        weight.address = slice.address;
        Ok((weight, slice.unmapped()))
    };
    WEIGHTS.into_iter().map(place).collect()
}

/// The chunks of all weights.
fn all<'a>(
    targets: &'a [(Weight, Slice)],
    sources: &'a [Arc<Bytes>],
    most: u64,
) -> impl Iterator<Item = Result<Vec<Chunk>, BackendError>> + 'a {
    targets.iter().zip(sources).map(move |((weight, slice), source)| {
        let bytes: Arc<dyn WeightBytes> = source.clone();
        Ok(chunks("a weight", weight, *slice, &bytes, most))
    })
}

#[test]
fn what_comes_in_pieces_is_what_comes_at_once() {
    let Some(mut lab) = Lab::for_tests() else { return };
    let sources = sources();
    let mut found = Vec::new();
    for ring in [RING, Ring { slot_bytes: 1 << 20, threads: 1, ..RING }] {
        let mut memory = Arena::new(&lab.context, Place::Device, 0);
        let targets = targets(&mut memory).unwrap();
        upload(&lab.context, &lab.pipelines, ring, all(&targets, &sources, ring.slot_bytes)).unwrap();
        let read: Vec<Vec<u8>> =
            targets.iter().map(|(weight, slice)| lab.download(*slice, weight.bytes()).unwrap()).collect();
        found.push(read);
    }
    assert!(found[0] == found[1] && found[0][0] == sources[0].bytes && found[0][2] == sources[2].bytes);
    assert!(found[0][1] != sources[1].bytes, "blocks become planes");
    assert_eq!(sources[1].read.load(Ordering::Relaxed), 2 * sources[1].bytes.len(), "each byte is read once");
}

/// Uploads everything on a device with a fault. Nobody may have anything of it afterwards.
fn upload_with(fault: Fault) -> Result<(), BackendError> {
    let context = Context::open_with(index(), Faults::new(Some(fault)))?;
    let sources = sources();
    let result = (|| {
        let pipelines = Pipelines::new(&context)?;
        let mut memory = Arena::new(&context, Place::Device, 0);
        let targets = targets(&mut memory)?;
        upload(&context, &pipelines, RING, all(&targets, &sources, RING.slot_bytes))
    })();
    assert!(sources.iter().all(|source| Arc::strong_count(source) == 1), "a thread has a chunk");
    assert_eq!(Arc::strong_count(&context), 1, "a thread has the device");
    result
}

/// Lets the call of every number fail until there is none of that number.
fn fail_everywhere(fault: impl Fn(usize) -> Fault, fewest: usize, check: impl Fn(&BackendError)) {
    // It stays open, so that the driver does: not all of them can be loaded hundreds of times.
    let Some(_lab) = Lab::for_tests() else { return };
    for number in 0.. {
        match upload_with(fault(number)) {
            Ok(()) => {
                assert!(number >= fewest, "{number} calls");
                return;
            }
            Err(error) => check(&error),
        }
        assert!(number < 300, "it never ends");
    }
}

fn says(error: &BackendError, words: &str) {
    assert!(matches!(error, BackendError::Device { problem, .. } if problem.contains(words)), "{error:?}");
}

#[test]
fn a_lost_device() {
    let fault = |submission| Fault::DeviceLost { submission };
    // At least one for each chunk.
    fail_everywhere(fault, 30, |error| says(error, "the device was lost during "));
}

#[test]
fn a_device_that_hangs() {
    fail_everywhere(|wait| Fault::Timeout { wait }, 20, |error| says(error, "did not end within 20 s"));
}

#[test]
fn no_memory() {
    let fault = |allocation| Fault::OutOfMemory { allocation };
    fail_everywhere(fault, 3, |error| assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error:?}"));
}

/// A weight that can't be read in its middle, and one that is not there, behind others that are.
#[test]
fn weights_that_can_not_be_read() {
    let Some(lab) = Lab::for_tests() else { return };
    let mut sources = sources();
    let mut memory = Arena::new(&lab.context, Place::Device, 0);
    let targets = targets(&mut memory).unwrap();
    let missing = || BackendError::Weight { name: "another".into(), source: "it is not there".into() };
    let weights = all(&targets, &sources, RING.slot_bytes).chain([Err(missing())]);
    let error = upload(&lab.context, &lab.pipelines, RING, weights).unwrap_err();
    assert!(matches!(&error, BackendError::Weight { name, .. } if name == "another"), "{error:?}");

    let good = sources[1].bytes.len() / 2;
    sources[1] = Arc::new(Bytes { good, ..Bytes::new(sources[1].bytes.len()) });
    let error = upload(&lab.context, &lab.pipelines, RING, all(&targets, &sources, RING.slot_bytes)).unwrap_err();
    let BackendError::Weight { name, source } = &error else { panic!("{error:?}") };
    assert_eq!((name.as_str(), source.to_string().as_str()), ("a weight", "the disk is gone"));
    assert!(sources.iter().all(|source| Arc::strong_count(source) == 1), "a thread has a chunk");
}

/// When every thread has stopped, nobody waits for one to take the next chunk.
#[test]
fn many_chunks_after_a_failure() {
    let Some(lab) = Lab::for_tests() else { return };
    let (sources, mut memory) = (sources(), Arena::new(&lab.context, Place::Device, 0));
    let targets = targets(&mut memory).unwrap();
    let mut workers = RING.workers(&lab.context);
    let tried = AtomicUsize::new(0);
    let error = for_each(&mut workers, all(&targets, &sources, RING.slot_bytes), |_, _| {
        tried.fetch_add(1, Ordering::Relaxed);
        Err(BackendError::Cancelled)
    });
    assert!(matches!(error, Err(BackendError::Cancelled)));
    assert!((1..=RING.threads).contains(&tried.into_inner()), "each thread stops at its first failure");
}
