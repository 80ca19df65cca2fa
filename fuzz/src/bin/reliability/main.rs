//! The reliability command: runs every target on inputs of its own making, for as long as it is told to, and prints what was
//! compared.
//!
//! ```text
//! reliability [--short | --seconds N] [--shard I/N] [--state FILE] [--threads N] [--markdown FILE] [--supplied FILE]
//! reliability --add FILE [--add FILE ...]          the sum of what other runs left in their state files
//! reliability --replay TARGET:NUMBER               one instance, with its panic
//! ```
//!
//! An instance is a target and a number, which makes its bytes: a run goes through the numbers in order, a shard `I/N` through
//! those that leave `I` when divided by `N`. A state file holds the counts and the next number, so that a run goes on where
//! the one before ended. Exit status 1 says that something failed.

mod machine;
mod options;
mod runs;
mod state;
mod supplied;
mod table;

use options::{Asked, Options};
use state::State;
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;
use supplied::Supplied;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let Options { asked, markdown, supplied } = Options::parse()?;
    let state = match asked {
        Asked::Help => {
            println!("{}", options::USAGE);
            return Ok(ExitCode::SUCCESS);
        }
        Asked::Replay(target, number) => {
            runs::replay(&target, number);
            return Ok(ExitCode::SUCCESS);
        }
        Asked::Add(files) => state::sum(&files)?,
        Asked::Run(run) => {
            let mut state = match &run.state {
                Some(file) if file.exists() => State::load(file)?,
                _ => State::new(run.shard),
            };
            if state.shards != [run.shard] {
                return Err(
                    format!("the state is that of {:?}, not of shard {:?}", state.shards, run.shard).into()
                );
            }
            let (started, before) = (Instant::now(), state.seconds);
            runs::until(&mut state, started + run.time, run.threads, |state| {
                state.seconds = before + started.elapsed().as_secs_f64();
                run.state.as_ref().map_or(Ok(()), |file| state.save(file))
            })?;
            state
        }
    };
    let table = table::markdown(&state, &Supplied::load(&supplied)?);
    println!("{table}");
    if let Some(file) = markdown {
        std::fs::write(file, &table)?;
    }
    Ok(if state.failures().next().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
