//! What block masks cost, in counts: pairs that are visited, tasks, questions asked.

use crate::common::cases::{Case, Operands, Place};
use lucid_attention::sparse::{BigBird, BlockGrid, BlockLayout, BlockMask};
use lucid_attention::{Explanation, Mask, Plan, PlanOptions, Problem, QueryStart};

const LEN: usize = 2048;

fn operands(heads: [usize; 2]) -> Operands<f32, f32> {
    let case = Case { heads, q_len: LEN, kv_len: LEN, head_dim: 8, v_dim: 8, ..Case::default() };
    case.operands(Place::Heap)
}

/// What a pool of so many would do with a mask.
fn explained(operands: &Operands<f32, f32>, mask: Mask<'_>, threads: usize) -> Explanation {
    let inputs = operands.inputs().mask(mask).q_start(QueryStart::TopLeft);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    pool.install(|| {
        let options = PlanOptions { max_threads: Some(threads), ..PlanOptions::default() };
        let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
        plan.explain(&inputs).expect("operands that fit")
    })
}

fn explained_layout(layout: BlockLayout) -> Explanation {
    explained(&operands([2, 2]), Mask::NONE.blocks(&BlockMask::from(layout)), 1)
}

/// G2: the same tasks, of the same size, and the same expected time.
#[test]
fn everything_is_dealt_out_as_a_dense_call() {
    let operands = operands([2, 2]);
    let grid = BlockGrid::square(LEN, 96);
    let full = BlockMask::from(BlockLayout::from_blocks(grid, |_, _| true).expect("a layout"));
    for mask in [Mask::NONE, Mask::causal()] {
        let [dense, blocks] = [mask, mask.blocks(&full)].map(|mask| explained(&operands, mask, 1));
        assert_eq!(
            (blocks.tasks, blocks.block_rows, blocks.keys),
            (dense.tasks, dense.block_rows, dense.keys)
        );
        assert_eq!(blocks.estimated_microseconds, dense.estimated_microseconds);
    }
}

/// G3: of all pairs, those in blocks, and time is expected in proportion.
#[test]
fn what_is_visited_is_the_density() {
    let grid = BlockGrid::square(LEN, 64);
    let dense = explained_layout(BlockLayout::from_blocks(grid, |_, _| true).expect("a layout"));
    for layout in [
        BlockLayout::bigbird(grid, &BigBird::published(1)),
        BlockLayout::sliding_window(grid, Some(256), Some(0)),
        BlockLayout::strided(grid, 8),
    ] {
        let layout = layout.expect("a layout");
        let density = layout.density();
        let explained = explained_layout(layout);
        let blocks = explained.blocks.expect("a block mask");
        assert_eq!(blocks.density, density);
        assert_eq!(blocks.pairs, 2.0 * (LEN * LEN) as f64 * density);
        // But for the memory that keys and values take, which are read once.
        let shares = explained.estimated_microseconds / dense.estimated_microseconds;
        assert!((shares - density).abs() < 0.05, "a time of {shares} for a density of {density}");
    }
}

/// G4.
#[test]
fn scattered_columns_are_as_many() {
    let grid = BlockGrid::square(LEN, 64);
    let scattered = BigBird { window: 0, global: 0, random: 3, seed: 1 };
    let scattered = explained_layout(BlockLayout::bigbird(grid, &scattered).expect("a layout"));
    let first = |row: usize| row.min(grid.columns() - 4);
    let adjacent = |row: usize, column: usize| (first(row)..first(row) + 4).contains(&column);
    let adjacent = explained_layout(BlockLayout::from_blocks(grid, adjacent).expect("a layout"));
    let [a, b] = [&scattered, &adjacent].map(|explained| explained.blocks.expect("a block mask"));
    assert_eq!((a.pairs, a.density), (b.pairs, b.density));
    assert!(a.runs > 2 * b.runs, "{} runs, {} of adjacent columns", a.runs, b.runs);
    assert_eq!(scattered.estimated_microseconds, adjacent.estimated_microseconds);
    assert_eq!(scattered.tasks, adjacent.tasks);
}

/// G5: once for each query, however many keys there are; and what is stored grows with rows of blocks, not with blocks.
#[test]
fn intervals_are_asked_for_once() {
    for len in [1 << 10, 1 << 16] {
        let mut asked = 0;
        let layout = BlockLayout::from_ranges(BlockGrid::square(len, 64), |query, list| {
            asked += 1;
            list.push(query.saturating_sub(200)..query + 1);
        });
        let layout = layout.expect("a layout");
        assert_eq!(asked, len);
        assert!(layout.runs() <= 5 * len / 64, "{} runs of {len} queries", layout.runs());
        assert!(layout.patterns() <= 8, "{} patterns: the same ones along the diagonal", layout.patterns());
    }
}

/// Blocks larger than there are queries or keys take the memory of those there are.
#[test]
fn blocks_beyond_the_end_cost_nothing() {
    let grid = BlockGrid { q_len: 10, kv_len: 70, q_block: 1 << 40, kv_block: 1 << 40 };
    let layout = BlockLayout::from_fn(grid, |query, key| (query + key) % 3 == 0).expect("a layout");
    crate::assert_layout(&layout, |query, key| (query + key) % 3 == 0, "a block of all there is");
    let layout = BlockLayout::from_mask(grid, &Mask::causal()).expect("a layout");
    crate::assert_layout(&layout, |query, key| key <= query, "a causal block of all there is");
}

/// Rows of blocks that are too few for all workers, or too large for one, are cut into several tasks: at least half as many as
/// a dense call has.
#[test]
fn rows_of_blocks_are_shared_out() {
    for (heads, threads) in [([1, 1], 2), ([1, 1], 8), ([4, 1], 4)] {
        let operands = operands(heads);
        let dense = explained(&operands, Mask::NONE, threads);
        for block in [16, 48, 64, 100, 128, 256, 500, 1000] {
            let layout = BlockLayout::from_blocks(BlockGrid::square(LEN, block), |_, _| true);
            let blocks = BlockMask::from(layout.expect("a layout"));
            let got = explained(&operands, Mask::NONE.blocks(&blocks), threads);
            let what = format!("{heads:?} in blocks of {block} on {threads}");
            assert!(2 * got.tasks >= dense.tasks, "{what}: {} tasks, dense {}", got.tasks, dense.tasks);
            assert_eq!(got.threads, dense.threads, "{what}");
        }
    }
}

/// An explanation says which block mask there is, and says so in words.
#[test]
fn explanations_name_the_mask() {
    let operands = operands([2, 2]);
    assert_eq!(explained(&operands, Mask::causal(), 1).blocks, None);
    let grid = BlockGrid { kv_block: 32, ..BlockGrid::square(LEN, 64) };
    let causal = BlockLayout::from_mask(grid, &Mask::causal()).expect("a layout");
    let first = BlockLayout::from_blocks(grid, |_, column| column == 0).expect("a layout");
    let blocks = BlockMask::per_head(vec![causal, first], vec![0, 1]).expect("a mask");
    let explained = explained(&operands, Mask::NONE.blocks(&blocks), 1);
    let got = explained.blocks.expect("a block mask");
    assert_eq!((got.block, got.layouts, got.density), ([64, 32], 2, blocks.density()));
    // A full run and two blocks of bits for each row of the causal one, but for the first; one run for all rows of the other.
    assert_eq!((got.runs, got.patterns), (3 * 32 - 1 + 1, 2));
    let causal = (1..=32).map(|row| 64.0 * 64.0 * row as f64).sum::<f64>();
    assert_eq!(got.pairs, causal + 32.0 * LEN as f64);
    let text = explained.to_string();
    let says = "block mask: 2 layout(s) of 64 x 32 blocks";
    assert!(text.contains(says) && text.contains("96 runs, 2 with bits"), "{text}");
}
