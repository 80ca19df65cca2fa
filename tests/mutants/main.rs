//! Seeded bugs: [`table`] says which there are and which tests have to find each; `src/mutant.rs` says how they get into a build.
//!
//! `cargo test` checks that the table and the source name the same bugs. `.ci/mutants` builds the crate with all of them, once,
//! and runs each bug's tests until one fails; `.ci/mutants NAME...` does so for some. To add one: write `mutant!("a-name", right,
//! wrong)` at one expression of the source, and a line into the table.
#![allow(missing_docs, reason = "a test")]

mod table;
mod trial;

use std::collections::BTreeMap;
use std::path::Path;
use table::MUTANTS;

/// How often each bug is named in `mutant!("name", ..)` below a directory.
fn sites(directory: &Path, names: &mut BTreeMap<String, Vec<String>>) {
    for entry in std::fs::read_dir(directory).expect("the source") {
        let path = entry.expect("the source").path();
        if path.is_dir() {
            sites(&path, names);
        } else if !path.ends_with("mutant.rs") {
            let text = std::fs::read_to_string(&path).expect("Rust source");
            for site in text.split("mutant!(").skip(1) {
                let name = site.trim_start().strip_prefix('"').and_then(|site| site.split_once('"'));
                let (name, _) = name.unwrap_or_else(|| panic!("{path:?}: a mutant begins with its name"));
                names.entry(name.to_owned()).or_default().push(path.display().to_string());
            }
        }
    }
}

#[test]
fn every_bug_has_one_site() {
    let mut names = BTreeMap::new();
    sites(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    for (name, files) in &names {
        assert_eq!(files.len(), 1, "{name} is at several places: {files:?}");
        let listed = MUTANTS.iter().filter(|mutant| mutant.name == name).count();
        assert_eq!(listed, 1, "{name} of {files:?} stands {listed} times in the table");
    }
    for mutant in MUTANTS {
        assert!(names.contains_key(mutant.name), "{} is in the table only", mutant.name);
        assert!(!mutant.laws.is_empty(), "{}: a test that has to find it", mutant.name);
    }
}

#[test]
#[ignore = "builds the crate once more and takes minutes: .ci/mutants"]
fn every_bug_is_found() {
    let chosen = std::env::var("LUCID_MUTANTS").unwrap_or_default();
    let chosen: Vec<&str> = chosen.split_whitespace().collect();
    let known = |name: &&str| MUTANTS.iter().any(|mutant| mutant.name == *name);
    assert!(chosen.iter().all(known), "all of these have to be in the table: {chosen:?}");
    let chosen: Vec<_> =
        MUTANTS.iter().filter(|mutant| chosen.is_empty() || chosen.contains(&mutant.name)).collect();
    let survivors = trial::run(&chosen);
    assert!(survivors.is_empty(), "no test finds {survivors:?}");
}
