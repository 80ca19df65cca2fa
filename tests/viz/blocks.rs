//! Block layouts as pictures.

use lucid_attention::sparse::{BlockGrid, BlockKind, BlockLayout};
use lucid_attention::viz::{BlockMap, TerminalColors};

/// Cells of a terminal's ASCII view, row by row, of a layout with less than ten blocks along a side.
fn drawn(layout: &BlockLayout) -> String {
    BlockMap::new(layout).title("layout").terminal(80, TerminalColors::Ascii).expect("a layout with blocks")
}

/// Blocks that are not stored are blank, and have a colour of their own; it says what blocks there are.
#[test]
fn blocks_that_are_not_stored() {
    let grid = BlockGrid { q_len: 60, kv_len: 64, q_block: 20, kv_block: 16 };
    let full = BlockLayout::from_blocks(grid, |row, column| (row + column) % 2 == 0).expect("a grid");
    let window = BlockLayout::sliding_window(grid, Some(30), Some(0)).expect("a grid");
    assert!(window.iter().any(|(.., kind)| kind == BlockKind::Partial));
    let text = drawn(&full);
    assert!(text.contains("blocks of 20 x 16 (queries x keys)") && text.contains("layout"), "{text}");
    assert!(text.contains("share of pairs attended"), "{text}");
    assert_ne!(text, drawn(&window));
    let all = BlockLayout::from_blocks(grid, |_, _| true).expect("a grid");
    let blanks = |text: &str| text.chars().filter(|&c| c == ' ').count();
    assert!(blanks(&drawn(&all)) < blanks(&text), "{text}\n{}", drawn(&all));
    let svg = |layout| BlockMap::new(layout).draw().expect("a layout with blocks");
    assert_ne!(svg(&full), svg(&all));
    assert!(svg(&full).svg().contains("masked") && !svg(&all).svg().contains("masked"));
}

/// More blocks than cells.
#[test]
fn more_blocks_than_cells() {
    let grid = BlockGrid::square(4096, 8);
    let layout = BlockLayout::from_blocks(grid, |row, column| (row + column) % 2 == 0).expect("a grid");
    let picture = BlockMap::new(&layout).draw().expect("a layout with blocks");
    assert!(picture.svg().contains("each cell: 2 x 2 blocks"));
    let one = BlockLayout::from_blocks(grid, |row, column| row < 2 && column < 2).expect("a grid");
    assert!(BlockMap::new(&one).draw().expect("a layout with blocks").svg().contains("masked"));
}

#[test]
fn nothing_to_draw() {
    let none = BlockLayout::from_blocks(BlockGrid::square(0, 8), |_, _| true).expect("an empty grid");
    let message = "layout: expected at least one row and column of blocks, got [0, 0] of them";
    assert_eq!(BlockMap::new(&none).draw().expect_err("no block").to_string(), message);
}
