//! Where and when a run took place.

use lucid_attention::Level;
use std::time::{SystemTime, UNIX_EPOCH};

/// The CPU, as it calls itself, and the levels it has.
pub(crate) fn name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let levels: Vec<String> = Level::available().map(|level| level.to_string()).collect();
    format!("{} ({})", model.map_or("unknown CPU", |(_, name)| name.trim()), levels.join(", "))
}

/// Today's date, UTC.
pub(crate) fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Years that begin in March end with the day that leap years add.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + next)
}
