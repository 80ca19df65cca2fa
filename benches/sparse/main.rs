//! What skipping blocks gains, of what it could: `cargo bench --bench sparse`.
//!
//! ```text
//! cargo bench --bench sparse -- [--threads 1,2] [--rounds 7] [--quick] [part of an id]...
//! ```
//!
//! Each round times the dense call and then the one with blocks, of the same operands: 8 heads of 64 dimensions in f32, blocks
//! of 64. The efficiency is the median over the rounds of `T_dense / T_blocks * density`, 100 % where time is what blocks are
//! visited and nothing else. Dense calls are causal where the layout is, and density then is of the blocks that causality
//! leaves. Layouts of everything are held against the dense call they stand for. Before it is timed, a call's bits are
//! compared with those of the dense call under the same pairs as a boolean mask, up to 1024 tokens.
//!
//! Then LSH attention, hashing and all, in chunks of 64 and two rounds, beside a dense causal call of the same tokens, and what
//! hashing takes of it; and what it takes to make layouts, as a share of the dense call. `--quick` stops at 1024 tokens.

#[path = "../common/mod.rs"]
mod common;

use common::options::Options;
use common::rounds::{calls_per_round, medians, time};
use common::{Case, Tensors};
use lucid_attention::sparse::{BigBird, BlockGrid, BlockLayout, BlockMask, Keep, Lsh, Rotations, Selection};
use lucid_attention::{AttentionError, Inputs, Mask, Outputs, Plan, Problem, View, ViewMut};

const BLOCK: usize = 64;
const HEADS: usize = 8;
const DIM: usize = 64;

fn main() -> Result<(), lexopt::Error> {
    let options = Options::parse(&["quick"])?;
    let lengths: &[usize] = if options.has("quick") { &[1024] } else { &[1024, 2048, 4096, 8192] };
    println!(
        "{:<32} {:>7} {:>12} {:>12} {:>8} {:>10}",
        "layout", "threads", "dense us", "blocks us", "density", "efficiency"
    );
    for &len in lengths {
        for (name, make) in LAYOUTS {
            let id = format!("{name}_{len}");
            if !options.wants(&id) {
                continue;
            }
            for &threads in &options.threads {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let layout = make(BlockGrid::square(len, BLOCK)).expect("a layout");
                let [dense, blocks, ratio] = pool.install(|| compare(&layout, name, options.rounds));
                let causal = name.starts_with("causal");
                let density = if causal { layout.causal_density() } else { layout.density() };
                let efficiency = ratio * density * 100.0;
                let (dense, blocks) = (dense * 1e6, blocks * 1e6);
                println!(
                    "{id:<32} {threads:>7} {dense:>12.1} {blocks:>12.1} {density:>8.3} {efficiency:>9.1}%"
                );
            }
        }
    }
    for &len in lengths {
        if options.wants(&format!("lsh_{len}")) {
            options.threads.iter().for_each(|&threads| lsh(len, threads, options.rounds));
        }
    }
    for &len in lengths {
        if options.wants("build") {
            build(len, options.rounds);
        }
    }
    Ok(())
}

type Make = fn(BlockGrid) -> Result<BlockLayout, AttentionError>;

/// Layouts by name; those named causal stand beside a causal mask.
const LAYOUTS: [(&str, Make); 8] = [
    ("full", |grid| BlockLayout::from_blocks(grid, |_, _| true)),
    ("causal_full", |grid| BlockLayout::from_mask(grid, &Mask::causal())),
    ("causal_window_256", |grid| BlockLayout::sliding_window(grid, Some(256), Some(0))),
    ("causal_window_512", |grid| BlockLayout::sliding_window(grid, Some(512), Some(0))),
    ("bigbird", |grid| BlockLayout::bigbird(grid, &BigBird::published(1))),
    // Four columns of each row: side by side, and anywhere.
    ("columns_contiguous", |grid| {
        let first = |row: usize| row.min(grid.columns().saturating_sub(4));
        BlockLayout::from_blocks(grid, |row, column| (first(row)..first(row) + 4).contains(&column))
    }),
    ("columns_random", |grid| {
        BlockLayout::bigbird(grid, &BigBird { window: 0, global: 0, random: 3, seed: 1 })
    }),
    ("causal_sink_and_recent", |grid| BlockLayout::sink_and_recent(grid, 64, 256)),
];

/// Median seconds of the dense call, of that with blocks, and their median quotient.
fn compare(layout: &BlockLayout, name: &str, rounds: usize) -> [f64; 3] {
    let grid = layout.grid();
    let causal = name.starts_with("causal");
    let case = Case {
        batch: 1,
        q_heads: HEADS,
        kv_heads: HEADS,
        q_len: grid.q_len,
        kv_len: grid.kv_len,
        dim: DIM,
        causal,
    };
    let tensors = Tensors::<f32>::on_huge_pages(&case);
    let view = |data| View::new(data, case.q_shape()).expect("operands fit their shape");
    let inputs = Inputs::new(view(&tensors.q), view(&tensors.k), view(&tensors.v));
    let blocks = BlockMask::from(layout.clone());
    let mask = if causal { Mask::causal() } else { Mask::NONE };
    let (dense, sparse) = (inputs.mask(mask), inputs.mask(mask.blocks(&blocks)));

    let plan = Plan::new(&Problem::of(&inputs)).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let mut out = vec![0.0f32; case.q_shape().iter().product()];
    let mut call = |inputs: &Inputs<'_, f32, f32>, out: &mut [f32]| {
        let out = ViewMut::new(out, case.q_shape()).expect("out fits its shape");
        plan.run(std::hint::black_box(inputs), Outputs::new(out), &mut workspace).expect("a checked call");
    };
    call(&sparse, &mut out);
    if grid.q_len <= 1024 {
        let pairs = (0..grid.q_len).flat_map(|query| (0..grid.kv_len).map(move |key| (query, key)));
        let allowed: Vec<bool> = pairs.map(|(query, key)| layout.allows(query as i64, key)).collect();
        let allowed = View::new(&allowed, [1, 1, grid.q_len, grid.kv_len]).expect("a mask");
        let mut expected = vec![0.0; out.len()];
        call(&inputs.mask(mask.allowed(allowed)), &mut expected);
        let same = out.iter().zip(&expected).all(|(got, expected)| got.to_bits() == expected.to_bits());
        assert!(same, "{name}: blocks change bits");
    }
    let calls = [&dense, &sparse].map(|inputs| calls_per_round(|| call(inputs, &mut out)));
    let round = || {
        let dense = time(calls[0], || call(&dense, &mut out));
        let sparse = time(calls[1], || call(&sparse, &mut out));
        [dense, sparse, dense / sparse]
    };
    medians(&std::iter::repeat_with(round).take(rounds).collect::<Vec<_>>())
}

/// Prints how LSH attention does beside a dense causal call.
fn lsh(len: usize, threads: usize, rounds: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let case =
        Case { batch: 1, q_heads: HEADS, kv_heads: HEADS, q_len: len, kv_len: len, dim: DIM, causal: true };
    let tensors = Tensors::<f32>::on_huge_pages(&case);
    let view = |data| View::new(data, case.q_shape()).expect("operands fit their shape");
    let (qk, v) = (view(&tensors.q), view(&tensors.v));
    let lsh = Lsh { rounds: 2, buckets: (len / BLOCK).next_multiple_of(2), ..Lsh::new(BLOCK) };
    let rotations = Rotations::seeded(1, 1, DIM, lsh.rounds, lsh.buckets).expect("rotations");
    let inputs = Inputs::new(qk, qk, v).mask(Mask::causal());
    let plan = Plan::new(&Problem::of(&inputs)).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let mut out = vec![0.0f32; case.q_shape().iter().product()];
    let [dense, all, hashing] = pool.install(|| {
        let mut dense = || {
            let out = ViewMut::new(&mut out, case.q_shape()).expect("out fits its shape");
            plan.run(std::hint::black_box(&inputs), Outputs::new(out), &mut workspace)
                .expect("a checked call");
        };
        let buckets = || lsh.buckets(&rotations, std::hint::black_box(qk)).expect("buckets");
        let all = || drop(lsh.attention(qk, v, &buckets(), Mask::causal()).expect("a checked call"));
        let calls = [calls_per_round(&mut dense), calls_per_round(all)];
        let round = || [time(calls[0], &mut dense), time(calls[1], all), time(calls[1], || drop(buckets()))];
        medians(&std::iter::repeat_with(round).take(rounds).collect::<Vec<_>>())
    });
    let (speed, share) = (dense / all, hashing / all * 100.0);
    println!(
        "lsh_{len:<28} {threads:>7} {:>12.1} {:>12.1} {speed:>7.2}x, hashing {share:.1} %",
        dense * 1e6,
        all * 1e6
    );
}

/// Prints what it takes to make layouts, beside a dense call on one thread.
fn build(len: usize, rounds: usize) {
    let grid = BlockGrid::square(len, BLOCK);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    let full = BlockLayout::from_blocks(grid, |_, _| true).expect("a layout");
    let [dense, _, _] = pool.install(|| compare(&full, "full", rounds));
    let report = |name: &str, make: &dyn Fn()| {
        let calls = calls_per_round(make);
        let [seconds] = medians(&[(); 5].map(|()| [time(calls, make)]));
        let share = seconds / dense * 100.0;
        println!("build {name}_{len:<18} {:>12.1} us, {share:>6.2} % of the dense call", seconds * 1e6);
    };
    for (name, make) in LAYOUTS {
        report(name, &|| drop(std::hint::black_box(make(grid))));
    }
    let case =
        Case { batch: 1, q_heads: HEADS, kv_heads: HEADS, q_len: len, kv_len: len, dim: DIM, causal: false };
    let tensors = Tensors::<f32>::new(&case);
    let [q, k] = [&tensors.q, &tensors.k].map(|data| View::new(data, case.q_shape()).expect("a view"));
    report("selection_of_all_heads", &|| {
        drop(std::hint::black_box(Selection::new(Keep::Mass(0.9)).select(grid, q, k)));
    });
}
