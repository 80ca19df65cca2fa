//! A block mask is the same pairs as a boolean mask, bit for bit, whatever is skipped.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::with_types;
use lucid_attention::sparse::{BigBird, BlockGrid, BlockLayout, BlockMask};
use lucid_attention::{
    DType, Dropout, Element, Inputs, Level, Mask, Metrics, MetricsOptions, Outputs, Plan, PlanOptions,
    Problem, QueryStart, RowMetrics, ScoreStage, View, ViewMut, attention, reference,
};

/// `[batch, q_heads, q_len, kv_len]` of what a mask of blocks allows queries from a position on.
fn expanded(blocks: &BlockMask, [batch, q_heads, q_len, kv_len]: [usize; 4], start: i64) -> Vec<bool> {
    let mut allowed = Vec::new();
    for_each_index([batch, q_heads, q_len, kv_len], |[b, h, i, j]| {
        allowed.push(blocks.allows(b, h, start + i as i64, j));
    });
    allowed
}

/// Everything a call can write, metrics too.
fn everything<Q: Element, T: Element>(
    inputs: &Inputs<'_, Q, T>,
    (level, bf16_dot): (Level, bool),
    threads: usize,
) -> (Results<Q>, Vec<RowMetrics>) {
    let results = run(inputs, &Ask { threads, bf16_dot, ..Ask::all(level).scores(ScoreStage::Softmax) });
    let shape @ [batch, q_heads, q_len, _] = inputs.output_shape();
    let options =
        MetricsOptions { sparsity: Some(0.01), top_k: Some(3), first_keys: Some(70), distance: true };
    let mut metrics = Metrics::new(options, q_heads, batch * q_heads * q_len).expect("valid options");
    let options = PlanOptions { level: Some(level), max_threads: Some(threads), ..PlanOptions::default() };
    let plan_options = PlanOptions { bf16_dot, ..options };
    let plan = Plan::with_options(&Problem::of(inputs), &plan_options).expect("a plan");
    let mut out = vec![Q::default(); shape.iter().product()];
    let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("contiguous")).metrics(&mut metrics);
    plan.run(inputs, outputs, &mut plan.workspace().expect("memory")).expect("operands that fit");
    assert_same(&out, &results.out, "metrics change no bit");
    (results, metrics.rows().to_vec())
}

/// Holds a call with blocks against the dense one, in every tier, on one thread and on several.
fn compare<Q: Element, T: Element>(case: &Case, blocks: &BlockMask, mask: Mask<'_>, start: i64) {
    let _announced = announce(case);
    let operands = case.operands::<Q, T>(Place::AtEnd);
    let base = operands.inputs().q_start(QueryStart::At(start));
    let [batch, q_heads, q_len, _] = base.output_shape();
    let shape = [batch, q_heads, q_len, case.kv_len];
    let allowed = expanded(blocks, shape, start);
    let dense = mask.allowed(View::new(&allowed, shape).expect("a mask"));
    for inputs in [base, base.dropout(Dropout { rate: 0.3, seed: 9 })] {
        for tier in tiers() {
            let (expected, metrics) = everything(&inputs.mask(dense), tier, 1);
            for threads in [1, 3] {
                let inputs = inputs.mask(mask.blocks(blocks));
                let (got, rows) = pool(3).install(|| everything(&inputs, tier, threads));
                let what = format!("{tier:?} on {threads}, {:?}", blocks.layouts()[0].grid());
                assert_equal(&got, &expected, &what);
                assert_eq!(format!("{rows:?}"), format!("{metrics:?}"), "{what}: metrics");
            }
        }
    }
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool")
}

/// A layout for each of four heads: a window, BigBird, streaming, random columns.
fn mixed(grid: BlockGrid) -> BlockMask {
    let random = |row: usize, column: usize| Rng::new((row * 1000 + column) as u64).chance(0.2);
    let layouts = vec![
        BlockLayout::sliding_window(grid, Some(100), Some(30)),
        BlockLayout::bigbird(grid, &BigBird::published(3)),
        BlockLayout::sink_and_recent(grid, 20, 90),
        BlockLayout::from_blocks(grid, random),
    ];
    BlockMask::per_head(layouts.into_iter().collect::<Result<_, _>>().expect("layouts"), vec![0, 1, 2, 3])
        .expect("a mask")
}

/// Whole sequences, in tiles and splits of all kinds: a few hundred keys skipped here and there.
#[test]
fn patterns_of_every_block_size() {
    for (index, block) in [64, 16, 32, 128, 48, 10, 300].into_iter().enumerate() {
        let len = [330, 1100, 530][index % 3];
        let blocks = mixed(BlockGrid::square(len, block));
        let (types, storage) = (TYPES[index % TYPES.len()], STORAGES[index % STORAGES.len()]);
        let case = Case { seed: index as u64, types, storage, q_len: len, kv_len: len, ..Case::default() };
        // With a KV head for each, and for two.
        for heads in [[4, 4], [4, 2]] {
            let case = Case { heads, head_dim: 16, v_dim: 24, ..case };
            let mask = if index % 2 == 0 { Mask::NONE } else { Mask::causal() };
            with_types!(types, Q, T => compare::<Q, T>(&case, &blocks, mask, 0));
        }
    }
}

/// A part of a prompt, and one token: rows of blocks go by position, and memory is packed for what is visited only.
#[test]
fn chunks_and_decoding() {
    let blocks = mixed(BlockGrid::square(2400, 64));
    for (q_len, start) in [(200, 2200), (150, 1000), (1, 2399), (3, 1279), (40, 2390), (30, -7)] {
        for storage in [Storage::HeadMajor, Storage::Panels] {
            let case = Case {
                storage,
                heads: [4, 4],
                q_len,
                kv_len: 2400,
                head_dim: 16,
                v_dim: 16,
                ..Case::default()
            };
            compare::<f32, f32>(&case, &blocks, Mask::causal().window(Some(2000), None), start);
        }
    }
}

/// A chunk of a prompt is its rows of the prompt; a row alone too.
#[test]
fn pieces_are_the_whole() {
    let len = 500;
    let blocks = mixed(BlockGrid::square(len, 64));
    let case = Case { heads: [4, 4], q_len: len, kv_len: len, head_dim: 16, v_dim: 16, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    for level in levels() {
        let of = |queries: std::ops::Range<usize>| {
            let inputs = operands.inputs_of(queries, operands.k.view()).mask(Mask::causal().blocks(&blocks));
            run(&inputs, &Ask::all(level))
        };
        let whole = of(0..len);
        for queries in [0..70, 70..300, 300..301, 301..500] {
            let part = of(queries.clone());
            for head in 0..4 {
                let (rows, own) = (head * len + queries.start, head * queries.len());
                let what = format!("{level}, {queries:?}, head {head}");
                let expected = &whole.out[rows * 16..][..queries.len() * 16];
                assert_same(&part.out[own * 16..][..queries.len() * 16], expected, &format!("{what}: out"));
                let expected = &whole.lse[rows..][..queries.len()];
                assert_same(&part.lse[own..][..queries.len()], expected, &format!("{what}: lse"));
            }
        }
    }
}

/// G1: within 1e-5 of the largest value of the f64 reference (and the rounding of what stores the output), which knows nothing
/// of blocks but what they allow: every pattern, ragged lengths, grouped heads, chunks of queries, all types, every level.
/// Rows without a block are +0 with an LSE of -inf.
#[test]
fn close_to_the_reference() {
    let (grid, oblong) = (BlockGrid::square(330, 32), BlockGrid { kv_len: 310, kv_block: 64, ..GRID_OF_330 });
    let every_third = |row: usize, column: usize| row != 4 && (row + column).is_multiple_of(3);
    let layouts = [
        BlockLayout::from_blocks(BlockGrid { q_len: 300, ..oblong }, every_third),
        BlockLayout::from_fn(oblong, |query, key| (query * 7 + key * 3) % 5 < 2),
        BlockLayout::from_mask(oblong, &Mask::causal().window(Some(70), None)),
        BlockLayout::longformer(oblong, 40, &[0, 5, 200]),
        BlockLayout::bigbird(grid, &BigBird::published(5)),
        BlockLayout::strided(grid, 3),
        BlockLayout::fixed(grid, 3, 1),
        BlockLayout::sink_and_recent(grid, 20, 50),
    ];
    for (index, layout) in layouts.into_iter().enumerate() {
        let blocks = BlockMask::from(layout.expect("a layout"));
        let types = TYPES[index % TYPES.len()];
        let case = Case {
            types,
            heads: [4, 2],
            q_len: 330,
            kv_len: 320,
            head_dim: 20,
            v_dim: 16,
            ..Case::default()
        };
        with_types!(types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            for start in [0, 17, -40] {
                let inputs = operands.inputs().mask(Mask::NONE.blocks(&blocks)).q_start(QueryStart::At(start));
                close(&inputs, &format!("pattern {index}, {types:?}, from {start}"));
            }
        });
    }
}

/// Heads that share keys, and sequences, with layouts of their own, whose runs are numbered alike.
#[test]
fn layouts_of_heads_and_sequences() {
    let grid = BlockGrid::square(330, 32);
    let column = |step: usize| {
        BlockLayout::from_blocks(grid, move |row, column| column == (row + step) % 11).expect("a layout")
    };
    let layouts: Vec<_> = (0..5).map(column).collect();
    let blocks = BlockMask::new(layouts, [2, 4], vec![0, 1, 1, 2, 3, 3, 4, 0]).expect("a mask");
    let case =
        Case { batch: 2, heads: [4, 2], q_len: 330, kv_len: 330, head_dim: 20, v_dim: 16, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    close(&operands.inputs().mask(Mask::NONE.blocks(&blocks)), "layouts of their own");
}

const GRID_OF_330: BlockGrid = BlockGrid { q_len: 330, kv_len: 330, q_block: 32, kv_block: 32 };

/// What rounding to a type may change in a number, at most.
fn rounding<Q: Element>(x: f64) -> f64 {
    match Q::DTYPE {
        DType::F16 => x.abs() / 2048.0 + 2f64.powi(-25),
        DType::Bf16 => x.abs() / 256.0,
        _ => 0.0,
    }
}

fn close<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>, what: &str) {
    let expected = reference::attention(inputs).expect("operands that fit");
    let [_, _, _, v_dim] = inputs.output_shape();
    let largest = expected.out.iter().fold(0.0, |max: f64, x| max.max(x.abs())).max(1.0);
    for level in levels() {
        let got = run(inputs, &Ask::all(level));
        for (at, (got, &expected)) in got.out.iter().zip(&expected.out).enumerate() {
            let (got, error) = (got.to_f32(), (f64::from(got.to_f32()) - expected).abs());
            let most = 1e-5 * largest + rounding::<Q>(expected);
            assert!(error <= most, "{what}, {level}: element {at} is {got}, off by {error:e}");
        }
        let rows = got.out.chunks_exact(v_dim).zip(&got.lse).zip(&expected.lse);
        for (row, ((out, lse), &expected)) in rows.enumerate() {
            let empty = expected == f64::NEG_INFINITY;
            assert_eq!(*lse == f32::NEG_INFINITY, empty, "{what}, {level}: row {row}");
            assert!(!empty || out.iter().all(|x| x.to_f32().to_bits() == 0), "{what}, {level}: row {row}");
        }
    }
}

/// Layouts of all full blocks, and of the causal blocks, are what they stand for; so is what a mask says twice.
#[test]
fn layouts_of_everything_are_nothing_special() {
    for (len, block) in [(640, 64), (500, 64), (333, 16)] {
        let grid = BlockGrid::square(len, block);
        let full = BlockMask::from(BlockLayout::from_blocks(grid, |_, _| true).expect("a layout"));
        let causal = BlockMask::from(BlockLayout::from_mask(grid, &Mask::causal()).expect("a layout"));
        let case =
            Case { heads: [2, 1], q_len: len, kv_len: len, head_dim: 16, v_dim: 16, ..Case::default() };
        let operands = case.operands::<f32, f32>(Place::Heap);
        let inputs = operands.inputs();
        for level in levels() {
            let of = |mask| run(&inputs.mask(mask), &Ask::all(level));
            let what = format!("{level}, {len} in blocks of {block}");
            assert_equal(&of(Mask::NONE.blocks(&full)), &of(Mask::NONE), &format!("{what}: full"));
            let expected = of(Mask::causal());
            assert_equal(&of(Mask::NONE.blocks(&causal)), &expected, &format!("{what}: causal"));
            assert_equal(&of(Mask::causal().blocks(&full)), &expected, &format!("{what}: causal and full"));
            assert_equal(&of(Mask::causal().blocks(&causal)), &expected, &format!("{what}: causal twice"));
        }
    }
}

/// A mask without a block costs no key: the call succeeds, whatever they hold, and says so.
#[test]
fn nothing_is_visited() {
    let grid = BlockGrid::square(64, 16);
    let blocks = BlockMask::from(BlockLayout::from_blocks(grid, |_, _| false).expect("a layout"));
    let x = vec![f32::NAN; 64 * 8];
    let x = View::new(&x, [1, 1, 64, 8]).expect("a view");
    let out = attention(&Inputs::new(x, x, x).mask(Mask::NONE.blocks(&blocks))).expect("operands that fit");
    assert!(out.iter().all(|x| x.to_bits() == 0), "rows without a key are +0");
}
