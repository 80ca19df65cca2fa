//! A map's directions, laid out for its products with tokens.

use super::projection::Projection;
use crate::error::AttentionError;
use crate::isa::Isa;
use crate::kernel::prefetch::Near;
use crate::kernel::score::ScoreRows;
use crate::kernel::tiles::ScorePanels;
use crate::kernel::{Constant, MAX_ROWS};
use crate::panels::PANEL;
use std::ops::Range;

/// Directions times a factor, twice: as rows, for many tokens at a time, and as panels of 64, for one. Both give a product's
/// chain of multiply-adds, and so its bits.
#[derive(Clone, Debug)]
pub(crate) struct Directions {
    /// `[features, head_dim]`.
    pub(crate) rows: Vec<f32>,
    /// `[features / 64, rounded up][head_dim][64]`.
    panels: Vec<f32>,
}

impl Directions {
    /// Those of a projection; `mirrored`, the same with the other sign after them.
    pub(crate) fn new(projection: &Projection, factor: f64, mirrored: bool) -> Result<Self, AttentionError> {
        let (own, dims) = (projection.rows(), projection.head_dim());
        let mut rows = reserved(if mirrored { own.len().checked_mul(2) } else { Some(own.len()) })?;
        rows.extend(own.iter().map(|&x| (f64::from(x) * factor) as f32));
        if mirrored {
            rows.extend_from_within(..);
            rows[own.len()..].iter_mut().for_each(|x| *x = -*x);
        }
        let padded = (rows.len() / dims).next_multiple_of(PANEL).checked_mul(dims);
        let mut panels = reserved(padded)?;
        for block in rows.chunks(PANEL * dims) {
            for dim in 0..dims {
                let end = panels.len() + PANEL;
                panels.extend(block.chunks_exact(dims).map(|row| row[dim]));
                panels.resize(end, 0.0);
            }
        }
        Ok(Self { rows, panels })
    }

    /// Products with some tokens of `panel`, which is `[head_dim][64]`, into `out`, `[features][64]`; `row` has room for a
    /// vector and 64 products. Columns up to the next multiples of 16 are arbitrary then.
    #[inline(always)]
    pub(crate) fn project<I: Isa>(
        &self,
        isa: I,
        panel: &[f32],
        tokens: &Range<usize>,
        (row, out): (&mut [f32], &mut [f32]),
    ) {
        let dims = panel.len() / PANEL;
        if tokens.len() != 1 {
            let columns = super::features::whole_columns(tokens);
            let (rows, count) = (&self.rows[..], self.rows.len() / dims);
            for first in (0..count).step_by(MAX_ROWS) {
                isa.call(ScorePanels {
                    rows: MAX_ROWS.min(count - first),
                    q: &rows[first * dims..],
                    dims,
                    panels: panel,
                    ahead: Near::Nothing,
                    columns: columns.clone(),
                    out: ScoreRows { out: &mut out[first * PANEL..], stride: Constant::<PANEL>, scale: () },
                });
            }
            return;
        }
        // A token by itself would be one of 16 columns: here directions are the columns.
        let column = tokens.start;
        let (x, products) = row.split_at_mut(dims);
        for (x, dim) in x.iter_mut().zip(panel.chunks_exact(PANEL)) {
            *x = dim[column];
        }
        for (panel, out) in self.panels.chunks_exact(dims * PANEL).zip(out.chunks_mut(PANEL * PANEL)) {
            let products = &mut products[..PANEL];
            isa.call(ScorePanels {
                rows: 1,
                q: &*x,
                dims,
                panels: panel,
                ahead: Near::Nothing,
                columns: 0..PANEL,
                out: ScoreRows { out: &mut *products, stride: Constant::<PANEL>, scale: () },
            });
            for (out, &product) in out.chunks_exact_mut(PANEL).zip(&*products) {
                out[column] = product;
            }
        }
    }
}

/// An empty list with room for so many numbers.
fn reserved(size: Option<usize>) -> Result<Vec<f32>, AttentionError> {
    let size = size.ok_or(AttentionError::SizeOverflow { operand: "projection" })?;
    let mut list = Vec::new();
    let bytes = size.saturating_mul(size_of::<f32>());
    list.try_reserve_exact(size).map_err(|_| AttentionError::OutOfMemory { what: "projection", bytes })?;
    Ok(list)
}
