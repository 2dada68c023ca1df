//! Which ring is nearest to 256 weights: the definition, to the bit.
//!
//! The search is Viterbi's. Between two neighbours of the ring stands a *node*, the bits that both states share; a step
//! takes the cheapest way to each node, over the states that end in it. All costs are integers, so that every processor
//! and every device finds the same ring ([`Metric`]). Because the ring is closed, a walk around it has to end in the
//! node that it began with, and there are too many nodes to try each. As exllamav3 does, [`encode`] walks twice: once
//! from anywhere on the far side of the ring, which finds the node at the [`CUT`] with half of the ring on either side
//! of it, and once from that node back to it.

use super::{Codebook, LEN, Rate};

/// The walk that counts begins before this position. It is odd so that half rates have fewer nodes there.
pub const CUT: usize = 1;

/// Fixed-point units of one: the values of all codebooks are between −4 and 4.
const UNITS: f32 = 8192.0;

/// The cost of standing for a weight with a state, in integers of 16 bits.
///
/// Weights and values of states are rounded to 1/8192. Their distance saturates at 4, and for rates above 4 bits, where
/// errors are small, at 2, 1 or 1/2, to be squared at a finer scale. A cost is the upper half of the square. Costs are
/// added up with saturation at 65,535, and every [`Metric::period`] steps the lowest cost is subtracted from all.
#[derive(Clone, Debug)]
pub struct Metric {
    rate: Rate,
    table: Vec<i16>,
    /// The lowest and the highest value of the table.
    range: (i16, i16),
    doublings: u32,
}

impl Metric {
    /// The metric of a codebook at a rate.
    pub fn new(codebook: Codebook, rate: Rate) -> Metric {
        let table: Vec<i16> = codebook.table().iter().map(|&value| fixed(value)).collect();
        let range = table.iter().fold((0, 0), |(low, high), &value| (value.min(low), value.max(high)));
        Metric { rate, table, range, doublings: (rate.half_bits() as u32 / 2).saturating_sub(4).min(3) }
    }

    /// Bits per weight.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// The fixed-point value of each state.
    pub fn table(&self) -> &[i16] {
        &self.table
    }

    /// How often a distance is doubled, with saturation, before it is squared: 0 to 3.
    pub fn doublings(&self) -> u32 {
        self.doublings
    }

    /// Steps after which the lowest cost is subtracted from all, counted from the beginning of a walk.
    pub fn period(&self) -> usize {
        match self.rate.half_bits() {
            2 => 8,
            3 | 4 => 4,
            5..=7 => 2,
            _ => 1,
        }
    }

    /// A weight in fixed point, moved into the range of the codebook; 0 for NaN.
    pub fn target(&self, weight: f32) -> i16 {
        fixed(weight).clamp(self.range.0, self.range.1)
    }

    /// What it costs that a state of this value stands for a target.
    pub fn cost(&self, target: i16, value: i16) -> u16 {
        let distance = (0..self.doublings).fold(target.saturating_sub(value), |d, _| d.saturating_add(d));
        ((i32::from(distance) * i32::from(distance)) >> 16) as u16
    }
}

/// The states of a ring near to `weights`, which are in the order of the ring and in the codebook's units: their
/// deviation is about that of the codebook ([`Codebook::deviation`]).
///
/// Takes a large fraction of a second for a tile; the crate `quantize` does the same for use.
pub fn encode(codebook: Codebook, rate: Rate, weights: &[f32; LEN]) -> [u16; LEN] {
    let metric = Metric::new(codebook, rate);
    let targets = weights.map(|weight| metric.target(weight));
    let nodes = 1 << (16 - rate.new_bits(CUT));

    let (choices, costs) = walk(&metric, &targets, CUT + LEN / 2, vec![0; nodes]);
    let end = (0..nodes).min_by_key(|&node| costs[node]).expect("there are nodes");
    let states = trace(rate, &choices, CUT + LEN / 2, end);
    let node = usize::from(states[CUT]) >> rate.new_bits(CUT);

    let mut costs = vec![u16::MAX; nodes];
    costs[node] = 0;
    let (choices, _) = walk(&metric, &targets, CUT, costs);
    let mut states = trace(rate, &choices, CUT, node);
    close(rate, &mut states);
    states
}

/// Makes a ring of a walk that began at the [`CUT`], by keeping the new bits of each state only.
///
/// A walk that the search found is a ring already, unless costs were so high that they saturated.
pub fn close(rate: Rate, states: &mut [u16; LEN]) {
    // What stood before the cut is gone from a state after at most 16 steps: the first states come twice.
    for step in 0..LEN + 16 {
        let (before, position) = ((CUT + step + LEN - 1) % LEN, (CUT + step) % LEN);
        let new_bits = rate.new_bits(position);
        states[position] = states[before] << new_bits | states[position] & ((1 << new_bits) - 1);
    }
}

/// Once around the ring from before position `start`: for each step and each node after it, the upper bits of the state
/// that leads there at the lowest cost, the lowest of equals; and the costs of the nodes in the end.
fn walk(metric: &Metric, targets: &[i16; LEN], start: usize, mut costs: Vec<u16>) -> (Vec<Vec<u8>>, Vec<u16>) {
    let choices = (0..LEN).map(|step| {
        let position = (start + step) % LEN;
        let (before, after) = (metric.rate.new_bits(position), metric.rate.new_bits(position + 1));
        let mut choice = vec![0; 1 << (16 - after)];
        let mut next = vec![u16::MAX; choice.len()];
        for node in 0..choice.len() {
            for upper in 0..1 << after {
                let state = upper << (16 - after) | node;
                let cost = metric.cost(targets[position], metric.table[state]).saturating_add(costs[state >> before]);
                if cost < next[node] {
                    (next[node], choice[node]) = (cost, upper as u8);
                }
            }
        }
        if (step + 1) % metric.period() == 0 {
            let lowest = next.iter().copied().min().unwrap_or(0);
            next.iter_mut().for_each(|cost| *cost -= lowest);
        }
        costs = next;
        choice
    });
    (choices.collect(), costs)
}

/// Goes back from the last node of a walk, and gives the states on the way.
fn trace(rate: Rate, choices: &[Vec<u8>], start: usize, mut node: usize) -> [u16; LEN] {
    let mut states = [0; LEN];
    for step in (0..LEN).rev() {
        let position = (start + step) % LEN;
        let (before, after) = (rate.new_bits(position), rate.new_bits(position + 1));
        let state = usize::from(choices[step][node]) << (16 - after) | node;
        states[position] = state as u16;
        node = state >> before;
    }
    states
}

/// Rounds to the nearest, halves away from zero; saturates.
fn fixed(value: f32) -> i16 {
    (value * UNITS).round() as i16
}
