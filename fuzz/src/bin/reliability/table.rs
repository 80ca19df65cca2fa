//! The reliability table.

use crate::state::{Counts, State};
use crate::supplied::{Found, Share, Supplied};
use lucid_attention_fuzz::{TARGETS, Tally};
use std::fmt::Write;

/// Failures that are printed.
const SHOWN: usize = 20;

pub(crate) fn markdown(state: &State, supplied: &Supplied) -> String {
    let mut text = String::new();
    let total = state.total();
    let Tally { outputs, worst, violations, close, same, guarded, refused } = total.tally;
    let State { date, machines, seconds, shards, .. } = state;
    let hours = seconds / 3600.0;
    let _ = writeln!(
        text,
        "Reliability, {date}, {}: {hours:.2} h in {} shard(s).\n",
        machines.join("; "),
        shards.len()
    );
    let mut row = |what: &str, found: String| {
        let _ = writeln!(text, "| {what} | {found} |");
    };
    row("what", "found".to_owned());
    row("---", "---".to_owned());
    row("test instances", number(total.instances));
    row("outputs under a derived bound", format!("{}, the worst at {worst:.3} of it", number(outputs)));
    row("outputs beyond their bound", number(violations));
    row("numbers and answers that are the same to the bit", number(same));
    row("numbers within a tolerance, or only required to be there", number(close));
    row("calls flush against inaccessible pages", format!("{}, without a fault", number(guarded)));
    row("wrong calls refused for a reason that is theirs", number(refused));
    row("panics and wrong answers", number(total.failures.len() as u64));
    let fewest =
        TARGETS.iter().map(|target| executions(supplied, target.name).map_or(0, |found| found.count)).min();
    row("libFuzzer executions, of the target with the fewest", number(fewest.unwrap_or(0)));
    let share = |found: &Option<Share>| {
        found.as_ref().map_or("not run".to_owned(), |Share { count, total, date }| {
            format!("{count} of {total}, {date}")
        })
    };
    row("invariants with tests that pass (`tests/laws/main.rs` lists them)", share(&supplied.invariants));
    row("seeded bugs caught (`.ci/mutants`)", share(&supplied.mutants));
    let reports = supplied
        .sanitizers
        .iter()
        .map(|(tool, Found { count, date, of })| format!("{tool} {} ({of}, {date})", number(*count)));
    let reports: Vec<String> = reports.collect();
    row("sanitizer reports", if reports.is_empty() { "not run".to_owned() } else { reports.join("; ") });

    text.push_str("\n| target | instances | under a bound | worst | same bits | refused | failures | libFuzzer executions |\n");
    text.push_str("|---|---:|---:|---:|---:|---:|---:|---:|\n");
    let none = Counts::default();
    for target in &TARGETS {
        let Counts { instances, tally, failures } = state.targets.get(target.name).unwrap_or(&none);
        let worst = if tally.outputs > 0 { format!("{:.3}", tally.worst) } else { "-".to_owned() };
        let [instances, outputs, same, refused, failures] =
            [*instances, tally.outputs, tally.same, tally.refused, failures.len() as u64].map(number);
        let fuzzed =
            executions(supplied, target.name).map_or("not run".to_owned(), |found| number(found.count));
        let name = target.name;
        let _ = writeln!(
            text,
            "| `{name}` | {instances} | {outputs} | {worst} | {same} | {refused} | {failures} | {fuzzed} |"
        );
    }
    let failed = state.failures().count();
    if failed > 0 {
        let _ = writeln!(text, "\nFailed ({failed}; `--replay TARGET:NUMBER` runs one again):\n");
    }
    for (target, failure) in state.failures().take(SHOWN) {
        let message: String = failure.message.chars().take(300).collect();
        let _ = writeln!(text, "- `{target}:{}`: {}", failure.number, message.replace('\n', " "));
    }
    text
}

fn executions<'a>(supplied: &'a Supplied, target: &str) -> Option<&'a Found> {
    supplied.executions.get(target)
}

/// With its digits in groups of three.
fn number(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits")).collect();
    groups.join(" ")
}
