//! What the machine has of Vulkan.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::ci::quiet;

/// The file that tells the Vulkan loader about a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) path: PathBuf,
    /// Name or path of the driver's library.
    pub(super) library: String,
    /// Major and minor version of Vulkan.
    pub(super) api_version: (u32, u32),
}

impl Manifest {
    /// Reads a manifest; nothing if it is none.
    pub(super) fn read(path: &Path) -> Option<Manifest> {
        Manifest::parse(path, &fs::read_to_string(path).ok()?)
    }

    fn parse(path: &Path, text: &str) -> Option<Manifest> {
        let value: Value = serde_json::from_str(text).ok()?;
        let driver = &value["ICD"];
        let mut version = driver["api_version"].as_str()?.split('.').map(str::parse);
        let (major, minor) = (version.next()?.ok()?, version.next()?.ok()?);
        Some(Manifest {
            path: path.into(),
            library: driver["library_path"].as_str()?.into(),
            api_version: (major, minor),
        })
    }

    pub(super) fn is_lavapipe(&self) -> bool {
        self.library.contains("vulkan_lvp")
    }

    /// Whether a driver of Mesa is of version 25 or newer: since then its drivers have Vulkan 1.4.
    pub(super) fn is_current(&self) -> bool {
        self.api_version >= (1, 4)
    }
}

/// The manifests of the installed drivers, from the folders that the loader searches on Linux; none elsewhere.
pub(super) fn manifests() -> Vec<Manifest> {
    if !cfg!(target_os = "linux") {
        return Vec::new();
    }
    let mut folders: Vec<PathBuf> = ["/usr/local/etc", "/etc", "/usr/local/share", "/usr/share"].map(Into::into).into();
    folders.extend(env::var_os("XDG_DATA_DIRS").iter().flat_map(env::split_paths));
    folders.extend(env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder.join("vulkan/icd.d")).ok()).flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.dedup();
    paths.iter().filter_map(|path| Manifest::read(path)).collect()
}

/// Whether the Vulkan loader is installed where the dynamic linker of Linux finds it.
pub(super) fn loader_is_installed() -> bool {
    ["ldconfig", "/sbin/ldconfig"].iter().any(|program| {
        let output = quiet(Command::new(program).arg("-p"));
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("libvulkan.so.1"))
    })
}

/// Whether an installed driver sees a GPU. `vulkaninfo` (of the package `vulkan-tools`) is asked; without it: no.
pub(super) fn has_gpu() -> bool {
    let output = quiet(Command::new("vulkaninfo").arg("--summary"));
    output.is_ok_and(|output| lists_gpu(&String::from_utf8_lossy(&output.stdout)))
}

fn lists_gpu(summary: &str) -> bool {
    let mut types = summary.lines().filter(|line| line.trim_start().starts_with("deviceType"));
    types.any(|line| line.trim_end().ends_with("_GPU"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_manifests() {
        let read = |library: &str, version: &str| {
            let text = format!(r#"{{"ICD": {{"api_version": "{version}", "library_path": "{library}"}}}}"#);
            Manifest::parse(Path::new("x.json"), &text).expect("a manifest")
        };
        let debian_12 = read("/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so", "1.3.230");
        assert!(debian_12.is_lavapipe() && !debian_12.is_current());
        let new = read("libvulkan_lvp.so", "1.4.305");
        assert!(new.is_lavapipe() && new.is_current());
        assert!(!read("libvulkan_radeon.so", "1.4.305").is_lavapipe());
        assert_eq!(Manifest::parse(Path::new("x.json"), "{}"), None);
    }

    #[test]
    fn a_processor_is_no_gpu() {
        let summary =
            |kind: &str| format!("GPU0:\n\tapiVersion = 1.3.230\n\tdeviceType = PHYSICAL_DEVICE_TYPE_{kind}\n");
        assert!(!lists_gpu(&summary("CPU")));
        assert!(lists_gpu(&summary("INTEGRATED_GPU")));
        assert!(lists_gpu(&(summary("CPU") + &summary("DISCRETE_GPU"))));
        assert!(!lists_gpu(""));
    }
}
