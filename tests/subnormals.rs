//! Numbers below the smallest normal one take at most a quarter more time than others: operands, products, weights and sums of
//! them. Prints the table (`cargo test --test subnormals -- --nocapture`).
//!
//! That holds where multiply-adds are fused. The portable level rounds each product by itself, and where products are
//! subnormal some CPUs take longer for it: it is in the table, but not held to the limit.
#![allow(missing_docs, reason = "a test")]

mod common;

use common::cases::{Rng, levels};
use half::{bf16, f16};
use lucid_attention::{Element, Inputs, Level, Outputs, Plan, PlanOptions, Problem, View, ViewMut};
use std::hint::black_box;
use std::time::Instant;

/// The most that subnormal numbers may take, relative to normal ones, where multiply-adds are fused.
const MOST: f64 = 1.25;
const HEADS: usize = 2;
const DIM: usize = 64;

/// What is subnormal.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Nothing,
    Queries,
    Keys,
    Values,
    /// Queries, keys and values, and therefore all products.
    Everything,
    /// Half of all weights: their logits are some 90 below the others'.
    Weights,
}

const KINDS: [Kind; 5] = [Kind::Queries, Kind::Keys, Kind::Values, Kind::Everything, Kind::Weights];

/// Queries, keys and values of one kind.
struct Operands<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
}

impl<T: Element> Operands<T> {
    fn new(kind: Kind, [q_len, kv_len]: [usize; 2]) -> Self {
        let mut rng = Rng::new(1);
        let smallest = if T::from_f32(1e-39).to_f32() == 0.0 { 3e-5 } else { 1e-39 };
        let mut of = |tokens: usize, subnormal: bool| -> Vec<T> {
            let factor = if subnormal { smallest } else { 1.0 };
            (0..HEADS * tokens * DIM).map(|_| T::from_f32(rng.uniform() * factor)).collect()
        };
        let everything = matches!(kind, Kind::Everything);
        let mut q = of(q_len, everything || matches!(kind, Kind::Queries));
        let mut k = of(kv_len, everything || matches!(kind, Kind::Keys));
        let v = of(kv_len, everything || matches!(kind, Kind::Values));
        if let Kind::Weights = kind {
            // 64 * 11.75 / 8 = 94 and 0, in turn: exp(-94) is subnormal.
            q.fill(T::from_f32(1.0));
            for (token, row) in k.chunks_exact_mut(DIM).enumerate() {
                row.fill(T::from_f32(if token % 2 == 0 { -11.75 } else { 0.0 }));
            }
        }
        Self { q, k, v }
    }
}

/// The least time of a call for each kind, normal numbers first. Where it matters rounds go on until all are in proportion, up
/// to a point: something else may run beside them.
fn times<T: Element>(level: Level, lengths: [usize; 2]) -> Vec<f64> {
    let kinds = || std::iter::once(Kind::Nothing).chain(KINDS);
    let all: Vec<Operands<T>> = kinds().map(|kind| Operands::new(kind, lengths)).collect();
    let [q_shape, kv_shape] = lengths.map(|tokens| [1, HEADS, tokens, DIM]);
    let options = PlanOptions { level: Some(level), max_threads: Some(1), ..PlanOptions::default() };
    let plan =
        Plan::with_options(&Problem::new(HEADS, DIM, lengths[0], lengths[1]), &options).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let mut out = vec![T::default(); HEADS * lengths[0] * DIM];
    let mut least = vec![f64::INFINITY; all.len()];
    let [enough, most] = if level.is_fused() { [20, 400] } else { [20, 21] };
    for round in 0..most {
        for (least, operands) in least.iter_mut().zip(&all) {
            let view = |data, shape| View::new(data, shape).expect("sized to its shape");
            let (q, kv) = (view(&operands.q[..], q_shape), |data| view(data, kv_shape));
            let inputs = Inputs::new(q, kv(&operands.k[..]), kv(&operands.v[..]));
            let target = ViewMut::new(&mut out, q_shape).expect("sized to its shape");
            let start = Instant::now();
            plan.run(black_box(&inputs), Outputs::new(target), &mut workspace).expect("operands that fit");
            *least = least.min(start.elapsed().as_secs_f64());
        }
        if round >= enough && least.iter().all(|&time| time <= MOST * least[0]) {
            break;
        }
    }
    least
}

fn stored_as<T: Element>(slow: &mut Vec<String>) {
    for (name, lengths) in [("prefill", [48, 256]), ("decode", [1, 2048])] {
        for level in levels() {
            let times = times::<T>(level, lengths);
            for (kind, time) in KINDS.iter().zip(&times[1..]) {
                let ratio = time / times[0];
                let line = format!("| {name} | {} | {level} | {kind:?} | {ratio:.2} |", T::DTYPE);
                println!("{line}");
                if level.is_fused() && ratio > MOST {
                    slow.push(line);
                }
            }
        }
    }
}

/// One test: others beside it would take its time.
#[test]
fn take_no_longer() {
    println!("| call | storage | level | subnormal | time / that of normal numbers |\n|---|---|---|---|---|");
    let mut slow = Vec::new();
    stored_as::<f32>(&mut slow);
    stored_as::<f16>(&mut slow);
    stored_as::<bf16>(&mut slow);
    assert!(slow.is_empty(), "more than {MOST} times as long:\n{}", slow.join("\n"));
}
