//! What `cargo metadata` says of the workspace and its dependencies.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A package of the build.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The licence expression of its manifest.
    pub licence: Option<String>,
    /// Whether it is a crate of this workspace.
    pub ours: bool,
    /// What it asks for in its manifest.
    pub dependencies: Vec<Dependency>,
}

/// A line of a manifest's dependencies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// Name of the package.
    pub name: String,
    /// The name that the code uses, with underscores.
    pub code_name: String,
    /// Whether only tests, examples and benchmarks use it.
    pub for_tests: bool,
}

/// All packages that any target of the workspace is built from.
///
/// # Errors
/// If cargo can't be run, or says something that is not its documented format.
pub fn packages(root: &Path) -> Result<Vec<Package>> {
    let output = Command::new(cargo())
        .args(["metadata", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("`cargo metadata` can't be run")?;
    ensure!(output.status.success(), "`cargo metadata` failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("`cargo metadata` is no JSON")?;
    let packages = metadata["packages"].as_array().context("`cargo metadata` has no packages")?;
    packages.iter().map(package).collect()
}

/// The cargo that runs this program, or the one in the path.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

fn package(value: &Value) -> Result<Package> {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let dependencies = value["dependencies"].as_array().context("a package without a list of dependencies")?;
    Ok(Package {
        name: text("name").context("a package without a name")?,
        version: text("version").context("a package without a version")?,
        licence: text("license"),
        ours: value["source"].is_null(),
        dependencies: dependencies.iter().map(dependency).collect::<Result<_>>()?,
    })
}

fn dependency(value: &Value) -> Result<Dependency> {
    let name = value["name"].as_str().context("a dependency without a name")?;
    Ok(Dependency {
        name: name.into(),
        code_name: value["rename"].as_str().unwrap_or(name).replace('-', "_"),
        for_tests: value["kind"].as_str() == Some("dev"),
    })
}
