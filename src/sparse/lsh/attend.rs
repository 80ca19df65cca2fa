//! Gather, attend, bring back, merge.

use super::super::block_mask::BlockMask;
use super::super::layout::reserved;
use super::Lsh;
use super::hash::size;
use super::order::{NONE, Order};
use super::visit::{HeadMask, layout};
use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::inputs::Inputs;
use crate::mask::Mask;
use crate::merge::merge;
use crate::outputs::Outputs;
use crate::plan::Plan;
use crate::problem::Problem;
use crate::view::{View, ViewMut};

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
    /// a head's result depends on its tokens and buckets only. Allocates; runs on the current rayon pool, but for sorting
    /// and gathering.
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

        let mut orders = reserved(units)?;
        let mut layouts = reserved(units)?;
        for (unit, buckets) in buckets.chunks_exact(each).enumerate() {
            let order = Order::new(buckets, self.buckets, tokens, self.chunk)?;
            let (sequence, q_head) = (unit / heads, unit % heads);
            let kv_len = mask.kv_lens.map_or(tokens, |lens| lens[sequence]);
            layouts.push(layout(self, &order, buckets, &HeadMask { mask: &mask, sequence, q_head, kv_len })?);
            orders.push(order);
        }
        let slots = orders[0].token_at.len();
        let blocks = BlockMask::new(layouts, [batch, heads], (0..units).collect())?;
        let q = gather(qk, &orders)?;
        let mut k = reserved(q.len())?;
        k.extend_from_slice(&q);
        k.chunks_exact_mut(dim.max(1)).for_each(|key| normalise(key, self.norm_epsilon));
        let v = gather(v, &orders)?;

        let shape = [batch, heads, slots, v_dim];
        let keys = [batch, heads, slots, dim];
        let inputs = Inputs::new(View::new(&q, keys)?, View::new(&k, keys)?, View::new(&v, shape)?);
        let inputs = inputs.scale(self.scale).mask(Mask::NONE.blocks(&blocks));
        let mut sorted = zeros(size(shape)?)?;
        let mut sorted_lse = zeros(size([units, slots])?)?;
        let plan = Plan::new(&Problem::of(&inputs))?;
        let outputs = Outputs::new(ViewMut::new(&mut sorted, shape)?).lse(&mut sorted_lse);
        plan.run(&inputs, outputs, &mut plan.workspace()?)?;
        self.merge_rounds(&orders, [batch, heads, tokens, v_dim], &sorted, &sorted_lse)
    }

    /// Brings every round's rows back to their tokens, and merges them.
    fn merge_rounds(
        &self,
        orders: &[Order],
        shape: [usize; 4],
        sorted: &[f32],
        sorted_lse: &[f32],
    ) -> Result<LshOutput, AttentionError> {
        let [_, _, tokens, v_dim] = shape;
        let slots = orders[0].token_at.len();
        let bring_back = |round: usize, out: &mut [f32], lse: &mut [f32]| {
            for (unit, order) in orders.iter().enumerate() {
                let of_round = &order.slot_of[round * tokens..][..tokens];
                for (token, &slot) in of_round.iter().enumerate() {
                    let (from, to) = (unit * slots + slot as usize, unit * tokens + token);
                    out[to * v_dim..][..v_dim].copy_from_slice(&sorted[from * v_dim..][..v_dim]);
                    lse[to] = sorted_lse[from];
                }
            }
        };
        let rows = orders.len() * tokens;
        let (mut out, mut lse) = (zeros(rows * v_dim)?, zeros(rows)?);
        bring_back(0, &mut out, &mut lse);
        if self.rounds > 1 {
            let (mut other, mut other_lse) = (zeros(rows * v_dim)?, zeros(rows)?);
            for round in 1..self.rounds {
                bring_back(round, &mut other, &mut other_lse);
                merge(ViewMut::new(&mut out, shape)?, &mut lse, View::new(&other, shape)?, &other_lse)?;
            }
        }
        Ok(LshOutput { out, lse })
    }
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
fn gather<T: Element>(view: View<'_, T>, orders: &[Order]) -> Result<Vec<f32>, AttentionError> {
    let [_, heads, _, dim] = view.shape();
    let slots = orders.first().map_or(0, |order| order.token_at.len());
    let mut gathered = reserved(size([orders.len(), slots, dim])?)?;
    for (unit, order) in orders.iter().enumerate() {
        for &token in &order.token_at {
            if token == NONE {
                gathered.extend(std::iter::repeat_n(0.0, dim));
                continue;
            }
            let index = |d| [unit / heads, unit % heads, token as usize, d];
            gathered.extend((0..dim).map(|d| view.get(index(d)).map_or(f32::NAN, |x| x.to_f32())));
        }
    }
    Ok(gathered)
}

/// `k / sqrt(|k|^2 + dim * epsilon)`; zeros stay.
fn normalise(key: &mut [f32], epsilon: f32) {
    let square: f64 = key.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let norm = (square + key.len() as f64 * f64::from(epsilon)).sqrt();
    if norm != 0.0 {
        key.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

fn zeros(len: usize) -> Result<Vec<f32>, AttentionError> {
    let mut zeros = reserved(len)?;
    zeros.resize(len, 0.0);
    Ok(zeros)
}
