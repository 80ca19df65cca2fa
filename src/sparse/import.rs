//! Layouts as other systems store them.

use super::block_mask::BlockMask;
use super::builder::LayoutBuilder;
use super::layout::{BlockGrid, BlockLayout};
use super::memory::{collected, reserved};
use crate::error::{AttentionError, check_size};

impl BlockLayout {
    /// From compressed rows: row `r` visits the columns `columns[rows[r]..rows[r + 1]]`, all of them full. What follows the
    /// last row's is padding, -1.
    ///
    /// # Errors
    /// `rows` does not have an entry more than there are rows of blocks, or does not ascend from 0 to at most the number of
    /// columns given; a row's columns do not ascend, repeat one another or lie outside the layout; padding is not -1; memory cannot be
    /// had.
    pub fn from_csr(grid: BlockGrid, rows: &[i32], columns: &[i32]) -> Result<Self, AttentionError> {
        let mut builder = LayoutBuilder::new(grid)?;
        check_size("block_row_indices", "entries", grid.rows() + 1, rows.len())?;
        let mut last = 0;
        for (row, &entry) in rows.iter().enumerate() {
            let end = usize::try_from(entry)
                .ok()
                .filter(|&end| (if row == 0 { end == 0 } else { end >= last }) && end <= columns.len());
            let Some(end) = end else {
                let expected = "offsets that ascend from 0 to at most the number of columns given";
                let got = format!("{entry} at entry {row} with {} columns", columns.len());
                return Err(AttentionError::Value { operand: "block_row_indices", expected, got });
            };
            if row > 0 {
                push_columns(&mut builder, &columns[last..end], last)?;
            }
            last = end;
        }
        match columns[last..].iter().position(|&column| column != -1) {
            None => Ok(builder.finish()),
            Some(at) => {
                let got = format!("{} at entry {}", columns[last + at], last + at);
                let expected = "-1 after the last row's columns";
                Err(AttentionError::Value { operand: "block_col_indices", expected, got })
            }
        }
    }

    /// From a matrix of blocks, `[rows, columns]`: visited, and full, where it is `true`.
    ///
    /// # Errors
    /// The matrix has another size, a block size is 0, there are more than 2^32 blocks, or memory cannot be had.
    pub fn from_dense(grid: BlockGrid, blocks: &[bool]) -> Result<Self, AttentionError> {
        grid.check()?;
        check_size("blocks", "entries", grid.rows() * grid.columns(), blocks.len())?;
        Self::from_blocks(grid, |row, column| blocks[row * grid.columns() + column])
    }
}

/// Ends a row with these columns, which come from entry `first` on.
fn push_columns(builder: &mut LayoutBuilder, columns: &[i32], first: usize) -> Result<(), AttentionError> {
    let count = builder.columns();
    let mut next = 0;
    for (at, &entry) in columns.iter().enumerate() {
        let Some(column) = usize::try_from(entry).ok().filter(|column| (next..count).contains(column)) else {
            let expected = "ascending columns below the number there are in each row";
            let got = format!("{entry} at entry {}, row {}, of {count} columns", first + at, builder.row());
            return Err(AttentionError::Value { operand: "block_col_indices", expected, got });
        };
        builder.full(column)?;
        next = column + 1;
    }
    builder.end_row();
    Ok(())
}

impl BlockMask {
    /// The operands of onnxruntime's `SparseAttention`: `block_row_indices` is `[num_layout, rows + 1]`,
    /// `block_col_indices` `[num_layout, most]` padded with -1, and query head `h` has layout `h % num_layout`. That
    /// operator is causal besides: combine the mask with [`Mask::causal`](crate::Mask::causal), which cuts the blocks on the
    /// diagonal.
    ///
    /// # Errors
    /// As [`BlockLayout::from_csr`]; the operands do not divide into `num_layout` layouts, or there are none.
    pub fn from_csr(
        grid: BlockGrid,
        num_layout: usize,
        q_heads: usize,
        block_row_indices: &[i32],
        block_col_indices: &[i32],
    ) -> Result<Self, AttentionError> {
        grid.check()?;
        if num_layout == 0 {
            let got = "0".to_owned();
            return Err(AttentionError::Value { operand: "num_layout", expected: "at least 1", got });
        }
        let overflow = AttentionError::SizeOverflow { operand: "block_row_indices" };
        let expected = num_layout.checked_mul(grid.rows() + 1).ok_or(overflow)?;
        check_size("block_row_indices", "entries", expected, block_row_indices.len())?;
        let most = block_col_indices.len() / num_layout;
        check_size("block_col_indices", "entries", most * num_layout, block_col_indices.len())?;
        let mut layouts = reserved(num_layout)?;
        for (index, rows) in block_row_indices.chunks_exact(grid.rows() + 1).enumerate() {
            layouts.push(BlockLayout::from_csr(grid, rows, &block_col_indices[index * most..][..most])?);
        }
        Self::per_head(layouts, collected((0..q_heads).map(|head| head % num_layout))?)
    }

    /// From matrices of blocks, `[q_heads, rows, columns]`: see [`BlockLayout::from_dense`].
    ///
    /// # Errors
    /// As [`BlockLayout::from_dense`]; or there is no head.
    pub fn from_dense(grid: BlockGrid, q_heads: usize, blocks: &[bool]) -> Result<Self, AttentionError> {
        grid.check()?;
        let size = grid.rows() * grid.columns();
        let expected = size.checked_mul(q_heads);
        let expected = expected.ok_or(AttentionError::SizeOverflow { operand: "blocks" })?;
        check_size("blocks", "entries", expected, blocks.len())?;
        let mut layouts = reserved(q_heads)?;
        for head in 0..q_heads {
            layouts.push(BlockLayout::from_dense(grid, &blocks[head * size..][..size])?);
        }
        Self::per_head(layouts, collected(0..q_heads)?)
    }
}
