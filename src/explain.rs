//! What a plan would do with a call, in words and numbers.

use crate::element::{DType, Element};
use crate::exact::call::{Call, visited_pairs};
use crate::exact::grid::Grid;
use crate::inputs::Keys;
use crate::isa::Level;
use crate::kernel::MAX_ROWS;
use crate::plan::Plan;
use crate::sparse::{BlockLayout, BlockMask};
use crate::tile;
use std::fmt;

/// The choices made for a call; prints as a few lines of text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// Instruction set.
    pub level: Level,
    /// Whether sums run on bf16 dot products.
    pub bf16_dot: bool,
    /// Storage type of queries and output.
    pub q_dtype: DType,
    /// Storage type of keys and values.
    pub kv_dtype: DType,
    /// How keys reach the kernels.
    pub keys: KeyPath,
    /// Tasks that may run side by side.
    pub threads: usize,
    /// Query rows worked on at a time: of all heads that share keys, or of several KV heads that have few rows and few keys.
    pub block_rows: usize,
    /// Query rows and keys of a tile: how much is scored, weighed and added up at a time.
    pub tile: [usize; 2],
    /// Tasks in all.
    pub tasks: usize,
    /// Splits of keys that run side by side, 1 if keys are not split.
    pub splits: usize,
    /// The block mask, if there is one.
    pub blocks: Option<BlockMaskExplanation>,
    /// Estimated time on one thread, which decides whether others help.
    pub estimated_microseconds: f64,
    /// From how much on they do: [`PlanOptions::spread_from_microseconds`](crate::PlanOptions::spread_from_microseconds), or
    /// less between products of a layer that are spread.
    pub spread_from_microseconds: f64,
    /// Scratch memory of the plan.
    pub workspace_bytes: usize,
}

/// What a call's block mask is.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct BlockMaskExplanation {
    /// Queries and keys of a block.
    pub block: [usize; 2],
    /// Layouts that differ.
    pub layouts: usize,
    /// The share of blocks that are stored, see [`BlockMask::density`].
    pub density: f64,
    /// Runs of keys in all layouts, equal rows that follow one another counted once.
    pub runs: usize,
    /// Partial blocks whose bits are stored, equal ones of a layout counted once.
    pub patterns: usize,
    /// Pairs of a query and a key that the call's queries visit, of all heads and sequences, as far as blocks say.
    pub pairs: f64,
}

impl BlockMaskExplanation {
    fn new(mask: &BlockMask, pairs: f64) -> Self {
        let layouts = mask.layouts();
        let grid = layouts[0].grid();
        Self {
            block: [grid.q_block, grid.kv_block],
            layouts: layouts.len(),
            density: mask.density(),
            runs: layouts.iter().map(BlockLayout::runs).sum(),
            patterns: layouts.iter().map(BlockLayout::patterns).sum(),
            pairs,
        }
    }
}

/// How keys reach the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyPath {
    /// Stored in panels, read as they are.
    Panels,
    /// Packed (or widened) into panels once per head and worker: many queries share them.
    Packed,
    /// Packed (or widened) tile by tile: one block reads each key once.
    PackedTile,
    /// Transposed in registers: few rows, nothing worth writing down.
    Transposed,
}

impl Explanation {
    pub(crate) fn new<T: Element>(plan: &Plan, call: &Call<'_, T>, q_dtype: DType, grid: &Grid) -> Self {
        let shares_keys = grid.blocks_per_unit > 1;
        let panels = matches!(call.keys, Keys::Panels(_));
        let as_stored = match plan.bf16_dot() {
            true => tile::pairs_in_registers(T::DTYPE, grid.rows, panels),
            false if panels => !tile::widens_tiles(plan.level().lanes(), grid.rows),
            false => grid.rows <= tile::FUSED_ROWS,
        };
        let keys = match call.keys {
            Keys::Panels(_) if T::DTYPE == DType::F32 && !plan.bf16_dot() => KeyPath::Panels,
            _ if shares_keys => KeyPath::Packed,
            Keys::Panels(_) if as_stored => KeyPath::Panels,
            Keys::Rows(_) if as_stored => KeyPath::Transposed,
            _ => KeyPath::PackedTile,
        };
        Self {
            level: plan.level(),
            bf16_dot: plan.bf16_dot(),
            q_dtype,
            kv_dtype: T::DTYPE,
            keys,
            threads: grid.workers,
            block_rows: grid.block_rows,
            tile: [MAX_ROWS.min(grid.block_rows), call.order.tile],
            tasks: grid.units.saturating_mul(grid.blocks_per_unit).saturating_mul(grid.splits),
            splits: grid.splits,
            blocks: call.mask.blocks.map(|mask| BlockMaskExplanation::new(mask, visited_pairs(call))),
            estimated_microseconds: tile::nanoseconds(call.work) / 1e3,
            spread_from_microseconds: call.spread(plan.spread).least_microseconds(),
            workspace_bytes: plan.workspace_bytes(),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, q_dtype, kv_dtype, block_rows, tile: [rows, keys], tasks, splits, threads, .. } =
            self;
        let tier = if self.bf16_dot {
            "bf16 dot-product attention (operands and weights rounded to bf16)"
        } else {
            "exact attention, order version 1"
        };
        writeln!(f, "{tier}, level {level}, q and out {q_dtype}, k and v {kv_dtype}")?;
        let path = match self.keys {
            KeyPath::Panels => "read from their panels",
            KeyPath::Packed => "packed into panels once per head and worker, for several blocks of queries",
            KeyPath::PackedTile => {
                "packed or widened into panels tile by tile: one block of queries reads each key once"
            }
            KeyPath::Transposed => "transposed in registers: too few queries for packing to pay",
        };
        writeln!(f, "keys: {path}")?;
        writeln!(
            f,
            "blocks: {block_rows} query rows each in tiles of {rows} by {keys} keys, {tasks} tasks, keys in {splits} \
             split(s) side by side"
        )?;
        if let Some(mask) = &self.blocks {
            let BlockMaskExplanation { block: [queries, keys], layouts, density, runs, patterns, pairs } =
                mask;
            writeln!(
                f,
                "block mask: {layouts} layout(s) of {queries} x {keys} blocks, {:.1} % of them stored in {runs} runs, \
                 {patterns} with bits; {pairs:.3e} pairs visited",
                density * 100.0
            )?;
        }
        let why = match (threads, self.estimated_microseconds < self.spread_from_microseconds) {
            (1, true) => "too little work to wake another thread",
            (1, false) => "one task, or no other thread in the plan or the pool",
            _ => "enough work for all",
        };
        writeln!(f, "threads: {threads}, {why} (about {:.0} us on one)", self.estimated_microseconds)?;
        write!(f, "workspace: {} bytes", self.workspace_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Inputs, KeyPanels, Level, PlanOptions, Problem, View};
    use half::f16;

    fn path<T: Element>(level: Level, rows: usize, panels: bool) -> KeyPath {
        let values = [T::from_f32(0.5); 96 * 8];
        let options = PlanOptions { level: Some(level), max_threads: Some(1), ..PlanOptions::default() };
        let plan = Plan::with_options(&Problem::new(1, 8, rows, 70), &options).expect("a plan");
        let q = View::new(&values[..rows * 8], [1, 1, rows, 8]).expect("queries");
        let k = View::new(&values[..70 * 8], [1, 1, 70, 8]).expect("keys");
        let packed = KeyPanels::from_rows(k, 70).expect("panels");
        let inputs = if panels { Inputs::new(q, &packed, k) } else { Inputs::new(q, k, k) };
        plan.explain(&inputs).expect("inputs of the plan").keys
    }

    /// What one block reads: up to 6 rows keys as they are, up to 32 panels of any type, beyond that only those of `f32` and, where
    /// vectors are narrow, of half precision.
    #[test]
    fn paths_of_one_block() {
        for level in Level::available() {
            let widened = if level.lanes() == 16 { KeyPath::PackedTile } else { KeyPath::Panels };
            for (rows, half) in [(1, KeyPath::Panels), (32, KeyPath::Panels), (33, widened), (96, widened)] {
                let stored = if rows <= 6 { KeyPath::Transposed } else { KeyPath::PackedTile };
                assert_eq!(path::<f32>(level, rows, true), KeyPath::Panels, "{level}: {rows} rows, f32");
                assert_eq!(path::<f16>(level, rows, true), half, "{level}: {rows} rows, f16");
                assert_eq!(path::<f32>(level, rows, false), stored, "{level}: {rows} rows of keys");
                assert_eq!(path::<f16>(level, rows, false), stored, "{level}: {rows} rows of f16 keys");
            }
        }
    }
}
