//! Attention: `data` holds q, k and v, each `[batch, heads, tokens, head_dim]`, and `out` gets
//! `[batch, q_heads, q_len, head_dim]`.
//!
//! All are stored in the request's `dtype`. A causal mask aligns query 0 with key 0.

use crate::{Request, flag, spread_from};
use lucid_attention::{
    AttentionError, Element, Inputs, KvCache, Mask, Outputs, Plan, PlanOptions, Problem, QueryStart, View,
    ViewMut,
};
use std::error::Error;

pub(crate) fn time<T: Element>(request: &Request, case: [usize; 7]) -> Result<Vec<f64>, Box<dyn Error>> {
    let [batch, q_heads, kv_heads, q_len, kv_len, dim, causal] = case;
    let (q_shape, kv_shape) = ([batch, q_heads, q_len, dim], [batch, kv_heads, kv_len, dim]);
    let [q, k, v] =
        request.read::<T, 3>([q_shape, kv_shape, kv_shape].map(|shape| shape.iter().product()))?;
    let (q, k, v) = (View::new(&q, q_shape)?, View::new(&k, kv_shape)?, View::new(&v, kv_shape)?);
    let borrowed = Inputs::new(q, k, v);
    let cache = flag("LUCID_PANELS").then(|| filled(k, v, &Problem::of(&borrowed))).transpose()?;
    let inputs = cache.as_ref().map_or(borrowed, |cache| cache.inputs(q));
    let mask = if causal != 0 { Mask::causal() } else { Mask::NONE };
    let inputs = inputs.mask(mask).q_start(QueryStart::TopLeft);

    let options = PlanOptions {
        bf16_dot: flag("LUCID_BF16_DOT"),
        spread_from_microseconds: spread_from()?,
        ..PlanOptions::default()
    };
    let plan = Plan::with_options(&Problem::of(&inputs), &options)?;
    let mut workspace = plan.workspace()?;
    let mut out = vec![T::default(); q_shape.iter().product()];
    let times =
        request.time(|| plan.run(&inputs, Outputs::new(ViewMut::new(&mut out, q_shape)?), &mut workspace))?;
    request.write(&out)?;
    Ok(times)
}

fn filled<T: Element>(
    k: View<'_, T>,
    v: View<'_, T>,
    problem: &Problem,
) -> Result<KvCache<T>, AttentionError> {
    let mut cache = KvCache::new(k.shape()[0], problem)?;
    cache.append(k, v)?;
    Ok(cache)
}
