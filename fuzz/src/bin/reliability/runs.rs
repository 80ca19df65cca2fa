//! Instances, by number.

use crate::state::{Counts, Failure, State};
use lucid_attention_fuzz::common::cases::Rng;
use lucid_attention_fuzz::{TARGETS, Tally, Target};
use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a target runs before the next one's turn.
const TURN: Duration = Duration::from_secs(2);

/// The bytes of an instance.
fn input(target: &Target, number: u64) -> Vec<u8> {
    // A seed for each target, by the letters of its name.
    let seed = target.name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let start = Rng::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).bits();
    (target.draw)(&mut Rng::new(start))
}

/// Runs an instance with its panic.
pub(crate) fn replay(name: &str, number: u64) {
    let target = TARGETS.into_iter().find(|target| target.name == name);
    let Some(target) = target else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        panic!("no target {name}: expected one of {names:?}");
    };
    let mut tally = Tally::default();
    let data = input(&target, number);
    println!("{name}:{number}, {} bytes: {data:?}", data.len());
    (target.run)(&data, &mut tally);
    println!("{tally:?}");
}

/// Runs all targets in turns until a point in time; `save` is called after each round.
pub(crate) fn until(
    state: &mut State,
    end: Instant,
    threads: usize,
    mut save: impl FnMut(&mut State) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let hook = take_hook();
    set_hook(Box::new(|_| ())); // messages are kept
    let [index, count] = state.shards[0];
    while Instant::now() < end {
        for target in &TARGETS {
            let left = end.saturating_duration_since(Instant::now());
            let counts = state.targets.entry(target.name.to_owned()).or_default();
            let number_of = |nth: u64| nth * count + index;
            let new = turn(target, &number_of, counts.instances, threads, Instant::now() + left.min(TURN));
            counts.add(&new);
        }
        save(state)?;
    }
    set_hook(hook);
    Ok(())
}

/// As many instances as there is time for, at least one.
fn turn(
    target: &Target,
    number_of: &(dyn Fn(u64) -> u64 + Sync),
    first: u64,
    threads: usize,
    end: Instant,
) -> Counts {
    let next = AtomicU64::new(first);
    let work = || {
        let mut counts = Counts::default();
        while counts.instances == 0 || Instant::now() < end {
            let number = number_of(next.fetch_add(1, Ordering::Relaxed));
            let data = input(target, number);
            let mut tally = Tally::default();
            let result = catch_unwind(AssertUnwindSafe(|| (target.run)(&data, &mut tally)));
            counts.instances += 1;
            counts.tally.add(&tally);
            counts.failures.extend(result.err().map(|panic| Failure { number, message: message(&*panic) }));
        }
        counts
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut total = Counts::default();
        for worker in workers {
            total.add(&worker.join().expect("panics are caught"));
        }
        total
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").chars().take(2000).collect()
}
