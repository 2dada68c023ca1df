//! How evenly tokens come.

use std::time::Duration;

use serde_json::{Value, json};

/// Times between tokens, over all runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Latency {
    /// By the device's clock, of each pass; empty if it does not tell.
    pub(super) device: Vec<Duration>,
    /// The longest time without a new token, as a reader sees it.
    pub(super) longest_gap: Duration,
    /// Processor time over wall time: 1 for one core that never rests; the most of all runs.
    pub(super) cpu_share: Option<f64>,
}

impl Latency {
    /// Adds another run.
    pub(super) fn add(&mut self, other: Latency) {
        self.device.extend(other.device);
        self.longest_gap = self.longest_gap.max(other.longest_gap);
        self.cpu_share = match (self.cpu_share, other.cpu_share) {
            (Some(one), Some(two)) => Some(one.max(two)),
            (one, two) => one.or(two),
        };
    }

    /// Median and 99th percentile of the device's times, in seconds.
    pub(super) fn device_times(&self) -> Option<[f64; 2]> {
        let mut times = self.device.clone();
        times.sort_unstable();
        let at = |share: f64| times[((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1];
        (!times.is_empty()).then(|| [at(0.5).as_secs_f64(), at(0.99).as_secs_f64()])
    }

    /// For people: a line.
    pub(super) fn line(&self) -> String {
        let mut parts = Vec::new();
        if let Some([median, high]) = self.device_times() {
            parts.push(format!(
                "between tokens {:.3} ms (median), {:.3} ms (99th percentile) by the device's clock",
                median * 1e3,
                high * 1e3
            ));
        }
        parts.push(format!("longest gap {:.1} ms", self.longest_gap.as_secs_f64() * 1e3));
        parts.extend(self.cpu_share.map(|share| format!("processor {:.0} % of a core", share * 100.0)));
        format!("        {}\n", parts.join(" · "))
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let times = self.device_times().map(|[median, high]| json!({ "median": median, "percentile_99": high }));
        json!({
            "device_seconds_between_tokens": times,
            "longest_gap_seconds": self.longest_gap.as_secs_f64(),
            "processor_share": self.cpu_share,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_occurred() {
        let device = (1..=200).rev().map(Duration::from_millis).collect();
        let latency = Latency { device, longest_gap: Duration::from_millis(300), cpu_share: Some(0.25) };
        assert_eq!(latency.device_times(), Some([0.1, 0.198]));
        let mut all = Latency::default();
        assert_eq!(all.device_times(), None);
        assert!(!all.line().contains("device's clock"));
        all.add(latency.clone());
        assert_eq!(all, latency);
        assert!(all.line().contains("100.000 ms (median)") && all.line().contains("25 % of a core"), "{}", all.line());
    }
}
