//! Layouts chosen by content: the blocks whose mean key scores best against the mean query.
//!
//! ```text
//! s[r][c] = scale * mean(q of row r) . mean(k of column c)      columns that causality leaves, if it is asked for
//! p[r]    = softmax(s[r])                                        summed over the query heads of a KV head, if asked for
//! kept    = the largest of p[r], by number or until they sum up to a share; and sinks, and the diagonal
//! ```
//!
//! This is the block-sparse head of MInference (arXiv 2407.02490) with [`Keep::TopK`], and what SpargeAttn (arXiv
//! 2502.18137) selects with [`Keep::Mass`], without its test of how alike the tokens of a block are: where they are not, a
//! mean says little, and quality is the caller's to measure. A block whose score is -inf for every head that chooses is not
//! chosen, however many are asked for. Rows with scores of NaN or +inf keep every other block, so that what made them so
//! shows.

use super::block_mask::BlockMask;
use super::builder::LayoutBuilder;
use super::layout::{BlockGrid, BlockLayout};
use super::memory::{collected, filled, reserved};
use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::exact::call::{check_scale, default_scale};
use crate::inputs::QueryStart;
use crate::view::View;
use std::ops::Range;

/// Which blocks of a row are kept, by their share of its softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Keep {
    /// So many of the best, or as many as there are to choose from.
    TopK(usize),
    /// The fewest of the best that have at least this share together, 0 to 1; one at least.
    Mass(f32),
}

/// How blocks are selected.
///
/// ```
/// use lucid_attention::sparse::{BlockGrid, Keep, Selection};
/// use lucid_attention::{Inputs, Mask, View, attention};
///
/// let x: Vec<f32> = (0..2 * 64 * 8).map(|i| (i as f32 * 0.7).sin()).collect();
/// let x = View::new(&x, [1, 2, 64, 8])?;
/// let selection = Selection { causal: true, ..Selection::new(Keep::TopK(2)) };
/// let blocks = selection.select(BlockGrid::square(64, 16), x, x)?;
/// attention(&Inputs::new(x, x, x).mask(Mask::causal().blocks(&blocks)))?;
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Selection {
    /// Which blocks are kept.
    pub keep: Keep,
    /// Only blocks that a causal mask leaves are scored and kept.
    pub causal: bool,
    /// So many blocks at the beginning are kept, besides.
    pub sink_blocks: usize,
    /// So many blocks up to the one that holds the key at the position of the row's last query are kept, besides.
    pub local_blocks: usize,
    /// Query heads that share a KV head get one layout, by the sum of their softmaxes: they are worked on together, and
    /// with layouts of their own would visit what any of them chose.
    pub per_kv_head: bool,
    /// The factor of the scores; `1 / sqrt(head_dim)` if not given.
    pub scale: Option<f32>,
}

impl Selection {
    /// By this rule and nothing else; query heads of a KV head choose together.
    pub fn new(keep: Keep) -> Self {
        Self { keep, causal: false, sink_blocks: 0, local_blocks: 0, per_kv_head: true, scale: None }
    }

    /// Selects blocks for every sequence and query head of `q`, `[batch, q_heads, q_len, head_dim]`, against `k`, `[batch,
    /// kv_heads, kv_len, head_dim]`, whose tokens stand at the positions of `grid`. All of it is `f32`, in plain loops on
    /// the calling thread: `(q_len + kv_len) * head_dim` steps for each head, and `head_dim` for each pair of blocks.
    ///
    /// # Errors
    /// The operands do not fit the grid or one another, the scale is out of range, the share is no number from 0 to 1, a
    /// block size is 0, there are more than 2^32 blocks, or memory cannot be had.
    pub fn select<Q: Element, T: Element>(
        &self,
        grid: BlockGrid,
        q: View<'_, Q>,
        k: View<'_, T>,
    ) -> Result<BlockMask, AttentionError> {
        grid.check()?;
        check_size("q", "q_len", grid.q_len, q.shape()[2])?;
        self.select_at(grid, q, k, QueryStart::TopLeft)
    }

    /// [`Selection::select`] for queries at some of the grid's positions, as when decoding: the other rows have no block.
    ///
    /// ```
    /// use lucid_attention::sparse::{BlockGrid, Keep, Selection};
    /// use lucid_attention::{QueryStart, View};
    ///
    /// // The next token of a sequence of 64, against a quarter of its blocks.
    /// let (q, k): (Vec<f32>, Vec<f32>) = (vec![1.0; 8], (0..64 * 8).map(|i| (i as f32 * 0.7).sin()).collect());
    /// let (q, k) = (View::new(&q, [1, 1, 1, 8])?, View::new(&k, [1, 1, 64, 8])?);
    /// let selection = Selection::new(Keep::TopK(1));
    /// let blocks = selection.select_at(BlockGrid::square(64, 16), q, k, QueryStart::BottomRight)?;
    /// assert_eq!(blocks.layouts()[0].blocks(), 1);
    /// # Ok::<(), lucid_attention::AttentionError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Selection::select`], but for the number of queries; some stand outside the grid's; or there are not as many
    /// starts as sequences.
    pub fn select_at<Q: Element, T: Element>(
        &self,
        grid: BlockGrid,
        q: View<'_, Q>,
        k: View<'_, T>,
        q_start: QueryStart<'_>,
    ) -> Result<BlockMask, AttentionError> {
        grid.check()?;
        let ([batch, q_heads, _, dim], [k_batch, kv_heads, kv_len, k_dim]) = (q.shape(), k.shape());
        check_size("k", "kv_len", grid.kv_len, kv_len)?;
        check_size("k", "batch", batch, k_batch)?;
        check_size("k", "head_dim", dim, k_dim)?;
        let group = q_heads.checked_div(kv_heads).filter(|group| group * kv_heads == q_heads);
        let Some(group) = group.filter(|&group| group > 0 && batch > 0 && dim > 0) else {
            let got = format!("q {:?}, k {:?}", q.shape(), k.shape());
            let expected = "batch, heads and head_dim of at least 1, q_heads a multiple of kv_heads";
            return Err(AttentionError::Value { operand: "q", expected, got });
        };
        if let Keep::Mass(share) = self.keep
            && !(0.0..=1.0).contains(&share)
        {
            let (expected, got) = ("a share from 0 to 1", share.to_string());
            return Err(AttentionError::Value { operand: "keep", expected, got });
        }
        let scale = self.scale.unwrap_or_else(|| default_scale(dim));
        check_scale(scale)?;
        if let QueryStart::PerSequence(starts) = q_start {
            check_size("q_start", "entries", batch, starts.len())?;
        }

        // Heads that choose together.
        let together = if self.per_kv_head { group } else { 1 };
        let mut layouts = reserved(batch * q_heads / together)?;
        for batch in 0..batch {
            let part = Part::new(grid, queries_at(&grid, q.shape()[2], q_start, batch)?);
            for first in (0..q_heads).step_by(together) {
                let keys = means(k, [batch, first / group], 0, 0..grid.columns(), grid.kv_block)?;
                let mut shares = filled(part.rows.len() * grid.columns(), f32::NEG_INFINITY)?;
                for head in first..first + together {
                    let rows = part.rows.clone();
                    let queries = means(q, [batch, head], part.queries.start, rows, grid.q_block)?;
                    self.add_shares(&part, scale, [&queries, &keys], &mut shares)?;
                }
                layouts.push(self.layout(&part, &shares)?);
            }
        }
        let table = collected((0..batch * q_heads).map(|head| head / together))?;
        BlockMask::new(layouts, [batch, q_heads], table)
    }

    /// Columns that a row may choose from.
    fn columns(&self, part: &Part, row: usize) -> usize {
        if self.causal { part.causal_columns(row) } else { part.grid.columns() }
    }

    /// Adds the softmax of each row's scores, but for those of -inf.
    fn add_shares(
        &self,
        part: &Part,
        scale: f32,
        [queries, keys]: [&[f32]; 2],
        shares: &mut [f32],
    ) -> Result<(), AttentionError> {
        let dim = queries.len().checked_div(part.rows.len()).unwrap_or(1);
        let rows = queries.chunks_exact(dim).zip(shares.chunks_exact_mut(part.grid.columns().max(1)));
        let mut scores = reserved(part.grid.columns())?;
        for (row, (q, shares)) in part.rows.clone().zip(rows) {
            let keys = keys.chunks_exact(dim).take(self.columns(part, row));
            scores.clear();
            scores.extend(keys.map(|k| scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>()));
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let some = |score: &f32| *score != f32::NEG_INFINITY;
            let sum: f32 = scores.iter().filter(|score| some(score)).map(|score| (score - max).exp()).sum();
            for (share, score) in shares.iter_mut().zip(&scores).filter(|(_, score)| some(score)) {
                let so_far = if *share == f32::NEG_INFINITY { 0.0 } else { *share };
                *share = so_far + (score - max).exp() / sum;
            }
        }
        Ok(())
    }

    /// The blocks that a matrix of shares chooses; those of -inf cannot be chosen.
    fn layout(&self, part: &Part, shares: &[f32]) -> Result<BlockLayout, AttentionError> {
        let grid = &part.grid;
        let mut builder = LayoutBuilder::new(*grid)?;
        let mut order: Vec<usize> = reserved(grid.columns())?;
        let mut kept: Vec<bool> = reserved(grid.columns())?;
        for row in 0..grid.rows() {
            let Some(own) = row.checked_sub(part.rows.start).filter(|_| part.rows.contains(&row)) else {
                builder.end_row();
                continue;
            };
            let count = self.columns(part, row);
            let shares = &shares[own * grid.columns()..][..count];
            let last = part.causal_columns(row);
            let local = last.saturating_sub(self.local_blocks)..last;
            kept.clear();
            kept.extend((0..count).map(|column| column < self.sink_blocks || local.contains(&column)));
            order.clear();
            order.extend((0..count).filter(|&column| shares[column] != f32::NEG_INFINITY));
            if order.iter().all(|&column| shares[column].is_finite()) {
                // Equals in order of columns.
                order.sort_unstable_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
                order.truncate(self.best(&order, shares));
            }
            order.iter().for_each(|&column| kept[column] = true);
            builder.full_row(count, |column| kept[column])?;
        }
        Ok(builder.finish())
    }

    /// How many of a row's best to keep.
    fn best(&self, order: &[usize], shares: &[f32]) -> usize {
        match self.keep {
            Keep::TopK(count) => count.min(order.len()),
            Keep::Mass(share) => {
                let enough = share * order.iter().map(|&column| shares[column]).sum::<f32>();
                let mut sum = 0.0;
                let before = order.iter().take_while(|&&column| {
                    let missing = sum < enough;
                    sum += shares[column];
                    missing
                });
                before.count().max(1).min(order.len())
            }
        }
    }
}

/// The positions of a sequence's queries, and the rows of blocks they are in.
struct Part {
    grid: BlockGrid,
    queries: Range<usize>,
    rows: Range<usize>,
}

impl Part {
    fn new(grid: BlockGrid, queries: Range<usize>) -> Self {
        let rows = queries.start / grid.q_block..queries.end.div_ceil(grid.q_block);
        let rows = if queries.is_empty() { 0..0 } else { rows };
        Self { grid, queries, rows }
    }

    /// Columns of blocks that the last query of a row reaches under a causal mask.
    fn causal_columns(&self, row: usize) -> usize {
        let end = self.grid.queries(row).end.min(self.queries.end);
        end.div_ceil(self.grid.kv_block).min(self.grid.columns())
    }
}

/// The positions of a sequence's queries.
fn queries_at(
    grid: &BlockGrid,
    count: usize,
    q_start: QueryStart<'_>,
    sequence: usize,
) -> Result<Range<usize>, AttentionError> {
    let start = match q_start {
        QueryStart::TopLeft => 0,
        QueryStart::BottomRight => grid.kv_len as i128 - count as i128,
        QueryStart::At(start) => i128::from(start),
        QueryStart::PerSequence(starts) => i128::from(starts[sequence]),
    };
    let end = start + count as i128;
    if start >= 0 && end <= grid.q_len as i128 {
        return Ok(start as usize..end as usize);
    }
    let got = format!("{start}..{end} of {}, sequence {sequence}", grid.q_len);
    Err(AttentionError::Value { operand: "q_start", expected: "queries at positions of the grid", got })
}

/// Means of the tokens in each of some blocks of positions, `[blocks, dim]`; token 0 stands at position `start`.
fn means<T: Element>(
    view: View<'_, T>,
    [batch, head]: [usize; 2],
    start: usize,
    blocks: Range<usize>,
    block: usize,
) -> Result<Vec<f32>, AttentionError> {
    let [_, _, tokens, dim] = view.shape();
    let mut means = filled(blocks.len() * dim, 0.0f32)?;
    for (index, mean) in blocks.zip(means.chunks_exact_mut(dim)) {
        let token = |position: usize| position.saturating_sub(start).min(tokens);
        let own = token(index * block)..token(index.saturating_add(1).saturating_mul(block));
        for token in own.clone() {
            for (d, mean) in mean.iter_mut().enumerate() {
                *mean += view.get([batch, head, token, d]).map_or(f32::NAN, |x| x.to_f32());
            }
        }
        mean.iter_mut().for_each(|mean| *mean /= own.len() as f32);
    }
    Ok(means)
}
