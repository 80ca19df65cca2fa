//! Errors of every way through the kernels, at every level, as shares of the certified bound.
//!
//! ```sh
//! cargo run --release --example certify [-- SEEDS]
//! ```
//!
//! prints a table: outputs checked, the largest error over its certified bound, over what independent roundings would
//! give, and that of the LSE. It ends with an error if a bound is broken.

use half::{bf16, f16};
use lucid_attention::certify::{self, Bound, Certificate};
use lucid_attention::{
    Dropout, Element, Inputs, KeyPanels, Keys, Level, Mask, Outputs, Plan, PlanOptions, Problem, QueryStart,
    View, ViewMut,
};
use std::error::Error;

/// A way through the kernels, and a call that takes it.
struct Path {
    name: &'static str,
    /// `[query heads, KV heads, queries, keys]`
    shape: [usize; 4],
    panels: bool,
    /// Whether softcap, ALiBi and a sink shape the scores.
    shaped: bool,
    dropout: bool,
    threads: usize,
}

const PLAIN: Path =
    Path { name: "", shape: [4, 2, 60, 300], panels: false, shaped: false, dropout: false, threads: 1 };

const PATHS: [Path; 6] = [
    Path { name: "prefill, causal", ..PLAIN },
    Path { name: "prefill, softcap, ALiBi, sink", shaped: true, ..PLAIN },
    Path { name: "prefill, dropout", dropout: true, ..PLAIN },
    Path { name: "decode from rows", shape: [4, 2, 1, 3000], ..PLAIN },
    Path { name: "decode from panels", shape: [4, 2, 1, 3000], panels: true, ..PLAIN },
    Path {
        name: "decode, keys split over threads",
        shape: [2, 1, 1, 20_000],
        panels: true,
        threads: 4,
        ..PLAIN
    },
];

const DIMS: [usize; 2] = [64, 48];

fn main() -> Result<(), Box<dyn Error>> {
    let seeds = std::env::args().nth(1).map_or(Ok(3), |seeds| seeds.parse())?;
    println!("| kernels | level | storage | outputs | error / bound | / statistical bound | LSE / bound |");
    println!("|---|---|---|---|---|---|---|");
    let mut outputs = 0;
    for path in &PATHS {
        for level in Level::available() {
            for bf16_dot in [false, true] {
                if bf16_dot && !level.has_bf16_dot() {
                    continue;
                }
                outputs += table_row::<f32>(path, level, bf16_dot, seeds)?;
                outputs += table_row::<f16>(path, level, bf16_dot, seeds)?;
                outputs += table_row::<bf16>(path, level, bf16_dot, seeds)?;
            }
        }
    }
    println!("\n{outputs} outputs, all within their bounds");
    Ok(())
}

/// Prints one row; returns how many outputs it stands for.
fn table_row<T: Element>(
    path: &Path,
    level: Level,
    bf16_dot: bool,
    seeds: u64,
) -> Result<usize, Box<dyn Error>> {
    let mut found = Certificate::default();
    for seed in 0..seeds {
        found.merge(&certified::<T>(path, level, bf16_dot, seed)?);
    }
    found.verdict()?;
    let [worst, statistical, lse] =
        [found.worst, found.worst_statistical, found.worst_lse].map(|found| found.ratio);
    let tier = if bf16_dot { " (bf16 dots)" } else { "" };
    println!(
        "| {} | {level}{tier} | {} | {} | {worst:.3} | {statistical:.2} | {lse:.3} |",
        path.name,
        T::DTYPE,
        found.elements
    );
    Ok(found.elements)
}

/// Makes the call and checks what comes.
fn certified<T: Element>(
    path: &Path,
    level: Level,
    bf16_dot: bool,
    seed: u64,
) -> Result<Certificate, Box<dyn Error>> {
    let ([q_heads, kv_heads, q_len, kv_len], [head_dim, v_dim]) = (path.shape, DIMS);
    let q: Vec<T> = numbers(q_heads * q_len * head_dim, 3 * seed);
    let k: Vec<T> = numbers(kv_heads * kv_len * head_dim, 3 * seed + 1);
    let v: Vec<T> = numbers(kv_heads * kv_len * v_dim, 3 * seed + 2);
    let rows = View::new(&k, [1, kv_heads, kv_len, head_dim])?;
    let panels = path.panels.then(|| KeyPanels::from_rows(rows, kv_len)).transpose()?;
    let keys = panels.as_ref().map_or(Keys::Rows(rows), Keys::Panels);
    let (slopes, sinks) = (vec![0.01; q_heads], vec![0.5; q_heads]);

    let values = View::new(&v, [1, kv_heads, kv_len, v_dim])?;
    let mut inputs = Inputs::new(View::new(&q, [1, q_heads, q_len, head_dim])?, keys, values);
    inputs = inputs.mask(Mask::causal()).q_start(QueryStart::BottomRight);
    if path.shaped {
        inputs = inputs.softcap(3.0).alibi(&slopes).sinks(&sinks);
    }
    if path.dropout {
        inputs = inputs.dropout(Dropout { rate: 0.3, seed });
    }

    let options = PlanOptions {
        level: Some(level),
        max_threads: Some(path.threads),
        bf16_dot,
        ..PlanOptions::default()
    };
    let plan = Plan::with_options(&Problem::of(&inputs), &options)?;
    let shape = inputs.output_shape();
    let (mut out, mut lse) = (vec![T::default(); q_heads * q_len * v_dim], vec![0.0; q_heads * q_len]);
    let outputs = Outputs::new(ViewMut::new(&mut out, shape)?).lse(&mut lse);
    plan.run(&inputs, outputs, &mut plan.workspace()?)?;
    Ok(certify::check(&inputs, &View::new(&out, shape)?, Some(&lse), &Bound::of(&plan))?)
}

/// Numbers that are close to normal.
fn numbers<T: Element>(count: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| T::from_f32(uniform() + uniform() + uniform())).collect()
}
