//! What a call is made of.

use crate::common::cases::Rng;
use arbitrary::{Result, Unstructured};
use lucid_attention::linear::{
    CustomMap, FeatureMap, LinearInputs, LinearOptions, LinearPlan, LogDecay, Norms, Projection, Side,
};
use lucid_attention::{Element, Level, Problem, View};
use std::ops::Range;
use std::sync::Arc;

/// A call.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) seed: u32,
    pub(super) batch: usize,
    /// Query heads, KV heads.
    pub(super) heads: [usize; 2],
    /// Of queries and of keys, which a causal call has as many of.
    pub(super) lens: [usize; 2],
    pub(super) head_dim: usize,
    pub(super) v_dim: usize,
    pub(super) map: FeatureMap,
    /// How large queries and keys are.
    pub(super) sigma: f32,
    pub(super) causal: bool,
    pub(super) kv_lens: Option<Vec<usize>>,
    pub(super) decay: Option<Decay>,
    pub(super) options: LinearOptions,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Decay {
    PerHead,
    PerToken,
}

/// Numbers of a case, contiguous.
#[derive(Debug)]
pub(super) struct Numbers<T> {
    pub(super) q: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    pub(super) per_head: Vec<f32>,
    pub(super) per_token: Vec<f32>,
}

/// Features that differ for queries and keys, powers of two and squares of what comes.
#[derive(Debug)]
struct Own;

impl CustomMap for Own {
    fn features(&self, head_dim: usize) -> usize {
        head_dim.saturating_mul(2)
    }
    fn map(&self, side: Side, x: &[f32], out: &mut [f32]) {
        let factor = if side == Side::Query { 0.25 } else { 2.0 };
        for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
            *out = [factor * x, x * x];
        }
    }
}

/// A map for queries of this size.
pub(super) fn map(input: &mut Unstructured<'_>, dim: usize) -> Result<FeatureMap> {
    let (features, seed) = (input.int_in_range(1..=12)?, input.arbitrary::<u16>()?.into());
    let directions = match input.int_in_range(0..=2)? {
        0 => Projection::gaussian(features, dim, seed),
        1 => Projection::orthogonal(features, dim, Norms::Chi, seed),
        _ => Projection::orthogonal(features, dim, Norms::Regularized, seed),
    };
    let directions = directions.expect("small sizes");
    Ok(match input.int_in_range(0..=8)? {
        0 => FeatureMap::Positive(directions),
        1 => FeatureMap::Hyperbolic(directions),
        2 => FeatureMap::Optimal { projection: directions, a: *input.choose(&[-0.5, -0.1, 0.0, 0.1])? },
        3 => FeatureMap::Elu,
        4 => FeatureMap::Relu { projection: None, epsilon: *input.choose(&[0.0, 1e-3])? },
        5 => FeatureMap::Relu { projection: Some(directions), epsilon: *input.choose(&[0.0, 1e-3])? },
        6 => FeatureMap::Taylor,
        7 => FeatureMap::Identity,
        _ => FeatureMap::Custom(Arc::new(Own)),
    })
}

pub(super) fn is_exponential(map: &FeatureMap) -> bool {
    matches!(map, FeatureMap::Positive(_) | FeatureMap::Hyperbolic(_) | FeatureMap::Optimal { .. })
}

impl Case {
    pub(super) fn new(input: &mut Unstructured<'_>) -> Result<Self> {
        let head_dim = input.int_in_range(1..=7)?;
        let map = map(input, head_dim)?;
        let exponential = is_exponential(&map);
        let causal = input.arbitrary()?;
        let features = map.features(head_dim).expect("small sizes");
        // Blocks are of 64 tokens: some calls reach into the second or third, with few queries if they can.
        let kv_len =
            if input.ratio(1, 3)? { input.int_in_range(0..=150)? } else { input.int_in_range(0..=20)? };
        let q_len = if causal { kv_len } else { input.int_in_range(0..=20)? };
        let heads = *input.choose(&[[1, 1], [1, 1], [2, 1], [2, 2], [4, 2]])?;
        let batch = input.int_in_range(1..=2)?;
        // The definition goes by pairs: heads and sequences only as it can afford them.
        let pairs = q_len * kv_len * features;
        let (heads, batch) = if pairs * heads[0] * batch > 40_000 { ([1, 1], 1) } else { (heads, batch) };
        let decayed = causal && !exponential;
        let decay = if decayed && input.arbitrary()? {
            Some(*input.choose(&[Decay::PerHead, Decay::PerToken])?)
        } else {
            None
        };
        let threads = input.int_in_range(1..=3)?;
        let options = LinearOptions {
            level: None,
            max_threads: Some(threads),
            // Nothing here is large enough by itself.
            spread_from_microseconds: (threads > 1).then_some(0),
            scale: if input.arbitrary()? { Some(*input.choose(&[0.1, 0.5, 1.0, 3.0])?) } else { None },
            normalize: exponential || input.ratio(3, 4)?,
            exact_window: exponential && causal && input.arbitrary()?,
        };
        let mut kv_lens = None;
        if input.ratio(1, 3)? {
            let lens: Result<_> = (0..batch).map(|_| input.int_in_range(0..=kv_len)).collect();
            kv_lens = Some(lens?);
        }
        Ok(Self {
            seed: input.arbitrary()?,
            batch,
            heads,
            lens: [q_len, kv_len],
            head_dim,
            v_dim: input.int_in_range(0..=9)?,
            map,
            sigma: *input.choose(&[0.1, 0.5, 1.0, 1.0, 4.0, 20.0])?,
            causal,
            kv_lens,
            decay,
            options,
        })
    }

    pub(super) fn numbers<T: Element>(&self) -> Numbers<T> {
        let rng = &mut Rng::new(self.seed.into());
        let [q_len, kv_len] = self.lens;
        let mut drawn = |count: usize, factor: f32| -> Vec<T> {
            (0..count).map(|_| T::from_f32(rng.normal() * factor)).collect()
        };
        let [queries, keys] = [self.heads[0] * q_len, self.heads[1] * kv_len].map(|rows| self.batch * rows);
        let q = drawn(queries * self.head_dim, self.sigma);
        let k = drawn(keys * self.head_dim, self.sigma);
        let v = drawn(keys * self.v_dim, 1.0);
        let mut decays = |count: usize| (0..count).map(|_| -0.3 * rng.uniform().abs()).collect();
        Numbers { q, k, v, per_head: decays(self.heads[1]), per_token: decays(keys) }
    }

    pub(super) fn problem(&self) -> Problem {
        Problem {
            q_heads: self.heads[0],
            kv_heads: self.heads[1],
            head_dim: self.head_dim,
            v_dim: self.v_dim,
            max_q_len: self.lens[0],
            max_kv_len: self.lens[1],
        }
    }

    pub(super) fn plan(&self, level: Level) -> LinearPlan {
        let options = LinearOptions { level: Some(level), ..self.options };
        LinearPlan::with_options(&self.problem(), &self.map, &options).expect("choices that go together")
    }

    /// Operands of some queries and some keys.
    pub(super) fn inputs<'a, T: Element>(
        &'a self,
        numbers: &'a Numbers<T>,
        queries: Range<usize>,
        keys: Range<usize>,
        lens: Option<&'a [usize]>,
    ) -> LinearInputs<'a> {
        let [q_len, kv_len] = self.lens;
        let mut inputs = LinearInputs::new(
            self.tokens(&numbers.q, [self.heads[0], q_len, self.head_dim], queries),
            self.tokens(&numbers.k, [self.heads[1], kv_len, self.head_dim], keys.clone()),
            self.tokens(&numbers.v, [self.heads[1], kv_len, self.v_dim], keys.clone()),
        );
        if self.causal {
            inputs = inputs.causal();
        }
        if let Some(lens) = lens {
            inputs = inputs.kv_lens(lens);
        }
        match self.decay {
            None => inputs,
            Some(Decay::PerHead) => inputs.log_decay(LogDecay::PerHead(&numbers.per_head)),
            Some(Decay::PerToken) => {
                let view = self.tokens(&numbers.per_token, [self.heads[1], kv_len, 1], keys);
                inputs.log_decay(LogDecay::PerToken(view))
            }
        }
    }

    /// Some tokens of an operand.
    fn tokens<'a, T>(
        &self,
        data: &'a [T],
        [heads, len, dim]: [usize; 3],
        tokens: Range<usize>,
    ) -> View<'a, T> {
        let shape = [self.batch, heads, tokens.len(), dim];
        let data = data.get(tokens.start * dim..).unwrap_or(&[]);
        View::with_strides(data, shape, [heads * len * dim, len * dim, dim, 1]).expect("tokens there are")
    }

    /// How many keys a sequence has.
    pub(super) fn keys_of(&self, sequence: usize) -> usize {
        self.kv_lens.as_ref().map_or(self.lens[1], |lens| lens[sequence])
    }
}
