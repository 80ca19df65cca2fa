//! The command line.

use lexopt::prelude::*;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const USAGE: &str = "\
reliability [--short | --seconds N] [--shard I/N] [--state FILE] [--threads N] [--markdown FILE] [--supplied FILE]
reliability --add FILE [--add FILE ...] [--markdown FILE] [--supplied FILE]
reliability --replay TARGET:NUMBER";

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) asked: Asked,
    /// Where the table goes, too.
    pub(crate) markdown: Option<PathBuf>,
    /// What other commands found.
    pub(crate) supplied: PathBuf,
}

#[derive(Debug)]
pub(crate) enum Asked {
    Help,
    Run(Run),
    Add(Vec<PathBuf>),
    Replay(String, u64),
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) time: Duration,
    /// Index and number of shards.
    pub(crate) shard: [u64; 2],
    pub(crate) state: Option<PathBuf>,
    pub(crate) threads: usize,
}

impl Options {
    pub(crate) fn parse() -> Result<Self, lexopt::Error> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut run = Run { time: Duration::from_secs(60), shard: [0, 1], state: None, threads };
        let (mut add, mut replay, mut markdown) = (Vec::new(), None, None);
        let mut supplied = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/supplied.json"));
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("short") => run.time = Duration::from_secs(120),
                Long("seconds") => run.time = Duration::from_secs(parser.value()?.parse()?),
                Long("shard") => run.shard = parser.value()?.parse_with(shard)?,
                Long("state") => run.state = Some(parser.value()?.into()),
                Long("threads") => run.threads = parser.value()?.parse_with(at_least_one)?,
                Long("markdown") => markdown = Some(parser.value()?.into()),
                Long("supplied") => supplied = parser.value()?.into(),
                Long("add") => add.push(parser.value()?.into()),
                Long("replay") => replay = Some(parser.value()?.parse_with(instance)?),
                Short('h') | Long("help") => return Ok(Self { asked: Asked::Help, markdown, supplied }),
                other => return Err(other.unexpected()),
            }
        }
        let asked = match replay {
            Some((target, number)) => Asked::Replay(target, number),
            None if !add.is_empty() => Asked::Add(add),
            None => Asked::Run(run),
        };
        Ok(Self { asked, markdown, supplied })
    }
}

fn shard(text: &str) -> Result<[u64; 2], String> {
    let parts =
        text.split_once('/').and_then(|(index, count)| Some([index.parse().ok()?, count.parse().ok()?]));
    parts
        .filter(|[index, count]| index < count)
        .ok_or_else(|| format!("expected I/N with I below N, got {text}"))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| format!("expected at least 1, got {text}"))
}

fn instance(text: &str) -> Result<(String, u64), String> {
    let parts =
        text.rsplit_once(':').and_then(|(target, number)| Some((target.to_owned(), number.parse().ok()?)));
    parts.ok_or_else(|| format!("expected TARGET:NUMBER, got {text}"))
}
