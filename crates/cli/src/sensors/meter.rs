//! Joules out of what a gauge tells: a counter that overflows, or power.

use std::time::{Duration, Instant};

/// Reads a number.
pub(super) type Gauge = Box<dyn Fn() -> Result<f64, String> + Send>;

/// What a gauge tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    /// Joules since some moment. After `range` of them it begins again at 0.
    Joules { range: Option<f64> },
    /// Watts.
    Watts,
}

/// Sums up a gauge.
pub(super) struct Meter {
    unit: Unit,
    gauge: Gauge,
    joules: f64,
    last: Option<(Instant, f64)>,
    /// A gauge that failed once measures nothing more: a gap would look like rest.
    is_broken: bool,
}

impl Meter {
    /// One that has counted nothing.
    pub(super) fn new(unit: Unit, gauge: Gauge) -> Meter {
        Meter { unit, gauge, joules: 0.0, last: None, is_broken: false }
    }

    /// Adds what came since the last time. Power is taken to change evenly in between.
    pub(super) fn sample(&mut self, now: Instant) {
        let Ok(value) = (self.gauge)() else {
            self.is_broken = true;
            return;
        };
        if let Some((then, before)) = self.last.replace((now, value)) {
            self.joules += match self.unit {
                Unit::Joules { range: Some(range) } if value < before => value + range - before,
                // A counter without a range that falls was set back: what it has is all that is known.
                Unit::Joules { .. } if value < before => value,
                Unit::Joules { .. } => value - before,
                Unit::Watts => now.saturating_duration_since(then).as_secs_f64() * (value + before) / 2.0,
            };
        }
    }
}

/// Meters that count together.
pub(super) struct Counter {
    pub(super) name: String,
    /// The time after which it tells something new.
    pub(super) renewal: Duration,
    pub(super) meters: Vec<Meter>,
}

impl Counter {
    /// Reads all of its meters.
    pub(super) fn sample(&mut self, now: Instant) {
        self.meters.iter_mut().for_each(|meter| meter.sample(now));
    }

    /// Joules since the first sample; `None` if a meter has failed.
    pub(super) fn joules(&self) -> Option<f64> {
        self.meters.iter().map(|meter| (!meter.is_broken).then_some(meter.joules)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A meter that reads these values, a second after each other, and then fails.
    fn read(unit: Unit, values: &'static [f64]) -> Counter {
        let next = Cell::new(0);
        let gauge = move || {
            let index = next.replace(next.get() + 1);
            values.get(index).copied().ok_or_else(|| "no more".to_owned())
        };
        Counter { name: String::new(), renewal: Duration::ZERO, meters: vec![Meter::new(unit, Box::new(gauge))] }
    }

    fn sum(unit: Unit, values: &'static [f64], samples: u64) -> Option<f64> {
        let (mut counter, start) = (read(unit, values), Instant::now());
        (0..samples).for_each(|second| counter.sample(start + Duration::from_secs(second)));
        counter.joules()
    }

    #[test]
    fn counters_overflow_and_power_is_summed_up() {
        assert_eq!(sum(Unit::Joules { range: Some(100.0) }, &[90.0, 99.0, 4.0, 10.0], 4), Some(20.0));
        assert_eq!(sum(Unit::Joules { range: None }, &[7.0, 8.0, 3.0], 3), Some(4.0));
        assert_eq!(sum(Unit::Watts, &[10.0, 20.0, 20.0], 3), Some(35.0));
        assert_eq!(sum(Unit::Watts, &[10.0], 1), Some(0.0));
    }

    #[test]
    fn a_gauge_that_fails_measures_nothing() {
        assert_eq!(sum(Unit::Watts, &[10.0, 10.0], 3), None);
    }
}
