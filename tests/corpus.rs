//! Replays what the fuzzers found worth keeping, and what was written by hand for them.

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[test]
fn every_target_keeps_its_promises_on_its_corpus() {
    for (name, run) in targets::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
        let files = fs::read_dir(&folder).expect("each target has a corpus");
        let mut replayed = 0;
        for file in files.map(|entry| entry.expect("the corpus can be read").path()) {
            let data = fs::read(&file).expect("the corpus can be read");
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&data)));
            assert!(outcome.is_ok(), "{name} fails on {}", file.display());
            replayed += 1;
        }
        assert!(replayed > 0, "the corpus of {name} is empty");
    }
}

/// Packages of the fuzz targets alone.
const OF_TARGETS: [&str; 4] = ["arbitrary", "gridcast-fuzz", "jobserver", "libfuzzer-sys"];

/// The names and versions of the packages in a lock file, and the dependencies of gridcast in it.
fn locked(path: &str) -> (BTreeSet<(String, String)>, BTreeSet<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = fs::read_to_string(path).expect("a lock file can be read");
    let (mut packages, mut dependencies) = (BTreeSet::new(), BTreeSet::new());
    for package in text.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key));
            line.expect("each package has this key").trim_matches('"').to_owned()
        };
        let name = value("name = ");
        if name == "gridcast" {
            let listed = package.lines().filter_map(|line| line.strip_prefix(" \""));
            dependencies = listed.map(|line| line.trim_end_matches("\",").to_owned()).collect();
        }
        packages.insert((name, value("version = ")));
    }
    (packages, dependencies)
}

#[test]
fn the_fuzz_targets_are_built_from_the_versions_of_the_workspace() {
    let (workspace, dependencies) = locked("Cargo.lock");
    let (targets, of_gridcast) = locked("tests/fuzz/Cargo.lock");
    let is_shared = |package: &&(String, String)| !OF_TARGETS.contains(&&package.0[..]);
    let others: Vec<_> =
        targets.iter().filter(is_shared).filter(|package| !workspace.contains(package)).collect();
    assert_eq!(others, Vec::<&(String, String)>::new(), "see tests/README.md, Fuzzing");
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .expect("the manifest can be read");
    let section = manifest.split("\n[dependencies]\n").nth(1).expect("gridcast has dependencies");
    let section = section.split("\n[").next().unwrap_or_default();
    let used: Vec<_> = section.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
    assert!(used.len() > 20, "{used:?}");
    for name in used {
        let is_in = |names: &BTreeSet<String>| {
            names.iter().any(|dependency| dependency.split(' ').next() == Some(name))
        };
        assert!(is_in(&dependencies), "Cargo.lock lacks {name}");
        assert!(
            is_in(&of_gridcast),
            "tests/fuzz/Cargo.lock lacks {name}: see tests/README.md, Fuzzing"
        );
    }
}
