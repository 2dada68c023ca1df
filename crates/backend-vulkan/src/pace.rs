//! How much work goes into one submission.
//!
//! A driver takes the device away from a submission that runs too long (amdgpu after two seconds), and cancelling can
//! only happen between submissions. So a pass is cut into pieces by an estimate of their time, which is corrected by
//! what passes really take.

use std::ops::Range;
use std::time::Duration;

use crate::dispatch::Dispatch;
use crate::features::DeviceKind;

/// Time that a piece should take.
const PIECE: f64 = 0.1;

/// An estimate of a device's speed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Multiplications and additions per second.
    operations: f64,
    /// Bytes per second.
    bytes: f64,
    /// What the estimates are multiplied by to be right: learnt.
    factor: f64,
}

impl Pace {
    /// A cautious first estimate.
    pub(crate) fn new(kind: DeviceKind) -> Pace {
        let (operations, bytes) = match kind {
            DeviceKind::Discrete => (5e12, 200e9),
            DeviceKind::Integrated => (5e11, 20e9),
            DeviceKind::Virtual => (1e11, 10e9),
            DeviceKind::Software => (2e9, 2e9),
        };
        Pace { operations, bytes, factor: 1.0 }
    }

    /// Estimated seconds of a dispatch.
    fn seconds(&self, dispatch: &Dispatch) -> f64 {
        let work = (dispatch.operations as f64 / self.operations).max(dispatch.bytes as f64 / self.bytes);
        self.factor * work + 2e-6
    }

    /// Estimated time of all.
    pub(crate) fn estimate(&self, dispatches: &[Dispatch]) -> Duration {
        Duration::from_secs_f64(dispatches.iter().map(|dispatch| self.seconds(dispatch)).sum())
    }

    /// Cuts dispatches into pieces of about a tenth of a second. Those that begin together stay together: a pass may
    /// end between two pieces.
    pub(crate) fn pieces(&self, dispatches: &[Dispatch]) -> Vec<Range<usize>> {
        let (mut pieces, mut start, mut time) = (Vec::new(), 0, 0.0);
        for (index, dispatch) in dispatches.iter().enumerate() {
            let seconds = self.seconds(dispatch);
            if index > start && time + seconds > PIECE && !dispatch.joins {
                pieces.push(start..index);
                (start, time) = (index, 0.0);
            }
            time += seconds;
        }
        pieces.push(start..dispatches.len());
        pieces
    }

    /// Learns from a pass that was estimated and took a time. The estimate comes down slowly and goes up at once.
    pub(crate) fn learn(&mut self, estimated: Duration, taken: Duration) {
        if estimated.is_zero() {
            return;
        }
        let right = (self.factor * taken.as_secs_f64() / estimated.as_secs_f64()).clamp(1e-4, 1e3);
        self.factor = if right > self.factor { right } else { 0.5 * (self.factor + right) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Push;
    use crate::pipeline::Kernel;

    fn work(operations: u64) -> Dispatch {
        let kernel = Kernel { shader: "add".into(), subgroup: 32, workgroup: 32, constants: vec![] };
        let (push, groups) = (Push::default(), [1; 3]);
        Dispatch { kernel, push, groups, operations, ..Dispatch::default() }
    }

    #[test]
    fn pieces_cover_all_and_are_short() {
        let pace = Pace::new(DeviceKind::Integrated);
        let dispatches: Vec<Dispatch> = (0..40).map(|index| work(index % 7 * 20_000_000_000)).collect();
        let pieces = pace.pieces(&dispatches);
        assert_eq!(pieces.iter().flat_map(Range::clone).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
        for piece in &pieces {
            let time = pace.estimate(&dispatches[piece.clone()]).as_secs_f64();
            assert!(time <= PIECE || piece.len() == 1, "{piece:?}: {time}");
        }
        assert!(pieces.len() > 10);
        assert_eq!(pace.pieces(&[]), vec![Range { start: 0, end: 0 }]);
    }

    #[test]
    fn what_begins_together_stays_together() {
        let pace = Pace::new(DeviceKind::Integrated);
        let mut dispatches: Vec<Dispatch> = (0..40).map(|_| work(100_000_000_000)).collect();
        (1..40).step_by(2).for_each(|index| dispatches[index].joins = true);
        let pieces = pace.pieces(&dispatches);
        assert_eq!(pieces, (0..20).map(|index| 2 * index..2 * index + 2).collect::<Vec<_>>());
    }

    #[test]
    fn a_slow_device_gets_smaller_pieces() {
        let mut pace = Pace::new(DeviceKind::Discrete);
        let dispatches = vec![work(100_000_000_000); 8];
        let before = pace.pieces(&dispatches).len();
        let estimated = pace.estimate(&dispatches);
        pace.learn(estimated, estimated * 10);
        assert!(pace.pieces(&dispatches).len() > before);
        for _ in 0..20 {
            let estimated = pace.estimate(&dispatches);
            pace.learn(estimated, Duration::from_millis(1));
        }
        assert_eq!(pace.pieces(&dispatches).len(), 1);
    }
}
