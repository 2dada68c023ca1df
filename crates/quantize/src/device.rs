//! What a device does for the processor: it searches for tiles, many at a time, and decomposes Hessians.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use half::f16;
use tensor::format::trellis::{Codebook, LEN, Rate};

use crate::error::QuantizeError;

/// Finds tiles as [`tensor::format::trellis::search`] defines them, to the bit, many at a time.
pub trait TileDevice: Send + Sync {
    /// Whether it does so at a rate. Those of other rates are left to the processor.
    fn supports(&self, rate: Rate) -> bool;

    /// How many tiles at a time keep it busy: more are not searched for at once, so that nobody waits long.
    fn tiles(&self) -> usize;

    /// The states of the tiles nearest to weights in the fixed point of the
    /// [`Metric`](tensor::format::trellis::search::Metric), in the order of the ring: as the walk finds them, before
    /// [`close`](tensor::format::trellis::search::close). Never called from two threads at a time.
    ///
    /// # Errors
    /// A device that fails, in words.
    fn search(&self, codebook: Codebook, rate: Rate, targets: &[[i16; LEN]]) -> Result<Vec<[u16; LEN]>, String>;
}

/// Decomposes Hessians in double precision, as [`Factor`](crate::Factor) says.
pub trait HessianDevice: Send + Sync {
    /// Decomposes one.
    ///
    /// # Errors
    /// A device that fails, in words.
    fn decompose(&self, hessian: &ScaledSums<'_>) -> Result<Decomposition, String>;
}

/// A Hessian before it is damped, scaled and rotated.
#[derive(Clone, Copy, Debug)]
pub struct ScaledSums<'a> {
    /// As [`Hessian::sums`](crate::Hessian::sums), `[inputs, inputs]`.
    pub sums: &'a [f32],
    /// How many activations were summed up.
    pub count: u64,
    /// Signs and scales of the inputs.
    pub suh: &'a [f16],
    /// What is added to the diagonal after the division by `count`.
    pub damping: f32,
}

/// What became of a Hessian.
#[derive(Clone, Debug)]
pub enum Decomposition {
    /// `Uᵀ D U`.
    Done {
        /// `U`, `[inputs, inputs]`.
        upper: Vec<f32>,
        /// Triangles `R`, `[inputs / 16, 16, 16]`, with `D = Rᵀ R`.
        roots: Vec<f32>,
    },
    /// Damping did not make it positive definite.
    NotPositiveDefinite {
        /// The first input whose pivot is not positive.
        input: usize,
        /// The pivot.
        value: f64,
    },
    /// The device has no memory for one of this size.
    NoRoom,
}

/// A device that threads share: what they want at the same time, it gets together.
///
/// No thread waits while another one could be served: whoever comes when the device is idle takes along those that wait
/// with the same rate, as many as keep it busy, and gives them their tiles.
#[derive(Clone)]
pub struct TileQueue(Arc<Inner>);

struct Inner {
    device: Box<dyn TileDevice>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Request>,
    /// By number.
    done: HashMap<u64, Found>,
    next: u64,
    busy: bool,
}

struct Request {
    number: u64,
    codebook: Codebook,
    rate: Rate,
    targets: Vec<[i16; LEN]>,
}

type Found = Result<Vec<[u16; LEN]>, String>;

impl TileQueue {
    /// In front of a device.
    pub fn new(device: Box<dyn TileDevice>) -> TileQueue {
        TileQueue(Arc::new(Inner { device, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// As [`TileDevice::supports`].
    pub fn supports(&self, rate: Rate) -> bool {
        self.0.device.supports(rate)
    }

    /// As [`TileDevice::tiles`].
    pub fn tiles(&self) -> usize {
        self.0.device.tiles()
    }

    /// As [`TileDevice::search`], from any number of threads.
    ///
    /// # Errors
    /// [`QuantizeError::Device`].
    pub(crate) fn search(
        &self,
        codebook: Codebook,
        rate: Rate,
        targets: Vec<[i16; LEN]>,
    ) -> Result<Vec<[u16; LEN]>, QuantizeError> {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.waiting.push(Request { number, codebook, rate, targets });
        loop {
            if let Some(found) = state.done.remove(&number) {
                return found.map_err(QuantizeError::Device);
            }
            if state.busy {
                state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // The request that waits longest: this one may have to wait once more.
            let (codebook, rate) = (state.waiting[0].codebook, state.waiting[0].rate);
            let mut count = 0;
            let fits = |request: &mut Request| {
                let alike = request.codebook == codebook && request.rate == rate;
                let fits = alike && (count == 0 || count + request.targets.len() <= self.tiles());
                count += if fits { request.targets.len() } else { 0 };
                fits
            };
            let batch: Vec<Request> = state.waiting.extract_if(.., fits).collect();
            state.busy = true;
            drop(state);
            let found = serve(&*self.0.device, codebook, rate, &batch);
            state = self.state();
            state.done.extend(batch.iter().map(|request| request.number).zip(found));
            state.busy = false;
            self.0.changed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TileQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TileQueue").field("tiles", &self.tiles()).finish_non_exhaustive()
    }
}

/// What each request of a batch gets.
fn serve(device: &dyn TileDevice, codebook: Codebook, rate: Rate, batch: &[Request]) -> Vec<Found> {
    let targets: Vec<[i16; LEN]> = batch.iter().flat_map(|request| &request.targets).copied().collect();
    match device.search(codebook, rate, &targets) {
        Ok(states) if states.len() == targets.len() => {
            let mut rest = &states[..];
            let parts = batch.iter().map(|request| {
                let (part, after) = rest.split_at(request.targets.len());
                rest = after;
                Ok(part.to_vec())
            });
            parts.collect()
        }
        Ok(states) => vec![Err(format!("{} tiles, expected {}", states.len(), targets.len())); batch.len()],
        Err(problem) => vec![Err(problem); batch.len()],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Gives back the targets as states, and fails at weights of -1.
    #[derive(Default)]
    struct Echo {
        calls: Arc<AtomicUsize>,
        active: AtomicUsize,
    }

    impl TileDevice for Echo {
        fn supports(&self, rate: Rate) -> bool {
            rate.half_bits() >= 4
        }

        fn tiles(&self) -> usize {
            100
        }

        fn search(&self, _: Codebook, _: Rate, targets: &[[i16; LEN]]) -> Result<Vec<[u16; LEN]>, String> {
            assert_eq!(self.active.fetch_add(1, Ordering::SeqCst), 0, "two threads at a time");
            self.calls.fetch_add(1, Ordering::SeqCst);
            // So that others come meanwhile.
            std::thread::sleep(std::time::Duration::from_millis(2));
            self.active.fetch_sub(1, Ordering::SeqCst);
            match targets.iter().any(|tile| tile[0] == -1) {
                true => Err("a target of -1".into()),
                false => Ok(targets.iter().map(|tile| tile.map(|target| target as u16)).collect()),
            }
        }
    }

    #[test]
    fn everybody_gets_their_own_tiles_in_few_calls() {
        let device = Echo::default();
        let calls = device.calls.clone();
        let queue = TileQueue::new(Box::new(device));
        std::thread::scope(|scope| {
            for thread in 0..16_i16 {
                let queue = &queue;
                scope.spawn(move || {
                    for round in 0..10 {
                        let targets: Vec<_> =
                            (0..thread % 4).map(|tile| [thread * 100 + round * 10 + tile; LEN]).collect();
                        let rate = Rate::from_half_bits(if thread % 2 == 0 { 4 } else { 5 }).unwrap();
                        let found = queue.search(Codebook::Mul1, rate, targets.clone()).unwrap();
                        assert_eq!(found, targets.iter().map(|tile| tile.map(|one| one as u16)).collect::<Vec<_>>());
                    }
                });
            }
        });
        assert!(calls.load(Ordering::SeqCst) < 160, "each request on its own");
    }

    #[test]
    fn a_failure_is_told_and_the_next_request_is_served() {
        let queue = TileQueue::new(Box::new(Echo::default()));
        let search = |target| queue.search(Codebook::Mul1, Rate::from_half_bits(4).unwrap(), vec![[target; LEN]]);
        assert_eq!(search(-1), Err(QuantizeError::Device("a target of -1".into())));
        assert_eq!(search(7), Ok(vec![[7; LEN]]));
    }
}
