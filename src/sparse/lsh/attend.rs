//! Gather, attend, bring back, merge.

use super::super::memory::{filled, reserved};
use super::Lsh;
use super::hash::{size, widen_row};
use super::order::{NONE, Orders};
use super::spread::{parts, piece, workers};
use super::visit::Visits;
use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::inputs::Inputs;
use crate::isa::{Isa, Kernel, Level};
use crate::mask::Mask;
use crate::merge::merge_on;
use crate::outputs::Outputs;
use crate::parallel::{for_each_part, for_each_part_with};
use crate::plan::{Plan, PlanOptions};
use crate::problem::Problem;
use crate::view::{View, ViewMut};
use std::ops::Range;

/// What LSH attention returns, in `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct LshOutput {
    /// `[batch, heads, tokens, v_dim]`; +0 where no key is left.
    pub out: Vec<f32>,
    /// `[batch, heads, tokens]`: the natural logarithm of the sum over a row's pairs; -inf where no key is left.
    pub lse: Vec<f32>,
}

impl Lsh {
    /// Attention of tokens `qk`, `[batch, heads, tokens, head_dim]`, which are queries and, normalised, keys, to values
    /// `[batch, heads, tokens, v_dim]`; `buckets` are [`Rotations::buckets`](super::Rotations::buckets) of `qk`, or someone
    /// else's. A token sees itself only where it sees nothing else.
    ///
    /// The mask goes by the tokens' own positions, which count from 0; it may have any part but a block mask. Deterministic:
    /// a head's result depends on its tokens and buckets only, bit for bit. Allocates; all of it runs on the current rayon
    /// pool.
    ///
    /// # Errors
    /// The operands do not fit one another, a bucket is out of range, there is no round or chunk or bucket, the scale or the
    /// epsilon is out of range, the mask has a part that does not fit, or memory cannot be had.
    pub fn attention<T: Element>(
        &self,
        qk: View<'_, T>,
        v: View<'_, T>,
        buckets: &[u32],
        mask: Mask<'_>,
    ) -> Result<LshOutput, AttentionError> {
        self.validate()?;
        let [batch, heads, tokens, dim] = qk.shape();
        let v_dim = v.shape()[3];
        v.check_shape("v", [batch, heads, tokens, v_dim])?;
        let units = size([batch, heads])?;
        let each = size([self.rounds, tokens])?;
        check_size("buckets", "elements", size([units, each])?, buckets.len())?;
        if let Some(at) = buckets.iter().position(|&bucket| bucket as usize >= self.buckets) {
            let got = format!("{} at element {at}, of {}", buckets[at], self.buckets);
            let expected = "numbers below the number of buckets";
            return Err(AttentionError::Value { operand: "buckets", expected, got });
        }
        let mask = checked_mask(mask, [batch, heads, tokens])?;
        if units == 0 || tokens == 0 {
            return Ok(LshOutput { out: Vec::new(), lse: Vec::new() });
        }
        // A larger chunk holds no more.
        let lsh = &Lsh { chunk: self.chunk.min(tokens), ..*self };
        let threads = self.max_threads.unwrap_or(usize::MAX);
        let orders = &Orders::new(lsh, buckets, tokens, threads)?;
        let blocks = Visits { lsh, orders, buckets, mask: &mask, heads }.block_mask(threads)?;
        let level = Level::chosen(self.level)?;
        let q = gather(qk, orders, (level, threads))?;
        let k = normalised(&q, dim, self.norm_epsilon, threads)?;
        let v = gather(v, orders, (level, threads))?;

        let shape = [batch, heads, orders.slots(), v_dim];
        let keys = [batch, heads, orders.slots(), dim];
        let inputs = Inputs::new(View::new(&q, keys)?, View::new(&k, keys)?, View::new(&v, shape)?);
        let inputs = inputs.scale(self.scale).mask(Mask::NONE.blocks(&blocks));
        let mut sorted = filled(size(shape)?, 0.0)?;
        let mut sorted_lse = filled(size([units, orders.slots()])?, 0.0)?;
        let options =
            PlanOptions { level: Some(level), max_threads: self.max_threads, ..PlanOptions::default() };
        let plan = Plan::with_options(&Problem::of(&inputs), &options)?;
        let outputs = Outputs::new(ViewMut::new(&mut sorted, shape)?).lse(&mut sorted_lse);
        plan.run(&inputs, outputs, &mut plan.workspace()?)?;
        drop((q, k, v, blocks));
        merge_rounds(orders, (&sorted, &sorted_lse), v_dim, (level, threads))
    }
}

/// Rows that are brought back, and merged, together.
const MERGED_ROWS: usize = 64;

/// Brings every round's rows back to their tokens, and merges them.
fn merge_rounds(
    orders: &Orders,
    (sorted, sorted_lse): (&[f32], &[f32]),
    v_dim: usize,
    (level, threads): (Level, usize),
) -> Result<LshOutput, AttentionError> {
    let rows = orders.count() * orders.tokens;
    let (mut out, mut lse) = (filled(size([rows, v_dim])?, 0.0)?, filled(rows, 0.0)?);
    let (mut out_left, mut lse_left) = (&mut out[..], &mut lse[..]);
    let parts = parts(rows).map(|rows| {
        let out = piece(&mut out_left, rows.len() * v_dim);
        (out, piece(&mut lse_left, rows.len()), rows)
    });
    let workers = workers(threads, (rows * orders.rounds) as f64 * (10.0 + v_dim as f64 / 4.0));
    let mut scratches = reserved(workers)?;
    for _ in 0..workers {
        scratches.push(filled(size([MERGED_ROWS, v_dim])?, 0.0f32)?);
    }
    // Rows of a round, by their tokens counted over all units.
    let bring_back = |round: usize, rows: Range<usize>, out: &mut [f32], lse: &mut [f32]| {
        for (index, row) in rows.enumerate() {
            let (unit, token) = (row / orders.tokens, row % orders.tokens);
            let from = unit * orders.slots() + orders.slot_of(unit, round)[token] as usize;
            out[index * v_dim..][..v_dim].copy_from_slice(&sorted[from * v_dim..][..v_dim]);
            lse[index] = sorted_lse[from];
        }
    };
    for_each_part_with(parts, &mut scratches, &|(mut out, mut lse, rows), other| {
        for first in rows.clone().step_by(MERGED_ROWS) {
            let rows = first..rows.end.min(first + MERGED_ROWS);
            let (out, lse) = (piece(&mut out, rows.len() * v_dim), piece(&mut lse, rows.len()));
            bring_back(0, rows.clone(), out, lse);
            let (other, mut other_lse) = (&mut other[..rows.len() * v_dim], [0.0; MERGED_ROWS]);
            let other_lse = &mut other_lse[..rows.len()];
            for round in 1..orders.rounds {
                bring_back(round, rows.clone(), other, other_lse);
                merge_on(level, (&mut *out, &mut *lse), (&*other, &*other_lse), v_dim);
            }
        }
    });
    Ok(LshOutput { out, lse })
}

/// The mask, checked as a call of so many tokens would.
fn checked_mask<'a>(mask: Mask<'a>, [batch, heads, tokens]: [usize; 3]) -> Result<Mask<'a>, AttentionError> {
    if mask.blocks.is_some() {
        let (operand, other) = ("mask.blocks", "LSH attention");
        let reason = "it has a block mask of its own; positions that blocks remove can be given as intervals";
        return Err(AttentionError::Conflict { operand, other, reason });
    }
    let mask = crate::exact::call::check_mask(&mask, [batch, heads, tokens, tokens])?;
    crate::exact::sequence::Sequences::new([batch, tokens, tokens], None, &mask, None, false)?;
    Ok(mask)
}

/// Tokens in the order of their slots, widened: `[batch, heads, slots, dim]`; zeros where there is none.
fn gather<T: Element>(
    view: View<'_, T>,
    orders: &Orders,
    (level, threads): (Level, usize),
) -> Result<Vec<f32>, AttentionError> {
    let dim = view.shape()[3];
    let slots = orders.token_at.len();
    let mut gathered = filled(size([slots, dim])?, 0.0)?;
    let mut left = &mut gathered[..];
    let parts = parts(slots).map(|slots| (piece(&mut left, slots.len() * dim), slots));
    let workers = workers(threads, (slots * dim) as f64 / 2.0);
    for_each_part(parts, workers, &|(rows, slots): (&mut [f32], Range<usize>)| {
        level.dispatch(Gather { view, orders, slots, rows });
    });
    Ok(gathered)
}

/// Some slots' tokens.
struct Gather<'a, T> {
    view: View<'a, T>,
    orders: &'a Orders,
    slots: Range<usize>,
    rows: &'a mut [f32],
}

impl<T: Element> Kernel for Gather<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Gather { view, orders, slots, rows } = self;
        let [_, heads, _, dim] = view.shape();
        let tokens = orders.token_at[slots.clone()].iter();
        for ((slot, &token), row) in slots.zip(tokens).zip(rows.chunks_exact_mut(dim.max(1))) {
            if token != NONE {
                let unit = slot / orders.slots();
                widen_row(isa, view, [unit / heads, unit % heads, token as usize], row);
            }
        }
    }
}

/// Keys `k / sqrt(|k|^2 + dim * epsilon)`; zeros stay.
fn normalised(rows: &[f32], dim: usize, epsilon: f32, threads: usize) -> Result<Vec<f32>, AttentionError> {
    let mut keys = filled(rows.len(), 0.0)?;
    let mut left = &mut keys[..];
    let parts = parts(rows.len().checked_div(dim).unwrap_or(0))
        .map(|keys| (piece(&mut left, keys.len() * dim), keys));
    let workers = workers(threads, 2.0 * rows.len() as f64);
    for_each_part(parts, workers, &|(keys, numbers): (&mut [f32], Range<usize>)| {
        let rows = rows[numbers.start * dim..].chunks_exact(dim);
        for (key, row) in keys.chunks_exact_mut(dim).zip(rows) {
            let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let norm = (square + dim as f64 * f64::from(epsilon)).sqrt();
            let scaled = |x: f32| if norm == 0.0 { x } else { (f64::from(x) / norm) as f32 };
            key.iter_mut().zip(row).for_each(|(key, &x)| *key = scaled(x));
        }
    });
    Ok(keys)
}
