//! The picture of the crates in `ARCHITECTURE.md` is the one that cargo builds.
//!
//! The document has a fenced block that begins with ```` ```dependencies ````, one line per crate:
//! `engine -> tensor, model, checkpoint` and, behind `tests:`, what only the crate's tests use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::metadata::{self, Package};
use crate::{Problem, root};

const DOCUMENT: &str = "ARCHITECTURE.md";
const FENCE: &str = "```dependencies";

/// What a crate uses inside the workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edges {
    /// What it is built from.
    pub uses: BTreeSet<String>,
    /// What only its tests use.
    pub tests: BTreeSet<String>,
}

/// Crates by name.
pub type Picture = BTreeMap<String, Edges>;

/// Reads the block of the document.
///
/// # Errors
/// If there is not exactly one block, or a line is not of the form above.
pub fn parse(document: &str) -> Result<Picture> {
    let mut blocks = document.split(FENCE).skip(1);
    let block = blocks.next().with_context(|| format!("no block that begins with {FENCE}"))?;
    ensure!(blocks.next().is_none(), "two blocks that begin with {FENCE}");
    let block = block.split("```").next().unwrap_or_default();
    let mut picture = Picture::new();
    for line in block.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (line, tests) = line.split_once("tests:").unwrap_or((line, ""));
        let (name, uses) = line.split_once("->").unwrap_or((line, ""));
        let edges = Edges { uses: names(uses), tests: names(tests) };
        if picture.insert(name.trim().into(), edges).is_some() {
            bail!("`{}` has two lines", name.trim());
        }
    }
    Ok(picture)
}

fn names(list: &str) -> BTreeSet<String> {
    list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// The picture of the manifests.
pub fn actual(packages: &[Package]) -> Picture {
    let ours: BTreeSet<&str> = packages.iter().filter(|package| package.ours).map(|p| p.name.as_str()).collect();
    let mut picture = Picture::new();
    for package in packages.iter().filter(|package| package.ours) {
        let edges = picture.entry(package.name.clone()).or_default();
        for dependency in package.dependencies.iter().filter(|dependency| ours.contains(dependency.name.as_str())) {
            let list = if dependency.for_tests { &mut edges.tests } else { &mut edges.uses };
            list.insert(dependency.name.clone());
        }
    }
    picture
}

/// The differences, both ways.
pub fn compare(drawn: &Picture, built: &Picture) -> Vec<String> {
    let mut differences = Vec::new();
    let crates: BTreeSet<&String> = drawn.keys().chain(built.keys()).collect();
    for name in crates {
        match (drawn.get(name), built.get(name)) {
            (Some(drawn), Some(built)) => {
                differences.extend(edge_differences(name, "uses", &drawn.uses, &built.uses));
                differences.extend(edge_differences(name, "tests with", &drawn.tests, &built.tests));
            }
            (Some(_), None) => differences.push(format!("the picture has a crate `{name}` that does not exist")),
            (None, _) => differences.push(format!("the crate `{name}` is missing from the picture")),
        }
    }
    differences
}

fn edge_differences(name: &str, verb: &str, drawn: &BTreeSet<String>, built: &BTreeSet<String>) -> Vec<String> {
    let extra = built.difference(drawn);
    let extra = extra.map(|other| format!("`{name}` {verb} `{other}`, which the picture does not allow"));
    let missing = drawn.difference(built);
    let missing = missing.map(|other| format!("`{name}` {verb} `{other}` in the picture, but not in its manifest"));
    extra.chain(missing).collect()
}

/// Compares the document with the manifests.
///
/// # Errors
/// If the document can't be read.
pub fn check(root: &Path, packages: &[Package]) -> Result<Vec<Problem>> {
    let document = fs::read_to_string(root.join(DOCUMENT)).with_context(|| format!("{DOCUMENT} can't be read"))?;
    let drawn = parse(&document).with_context(|| DOCUMENT.to_owned())?;
    let differences = compare(&drawn, &actual(packages));
    Ok(differences.into_iter().map(|difference| Problem::of_file(DOCUMENT, difference)).collect())
}

/// Prints the block as the manifests would have it.
///
/// # Errors
/// If cargo can't be asked.
pub fn print() -> Result<()> {
    for (name, edges) in actual(&metadata::packages(&root())?) {
        let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
        let uses = if edges.uses.is_empty() { String::new() } else { format!(" -> {}", list(&edges.uses)) };
        let tests = if edges.tests.is_empty() { String::new() } else { format!("   tests: {}", list(&edges.tests)) };
        println!("{name:12}{uses}{tests}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(lines: &str) -> Picture {
        parse(&format!("text\n{FENCE}\n{lines}\n```\nmore -> text\n")).expect("a block")
    }

    #[test]
    fn reads_names_uses_and_tests() {
        let picture = picture("a\nb -> a\nc -> a, b  tests: d\nd tests: a");
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(picture["a"], Edges::default());
        assert_eq!(picture["c"], Edges { uses: set(&["a", "b"]), tests: set(&["d"]) });
        assert_eq!(picture["d"], Edges { uses: set(&[]), tests: set(&["a"]) });
        assert_eq!(picture.len(), 4);
    }

    #[test]
    fn refuses_a_document_without_one_block() {
        assert!(parse("").is_err());
        assert!(parse(&format!("{FENCE}\na\n```\n{FENCE}\na\n```")).is_err());
        assert!(parse(&format!("{FENCE}\na\na\n```")).is_err());
    }

    #[test]
    fn reports_missing_and_extra_edges_and_crates() {
        let check = |drawn: &str, built: &str, expected: &[&str]| {
            assert_eq!(compare(&picture(drawn), &picture(built)), expected);
        };
        check("a -> b\nb", "a -> b\nb", &[]);
        check("a\nb", "a -> b\nb", &["`a` uses `b`, which the picture does not allow"]);
        check("a -> b\nb", "a\nb", &["`a` uses `b` in the picture, but not in its manifest"]);
        check("a\nb", "a tests: b\nb", &["`a` tests with `b`, which the picture does not allow"]);
        check("a\nb", "a", &["the picture has a crate `b` that does not exist"]);
        check("a", "a\nb", &["the crate `b` is missing from the picture"]);
    }
}
