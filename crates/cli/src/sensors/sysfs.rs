//! What Linux tells in files: RAPL, hwmon and thermal zones.
//!
//! Sources: the kernel's documentation of `power/powercap`, `hwmon/sysfs-interface` and `driver-api/thermal`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Thermometer;
use super::meter::{Counter, Gauge, Meter, Unit};

/// RAPL counters are renewed about every millisecond.
const RAPL_RENEWAL: Duration = Duration::from_millis(1);
/// Power and energy of graphics cards.
const HWMON_RENEWAL: Duration = Duration::from_millis(100);

/// Drivers of processors' thermometers, and the labels of the place that counts.
const PROCESSOR_CHIPS: [(&str, &[&str]); 5] = [
    ("k10temp", &["Tctl", "Tdie"]),
    ("zenpower", &["Tctl", "Tdie"]),
    ("coretemp", &["Package id 0", "Physical id 0"]),
    ("cpu_thermal", &[]),
    ("via_cputemp", &[]),
];

/// The entries of a folder in the order of their names; none if there is no folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = all.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: &Path) -> Result<f64, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("`{}`: {error}", path.display()))?;
    text.trim().parse().map_err(|_| format!("`{}`: expected a number, found `{}`", path.display(), text.trim()))
}

/// Reads a file with a number, times a factor.
fn gauge(path: PathBuf, factor: f64) -> Gauge {
    Box::new(move || Ok(factor * number(&path)?))
}

/// The counter of all processor packages and of their memory, where that is counted beside them.
///
/// # Errors
/// Why there is none, or why it can't be read.
pub(super) fn rapl(root: &Path) -> Result<Counter, String> {
    let folder = root.join("class/powercap");
    // Zones that begin otherwise (`intel-rapl-mmio`) count the same energy once more.
    let zones = entries(&folder).into_iter().filter(|path| file_name(path).starts_with("intel-rapl:"));
    let is_meant = |path: &PathBuf| {
        let name = text(&path.join("name")).unwrap_or_default();
        let is_package = file_name(path).matches(':').count() == 1 && name.starts_with("package");
        (is_package || name == "dram").then_some((name, path.clone()))
    };
    let zones: Vec<(String, PathBuf)> = zones.filter_map(|path| is_meant(&path)).collect();
    if zones.is_empty() {
        return Err(format!("no RAPL of a processor in `{}`", folder.display()));
    }
    let meter = |(_, zone): &(String, PathBuf)| {
        let file = zone.join("energy_uj");
        if let Err(error) = fs::read(&file) {
            return Err(unreadable(&file, &error));
        }
        let range = number(&zone.join("max_energy_range_uj")).ok().map(|range| range / 1e6);
        Ok(Meter::new(Unit::Joules { range }, gauge(file, 1e-6)))
    };
    let meters = zones.iter().map(meter).collect::<Result<Vec<_>, String>>()?;
    let names: Vec<&str> = zones.iter().map(|(name, _)| name.as_str()).collect();
    Ok(Counter { name: format!("RAPL: {}", names.join(" + ")), renewal: RAPL_RENEWAL, meters })
}

fn unreadable(file: &Path, error: &std::io::Error) -> String {
    let file = file.display();
    let help = match error.kind() {
        ErrorKind::PermissionDenied => format!(" (`sudo chmod a+r {file}` lets everybody read it)"),
        _ => String::new(),
    };
    format!("RAPL is there, but `{file}` can't be read: {error}{help}")
}

/// A chip of hwmon.
pub(super) struct Chip {
    folder: PathBuf,
    name: String,
}

fn chips(root: &Path) -> Vec<Chip> {
    let chip = |folder: PathBuf| Some(Chip { name: text(&folder.join("name"))?, folder });
    entries(&root.join("class/hwmon")).into_iter().filter_map(chip).collect()
}

impl Chip {
    /// That of the device at an address of the PCI bus; without an address, of the only graphics card that has one.
    ///
    /// # Errors
    /// That there is none.
    pub(super) fn of_device(root: &Path, address: Option<&str>) -> Result<Chip, String> {
        let none = || format!("no sensors of it in `{}`", root.join("class/hwmon").display());
        let mut found = chips(root).into_iter().filter(|chip| match address {
            Some(address) => chip.address().is_some_and(|other| other.eq_ignore_ascii_case(address)),
            None => matches!(chip.name.as_str(), "amdgpu" | "i915" | "xe" | "nouveau"),
        });
        match (found.next(), found.next()) {
            (Some(chip), None) => Ok(chip),
            _ => Err(none()),
        }
    }

    /// Its device's address on the PCI bus.
    fn address(&self) -> Option<String> {
        let event = text(&self.folder.join("device/uevent"))?;
        event.lines().find_map(|line| line.strip_prefix("PCI_SLOT_NAME=")).map(str::to_owned)
    }

    /// Its energy, or its power summed up.
    ///
    /// # Errors
    /// That it tells neither.
    pub(super) fn counter(&self) -> Result<Counter, String> {
        let files = [
            ("energy1_input", Unit::Joules { range: None }),
            ("power1_average", Unit::Watts),
            ("power1_input", Unit::Watts),
        ];
        let found = files.into_iter().find(|(file, _)| number(&self.folder.join(file)).is_ok());
        let (file, unit) = found.ok_or_else(|| {
            format!("`{}` has no `energy1_input`, `power1_average` or `power1_input` to read", self.folder.display())
        })?;
        let meters = vec![Meter::new(unit, gauge(self.folder.join(file), 1e-6))];
        Ok(Counter { name: format!("{}: {file}", self.name), renewal: HWMON_RENEWAL, meters })
    }

    /// The temperature with one of these labels, or else the first one.
    pub(super) fn thermometer(&self, labels: &[&str]) -> Option<Gauge> {
        let is_label = |path: &PathBuf| file_name(path).starts_with("temp") && file_name(path).ends_with("_label");
        let meant = entries(&self.folder)
            .into_iter()
            .filter(is_label)
            .find(|path| text(path).is_some_and(|label| labels.contains(&label.as_str())));
        let file = meant.map_or("temp1_input".into(), |path| file_name(&path).replace("_label", "_input"));
        let path = self.folder.join(file);
        number(&path).is_ok().then(|| gauge(path, 1e-3))
    }
}

/// Those of the processors' own chips, or else the hottest thermal zone.
pub(super) fn processor_thermometers(root: &Path) -> Vec<Thermometer> {
    let of_chip = |chip: Chip| {
        let (_, labels) = PROCESSOR_CHIPS.into_iter().find(|(name, _)| *name == chip.name)?;
        Some(Thermometer { gauge: chip.thermometer(labels)?, name: chip.name })
    };
    let mut found: Vec<Thermometer> = chips(root).into_iter().filter_map(of_chip).collect();
    if found.is_empty() {
        found.extend(thermal_zones(root));
    }
    found
}

fn thermal_zones(root: &Path) -> Option<Thermometer> {
    let zones = entries(&root.join("class/thermal")).into_iter();
    let zones = zones.filter(|path| file_name(path).starts_with("thermal_zone")).map(|path| path.join("temp"));
    let zones: Vec<PathBuf> = zones.filter(|path| number(path).is_ok()).collect();
    let hottest = move || {
        let all = zones.iter().filter_map(|path| number(path).ok()).map(|value| value / 1e3);
        all.max_by(f64::total_cmp).ok_or_else(|| "no thermal zone can be read".to_owned())
    };
    hottest().is_ok().then(|| Thermometer { name: "hottest thermal zone".into(), gauge: Box::new(hottest) })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A folder of the shape of `/sys`, gone at the end.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Tree {
            let root = std::env::temp_dir().join(format!("lapidary-{}-sysfs-{name}", std::process::id()));
            let tree = Tree(root);
            files.iter().for_each(|(path, text)| tree.write(path, text));
            tree
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join("class").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const RAPL: [(&str, &str); 11] = [
        ("powercap/intel-rapl/enabled", "1"),
        ("powercap/intel-rapl:0/name", "package-0"),
        ("powercap/intel-rapl:0/energy_uj", "9000000"),
        ("powercap/intel-rapl:0/max_energy_range_uj", "10000000"),
        ("powercap/intel-rapl:0:0/name", "core"),
        ("powercap/intel-rapl:0:0/energy_uj", "5000000"),
        ("powercap/intel-rapl:0:1/name", "dram"),
        ("powercap/intel-rapl:0:1/energy_uj", "1000000"),
        ("powercap/intel-rapl:1/name", "psys"),
        ("powercap/intel-rapl-mmio:0/name", "package-0"),
        ("powercap/intel-rapl-mmio:0/energy_uj", "9000000"),
    ];

    #[test]
    fn rapl_counts_packages_and_their_memory_once_and_over_the_end() {
        let tree = Tree::new("rapl", &RAPL);
        let mut counter = rapl(&tree.0).ok().unwrap();
        assert_eq!(counter.name, "RAPL: package-0 + dram");
        counter.sample(Instant::now());
        tree.write("powercap/intel-rapl:0/energy_uj", "500000");
        tree.write("powercap/intel-rapl:0:1/energy_uj", "1250000");
        counter.sample(Instant::now());
        assert!((counter.joules().unwrap() - 1.75).abs() < 1e-9, "{:?}", counter.joules());
        fs::remove_file(tree.0.join("class/powercap/intel-rapl:0/energy_uj")).unwrap();
        counter.sample(Instant::now());
        assert_eq!(counter.joules(), None);
        let why = rapl(&tree.0).err().unwrap();
        assert!(why.contains("can't be read") && why.contains("energy_uj"), "{why}");
        assert!(rapl(Path::new("nowhere")).err().unwrap().starts_with("no RAPL"));
        let error = std::io::Error::from(ErrorKind::PermissionDenied);
        assert!(unreadable(Path::new("x"), &error).contains("(`sudo chmod a+r x` lets everybody"));
    }

    #[test]
    fn a_card_is_found_by_its_address() {
        let tree = Tree::new(
            "card",
            &[
                ("hwmon/hwmon0/name", "nvme"),
                ("hwmon/hwmon0/temp1_input", "30000"),
                ("hwmon/hwmon1/name", "amdgpu"),
                ("hwmon/hwmon1/power1_average", "35000000"),
                ("hwmon/hwmon1/temp1_input", "61000"),
                ("hwmon/hwmon1/device/uevent", "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:c4:00.0"),
            ],
        );
        for address in [Some("0000:C4:00.0"), None] {
            let chip = Chip::of_device(&tree.0, address).ok().unwrap();
            let mut counter = chip.counter().ok().unwrap();
            let start = Instant::now();
            (0..3).for_each(|second| counter.sample(start + Duration::from_secs(second)));
            assert_eq!((counter.name.as_str(), counter.joules()), ("amdgpu: power1_average", Some(70.0)));
            assert_eq!(chip.thermometer(&["edge"]).unwrap()(), Ok(61.0));
        }
        assert!(Chip::of_device(&tree.0, Some("0000:01:00.0")).err().unwrap().starts_with("no sensors"));
        fs::remove_file(tree.0.join("class/hwmon/hwmon1/power1_average")).unwrap();
        assert!(Chip::of_device(&tree.0, None).ok().unwrap().counter().is_err());
    }

    #[test]
    fn thermometers_are_the_processors_or_else_the_hottest_zone() {
        let tree = Tree::new(
            "heat",
            &[
                ("thermal/thermal_zone0/temp", "41000"),
                ("thermal/thermal_zone1/temp", "52500"),
                ("thermal/cooling_device0/temp", "99000"),
            ],
        );
        let read = |root: &Path| -> Vec<(String, f64)> {
            processor_thermometers(root).into_iter().map(|one| (one.name, (one.gauge)().unwrap())).collect()
        };
        assert_eq!(read(&tree.0), [("hottest thermal zone".to_owned(), 52.5)]);
        tree.write("hwmon/hwmon3/name", "coretemp");
        tree.write("hwmon/hwmon3/temp1_label", "Core 0");
        tree.write("hwmon/hwmon3/temp1_input", "50000");
        tree.write("hwmon/hwmon3/temp7_label", "Package id 0");
        tree.write("hwmon/hwmon3/temp7_input", "58000");
        assert_eq!(read(&tree.0), [("coretemp".to_owned(), 58.0)]);
        assert_eq!(read(Path::new("nowhere")), []);
    }
}
