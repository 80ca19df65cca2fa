//! Linear attention beside this crate's exact kernel: `cargo bench --bench linear`.
//!
//! ```text
//! cargo bench --bench linear -- [--threads 1,2] [--rounds 7] [--quick] [part of an id]...
//! ```
//!
//! Each round times the dense call and then the linear one of the same operands: 8 heads of 64 dimensions in f32, queries
//! and keys of standard deviation 1/4. `ideal` is the quotient of their multiply-adds, `share` the median over the rounds
//! of what is reached of it. `error` is the relative error of the output against the dense one (Frobenius), `uniform` that of
//! the plain mean of the values a row sees, which knows neither queries nor keys: a map whose error is no smaller computes
//! nothing of use, however fast. Then, for each map, the length from which it is faster, between measured ones on a
//! logarithmic scale; and what one token costs after so many, from a state and from a cache. `--quick` stops at 1024
//! tokens.

#[path = "../common/mod.rs"]
mod common;

mod decode;

use common::options::Options;
use common::rounds::{calls_per_round, medians, time};
use common::{Case, Tensors};
use lucid_attention::linear::{FeatureMap, LinearInputs, LinearPlan, Norms, Projection};
use lucid_attention::{Inputs, Mask, Outputs, Plan, Problem, View, ViewMut};

pub(crate) const HEADS: usize = 8;
pub(crate) const DIM: usize = 64;

/// A map to time.
#[derive(Clone, Copy)]
pub(crate) enum Map {
    /// FAVOR+ with so many features.
    Positive(usize),
    Elu,
}

impl Map {
    const ALL: [Map; 4] = [Map::Positive(64), Map::Positive(128), Map::Positive(256), Map::Elu];

    pub(crate) fn name(self) -> String {
        match self {
            Map::Positive(features) => format!("favor{features}"),
            Map::Elu => "elu".to_owned(),
        }
    }

    pub(crate) fn make(self) -> FeatureMap {
        match self {
            Map::Positive(features) => {
                FeatureMap::Positive(Projection::orthogonal(features, DIM, Norms::Chi, 1).expect("memory"))
            }
            Map::Elu => FeatureMap::Elu,
        }
    }

    /// The dense call's multiply-adds over the linear one's, in blocks of 64 if causal.
    fn ideal(self, len: usize, causal: bool) -> f64 {
        let (len, dim) = (len as f64, DIM as f64);
        let (features, passes) = match self {
            // Two projections, the sum, the product with it.
            Map::Positive(features) => (features as f64, 4.0),
            Map::Elu => (dim, 2.0),
        };
        let linear = passes * features * dim;
        if causal { len * dim / (linear + 32.0 * (features + dim)) } else { 2.0 * len * dim / linear }
    }
}

fn main() -> Result<(), lexopt::Error> {
    let options = Options::parse(&["quick"])?;
    let lengths: &[usize] =
        if options.has("quick") { &[256, 512, 1024] } else { &[256, 512, 1024, 2048, 4096, 8192, 16384] };
    let mut crossings = Vec::new();
    println!(
        "{:<24} {:>7} {:>11} {:>11} {:>7} {:>7} {:>6} {:>7} {:>7}",
        "case", "threads", "dense us", "linear us", "ratio", "ideal", "share", "error", "uniform"
    );
    for causal in [false, true] {
        for map in Map::ALL {
            for &threads in &options.threads {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let mut ratios = Vec::new();
                for &len in lengths {
                    let id = format!("{}_{len}{}", map.name(), if causal { "_causal" } else { "" });
                    if options.wants(&id) {
                        let line = pool.install(|| compare(map, len, causal, options.rounds));
                        line.print(&id, threads, map.ideal(len, causal));
                        ratios.push((len as f64, line.ratio));
                    }
                }
                crossings.push((map, causal, threads, crossing(&ratios)));
            }
        }
    }
    for (map, causal, threads, crossing) in crossings {
        if let Some(len) = crossing {
            let form = if causal { "causal" } else { "all keys" };
            println!("{}, {form}, {threads} threads: faster from {len:.0} tokens on", map.name());
        }
    }
    if options.wants("decode") {
        decode::print(
            &[Map::Positive(256), Map::Elu],
            if options.has("quick") { 4096 } else { 65536 },
            options.rounds,
        );
    }
    Ok(())
}

/// Medians of a case, and how wrong it is.
struct Line {
    dense: f64,
    linear: f64,
    ratio: f64,
    error: f64,
    uniform: f64,
}

impl Line {
    fn print(&self, id: &str, threads: usize, ideal: f64) {
        let Self { dense, linear, ratio, error, uniform } = self;
        let (dense, linear, share) = (dense * 1e6, linear * 1e6, ratio / ideal * 100.0);
        println!(
            "{id:<24} {threads:>7} {dense:>11.1} {linear:>11.1} {ratio:>7.2} {ideal:>7.2} {share:>5.0}% {error:>7.3} {uniform:>7.3}"
        );
    }
}

fn compare(map: Map, len: usize, causal: bool, rounds: usize) -> Line {
    let case = Case { batch: 1, q_heads: HEADS, kv_heads: HEADS, q_len: len, kv_len: len, dim: DIM, causal };
    let mut tensors = Tensors::<f32>::on_huge_pages(&case);
    tensors.q.iter_mut().chain(&mut tensors.k).for_each(|x| *x *= 0.25);
    let shape = case.q_shape();
    let view = |data| View::new(data, shape).expect("operands fit their shape");
    let inputs = Inputs::new(view(&tensors.q), view(&tensors.k), view(&tensors.v));
    let inputs = inputs.mask(if causal { Mask::causal() } else { Mask::NONE });
    let problem = Problem::of(&inputs);
    let plan = Plan::new(&problem).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let [mut exact, mut out] = [0.0, 0.0].map(|zero: f32| vec![zero; shape.iter().product()]);
    let mut dense = || {
        let out = ViewMut::new(&mut exact, shape).expect("out fits its shape");
        plan.run(std::hint::black_box(&inputs), Outputs::new(out), &mut workspace).expect("a checked call");
    };

    let plan = LinearPlan::new(&problem, &map.make()).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let inputs = LinearInputs::new(view(&tensors.q), view(&tensors.k), view(&tensors.v));
    let inputs = if causal { inputs.causal() } else { inputs };
    let mut linear = || {
        let out = ViewMut::new(&mut out, shape).expect("out fits its shape");
        plan.run(std::hint::black_box(&inputs), out, &mut workspace).expect("a checked call");
    };

    let calls = [calls_per_round(&mut dense), calls_per_round(&mut linear)];
    let mut found = Vec::new();
    for _ in 0..rounds {
        let times = [time(calls[0], &mut dense), time(calls[1], &mut linear)];
        found.push([times[0], times[1], times[0] / times[1]]);
    }
    let [dense, linear, ratio] = medians(&found);
    let mean = means(&tensors.v, len, causal);
    Line { dense, linear, ratio, error: distance(&out, &exact), uniform: distance(&mean, &exact) }
}

/// The mean of the values that each row sees.
fn means(values: &[f32], len: usize, causal: bool) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(len * DIM) {
        let mut sums = [0.0f64; DIM];
        let mut rows = Vec::with_capacity(head.len());
        for (index, row) in head.chunks_exact(DIM).enumerate() {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            rows.extend(sums.map(|sum| (sum / (index + 1) as f64) as f32));
        }
        match causal {
            true => out.append(&mut rows),
            false => (0..len).for_each(|_| out.extend_from_slice(&rows[(len - 1) * DIM..])),
        }
    }
    out
}

/// `|a - b| / |b|`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (off / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

/// Where the ratio first reaches 1, if it does between two lengths.
fn crossing(ratios: &[(f64, f64)]) -> Option<f64> {
    let pair = ratios.windows(2).find(|pair| pair[0].1 < 1.0 && pair[1].1 >= 1.0)?;
    let [(short, below), (long, above)] = [pair[0], pair[1]];
    Some(short * (long / short).powf(-below.ln() / (above / below).ln()))
}
