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
//! mean says little, and quality is the caller's to measure. Rows whose scores are not finite keep every block, so that
//! what made them so shows.

use super::block_mask::BlockMask;
use super::layout::{BlockGrid, BlockLayout, LayoutBuilder, reserved};
use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::exact::call::{check_scale, default_scale};
use crate::view::View;

/// Which blocks of a row are kept, by their share of its softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Keep {
    /// So many of the best.
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
    /// So many blocks up to the one that holds the key at the row's last position are kept, besides.
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
        let ([batch, q_heads, q_len, dim], [k_batch, kv_heads, kv_len, k_dim]) = (q.shape(), k.shape());
        check_size("q", "q_len", grid.q_len, q_len)?;
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

        // Heads that choose together.
        let together = if self.per_kv_head { group } else { 1 };
        let mut layouts = Vec::new();
        for batch in 0..batch {
            for first in (0..q_heads).step_by(together) {
                let keys = means(k, [batch, first / group], grid.kv_block)?;
                let mut shares = zeros(grid.rows() * grid.columns())?;
                for head in first..first + together {
                    let queries = means(q, [batch, head], grid.q_block)?;
                    self.add_shares(&grid, scale, &queries, &keys, &mut shares);
                }
                layouts.push(self.layout(grid, &shares)?);
            }
        }
        let table = (0..batch * q_heads).map(|head| head / together).collect();
        BlockMask::new(layouts, [batch, q_heads], table)
    }

    /// Columns that a row may choose from.
    fn columns(&self, grid: &BlockGrid, row: usize) -> usize {
        if self.causal { grid.causal_columns(row) } else { grid.columns() }
    }

    /// Adds the softmax of each row's scores.
    fn add_shares(&self, grid: &BlockGrid, scale: f32, queries: &[f32], keys: &[f32], shares: &mut [f32]) {
        let dim = if grid.rows() == 0 { 1 } else { queries.len() / grid.rows() };
        let rows = queries.chunks_exact(dim).zip(shares.chunks_exact_mut(grid.columns().max(1)));
        let mut scores = Vec::new();
        for (row, (q, shares)) in rows.enumerate() {
            let keys = keys.chunks_exact(dim).take(self.columns(grid, row));
            scores.clear();
            scores.extend(keys.map(|k| scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>()));
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = scores.iter().map(|score| (score - max).exp()).sum();
            for (share, score) in shares.iter_mut().zip(&scores) {
                *share += (score - max).exp() / sum;
            }
        }
    }

    /// The blocks that a matrix of shares chooses.
    fn layout(&self, grid: BlockGrid, shares: &[f32]) -> Result<BlockLayout, AttentionError> {
        let mut builder = LayoutBuilder::new(grid)?;
        let mut order: Vec<usize> = reserved(grid.columns())?;
        let mut kept: Vec<bool> = reserved(grid.columns())?;
        for row in 0..grid.rows() {
            let count = self.columns(&grid, row);
            let shares = &shares[row * grid.columns()..][..count];
            let local = grid.causal_columns(row).saturating_sub(self.local_blocks)..grid.causal_columns(row);
            kept.clear();
            kept.extend((0..count).map(|column| column < self.sink_blocks || local.contains(&column)));
            if shares.iter().all(|share| share.is_finite()) {
                order.clear();
                order.extend(0..count);
                // Equals in order of columns.
                order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
                order[..self.best(&order, shares)].iter().for_each(|&column| kept[column] = true);
            } else {
                kept.fill(true);
            }
            (0..count).filter(|&column| kept[column]).for_each(|column| builder.full(column));
            builder.end_row();
        }
        Ok(builder.finish())
    }

    /// How many of a row's best to keep.
    fn best(&self, order: &[usize], shares: &[f32]) -> usize {
        match self.keep {
            Keep::TopK(count) => count.min(order.len()),
            Keep::Mass(share) => {
                let enough = share * shares.iter().sum::<f32>();
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

/// Means of each block of a head's tokens, `[blocks, dim]`.
fn means<T: Element>(
    view: View<'_, T>,
    [batch, head]: [usize; 2],
    block: usize,
) -> Result<Vec<f32>, AttentionError> {
    let [_, _, tokens, dim] = view.shape();
    let blocks = tokens.div_ceil(block);
    let mut means = zeros(blocks * dim)?;
    for (index, mean) in means.chunks_exact_mut(dim).enumerate() {
        let block = index * block..tokens.min((index + 1) * block);
        for token in block.clone() {
            for (d, mean) in mean.iter_mut().enumerate() {
                *mean += view.get([batch, head, token, d]).map_or(f32::NAN, |x| x.to_f32());
            }
        }
        mean.iter_mut().for_each(|mean| *mean /= block.len() as f32);
    }
    Ok(means)
}

fn zeros(len: usize) -> Result<Vec<f32>, AttentionError> {
    let mut zeros = reserved(len)?;
    zeros.resize(len, 0.0);
    Ok(zeros)
}
