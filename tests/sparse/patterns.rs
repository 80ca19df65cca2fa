//! Patterns against their definitions.

use crate::{GRIDS, assert_layout};
use lucid_attention::sparse::{BigBird, BlockGrid, BlockLayout};

#[test]
fn sliding_windows() {
    for grid in GRIDS {
        for (left, right) in [(Some(0), Some(0)), (Some(20), Some(0)), (Some(5), Some(30)), (None, Some(2))] {
            let layout = BlockLayout::sliding_window(grid, left, right).expect("a layout");
            let allows = |query: usize, key: usize| {
                left.is_none_or(|left| query <= key + left) && right.is_none_or(|right| key <= query + right)
            };
            assert_layout(&layout, allows, &format!("{left:?} to {right:?}"));
        }
    }
}

#[test]
fn longformer() {
    for grid in GRIDS {
        for (one_side, global) in [(0, &[][..]), (3, &[0]), (10, &[0, 1, 2, 19]), (1000, &[7])] {
            let layout = BlockLayout::longformer(grid, one_side, global).expect("a layout");
            let allows = |query: usize, key: usize| {
                query.abs_diff(key) <= one_side || global.contains(&query) || global.contains(&key)
            };
            assert_layout(&layout, allows, &format!("{one_side} to each side, {global:?}"));
        }
    }
}

#[test]
fn bigbird_has_its_rows_and_its_density() {
    for (len, density) in [(1024, 0.555), (2048, 0.295), (4096, 0.152)] {
        let grid = BlockGrid::square(len, 64);
        let layout = BlockLayout::bigbird(grid, &BigBird::published(7)).expect("a layout");
        assert!((layout.density() - density).abs() < 6e-4, "{len}: a density of {}", layout.density());
        let n = len / 64;
        let mut random = Vec::new();
        for row in 0..n {
            let columns: Vec<usize> =
                layout.iter().filter(|block| block.0 == row).map(|block| block.1).collect();
            let must = |column: usize| {
                [0, n - 1].contains(&row) || [0, n - 1].contains(&column) || row.abs_diff(column) <= 1
            };
            let missing = (0..n).find(|&column| must(column) && !columns.contains(&column));
            assert_eq!(missing, None, "{len}, row {row}: a column of the pattern is not there");
            let others: Vec<usize> = columns.into_iter().filter(|&column| !must(column)).collect();
            let expected = if [0, n - 1].contains(&row) { 0 } else { 3 };
            assert_eq!(others.len(), expected, "{len}, row {row}: random columns");
            random.push(others);
        }
        let again = BlockLayout::bigbird(grid, &BigBird::published(7)).expect("a layout");
        assert_eq!(layout, again, "{len}: the same seed");
        let other = BlockLayout::bigbird(grid, &BigBird::published(8)).expect("a layout");
        assert_ne!(layout, other, "{len}: another seed");
        random.dedup();
        assert!(random.len() > n / 2, "{len}: rows draw for themselves");
    }
    // Fewer others than are asked for; nothing at all.
    let small = BlockLayout::bigbird(BlockGrid::square(80, 16), &BigBird::published(1)).expect("a layout");
    assert_eq!(small.blocks(), 25);
    assert_eq!(BlockLayout::bigbird(BlockGrid::square(0, 16), &BigBird::published(1)).unwrap().blocks(), 0);
}

/// Random blocks are drawn evenly: over many seeds each other column comes up as often as the next.
#[test]
fn random_blocks_are_uniform() {
    let (n, seeds) = (16, 4000);
    let mut counts = vec![0u32; n];
    let pattern = BigBird { window: 0, global: 0, random: 3, seed: 0 };
    for seed in 0..seeds {
        let layout = BlockLayout::bigbird(BlockGrid::square(n, 1), &BigBird { seed, ..pattern }).unwrap();
        layout.iter().filter(|block| block.0 == 5).for_each(|block| counts[block.1] += 1);
    }
    assert_eq!(counts[5], seeds as u32, "the diagonal is always there");
    let expected = f64::from(seeds as u32) * 3.0 / 15.0;
    for (column, &count) in counts.iter().enumerate().filter(|&(column, _)| column != 5) {
        // Five standard deviations of a binomial.
        let slack = 5.0 * (expected * 0.8).sqrt();
        assert!((f64::from(count) - expected).abs() < slack, "column {column}: {count} times of {expected}");
    }
}

#[test]
fn sparse_transformers() {
    for grid in GRIDS.into_iter().filter(|grid| grid.q_block == grid.kv_block) {
        for stride in [1, 2, 3, 100] {
            let layout = BlockLayout::strided(grid, stride).expect("a layout");
            let allows = |query: usize, key: usize| {
                let distance = (query / grid.q_block).abs_diff(key / grid.kv_block);
                distance < stride || distance.is_multiple_of(stride)
            };
            assert_layout(&layout, allows, &format!("a stride of {stride}"));
        }
        for (local, global) in [(1, 0), (1, 1), (4, 1), (3, 2)] {
            let layout = BlockLayout::fixed(grid, local, global).expect("a layout");
            let allows = |query: usize, key: usize| {
                let [row, column] = [query / grid.q_block, key / grid.kv_block];
                row / local == column / local || column % local >= local - global
            };
            assert_layout(&layout, allows, &format!("fixed, {local} and {global}"));
        }
    }
}

#[test]
fn streaming_heads() {
    for grid in GRIDS {
        for (sink, recent) in [(0, 1), (4, 10), (17, 33), (1000, 1)] {
            let layout = BlockLayout::sink_and_recent(grid, sink, recent).expect("a layout");
            let allows = |query: usize, key: usize| key <= query && (key < sink || query < key + recent);
            assert_layout(&layout, allows, &format!("{sink} and {recent}"));
        }
    }
}
