//! One unit's causal rows on several threads, with the bits that they have on one.
//!
//! ```text
//! wave   1  blocks side by side   keys -> features under the gauge that the wave begins with -> their own sums
//!        2  one after another     the state before a block, for it to keep; += its sums
//!        3  blocks side by side   rows
//! ```
//!
//! A state is a chain of additions of blocks' sums, which here are only made ahead: 63 of 64 parts of the work. A block that
//! raises the gauge or lets go of keys before it cannot be: it goes by itself, and the next wave is a short one again. Of
//! sequences whose keys keep raising the gauge, most blocks do.

use super::super::gauge;
use super::super::rows::RowScratch;
use super::super::state::StateShape;
use super::{Block, Operands, Rules, Run, UnitScratch};
use crate::error::AttentionError;
use crate::isa::{Isa, Kernel, Level};
use crate::panels::PANEL;
use crate::parallel::{self, MAX_PARTS};
use crate::rows::OwnedRows;
use crate::scratch::AlignedBuf;
use crate::softmax::exp2;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Blocks of a wave, at most.
const WAVE: usize = 16;

/// Tokens from which waves are worth it.
pub(crate) const SPREAD_FROM: usize = 4 * PANEL;

/// What a wave keeps of a block.
#[derive(Debug)]
pub(crate) struct WaveBlock {
    /// Its sums, then the state before it.
    unit: AlignedBuf<f32>,
    /// Features of its keys, `[features][64]`.
    keys: AlignedBuf<f32>,
    /// Whether the gauge that the wave began with is its own, and nothing is let go of.
    plain: bool,
}

impl WaveBlock {
    /// Those that calls of up to so many tokens need.
    pub(crate) fn count(shape: &StateShape, tokens: usize) -> usize {
        if shape.window || tokens < SPREAD_FROM { 0 } else { WAVE.min(tokens.div_ceil(PANEL)) }
    }

    pub(crate) fn new(shape: &StateShape) -> Result<Self, AttentionError> {
        let buffer = |len| AlignedBuf::zeroed("workspace", len);
        Ok(Self { unit: buffer(shape.unit_len()?)?, keys: buffer(shape.features * PANEL)?, plain: false })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.unit.bytes() + self.keys.bytes()
    }
}

impl Rules {
    /// [`Rules::extend`] for all tokens and all heads of a unit, on as many workers as there are scratches; without a window.
    pub(crate) fn extend_spread(
        &self,
        operands: &Operands<'_>,
        (state, len): (&mut [f32], usize),
        (scratches, wave): (&mut [UnitScratch], &mut [WaveBlock]),
        mut out: OwnedRows<'_>,
    ) {
        let (heads, tokens) = (out.heads(), out.tokens().end);
        let keys = tokens.min(operands.keys);
        let (mut start, mut width) = (0, 1);
        while start < keys {
            let wave = &mut wave[..width.min((keys - start).div_ceil(PANEL))];
            let plain = match wave.len() {
                1 => 0,
                _ => {
                    let scratch = (&mut *scratches, &mut *wave);
                    self.wave(operands, start..keys, (&mut *state, len), scratch, &mut out)
                }
            };
            start = keys.min(start + plain * PANEL);
            if plain < wave.len() {
                let end = keys.min(start + PANEL);
                let mut rows = out.take_tokens(end - start);
                let (unit, rows) = ((&mut *state, len), (&mut rows, heads.clone()));
                self.extend_tokens(operands, start..end, unit, &mut scratches[0], rows);
                start = end;
            }
            let all = plain == wave.len() || wave.len() == 1;
            width = if all { WAVE.min(2 * width) } else { 1 };
        }
        let unit = self.shape.view(state);
        let part = (tokens - keys).div_ceil(MAX_PARTS.min(4 * scratches.len())).next_multiple_of(PANEL);
        let parts = std::iter::from_fn(|| (!out.tokens().is_empty()).then(|| out.take_tokens(part)));
        parallel::for_each_part_with(parts, scratches, &|mut out: OwnedRows<'_>, scratch| {
            let (heads, tokens) = (out.heads(), out.tokens());
            self.attend(operands, (unit, len + operands.keys), scratch, (&mut out, heads), tokens);
        });
    }

    /// Rows of the first blocks of a wave, as many as are plain; returns how many.
    fn wave(
        &self,
        operands: &Operands<'_>,
        tokens: Range<usize>,
        (state, len): (&mut [f32], usize),
        (scratches, wave): (&mut [UnitScratch], &mut [WaveBlock]),
        out: &mut OwnedRows<'_>,
    ) -> usize {
        let block = |index: usize| self.block(tokens.start + index * PANEL, len, tokens.end);
        let before = self.shape.view(state);
        let parts = wave.iter_mut().enumerate();
        parallel::for_each_part_with(parts, scratches, &|(index, own): (usize, &mut WaveBlock), scratch| {
            self.sum_block(operands, &block(index), before.gauge, own, scratch);
        });
        let plain = wave.iter().take_while(|own| own.plain).count();
        let wave = &mut wave[..plain];
        for own in wave.iter_mut() {
            let decayed = operands.decay.is_some();
            let (state, block) = (&mut *state, &mut own.unit[..]);
            run_join(self.level, Join { shape: self.shape, decayed, state, block });
        }
        let parts = wave.iter().enumerate();
        let parts = parts.map(|(index, own)| (block(index), own, out.take_tokens(block(index).keys)));
        type Part<'a> = (Block, &'a WaveBlock, OwnedRows<'a>);
        parallel::for_each_part_with(parts, scratches, &|(block, own, mut out): Part<'_>, scratch| {
            let heads = out.heads();
            self.load_values(operands, &block, scratch);
            let (columns, state) = (0..block.keys, self.shape.view(&own.unit));
            let run = Run { columns, keys: &own.keys, state, has_state: block.folded, mapped: false };
            self.attend_run(operands, &block, &run, scratch, (&mut out, heads));
        });
        plain
    }

    /// A block's features and sums, if the gauge is what it will be when its turn comes.
    fn sum_block(
        &self,
        operands: &Operands<'_>,
        block: &Block,
        gauge: &[f32],
        own: &mut WaveBlock,
        scratch: &mut UnitScratch,
    ) {
        self.load(operands, block, scratch);
        own.plain = scratch.resets == 0;
        if !own.plain {
            return;
        }
        let columns = 0..block.keys;
        self.map_keys(columns.clone(), &scratch.panel, &mut scratch.rows, &mut own.keys);
        own.plain = !self.shape.gauged || gauge::keep(self.level, &mut own.keys, columns.clone(), gauge);
        if !own.plain {
            return;
        }
        // What is added to -0 is as it was, be it 0 of either sign.
        own.unit.fill(-0.0);
        let mut unit = self.shape.split(&mut own.unit);
        let UnitScratch { keys, values, totals, rows: RowScratch { acc, .. }, .. } = scratch;
        let (keys, totals) = match operands.decay {
            // Rows need them as they are.
            Some(_) => {
                keys.copy_from_slice(&own.keys);
                (keys, Some(&*totals))
            }
            None => (&mut own.keys, None),
        };
        self.fold(keys, columns, values, totals, (&mut unit, acc));
    }
}

#[inline(never)]
fn run_join(level: Level, task: Join<'_>) {
    level.dispatch(task);
}

/// Adds a block's sums to a state, as folding its keys does; the block gets the state as it was.
struct Join<'a> {
    shape: StateShape,
    decayed: bool,
    state: &'a mut [f32],
    block: &'a mut [f32],
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Join { shape, decayed, state, block } = self;
        let (state, block) = (shape.split(state), shape.split(block));
        let factor = if decayed { exp2(isa, *block.decay * LOG2_E) } else { 1.0 };
        for (sum, own) in state.sums.chunks_exact_mut(I::LANES).zip(block.sums.chunks_exact_mut(I::LANES)) {
            let (before, added) = (isa.load(sum), isa.load(own));
            isa.store(before, own);
            isa.store(isa.add(isa.mul(before, isa.splat(factor)), added), sum);
        }
        for (norm, own) in state.norms.iter_mut().zip(block.norms.iter_mut()) {
            let before = *norm;
            *norm = before * factor + *own;
            *own = before;
        }
        block.gauge.copy_from_slice(state.gauge);
        let before = *state.decay;
        *state.decay = before + *block.decay;
        *block.decay = before;
    }
}
