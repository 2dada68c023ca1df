//! The house rules hold in this repository.

use xtask::{Problem, licences, metadata, picture, root, tidy};

fn assert_none(problems: &[Problem]) {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    assert!(lines.is_empty(), "{} problems:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn files_are_tidy() {
    assert_none(&tidy::check(&root()).expect("files can be listed and read").problems);
}

#[test]
fn the_picture_of_the_dependencies_is_true() {
    let packages = metadata::packages(&root()).expect("cargo metadata");
    assert_none(&picture::check(&root(), &packages).expect("ARCHITECTURE.md with a picture"));
}

#[test]
fn licences_are_allowed() {
    assert_none(&licences::check(&metadata::packages(&root()).expect("cargo metadata")));
}

#[test]
fn every_dependency_is_used() {
    let packages = metadata::packages(&root()).expect("cargo metadata");
    assert_none(&tidy::unused_dependencies(&root(), &packages).expect("files can be read"));
}
