//! [`LinearPlan`]: sizes, a map and choices, fixed once; its workspace; what a call has to be like.

mod calls;

use super::features::{FeatureMap, Ready};
use super::fingerprint::fingerprint;
use super::inputs::LinearInputs;
use super::state::{LinearState, StateShape, check_map, check_shape};
use super::unit::spread::WaveBlock;
use super::unit::{Rules, UnitScratch};
use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::isa::Level;
use crate::parallel::{self, Spread};
use crate::problem::Problem;
use crate::scratch::AlignedBuf;
use crate::view::ViewMut;
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
