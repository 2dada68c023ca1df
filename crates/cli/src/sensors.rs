//! Energy and temperatures, where the machine tells them: RAPL, hwmon and thermal zones of Linux, NVML.
//!
//! Everything below a folder of the shape of `/sys`, so that tests have one of their own.

mod meter;
mod nvml;
mod sysfs;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backend_vulkan::{DeviceInfo, DeviceKind};

use meter::{Counter, Gauge};
use nvml::Nvml;
use sysfs::Chip;

use crate::resident::thread_cpu_time;

/// How often counters are read in the background: often enough for one that overflows, and to sum up power.
const PERIOD: Duration = Duration::from_millis(100);

/// A time is only measured by a counter that is renewed so many times in it: what is missing at both ends is then at
/// most a tenth.
const RENEWALS_MIN: u32 = 20;

/// Something that tells a temperature.
struct Thermometer {
    name: String,
    /// In degrees Celsius.
    gauge: Gauge,
}

/// What was found.
#[derive(Default)]
struct Found {
    counters: Vec<Counter>,
    thermometers: Vec<Thermometer>,
    /// Why there is no more.
    missing: Vec<String>,
}

/// The counters and thermometers of a device and of the processor. A thread reads the counters as long as this lives.
pub(crate) struct Sensors {
    counters: Arc<Mutex<Vec<Counter>>>,
    thermometers: Vec<Thermometer>,
    missing: Vec<String>,
    /// Microseconds of processor time of the thread that reads.
    spent: Arc<AtomicU64>,
    /// Dropped to end the thread, which then is waited for.
    reader: Option<(Sender<()>, JoinHandle<()>)>,
}

/// What all counters said at some time.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    at: Instant,
    joules: Vec<Option<f64>>,
}

/// What a counter measured over some time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Energy {
    /// Which counter: `RAPL: package-0`.
    pub(crate) counter: String,
    /// Energy.
    pub(crate) joules: f64,
    /// The time.
    pub(crate) seconds: f64,
}

/// A counter as it is listed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CounterInfo {
    /// Its name.
    pub(crate) name: String,
    /// The shortest time that it measures.
    pub(crate) shortest: Duration,
}

impl Sensors {
    /// Those of the processor and, if the model is on one, of a GPU. `root` is `/sys` or stands for it.
    pub(crate) fn find(root: &Path, gpu: Option<&DeviceInfo>) -> Sensors {
        let mut found = Found::default();
        if let Some(gpu) = gpu.filter(|gpu| gpu.features.kind != DeviceKind::Software) {
            of_gpu(&mut found, root, gpu);
        }
        match sysfs::rapl(root) {
            Ok(counter) => found.counters.push(counter),
            Err(why) => found.missing.push(why),
        }
        found.thermometers.extend(sysfs::processor_thermometers(root));
        Sensors::of(found)
    }

    fn of(Found { mut counters, thermometers, missing }: Found) -> Sensors {
        sample(&mut counters);
        let has_counters = !counters.is_empty();
        let counters = Arc::new(Mutex::new(counters));
        let spent = Arc::default();
        let reader = has_counters.then(|| read_on(Arc::clone(&counters), Arc::clone(&spent)));
        Sensors { counters, thermometers, missing, spent, reader }
    }

    fn counters(&self) -> MutexGuard<'_, Vec<Counter>> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Processor time that reading in the background has taken, where the system tells. Waits for a reading to end.
    pub(crate) fn spent(&self) -> Duration {
        let _no_reading = self.counters();
        Duration::from_micros(self.spent.load(Ordering::Relaxed))
    }

    /// The counters of energy.
    pub(crate) fn list(&self) -> Vec<CounterInfo> {
        let info = |counter: &Counter| CounterInfo { name: counter.name.clone(), shortest: shortest(counter) };
        self.counters().iter().map(info).collect()
    }

    /// What was looked for and not found, or not to be read, and why.
    pub(crate) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Reads the counters.
    pub(crate) fn read(&self) -> Reading {
        let mut counters = self.counters();
        let at = sample(&mut counters);
        Reading { at, joules: counters.iter().map(Counter::joules).collect() }
    }

    /// What was used since a reading, by each counter that can tell for so short a time.
    pub(crate) fn since(&self, before: &Reading) -> Vec<Energy> {
        let now = self.read();
        let time = now.at - before.at;
        let used = |(counter, (now, then)): (&Counter, (&Option<f64>, &Option<f64>))| {
            let joules = now.zip(*then).map(|(now, then)| now - then)?;
            let energy = Energy { counter: counter.name.clone(), joules, seconds: time.as_secs_f64() };
            (time >= shortest(counter)).then_some(energy)
        };
        self.counters().iter().zip(now.joules.iter().zip(&before.joules)).filter_map(used).collect()
    }

    /// Temperatures in degrees Celsius; those of the device first.
    pub(crate) fn temperatures(&self) -> Vec<(String, f64)> {
        let read = |one: &Thermometer| Some((one.name.clone(), (one.gauge)().ok()?));
        self.thermometers.iter().filter_map(read).collect()
    }
}

impl Drop for Sensors {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.reader.take() {
            drop(stop);
            // A thread that panicked has nothing to say that matters any more.
            let _ = thread.join();
        }
    }
}

/// Reads counters. The time that they are read for.
fn sample(counters: &mut [Counter]) -> Instant {
    let now = Instant::now();
    counters.iter_mut().for_each(|counter| counter.sample(now));
    now
}

fn shortest(counter: &Counter) -> Duration {
    counter.renewal * RENEWALS_MIN
}

/// Reads counters until the other end of the channel is dropped, and says how much processor time that takes.
fn read_on(counters: Arc<Mutex<Vec<Counter>>>, spent: Arc<AtomicU64>) -> (Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = mpsc::channel();
    let read = move || {
        while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
            sample(&mut counters);
            spent.store(thread_cpu_time().unwrap_or_default().as_micros() as u64, Ordering::Relaxed);
        }
    };
    (stop, std::thread::spawn(read))
}

/// Counter and thermometer of a GPU: by NVML for NVIDIA's, else by hwmon.
fn of_gpu(found: &mut Found, root: &Path, gpu: &DeviceInfo) {
    let features = &gpu.features;
    let address = features.pci_address.as_deref();
    let result = if features.driver.contains("NVIDIA") {
        Nvml::open(address).and_then(|nvml| nvml::sensors(&Arc::new(nvml)))
    } else {
        Chip::of_device(root, address).and_then(|chip| Ok((chip.counter()?, chip.thermometer(&["edge"]))))
    };
    match result {
        Ok((counter, gauge)) => {
            let name = counter.name.clone();
            found.counters.push(counter);
            found.thermometers.extend(gauge.map(|gauge| Thermometer { name, gauge }));
        }
        Err(why) => found.missing.push(format!("{}: {why}", features.name)),
    }
}

/// Energy over several times, by each counter that measured all of them.
pub(crate) fn sum(times: &[Vec<Energy>]) -> Vec<Energy> {
    let Some((first, rest)) = times.split_first() else { return Vec::new() };
    let all = first.iter().filter_map(|energy| {
        rest.iter().try_fold(energy.clone(), |sum, time| {
            let other = time.iter().find(|other| other.counter == sum.counter)?;
            Some(Energy { joules: sum.joules + other.joules, seconds: sum.seconds + other.seconds, ..sum })
        })
    });
    all.collect()
}

impl Energy {
    /// Mean power.
    pub(crate) fn watts(&self) -> f64 {
        self.joules / self.seconds
    }

    /// For people: `1.160 J per token, 45.2 W (RAPL: package-0)`.
    pub(crate) fn per_token(&self, tokens: usize) -> String {
        let joules = self.joules / tokens.max(1) as f64;
        let decimals = if joules < 0.1 { 4 } else { 3 };
        format!("{joules:.decimals$} J per token, {:.1} W ({})", self.watts(), self.counter)
    }

    /// For programs.
    pub(crate) fn json(&self, tokens: usize) -> serde_json::Value {
        serde_json::json!({
            "counter": self.counter,
            "joules_per_token": self.joules / tokens.max(1) as f64,
            "watts": self.watts(),
            "seconds": self.seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::meter::{Meter, Unit};
    use super::*;

    /// Sensors with one counter, which tells what is stored, in joules.
    fn counting(renewal: Duration) -> (Sensors, Arc<AtomicU64>) {
        let value = Arc::new(AtomicU64::new(5));
        let gauge = Arc::clone(&value);
        let read: Gauge = Box::new(move || Ok(gauge.load(Ordering::SeqCst) as f64));
        let meters = vec![Meter::new(Unit::Joules { range: None }, read)];
        let counters = vec![Counter { name: "one".into(), renewal, meters }];
        (Sensors::of(Found { counters, ..Found::default() }), value)
    }

    #[test]
    fn a_time_has_the_energy_that_was_counted_in_it() {
        let (sensors, value) = counting(Duration::ZERO);
        let before = sensors.read();
        value.store(47, Ordering::SeqCst);
        let used = sensors.since(&before);
        assert_eq!((used.len(), used[0].joules), (1, 42.0));
        assert!((used[0].watts() * used[0].seconds - 42.0).abs() < 1e-9);
        assert!(used[0].per_token(42).starts_with("1.000 J per token, "), "{}", used[0].per_token(42));
    }

    #[test]
    fn a_time_that_is_too_short_for_a_counter_is_not_measured() {
        let (sensors, _) = counting(Duration::from_secs(3600));
        assert_eq!(sensors.since(&sensors.read()), []);
        assert_eq!(sensors.list()[0].shortest, Duration::from_secs(20 * 3600));
        let none = Sensors::find(Path::new("nowhere"), None);
        assert!(none.list().is_empty() && none.missing()[0].starts_with("no RAPL"), "{:?}", none.missing());
    }

    #[test]
    fn counters_that_missed_a_time_are_not_summed() {
        let energy = |counter: &str, joules| Energy { counter: counter.into(), joules, seconds: 1.0 };
        let times = [vec![energy("a", 1.0), energy("b", 2.0)], vec![energy("b", 3.0)]];
        assert_eq!(sum(&times), [Energy { counter: "b".into(), joules: 5.0, seconds: 2.0 }]);
        assert_eq!(sum(&[]), []);
    }
}
