//! Rounds of calls and their medians.

use std::time::Instant;

/// As many calls as make a round of some 20 ms, which is several of the scheduler's slices; makes one to find out.
pub(crate) fn calls_per_round(mut call: impl FnMut()) -> usize {
    let before = Instant::now();
    call();
    let once = before.elapsed().as_secs_f64();
    (0.02 / once.max(1e-7)).ceil().clamp(1.0, 1e6) as usize
}

/// Mean seconds of so many calls.
pub(crate) fn time(calls: usize, mut call: impl FnMut()) -> f64 {
    let before = Instant::now();
    (0..calls).for_each(|_| call());
    before.elapsed().as_secs_f64() / calls as f64
}

/// The median of each column.
pub(crate) fn medians<const N: usize>(rounds: &[[f64; N]]) -> [f64; N] {
    std::array::from_fn(|column| {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
        values.sort_unstable_by(f64::total_cmp);
        values[values.len() / 2]
    })
}
