//! Axes: their range, and where numbers stand.

/// An axis.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// What it shows, with the unit.
    pub(crate) label: String,
    /// How values become places.
    pub(crate) scale: Scale,
    /// Whether 0 is on it; only on linear ones.
    pub(crate) from_zero: bool,
}

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Equal steps are equal differences.
    Linear,
    /// Equal steps are equal ratios.
    Logarithmic,
}

/// An axis for some values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Range {
    scale: Scale,
    low: f64,
    high: f64,
    /// Where numbers stand, rising, and what they say.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A linear axis that begins at 0.
    pub(crate) fn from_zero(label: &str) -> Axis {
        Axis { label: label.into(), scale: Scale::Linear, from_zero: true }
    }

    /// A linear axis around the values.
    pub(crate) fn around(label: &str) -> Axis {
        Axis { label: label.into(), scale: Scale::Linear, from_zero: false }
    }

    /// A logarithmic axis.
    pub(crate) fn logarithmic(label: &str) -> Axis {
        Axis { label: label.into(), scale: Scale::Logarithmic, from_zero: false }
    }

    /// The range for finite values, with about so many ticks; on a logarithmic axis they are positive.
    pub(super) fn range(&self, values: impl Iterator<Item = f64>, ticks: usize) -> Range {
        let ends =
            values.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], value| [low.min(value), high.max(value)]);
        let [low, high] = if ends[0] <= ends[1] { ends } else { [0.0, 1.0] };
        match self.scale {
            Scale::Linear => linear(low, high, self.from_zero, ticks),
            Scale::Logarithmic => logarithmic(low, high, ticks),
        }
    }
}

fn linear(mut low: f64, mut high: f64, from_zero: bool, ticks: usize) -> Range {
    if from_zero {
        low = low.min(0.0);
    }
    // Values at an edge are hard to see.
    let room = if high > low { 0.06 * (high - low) } else { 0.1 * high.abs().max(1e-9) };
    (low, high) = (low - room, high + room);
    if from_zero {
        // What is hardly below 0 is rounding.
        let is_negative = low + 2.0 * room < 0.0;
        (low, high) = (if is_negative { low } else { 0.0 }, high.max(room));
    }
    let step = round_step((high - low) / ticks.max(1) as f64);
    let ticks = ((low / step).ceil() as i64..=(high / step).floor() as i64).map(|count| count as f64 * step);
    let ticks = ticks.map(|value| (value, number(value, step))).collect();
    Range { scale: Scale::Linear, low, high, ticks }
}

/// 1, 2 or 5 times a power of ten, not below a number.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

fn logarithmic(low: f64, high: f64, ticks: usize) -> Range {
    let room = (high / low).powf(0.05).max(1.1);
    let (low, high) = (low / room, high * room);
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let every = |factors: &[f64], step: usize| -> Vec<f64> {
        let powers = (first..=last).filter(|power| power.rem_euclid(step as i32) == 0);
        let all = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
        all.filter(|value| (low..=high).contains(value)).collect()
    };
    const ALL: [f64; 9] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
    let choices = [
        every(&ALL, 1),
        every(&[1.0, 2.0, 5.0], 1),
        every(&[1.0, 3.0], 1),
        every(&[1.0], 1),
        every(&[1.0], 2),
        every(&[1.0], 4),
    ];
    let chosen = choices.iter().find(|values| values.len() <= ticks + 1).or(choices.last());
    let mut ticks: Vec<_> = chosen.into_iter().flatten().map(|value| (*value, number(*value, *value))).collect();
    if ticks.len() < 3 {
        // Less than a decade: equal steps are round numbers too.
        ticks = linear(low, high, false, 8).ticks;
        ticks.retain(|(value, _)| (low..=high).contains(value));
    }
    Range { scale: Scale::Logarithmic, low, high, ticks }
}

impl Range {
    /// The place of a value: 0 at the low end, 1 at the high one.
    pub(super) fn place(&self, value: f64) -> f64 {
        let place = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        place.clamp(-0.01, 1.01)
    }
}

/// A number for people, as exact as a step asks for: `12,000`, `0.25`.
pub(crate) fn number(value: f64, step: f64) -> String {
    let decimals = (-step.abs().log10().floor()).clamp(0.0, 9.0) as usize;
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let grouped: Vec<&str> = whole.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    let is_zero = text.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    let sign = if value < 0.0 && !is_zero { "−" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{fraction}", grouped.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(axis: Axis, values: &[f64]) -> Vec<String> {
        axis.range(values.iter().copied(), 6).ticks.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_numbers_around_the_values() {
        assert_eq!(ticks(Axis::from_zero(""), &[3.0, 97.0]), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(ticks(Axis::around(""), &[0.871, 0.902]), ["0.87", "0.88", "0.89", "0.90"]);
        assert_eq!(ticks(Axis::from_zero(""), &[25_000.0]), ["0", "5,000", "10,000", "15,000", "20,000", "25,000"]);
        assert_eq!(ticks(Axis::from_zero(""), &[-1e-4, 0.5]), ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]);
        assert_eq!(ticks(Axis::from_zero(""), &[-3.0, 5.0]), ["−2", "0", "2", "4"]);
        assert_eq!(ticks(Axis::logarithmic(""), &[0.02, 3.0]), ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"]);
        assert_eq!(ticks(Axis::logarithmic(""), &[30.0, 70.0]), ["30", "40", "50", "60", "70"]);
        assert_eq!(ticks(Axis::logarithmic(""), &[30.0, 33.0]), ["28", "30", "32", "34", "36"]);
        assert_eq!(ticks(Axis::logarithmic(""), &[1e-3, 1e9]).len(), 6);
    }

    #[test]
    fn places_are_inside() {
        for axis in [Axis::from_zero(""), Axis::around(""), Axis::logarithmic("")] {
            for values in [vec![5.0], vec![1.0, 2.0, 1000.0], vec![1e-9, 1e-8]] {
                let range = axis.range(values.iter().copied(), 5);
                assert!(values.iter().all(|value| (0.0..=1.0).contains(&range.place(*value))), "{range:?}");
                assert!(range.ticks.iter().all(|(value, _)| (-1e-9..=1.0 + 1e-9).contains(&range.place(*value))));
            }
        }
        assert!(Axis::around("").range([-3.0, 4.0].into_iter(), 5).place(0.0) > 0.0);
    }

    #[test]
    fn numbers_for_people() {
        let found =
            [number(1234567.0, 1.0), number(-0.5, 0.1), number(0.0, 0.01), number(-0.0, 1.0), number(2.0, 20.0)];
        assert_eq!(found, ["1,234,567", "−0.5", "0.00", "0", "2"]);
    }
}
