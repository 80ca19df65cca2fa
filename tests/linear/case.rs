//! Cases and their operands.

use super::Rng;
use lucid_attention::linear::{
    FeatureMap, LinearInputs, LinearOptions, LinearPlan, LogDecay, Norms, Projection,
};
use lucid_attention::{Element, Level, Problem, View, ViewMut};

/// A call.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) batch: usize,
    /// Query heads, KV heads.
    pub(crate) heads: [usize; 2],
    pub(crate) q_len: usize,
    pub(crate) kv_len: usize,
    pub(crate) head_dim: usize,
    pub(crate) v_dim: usize,
    pub(crate) map: FeatureMap,
    /// The standard deviation of queries and keys.
    pub(crate) sigma: f32,
    pub(crate) causal: bool,
    pub(crate) kv_lens: Option<Vec<usize>>,
    pub(crate) decay: Option<Decay>,
    pub(crate) options: LinearOptions,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Decay {
    PerHead,
    PerToken,
}

/// FAVOR+ with orthogonal directions.
pub(crate) fn positive(features: usize, head_dim: usize) -> FeatureMap {
    FeatureMap::Positive(Projection::orthogonal(features, head_dim, Norms::Chi, 7).expect("memory"))
}

impl Default for Case {
    fn default() -> Self {
        Self {
            seed: 1,
            batch: 1,
            heads: [1, 1],
            q_len: 100,
            kv_len: 100,
            head_dim: 16,
            v_dim: 8,
            map: positive(32, 16),
            sigma: 0.5,
            causal: false,
            kv_lens: None,
            decay: None,
            options: LinearOptions::default(),
        }
    }
}

/// The numbers of a case, contiguous.
#[derive(Clone, Debug)]
pub(crate) struct Operands<T> {
    pub(crate) q: Vec<T>,
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
    pub(crate) per_head: Vec<f32>,
    pub(crate) per_token: Vec<f32>,
}

impl Case {
    pub(crate) fn q_shape(&self) -> [usize; 4] {
        [self.batch, self.heads[0], self.q_len, self.head_dim]
    }
    pub(crate) fn k_shape(&self) -> [usize; 4] {
        [self.batch, self.heads[1], self.kv_len, self.head_dim]
    }
    pub(crate) fn v_shape(&self) -> [usize; 4] {
        [self.batch, self.heads[1], self.kv_len, self.v_dim]
    }
    pub(crate) fn out_shape(&self) -> [usize; 4] {
        [self.batch, self.heads[0], self.q_len, self.v_dim]
    }

    pub(crate) fn operands<T: Element>(&self) -> Operands<T> {
        let rng = &mut Rng::new(self.seed);
        let mut numbers = |shape: [usize; 4], factor: f32| -> Vec<T> {
            (0..shape.iter().product()).map(|_| T::from_f32(rng.normal() * factor)).collect()
        };
        let q = numbers(self.q_shape(), self.sigma);
        let k = numbers(self.k_shape(), self.sigma);
        let v = numbers(self.v_shape(), 1.0);
        let tokens = self.batch * self.heads[1] * self.kv_len;
        let per_head = (0..self.heads[1]).map(|_| -0.2 * rng.uniform().abs()).collect();
        let per_token = (0..tokens).map(|_| -0.2 * rng.uniform().abs()).collect();
        Operands { q, k, v, per_head, per_token }
    }

    pub(crate) fn problem(&self) -> Problem {
        Problem {
            q_heads: self.heads[0],
            kv_heads: self.heads[1],
            head_dim: self.head_dim,
            v_dim: self.v_dim,
            max_q_len: self.q_len,
            max_kv_len: self.kv_len,
        }
    }

    pub(crate) fn plan(&self, level: Level) -> LinearPlan {
        let options = LinearOptions { level: Some(level), ..self.options };
        LinearPlan::with_options(&self.problem(), &self.map, &options).expect("a plan")
    }

    pub(crate) fn inputs<'a, T: Element>(&'a self, operands: &'a Operands<T>) -> LinearInputs<'a> {
        let Operands { q, k, v, per_head, per_token } = operands;
        let mut inputs = LinearInputs::new(
            View::new(q, self.q_shape()).expect("q fits"),
            View::new(k, self.k_shape()).expect("k fits"),
            View::new(v, self.v_shape()).expect("v fits"),
        );
        if self.causal {
            inputs = inputs.causal();
        }
        if let Some(lens) = &self.kv_lens {
            inputs = inputs.kv_lens(lens);
        }
        let [batch, heads, kv_len, _] = self.k_shape();
        match self.decay {
            None => inputs,
            Some(Decay::PerHead) => inputs.log_decay(LogDecay::PerHead(per_head)),
            Some(Decay::PerToken) => {
                let view = View::new(per_token, [batch, heads, kv_len, 1]).expect("decays fit");
                inputs.log_decay(LogDecay::PerToken(view))
            }
        }
    }

    /// The call, on one thread.
    pub(crate) fn run<T: Element>(&self, level: Level, operands: &Operands<T>) -> Vec<T> {
        let plan = self.plan(level);
        let mut out = vec![T::from_f32(f32::NAN); self.out_shape().iter().product()];
        let view = ViewMut::new(&mut out, self.out_shape()).expect("out fits");
        plan.run(&self.inputs(operands), view, &mut plan.workspace().expect("memory"))
            .expect("a call that fits");
        out
    }

    /// How many keys a sequence has.
    pub(crate) fn keys_of(&self, b: usize) -> usize {
        self.kv_lens.as_ref().map_or(self.kv_len, |lens| lens[b])
    }
}
