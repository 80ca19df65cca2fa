//! Where and when something was measured.

use lucid_attention::{AttentionError, Level};
use std::time::{SystemTime, UNIX_EPOCH};

/// What was measured, on which processor, at which level, on so many threads, on which day.
pub(crate) fn caption(threads: usize) -> Result<String, AttentionError> {
    let (heads, dim) = (super::HEADS, super::DIM);
    let level = Level::detect()?.name();
    let date = date(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() / 86_400));
    Ok(format!("f32, {heads} heads, D = {dim}; {}, level {level}, {threads} threads; {date}", processor()))
}

fn processor() -> String {
    let list = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = list.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or(std::env::consts::ARCH, |(_, name)| name).to_owned()
}

/// `2000-12-31`, by days since 1970. Years here begin in March, so that the leap day is their last.
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = 400 * era + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}
