//! Downloads Mesa with apt and unpacks it, as an ordinary user and without touching apt's or dpkg's own state.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::LIBRARY_PATH;
use super::debian::{INSTALLED_FORMAT, Installed, Release, Source, major_version};
use super::unpacked::Unpacked;
use crate::ci::quiet;

const PACKAGE: &str = "mesa-vulkan-drivers";
const MESA_MIN: u32 = 25;

/// Downloads Mesa's Vulkan drivers and the libraries that they need and the machine lacks, and unpacks them into
/// `folder`, which appears only when everything is in it.
///
/// # Errors
/// If the system is not Debian or Ubuntu, its Mesa is too old, or the network is not there.
pub(super) fn fetch(folder: &Path) -> Result<Unpacked> {
    ensure!(cfg!(target_os = "linux"), "it can be fetched on Linux only");
    let system = fs::read_to_string("/etc/os-release").context("`/etc/os-release` can't be read")?;
    let release = Release::parse(&system).context("it can be fetched on Debian and Ubuntu only")?;
    eprintln!("fetching Mesa {MESA_MIN} or newer into {}", folder.display());
    let partial = folder.with_extension(format!("partial-{}", std::process::id()));
    let result = fetch_into(&partial, &release).and_then(|()| {
        // What is left of an interrupted run has no list of packages.
        fs::remove_dir_all(folder).or_else(|error| folder.exists().then_some(error).map_or(Ok(()), Err))?;
        fs::rename(&partial, folder)?;
        Unpacked::find(folder).context("the folder is not complete")
    });
    if result.is_err() {
        // The first error is the one to tell.
        fs::remove_dir_all(&partial).ok();
    }
    result
}

fn fetch_into(partial: &Path, release: &Release) -> Result<()> {
    let apt = Apt::new(&partial.join("apt"), release)?;
    let archives = apt.download_with_dependencies()?;
    for archive in &archives {
        output(Command::new("dpkg-deb").arg("--extract").arg(&archive.path).arg(partial))?;
    }
    fs::remove_dir_all(partial.join("apt"))?;
    let packages: Vec<String> =
        archives.iter().map(|archive| format!("{} {}", archive.package, archive.version)).collect();
    check_libraries(&Unpacked::complete(partial, &packages)?)
}

/// The dynamic linker finds all that the drivers need.
fn check_libraries(mesa: &Unpacked) -> Result<()> {
    for driver in mesa.drivers() {
        let output = quiet(Command::new("ldd").arg(&driver).env(LIBRARY_PATH, mesa.library_path()))?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let missing: Vec<&str> = text.lines().filter(|line| line.contains("not found")).map(str::trim).collect();
        ensure!(output.status.success() && missing.is_empty(), "{}: {}", driver.display(), missing.join(", "));
    }
    Ok(())
}

/// A downloaded package.
#[derive(Clone, Debug)]
struct Archive {
    path: PathBuf,
    package: String,
    version: String,
    /// Its dependencies.
    depends: String,
}

impl Archive {
    fn read(path: PathBuf) -> Result<Archive> {
        let format = "${Package}\t${Version}\t${Pre-Depends},${Depends}";
        let text = output(Command::new("dpkg-deb").arg(format!("--showformat={format}")).arg("--show").arg(&path))?;
        let columns: Vec<&str> = text.trim().split('\t').collect();
        let [package, version, depends] = columns[..] else { bail!("{}: not a package", path.display()) };
        Ok(Archive { path, package: package.into(), version: version.into(), depends: depends.into() })
    }
}

/// apt with lists, caches and sources of its own in a folder.
struct Apt {
    folder: PathBuf,
    release: Release,
    installed: Installed,
}

impl Apt {
    fn new(folder: &Path, release: &Release) -> Result<Apt> {
        for name in ["lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let sources = configured_sources()?;
        let source = Source::of_release(&sources, release)
            .with_context(|| format!("apt has no mirror of `{}` among its sources", release.codename))?;
        fs::write(folder.join("mesa.sources"), source.for_release(release))?;
        let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
        let list = output(Command::new("dpkg-query").arg("--show").arg(format!("--showformat={INSTALLED_FORMAT}")))?;
        let installed = Installed::parse(&list, architecture.trim());
        Ok(Apt { folder: folder.into(), release: release.clone(), installed })
    }

    /// `apt-get` in the folder of the downloads.
    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        let at = |name: &str| self.folder.join(name).display().to_string();
        command.current_dir(self.folder.join("packages")).env("LC_ALL", "C").args([
            format!("-oDir::State::Lists={}", at("lists")),
            format!("-oDir::Cache={}", at("cache")),
            format!("-oDir::Etc::SourceList={}", at("mesa.sources")),
            "-oDir::Etc::SourceParts=/dev/null".into(),
            // The user that apt becomes when root calls it can't write here.
            "-oAPT::Sandbox::User=root".into(),
            "-oAPT::Update::Error-Mode=any".into(),
            "-oAcquire::Languages=none".into(),
            "-oAcquire::Retries=1".into(),
            "-oAcquire::http::Timeout=20".into(),
            "-oAcquire::https::Timeout=20".into(),
            "--quiet".into(),
        ]);
        command
    }

    fn download_with_dependencies(&self) -> Result<Vec<Archive>> {
        output(self.command().arg("update"))?;
        let mut archives: BTreeMap<String, Archive> = BTreeMap::new();
        let mut wanted = BTreeSet::from([PACKAGE.to_owned()]);
        while !wanted.is_empty() {
            ensure!(!wanted.contains("libc6"), "Mesa's packages need a newer `libc6` than the one installed");
            self.download(&wanted)?;
            for entry in fs::read_dir(self.folder.join("packages"))? {
                let archive = Archive::read(entry?.path())?;
                archives.insert(archive.package.clone(), archive);
            }
            let mesa = archives.get(PACKAGE).with_context(|| format!("apt-get downloaded no `{PACKAGE}`"))?;
            let major = major_version(&mesa.version);
            ensure!(
                major >= Some(MESA_MIN),
                "expected Mesa {MESA_MIN} or newer, found {} in `{}`",
                mesa.version,
                self.release.suites.join("` and `"),
            );
            let missing = archives.values().flat_map(|archive| self.installed.missing(&archive.depends, holds));
            wanted = missing.filter(|package| !archives.contains_key(package)).collect();
        }
        Ok(archives.into_values().collect())
    }

    /// Downloads packages, from the newest part of the archive that has them.
    fn download(&self, packages: &BTreeSet<String>) -> Result<()> {
        let mut command = self.command();
        if let Some(suite) = self.release.suites.last() {
            command.arg(format!("--target-release={suite}"));
        }
        output(command.arg("download").args(packages)).map(drop)
    }
}

/// Compares two versions.
fn holds(have: &str, relation: &str, wanted: &str) -> bool {
    quiet(Command::new("dpkg").args(["--compare-versions", have, relation, wanted]))
        .is_ok_and(|output| output.status.success())
}

/// All sources that apt is set up with.
fn configured_sources() -> Result<Vec<Source>> {
    let mut paths = vec![PathBuf::from("/etc/apt/sources.list")];
    let entries = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    paths.sort();
    let mut sources = Vec::new();
    for path in paths.iter().filter(|path| path.is_file()) {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => sources.extend(Source::parse_stanzas(&text)),
            Some("list") => sources.extend(Source::parse_lines(&text)),
            _ => {}
        }
    }
    Ok(sources)
}

/// What a program prints.
fn output(command: &mut Command) -> Result<String> {
    let output = quiet(command)?;
    let program = command.get_program().to_string_lossy();
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program}` failed: {}", messages.trim());
    String::from_utf8(output.stdout).with_context(|| format!("`{program}` prints no UTF-8"))
}
