//! Tests once more in processes of their own: what a process decides once is decided anew there.

use std::process::Command;

/// This program once more, under what runs it: emulators and checkers do not follow by themselves.
pub fn this_program() -> Command {
    let program = std::env::current_exe().expect("a test's program");
    let runner = std::env::var("LUCID_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(first) = words.next() else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(words).arg(program);
    command
}

/// Runs tests of this crate of tests with every level forced in turn: some functions take no level, but that of the process.
pub fn at_every_level(tests: &[&str]) {
    for level in super::cases::levels() {
        let child = this_program()
            .args(["--exact", "--test-threads", "1"])
            .args(tests)
            .env("LUCID_LEVEL", level.name())
            .output()
            .expect("a process");
        let [printed, said] = [&child.stdout, &child.stderr].map(|text| String::from_utf8_lossy(text));
        let all = format!("test result: ok. {} passed", tests.len());
        assert!(
            child.status.success() && printed.contains(&all),
            "{level}, {tests:?}: {}, {printed}{said}",
            child.status
        );
    }
}
