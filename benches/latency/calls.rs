//! Calls of a service that is up: what is timed, from where, beside what.

use super::common::{Case, Tensors};
use super::recorder::{Recorder, Summary};
use lucid_attention::{
    Inputs, KeyPanels, Keys, Outputs, Plan, PlanOptions, Problem, View, ViewMut, attention,
};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time without work before each call of [`Condition::Idle`]: enough for workers to fall asleep and clocks to drop.
const PAUSE: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Rows,
    Panels,
    Function,
}

/// Where calls come from.
#[derive(Clone, Copy)]
struct Caller {
    name: &'static str,
    /// Size of the pool.
    threads: usize,
    /// Each call enters the pool, instead of coming from one of its workers.
    outside: bool,
    spread_from_microseconds: Option<u64>,
}

const CALLERS: [Caller; 4] = [
    Caller { name: "threads1", threads: 1, outside: false, spread_from_microseconds: None },
    Caller { name: "threads2", threads: 2, outside: false, spread_from_microseconds: None },
    Caller { name: "threads2_from4", threads: 2, outside: false, spread_from_microseconds: Some(4) },
    Caller { name: "threads2_outside", threads: 2, outside: true, spread_from_microseconds: None },
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Warm,
    Busy,
    Idle,
}

/// One line of the table.
pub(crate) struct Setup {
    entry: Entry,
    case: Case,
    caller: Caller,
    condition: Condition,
}

impl Setup {
    pub(crate) fn id(&self) -> String {
        let entry = match self.entry {
            Entry::Rows => "rows",
            Entry::Panels => "panels",
            Entry::Function => "function",
        };
        let condition = match self.condition {
            Condition::Warm => "warm",
            Condition::Busy => "busy",
            Condition::Idle => "idle",
        };
        format!("{entry}/{}/{}/{condition}", self.case, self.caller.name)
    }
}

pub(crate) const TINY: Case = plain(4, [1, 10], 32);
pub(crate) const SENTENCE: Case = plain(12, [128, 128], 32);

const fn plain(heads: usize, [q_len, kv_len]: [usize; 2], dim: usize) -> Case {
    Case { batch: 1, q_heads: heads, kv_heads: heads, q_len, kv_len, dim, causal: false }
}

pub(crate) fn setups() -> Vec<Setup> {
    let mut setups = Vec::new();
    for (entry, case) in [
        (Entry::Rows, TINY),
        (Entry::Panels, TINY),
        (Entry::Function, TINY),
        (Entry::Rows, plain(4, [1, 50], 32)),
        (Entry::Rows, plain(12, [16, 16], 32)),
        (Entry::Rows, SENTENCE),
        (Entry::Panels, plain(8, [1, 512], 64)),
        (Entry::Panels, plain(32, [1, 4096], 128)),
    ] {
        // `attention()` takes no options.
        let callers = CALLERS
            .iter()
            .filter(|caller| entry != Entry::Function || caller.spread_from_microseconds.is_none());
        for &caller in callers {
            for condition in [Condition::Warm, Condition::Busy, Condition::Idle] {
                setups.push(Setup { entry, case, caller, condition });
            }
        }
    }
    setups
}

pub(crate) fn measure(setup: &Setup, recorder: &mut Recorder) -> Summary {
    let case = &setup.case;
    let pool = ThreadPoolBuilder::new().num_threads(setup.caller.threads).build().expect("a pool");
    let tensors = Tensors::<f32>::on_huge_pages(case);
    let rows = View::new(&tensors.k, case.kv_shape()).expect("k fits its shape");
    let panels =
        (setup.entry == Entry::Panels).then(|| KeyPanels::from_rows(rows, case.kv_len).expect("memory"));
    let keys = panels.as_ref().map_or(Keys::Rows(rows), Keys::Panels);
    let q = View::new(&tensors.q, case.q_shape()).expect("q fits its shape");
    let v = View::new(&tensors.v, case.kv_shape()).expect("v fits its shape");
    let inputs = Inputs::new(q, keys, v);

    if setup.entry == Entry::Function {
        return record(setup, &pool, recorder, || {
            black_box(attention(black_box(&inputs)).expect("a valid call"));
        });
    }
    let spread_from_microseconds = setup.caller.spread_from_microseconds;
    let options = PlanOptions { spread_from_microseconds, ..PlanOptions::default() };
    let plan = pool.install(|| Plan::with_options(&Problem::of(&inputs), &options)).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let mut out = vec![0.0; tensors.q.len()];
    record(setup, &pool, recorder, || {
        let out = ViewMut::new(&mut out, case.q_shape()).expect("out fits its shape");
        plan.run(black_box(&inputs), Outputs::new(out), &mut workspace).expect("a valid call");
    })
}

/// Times `call` from where the setup says, beside what it says.
fn record(
    setup: &Setup,
    pool: &ThreadPool,
    recorder: &mut Recorder,
    mut call: impl FnMut() + Send,
) -> Summary {
    let _neighbour = (setup.condition == Condition::Busy).then(Neighbour::new);
    let pause = (setup.condition == Condition::Idle).then_some(PAUSE);
    if setup.caller.outside {
        recorder.record(pause, || pool.install(&mut call))
    } else {
        pool.install(|| recorder.record(pause, call))
    }
}

/// A thread of its own that computes until it is dropped.
struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    fn new() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut sums = [1.0f32; 64];
            while !seen.load(Ordering::Relaxed) {
                let factor = black_box(0.5);
                sums.iter_mut().for_each(|sum| *sum = *sum * factor + 1.0);
            }
            black_box(sums);
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it only computes");
        }
    }
}
