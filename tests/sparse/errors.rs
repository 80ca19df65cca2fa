//! What builders and calls refuse.

use crate::assert_error;
use crate::common::cases::{Case, Place};
use lucid_attention::AttentionError::{self, *};
use lucid_attention::sparse::{BigBird, BlockGrid, BlockLayout, BlockMask, Keep, Selection};
use lucid_attention::{Mask, QueryStart, Span, attention, reference};

fn value(operand: &'static str, expected: &'static str, got: &str) -> AttentionError {
    Value { operand, expected, got: got.to_owned() }
}

fn shape(operand: &'static str, axis: &'static str, expected: usize, got: usize) -> AttentionError {
    Shape { operand, axis, expected, got }
}

const GRID: BlockGrid = BlockGrid { q_len: 40, kv_len: 40, q_block: 16, kv_block: 16 };

#[test]
fn grids() {
    for (grid, operand) in
        [(BlockGrid { q_block: 0, ..GRID }, "q_block"), (BlockGrid { kv_block: 0, ..GRID }, "kv_block")]
    {
        let expected = value(operand, "at least 1", "0");
        assert_eq!((grid.rows().min(40), grid.columns().min(40)), (grid.rows(), grid.columns()), "no panic");
        assert_error(BlockLayout::from_blocks(grid, |_, _| true), &expected);
        assert_error(BlockLayout::from_fn(grid, |_, _| true), &expected);
        assert_error(BlockLayout::from_ranges(grid, |_, _| {}), &expected);
        assert_error(BlockLayout::from_mask(grid, &Mask::causal()), &expected);
        assert_error(BlockLayout::from_csr(grid, &[0; 4], &[]), &expected);
        assert_error(BlockLayout::from_dense(grid, &[true; 9]), &expected);
        assert_error(BlockLayout::bigbird(grid, &BigBird::published(1)), &expected);
        assert_error(BlockMask::from_csr(grid, 1, 1, &[0; 4], &[]), &expected);
        assert_error(BlockMask::from_dense(grid, 1, &[true; 9]), &expected);
    }
    let overflow = SizeOverflow { operand: "block layout" };
    for grid in [
        BlockGrid::square(1 << 32, 1),
        BlockGrid::square(usize::MAX, 16),
        BlockGrid::square(1, usize::MAX),
        BlockGrid { q_block: usize::MAX, ..GRID },
        BlockGrid { kv_block: usize::MAX, ..GRID },
    ] {
        assert_error(BlockLayout::from_blocks(grid, |_, _| true), &overflow);
        assert_error(BlockLayout::from_ranges(grid, |_, _| {}), &overflow);
    }
}

#[test]
fn compressed_rows() {
    let rows = "offsets that ascend from 0 to at most the number of columns given";
    let of_rows = |rows: &[i32]| BlockLayout::from_csr(GRID, rows, &[0, 0, 1, 2]);
    assert_error(of_rows(&[0, 1, 4]), &shape("block_row_indices", "entries", 4, 3));
    for (wrong, got) in [
        ([1, 1, 3, 4], "1 at entry 0"),
        ([0, -1, 3, 4], "-1 at entry 1"),
        ([0, 1, 0, 4], "0 at entry 2"),
        ([0, 1, 3, 5], "5 at entry 3"),
    ] {
        assert_error(of_rows(&wrong), &value("block_row_indices", rows, &format!("{got} with 4 columns")));
    }
    let columns = "ascending columns below the number there are in each row";
    for (wrong, got) in [
        ([0, 1, 1, 2], "1 at entry 2, row 1, of 3 columns"),
        ([0, 1, 0, 2], "0 at entry 2, row 1, of 3 columns"),
        ([3, 0, 1, 2], "3 at entry 0, row 0, of 3 columns"),
        ([0, 0, 1, -1], "-1 at entry 3, row 2, of 3 columns"),
    ] {
        let got_error = BlockLayout::from_csr(GRID, &[0, 1, 3, 4], &wrong);
        assert_error(got_error, &value("block_col_indices", columns, got));
    }
    let padded = BlockLayout::from_csr(GRID, &[0, 1, 3, 4], &[0, 0, 1, 2, -1, 2]);
    assert_error(padded, &value("block_col_indices", "-1 after the last row's columns", "2 at entry 5"));

    let none = BlockMask::from_csr(GRID, 0, 2, &[], &[]);
    assert_error(none, &value("num_layout", "at least 1", "0"));
    let short = BlockMask::from_csr(GRID, 2, 2, &[0; 7], &[]);
    assert_error(short, &shape("block_row_indices", "entries", 8, 7));
    let uneven = BlockMask::from_csr(GRID, 2, 2, &[0; 8], &[-1; 5]);
    assert_error(uneven, &shape("block_col_indices", "entries", 4, 5));
}

#[test]
fn patterns() {
    let wide = BlockGrid { kv_len: 100, ..GRID };
    assert_error(
        BlockLayout::bigbird(wide, &BigBird::published(1)),
        &shape("block layout", "rows of blocks", 7, 3),
    );
    let oblong = BlockGrid { q_len: 64, kv_len: 32, q_block: 16, kv_block: 8 };
    for layout in [
        BlockLayout::bigbird(oblong, &BigBird::published(1)),
        BlockLayout::strided(oblong, 2),
        BlockLayout::fixed(oblong, 4, 1),
    ] {
        assert_error(layout, &value("block layout", "blocks of as many queries as keys", "16 x 8"));
    }
    assert_error(BlockLayout::strided(GRID, 0), &value("stride", "at least 1", "0"));
    assert_error(BlockLayout::fixed(GRID, 0, 0), &value("local", "at least 1", "0"));
    assert_error(BlockLayout::fixed(GRID, 2, 3), &value("global", "at most local", "3 of 2"));
    assert_error(BlockLayout::sink_and_recent(GRID, 4, 0), &value("recent", "at least 1", "0"));
    let ascending = "ascending indices below the number there are";
    for (global, got) in
        [(&[1, 0][..], "0 after 1, entry 1"), (&[1, 1], "1 after 1, entry 1"), (&[40], "40 of 40, entry 0")]
    {
        assert_error(BlockLayout::longformer(GRID, 1, global), &value("global", ascending, got));
    }
    assert_error(BlockLayout::from_dense(GRID, &[true; 8]), &shape("blocks", "entries", 9, 8));
    assert_error(BlockMask::from_dense(GRID, 2, &[true; 9]), &shape("blocks", "entries", 18, 9));
}

#[test]
fn masks_that_are_no_intervals() {
    let (spans, yes) = ([Span { start: 0, end: 1 }], [true]);
    let intervals = lucid_attention::Intervals::new([1, 1, 1], &[0, 1], &spans).expect("a span");
    let dense = lucid_attention::View::new(&yes, [1; 4]).expect("a mask");
    let blocks = BlockMask::from(BlockLayout::from_blocks(GRID, |_, _| true).expect("a layout"));
    for mask in [
        Mask::NONE.intervals(intervals),
        Mask::NONE.allowed(dense),
        Mask::NONE.blocks(&blocks),
        Mask::NONE.kv_lens(&[1, 2]),
        Mask::prefix_lm(&[]),
        Mask::NONE.documents(&[3, 1]),
    ] {
        let expected = "one that is an interval of keys for each position, the same in all sequences";
        assert_error(BlockLayout::from_mask(GRID, &mask), &value("mask", expected, &format!("{mask:?}")));
    }
}

/// What a call refuses in a mask, its layout refuses too.
#[test]
fn masks_that_calls_refuse() {
    let expected = value("mask.last_n_keys", "at least 1 key", "0");
    assert_error(BlockLayout::from_mask(GRID, &Mask::NONE.last_n_keys(0)), &expected);
}

#[test]
fn tables() {
    let layout = || BlockLayout::from_blocks(GRID, |_, _| true).expect("a layout");
    let other = BlockLayout::from_blocks(BlockGrid { q_block: 8, ..GRID }, |_, _| true).expect("a layout");
    let new = |layouts, shape, table: &[usize]| BlockMask::new(layouts, shape, table.to_vec());
    assert_error(new(vec![layout()], [2, 2], &[0; 3]), &shape("block mask", "table entries", 4, 3));
    assert_error(new(vec![layout()], [usize::MAX, 2], &[0]), &SizeOverflow { operand: "block mask" });
    assert_error(new(vec![], [0, 0], &[]), &value("block mask", "at least one layout", "none"));
    let (expected, got) = ("layouts of one block size", "[16, 16] and, layout 1, [8, 16]");
    assert_error(new(vec![layout(), other], [1, 1], &[0]), &value("block mask", expected, got));
    let (expected, got) = ("table entries below the number of layouts", "1 at entry 1, with 1 layouts");
    assert_error(new(vec![layout()], [1, 2], &[0, 1]), &value("block mask", expected, got));
}

#[test]
fn calls() {
    let case = Case { batch: 2, heads: [4, 2], q_len: 8, kv_len: 20, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    let layout = BlockLayout::from_blocks(GRID, |_, _| true).expect("a layout");
    for (table, expected) in
        [([1, 2], shape("mask.blocks", "q_heads", 4, 2)), ([3, 1], shape("mask.blocks", "batch", 2, 3))]
    {
        let table_entries = vec![0; table[0] * table[1]];
        let blocks = BlockMask::new(vec![layout.clone()], table, table_entries).expect("a mask");
        let inputs = operands.inputs().mask(Mask::NONE.blocks(&blocks)).q_start(QueryStart::TopLeft);
        assert_error(attention(&inputs), &expected);
        assert_error(reference::attention(&inputs), &expected);
    }
    // Rows go by position, which has to be said.
    let blocks = BlockMask::from(layout);
    let inputs = operands.inputs_with(operands.q.view(), operands.k.view(), operands.v.view());
    let inputs = inputs.mask(Mask::NONE.blocks(&blocks));
    let missing = QueryStartMissing { q_len: 8, kv_len: 20 };
    assert_error(attention(&inputs), &missing);
    assert_error(reference::attention(&inputs), &missing);
}

#[test]
fn selections() {
    let case = Case { heads: [4, 2], q_len: 40, kv_len: 40, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    let (q, k) = (operands.q.view(), operands.k.view());
    let select = |keep| Selection::new(keep).select(GRID, q, k);
    for share in [-0.1, 1.1, f32::NAN] {
        let expected = value("keep", "a share from 0 to 1", &share.to_string());
        assert_error(select(Keep::Mass(share)), &expected);
    }
    let selection = Selection::new(Keep::TopK(1));
    let (longer, wider) = (BlockGrid { q_len: 41, ..GRID }, BlockGrid { kv_len: 41, ..GRID });
    assert_error(selection.select(longer, q, k), &shape("q", "q_len", 41, 40));
    assert_error(selection.select(wider, q, k), &shape("k", "kv_len", 41, 40));
    let infinite = Selection { scale: Some(f32::INFINITY), ..selection };
    assert_error(infinite.select(GRID, q, k), &value("scale", "a number from -2.3e38 to 2.3e38", "inf"));
    let heads = selection.select(GRID, k, q);
    let expected = "batch, heads and head_dim of at least 1, q_heads a multiple of kv_heads";
    assert_error(heads, &value("q", expected, &format!("q {:?}, k {:?}", k.shape(), q.shape())));
}
