//! Blocks selected by content, against the formula in f64.

use crate::common::cases::{Case, Operands, Place, slice};
use lucid_attention::sparse::{BlockGrid, BlockMask, Keep, Selection};
use lucid_attention::{QueryStart, View};

const LENGTHS: [usize; 2] = [70, 100];

fn operands(heads: [usize; 2]) -> Operands<f32, f32> {
    let [q_len, kv_len] = LENGTHS;
    Case { batch: 2, heads, q_len, kv_len, head_dim: 12, seed: 5, ..Case::default() }.operands(Place::Heap)
}

fn grid() -> BlockGrid {
    BlockGrid { q_len: LENGTHS[0], kv_len: LENGTHS[1], q_block: 16, kv_block: 8 }
}

/// The softmax of each row, by the formula, over the columns that causality leaves.
fn shares(
    operands: &Operands<f32, f32>,
    [batch, head]: [usize; 2],
    group: usize,
    causal: bool,
) -> Vec<Vec<f64>> {
    let grid = grid();
    let mean = |at: &dyn Fn(usize, usize) -> f32, tokens: std::ops::Range<usize>| -> Vec<f64> {
        let count = tokens.len() as f64;
        (0..12).map(|d| tokens.clone().map(|token| f64::from(at(token, d))).sum::<f64>() / count).collect()
    };
    let row = |row: usize| {
        let queries = row * grid.q_block..grid.q_len.min((row + 1) * grid.q_block);
        let last = queries.end - 1;
        let q = mean(&|t, d| operands.q.at([batch, head, t, d]), queries);
        let columns = (0..grid.columns()).filter(|column| !causal || column * grid.kv_block <= last);
        let scores: Vec<f64> = columns
            .map(|column| {
                let keys = column * grid.kv_block..grid.kv_len.min((column + 1) * grid.kv_block);
                let k = mean(&|t, d| operands.k.at([batch, head / group, t, d]), keys);
                q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / 12f64.sqrt()
            })
            .collect();
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        scores.iter().map(|score| score.exp() / sum).collect()
    };
    (0..grid.rows()).map(row).collect()
}

#[test]
fn the_best_are_kept() {
    for (heads, per_kv_head, causal) in
        [([2, 2], true, false), ([4, 2], true, true), ([4, 2], false, true), ([4, 1], true, false)]
    {
        let operands = operands(heads);
        let group = heads[0] / heads[1];
        for keep in [
            Keep::TopK(1),
            Keep::TopK(3),
            Keep::TopK(100),
            Keep::Mass(0.0),
            Keep::Mass(0.6),
            Keep::Mass(0.95),
        ] {
            let selection = Selection { causal, per_kv_head, ..Selection::new(keep) };
            let mask = selection.select(grid(), operands.q.view(), operands.k.view()).expect("a mask");
            for (batch, head) in (0..2).flat_map(|batch| (0..heads[0]).map(move |head| (batch, head))) {
                let first = if per_kv_head { head / group * group } else { head };
                let together = if per_kv_head { group } else { 1 };
                let all: Vec<_> = (first..first + together)
                    .map(|head| shares(&operands, [batch, head], group, causal))
                    .collect();
                let layout = mask.layout(batch, head).expect("a layout for each head");
                for row in 0..grid().rows() {
                    let share = |column: usize| all.iter().map(|rows| rows[row][column]).sum::<f64>();
                    let count = all[0][row].len();
                    let kept: Vec<usize> =
                        layout.iter().filter(|block| block.0 == row).map(|block| block.1).collect();
                    let left = (0..count).filter(|column| !kept.contains(column));
                    let best_left = left.map(share).fold(0.0, f64::max);
                    let worst_kept = kept.iter().map(|&column| share(column)).fold(f64::INFINITY, f64::min);
                    let what = format!("{heads:?}, {keep:?}, head {head}, row {row}: {kept:?}");
                    assert!(worst_kept >= best_left - 1e-6, "{what}: {worst_kept} kept, {best_left} not");
                    let mass: f64 = kept.iter().map(|&column| share(column)).sum::<f64>() / together as f64;
                    match keep {
                        Keep::TopK(most) => assert_eq!(kept.len(), most.min(count), "{what}"),
                        Keep::Mass(enough) => {
                            let enough = f64::from(enough);
                            let without = mass - worst_kept / together as f64;
                            let fewest = kept.len() == 1 || without < enough + 1e-6;
                            assert!(mass >= enough - 1e-6 && fewest, "{what}: a mass of {mass}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn sinks_and_the_diagonal_are_kept() {
    let operands = operands([2, 2]);
    let selection =
        Selection { causal: true, sink_blocks: 2, local_blocks: 3, ..Selection::new(Keep::TopK(0)) };
    let mask = selection.select(grid(), operands.q.view(), operands.k.view()).expect("a mask");
    for (row, last) in [1, 3, 5, 7, 8].into_iter().enumerate() {
        let blocks = mask.layouts()[0].iter().filter(|block| block.0 == row);
        let got: Vec<usize> = blocks.map(|block| block.1).collect();
        let expected: Vec<usize> = (0..=last).filter(|&column| column < 2 || column + 3 > last).collect();
        assert_eq!(got, expected, "row {row}");
    }
}

/// What is not finite is attended, so that it shows.
#[test]
fn rows_that_are_not_finite_keep_all() {
    let mut operands = operands([2, 2]);
    let row = 12 * 20; // query 20 of the first head: row 1
    operands.q.data[row] = f32::NAN;
    let selection = Selection::new(Keep::TopK(2));
    let mask = selection.select(grid(), operands.q.view(), operands.k.view()).expect("a mask");
    let of_row = |row: usize| mask.layouts()[0].iter().filter(|block| block.0 == row).count();
    assert_eq!([of_row(0), of_row(1), of_row(2)], [2, grid().columns(), 2]);
}

fn column(data: &[f32]) -> View<'_, f32> {
    View::new(data, [1, 1, 64, 1]).expect("a column")
}

/// Scores of -inf are never chosen, however many blocks are asked for; sinks and the diagonal stay.
#[test]
fn minus_infinity_is_not_chosen() {
    // One dimension: the score is -inf where the query is positive and a key of the block is -inf.
    let q = vec![1.0f32; 64];
    let k: Vec<f32> =
        (0..64).map(|key| if key / 8 % 2 == 0 { f32::NEG_INFINITY } else { key as f32 }).collect();
    let none = vec![f32::NEG_INFINITY; 64];
    let grid = BlockGrid::square(64, 8);
    let columns = |selection: Selection, keys: &[f32]| -> Vec<Vec<usize>> {
        let mask = selection.select(grid, column(&q), column(keys)).expect("a mask");
        let row =
            |row| mask.layouts()[0].iter().filter(|block| block.0 == row).map(|block| block.1).collect();
        (0..8).map(row).collect()
    };
    for keep in [Keep::TopK(100), Keep::Mass(1.0)] {
        let all = columns(Selection::new(keep), &k);
        let odd = |columns: &Vec<usize>| columns.iter().all(|column| column % 2 == 1);
        assert!(all.iter().all(odd) && all[0].contains(&7), "{keep:?}: {all:?}");
        if keep == Keep::TopK(100) {
            assert!(all.iter().all(|columns| columns == &[1, 3, 5, 7]), "{all:?}");
        }
        assert!(columns(Selection::new(keep), &none).iter().all(Vec::is_empty), "{keep:?}: no score at all");
        let kept = Selection { sink_blocks: 1, local_blocks: 1, causal: true, ..Selection::new(keep) };
        let kept = columns(kept, &none);
        assert!((1..8).all(|row| kept[row] == [0, row]), "{keep:?}: sinks and the diagonal, {kept:?}");
    }
}

/// The tokens decoded after a prompt choose what the prompt's own call would have let them choose.
#[test]
fn queries_from_a_position_on() {
    let len = 96;
    let case =
        Case { batch: 2, heads: [4, 2], q_len: len, kv_len: len, head_dim: 12, seed: 6, ..Case::default() };
    let operands: Operands<f32, f32> = case.operands(Place::Heap);
    let grid = BlockGrid::square(len, 16);
    let selection = Selection { causal: true, local_blocks: 1, ..Selection::new(Keep::TopK(2)) };
    let all = selection.select(grid, operands.q.view(), operands.k.view()).expect("a mask");
    let blocks = |mask: &BlockMask, head: [usize; 2]| -> Vec<(usize, usize)> {
        let layout = mask.layout(head[0], head[1]).expect("a layout for each head");
        layout.iter().map(|(row, column, _)| (row, column)).collect()
    };
    let part = |queries: std::ops::Range<usize>, start| {
        let q = slice(&operands.q, queries);
        selection.select_at(grid, q, operands.k.view(), start).expect("a mask")
    };
    // Whole rows of blocks choose the same.
    let rows = part(32..96, QueryStart::BottomRight);
    let starts = part(32..96, QueryStart::PerSequence(&[32, 32]));
    for head in (0..2).flat_map(|batch| (0..4).map(move |head| [batch, head])) {
        let expected: Vec<_> = blocks(&all, head).into_iter().filter(|block| block.0 >= 2).collect();
        assert_eq!(blocks(&rows, head), expected, "{head:?}");
        assert_eq!(blocks(&starts, head), expected, "{head:?}");
    }
    // A token chooses for itself, by its own score alone; it is in no other row, and sees no later block.
    let one = part(50..51, QueryStart::At(50));
    let alone = Selection { per_kv_head: true, ..selection };
    let grid_of_one = BlockGrid { q_len: 51, ..grid };
    let q = slice(&operands.q, 50..51);
    let shorter = alone.select_at(grid_of_one, q, operands.k.view(), QueryStart::At(50)).expect("a mask");
    for head in (0..2).flat_map(|batch| (0..4).map(move |head| [batch, head])) {
        let own = blocks(&one, head);
        assert!(own.iter().all(|&(row, column)| row == 3 && column <= 3), "{head:?}: {own:?}");
        assert!(own.contains(&(3, 3)) && (2..=3).contains(&own.len()), "{head:?}: {own:?}");
        assert_eq!(own, blocks(&shorter, head), "{head:?}: a grid that ends with the token");
    }
    let refused = |start| {
        let q = slice(&operands.q, 32..96);
        selection.select_at(grid, q, operands.k.view(), start).expect_err("an error").to_string()
    };
    let expected = "q_start: expected queries at positions of the grid, got";
    assert_eq!(refused(QueryStart::At(33)), format!("{expected} 33..97 of 96, sequence 0"));
    assert_eq!(refused(QueryStart::PerSequence(&[0, -1])), format!("{expected} -1..63 of 96, sequence 1"));
    assert_eq!(refused(QueryStart::PerSequence(&[0])), "q_start: expected entries = 2, got 1");
}
