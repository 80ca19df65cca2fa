//! [`LinearPlan`]: sizes, a map and choices, fixed once; its workspace; calls.

use super::features::{FeatureMap, Ready};
use super::fingerprint::fingerprint;
use super::inputs::{LinearInputs, LogDecay};
use super::state::{LinearState, StateShape, check_map, check_shape, merge_units};
use super::unit::spread::{SPREAD_FROM, WaveBlock};
use super::unit::{Operands, Rules, UnitDecay, UnitScratch};
use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::isa::Level;
use crate::parallel::{self, MAX_PARTS, Spread};
use crate::problem::Problem;
use crate::rows::OwnedRows;
use crate::scratch::AlignedBuf;
use crate::tile;
use crate::view::{AnyView, View, ViewMut};
use std::f32::consts::LOG2_E;

/// Keys that are summed by themselves before they join the others, where rows see all keys: a constant of the order of
/// operations.
const SPLIT: usize = 1024;

/// Choices of a [`LinearPlan`] that are not sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearOptions {
    /// The instruction set; [`Level::detect`] if not given.
    pub level: Option<Level>,
    /// The most tasks that run side by side; the size of the pool that the plan is made in if not given. Scratch is
    /// proportional to it.
    pub max_threads: Option<usize>,
    /// As [`PlanOptions::spread_from_microseconds`](crate::PlanOptions::spread_from_microseconds): the estimate counts 40
    /// multiply-adds a nanosecond.
    pub spread_from_microseconds: Option<u64>,
    /// Queries and keys are multiplied by its square root before they are mapped. If not given `1 / sqrt(head_dim)` for
    /// the maps that stand for the softmax (and [`FeatureMap::Identity`]), 1 for the others.
    pub scale: Option<f32>,
    /// Whether outputs are divided by the sum of weights. Without, they are sums: what retention and gated linear
    /// attention are made of. Exponential maps are relative to a gauge and always normalise.
    pub normalize: bool,
    /// Whether pairs of a query and a key in the same 64 positions, counted from a sequence's first token, have their exact
    /// weight `exp(scale q · k)`; older keys have that of their features, under one denominator. Exponential maps and
    /// causal calls only.
    pub exact_window: bool,
}

impl Default for LinearOptions {
    fn default() -> Self {
        Self {
            level: None,
            max_threads: None,
            spread_from_microseconds: None,
            scale: None,
            normalize: true,
            exact_window: false,
        }
    }
}

/// Linear attention with a feature map, ready to run.
///
/// `Send + Sync`, immutable: share one plan, and give each concurrent call a [`LinearWorkspace`] of its own. Results do not
/// depend on threads or batch neighbours, bit for bit; neither does a causal row on later tokens.
///
/// ```
/// use lucid_attention::linear::{FeatureMap, LinearInputs, LinearPlan, Norms, Projection};
/// use lucid_attention::{Problem, View, ViewMut};
///
/// let (heads, tokens, dim) = (2, 100, 16);
/// let map = FeatureMap::Positive(Projection::orthogonal(64, dim, Norms::Chi, 1)?);
/// let plan = LinearPlan::new(&Problem::new(heads, dim, tokens, tokens), &map)?;
/// let mut workspace = plan.workspace()?;
///
/// let shape = [1, heads, tokens, dim];
/// let (q, k, v) = (vec![0.1f32; 3200], vec![0.2f32; 3200], vec![0.5f32; 3200]);
/// let inputs = LinearInputs::new(View::new(&q, shape)?, View::new(&k, shape)?, View::new(&v, shape)?);
/// let mut out = vec![0.0f32; 3200];
/// plan.run(&inputs.causal(), ViewMut::new(&mut out, shape)?, &mut workspace)?;
/// assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-6));
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LinearPlan {
    problem: Problem,
    rules: Rules,
    unit_len: usize,
    spread: Spread,
    /// States of parts of keys that a workspace has room for.
    splits: usize,
    /// Blocks of a unit that are worked on side by side.
    wave: usize,
}

/// The scratch of one call at a time. Made by [`LinearPlan::workspace`]; serves plans of the same sizes that need no more.
#[derive(Debug)]
pub struct LinearWorkspace {
    shape: StateShape,
    /// Query heads of a KV head that there is room for.
    group: usize,
    workers: Vec<UnitScratch>,
    total: AlignedBuf<f32>,
    splits: AlignedBuf<f32>,
    wave: Vec<WaveBlock>,
}

impl LinearWorkspace {
    /// Its size.
    pub fn bytes(&self) -> usize {
        let workers = self.workers.iter().map(UnitScratch::bytes).sum::<usize>();
        let wave = self.wave.iter().map(WaveBlock::bytes).sum::<usize>();
        workers + wave + self.total.bytes() + self.splits.bytes()
    }
}

impl LinearPlan {
    /// A plan with default options.
    ///
    /// # Errors
    /// As [`LinearPlan::with_options`].
    pub fn new(problem: &Problem, map: &FeatureMap) -> Result<Self, AttentionError> {
        Self::with_options(problem, map, &LinearOptions::default())
    }

    /// A plan with these options.
    ///
    /// # Errors
    /// Sizes contradict one another or overflow, the map is not for queries of this size or has a number out of range, the
    /// scale is not positive and finite, options exclude one another, no thread, a level that is not there, or memory
    /// cannot be had.
    pub fn with_options(
        problem: &Problem,
        map: &FeatureMap,
        options: &LinearOptions,
    ) -> Result<Self, AttentionError> {
        problem.validate()?;
        let level = Level::chosen(options.level)?;
        parallel::check_max_threads(options.max_threads)?;
        let features = map.features(problem.head_dim)?;
        let scale = options.scale.unwrap_or_else(|| map.default_scale(problem.head_dim));
        if !(scale.is_finite() && scale > 0.0) {
            let (operand, expected) = ("scale", "a positive, finite number");
            return Err(AttentionError::Value { operand, expected, got: scale.to_string() });
        }
        let gauged = map.is_exponential();
        let conflict = |operand, other, reason| Err(AttentionError::Conflict { operand, other, reason });
        if gauged && !options.normalize {
            return conflict("normalize", "an exponential map", "its features are relative to a gauge");
        }
        if options.exact_window && !gauged {
            return conflict("exact_window", "a map that is not exponential", "its weights are not exp(s)");
        }
        let overflow = || AttentionError::SizeOverflow { operand: "workspace" };
        let shape = StateShape {
            features,
            head_dim: problem.head_dim,
            v_dim: problem.v_dim,
            v_stride: problem.v_dim.max(1).checked_next_multiple_of(16).ok_or_else(overflow)?,
            gauged,
            window: options.exact_window,
        };
        let unit_len = shape.unit_len()?;
        // Scratch is a small multiple of what holds 64 tokens' features and operands.
        let widest = features.max(problem.head_dim).max(shape.v_stride);
        let fits = widest.checked_mul(1 << 12).and_then(|size| size.checked_mul(problem.group())).is_some();
        let max_threads = match options.max_threads {
            Some(threads) => threads,
            None => parallel::expected_workers(),
        };
        let splits = if max_threads > 1 { problem.max_kv_len.div_ceil(SPLIT) } else { 0 };
        let wave = if max_threads > 1 { WaveBlock::count(&shape, problem.max_q_len) } else { 0 };
        if !fits || splits.checked_mul(unit_len).is_none() {
            return Err(overflow());
        }
        let rules = Rules {
            level,
            map: Ready::new(map, problem.head_dim, scale)?,
            shape,
            group: problem.group(),
            normalize: options.normalize,
            log2_scale: LOG2_E * scale,
            fingerprint: fingerprint(map, scale, &shape),
        };
        let spread = Spread::new(Some(max_threads), options.spread_from_microseconds);
        Ok(Self { problem: *problem, rules, unit_len, spread, splits, wave })
    }

    /// The sizes it was made for.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The instruction set it runs on.
    pub fn level(&self) -> Level {
        self.rules.level
    }

    /// The most tasks that run side by side.
    pub fn max_threads(&self) -> usize {
        self.spread.max_threads()
    }

    /// How many features the map has.
    pub fn features(&self) -> usize {
        self.rules.shape.features
    }

    /// Scratch for one call at a time.
    ///
    /// # Errors
    /// [`AttentionError::OutOfMemory`].
    pub fn workspace(&self) -> Result<LinearWorkspace, AttentionError> {
        let Rules { shape, group, .. } = self.rules;
        let workers = several(self.max_threads(), || UnitScratch::new(&shape, group))?;
        let wave = several(self.wave, || WaveBlock::new(&shape))?;
        let total = AlignedBuf::zeroed("workspace", self.unit_len)?;
        let splits = AlignedBuf::zeroed("workspace", self.splits * self.unit_len)?;
        Ok(LinearWorkspace { shape, group, workers, total, splits, wave })
    }

    /// The state of `batch` sequences without a token.
    ///
    /// # Errors
    /// Its size overflows, or memory cannot be had.
    pub fn state(&self, batch: usize) -> Result<LinearState, AttentionError> {
        let Rules { shape, fingerprint, level, .. } = self.rules;
        LinearState::new(shape, (fingerprint, level), [batch, self.problem.kv_heads])
    }

    /// Attention of `inputs` into `out` (`[batch, q_heads, q_len, v_dim]`).
    ///
    /// Any batch, and any lengths up to the plan's maxima. Runs on the current rayon pool, or on the calling thread alone
    /// when the work is little ([`LinearOptions::spread_from_microseconds`]); does not allocate. Where there are fewer sequences and KV heads than threads, a
    /// long one is shared out; not where rows are causal and keep an exact window, or their keys keep raising the gauge.
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
                let part = q_len.div_ceil(MAX_PARTS.min(4 * workers)).next_multiple_of(64);
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
        let parts = MAX_PARTS.min(4 * workers);
        let heads = if units < workers { 1 } else { group };
        let heads = (units * group).div_ceil(parts).next_multiple_of(heads);
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
    /// As [`LinearPlan::run`], or the state is that of another batch, other sizes, another map or projection; neither output nor state are written then.
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
        let part = units.div_ceil(MAX_PARTS.min(4 * workers));
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
        let part = units.div_ceil(MAX_PARTS.min(4 * workers));
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
        let part = units.div_ceil(MAX_PARTS.min(4 * workers));
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
            let part = count.div_ceil(MAX_PARTS.min(4 * scratches.len()));
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

    fn check_inputs(
        &self,
        inputs: &LinearInputs<'_>,
        workspace: &LinearWorkspace,
    ) -> Result<(), AttentionError> {
        inputs.check(&self.problem)?;
        if inputs.log_decay.is_some() && self.rules.shape.gauged {
            return Err(AttentionError::Conflict {
                operand: "log_decay",
                other: "an exponential map",
                reason: "its gauge does not fade",
            });
        }
        check_shape("workspace", self.rules.shape, workspace.shape)?;
        let parts = [
            ("threads", self.max_threads(), workspace.workers.len()),
            ("query heads of a KV head", self.rules.group, workspace.group),
            ("elements for splits of keys", self.splits * self.unit_len, workspace.splits.len()),
            ("blocks side by side", self.wave, workspace.wave.len()),
        ];
        match parts.into_iter().find(|(_, expected, got)| got < expected) {
            None => Ok(()),
            Some((part, expected, got)) => Err(AttentionError::Workspace { part, expected, got }),
        }
    }

    fn check<Q: Element>(
        &self,
        inputs: &LinearInputs<'_>,
        out: &ViewMut<'_, Q>,
        workspace: &LinearWorkspace,
    ) -> Result<(), AttentionError> {
        self.check_inputs(inputs, workspace)?;
        inputs.check_rows()?;
        let [batch, heads, q_len, _] = inputs.q.shape();
        out.as_view().check_shape("out", [batch, heads, q_len, self.problem.v_dim])?;
        out.as_view().check_unit_stride("out")
    }

    fn check_state(&self, batch: usize, state: &LinearState) -> Result<(), AttentionError> {
        check_size("state", "batch", batch, state.batch())?;
        check_size("state", "kv_heads", self.problem.kv_heads, state.kv_heads)?;
        check_shape("state", self.rules.shape, state.shape)?;
        check_map("state", self.rules.fingerprint, state.fingerprint)
    }

    /// Whether the state can count its tokens.
    fn check_room(&self, inputs: &LinearInputs<'_>, state: &LinearState) -> Result<(), AttentionError> {
        let mut lens = state.lens.iter().enumerate();
        match lens.find(|&(sequence, len)| len.checked_add(inputs.keys_of(sequence)).is_none()) {
            None => Ok(()),
            Some(_) => Err(AttentionError::SizeOverflow { operand: "state" }),
        }
    }
}

/// Counts the keys of a call that is done.
fn count_keys(inputs: &LinearInputs<'_>, lens: &mut [usize]) {
    lens.iter_mut().enumerate().for_each(|(sequence, len)| *len += inputs.keys_of(sequence));
}

/// Parts of a workspace.
fn several<T>(count: usize, make: impl Fn() -> Result<T, AttentionError>) -> Result<Vec<T>, AttentionError> {
    let mut list = Vec::new();
    let bytes = count.saturating_mul(size_of::<T>());
    list.try_reserve_exact(count).map_err(|_| AttentionError::OutOfMemory { what: "workspace", bytes })?;
    for _ in 0..count {
        list.push(make()?);
    }
    Ok(list)
}

/// The first unit of a part, its states and its rows.
type StatePart<'a> = (usize, &'a mut [f32], OwnedRows<'a>);

/// Whether half of the workers or more would find nothing to do if each unit were one's. Only then is it worth to take units one
/// after another, each by all: that has first blocks that are alone, and waits at the end of every wave.
fn has_idle_workers(units: usize, workers: usize) -> bool {
    2 * units <= workers
}
