//! What runs have found so far, on disk.

use crate::machine;
use lucid_attention_fuzz::Tally;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// The counts of one shard, or of several.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Index and number of each shard that is in it.
    pub(crate) shards: Vec<[u64; 2]>,
    /// When it was last written to.
    pub(crate) date: String,
    /// CPUs and levels it ran on.
    pub(crate) machines: Vec<String>,
    /// How long it ran.
    pub(crate) seconds: f64,
    pub(crate) targets: BTreeMap<String, Counts>,
}

/// Those of a target.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Counts {
    /// Instances, which is how far the shard has come.
    pub(crate) instances: u64,
    pub(crate) tally: Tally,
    pub(crate) failures: Vec<Failure>,
}

/// An instance that panicked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failure {
    pub(crate) number: u64,
    pub(crate) message: String,
}

impl State {
    pub(crate) fn new(shard: [u64; 2]) -> Self {
        let (date, machines) = (machine::date(), vec![machine::name()]);
        Self { shards: vec![shard], date, machines, seconds: 0.0, targets: BTreeMap::new() }
    }

    pub(crate) fn load(file: &Path) -> Result<Self, Box<dyn Error>> {
        let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut state: Self =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        let here = machine::name();
        if !state.machines.contains(&here) {
            state.machines.push(here);
        }
        Ok(state)
    }

    /// Writes it beside the old one first: a run that is killed leaves one of them whole.
    pub(crate) fn save(&mut self, file: &Path) -> Result<(), Box<dyn Error>> {
        self.date = machine::date();
        let beside = file.with_extension("new");
        fs::write(&beside, serde_json::to_string_pretty(self)?)?;
        Ok(fs::rename(beside, file)?)
    }

    /// Targets' names and what failed.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&str, &Failure)> {
        self.targets
            .iter()
            .flat_map(|(name, counts)| counts.failures.iter().map(move |failure| (&name[..], failure)))
    }

    pub(crate) fn total(&self) -> Counts {
        let mut total = Counts::default();
        self.targets.values().for_each(|counts| total.add(counts));
        total
    }
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        self.instances += other.instances;
        self.tally.add(&other.tally);
        self.failures.extend_from_slice(&other.failures);
    }
}

/// The sum of several, of shards that have no instance in common.
pub(crate) fn sum(files: &[PathBuf]) -> Result<State, Box<dyn Error>> {
    let mut states = files.iter().map(|file| State::load(file));
    let mut total = states.next().ok_or("no state")??;
    for state in states {
        let State { shards, date, machines, seconds, targets } = state?;
        let apart = |a: &[u64; 2], b: &[u64; 2]| a[1] == b[1] && a[0] != b[0];
        if let Some(shard) = shards.iter().find(|shard| !total.shards.iter().all(|other| apart(shard, other)))
        {
            return Err(format!("shard {shard:?} may have instances of {:?}", total.shards).into());
        }
        total.shards.extend(shards);
        total.date = total.date.max(date);
        total.machines.extend(machines);
        total.seconds += seconds;
        for (name, counts) in targets {
            total.targets.entry(name).or_default().add(&counts);
        }
    }
    total.machines.sort();
    total.machines.dedup();
    Ok(total)
}
