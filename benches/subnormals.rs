//! What subnormal numbers cost, as operands, products, weights and sums of them: `cargo bench --bench subnormals`.
//!
//! ```text
//! cargo bench --bench subnormals -- [--rounds 7] [--check] [part of an id]...
//! ```
//!
//! Each round times a call of normal numbers and then the same call of subnormal ones; what is printed is the median of the
//! quotients, on one thread. Where multiply-adds are fused it is to be at most 1.25, and `--check` fails where four tries say more.
//! The portable level rounds each product by itself, and where products are subnormal some CPUs take longer for it.

#[path = "common/mod.rs"]
mod common;

use common::Uniform;
use common::options::Options;
use common::rounds::{calls_per_round, medians, time};
use lucid_attention::{Element, Inputs, Level, Outputs, Plan, PlanOptions, Problem, View, ViewMut};
use std::hint::black_box;
use std::process::ExitCode;

/// The most that subnormal numbers may take, relative to normal ones, where multiply-adds are fused.
const MOST: f64 = 1.25;
/// Measurements before that is believed.
const TRIES: usize = 4;
const HEADS: usize = 2;
const DIM: usize = 64;

/// What is subnormal.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Nothing,
    Queries,
    Keys,
    Values,
    /// Queries, keys and values.
    Everything,
    /// Products of queries and keys, of numbers that are normal; in f16 there are none so small.
    Products,
    /// Half of all weights: their logits are 94 below the others'.
    Weights,
}

const KINDS: [Kind; 6] =
    [Kind::Queries, Kind::Keys, Kind::Values, Kind::Everything, Kind::Products, Kind::Weights];
const CALLS: [(&str, [usize; 2]); 2] = [("prefill", [96, 512]), ("decode", [1, 4096])];

/// Queries, keys and values, `[1, HEADS, tokens, DIM]`.
fn operands<T: Element>(kind: Kind, [q_len, kv_len]: [usize; 2]) -> [Vec<T>; 3] {
    // Those of f16 are normal numbers once they are loaded.
    let is_f16 = T::from_f32(1e-39).to_f32() == 0.0;
    let smallest = if is_f16 { 3e-5 } else { 1e-39 };
    let mut uniform = Uniform::new();
    let mut of = |tokens: usize, own: Kind| -> Vec<T> {
        let factor = match kind {
            Kind::Everything => smallest,
            Kind::Products if own != Kind::Values && !is_f16 => 1e-20,
            kind if kind == own => smallest,
            _ => 1.0,
        };
        let values: Vec<f32> = uniform.values(HEADS * tokens * DIM);
        values.into_iter().map(|x| T::from_f32(x * factor)).collect()
    };
    let [mut q, mut k, v] = [of(q_len, Kind::Queries), of(kv_len, Kind::Keys), of(kv_len, Kind::Values)];
    if kind == Kind::Weights {
        // 64 * 11.75 / 8 = 94 and 0, in turn: exp(-94) is subnormal.
        q.fill(T::from_f32(1.0));
        for (token, row) in k.chunks_exact_mut(DIM).enumerate() {
            row.fill(T::from_f32(if token % 2 == 0 { -11.75 } else { 0.0 }));
        }
    }
    [q, k, v]
}

/// How much longer a call takes.
fn ratio<T: Element>(kind: Kind, lengths: [usize; 2], level: Level, rounds: usize) -> f64 {
    let [q_len, kv_len] = lengths;
    let options = PlanOptions { level: Some(level), max_threads: Some(1), ..PlanOptions::default() };
    let plan = Plan::with_options(&Problem::new(HEADS, DIM, q_len, kv_len), &options).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let mut out = vec![T::default(); HEADS * q_len * DIM];
    let all = [Kind::Nothing, kind].map(|kind| operands::<T>(kind, lengths));
    let mut call = |[q, k, v]: &[Vec<T>; 3]| {
        let view = |data, tokens| View::new(data, [1, HEADS, tokens, DIM]).expect("sized to its shape");
        let inputs = Inputs::new(view(q, q_len), view(k, kv_len), view(v, kv_len));
        let out = ViewMut::new(&mut out, [1, HEADS, q_len, DIM]).expect("sized to its shape");
        plan.run(black_box(&inputs), Outputs::new(out), &mut workspace).expect("operands that fit");
    };
    let calls = calls_per_round(|| call(&all[0]));
    let round = || {
        let [normal, subnormal] = all.each_ref().map(|operands| time(calls, || call(operands)));
        [subnormal / normal]
    };
    let [ratio] = medians(&std::iter::repeat_with(round).take(rounds).collect::<Vec<_>>());
    ratio
}

/// Prints a line for each kind; returns how many are beyond the limit.
fn stored_as<T: Element>(options: &Options) -> usize {
    let mut slow = 0;
    for (name, lengths) in CALLS {
        for level in Level::available() {
            for kind in KINDS {
                let id = format!("{name}/{}/{level}/{kind:?}", T::DTYPE);
                if !options.wants(&id) {
                    continue;
                }
                let beyond = |ratio: f64| level.is_fused() && ratio > MOST;
                let mut tries =
                    std::iter::repeat_with(|| ratio::<T>(kind, lengths, level, options.rounds)).take(TRIES);
                // One that is within counts: what else the machine did made others slower.
                let least = tries.try_fold(f64::INFINITY, |least, ratio| {
                    let least = least.min(ratio);
                    if beyond(least) { Ok(least) } else { Err(least) }
                });
                let (Ok(ratio) | Err(ratio)) = least;
                println!("{id:<32} {ratio:>6.2}");
                slow += usize::from(beyond(ratio));
            }
        }
    }
    slow
}

fn main() -> Result<ExitCode, lexopt::Error> {
    let options = Options::parse(&["check"])?;
    println!("{:<32} {:>6}", "call", "times as long as of normal numbers");
    let slow =
        stored_as::<f32>(&options) + stored_as::<half::f16>(&options) + stored_as::<half::bf16>(&options);
    println!("{slow} beyond {MOST}, of those whose multiply-adds are fused");
    Ok(if options.has("check") && slow > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
