//! A Vulkan driver for machines without a GPU: lavapipe, Mesa's driver for the processor, in version 25 or newer.
//!
//! Where the machine has neither a GPU nor such a lavapipe, the packages of its own Debian or Ubuntu are downloaded and
//! unpacked into `target/lavapipe`, beside what is installed and without changing it. Lavapipe of Mesa 22.3, which
//! Debian 12 installs, ends the loops of an invocation after 65,535 iterations and computes wrong results without an
//! error, so an installed lavapipe before Mesa 25 is never left for the loader to find.

mod apt;
mod debian;
mod system;
mod unpacked;

use std::env;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::root;
use system::Manifest;
use unpacked::Unpacked;

const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";
const HINT: &str = "hint: install a Vulkan loader and Mesa 25 or newer (on Debian and Ubuntu `libvulkan1` and \
                    `mesa-vulkan-drivers`, on Debian 12 from bookworm-backports); until then the tests that need a \
                    Vulkan device say `skipped:`";

/// Which drivers test processes get.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    /// Whatever the Vulkan loader finds by itself, for this reason.
    Installed(&'static str),
    /// The ones that were unpacked into `target/lavapipe`.
    Unpacked,
    /// None yet.
    Missing,
}

/// What the choice is made from.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    /// The developer's environment names the drivers.
    named: bool,
    /// A Vulkan loader is installed.
    loader: bool,
    /// An installed driver sees a GPU.
    gpu: bool,
    /// Lavapipe of Mesa 25 or newer is installed.
    lavapipe: bool,
    /// `target/lavapipe` is complete.
    unpacked: bool,
}

fn choose(facts: Facts) -> Choice {
    match facts {
        Facts { named: true, .. } => Choice::Installed("`VK_DRIVER_FILES` or `VK_ICD_FILENAMES` is set"),
        Facts { gpu: true, .. } => Choice::Installed("there is a GPU"),
        Facts { loader: true, lavapipe: true, .. } => Choice::Installed("lavapipe of Mesa 25 or newer is installed"),
        Facts { unpacked: true, .. } => Choice::Unpacked,
        Facts { .. } => Choice::Missing,
    }
}

fn facts(manifests: &[Manifest]) -> Facts {
    let named = drivers_are_named();
    Facts {
        named,
        loader: system::loader_is_installed(),
        gpu: !named && system::has_gpu(),
        lavapipe: manifests.iter().any(|manifest| manifest.is_lavapipe() && manifest.is_current()),
        unpacked: Unpacked::find(&folder()).is_some(),
    }
}

fn drivers_are_named() -> bool {
    ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].iter().any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// Where Mesa is unpacked.
fn folder() -> PathBuf {
    let root = root();
    let root = root.canonicalize().unwrap_or(root);
    root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into())).join("lavapipe")
}

/// `cargo xtask lavapipe`: makes a driver available. With `--print-env` the lines for `eval` go to stdout.
///
/// # Errors
/// If an argument is unknown. A machine on which nothing can be done is no error: a line with `skipped:` says why.
pub fn run(arguments: &[&str]) -> Result<()> {
    let print = arguments == ["--print-env"];
    ensure!(print || arguments.is_empty(), "expected nothing or `--print-env`, found `{}`", arguments.join(" "));
    provide();
    if print {
        for (name, value) in variables() {
            // The shell's own value, and not the one that cargo has made of it for this program.
            let inherited = if name == LIBRARY_PATH { "${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" } else { "" };
            println!("export {name}='{}'{inherited}", value.replace('\'', r"'\''"));
        }
    }
    Ok(())
}

/// Makes a Vulkan driver available for tests, unless there is one, and says on stderr which one or why not.
pub fn provide() {
    match choose(facts(&system::manifests())) {
        Choice::Installed(reason) => eprintln!("lavapipe is not needed: {reason}"),
        Choice::Unpacked | Choice::Missing => {
            if let Some(mesa) = provide_unpacked("lavapipe", HINT) {
                eprintln!("lavapipe of Mesa {} is in {}", mesa.version(), folder().display());
            }
        }
    }
}

/// Mesa in `target/lavapipe`, downloaded if it is not there; otherwise a line with `skipped:`.
fn provide_unpacked(what: &str, hint: &str) -> Option<Unpacked> {
    let folder = folder();
    let found = Unpacked::find(&folder).map_or_else(|| apt::fetch(&folder), Ok);
    found.map_err(|error| eprintln!("skipped: {what}: {error:#}\n{hint}")).ok()
}

/// The environment in which test processes find the driver that was chosen: nothing if the loader finds it by itself.
///
/// It never makes the loader find lavapipe of an older Mesa: where only that one is installed, the loader finds none.
pub fn environment() -> Vec<(String, String)> {
    with_inherited(variables())
}

/// [`environment`] without what `LD_LIBRARY_PATH` already has.
fn variables() -> Vec<(String, String)> {
    let manifests = system::manifests();
    let choice = choose(facts(&manifests));
    if choice == Choice::Unpacked
        && let Some(mesa) = Unpacked::find(&folder())
    {
        return mesa.variables("lvp");
    }
    let is_old = |manifest: &&Manifest| manifest.is_lavapipe() && !manifest.is_current();
    if drivers_are_named() || !manifests.iter().any(|manifest| is_old(&manifest)) {
        return Vec::new();
    }
    driver_files(manifests.iter().filter(|manifest| !is_old(manifest)).map(|manifest| manifest.path.clone()).collect())
}

/// Names the only drivers that the loader may use, under the name of today and the one of loaders before 1.3.207.
fn driver_files(mut files: Vec<PathBuf>) -> Vec<(String, String)> {
    if files.is_empty() {
        // The loader takes an empty list for none at all.
        files.push(folder().join("no-driver.json"));
    }
    let list = env::join_paths(files).unwrap_or_default().to_string_lossy().into_owned();
    ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].map(|name| (name.into(), list.clone())).into()
}

/// Puts the folders of `LD_LIBRARY_PATH` before those that it already has.
fn with_inherited(mut variables: Vec<(String, String)>) -> Vec<(String, String)> {
    let inherited = env::var(LIBRARY_PATH).unwrap_or_default();
    for (_, value) in variables.iter_mut().filter(|(name, _)| name == LIBRARY_PATH && !inherited.is_empty()) {
        *value += &format!(":{inherited}");
    }
    variables
}

/// RADV, the driver for AMD's GPUs, of Mesa 25 or newer.
#[derive(Clone, Debug)]
pub struct Radv {
    /// The version of its package, or of Vulkan.
    pub version: String,
    /// What makes the loader find it and nothing else.
    pub environment: Vec<(String, String)>,
}

/// Makes RADV available; if that is impossible, prints a line with `skipped:`.
pub fn radv() -> Option<Radv> {
    let is_radv = |manifest: &&Manifest| manifest.library.contains("vulkan_radeon") && manifest.is_current();
    if let Some(manifest) = system::manifests().iter().find(is_radv)
        && system::loader_is_installed()
    {
        let (major, minor) = manifest.api_version;
        return Some(Radv {
            version: format!("installed, Vulkan {major}.{minor}"),
            environment: driver_files(vec![manifest.path.clone()]),
        });
    }
    let hint = "hint: install a Vulkan loader and `mesa-vulkan-drivers` of Mesa 25 or newer";
    let mesa = provide_unpacked("radv", hint)?;
    Some(Radv { version: mesa.version(), environment: with_inherited(mesa.variables("radeon")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_comes_first() {
        let nothing = Facts::default();
        let unpacked = Facts { unpacked: true, ..nothing };
        assert_eq!(choose(nothing), Choice::Missing);
        assert_eq!(choose(unpacked), Choice::Unpacked);
        assert_eq!(choose(Facts { loader: true, ..nothing }), Choice::Missing);
        assert_eq!(choose(Facts { lavapipe: true, ..unpacked }), Choice::Unpacked, "no loader");
        for facts in [
            Facts { loader: true, lavapipe: true, ..unpacked },
            Facts { loader: true, gpu: true, ..unpacked },
            Facts { named: true, ..unpacked },
        ] {
            assert!(matches!(choose(facts), Choice::Installed(_)), "{facts:?}");
        }
    }

    #[test]
    fn an_empty_list_of_drivers_is_not_taken_for_none() {
        for (name, value) in driver_files(Vec::new()) {
            assert!(value.ends_with("no-driver.json"), "{name}={value}");
        }
        let two = driver_files(vec!["/a.json".into(), "/b.json".into()]);
        assert_eq!(two.len(), 2);
        assert!(two.iter().all(|(_, value)| env::split_paths(value).count() == 2), "{two:?}");
    }
}
