//! The whole module by its definition in `f64`, beside a bound of what `f32` may be off, derived step by step.
//!
//! Every number carries its exact value (as `f64` has it) and a bound of the error of the kernels' number. With `u = 2^-24`
//! and `g(n) = n u / (1 - n u)`, what a chain of `n` roundings may be off, relatively:
//!
//! ```text
//! linear     e_y = sum |w| e_x + g(m) (sum |w| (|x| + e_x) + |b|)          m = n + 1 steps, 2 n + 1 where each rounds twice
//! score      e_s = scale (sum |q| e_k + |k| e_q + e_q e_k) + g(m + 6) scale sum (|q| + e_q)(|k| + e_k)
//! softmax    d   = max_j e_s + 4 u (|s_j| + |max s|) + 8 u                 a weight is off by a factor of exp(d) at most
//!            f   = exp(2 d) (1 + g(4 keys + 16))                           and the quotient of sums by f
//!            e_o = sum p (|v| (f - 1) + e_v f)
//! absorbed   u = W_k^T q and W_v (sum p v) as linear, and the score over raw tokens, of which e_k = 0
//! activation e_y = 1.2 e_x + 8 u max(|x|, 1)                               no slope is above 1.2
//! norm       as the formula, first order and the square terms, in [`Tracked::norm`]
//! ```

use super::parts::{lively_weights, numbers, tensor};
use half::{bf16, f16};
use lucid_attention::module::*;
use lucid_attention::{DType, Level, Mask, PlanOptions, QueryStart, View};

const U: f64 = 1.0 / (1 << 24) as f64;

fn g(n: usize) -> f64 {
    n as f64 * U / (1.0 - n as f64 * U)
}

/// A number and how far off the kernels' may be.
#[derive(Clone, Copy, Debug, Default)]
struct Tracked {
    value: f64,
    error: f64,
}

impl Tracked {
    fn exact(value: f32) -> Self {
        Self { value: value.into(), error: 0.0 }
    }

    fn size(&self) -> f64 {
        self.value.abs() + self.error
    }

    /// Rows through `y = x W^T + b`, weights as stored.
    fn linear(x: &[Self], dense: &DenseWeights, dtype: DType, fused: bool) -> Vec<Self> {
        let DenseWeights { weight, bias, outputs, inputs } = dense;
        let steps = if fused { inputs + 1 } else { 2 * inputs + 1 };
        let stored = |x: f32| match dtype {
            DType::F16 => f16::from_f32(x).to_f64(),
            DType::Bf16 => bf16::from_f32(x).to_f64(),
            _ => f64::from(x),
        };
        let output = |x: &[Self], j: usize| {
            let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[j]));
            let (mut value, mut error, mut size) = (bias, 0.0, bias.abs());
            for (x, &w) in x.iter().zip(&weight[j * inputs..]) {
                let w = stored(w);
                value += x.value * w;
                error += x.error * w.abs();
                size += x.size() * w.abs();
            }
            Self { value, error: error + g(steps) * size }
        };
        x.chunks_exact(*inputs).flat_map(|x| (0..*outputs).map(move |j| output(x, j))).collect()
    }

    fn activate(self, activation: Activation) -> Self {
        let x = self.value;
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let value = match activation {
            Activation::Linear => return self,
            Activation::Relu => return Self { value: x.max(0.0), ..self },
            Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => sigmoid(x),
            other => panic!("no definition of {other}"),
        };
        Self { value, error: 1.2 * self.error + 8.0 * U * self.size().max(1.0) }
    }

    fn norm(row: &mut [Self], norm: &NormWeights, epsilon: f32) {
        let n = row.len() as f64;
        let mean = row.iter().map(|y| y.value).sum::<f64>() / n;
        let mean_error = row.iter().map(|y| y.error + g(row.len() + 2) * y.size()).sum::<f64>() / n;
        let centred: Vec<Self> = row
            .iter()
            .map(|y| {
                let (value, error) = (y.value - mean, y.error + mean_error);
                Self { value, error: error + U * (value.abs() + error) }
            })
            .collect();
        let variance = centred.iter().map(|d| d.value * d.value).sum::<f64>() / n;
        let off = |d: &Self| 2.0 * d.value.abs() * d.error + d.error * d.error;
        let rounded = |d: &Self| g(2 * row.len() + 4) * d.size() * d.size();
        let variance_error = centred.iter().map(|d| off(d) + rounded(d)).sum::<f64>() / n;
        let epsilon = f64::from(epsilon);
        let scale = 1.0 / (variance + epsilon).sqrt();
        let largest = 1.0 / ((variance - variance_error).max(0.0) + epsilon).sqrt() * (1.0 + 4.0 * U);
        let scale_error = (largest - scale).max(4.0 * U * scale);
        for (index, (y, d)) in row.iter_mut().zip(&centred).enumerate() {
            let (gamma, beta) = (f64::from(norm.gamma[index]), f64::from(norm.beta[index]));
            let error = gamma.abs() * (d.error * largest + d.value.abs() * scale_error);
            let rounding = 4.0 * U * (gamma.abs() * d.size() * largest + beta.abs());
            *y = Self { value: d.value * scale * gamma + beta, error: error + rounding };
        }
    }
}

/// The error function, to 1e-15 or so: its series, or where that cancels the continued fraction of the complement.
pub(crate) fn erf(x: f64) -> f64 {
    let a = x.abs();
    let y = if a < 2.5 {
        let (mut term, mut sum) = (a, a);
        for n in 1..100 {
            term *= -a * a / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..120).rev().fold(a, |below, n| a + f64::from(n) / 2.0 / below);
        1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    y.copysign(x)
}

/// Is handed what a number is, and the number, the exact one, and its bound.
pub(crate) type Judge<'a> = dyn FnMut(&dyn Fn() -> String, [f64; 3]) + 'a;

/// A call, drawn at random.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) config: AttentionConfig,
    pub(crate) dims: InputDims,
    pub(crate) batch: usize,
    pub(crate) q_len: usize,
    pub(crate) kv_len: usize,
    pub(crate) self_attention: bool,
    pub(crate) kv_lens: Option<Vec<usize>>,
    pub(crate) bias: bool,
    pub(crate) q_start: i64,
    pub(crate) always_project: bool,
    pub(crate) seed: u64,
}

impl Case {
    /// Whether a query may attend to a key.
    fn allows(&self, sequence: usize, query: usize, key: usize) -> bool {
        let (at, key_at) = (self.q_start + query as i64, key as i64);
        let AttentionConfig { causal, window_left, window_right, .. } = self.config;
        (!causal || key_at <= at)
            && window_left.is_none_or(|left| key_at >= at - left as i64)
            && window_right.is_none_or(|right| key_at <= at + right as i64)
            && self.kv_lens.as_ref().is_none_or(|lens| key < lens[sequence])
    }

    fn tokens(&self) -> [Vec<f32>; 3] {
        let rows = [self.q_len, self.kv_len, self.kv_len];
        let dims = [self.dims.query, self.dims.key, self.dims.value];
        std::array::from_fn(|i| numbers(self.batch * rows[i] * dims[i], self.seed + 10 + i as u64))
    }

    /// Scores' bias, `[1, heads, q_len, kv_len]`.
    fn score_bias(&self) -> Vec<f32> {
        numbers(self.config.num_heads * self.q_len * self.kv_len, self.seed + 20)
    }

    /// The layer's numbers, as projected keys and values or absorbed projections give them.
    fn expected(&self, weights: &ModuleWeights, fused: bool, absorbed: bool) -> Vec<Tracked> {
        let config = &self.config;
        let tokens = self.tokens().map(|tokens| tokens.into_iter().map(Tracked::exact).collect::<Vec<_>>());
        let [query, key, value] = &tokens;
        let [key, value] = if self.self_attention { [query, query] } else { [key, value] };
        let linear = |x: &[Tracked], dense| Tracked::linear(x, dense, config.weights_dtype, fused);
        let q = linear(query, &weights.query);
        let [k, v] = if absorbed {
            [vec![], vec![]]
        } else {
            [linear(key, &weights.key), linear(value, &weights.value)]
        };
        let mut context = Vec::new();
        for b in 0..self.batch {
            for i in 0..self.q_len {
                for h in 0..config.num_heads {
                    context.extend(if absorbed {
                        self.absorbed_head([&q, key, value], weights, [b, i, h], fused)
                    } else {
                        self.head([&q, &k, &v], [b, i, h], fused)
                    });
                }
            }
        }
        let mut out = linear(&context, &weights.output);
        let output_dim = weights.output.outputs;
        for (index, y) in out.iter_mut().enumerate() {
            *y = y.activate(config.activation());
            if config.use_residual {
                let residual = query[index].value;
                let value = y.value + residual;
                *y = Tracked { value, error: y.error + U * (value.abs() + y.error) };
            }
        }
        if let Some(norm) = &weights.layer_norm {
            out.chunks_exact_mut(output_dim)
                .for_each(|row| Tracked::norm(row, norm, config.layer_norm_epsilon));
        }
        out
    }

    /// What a head makes of a query.
    fn head(&self, [q, k, v]: [&[Tracked]; 3], [b, i, h]: [usize; 3], fused: bool) -> Vec<Tracked> {
        let config = &self.config;
        let (dim, v_dim, kv_heads) = (config.key_dim, config.value_dim(), config.kv_heads());
        let kv_head = h / (config.num_heads / kv_heads);
        let q = &q[((b * self.q_len + i) * config.num_heads + h) * dim..][..dim];
        let row = |x: &'_ [Tracked], j: usize, dim: usize| {
            x[((b * self.kv_len + j) * kv_heads + kv_head) * dim..][..dim].to_vec()
        };
        self.attend([b, i, h], q, |j| row(k, j, dim), |j| row(v, j, v_dim), v_dim, fused)
    }

    /// The same, with the key projection in the query and the value projection after the sum.
    fn absorbed_head(
        &self,
        [q, key, value]: [&[Tracked]; 3],
        weights: &ModuleWeights,
        [b, i, h]: [usize; 3],
        fused: bool,
    ) -> Vec<Tracked> {
        let config = &self.config;
        let (dim, v_dim) = (config.key_dim, config.value_dim());
        let kv_head = h / (config.num_heads / config.kv_heads());
        let q = &q[((b * self.q_len + i) * config.num_heads + h) * dim..][..dim];
        let InputDims { key: key_input, value: value_input, .. } = self.dims;
        let rows = |dense: &DenseWeights, dim: usize| {
            dense.weight[kv_head * dim * dense.inputs..][..dim * dense.inputs].to_vec()
        };
        let w = rows(&weights.key, dim);
        let transposed = (0..key_input).flat_map(|d| w[d..].iter().step_by(key_input).copied()).collect();
        let transposed = DenseWeights { weight: transposed, bias: None, outputs: key_input, inputs: dim };
        let u = Tracked::linear(q, &transposed, config.weights_dtype, fused);
        let row = |x: &[Tracked], j: usize, dim: usize| x[(b * self.kv_len + j) * dim..][..dim].to_vec();
        let (keys, values) = (|j| row(key, j, key_input), |j| row(value, j, value_input));
        let sums = self.attend([b, i, h], &u, keys, values, value_input, fused);
        if !(0..self.kv_len).any(|j| self.allows(b, i, j)) {
            return vec![Tracked::default(); v_dim];
        }
        let bias = weights.value.bias.as_ref().map(|bias| bias[kv_head * v_dim..][..v_dim].to_vec());
        let dense =
            DenseWeights { weight: rows(&weights.value, v_dim), bias, outputs: v_dim, inputs: value_input };
        Tracked::linear(&sums, &dense, config.weights_dtype, fused)
    }

    /// Attention of a query over keys and values.
    fn attend(
        &self,
        [b, i, h]: [usize; 3],
        q: &[Tracked],
        key: impl Fn(usize) -> Vec<Tracked>,
        value: impl Fn(usize) -> Vec<Tracked>,
        v_dim: usize,
        fused: bool,
    ) -> Vec<Tracked> {
        let config = &self.config;
        let scale = config.scale.unwrap_or((config.key_dim as f32).sqrt().recip());
        let steps = if fused { q.len() } else { 2 * q.len() };
        let bias = self.score_bias();
        let score = |j: usize| {
            let (mut value, mut error, mut size) = (0.0, 0.0, 0.0);
            for (q, k) in q.iter().zip(key(j)) {
                value += q.value * k.value;
                error += q.value.abs() * k.error + k.value.abs() * q.error + q.error * k.error;
                size += q.size() * k.size();
            }
            let scale = f64::from(scale);
            let (mut value, mut error) = (value * scale, scale.abs() * (error + g(steps + 6) * size));
            if let Some(cap) = config.softcap {
                let cap = f64::from(cap);
                value = cap * (value / cap).tanh();
                error += 12.0 * U * (value.abs() + error);
            }
            if self.bias {
                let bias = f64::from(bias[(h * self.q_len + i) * self.kv_len + j]);
                value += bias;
                error += 4.0 * U * (value.abs() + bias.abs() + error);
            }
            Tracked { value, error }
        };
        let keys: Vec<usize> = (0..self.kv_len).filter(|&j| self.allows(b, i, j)).collect();
        let scores: Vec<Tracked> = keys.iter().map(|&j| score(j)).collect();
        let max = scores.iter().map(|s| s.value).fold(f64::NEG_INFINITY, f64::max);
        let off = |s: &Tracked| s.error + 4.0 * U * (s.size() + max.abs()) + 8.0 * U;
        let d = scores.iter().map(off).fold(0.0, f64::max);
        let factor = (2.0 * d).exp() * (1.0 + g(4 * keys.len() + 16));
        let sum: f64 = scores.iter().map(|s| (s.value - max).exp()).sum();
        let mut out = vec![Tracked::default(); v_dim];
        for (&j, score) in keys.iter().zip(&scores) {
            let p = (score.value - max).exp() / sum;
            for (out, v) in out.iter_mut().zip(value(j)) {
                out.value += p * v.value;
                out.error += p * (v.value.abs() * (factor - 1.0) + v.error * factor);
            }
        }
        out
    }

    /// Asserts that the module is within the bound at every level. Returns how many bounds should say something, and how
    /// many of them do: are below a hundredth of the number or of 1. (A layer norm of a few numbers divides by next to
    /// nothing now and then; of one number always.)
    pub(crate) fn check(&self) -> [usize; 2] {
        self.compare(&mut |what, [got, expected, bound]| {
            let within = (got - expected).abs() <= bound;
            assert!(within, "{}: {got:e}, not {expected:e} +- {bound:e}", what());
        })
    }

    /// The same, with every number, the exact one and its bound handed to a judge.
    pub(crate) fn compare(&self, judge: &mut Judge<'_>) -> [usize; 2] {
        let weights = lively_weights(&self.config, self.dims, self.seed);
        let [query, key, value] = self.tokens();
        let shape = |tokens, dim| [self.batch, tokens, dim];
        let q = tensor(&query, &shape(self.q_len, self.dims.query));
        let mut inputs = if self.self_attention {
            ModuleInputs::self_attention(q)
        } else {
            let k = tensor(&key, &shape(self.kv_len, self.dims.key));
            ModuleInputs::new(q, k, tensor(&value, &shape(self.kv_len, self.dims.value)))
        };
        if let Some(lens) = &self.kv_lens {
            inputs = inputs.mask(Mask::NONE.kv_lens(lens));
        }
        let bias = self.score_bias();
        if self.bias {
            let shape = [1, self.config.num_heads, self.q_len, self.kv_len];
            inputs = inputs.bias(View::new(&bias, shape).expect("sized to its shape"));
        }
        inputs = inputs.q_start(QueryStart::At(self.q_start));
        let mut counts = [0, 0];
        let tame = weights.layer_norm.is_none() || weights.output.outputs >= 8;
        for level in Level::available() {
            let mut expected = self.expected(&weights, level.is_fused(), false);
            if !self.always_project && self.config.softcap.is_none() {
                // Which way it goes is its own business; what is exact is the same.
                let absorbed = self.expected(&weights, level.is_fused(), true);
                for (direct, absorbed) in expected.iter_mut().zip(absorbed) {
                    let tolerance = 1e-10 * direct.size().max(1.0);
                    assert!((direct.value - absorbed.value).abs() <= tolerance, "{direct:?} is {absorbed:?}");
                    direct.error = direct.error.max(absorbed.error + tolerance);
                }
            }
            let plan = PlanOptions { level: Some(level), ..Default::default() };
            let options =
                ModuleOptions { plan, always_project: self.always_project, ..ModuleOptions::default() };
            let module = MultiHeadAttention::with_options(self.config.clone(), &weights, options);
            let got = module.expect("valid parts").forward(&inputs).expect("a valid call");
            assert_eq!(got.len(), expected.len(), "{level}: numbers of {self:?}");
            for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let what = || format!("{level}: number {index} of {self:?}");
                judge(&what, [f64::from(*got), expected.value, expected.error]);
                let sharp = expected.error <= 1e-2 * expected.value.abs().max(1.0);
                if tame {
                    counts = [counts[0] + 1, counts[1] + usize::from(sharp)];
                }
            }
        }
        counts
    }
}
