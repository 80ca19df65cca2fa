//! How long a call takes, and how much longer now and then: `cargo bench --bench latency`.
//!
//! ```text
//! cargo bench --bench latency -- [--secs 2] [--json] [part of an id]...
//! ```
//!
//! Ids of calls read `<entry>/<case>/<caller>/<condition>`:
//!
//! | | |
//! |---|---|
//! | entry | `rows` and `panels`: [`Plan::run`] with keys held so; `function`: [`attention`], which plans each time |
//! | caller | `threads1`, `threads2`: a worker of a pool of that size; `threads2_outside`: a thread that enters it each time |
//! | | `threads2_from4`: as `threads2`, with [`PlanOptions::spread_from_microseconds`] of 4 |
//! | condition | `warm`: back to back; `busy`: the same beside a thread that computes; `idle`: 2 ms of sleep before each |
//!
//! Each call is timed by itself, the timer's own time (printed first) included. Ids of first calls read
//! `first_call/<entry>/<case>`: each is timed in fresh processes, step by step, in rayon's global pool or in none.
//! `--json` prints one object. That small calls neither allocate nor start threads is a test, `tests/latency.rs`.
//!
//! [`Plan::run`]: lucid_attention::Plan::run
//! [`PlanOptions::spread_from_microseconds`]: lucid_attention::PlanOptions::spread_from_microseconds
//! [`attention`]: lucid_attention::attention()

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod first_call;
mod recorder;

use lucid_attention::Level;
use recorder::{Recorder, Summary};
use serde_json::{Value, json};
use std::error::Error;
use std::time::Duration;

struct Options {
    secs: f64,
    json: bool,
    /// This process is a fresh one, made to time this first call.
    first_call: Option<String>,
    parts: Vec<String>,
}

impl Options {
    fn parse() -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Self { secs: 2.0, json: false, first_call: None, parts: Vec::new() };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("secs") => options.secs = parser.value()?.parse()?,
                Long("json") => options.json = true,
                Long("first-call") => options.first_call = Some(parser.value()?.string()?),
                // What cargo passes to every bench.
                Long("bench") => {}
                Value(part) => options.parts.push(part.string()?),
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }

    fn wants(&self, id: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|part| id.contains(part))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse()?;
    if let Some(id) = &options.first_call {
        return first_call::answer(id);
    }
    let mut recorder = Recorder::new(Duration::try_from_secs_f64(options.secs)?);
    let timer = recorder.record(None, || ());
    if !options.json {
        println!("level {}", Level::detect()?);
    }
    let calls = calls(&options, &mut recorder, &timer);
    let first_calls = first_calls(&options)?;
    if options.json {
        let level = Level::detect()?.name();
        let timer = timer.json("timer");
        println!("{}", json!({ "level": level, "timer": timer, "calls": calls, "first_calls": first_calls }));
    }
    Ok(())
}

fn calls(options: &Options, recorder: &mut Recorder, timer: &Summary) -> Vec<Value> {
    if !options.json {
        println!(
            "\n{:<62} {:>8} {:>10} {:>10} {:>10} {:>10}",
            "call", "samples", "p50 us", "p99 us", "p99.9 us", "max us"
        );
        println!("{}", timer.line("(the timer alone)"));
    }
    let mut found = Vec::new();
    for setup in calls::setups().into_iter().filter(|setup| options.wants(&setup.id())) {
        let summary = calls::measure(&setup, recorder);
        if !options.json {
            println!("{}", summary.line(&setup.id()));
        }
        found.push(summary.json(&setup.id()));
    }
    found
}

fn first_calls(options: &Options) -> Result<Vec<Value>, Box<dyn Error>> {
    if !options.json {
        let steps = first_call::STEPS.map(|step| format!(" {step:>12}")).concat();
        println!("\n{:<62}{steps}", format!("first call, median us of {}", first_call::PROCESSES));
    }
    let mut found = Vec::new();
    for setup in first_call::SETUPS.iter().filter(|setup| options.wants(&setup.id())) {
        let medians = first_call::measure(setup)?;
        if !options.json {
            let text = |time: Option<f64>| time.map_or("-".to_owned(), |time| format!("{time:.1}"));
            let times = medians.map(|time| format!(" {:>12}", text(time))).concat();
            println!("{:<62}{times}", setup.id());
        }
        let mut line = json!({ "id": setup.id() });
        for (step, median) in first_call::STEPS.iter().zip(medians) {
            line[step] = json!(median);
        }
        found.push(line);
    }
    Ok(found)
}
