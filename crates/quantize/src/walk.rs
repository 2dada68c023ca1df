//! Once around the ring, with the costs that [`trace`](crate::trace) needs.

use tensor::format::trellis::LEN;

use crate::encoder::Scratch;
use crate::lanes::Lanes;
use crate::level::WithLanes;
use crate::step::{Table, step};

/// A walk at a rate of `ODD` new bits at odd positions and `EVEN` at even ones. Those with `NEWS` are 2 to the power of
/// the one before, and not used above 16.
pub(crate) struct Walk<'a, const ODD: usize, const NEWS_ODD: usize, const EVEN: usize, const NEWS_EVEN: usize> {
    /// For the steps at odd positions, then at even ones.
    pub(crate) tables: [&'a Table; 2],
    /// The weights in fixed point.
    pub(crate) targets: &'a [i16; LEN],
    /// The odd position of the first step.
    pub(crate) start: usize,
    /// The first period before which costs are kept.
    pub(crate) kept: usize,
    /// Steps after which costs are kept, and the lowest is subtracted.
    pub(crate) period: usize,
    /// Its first kept costs are those before the first step, and in the end the last ones are those after the last.
    pub(crate) scratch: &'a mut Scratch,
}

impl<const ODD: usize, const NEWS_ODD: usize, const EVEN: usize, const NEWS_EVEN: usize> WithLanes
    for Walk<'_, ODD, NEWS_ODD, EVEN, NEWS_EVEN>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, lanes: S) {
        let (odd, even) = (1 << (16 - ODD), 1 << (16 - EVEN));
        let Scratch { costs, next, kept } = self.scratch;
        // Those that are not kept take turns in the first two places.
        let place = |period: usize| odd * if period < self.kept { period % 2 } else { period };
        for period in 0..LEN / self.period {
            for step_in_period in 0..self.period {
                let position = (self.start + period * self.period + step_in_period) % LEN;
                let target = self.targets[position];
                let costs_before = if step_in_period == 0 { &kept[place(period)..] } else { &costs[..] };
                if position % 2 == 1 {
                    let (before, after) = (&costs_before[..odd], &mut next[..even]);
                    step::<S, ODD, EVEN, NEWS_ODD>(lanes, self.tables[0], target, before, after);
                } else {
                    let (before, after) = (&costs_before[..even], &mut next[..odd]);
                    step::<S, EVEN, ODD, NEWS_EVEN>(lanes, self.tables[1], target, before, after);
                }
                std::mem::swap(costs, next);
            }
            // The order of a fold is free to the compiler, that of `Iterator::min` is not.
            let lowest = costs[..odd].iter().fold(u16::MAX, |lowest, &cost| lowest.min(cost));
            for (kept, cost) in kept[place(period + 1)..][..odd].iter_mut().zip(&costs[..odd]) {
                // Never negative; a check would keep development builds from using vectors.
                *kept = cost.wrapping_sub(lowest);
            }
        }
    }
}
