//! One step of the search: the costs of all nodes after a weight, from those before it.
//!
//! A step looks at all 65,536 states. Their upper bits without the `IN` new ones are the node before, and without the
//! uppermost `OUT` bits they are the node after, `OUT` being the new bits of the next weight; of the 2^`OUT` states
//! that lead to the same node the cheapest counts. Where vectors are longer than the 2^`IN` states that come from one
//! node, a vector takes neighbouring nodes before, and in turn each of the new bits: so costs are read as they lie. The
//! results are then interleaved, as the new bits are the lowest ones of a node. Where vectors are shorter, all lanes
//! have the same node before.
//!
//! The values of the states are stored in the order in which the step reads them, for each `IN`, `OUT` and width.

use crate::lanes::Lanes;

/// States of 16 bits.
const STATES: usize = 1 << 16;

/// Values at an address that suits all vectors.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Line([i16; 32]);

/// The values of all states in the order of a step.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    lines: Vec<Line>,
    width: usize,
    bits: [usize; 2],
}

impl Table {
    /// For a step with so many new bits of this weight and of the next.
    pub(crate) fn new(values: &[i16], width: usize, bits_in: usize, bits_out: usize) -> Table {
        let mut lines = vec![Line([0; 32]); STATES / 32];
        for (place, state) in order(width, bits_in, bits_out).enumerate() {
            lines[place / 32].0[place % 32] = values[state];
        }
        Table { lines, width, bits: [bits_in, bits_out] }
    }
}

/// The states as a step goes through them.
fn order(width: usize, bits_in: usize, bits_out: usize) -> impl Iterator<Item = usize> {
    let uppers = 1 << bits_out;
    let news = if shares_nodes(width, bits_in) { 1 } else { 1 << bits_in };
    let chunk = width * news;
    (0..STATES).map(move |place| {
        let (lane, vector) = (place % width, place / width);
        let (new, upper, first) = (vector % news, vector / news % uppers, place / (chunk * uppers) * chunk);
        upper << (16 - bits_out) | (first + lane * news + new)
    })
}

/// Whether all lanes of a vector come from the same node.
const fn shares_nodes(width: usize, bits_in: usize) -> bool {
    1 << bits_in >= width
}

/// The costs of all nodes after a weight. `NEWS` is 2^`IN` up to 16, and not used above.
///
/// # Panics
/// If the table is for another step, or the costs are not those of all nodes.
#[inline(always)]
pub(crate) fn step<S: Lanes, const IN: usize, const OUT: usize, const NEWS: usize>(
    lanes: S,
    table: &Table,
    target: i16,
    costs: &[u16],
    next: &mut [u16],
) {
    assert!(table.width == S::WIDTH && table.bits == [IN, OUT] && table.lines.len() == STATES / 32);
    assert!(costs.len() == STATES >> IN && next.len() == STATES >> OUT);
    let values = table.lines.as_ptr().cast::<u16>();
    let target = lanes.splat(target as u16);
    // SAFETY: `values` has 2^16 numbers, and the lengths of `costs` and `next` were just checked.
    unsafe {
        if shares_nodes(S::WIDTH, IN) {
            one_node::<S, IN, OUT>(lanes, values, target, costs.as_ptr(), next.as_mut_ptr());
        } else {
            many_nodes::<S, IN, OUT, NEWS>(lanes, values, target, costs.as_ptr(), next.as_mut_ptr());
        }
    }
}

/// What a distance is multiplied with before it is squared, as a power of two; `Metric::doublings` of whole rates.
const fn doublings(bits: usize) -> u32 {
    match bits {
        0..=4 => 0,
        5 => 1,
        6 => 2,
        _ => 3,
    }
}

/// A step whose vectors have states of neighbouring nodes.
///
/// # Safety
/// `values` has all states, `costs` 2^(16 − `IN`) and `next` 2^(16 − `OUT`) nodes.
#[inline(always)]
unsafe fn many_nodes<S: Lanes, const IN: usize, const OUT: usize, const NEWS: usize>(
    lanes: S,
    mut values: *const u16,
    target: S::Vector,
    costs: *const u16,
    next: *mut u16,
) {
    let nodes = STATES >> (IN + OUT);
    for node in (0..nodes).step_by(S::WIDTH) {
        let mut best = [lanes.splat(u16::MAX); NEWS];
        for upper in 0..1 << OUT {
            // SAFETY: `upper · nodes + node` is a node before, and WIDTH divides `nodes`, which is at least 2^8; the
            // loops read each of the 2^16 values once.
            unsafe {
                let cost = lanes.load(costs.add(upper * nodes + node));
                for best in &mut best {
                    // Vectors are shorter than the 32 states of one node at the rates that have doublings.
                    *best = lanes.min(*best, lanes.add_cost::<0>(target, lanes.load(values), cost));
                    values = values.add(S::WIDTH);
                }
            }
        }
        // SAFETY: `nodes · NEWS` are the nodes after.
        unsafe { lanes.store_interleaved(best, next.add(node * NEWS)) };
    }
}

/// A step whose vectors have states of one node.
///
/// # Safety
/// As of [`many_nodes`].
#[inline(always)]
unsafe fn one_node<S: Lanes, const IN: usize, const OUT: usize>(
    lanes: S,
    mut values: *const u16,
    target: S::Vector,
    costs: *const u16,
    next: *mut u16,
) {
    let nodes = STATES >> OUT;
    for node in (0..nodes).step_by(S::WIDTH) {
        let mut best = lanes.splat(u16::MAX);
        for upper in 0..1 << OUT {
            // SAFETY: a state without its new bits is a node before; the loops read each of the 2^16 values once.
            unsafe {
                let cost = lanes.splat(*costs.add((upper * nodes + node) >> IN));
                let cost = match doublings(IN) {
                    0 => lanes.add_cost::<0>(target, lanes.load(values), cost),
                    1 => lanes.add_cost::<1>(target, lanes.load(values), cost),
                    2 => lanes.add_cost::<2>(target, lanes.load(values), cost),
                    _ => lanes.add_cost::<3>(target, lanes.load(values), cost),
                };
                best = lanes.min(best, cost);
                values = values.add(S::WIDTH);
            }
        }
        // SAFETY: WIDTH divides the number of nodes after.
        unsafe { lanes.store_interleaved([best], next.add(node)) };
    }
}
