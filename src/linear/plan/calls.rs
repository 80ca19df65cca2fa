//! Calls of a plan: how units, rows and splits of keys are shared out to workers.

use super::super::inputs::{LinearInputs, LogDecay};
use super::super::state::{LinearState, StateShape, merge_units};
use super::super::unit::spread::SPREAD_FROM;
use super::super::unit::{Operands, Rules, UnitDecay, UnitScratch};
use super::{LinearPlan, LinearWorkspace, SPLIT};
use crate::element::Element;
use crate::error::AttentionError;
use crate::parallel::{self, MAX_PARTS};
use crate::rows::OwnedRows;
use crate::tile;
use crate::view::{AnyView, View, ViewMut};

impl LinearPlan {
    /// Attention of `inputs` into `out` (`[batch, q_heads, q_len, v_dim]`).
    ///
    /// Any batch, and any lengths up to the plan's maxima. Runs on the current rayon pool, or on the calling thread alone
    /// when the work is little ([`LinearOptions::spread_from_microseconds`]); does not allocate. Where
    /// there are fewer sequences and KV heads than threads, a long one is shared out; not where rows are causal and keep an
    /// exact window, or their keys keep raising the gauge.
    ///
    /// [`LinearOptions::spread_from_microseconds`]: super::LinearOptions::spread_from_microseconds
    ///
    /// # Errors
    /// Operands that do not fit the plan or each other, an exact window without causality, a decay with an exponential map;
    /// nothing is written then.
    pub fn run<Q: Element>(
        &self,
        inputs: &LinearInputs<'_>,
        out: ViewMut<'_, Q>,
        workspace: &mut LinearWorkspace,
    ) -> Result<(), AttentionError> {
        self.check(inputs, &out, workspace)?;
        if self.rules.shape.window && !inputs.causal {
            return Err(AttentionError::Conflict {
                operand: "exact_window",
                other: "a call that is not causal",
                reason: "its window is what a row and the keys before it share",
            });
        }
        if out.shape().contains(&0) {
            return Ok(());
        }
        let rules = &self.rules;
        let group = rules.group;
        let [batch, _, q_len, _] = inputs.q.shape();
        let units = batch * self.problem.kv_heads;
        let workers = self.workers(units, [q_len, inputs.k.shape()[2]], inputs.causal);
        let LinearWorkspace { workers: scratches, total, splits, wave, .. } = workspace;
        let scratches = &mut scratches[..workers];
        let mut rows = OwnedRows::new(out);
        if has_idle_workers(units * group, workers) && inputs.causal && self.spreads(q_len) {
            parallel::enter(|| {
                for unit in 0..units {
                    rules.shape.reset(total);
                    let (operands, of_unit) = (self.operands(inputs, unit), rows.take_heads(group));
                    let scratch = (&mut *scratches, &mut wave[..]);
                    rules.extend_spread(&operands, (&mut total[..], 0), scratch, of_unit);
                }
            });
            return Ok(());
        }
        if units < workers && !inputs.causal {
            for unit in 0..units {
                let operands = self.operands(inputs, unit);
                self.absorb_splits(&operands, scratches, (total, splits));
                let state = rules.shape.view(total);
                let keys = operands.keys;
                let part = part_len(q_len, workers).next_multiple_of(64);
                let mut of_unit = rows.take_heads(group);
                let parts =
                    std::iter::from_fn(|| (!of_unit.tokens().is_empty()).then(|| of_unit.take_tokens(part)));
                parallel::for_each_part_with(parts, scratches, &|mut out: OwnedRows<'_>, scratch| {
                    let (heads, tokens) = (out.heads(), out.tokens());
                    rules.attend(&operands, (state, keys), scratch, (&mut out, heads), tokens);
                });
            }
            return Ok(());
        }
        // Query heads may be apart from those they share keys with: each then maps the keys for itself.
        let heads = if units < workers { 1 } else { group };
        let heads = part_len(units * group, workers).next_multiple_of(heads);
        let parts = std::iter::from_fn(|| (!rows.heads().is_empty()).then(|| rows.take_heads(heads)));
        parallel::for_each_part_with(parts, scratches, &|mut out: OwnedRows<'_>, scratch| {
            let mut heads = out.heads();
            while !heads.is_empty() {
                let unit = heads.start / group;
                let of_unit = heads.start..heads.end.min((unit + 1) * group);
                heads.start = of_unit.end;
                let operands = self.operands(inputs, unit);
                let mut state = std::mem::take(&mut scratch.state);
                rules.shape.reset(&mut state);
                if inputs.causal {
                    rules.extend(&operands, (&mut state, 0), scratch, (&mut out, of_unit));
                } else {
                    self.absorb_alone(&operands, &mut state, scratch);
                    let unit = rules.shape.view(&state);
                    let tokens = out.tokens();
                    rules.attend(&operands, (unit, operands.keys), scratch, (&mut out, of_unit), tokens);
                }
                scratch.state = state;
            }
        });
        Ok(())
    }

    /// Causal attention of new tokens, whose keys join those that `state` has seen: a prompt, or one token.
    ///
    /// As [`LinearPlan::run`] over all tokens, whose last rows these are, within rounding. `inputs` have to be causal, with key
    /// lengths only where a sequence has fewer new tokens than others: rows beyond see all keys there are.
    ///
    /// # Errors
    /// As [`LinearPlan::run`], or the state is that of another batch, other sizes, another map or projection; neither output
    /// nor state are written then.
    pub fn extend<Q: Element>(
        &self,
        inputs: &LinearInputs<'_>,
        out: ViewMut<'_, Q>,
        state: &mut LinearState,
        workspace: &mut LinearWorkspace,
    ) -> Result<(), AttentionError> {
        if !inputs.causal {
            let (operand, expected) = ("inputs", "causal ones");
            let got = "inputs whose rows see later keys".to_owned();
            return Err(AttentionError::Value { operand, expected, got });
        }
        self.check(inputs, &out, workspace)?;
        self.check_state(inputs.q.shape()[0], state)?;
        self.check_room(inputs, state)?;
        let (rules, group) = (&self.rules, self.rules.group);
        let [batch, _, q_len, _] = inputs.q.shape();
        let units = batch * self.problem.kv_heads;
        if units == 0 || q_len == 0 {
            return Ok(());
        }
        let workers = self.workers(units, [q_len, q_len], true);
        let LinearState { data, lens, kv_heads, .. } = state;
        let (kv_heads, seen) = (*kv_heads, &lens[..]);
        let mut rows = OwnedRows::new(out);
        if has_idle_workers(units, workers) && self.spreads(q_len) {
            let LinearWorkspace { workers: scratches, wave, .. } = workspace;
            parallel::enter(|| {
                for (unit, state) in data.chunks_exact_mut(self.unit_len).enumerate() {
                    let (operands, of_unit) = (self.operands(inputs, unit), rows.take_heads(group));
                    let scratch = (&mut scratches[..workers], &mut wave[..]);
                    rules.extend_spread(&operands, (state, seen[unit / kv_heads]), scratch, of_unit);
                }
            });
            count_keys(inputs, lens);
            return Ok(());
        }
        let workers = workers.min(units);
        let part = part_len(units, workers);
        let parts = data.chunks_mut(part * self.unit_len).enumerate();
        let parts = parts.map(|(index, states)| (index * part, states, rows.take_heads(part * group)));
        let scratches = &mut workspace.workers[..workers];
        parallel::for_each_part_with(
            parts,
            scratches,
            &|(first, states, mut out): StatePart<'_>, scratch| {
                for (unit, state) in (first..).zip(states.chunks_exact_mut(self.unit_len)) {
                    let operands = self.operands(inputs, unit);
                    let heads = unit * group..(unit + 1) * group;
                    rules.extend(&operands, (state, seen[unit / kv_heads]), scratch, (&mut out, heads));
                }
            },
        );
        count_keys(inputs, lens);
        Ok(())
    }

    /// Takes keys and values into a state; `inputs.q` may have any number of tokens, even none, and is not read.
    ///
    /// # Errors
    /// As [`LinearPlan::extend`]; the state is not written then.
    pub fn absorb(
        &self,
        inputs: &LinearInputs<'_>,
        state: &mut LinearState,
        workspace: &mut LinearWorkspace,
    ) -> Result<(), AttentionError> {
        let [batch, _, kv_len, _] = inputs.k.shape();
        self.check_inputs(inputs, workspace)?;
        self.check_state(batch, state)?;
        self.check_room(inputs, state)?;
        let units = batch * self.problem.kv_heads;
        if units == 0 || kv_len == 0 {
            return Ok(());
        }
        let workers = self.workers(units, [0, kv_len], false).min(units);
        let part = part_len(units, workers);
        let LinearState { data, lens, kv_heads, .. } = state;
        let (kv_heads, seen) = (*kv_heads, &lens[..]);
        let parts = data.chunks_mut(part * self.unit_len).enumerate();
        let scratches = &mut workspace.workers[..workers];
        parallel::for_each_part_with(parts, scratches, &|(index, states): (usize, &mut [f32]), scratch| {
            for (unit, state) in (index * part..).zip(states.chunks_exact_mut(self.unit_len)) {
                let operands = self.operands(inputs, unit);
                let len = seen[unit / kv_heads];
                self.rules.absorb(&operands, 0..operands.keys, (state, len), scratch);
            }
        });
        count_keys(inputs, lens);
        Ok(())
    }

    /// Attention of queries `[batch, q_heads, q_len, head_dim]` over all keys that `state` has seen.
    ///
    /// # Errors
    /// As [`LinearPlan::extend`]; nothing is written then.
    pub fn attend<'q, Q: Element>(
        &self,
        q: impl Into<AnyView<'q>>,
        out: ViewMut<'_, Q>,
        state: &LinearState,
        workspace: &mut LinearWorkspace,
    ) -> Result<(), AttentionError> {
        let q = q.into();
        let [batch, _, q_len, _] = q.shape();
        let (none, [kv_heads, v_dim]) = ([0.0f32; 0], [self.problem.kv_heads, self.problem.v_dim]);
        let empty = |dim| View::new(&none, [batch, kv_heads, 0, dim]);
        let inputs = LinearInputs::new(q, empty(self.problem.head_dim)?, empty(v_dim)?);
        self.check(&inputs, &out, workspace)?;
        self.check_state(batch, state)?;
        if out.shape().contains(&0) {
            return Ok(());
        }
        let (rules, group) = (&self.rules, self.rules.group);
        let units = batch * kv_heads;
        let workers = self.workers(units, [q_len, 0], false).min(units);
        let part = part_len(units, workers);
        let mut rows = OwnedRows::new(out);
        let parts = state.data.chunks(part * self.unit_len).enumerate();
        let parts = parts.map(|(index, states)| (index * part, states, rows.take_heads(part * group)));
        let scratches = &mut workspace.workers[..workers];
        type Part<'a> = (usize, &'a [f32], OwnedRows<'a>);
        parallel::for_each_part_with(parts, scratches, &|(first, states, mut out): Part<'_>, scratch| {
            for (unit, numbers) in (first..).zip(states.chunks_exact(self.unit_len)) {
                let operands = self.operands(&inputs, unit);
                let (heads, tokens) = (unit * group..(unit + 1) * group, out.tokens());
                let seen = (rules.shape.view(numbers), state.lens[unit / kv_heads]);
                rules.attend(&operands, seen, scratch, (&mut out, heads), tokens);
            }
        });
        Ok(())
    }

    /// Whether a unit's causal rows may be shared out.
    fn spreads(&self, q_len: usize) -> bool {
        q_len >= SPREAD_FROM && self.wave > 0
    }

    /// A unit's keys into `state`, which has none yet, split by split.
    fn absorb_alone(&self, operands: &Operands<'_>, state: &mut [f32], scratch: &mut UnitScratch) {
        let Rules { level, shape, .. } = self.rules;
        let mut split = std::mem::take(&mut scratch.split);
        for start in (0..operands.keys).step_by(SPLIT) {
            let tokens = start..operands.keys.min(start + SPLIT);
            shape.reset(&mut split);
            self.rules.absorb(operands, tokens, (&mut split, 0), scratch);
            merge_units(level, shape, state, &split);
        }
        scratch.split = split;
    }

    /// The same with splits side by side, and the same bits.
    fn absorb_splits(
        &self,
        operands: &Operands<'_>,
        scratches: &mut [UnitScratch],
        (total, splits): (&mut [f32], &mut [f32]),
    ) {
        let Rules { level, shape, .. } = self.rules;
        let count = operands.keys.div_ceil(SPLIT);
        let splits = &mut splits[..count * self.unit_len];
        shape.reset(total);
        if count > 0 {
            let part = part_len(count, scratches.len());
            let parts = splits.chunks_mut(part * self.unit_len).enumerate();
            parallel::for_each_part_with(
                parts,
                scratches,
                &|(index, states): (usize, &mut [f32]), scratch| {
                    for (split, state) in (index * part..).zip(states.chunks_exact_mut(self.unit_len)) {
                        let tokens = split * SPLIT..operands.keys.min((split + 1) * SPLIT);
                        shape.reset(state);
                        self.rules.absorb(operands, tokens, (state, 0), scratch);
                    }
                },
            );
        }
        splits.chunks_exact(self.unit_len).for_each(|split| merge_units(level, shape, total, split));
    }

    fn operands<'a>(&self, inputs: &LinearInputs<'a>, unit: usize) -> Operands<'a> {
        let kv_heads = self.problem.kv_heads;
        let place = [unit / kv_heads, unit % kv_heads];
        let decay = inputs.log_decay.map(|decay| match decay {
            LogDecay::PerHead(decays) => UnitDecay::Constant(decays[place[1]]),
            LogDecay::PerToken(view) => UnitDecay::Tokens(view),
        });
        let LinearInputs { q, k, v, .. } = *inputs;
        Operands { q, k, v, place, keys: inputs.keys_of(place[0]), decay }
    }

    /// How many workers a call of so many queries and keys is worth.
    fn workers(&self, units: usize, [q_len, kv_len]: [usize; 2], causal: bool) -> usize {
        let StateShape { features, head_dim, v_dim, .. } = self.rules.shape;
        let [features, dims] = [features, head_dim + v_dim].map(|n| n as f64);
        let rows = q_len as f64 * self.rules.group as f64;
        let pairs = if causal { rows * (features + v_dim as f64) * 32.0 } else { 0.0 };
        let multiply_adds = units as f64 * ((rows + kv_len as f64) * features * dims + pairs);
        self.spread.workers(tile::nanoseconds([multiply_adds, 0.0]))
    }
}

/// Counts the keys of a call that is done.
fn count_keys(inputs: &LinearInputs<'_>, lens: &mut [usize]) {
    lens.iter_mut().enumerate().for_each(|(sequence, len)| *len += inputs.keys_of(sequence));
}

/// How many of `count` things a part has, so that there are some for each worker.
fn part_len(count: usize, workers: usize) -> usize {
    count.div_ceil(MAX_PARTS.min(4 * workers))
}

/// The first unit of a part, its states and its rows.
type StatePart<'a> = (usize, &'a mut [f32], OwnedRows<'a>);

/// Whether half of the workers or more would find nothing to do if each unit were one's. Only then is it worth to take units one
/// after another, each by all: that has first blocks that are alone, and waits at the end of every wave.
fn has_idle_workers(units: usize, workers: usize) -> bool {
    2 * units <= workers
}
