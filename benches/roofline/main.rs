//! Every kernel, attention and projections, as a share of what the machine gives: `cargo bench --bench roofline`.
//!
//! ```text
//! cargo bench --bench roofline -- [--threads 1,2] [--rounds 7] [--json] [--floor] [part of an id]...
//! ```
//!
//! Each round times the limit (multiply-adds on the level's vectors, bf16 dot products, or bytes read from memory, on as many
//! threads) and then the case; the share is the median over the rounds of their quotient, because a shared machine's limit drifts. Before
//! it is timed a case is checked against the f64 reference, as far as that is affordable. Decode is quoted against
//! memory even where its keys fit a cache: a share above 100 % says so.
//!
//! `--floor` runs the few cases that have a floor (at most half of what they reach on a quiet machine) and fails when one is
//! below it twice: what it catches is a lost inlining or a spilled register tile, not noise. `--json` prints one object
//! a line.

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod peaks;
mod projections;

use cases::{Limit, Setup};
use common::Case;
use common::options::Options;
use common::rounds::{calls_per_round, medians, time};
use half::{bf16, f16};
use lucid_attention::{
    DType, Element, Inputs, KeyPanels, Keys, Mask, Outputs, Plan, PlanOptions, Problem, QueryStart, View,
    ViewMut, reference,
};
use peaks::Memory;
use std::process::ExitCode;

fn main() -> Result<ExitCode, lexopt::Error> {
    let options = Options::parse(&["json", "floor"])?;
    let memory = Memory::new();
    let mut broken = false;
    if !options.has("json") {
        println!(
            "{:<72} {:>7} {:>11} {:>9} {:>9} {:>6}",
            "case", "threads", "median us", "G/s", "limit", "share"
        );
    }
    let attention = cases::setups(options.has("floor")).into_iter().map(boxed);
    for timed in attention.chain(projections::all(options.has("floor")).into_iter().map(boxed)) {
        let id = timed.id();
        if !options.wants(&id) {
            continue;
        }
        for &threads in &options.threads {
            let watch = Watch { threads, rounds: options.rounds, memory: &memory };
            let Some(mut line) = watch.measure(&*timed) else { continue };
            if let Some(floor) = timed.floor().filter(|_| options.has("floor")) {
                if line.share < floor {
                    line = watch.measure(&*timed).unwrap_or(line);
                }
                if line.share < floor {
                    broken = true;
                    eprintln!(
                        "{id}: {:.0} % of its limit, the floor is {:.0} %",
                        line.share * 100.0,
                        floor * 100.0
                    );
                }
            }
            line.print(&id, threads, options.has("json"));
        }
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A line of the table.
trait Timed: Sync {
    fn id(&self) -> String;
    /// The share of the limit below which something broke.
    fn floor(&self) -> Option<f64>;
    /// Prepares a call, checks what it computes, and has it timed.
    fn measure(&self, watch: &Watch<'_>) -> Option<Line>;
}

fn boxed(timed: impl Timed + 'static) -> Box<dyn Timed> {
    Box::new(timed)
}

/// How lines are timed.
struct Watch<'a> {
    threads: usize,
    rounds: usize,
    memory: &'a Memory,
}

impl Watch<'_> {
    /// `None` where the machine has no such limit.
    fn measure(&self, timed: &dyn Timed) -> Option<Line> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build().expect("a pool");
        pool.install(|| timed.measure(self))
    }

    /// Times `call`, of so much `work` (operations, or bytes), beside its limit.
    fn rounds(&self, limit: Limit, work: f64, mut call: impl FnMut()) -> Option<Line> {
        let calls = calls_per_round(&mut call);
        let mut found = Vec::new();
        for _ in 0..self.rounds {
            let limit = match limit {
                Limit::MultiplyAdds(level) => peaks::multiply_adds(self.threads, level)?,
                Limit::Bf16Dots => peaks::bf16_dots(self.threads)?,
                Limit::Read => self.memory.read(self.threads),
            };
            let seconds = time(calls, &mut call);
            found.push([seconds, work / seconds, limit, work / seconds / limit]);
        }
        let [seconds, rate, limit, share] = medians(&found);
        Some(Line { seconds, rate, limit, share })
    }
}

/// What was measured of one case.
struct Line {
    /// Median seconds of a call.
    seconds: f64,
    /// Median operations or bytes per second.
    rate: f64,
    /// Median limit of the same rounds.
    limit: f64,
    /// Median of the rounds' quotients.
    share: f64,
}

impl Line {
    fn print(&self, id: &str, threads: usize, json: bool) {
        let Line { seconds, rate, limit, share } = self;
        let (micros, rate, limit) = (seconds * 1e6, rate / 1e9, limit / 1e9);
        if json {
            let line = serde_json::json!({
                "id": id, "threads": threads, "median_us": micros, "giga_per_s": rate, "limit": limit, "share": share
            });
            println!("{line}");
        } else {
            println!("{id:<72} {threads:>7} {micros:>11.2} {rate:>9.2} {limit:>9.1} {:>5.0}%", share * 100.0);
        }
    }
}

impl Timed for Setup {
    fn id(&self) -> String {
        Setup::id(self)
    }
    fn floor(&self) -> Option<f64> {
        self.floor
    }
    fn measure(&self, watch: &Watch<'_>) -> Option<Line> {
        match self.dtype {
            DType::F16 => measure_as::<f16>(self, watch),
            DType::Bf16 => measure_as::<bf16>(self, watch),
            _ => measure_as::<f32>(self, watch),
        }
    }
}

fn measure_as<T: Element>(setup: &Setup, watch: &Watch<'_>) -> Option<Line> {
    let case = &setup.case;
    let tensors = common::Tensors::<T>::on_huge_pages(case);
    let rows = View::new(&tensors.k, case.kv_shape()).expect("k fits its shape");
    let panels = setup.panels.then(|| KeyPanels::from_rows(rows, case.kv_len).expect("memory"));
    let keys = panels.as_ref().map_or(Keys::Rows(rows), Keys::Panels);
    let mask = if case.causal { Mask::causal().window(setup.window, None) } else { Mask::NONE };
    let q = View::new(&tensors.q, case.q_shape()).expect("q fits its shape");
    let v = View::new(&tensors.v, case.kv_shape()).expect("v fits its shape");
    let inputs = Inputs::new(q, keys, v).mask(mask).q_start(QueryStart::BottomRight);

    let options =
        PlanOptions { level: Some(setup.level), bf16_dot: setup.bf16_dot, ..PlanOptions::default() };
    let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let mut out = vec![T::default(); case.q_shape().iter().product()];
    let mut call = |out: &mut [T]| {
        let out = ViewMut::new(out, case.q_shape()).expect("out fits its shape");
        plan.run(std::hint::black_box(&inputs), Outputs::new(out), &mut workspace).expect("a checked call");
    };
    call(&mut out);
    check(case, &inputs, &out, setup.bf16_dot);
    watch.rounds(setup.limit, setup.work(), || call(&mut out))
}

/// Wrong results are not worth timing. Large cases are left to the tests: the reference takes minutes.
fn check<T: Element>(case: &Case, inputs: &Inputs<'_, T, T>, out: &[T], bf16_dot: bool) {
    if case.operations() > 1 << 27 {
        return;
    }
    let answer = reference::attention(inputs).expect("the reference");
    let error = |(got, want): (&T, &f64)| (f64::from(got.to_f32()) - want).abs();
    let worst = out.iter().zip(&answer.out).map(error).fold(0.0, f64::max);
    let unit = if bf16_dot { DType::Bf16.unit_roundoff() } else { T::DTYPE.unit_roundoff() };
    let tolerance = 1e-5 + 4.0 * unit;
    assert!(worst <= tolerance, "{case}: off by {worst}, more than {tolerance}");
}
