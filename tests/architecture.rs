//! What the design promises about the packages and their files, read off cargo and the files themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{root, text};

/// Dependencies between the packages: what each may use.
const LAYERS: [(&str, &[&str]); 4] = [
    ("actloom-cache", &[]),
    ("actloom-engine", &["actloom-cache"]),
    ("actloom-ops", &["actloom-engine"]),
    ("actloom", &["actloom-ops", "actloom-engine"]),
];

/// Dependencies that only one package may have; a name may end with `*`.
const OWNED: [(&str, &str); 7] = [
    ("candle-*", "actloom-ops"),
    ("tokenizers", "actloom-ops"),
    ("minijinja*", "actloom-ops"),
    ("safetensors", "actloom-ops"),
    ("clap*", "actloom"),
    ("indicatif", "actloom"),
    ("annotate-snippets", "actloom"),
];

/// Lines that a source file may have; a file's tests count.
const LONGEST: usize = 700;

/// This machine's target triple.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

fn metadata(extra: &[&str]) -> Value {
    // Packages of other platforms need not be on this machine.
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", &host()])
        .args(extra)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What each package of the workspace names in its manifest; `dev` and `build` dependencies count as well.
fn declared() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata(&["--no-deps"]);
    let of = |package: &Value| {
        let names = package["dependencies"].as_array().unwrap().iter().map(|dependency| text(&dependency["name"]));
        (text(&package["name"]), names.collect())
    };
    metadata["packages"].as_array().unwrap().iter().map(of).collect()
}

fn is(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[test]
fn packages_depend_downwards_and_on_nothing_they_do_not_need() {
    let declared = declared();
    let packages: BTreeSet<&str> = declared.keys().map(String::as_str).collect();
    assert_eq!(packages, LAYERS.iter().map(|(name, _)| *name).collect(), "a package without a place in the layers");
    for (package, may) in LAYERS {
        let uses: BTreeSet<&str> =
            declared[package].iter().map(String::as_str).filter(|name| packages.contains(name)).collect();
        let may: BTreeSet<&str> = may.iter().copied().collect();
        assert!(uses.is_subset(&may), "`{package}` depends on {uses:?}, expected some of {may:?}");
    }
    // The program is the top: it uses what it is made of.
    assert!(declared["actloom"].contains("actloom-ops"));
}

#[test]
fn models_stay_under_ops_and_the_terminal_under_the_program() {
    let declared = declared();
    for (pattern, owner) in OWNED {
        let users: Vec<&String> = declared
            .iter()
            .filter(|(_, uses)| uses.iter().any(|name| is(pattern, name)))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(users, [owner], "`{pattern}` belongs to `{owner}` alone");
    }
}

#[test]
fn what_the_engine_and_the_store_pull_in_knows_no_models_and_no_terminal() {
    let metadata = metadata(&[]);
    let ids = |value: &Value| value.as_array().unwrap().iter().map(text).collect::<Vec<_>>();
    let members = ids(&metadata["workspace_members"]);
    let name_of: BTreeMap<String, String> =
        metadata["packages"].as_array().unwrap().iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    // Development dependencies pull in what they like.
    let normal = |dependency: &&Value| dependency["dep_kinds"].as_array().unwrap().iter().any(|k| k["kind"].is_null());
    let edges: BTreeMap<String, Vec<String>> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let uses = node["deps"].as_array().unwrap().iter().filter(normal).map(|dep| text(&dep["pkg"])).collect();
            (text(&node["id"]), uses)
        })
        .collect();
    for package in ["actloom-cache", "actloom-engine", "actloom-ops"] {
        let start = members.iter().find(|id| name_of[*id] == package).unwrap();
        let (mut seen, mut open) = (BTreeSet::new(), vec![start.clone()]);
        while let Some(id) = open.pop() {
            if seen.insert(id.clone()) {
                open.extend(edges[&id].iter().cloned());
            }
        }
        let names: BTreeSet<&str> = seen.iter().map(|id| name_of[id].as_str()).collect();
        assert!(names.len() > 5, "`{package}` was not followed");
        let forbidden = OWNED.iter().filter(|(_, owner)| *owner == "actloom" || package != "actloom-ops");
        for (pattern, owner) in forbidden {
            let found: Vec<&&str> = names.iter().filter(|name| is(pattern, name)).collect();
            assert!(found.is_empty(), "`{package}` pulls in {found:?}, which belongs to `{owner}`");
        }
    }
}

/// Every Rust file of the repository.
fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["cache", "engine", "ops", "cli", "tests"] {
        walk(&root().join(folder), &mut found);
    }
    assert!(found.len() > 100, "only {} files were found", found.len());
    found.sort();
    found
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let silent: Vec<PathBuf> = sources()
        .into_iter()
        .filter(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let first = text.lines().next().unwrap_or("");
            !first.starts_with("//! ") || first.len() < "//! A word.".len()
        })
        .collect();
    assert!(silent.is_empty(), "these files do not open with `//!`: {silent:#?}");
}

#[test]
fn no_file_is_longer_than_one_can_read_in_a_sitting() {
    let length = |path: &PathBuf| std::fs::read_to_string(path).unwrap().lines().count();
    let long: Vec<(PathBuf, usize)> =
        sources().into_iter().map(|path| (path.clone(), length(&path))).filter(|(_, lines)| *lines > LONGEST).collect();
    assert!(long.is_empty(), "files of more than {LONGEST} lines: {long:#?}");
}
