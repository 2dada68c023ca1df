//! Divides bits among weights.

use tensor::format::trellis::Rate;

use crate::distortion;

/// A weight that wants bits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    /// How many weights it has.
    pub(super) weights: u64,
    /// The rise of the KL divergence for each unit of distortion: the mean squared error of its weights over their
    /// mean square.
    pub(super) cost: f64,
    /// The rates that it may have, ascending; at least one.
    pub(super) rates: Vec<Rate>,
}

/// The rates with the least sum of costs that take at most `bits` bits, or nearly: from the lowest rates on, what gains
/// most for a bit gets a higher rate, as long as anything fits. The lowest rates must fit.
pub(super) fn cheapest(items: &[Item], bits: u64) -> Vec<Rate> {
    let mut chosen = vec![0; items.len()];
    let mut left = bits.saturating_sub(items.iter().map(|item| bits_of(item, item.rates[0])).sum());
    loop {
        let steps = items.iter().zip(&chosen).enumerate().filter_map(|(index, (item, &at))| {
            let next = *item.rates.get(at + 1)?;
            let more = bits_of(item, next) - bits_of(item, item.rates[at]);
            let gain = item.cost * (distortion(item.rates[at]) - distortion(next));
            (more <= left).then_some((gain / more as f64, index, more))
        });
        let Some((_, index, more)) = steps.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))) else { break };
        chosen[index] += 1;
        left -= more;
    }
    items.iter().zip(chosen).map(|(item, at)| item.rates[at]).collect()
}

/// The same rate for all that may have it, and the next one, in the order of `priority` (the lowest first), for as many
/// as fit.
pub(super) fn uniform(items: &[Item], bits: u64, priority: impl Fn(usize) -> usize) -> Vec<Rate> {
    let steps = items.iter().map(|item| item.rates.len()).max().unwrap_or(0);
    let at = |item: &Item, step: usize| item.rates[step.min(item.rates.len() - 1)];
    let total = |step| items.iter().map(|item| bits_of(item, at(item, step))).sum::<u64>();
    let step = (0..steps).rev().find(|&step| total(step) <= bits).unwrap_or(0);
    let mut rates: Vec<Rate> = items.iter().map(|item| at(item, step)).collect();
    let mut left = bits.saturating_sub(total(step));
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&index| (priority(index), index));
    for index in order {
        let next = at(&items[index], step + 1);
        let more = bits_of(&items[index], next) - bits_of(&items[index], rates[index]);
        if more <= left {
            (rates[index], left) = (next, left - more);
        }
    }
    rates
}

/// Bits of the tiles.
fn bits_of(item: &Item, rate: Rate) -> u64 {
    item.weights * rate.half_bits() as u64 / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(costs: &[f64]) -> Vec<Item> {
        let rates: Vec<Rate> = [3, 4, 5, 6, 7, 8, 10, 12].into_iter().filter_map(Rate::from_half_bits).collect();
        costs.iter().map(|&cost| Item { weights: 256, cost, rates: rates.clone() }).collect()
    }

    fn bits(rates: &[Rate]) -> Vec<f32> {
        rates.iter().map(|rate| rate.bits()).collect()
    }

    #[test]
    fn what_costs_more_gets_more() {
        // A bit is worth a factor of four.
        assert_eq!(bits(&cheapest(&items(&[1.0, 4.0]), 256 * 5)), [2.0, 3.0]);
        assert_eq!(bits(&cheapest(&items(&[1.0, 0.0]), 256 * 5)), [3.5, 1.5]);
        let mut fixed = items(&[1.0, 1.0, 1.0]);
        fixed[2].rates = vec![Rate::from_half_bits(12).unwrap()];
        assert_eq!(bits(&cheapest(&fixed, 256 * 11)), [2.5, 2.5, 6.0]);
    }

    #[test]
    fn the_sum_is_the_least_of_all() {
        let items = items(&[1.0, 0.3, 2.5, 0.02]);
        let cost =
            |rates: &[Rate]| items.iter().zip(rates).map(|(item, &rate)| item.cost * distortion(rate)).sum::<f64>();
        let budget = 256 * 10;
        let found = cost(&cheapest(&items, budget));
        let choices = &items[0].rates;
        let mut best = f64::INFINITY;
        for number in 0..choices.len().pow(4) {
            let rates: Vec<Rate> = (0..4).map(|at| choices[number / choices.len().pow(at) % choices.len()]).collect();
            if rates.iter().map(|rate| rate.half_bits() as u64 * 128).sum::<u64>() <= budget {
                best = best.min(cost(&rates));
            }
        }
        assert!(found <= best * 1.1, "{found} of {best}");
    }

    #[test]
    fn uniform_rates_differ_by_one_step() {
        assert_eq!(bits(&uniform(&items(&[1.0; 4]), 256 * 9, |index| index)), [2.5, 2.5, 2.0, 2.0]);
        assert_eq!(bits(&uniform(&items(&[1.0; 4]), 256 * 9, |index| 4 - index)), [2.0, 2.0, 2.5, 2.5]);
    }
}
