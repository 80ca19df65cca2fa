//! Grids that no machine has.

use crate::Tally;
use crate::call::refused;
use arbitrary::{Result, Unstructured};
use lucid_attention::sparse::{BlockGrid, BlockLayout};

pub(super) fn check(input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
    let mut size = || -> Result<usize> {
        const MAX: usize = usize::MAX;
        let hostile = [0, 1, MAX, MAX / 2, MAX - 1, MAX / 2 + 1, 1 << 33, 1 << 32, (1 << 32) - 1, 1 << 16];
        if input.arbitrary()? { Ok(*input.choose(&hostile)?) } else { input.int_in_range(0..=70) }
    };
    let grid = BlockGrid { q_len: size()?, kv_len: size()?, q_block: size()?, kv_block: size()? };
    let blocks = |len: usize, block: usize| (len as u128).div_ceil(block.max(1) as u128);
    let (rows, columns) = (blocks(grid.q_len, grid.q_block), blocks(grid.kv_len, grid.kv_block));
    let mut wrong = Vec::new();
    if grid.q_block == 0 {
        wrong.push("q_block");
    }
    if grid.kv_block == 0 {
        wrong.push("kv_block");
    }
    let past_the_end = |len: usize, block: usize| len as u128 + block as u128 > usize::MAX as u128;
    let too_large = past_the_end(grid.q_len, grid.q_block) || past_the_end(grid.kv_len, grid.kv_block);
    if too_large || rows * columns > u128::from(u32::MAX) {
        wrong.push("block layout");
    }
    if !wrong.is_empty() {
        let answers = [
            BlockLayout::from_csr(grid, &[0], &[]),
            BlockLayout::from_blocks(grid, |_, _| true),
            BlockLayout::from_fn(grid, |_, _| true),
            BlockLayout::from_ranges(grid, |_, _| ()),
        ];
        for answer in answers {
            refused(&answer.expect_err(&format!("{wrong:?} of {grid:?}")), &wrong, tally);
        }
        return Ok(());
    }
    // More rows take as long, or more memory than there is.
    if rows <= 1000 {
        let offsets = vec![0; rows as usize + 1];
        let layout = BlockLayout::from_csr(grid, &offsets, &[]).expect("a grid that fits");
        assert_eq!((layout.blocks(), layout.density()), (0, 0.0), "{grid:?}");
        tally.same += 2;
        if rows * columns <= 1000 {
            let layout = BlockLayout::from_blocks(grid, |_, _| true).expect("a grid that fits");
            assert_eq!(layout.blocks() as u128, rows * columns, "{grid:?}");
            let last = [grid.q_len, grid.kv_len].map(|len| len.checked_sub(1));
            if let [Some(query), Some(key)] = last
                && let Ok(position) = i64::try_from(query)
            {
                assert!(layout.allows(position, key), "{grid:?}: the last pair");
                assert!(!layout.allows(position, grid.kv_len), "{grid:?}: a key beyond");
            }
            tally.same += 3;
        }
    }
    Ok(())
}
