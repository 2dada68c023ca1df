//! The way back from a node, from costs that were only kept every few steps.
//!
//! The walk keeps no choices: it has as many of them as costs, and to note them would take it more instructions than to
//! add up the costs. The few nodes from which the end of a period can be reached are gone through once more instead.

use tensor::format::trellis::LEN;
use tensor::format::trellis::search::Metric;

/// The most nodes at the beginning of a period from which one node at its end can be reached.
const REACHING_MAX: usize = 256;

/// The most steps of a period.
const PERIOD_MAX: usize = 8;

/// The nodes after a number of steps of a period from which the node at the end of it can be reached: their upper
/// `free` bits are anything, and the others are fixed.
#[derive(Clone, Copy, Default)]
struct Reaching {
    free: usize,
    fixed_bits: usize,
    fixed: usize,
}

impl Reaching {
    fn node(self, free: usize) -> usize {
        free << self.fixed_bits | self.fixed
    }
}

/// Writes the states of the period that begins at a position of the ring and ends in `node`, and gives the node that it
/// begins with. `costs` are those before the first step.
pub(crate) fn trace_period(
    metric: &Metric,
    targets: &[i16; LEN],
    position: usize,
    node: usize,
    costs: &[u16],
    states: &mut [u16; LEN],
) -> usize {
    let (rate, period) = (metric.rate(), metric.period());
    let reaching = reaching(metric, position, node);
    let mut choices = [[0; REACHING_MAX]; PERIOD_MAX];
    let mut before = [u16::MAX; REACHING_MAX];
    for free in 0..1 << reaching[0].free {
        before[free] = costs[reaching[0].node(free)];
    }
    for step in 0..period {
        let at = (position + step) % LEN;
        let mut after = [u16::MAX; REACHING_MAX];
        let free_bits = reaching[step + 1].free;
        for free in 0..1 << free_bits {
            let node = reaching[step + 1].node(free);
            for upper in 0..1 << rate.new_bits(at + 1) {
                let state = upper << (16 - rate.new_bits(at + 1)) | node;
                let cost = metric.cost(targets[at], metric.table()[state]);
                let cost = cost.saturating_add(before[upper << free_bits | free]);
                if cost < after[free] {
                    (after[free], choices[step][free]) = (cost, upper as u8);
                }
            }
        }
        before = after;
    }
    let (mut node, mut free) = (node, 0);
    for step in (0..period).rev() {
        let at = (position + step) % LEN;
        let upper = usize::from(choices[step][free]);
        let state = upper << (16 - rate.new_bits(at + 1)) | node;
        states[at] = state as u16;
        free |= upper << reaching[step + 1].free;
        node = state >> rate.new_bits(at);
    }
    node
}

/// The nodes from which `node` can be reached, before each step of a period and after the last.
fn reaching(metric: &Metric, position: usize, node: usize) -> [Reaching; PERIOD_MAX + 1] {
    let (rate, period) = (metric.rate(), metric.period());
    let mut result = [Reaching::default(); PERIOD_MAX + 1];
    result[period] = Reaching { free: 0, fixed_bits: 16 - rate.new_bits(position + period), fixed: node };
    for step in (0..period).rev() {
        // A step back takes the new bits away from below and adds unknown ones above.
        let (after, new_bits) = (result[step + 1], rate.new_bits(position + step));
        let fixed_bits = after.fixed_bits - new_bits;
        let free = after.free + rate.new_bits(position + step + 1);
        result[step] = Reaching { free, fixed_bits, fixed: after.fixed >> new_bits };
    }
    result
}
