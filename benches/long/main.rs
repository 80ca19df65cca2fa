//! Time and memory of a call as sequences grow, of all kinds of attention there are: `cargo bench --bench long`.
//!
//! ```text
//! cargo bench --bench long -- [--svg FILE] [--lengths 256,512,...] [--threads 2] [--rounds 7] [part of a name]...
//! ```
//!
//! 8 heads of 64 dimensions in f32, queries and keys of standard deviation 1/4, as for `--bench linear`; each round times the
//! dense call without a mask, then every other one, and `ratio` is the median of the rounds' quotients. Rounds become fewer
//! from 4096 tokens on, 3 at the least.
//!
//! Memory is what the process's allocator was asked for, huge pages and all. `operands` are q, k, v and the output; `plan` is
//! what is made once (layouts of blocks, directions, rotations); `extra` is the most that scratch and one call need beyond
//! these two. LSH attention returns its output and LSE; they do not count either.
//!
//! `--svg` draws both against the number of tokens.

#[path = "../common/mod.rs"]
mod common;

mod machine;
mod memory;
mod methods;
mod plot;

use common::options::{Known, Options, numbers};
use common::rounds::{calls_per_round, medians, time};
use common::{Case, Tensors};
use methods::Method;
use plot::Curve;
use std::path::Path;

const HEADS: usize = 8;
const DIM: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let known = Known { flags: &[], values: &["svg", "lengths"], threads: &[2] };
    let options = Options::parse_known(&known)?;
    let [threads] = options.threads[..] else { return Err("--threads: expected one number".into()) };
    let lengths = match options.value("lengths") {
        Some(list) => numbers("lengths", list)?,
        None => (8..=14).map(|power| 1 << power).collect(),
    };
    let methods: Vec<Method> = Method::ALL
        .into_iter()
        .enumerate()
        .filter(|&(index, method)| index == 0 || options.wants(method.name()))
        .map(|(_, method)| method)
        .collect();
    let mut curves: Vec<Curve> = methods.iter().map(|method| Curve::new(method.name())).collect();
    let mut operands = Vec::new();

    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    println!("{}", machine::caption(threads)?);
    println!(
        "{:<32} {:>8} {:>12} {:>13} {:>10} {:>10}",
        "tokens, kind", "ratio", "time ms", "operands MiB", "plan MiB", "extra MiB"
    );
    for &len in &lengths {
        let rounds = (options.rounds * 4096 / len.max(1)).clamp(3, options.rounds.max(3));
        let lines = pool.install(|| measure(&methods, len, rounds));
        let of_operands = mebibytes(4 * HEADS * len * DIM * size_of::<f32>());
        operands.push((len as f64, of_operands));
        for ((method, curve), line) in methods.iter().zip(&mut curves).zip(lines) {
            let Line { ratio, seconds, plan, extra } = line;
            let (milliseconds, plan, extra) = (seconds * 1e3, mebibytes(plan), mebibytes(extra));
            let id = format!("{len} {}", method.name());
            println!(
                "{id:<32} {ratio:>8.2} {milliseconds:>12.3} {of_operands:>13.2} {plan:>10.3} {extra:>10.3}"
            );
            curve.time.push((len as f64, milliseconds));
            curve.memory.push((len as f64, extra));
        }
    }
    if let Some(file) = options.value("svg") {
        plot::draw(Path::new(file), &curves, &operands, &machine::caption(threads)?)?;
    }
    Ok(())
}

fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Medians of a kind, and its memory in bytes.
struct Line {
    ratio: f64,
    seconds: f64,
    plan: usize,
    extra: usize,
}

fn measure(methods: &[Method], len: usize, rounds: usize) -> Vec<Line> {
    let case =
        Case { batch: 1, q_heads: HEADS, kv_heads: HEADS, q_len: len, kv_len: len, dim: DIM, causal: false };
    let mut tensors = Tensors::<f32>::on_huge_pages(&case);
    tensors.q.iter_mut().chain(&mut tensors.k).for_each(|x| *x *= 0.25);
    let mut out = vec![0.0f32; HEADS * len * DIM];

    let mut calls = Vec::new();
    for method in methods {
        let before = memory::held();
        let (peak, mut prepared) = memory::peak(|| {
            let mut prepared = method.prepare(&tensors, len);
            (prepared.call)(&mut out);
            prepared
        });
        let extra = (peak - before).saturating_sub(prepared.plan + prepared.returned);
        let count = calls_per_round(|| (prepared.call)(&mut out));
        calls.push((prepared, count, extra));
    }
    let mut found = vec![Vec::new(); calls.len()];
    for _ in 0..rounds {
        let mut dense = 0.0;
        for (index, (prepared, count, _)) in calls.iter_mut().enumerate() {
            let seconds = time(*count, || (prepared.call)(&mut out));
            dense = if index == 0 { seconds } else { dense };
            found[index].push([dense / seconds, seconds]);
        }
    }
    let lines = calls.iter().zip(&found).map(|((prepared, _, extra), rounds)| {
        let [ratio, seconds] = medians(rounds);
        Line { ratio, seconds, plan: prepared.plan, extra: *extra }
    });
    lines.collect()
}
