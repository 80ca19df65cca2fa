//! Tests once more in processes of their own: what a process decides once is decided anew there.

use std::process::Command;

/// Runs tests of this crate of tests with every level forced in turn: some functions take no level, but that of the process.
pub fn at_every_level(tests: &[&str]) {
    for level in super::cases::levels() {
        let child = Command::new(std::env::current_exe().expect("a test's program"))
            .args(["--exact", "--test-threads", "1"])
            .args(tests)
            .env("LUCID_LEVEL", level.name())
            .env_remove("LUCID_TEST_LEVELS")
            .output()
            .expect("a process");
        let printed = String::from_utf8_lossy(&child.stdout);
        let all = format!("test result: ok. {} passed", tests.len());
        assert!(child.status.success() && printed.contains(&all), "{level}, {tests:?}: {printed}");
    }
}
