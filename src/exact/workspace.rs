//! Scratch memory of a call: what each worker needs, and the states of splits that run side by side.

use super::bf16_dot::pairs;
use super::measure::RowSums;
use super::order::BlockOrder;
use super::peaks::PeakBuffer;
use super::rows::BlockRow;
use super::tier::Engine;
use crate::error::AttentionError;
use crate::kernel::MAX_ROWS;
use crate::kernel::product::Pair;
use crate::mask::{TILE, TileBits};
use crate::panels::PANEL;
use crate::problem::Problem;
use crate::scratch::AlignedBuf;
use crate::tile::{BLOCK_ROWS, FEW_ROWS, packs_values};

/// What one worker needs.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) operands: Operands,
    /// Scores, then weights, of one group of rows in one tile.
    pub(crate) scores: AlignedBuf<f32>,
    /// Which columns of the tile each row of the group may attend, where it is not all.
    pub(crate) bits: [TileBits; MAX_ROWS],
    /// Which all of them may, where bits say.
    pub(crate) shared: TileBits,
    /// Output rows of the current split, if it is not a block's first.
    pub(crate) acc: AlignedBuf<f32>,
    /// Output rows of the first split, and of all so far.
    pub(crate) total: AlignedBuf<f32>,
    pub(crate) rows: Vec<BlockRow>,
    /// As many as rows where the call measures, none where it does not.
    pub(crate) sums: Vec<RowSums>,
    /// What [`super::peaks`] needs, lent by the call's metrics where it looks for peaks.
    pub(crate) peaks: PeakBuffer,
    /// Elements between output rows.
    pub(crate) acc_stride: usize,
    /// The task in which the worker saw that the call is stopped.
    pub(crate) stopped_in: Option<usize>,
}

/// Operands as a tier lays them out.
#[derive(Debug)]
pub(crate) struct Operands {
    /// Queries of the block, scaled, `[rows][head_dim]`.
    pub(crate) queries: AlignedBuf<f32>,
    /// Key panels, of a whole head or of a tile.
    pub(crate) panels: AlignedBuf<f32>,
    /// Packed values, of a whole head or of a tile, where [`packs_values`] says so.
    pub(crate) values: AlignedBuf<f32>,
    /// What the bf16 tier has instead of the two.
    pub(crate) pairs: PairOperands,
    /// Dimensions that there is room for in packed values.
    pub(crate) v_stride: usize,
    packed: Packed,
}

/// Operands of the bf16 tier, laid out as [`super::bf16_dot`] says.
#[derive(Debug)]
pub(crate) struct PairOperands {
    pub(crate) queries: AlignedBuf<Pair>,
    pub(crate) keys: AlignedBuf<Pair>,
    pub(crate) values: AlignedBuf<Pair>,
    /// Weights of one group of rows in one tile.
    pub(crate) weights: AlignedBuf<Pair>,
}

/// Which panels of 64 keys, or their values, of which head lie packed in scratch.
#[derive(Debug)]
struct Packed {
    head: Option<[usize; 2]>,
    /// A bit for each panel of keys that there is room for.
    keys: Vec<u64>,
    /// The same of values, where a whole head's are packed by themselves.
    values: Vec<u64>,
}

/// How large scratch has to be, in elements of 4 bytes: `f32`, or [`Pair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScratchSizes {
    bf16_dot: bool,
    /// Of a block.
    rows: usize,
    acc: usize,
    acc_stride: usize,
    queries: usize,
    keys: usize,
    /// Panels of keys.
    panels: usize,
    /// Packed values: as many as keys where blocks share them, and then all of a head's lie there.
    values: usize,
    /// Panels of values that are packed by themselves.
    value_panels: usize,
    /// Weights of the bf16 tier.
    weights: usize,
}

impl ScratchSizes {
    pub(crate) fn new(problem: &Problem, engine: Engine) -> Result<Self, AttentionError> {
        let overflow = AttentionError::SizeOverflow { operand: "workspace" };
        let sizes = || {
            let acc_stride = problem.v_dim.max(1).checked_next_multiple_of(16)?;
            let rows = problem.group().checked_mul(problem.max_q_len)?;
            let keys = problem.max_kv_len.checked_next_multiple_of(PANEL)?.max(TILE);
            // One block reads each key once: a tile of panels is enough.
            let shared = rows > FEW_ROWS;
            let keys = if shared { keys } else { TILE };
            let rows = BLOCK_ROWS.min(rows.max(MAX_ROWS));
            let bf16_dot = matches!(engine, Engine::Bf16Dot(_));
            let values = match engine {
                Engine::Bf16Dot(_) => keys / 2,
                Engine::Exact(level)
                    if packs_values(
                        level.lanes(),
                        true, // half precision packs wherever f32 does, and more
                        rows,
                        shared,
                        problem.max_kv_len.saturating_mul(problem.v_dim),
                    ) =>
                {
                    keys.checked_next_multiple_of(TILE)?
                }
                Engine::Exact(_) => 0,
            };
            let dims = if bf16_dot { pairs(problem.head_dim) } else { problem.head_dim };
            Some(Self {
                bf16_dot,
                rows,
                acc: rows.checked_mul(acc_stride)?,
                acc_stride,
                queries: rows.checked_mul(dims)?,
                keys: keys.checked_mul(dims)?,
                panels: keys / PANEL,
                value_panels: if shared && !bf16_dot && values > 0 { keys / PANEL } else { 0 },
                values: values.checked_mul(acc_stride)?,
                weights: if bf16_dot { MAX_ROWS * TILE / 2 } else { 0 },
            })
        };
        sizes().ok_or(overflow)
    }

    pub(crate) fn acc_stride(&self) -> usize {
        self.acc_stride
    }

    /// How much there is of everything; scratch serves where none of it is more.
    pub(crate) fn parts(&self) -> [(&'static str, usize); 11] {
        let in_tier = |tier, size| if self.bf16_dot == tier { size } else { 0 };
        [
            ("rows of a block", self.rows),
            ("elements for sums", self.acc),
            ("elements for queries", in_tier(false, self.queries)),
            ("elements for keys", in_tier(false, self.keys)),
            ("panels of keys", self.panels),
            ("elements for values", in_tier(false, self.values)),
            ("panels of values", self.value_panels),
            ("pairs for queries in bf16", in_tier(true, self.queries)),
            ("pairs for keys in bf16", in_tier(true, self.keys)),
            ("pairs for values in bf16", in_tier(true, self.values)),
            ("pairs for weights in bf16", self.weights),
        ]
    }

    /// Bytes of a [`Scratch`].
    pub(crate) fn bytes(&self) -> Option<usize> {
        let words = self.panels.div_ceil(64) + self.value_panels.div_ceil(64);
        let lists = self.rows * LISTED_ROW + words * size_of::<u64>();
        self.elements()?.checked_mul(size_of::<f32>())?.checked_add(size_of::<Scratch>() + lists)
    }

    fn elements(&self) -> Option<usize> {
        self.acc
            .checked_mul(2)?
            .checked_add(self.queries)?
            .checked_add(self.keys)?
            .checked_add(self.values)?
            .checked_add(self.weights)?
            .checked_add(MAX_ROWS * TILE)
    }
}

/// What lists take for a row of a block.
const LISTED_ROW: usize = size_of::<BlockRow>() + size_of::<RowSums>();

impl Scratch {
    pub(crate) fn new(sizes: &ScratchSizes) -> Result<Self, AttentionError> {
        let buffer = |len| AlignedBuf::zeroed("workspace", len);
        let (mut rows, mut sums) = (Vec::new(), Vec::new());
        let error = |_| AttentionError::OutOfMemory { what: "workspace", bytes: sizes.rows * LISTED_ROW };
        rows.try_reserve_exact(sizes.rows).map_err(error)?;
        sums.try_reserve_exact(sizes.rows).map_err(error)?;
        Ok(Self {
            operands: Operands::new(sizes)?,
            scores: buffer(MAX_ROWS * TILE)?,
            bits: [TileBits::default(); MAX_ROWS],
            shared: TileBits::default(),
            acc: buffer(sizes.acc)?,
            total: buffer(sizes.acc)?,
            rows,
            sums,
            peaks: PeakBuffer::default(),
            acc_stride: sizes.acc_stride,
            stopped_in: None,
        })
    }

    /// Forgets packed keys and values and takes on a plan's strides; every call starts with it.
    pub(crate) fn start(&mut self, sizes: &ScratchSizes) {
        self.operands.packed.head = mutant!("packed-keys-of-the-last-call", None, self.operands.packed.head);
        self.operands.v_stride = sizes.acc_stride;
        self.acc_stride = sizes.acc_stride;
        self.stopped_in = None;
    }

    /// Whether the worker goes on after a task: it does not if the call is stopped, in which case the task counts for
    /// nothing.
    pub(crate) fn note_stop(&mut self, stopped: bool, task: usize) -> bool {
        self.stopped_in = stopped.then_some(task);
        !stopped
    }

    pub(crate) fn bytes(&self) -> usize {
        let buffers = [&self.scores, &self.acc, &self.total];
        let lists =
            self.rows.capacity() * size_of::<BlockRow>() + self.sums.capacity() * size_of::<RowSums>();
        let buffers: usize = buffers.into_iter().map(AlignedBuf::bytes).sum();
        size_of::<Self>() + self.operands.bytes() + buffers + lists
    }
}

impl Operands {
    fn new(sizes: &ScratchSizes) -> Result<Self, AttentionError> {
        let singles = |len| AlignedBuf::zeroed("workspace", if sizes.bf16_dot { 0 } else { len });
        let pairs = |len| AlignedBuf::zeroed("workspace", if sizes.bf16_dot { len } else { 0 });
        let bits = |panels: usize| {
            let (mut bits, words) = (Vec::new(), panels.div_ceil(64));
            let error = |_| AttentionError::OutOfMemory { what: "workspace", bytes: words.saturating_mul(8) };
            bits.try_reserve_exact(words).map_err(error)?;
            bits.resize(words, 0);
            Ok(bits)
        };
        Ok(Self {
            queries: singles(sizes.queries)?,
            panels: singles(sizes.keys)?,
            values: singles(sizes.values)?,
            pairs: PairOperands {
                queries: pairs(sizes.queries)?,
                keys: pairs(sizes.keys)?,
                values: pairs(sizes.values)?,
                weights: pairs(sizes.weights)?,
            },
            v_stride: sizes.acc_stride,
            packed: Packed { head: None, keys: bits(sizes.panels)?, values: bits(sizes.value_panels)? },
        })
    }

    /// Whether a panel of a head's keys lies packed at its own place.
    #[inline]
    pub(crate) fn has_keys(&self, head: [usize; 2], panel: usize) -> bool {
        self.packed.head == Some(head) && has(&self.packed.keys, panel)
    }

    /// The same of values.
    #[inline]
    pub(crate) fn has_values(&self, head: [usize; 2], panel: usize) -> bool {
        self.packed.head == Some(head) && has(&self.packed.values, panel)
    }

    /// Whether a panel of a head's keys is to be packed; notes it as packed, which the caller sees to.
    #[inline]
    pub(crate) fn must_pack_keys(&mut self, head: [usize; 2], panel: usize) -> bool {
        self.packed.turn_to(head);
        note(&mut self.packed.keys, panel)
    }

    /// The same of values.
    #[inline]
    pub(crate) fn must_pack_values(&mut self, head: [usize; 2], panel: usize) -> bool {
        self.packed.turn_to(head);
        note(&mut self.packed.values, panel)
    }

    /// Where a key's values lie among a head's packed values, those of the first panel of `width` dimensions: tiles of 256 keys, one
    /// after another.
    #[inline(always)]
    pub(crate) fn value_place(&self, key: usize, width: usize) -> usize {
        key / TILE * TILE * self.v_stride + key % TILE * width
    }

    fn bytes(&self) -> usize {
        let PairOperands { queries, keys, values, weights } = &self.pairs;
        self.queries.bytes()
            + self.panels.bytes()
            + self.values.bytes()
            + queries.bytes()
            + keys.bytes()
            + values.bytes()
            + weights.bytes()
            + (self.packed.keys.capacity() + self.packed.values.capacity()) * size_of::<u64>()
    }
}

impl Packed {
    /// Forgets what is packed if it is another head's.
    #[inline]
    fn turn_to(&mut self, head: [usize; 2]) {
        let known = mutant!(
            "packed-keys-of-another-sequence",
            self.head == Some(head),
            self.head.is_some_and(|of| of[1] == head[1])
        );
        if !known {
            self.keys.fill(0);
            mutant!("packed-values-of-another-head", self.values.fill(0), ());
            self.head = Some(head);
        }
    }
}

#[inline]
fn has(bits: &[u64], panel: usize) -> bool {
    bits[panel / 64] >> (panel % 64) & 1 == 1
}

/// Notes a panel; whether it was not there.
#[inline]
fn note(bits: &mut [u64], panel: usize) -> bool {
    let missing = !has(bits, panel);
    bits[panel / 64] |= 1 << (panel % 64);
    missing
}

/// A workspace lent to a call.
pub(crate) struct WorkspaceParts<'a> {
    pub(crate) workers: &'a mut [Scratch],
    /// Room for the states of splits.
    pub(crate) partials: &'a mut [f32],
    /// Of the call's blocks.
    pub(crate) order: &'a BlockOrder,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Level;

    /// Whatever call of a plan packs values finds room for all of a head's.
    #[test]
    fn there_is_room_for_packed_values() {
        let (mut packed, mut widened) = (0, 0);
        for level in Level::ALL {
            for (max_q_len, max_kv_len, v_dim) in
                [(33, 300, 64), (100, 65, 128), (500, 4097, 1), (12, 900, 40), (3000, 129, 17), (64, 64, 64)]
            {
                let problem = Problem { q_heads: 4, kv_heads: 2, head_dim: 8, v_dim, max_q_len, max_kv_len };
                let sizes = ScratchSizes::new(&problem, Engine::Exact(level)).expect("sizes");
                for kv_len in [1, 63, 64, 65, 128, 256, 257, 300, 900, 4097] {
                    for (rows, shared, half) in [
                        (13, true, false),
                        (96, true, false),
                        (96, false, false),
                        (96, false, true),
                        (33, false, true),
                    ] {
                        // Blocks share keys, or are larger, only where the plan has more than few rows.
                        let possible = kv_len <= max_kv_len && rows <= sizes.rows && 2 * max_q_len > FEW_ROWS;
                        if !possible || !packs_values(level.lanes(), half, rows, shared, kv_len * v_dim) {
                            continue;
                        }
                        packed += 1;
                        widened += usize::from(half && !shared && level.lanes() == 16);
                        let what = format!("{level}: {problem:?}, {kv_len} keys");
                        let there = if shared { kv_len.next_multiple_of(TILE) } else { TILE };
                        assert!(there * sizes.acc_stride <= sizes.values, "{what}: {sizes:?}");
                        assert!(!shared || kv_len.div_ceil(PANEL) <= sizes.value_panels, "{what}: {sizes:?}");
                    }
                }
            }
        }
        assert!(
            widened > 0 && packed > widened,
            "some calls pack values, {widened} of {packed} to widen them"
        );
    }
}
