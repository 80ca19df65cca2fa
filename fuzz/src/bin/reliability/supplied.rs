//! What other commands found: read, never made up.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Supplied {
    /// Of libFuzzer, by target: all there have been.
    pub(crate) executions: BTreeMap<String, Found>,
    /// Invariants that tests hold, and all that are listed.
    pub(crate) invariants: Option<Share>,
    /// Seeded bugs that tests find, and all.
    pub(crate) mutants: Option<Share>,
    /// Reports of sanitizers and valgrind, by tool.
    pub(crate) sanitizers: BTreeMap<String, Found>,
}

/// A count, with what it is of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Found {
    pub(crate) count: u64,
    pub(crate) date: String,
    pub(crate) of: String,
}

/// So many of all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Share {
    pub(crate) count: u64,
    pub(crate) total: u64,
    pub(crate) date: String,
}

impl Supplied {
    pub(crate) fn load(file: &Path) -> Result<Self, Box<dyn Error>> {
        let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?)
    }
}
