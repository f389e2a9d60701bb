//! Holds the workspace against its picture in `docs/architecture.md`, and the source text against the rules that a
//! reviewer would otherwise have to remember.
//!
//! **Invariant:** a new dependency edge between crates, a second crate that opens sockets, or a file without a module doc
//! makes these tests fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The edges of the picture, each crate with those below that it may name outside tests.
const PICTURE: [(&str, &[&str]); 12] = [
    ("model", &[]),
    ("wire", &["model"]),
    ("columnar", &["model"]),
    ("digest", &["model"]),
    ("ledger", &["model"]),
    ("report", &["model"]),
    ("source", &["model", "wire"]),
    ("sink", &["model", "wire", "columnar", "digest"]),
    ("pipeline", &["model", "source", "sink", "wire", "columnar", "digest", "ledger"]),
    ("verify", &["model", "report", "pipeline", "ledger", "source", "sink", "wire", "digest"]),
    (
        "migrate",
        &["model", "report", "verify", "pipeline", "ledger", "source", "sink", "wire", "digest"],
    ),
    (
        "cli",
        &[
            "model", "report", "migrate", "verify", "pipeline", "ledger", "source", "sink", "wire",
            "digest", "columnar",
        ],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// `tidemark-wire` is `wire`, the binary's package is `cli`.
fn short(package: &str) -> &str {
    if package == "tidemark" { "cli" } else { package.strip_prefix("tidemark-").unwrap_or(package) }
}

/// Dependencies that are built into the product.
fn normal_dependencies(package: &Value) -> BTreeSet<String> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
    normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn crates_depend_only_downwards_as_the_picture_shows() {
    let picture: BTreeMap<_, _> = PICTURE.into_iter().collect();
    let mut seen = BTreeSet::new();
    for package in packages() {
        let name = short(package["name"].as_str().unwrap()).to_owned();
        let Some(allowed) = picture.get(name.as_str()) else {
            assert!(
                ["testkit", "benches"].contains(&name.as_str()),
                "{name} is not in the picture"
            );
            continue;
        };
        for dependency in normal_dependencies(&package) {
            let below = short(&dependency);
            let is_ours = dependency.starts_with("tidemark-");
            assert!(!is_ours || allowed.contains(&below), "{name} must not depend on {below}");
        }
        seen.insert(name);
    }
    assert_eq!(seen.len(), PICTURE.len(), "a crate of the picture is missing: {seen:?}");
}

#[test]
fn only_wire_names_the_libraries_that_reach_servers() {
    for package in packages() {
        let name = short(package["name"].as_str().unwrap()).to_owned();
        for library in ["tokio-postgres", "rustls", "tokio-rustls", "postgres-protocol"] {
            let names_it = normal_dependencies(&package).contains(library);
            assert!(!names_it || name == "wire", "{name} names {library}");
        }
    }
}

#[test]
fn the_architecture_names_every_crate() {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    for (name, _) in PICTURE {
        assert!(text.contains(&format!("`{name}`")), "docs/architecture.md does not name `{name}`");
    }
}

/// Names in backquotes that look like a test's.
fn named_tests(text: &str) -> BTreeSet<String> {
    let is_test = |word: &&str| {
        word.matches('_').count() >= 2
            && word.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
    };
    let table = text.lines().filter(|line| line.starts_with('|'));
    let tests = table.filter_map(|line| line.trim_end_matches('|').rsplit('|').next());
    tests.flat_map(|cell| cell.split('`')).filter(is_test).map(str::to_owned).collect()
}

#[test]
fn every_test_that_hazards_and_guarantees_name_exists() {
    let read = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let mut named = named_tests(&read("docs/hazards.md"));
    assert!(named.len() > 50, "the search found only {} names", named.len());
    let guaranteed = named_tests(&read("docs/guarantees.md"));
    assert!(guaranteed.len() > 10, "the search found only {} names", guaranteed.len());
    named.extend(guaranteed);
    let mut files = Vec::new();
    rust_files(&root().join("crates"), &mut files);
    let code: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    for test in named {
        assert!(
            code.contains(&format!("fn {test}(")),
            "docs/hazards.md or docs/guarantees.md names {test}, which is no test"
        );
    }
}

fn rust_files(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut files = Vec::new();
    rust_files(&root().join("crates"), &mut files);
    assert!(files.len() > 50, "the search found only {} files", files.len());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//!"), "{} has no module doc", file.display());
    }
}

#[test]
fn no_test_is_switched_off_and_nothing_is_left_to_do() {
    let mut files = Vec::new();
    rust_files(&root().join("crates"), &mut files);
    // Put together here, so that this file does not find itself.
    let banned = [
        ["#[ig", "nore"].concat(),
        ["should_", "panic"].concat(),
        ["FIX", "ME"].concat(),
        ["todo", "!("].concat(),
    ];
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for word in &banned {
            assert!(!text.contains(word.as_str()), "{} holds {word}", file.display());
        }
    }
}
