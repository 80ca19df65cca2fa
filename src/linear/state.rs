//! [`LinearState`]: all that linear attention keeps of the tokens it has seen.
//!
//! ```text
//! a KV head of a sequence:   sums    [features][v_dim]   sum_j φ(k_j) v_j        relative to the gauge
//!                            norms   [features]          sum_j φ(k_j)
//!                            gauge   [features]          log2 of what each is relative to; exponential maps only
//!                            decay   [1]                 sum_j log_decay_j; -inf if one was
//!                            keys    [head_dim][64]      of the block of 64 tokens that is not full yet,
//!                            values  [64][v_dim]         with an exact window only
//! ```

use super::fingerprint::{self, SAVED};
use crate::error::{AttentionError, check_size};
use crate::isa::{Isa, Kernel, Level};
use crate::kernel::pack::{merge_row, scale_row};
use crate::panels::PANEL;
use crate::scratch::AlignedBuf;
use crate::softmax::exp2;
use std::f32::consts::LOG2_E;

/// Sizes of a state, and what there is of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateShape {
    pub(crate) features: usize,
    pub(crate) head_dim: usize,
    pub(crate) v_dim: usize,
    /// Elements between rows of sums: a multiple of 16.
    pub(crate) v_stride: usize,
    /// Whether sums are relative to a gauge.
    pub(crate) gauged: bool,
    /// Whether the newest keys and values are kept.
    pub(crate) window: bool,
}

/// A unit's state, taken apart.
pub(crate) struct UnitState<'a> {
    /// `[features][v_stride]`.
    pub(crate) sums: &'a mut [f32],
    pub(crate) norms: &'a mut [f32],
    pub(crate) gauge: &'a mut [f32],
    pub(crate) decay: &'a mut f32,
    /// `[head_dim][64]`.
    pub(crate) keys: &'a mut [f32],
    /// `[64][v_stride]`.
    pub(crate) values: &'a mut [f32],
}

/// The same, to read.
#[derive(Clone, Copy)]
pub(crate) struct UnitView<'a> {
    pub(crate) sums: &'a [f32],
    pub(crate) norms: &'a [f32],
    pub(crate) gauge: &'a [f32],
    pub(crate) decay: &'a f32,
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
}

impl UnitState<'_> {
    pub(crate) fn view(&self) -> UnitView<'_> {
        let UnitState { sums, norms, gauge, decay, keys, values } = self;
        UnitView { sums, norms, gauge, decay, keys, values }
    }
}

impl StateShape {
    /// Numbers of a unit: of sums, of a list of features, of kept keys, of kept values, in all.
    fn sizes(&self) -> Option<[usize; 5]> {
        let sums = self.features.checked_mul(self.v_stride)?;
        let (keys, values) = if self.window { (self.head_dim, self.v_stride) } else { (0, 0) };
        let (keys, values) = (keys.checked_mul(PANEL)?, values.checked_mul(PANEL)?);
        let gauge = if self.gauged { self.features } else { 0 };
        let small = self.features.checked_add(gauge)?.checked_add(1)?;
        let total = sums.checked_add(small)?.checked_add(keys)?.checked_add(values)?;
        Some([sums, gauge, keys, values, total.checked_next_multiple_of(16)?])
    }

    /// Numbers a unit takes in memory.
    pub(crate) fn unit_len(&self) -> Result<usize, AttentionError> {
        let overflow = AttentionError::SizeOverflow { operand: "state" };
        self.sizes().map(|[.., total]| total).ok_or(overflow)
    }

    /// Numbers a unit takes when saved.
    fn saved_len(&self) -> usize {
        let kept = if self.window { PANEL * (self.head_dim + self.v_dim) } else { 0 };
        let lists = if self.gauged { 2 } else { 1 };
        self.features * (self.v_dim + lists) + 1 + kept
    }

    pub(crate) fn split<'a>(&self, unit: &'a mut [f32]) -> UnitState<'a> {
        let [sums, gauge, keys, values, _] = self.sizes().expect("sizes of a state that exists");
        let (sums, rest) = unit.split_at_mut(sums);
        let (norms, rest) = rest.split_at_mut(self.features);
        let (gauge, rest) = rest.split_at_mut(gauge);
        let (keys, rest) = rest.split_at_mut(keys);
        let (values, rest) = rest.split_at_mut(values);
        UnitState { sums, norms, gauge, decay: &mut rest[0], keys, values }
    }

    pub(crate) fn view<'a>(&self, unit: &'a [f32]) -> UnitView<'a> {
        let [sums, gauge, keys, values, _] = self.sizes().expect("sizes of a state that exists");
        let (sums, rest) = unit.split_at(sums);
        let (norms, rest) = rest.split_at(self.features);
        let (gauge, rest) = rest.split_at(gauge);
        let (keys, rest) = rest.split_at(keys);
        let (values, rest) = rest.split_at(values);
        UnitView { sums, norms, gauge, decay: &rest[0], keys, values }
    }

    /// Makes a unit that of no token.
    pub(crate) fn reset(&self, unit: &mut [f32]) {
        let UnitState { sums, norms, gauge, decay, .. } = self.split(unit);
        sums.fill(0.0);
        norms.fill(0.0);
        gauge.fill(f32::NEG_INFINITY);
        *decay = 0.0;
    }
}

/// What is known of the keys and values of a batch of sequences, in a size that does not grow with their number.
///
/// Made by [`LinearPlan::state`](super::LinearPlan::state); serves plans of the same map, directions, scale and sizes.
#[derive(Debug)]
pub struct LinearState {
    pub(crate) data: AlignedBuf<f32>,
    pub(crate) shape: StateShape,
    /// That of the map whose features are summed.
    pub(crate) fingerprint: u64,
    /// The plan's, for what is computed without it.
    level: Level,
    pub(crate) kv_heads: usize,
    pub(crate) lens: Vec<usize>,
}

impl LinearState {
    pub(crate) fn new(
        shape: StateShape,
        (fingerprint, level): (u64, Level),
        [batch, kv_heads]: [usize; 2],
    ) -> Result<Self, AttentionError> {
        let overflow = AttentionError::SizeOverflow { operand: "state" };
        let units = batch.checked_mul(kv_heads).ok_or_else(|| overflow.clone())?;
        let size = units.checked_mul(shape.unit_len()?).ok_or(overflow)?;
        let mut lens = Vec::new();
        let bytes = batch.saturating_mul(size_of::<usize>());
        lens.try_reserve_exact(batch).map_err(|_| AttentionError::OutOfMemory { what: "state", bytes })?;
        lens.resize(batch, 0);
        let data = AlignedBuf::zeroed("state", size)?;
        let mut state = Self { data, shape, fingerprint, level, kv_heads, lens };
        state.reset();
        Ok(state)
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        let (shape, len) = (self.shape, self.unit_len());
        self.data.chunks_exact_mut(len).for_each(|unit| shape.reset(unit));
        self.lens.fill(0);
    }

    fn unit_len(&self) -> usize {
        self.shape.unit_len().expect("sizes of a state that exists")
    }

    /// How many sequences there are.
    pub fn batch(&self) -> usize {
        self.lens.len()
    }

    /// How many tokens each sequence has seen.
    pub fn lens(&self) -> &[usize] {
        &self.lens
    }

    /// Its size in memory.
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    /// How many numbers [`LinearState::save`] writes.
    pub fn saved_len(&self) -> usize {
        SAVED + self.shape.saved_len() * self.kv_heads * self.batch()
    }

    /// Writes the state to plain slices: `numbers` of [`LinearState::saved_len`] and a length for each sequence.
    ///
    /// First 4 numbers that tell the map, its directions and its scale from others: 64 bits, 16 each. Then for each sequence
    /// and KV head, one after another: sums `[features, v_dim]`, norms `[features]`, for exponential maps
    /// the gauge `[features]` (log2; -inf where no key was seen), the sum of log-decays; with an exact window the keys
    /// `[head_dim, 64]` and values `[64, v_dim]` of the block that is not full, 0 where there is none. Features of
    /// exponential maps are relative to the gauge.
    ///
    /// # Errors
    /// A slice has another length; nothing is written then.
    pub fn save(&self, numbers: &mut [f32], lens: &mut [usize]) -> Result<(), AttentionError> {
        check_size("numbers", "elements", self.saved_len(), numbers.len())?;
        check_size("lens", "batch", self.batch(), lens.len())?;
        lens.copy_from_slice(&self.lens);
        let shape = self.shape;
        let (map, mut scratch) = numbers.split_at_mut(SAVED);
        map.copy_from_slice(&fingerprint::numbers(self.fingerprint));
        for (index, unit) in self.data.chunks_exact(self.unit_len()).enumerate() {
            let held = self.lens[index / self.kv_heads] % PANEL;
            let mut put = |values: &[f32]| {
                let (to, rest) = std::mem::take(&mut scratch).split_at_mut(values.len());
                to.copy_from_slice(values);
                scratch = rest;
            };
            let UnitView { sums, norms, gauge, decay, keys, values } = shape.view(unit);
            sums.chunks_exact(shape.v_stride).for_each(|row| put(&row[..shape.v_dim]));
            put(norms);
            put(gauge);
            put(&[*decay]);
            for dim in keys.chunks_exact(PANEL) {
                put(&dim[..held]);
                put(&[0.0; PANEL][held..]);
            }
            for (token, row) in values.chunks_exact(shape.v_stride).enumerate() {
                row[..shape.v_dim].iter().for_each(|&x| put(&[if token < held { x } else { 0.0 }]));
            }
        }
        Ok(())
    }

    /// Takes on what [`LinearState::save`] wrote.
    ///
    /// # Errors
    /// A slice has another length, or what was saved is of another map, projection or scale; the state is then as before.
    pub fn restore(&mut self, numbers: &[f32], lens: &[usize]) -> Result<(), AttentionError> {
        check_size("numbers", "elements", self.saved_len(), numbers.len())?;
        check_size("lens", "batch", self.batch(), lens.len())?;
        let (map, mut rest) = numbers.split_at(SAVED);
        let own = fingerprint::numbers(self.fingerprint);
        if map != own {
            return Err(another_map("numbers", format!("{map:?}, this state has {own:?}")));
        }
        self.lens.copy_from_slice(lens);
        let (shape, len) = (self.shape, self.unit_len());
        for unit in self.data.chunks_exact_mut(len) {
            let mut take = |to: &mut [f32]| {
                let (from, later) = rest.split_at(to.len());
                to.copy_from_slice(from);
                rest = later;
            };
            let UnitState { sums, norms, gauge, decay, keys, values } = shape.split(unit);
            sums.chunks_exact_mut(shape.v_stride).for_each(|row| take(&mut row[..shape.v_dim]));
            take(norms);
            take(gauge);
            take(std::slice::from_mut(decay));
            take(keys);
            values.chunks_exact_mut(shape.v_stride).for_each(|row| take(&mut row[..shape.v_dim]));
        }
        Ok(())
    }

    /// Joins the state of later tokens to this one: as if all had been seen by this one, within rounding, at the level of the
    /// plan that made it. Of what lies before a log-decay of -inf nothing is left.
    ///
    /// # Errors
    /// Sizes, maps, projections or scales differ, an exact window is kept (whose block is not a sum), or the number of tokens
    /// overflows; the state is then as before.
    pub fn merge(&mut self, later: &LinearState) -> Result<(), AttentionError> {
        check_size("later", "batch", self.batch(), later.batch())?;
        check_size("later", "kv_heads", self.kv_heads, later.kv_heads)?;
        check_shape("later", self.shape, later.shape)?;
        check_map("later", self.fingerprint, later.fingerprint)?;
        if self.shape.window {
            return Err(AttentionError::Conflict {
                operand: "merge",
                other: "exact_window",
                reason: "the newest tokens of the earlier state would no longer be new",
            });
        }
        let overflow = AttentionError::SizeOverflow { operand: "lens" };
        let mut pairs = self.lens.iter().zip(&later.lens);
        if pairs.any(|(a, &b)| a.checked_add(b).is_none()) {
            return Err(overflow);
        }
        let (shape, len, level) = (self.shape, self.unit_len(), self.level);
        for (unit, other) in self.data.chunks_exact_mut(len).zip(later.data.chunks_exact(len)) {
            merge_units(level, shape, unit, other);
        }
        self.lens.iter_mut().zip(&later.lens).for_each(|(a, b)| *a += b);
        Ok(())
    }
}

/// Compares what a state is with what it has to be.
pub(crate) fn check_shape(
    operand: &'static str,
    expected: StateShape,
    got: StateShape,
) -> Result<(), AttentionError> {
    check_size(operand, "features", expected.features, got.features)?;
    check_size(operand, "head_dim", expected.head_dim, got.head_dim)?;
    check_size(operand, "v_dim", expected.v_dim, got.v_dim)?;
    if expected != got {
        let (expected, got) = ("one of a plan with the same map and window", "another".to_owned());
        return Err(AttentionError::Value { operand, expected, got });
    }
    Ok(())
}

/// Compares the map whose features a state sums up with what it has to be.
pub(crate) fn check_map(operand: &'static str, expected: u64, got: u64) -> Result<(), AttentionError> {
    if expected == got {
        return Ok(());
    }
    Err(another_map(operand, format!("{got:016x} instead of {expected:016x}")))
}

fn another_map(operand: &'static str, got: String) -> AttentionError {
    let expected = "a state of the same map, projection and scale, as their fingerprint tells";
    AttentionError::Value { operand, expected, got }
}

/// Joins the state of later tokens to a unit's.
pub(crate) fn merge_units(level: Level, shape: StateShape, unit: &mut [f32], later: &[f32]) {
    level.dispatch(Merge { shape, unit, later });
}

struct Merge<'a> {
    shape: StateShape,
    unit: &'a mut [f32],
    later: &'a [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Merge { shape, unit, later } = self;
        let StateShape { features, v_stride, gauged, .. } = shape;
        let whole = later;
        let later = shape.view(whole);
        if *later.decay == f32::NEG_INFINITY {
            return unit.copy_from_slice(whole);
        }
        let UnitState { sums: rows, norms, gauge, decay, .. } = shape.split(unit);
        for feature in 0..features {
            let fading = mutant!("merged-state-does-not-fade", later.decay * LOG2_E, 0.0);
            let (mut own, mut factor) = (exp2(isa, fading), 1.0);
            if gauged {
                let (a, b) = (gauge[feature], later.gauge[feature]);
                let joint = if b > a { b } else { a };
                // Without keys on either side there is nothing to rescale, but there may be NaN.
                let none = joint == f32::NEG_INFINITY;
                own = if none { 1.0 } else { exp2(isa, a - joint) };
                factor = if none { 1.0 } else { exp2(isa, b - joint) };
                gauge[feature] = joint;
            }
            let row = &mut rows[feature * v_stride..][..v_stride];
            merge_row(isa, row, own, &later.sums[feature * v_stride..], factor);
            norms[feature] = norms[feature] * own + later.norms[feature] * factor;
        }
        *decay += later.decay;
    }
}

/// Lets go of all keys, as a log-decay of -inf does.
pub(crate) fn forget(state: &mut UnitState<'_>) {
    state.sums.fill(0.0);
    state.norms.fill(0.0);
    *state.decay = f32::NEG_INFINITY;
}

/// Multiplies a feature's sums.
#[inline(always)]
pub(crate) fn rescale<I: Isa>(
    isa: I,
    state: &mut UnitState<'_>,
    feature: usize,
    v_stride: usize,
    factor: f32,
) {
    scale_row(isa, &mut state.sums[feature * v_stride..][..v_stride], factor);
    state.norms[feature] *= factor;
}
