//! Mesa as it lies unpacked in a folder.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::system::Manifest;
use super::{LIBRARY_PATH, driver_files};

/// Names the packages and their versions; it is written last.
const PACKAGES: &str = "packages";
const MANIFESTS: &str = "usr/share/vulkan/icd.d";
/// From the folder of the manifests up to the one that everything was unpacked into.
const UP: &str = "../../../..";
/// Folders of libraries in Debian's packages, each with a folder for the processor inside.
const LIBRARIES: [&str; 2] = ["usr/lib", "lib"];

/// A folder with the drivers of Mesa and the libraries that they use and the machine lacks.
#[derive(Clone, Debug)]
pub(super) struct Unpacked {
    folder: PathBuf,
    /// Package and version, separated by a space.
    packages: Vec<String>,
}

impl Unpacked {
    /// Takes a folder if it is complete.
    pub(super) fn find(folder: &Path) -> Option<Unpacked> {
        let packages = fs::read_to_string(folder.join(PACKAGES)).ok()?;
        Some(Unpacked { folder: folder.into(), packages: packages.lines().map(str::to_owned).collect() })
    }

    /// Makes a folder complete that Debian's packages were unpacked into: `packages` is package, space, version.
    pub(super) fn complete(folder: &Path, packages: &[String]) -> Result<Unpacked> {
        let mesa = Unpacked { folder: folder.into(), packages: packages.to_vec() };
        for path in mesa.manifest_paths()? {
            mesa.point_to_library(&path).with_context(|| path.display().to_string())?;
        }
        for driver in ["lvp", "radeon"] {
            ensure!(mesa.manifest(driver).is_some(), "the packages have no driver `{driver}`");
        }
        fs::write(folder.join(PACKAGES), packages.join("\n") + "\n")?;
        Ok(mesa)
    }

    /// The version of the package with the drivers.
    pub(super) fn version(&self) -> String {
        let version = self.packages.iter().find_map(|line| line.strip_prefix("mesa-vulkan-drivers "));
        version.unwrap_or("of an unknown version").into()
    }

    /// What makes the Vulkan loader find only this driver (`lvp`, `radeon`), and the dynamic linker all libraries: the
    /// loader itself too, if the machine has none.
    pub(super) fn variables(&self, driver: &str) -> Vec<(String, String)> {
        let mut variables = driver_files(self.manifest(driver).into_iter().collect());
        variables.push((LIBRARY_PATH.into(), self.library_path()));
        variables
    }

    /// The folders with shared libraries, as a value of `LD_LIBRARY_PATH`.
    pub(super) fn library_path(&self) -> String {
        env::join_paths(self.library_folders()).unwrap_or_default().to_string_lossy().into_owned()
    }

    fn library_folders(&self) -> Vec<PathBuf> {
        let entries = LIBRARIES.iter().filter_map(|name| fs::read_dir(self.folder.join(name)).ok()).flatten();
        let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut folders: Vec<PathBuf> =
            folders.filter(|path| path.is_dir() && path.to_string_lossy().contains("-linux-gnu")).collect();
        folders.sort();
        folders
    }

    /// The libraries of the drivers that are used here.
    pub(super) fn drivers(&self) -> Vec<PathBuf> {
        let manifests = ["lvp", "radeon"].iter().filter_map(|driver| Manifest::read(&self.manifest(driver)?));
        manifests.map(|manifest| self.folder.join(MANIFESTS).join(manifest.library)).collect()
    }

    fn manifest_paths(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.folder.join(MANIFESTS)).context("the packages have no Vulkan drivers")?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    /// The manifest of a driver: `lvp_icd.json`, or `lvp_icd.x86_64.json` in some packages.
    fn manifest(&self, driver: &str) -> Option<PathBuf> {
        let prefix = format!("{driver}_icd.");
        let name = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        self.manifest_paths().ok()?.into_iter().find(name)
    }

    /// Replaces a driver's library in its manifest by its path from there, so that the folder can be moved and the
    /// dynamic linker can't find the installed one first.
    fn point_to_library(&self, path: &Path) -> Result<()> {
        let mut value: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let library = value["ICD"]["library_path"].as_str().context("no `library_path`")?;
        let name = Path::new(library).file_name().context("`library_path` names no file")?;
        let found = self.library_folders().into_iter().map(|folder| folder.join(name)).find(|file| file.is_file());
        let found = found.with_context(|| format!("`{library}` is not in the packages"))?;
        value["ICD"]["library_path"] = format!("{UP}/{}", found.strip_prefix(&self.folder)?.display()).into();
        fs::write(path, format!("{value:#}\n"))?;
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_complete_with_manifests_that_point_into_it() {
        let folder = env::temp_dir().join(format!("xtask-unpacked-{}", std::process::id()));
        let libraries = folder.join("usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(&libraries).expect("a folder for libraries");
        fs::create_dir_all(folder.join(MANIFESTS)).expect("a folder for manifests");
        for (manifest, library) in
            [("lvp_icd.x86_64.json", "libvulkan_lvp.so"), ("radeon_icd.json", "libvulkan_radeon.so")]
        {
            let text = format!(r#"{{"ICD": {{"api_version": "1.4.305", "library_path": "/usr/lib/{library}"}}}}"#);
            fs::write(folder.join(MANIFESTS).join(manifest), text).expect("a manifest");
            assert!(Unpacked::complete(&folder, &[]).is_err(), "without {library}");
            fs::write(libraries.join(library), "").expect("a library");
        }
        assert!(Unpacked::find(&folder).is_none(), "not complete yet");
        Unpacked::complete(&folder, &["mesa-vulkan-drivers 25.0.7-2".into()]).expect("all is there");
        let mesa = Unpacked::find(&folder).expect("complete");
        assert_eq!(mesa.version(), "25.0.7-2");
        assert!(mesa.drivers().iter().all(|library| library.is_file()), "{:?}", mesa.drivers());
        let variables = mesa.variables("lvp");
        let manifest = folder.join(MANIFESTS).join("lvp_icd.x86_64.json").display().to_string();
        assert_eq!(variables[0], ("VK_DRIVER_FILES".into(), manifest));
        assert!(variables[2].1.starts_with(&libraries.display().to_string()), "{variables:?}");
        fs::remove_dir_all(&folder).expect("the folder can be deleted");
    }
}
