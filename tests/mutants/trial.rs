//! Runs bugs against the tests that have to find them.

use super::table::Mutant;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Test binaries by name, `lib` for the unit tests.
type Binaries = BTreeMap<String, PathBuf>;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    /// By a signal.
    Crashed,
    /// It ran for so long that it was killed.
    Hung,
}

/// A law, `binary path::of::the_test`, taken apart.
fn parts(law: &str) -> (&str, &str) {
    law.split_once(' ').expect("a law is a binary and a test")
}

/// Runs all; returns the names of those that no test found.
pub(crate) fn run<'a>(mutants: &[&'a Mutant]) -> Vec<&'a str> {
    if !cfg!(lucid_mutants) {
        panic!("this runs in a build with all bugs: .ci/mutants");
    }
    let mut laws: Vec<&str> = mutants.iter().flat_map(|mutant| mutant.laws).copied().collect();
    laws.sort_unstable();
    laws.dedup();
    let binaries = build(&laws);

    let times = Mutex::new(BTreeMap::new());
    side_by_side(&laws, |law| {
        let (end, time) = try_law(&binaries, law, None, Duration::from_secs(600));
        assert_eq!(end, End::Passed, "{law} has to pass without a bug");
        times.lock().expect("nobody panicked").insert(law, time);
    });
    let times = times.into_inner().expect("nobody panicked");
    let width = mutants.iter().map(|mutant| mutant.name.len()).max().unwrap_or(0);
    println!("\n{:width$} | found by | seconds | what it does", "bug");

    let survivors = Mutex::new(Vec::new());
    side_by_side(mutants, |mutant| {
        let found = mutant.laws.iter().find_map(|law| {
            let limit = Duration::from_secs(60) + 20 * times[law];
            let (end, time) = try_law(&binaries, law, Some(mutant.name), limit);
            (end != End::Passed).then_some((law, end, time))
        });
        let Mutant { name, does, .. } = mutant;
        let by = match found {
            Some((law, End::Failed, time)) => format!("{law} | {:.2}", time.as_secs_f64()),
            Some((law, end, time)) => format!("{law}: {end:?} | {:.2}", time.as_secs_f64()),
            None => "NOTHING |".to_owned(),
        };
        println!("{name:width$} | {by} | {does}");
        if found.is_none() {
            survivors.lock().expect("nobody panicked").push(*name);
        }
    });
    let survivors = survivors.into_inner().expect("nobody panicked");
    println!("{} of {} bugs found, by {} tests", mutants.len() - survivors.len(), mutants.len(), laws.len());
    survivors
}

/// Calls `work` for each, as many at a time as there are processors.
fn side_by_side<T: Copy + Sync>(items: &[T], work: impl Fn(T) + Sync) {
    let next = Mutex::new(items.iter());
    let workers = std::thread::available_parallelism().map_or(1, Into::into);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let item = next.lock().expect("nobody panics while taking one").next();
                    let Some(&item) = item else { return };
                    work(item);
                }
            });
        }
    });
}

/// Builds the test binaries of some laws, as this one was built.
fn build(laws: &[&str]) -> Binaries {
    let mut cargo = Command::new(std::env::var_os("CARGO").expect("cargo runs this"));
    cargo.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    let mut names: Vec<&str> = laws.iter().map(|law| parts(law).0).collect();
    names.dedup();
    for name in names {
        match name {
            "lib" => cargo.arg("--lib"),
            _ => cargo.args(["--test", name]),
        };
    }
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "the tests build");
    let messages = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let binary = |message: &str| {
        let message: serde_json::Value = serde_json::from_str(message).ok()?;
        let path = message["executable"].as_str()?.into();
        let target = &message["target"];
        let name = if target["kind"][0] == "test" { target["name"].as_str()? } else { "lib" };
        Some((name.to_owned(), path))
    };
    messages.lines().filter_map(binary).collect()
}

/// Runs a law, with a bug or without.
fn try_law(binaries: &Binaries, law: &str, bug: Option<&str>, limit: Duration) -> (End, Duration) {
    let (binary, test) = parts(law);
    let mut command = Command::new(&binaries[binary]);
    command.args(["--exact", test]).stderr(Stdio::null()).env_remove("LUCID_MUTANT");
    let start = Instant::now();
    let Some(bug) = bug else {
        let output = command.output().expect("the test runs");
        let one = String::from_utf8_lossy(&output.stdout).contains("\nrunning 1 test\n");
        assert!(one, "{law} is the name of a test");
        return (if output.status.success() { End::Passed } else { End::Failed }, start.elapsed());
    };
    let child = command.stdout(Stdio::null()).env("LUCID_MUTANT", bug).spawn().expect("the test runs");
    (wait(child, limit), start.elapsed())
}

fn wait(mut child: Child, limit: Duration) -> End {
    let start = Instant::now();
    loop {
        match child.try_wait().expect("the test's end") {
            Some(status) if status.success() => return End::Passed,
            Some(status) => return if status.code().is_some() { End::Failed } else { End::Crashed },
            None if start.elapsed() > limit => {
                child.kill().and_then(|()| child.wait()).expect("the test's end");
                return End::Hung;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
