//! Scratch memory of a call: what each worker needs, and the states of splits that run side by side.

use super::block::BlockRow;
use crate::error::AttentionError;
use crate::kernel::MAX_ROWS;
use crate::mask::TILE;
use crate::panels::PANEL;
use crate::problem::Problem;
use crate::scratch::AlignedBuf;
use crate::tile::{BLOCK_ROWS, FEW_ROWS};
use std::ops::Range;

/// What one worker needs.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Queries of the block, scaled, `[rows][head_dim]`.
    pub(crate) queries: AlignedBuf<f32>,
    /// Scores, then weights, of one group of rows in one tile.
    pub(crate) scores: AlignedBuf<f32>,
    /// Output rows of the current split.
    pub(crate) acc: AlignedBuf<f32>,
    /// Output rows of the splits so far.
    pub(crate) total: AlignedBuf<f32>,
    /// Key panels, of a whole head or of a tile.
    pub(crate) panels: AlignedBuf<f32>,
    pub(crate) rows: Vec<BlockRow>,
    /// Elements between output rows.
    pub(crate) acc_stride: usize,
    packed: Option<Packed>,
}

/// Which panels of which head lie packed in scratch.
#[derive(Debug)]
struct Packed {
    head: [usize; 2],
    panels: Range<usize>,
}

/// How large scratch has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScratchSizes {
    queries: usize,
    acc: usize,
    acc_stride: usize,
    panels: usize,
}

impl ScratchSizes {
    pub(crate) fn new(problem: &Problem) -> Result<Self, AttentionError> {
        let overflow = AttentionError::SizeOverflow { operand: "workspace" };
        let sizes = || {
            let acc_stride = problem.v_dim.max(1).checked_next_multiple_of(16)?;
            let rows = problem.group().checked_mul(problem.max_q_len)?;
            let panels = problem.max_kv_len.checked_next_multiple_of(PANEL)?.max(TILE);
            // One block reads each key once: a tile of panels is enough.
            let panels = if rows <= FEW_ROWS { TILE } else { panels };
            let rows = BLOCK_ROWS.min(rows.max(MAX_ROWS));
            Some(Self {
                queries: rows.checked_mul(problem.head_dim)?,
                acc: rows.checked_mul(acc_stride)?,
                acc_stride,
                panels: panels.checked_mul(problem.head_dim)?,
            })
        };
        sizes().ok_or(overflow)
    }

    pub(crate) fn acc_stride(&self) -> usize {
        self.acc_stride
    }

    /// Whether scratch of these sizes serves where `other` is needed.
    pub(crate) fn hold(&self, other: &Self) -> bool {
        self.queries >= other.queries
            && self.acc >= other.acc
            && self.acc_stride == other.acc_stride
            && self.panels >= other.panels
    }

    /// Elements in all.
    pub(crate) fn total(&self) -> Option<usize> {
        self.acc
            .checked_mul(2)?
            .checked_add(self.queries)?
            .checked_add(self.panels)?
            .checked_add(MAX_ROWS * TILE)
    }
}

impl Scratch {
    pub(crate) fn new(sizes: &ScratchSizes) -> Result<Self, AttentionError> {
        let buffer = |len| AlignedBuf::zeroed("workspace", len);
        let mut rows = Vec::new();
        let error =
            |_| AttentionError::OutOfMemory { what: "workspace", bytes: BLOCK_ROWS * size_of::<BlockRow>() };
        rows.try_reserve_exact(BLOCK_ROWS).map_err(error)?;
        Ok(Self {
            queries: buffer(sizes.queries)?,
            scores: buffer(MAX_ROWS * TILE)?,
            acc: buffer(sizes.acc)?,
            total: buffer(sizes.acc)?,
            panels: buffer(sizes.panels)?,
            rows,
            acc_stride: sizes.acc_stride,
            packed: None,
        })
    }

    /// Forgets packed keys; every call starts with it.
    pub(crate) fn forget(&mut self) {
        self.packed = None;
    }

    /// Notes that the panels holding `keys` of a head will lie packed at their own place, and returns those that have to
    /// be packed for it: before and after what is there already.
    pub(crate) fn missing_panels(&mut self, head: [usize; 2], keys: &Range<usize>) -> [Range<usize>; 2] {
        let wanted = keys.start / PANEL..keys.end.div_ceil(PANEL);
        let have = match &self.packed {
            Some(Packed { head: of, panels })
                if *of == head && panels.start <= wanted.end && wanted.start <= panels.end =>
            {
                panels.clone()
            }
            _ => wanted.start..wanted.start,
        };
        let panels = have.start.min(wanted.start)..have.end.max(wanted.end);
        self.packed = Some(Packed { head, panels });
        [wanted.start..have.start, have.end..wanted.end]
    }

    pub(crate) fn bytes(&self) -> usize {
        self.queries.bytes()
            + self.scores.bytes()
            + self.acc.bytes()
            + self.total.bytes()
            + self.panels.bytes()
    }
}

/// A workspace lent to a call.
pub(crate) struct WorkspaceParts<'a> {
    pub(crate) workers: &'a mut [Scratch],
    /// Room for the states of splits.
    pub(crate) partials: &'a mut [f32],
}
