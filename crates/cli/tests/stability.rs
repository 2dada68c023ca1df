//! Long runs of `bench`, energy and temperatures, on a machine whose sensors are files that the test writes.

#![cfg(unix)]

mod built_in;
mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, thread};

use built_in::gguf;
use common::Folder;
use serde_json::Value;

/// What the counter counts in a second.
const WATTS: f64 = 25.0;
/// It begins again at 0 after that many microjoules: several times in a test.
const RANGE: f64 = 40e6;

/// A folder of the shape of `/sys` whose counter rises until it is dropped.
struct Machine {
    folder: Folder,
    stop: Arc<AtomicBool>,
    clock: Option<JoinHandle<()>>,
}

impl Machine {
    fn new(name: &str) -> Machine {
        let folder = Folder::new(name);
        let zone = PathBuf::from(folder.path("class/powercap/intel-rapl:0"));
        let chip = PathBuf::from(folder.path("class/hwmon/hwmon0"));
        for path in [&zone, &chip] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(zone.join("name"), "package-0\n").unwrap();
        fs::write(zone.join("max_energy_range_uj"), format!("{RANGE}\n")).unwrap();
        fs::write(chip.join("name"), "k10temp\n").unwrap();
        fs::write(chip.join("temp1_input"), "61500\n").unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, start) = (Arc::clone(&stop), Instant::now());
        let write = move || {
            while !stopped.load(Ordering::SeqCst) {
                let joules = WATTS * start.elapsed().as_secs_f64();
                // Whoever reads sees the old number or the new one, never half of it.
                fs::write(zone.join("new"), format!("{}\n", (joules * 1e6 % RANGE) as u64)).unwrap();
                fs::rename(zone.join("new"), zone.join("energy_uj")).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
        };
        let clock = Some(thread::spawn(write));
        while !PathBuf::from(folder.path("class/powercap/intel-rapl:0/energy_uj")).exists() {
            thread::sleep(Duration::from_millis(1));
        }
        Machine { folder, stop, clock }
    }

    fn bench(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
        command.args(["bench", gguf(), "--device", "cpu", "--threads", "1", "--sysfs", &self.folder.path("")]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.clock.take().map(JoinHandle::join);
    }
}

#[track_caller]
fn finish(child: Child) -> (String, String) {
    let output = child.wait_with_output().expect("it ends");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

#[track_caller]
fn json(child: Child) -> Value {
    serde_json::from_str(&finish(child).0).expect("JSON")
}

#[track_caller]
fn assert_power(energy: &Value) {
    assert_eq!(energy["counter"], "RAPL: package-0");
    let watts = energy["watts"].as_f64().unwrap();
    assert!((watts / WATTS - 1.0).abs() < 0.2, "{energy}");
}

#[test]
fn energy_is_measured_for_each_case() {
    let machine = Machine::new("energy");
    let cases = ["--prompt-tokens", "256", "--decode-tokens", "96", "--sequences", "1,3", "--repeat", "2", "--json"];
    let report = json(machine.bench(&cases));
    let results = report["results"].as_array().unwrap();
    let found: Vec<_> = results.iter().map(|result| (result["test"].as_str(), result["sequences"].as_u64())).collect();
    assert_eq!(found, [(Some("prefill"), Some(1)), (Some("decode"), Some(1)), (Some("decode"), Some(3))]);
    for result in results {
        let energy = &result["energy"][0];
        assert_power(energy);
        let per_token = WATTS / result["tokens_per_second"]["median"].as_f64().unwrap();
        let ratio = energy["joules_per_token"].as_f64().unwrap() / per_token;
        assert!((0.5..2.0).contains(&ratio), "{result}");
    }
    let (_, notices) = finish(machine.bench(&["--prompt-tokens", "0", "--decode-tokens", "1", "--repeat", "1"]));
    assert!(notices.contains("energy: not measured where a run is shorter than 0.02 s (RAPL: package-0)"), "{notices}");
    let nothing = ["--sysfs", "nowhere", "--prompt-tokens", "0", "--decode-tokens", "1", "--repeat", "1"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    let output = command.args(["bench", "--device", "cpu", "--threads", "1"]).args(nothing).output().unwrap();
    let notices = String::from_utf8_lossy(&output.stderr);
    assert_eq!(notices.matches("energy: not measured: no RAPL of a processor in `nowhere").count(), 1, "{notices}");
}

#[test]
fn a_long_run_is_a_series_that_is_drawn_and_compared() {
    let machine = Machine::new("long");
    let report = json(machine.bench(&["--minutes", "0.1", "--json"]));
    let run = &report["stability"][0];
    let intervals = run["intervals"].as_array().unwrap();
    assert!(intervals.len() == 2 || intervals.len() == 3, "{run}");
    assert_eq!((&run["ended"], &run["threads"]), (&Value::Null, &1.into()));
    assert!((5.0..7.5).contains(&run["seconds"].as_f64().unwrap()), "{run}");
    for interval in intervals {
        assert!(interval["tokens_per_second"].as_f64().unwrap() > 1.0, "{interval}");
        assert_eq!(interval["celsius"]["k10temp"], 61.5);
        assert!((interval["watts"]["RAPL: package-0"].as_f64().unwrap() / WATTS - 1.0).abs() < 0.2, "{interval}");
    }
    let result = &report["results"][0];
    assert_eq!(result["test"], "stability");
    assert_power(&result["energy"][0]);
    let (path, plots) = (machine.folder.path("long.json"), machine.folder.path("plots"));
    fs::write(&path, report.to_string()).unwrap();
    let lapidary = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_lapidary")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    assert_eq!(lapidary(&["report", &path, "--plots", &plots]).0, Some(0));
    let mut names: Vec<_> = fs::read_dir(&plots).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["stability-power.svg", "stability-speed.svg", "stability-temperature.svg"]);
    let (code, text) = lapidary(&["bench", "compare", &path, &path]);
    assert!(code == Some(0) && text.contains("stability"), "{text}");
    let other = machine.folder.path("other.json");
    fs::write(&other, report.to_string().replace("\"minutes\":0.1", "\"minutes\":5")).unwrap();
    let (code, text) = lapidary(&["bench", "compare", &path, &other]);
    assert!(code == Some(1) && text.contains("minutes is 0.1 and 5"), "{text}");
}

#[test]
fn control_c_ends_a_long_run_with_its_report() {
    let machine = Machine::new("interrupted");
    let mut child = machine.bench(&["--minutes", "10"]);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    output.read_line(&mut text).unwrap();
    assert!(text.contains(" min · ") && text.contains(" · k10temp 61.5 °C · "), "{text}");
    let id = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: sends a signal to the child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(id, libc::SIGINT) }, 0);
    output.read_to_string(&mut text).unwrap();
    finish(child);
    let parts = ["min of decoding · ", " · interrupted\n", "k10temp 61.5 °C", "energy ", " W (RAPL: package-0)"];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn a_long_run_is_of_one_case() {
    let machine = Machine::new("one");
    for (arguments, part) in [
        (&["--minutes", "1", "--sequences", "1,2"][..], "--minutes: expected one number each"),
        (&["--minutes", "0"], "expected a number from 0.01 to 10000"),
        (&["--minutes", "1", "--prompt-tokens", "8"], "cannot be used with"),
    ] {
        let output = machine.bench(arguments).wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && message.contains(part), "{message}");
    }
}
