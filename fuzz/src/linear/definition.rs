//! The quadratic form in `f64`, and how far the kernels may be from it.
//!
//! A weight is a sum of terms, one for each feature (or one, where it is exact): `w_ij = sum_f W_f`. With `u = 2^-24` and
//! `g(n) = n u / (1 - n u)`, what a chain of `n` roundings is off by (two for each step without fused multiply-add):
//!
//! ```text
//! features of maps that are not exponential: errors e_q, e_k of each, step by step in [`Case::plain`]
//!     term                W = a b           off by  |a| e_k + |b| e_q + e_q e_k
//! exponents t (log2) of exponential maps, of a row over d dimensions and norms of |x|²:
//!     exponent            e_t = g(2 d + 8) (sum |row x| + norm |x|² + |shift|)
//!     differences to gauges and maxima, all within the largest exponents:  e_d = 16 u (reach of q + largest reach of a k)
//!     one exponential for the query, one for the key, one for each of at most n rises of the gauge and merges: 4 u each
//!     term                W = 2^(t_q + t_k)  off by a factor of  exp(ln 2 (e_tq + e_tk + e_d) + (4 n + 16) u)
//!     underflow           a feature below 2^-126 may be lost, whose fellow is at most 2^16: 2^-108 of the largest term
//! decay                   exp of a difference of sums of at most n + 64 numbers: (g(2 n + 140) + 4 u) sum |log decay|,
//!                         and 4 u for each block that it passes through
//! sums over features, keys, blocks and states: h = 2 (features + n + 96) roundings at most
//!     N_d = sum W v_d                       off by  sum |v_d| (e_W + g(h) (|W| + e_W))
//!     D   = sum W                           off by  sum e_W + g(h) (|W| + e_W)
//! out = N / D                               off by  (e_N + |out| e_D) / (|D| - e_D), and one rounding
//! ```
//!
//! Where `e_D` is as large as `D` nothing is known of the quotient but that it is no crash. What is stored in a smaller type
//! rounds once more.

use super::case::{Case, Decay, Numbers, is_exponential};
use lucid_attention::Element;
use lucid_attention::linear::{FeatureMap, Projection, Side};
use std::f64::consts::{LN_2, LOG2_E};
use std::ops::Range;

const U: f64 = 1.0 / (1 << 24) as f64;

fn g(n: usize) -> f64 {
    n as f64 * U / (1.0 - n as f64 * U)
}

/// A number and how far off the kernels' may be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tracked {
    pub(super) value: f64,
    pub(super) error: f64,
}

/// Features of a token: themselves, or their exponents.
struct Features {
    list: Vec<Tracked>,
    /// The largest magnitude that an exponent passes through.
    reach: f64,
    x: Vec<f64>,
}

/// The keys that a row sees, and which of them by their exact weight.
pub(super) struct Seen {
    pub(super) keys: usize,
    pub(super) exact: Range<usize>,
}

/// A term of a row: its key, and its size as a plain number or as an exponent.
struct Term {
    key: usize,
    size: Tracked,
}

impl Case {
    fn scale(&self) -> f64 {
        let plain = matches!(self.map, FeatureMap::Elu | FeatureMap::Relu { .. } | FeatureMap::Custom(_));
        let default = if plain { 1.0 } else { (self.head_dim as f64).sqrt().recip() };
        self.options.scale.map_or(default, f64::from)
    }

    fn features(&self, side: Side, x: &[f64]) -> Features {
        let root = self.scale().sqrt();
        let (list, reach) = match &self.map {
            FeatureMap::Positive(rows) => self.exponents(side, x, rows, 0.0, &[1.0]),
            FeatureMap::Hyperbolic(rows) => self.exponents(side, x, rows, 0.0, &[1.0, -1.0]),
            FeatureMap::Optimal { projection, a } => {
                self.exponents(side, x, projection, f64::from(*a), &[1.0])
            }
            _ => (self.plain(side, &x.iter().map(|x| x * root).collect::<Vec<_>>()), 0.0),
        };
        Features { list, reach, x: x.to_vec() }
    }

    /// Exponents, log2, of a token as it is, and their reach; what a weight has besides is on the query's side.
    fn exponents(
        &self,
        side: Side,
        x: &[f64],
        rows: &Projection,
        a: f64,
        signs: &[f64],
    ) -> (Vec<Tracked>, f64) {
        let (dim, scale) = (self.head_dim, self.scale());
        let count = (rows.features() * signs.len()) as f64;
        let norm = LOG2_E * scale / 2.0 * x.iter().map(|x| x * x).sum::<f64>();
        let factor = LOG2_E * (scale * (1.0 - 4.0 * a)).sqrt();
        let (mut list, mut reach) = (Vec::new(), 0.0f64);
        for &sign in signs {
            for row in rows.rows().chunks_exact(dim) {
                let products = || row.iter().zip(x).map(|(&row, x)| f64::from(row) * x * factor * sign);
                let (dot, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                let square = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
                let shift = match side {
                    Side::Key => 0.0,
                    Side::Query => {
                        2.0 * a * LOG2_E * square + dim as f64 / 2.0 * (1.0 - 4.0 * a).log2() - count.log2()
                    }
                };
                let own = size + norm + shift.abs() + 2.0 * a.abs() * LOG2_E * square;
                list.push(Tracked { value: dot - norm + shift, error: g(2 * dim + 8) * own });
                reach = reach.max(own);
            }
        }
        (list, reach)
    }

    /// Features of `x` times the root of the scale, which is off by 2.1 roundings.
    fn plain(&self, side: Side, x: &[f64]) -> Vec<Tracked> {
        let tracked = |value: f64, error: f64| Tracked { value, error: error + 1e-37 };
        let relu = |value: f64, error: f64, epsilon: f32| {
            let error = if value + error <= 0.0 { 0.0 } else { error };
            let value = value.max(0.0) + f64::from(epsilon);
            tracked(value, error + U * (value + error))
        };
        match &self.map {
            FeatureMap::Elu => x
                .iter()
                .map(|&x| {
                    let value = if x > 0.0 { x + 1.0 } else { x.exp() };
                    tracked(value, 2.1 * U * x.abs() * value.min(1.0) + 4.0 * U * value)
                })
                .collect(),
            FeatureMap::Relu { projection: None, epsilon } => {
                x.iter().map(|&x| relu(x, 2.1 * U * x.abs(), *epsilon)).collect()
            }
            FeatureMap::Relu { projection: Some(rows), epsilon } => {
                let rows = rows.rows().chunks_exact(self.head_dim);
                let products = |row: &[f32]| -> Vec<f64> {
                    row.iter().zip(x).map(|(&row, x)| f64::from(row) * x).collect()
                };
                let feature = |row| {
                    let products = products(row);
                    let size = products.iter().map(|x| x.abs()).sum::<f64>();
                    relu(products.iter().sum(), g(2 * x.len() + 4) * size, *epsilon)
                };
                rows.map(feature).collect()
            }
            FeatureMap::Taylor => {
                let mut list = vec![Tracked { value: 1.0, error: 0.0 }];
                list.extend(x.iter().map(|&x| tracked(x, 2.1 * U * x.abs())));
                for i in 0..x.len() {
                    for j in i..x.len() {
                        let value = x[i] * x[j] * if i == j { 0.5f64.sqrt() } else { 1.0 };
                        list.push(tracked(value, 8.0 * U * value.abs()));
                    }
                }
                list
            }
            FeatureMap::Identity => x.iter().map(|&x| tracked(x, 2.1 * U * x.abs())).collect(),
            _ => {
                let narrow: Vec<f32> = x.iter().map(|&x| x as f32).collect();
                let mut out = vec![0.0; 2 * x.len()];
                let FeatureMap::Custom(map) = &self.map else { panic!("another map: {:?}", self.map) };
                map.map(side, &narrow, &mut out);
                out.iter().map(|&x| tracked(x.into(), 9.0 * U * f64::from(x).abs())).collect()
            }
        }
    }

    /// Rows of a sequence's query head, `[q_len][v_dim]`; `seen` says which keys each sees.
    pub(super) fn expected<T: Element>(
        &self,
        numbers: &Numbers<T>,
        [b, h]: [usize; 2],
        seen: &dyn Fn(usize) -> Seen,
    ) -> Vec<Vec<Option<Tracked>>> {
        let [q_len, kv_len] = self.lens;
        let kv_head = b * self.heads[1] + h * self.heads[1] / self.heads[0];
        let rows = |data: &[T], at: usize, len: usize, dim: usize| -> Vec<Vec<f64>> {
            let row =
                |i: usize| data[(at * len + i) * dim..][..dim].iter().map(|x| x.to_f32().into()).collect();
            (0..len).map(row).collect()
        };
        let queries = rows(&numbers.q, b * self.heads[0] + h, q_len, self.head_dim);
        let keys = rows(&numbers.k, kv_head, kv_len, self.head_dim);
        let values = rows(&numbers.v, kv_head, kv_len, self.v_dim);
        let keys: Vec<Features> = keys.iter().map(|k| self.features(Side::Key, k)).collect();
        // Sums of log-decays up to and with each key.
        let mut totals = vec![0.0];
        for key in 0..kv_len {
            let decay = match self.decay {
                None => 0.0,
                Some(Decay::PerHead) => numbers.per_head[kv_head % self.heads[1]].into(),
                Some(Decay::PerToken) => numbers.per_token[kv_head * kv_len + key].into(),
            };
            totals.push(totals[key] + decay);
        }
        let row = |(i, q): (usize, &Vec<f64>)| {
            let seen = seen(i);
            let terms = self.terms(&self.features(Side::Query, q), &keys, &seen);
            self.quotient(&terms, &values, (&totals, seen.keys))
        };
        queries.iter().enumerate().map(row).collect()
    }

    fn terms(&self, q: &Features, keys: &[Features], seen: &Seen) -> Vec<Term> {
        let mut terms = Vec::new();
        let exponential = is_exponential(&self.map);
        let all = keys.iter().map(|k| k.reach).fold(q.reach, f64::max) + q.reach;
        for (key, k) in keys.iter().enumerate().take(seen.keys) {
            if seen.exact.contains(&key) {
                let products = || q.x.iter().zip(&k.x).map(|(q, k)| q * k * self.scale() * LOG2_E);
                let size = products().map(f64::abs).sum::<f64>();
                // The same maximum is subtracted.
                let error = g(2 * self.head_dim + 8) * size + 8.0 * U * (size + all);
                // A query's norm is in the features' exponents and in no exact weight: it does not cancel.
                let norm = self.scale() / 2.0 * LOG2_E * q.x.iter().map(|x| x * x).sum::<f64>();
                let error = error + g(2 * self.head_dim + 8) * norm;
                terms.push(Term { key, size: Tracked { value: products().sum(), error } });
                continue;
            }
            for (q, k) in q.list.iter().zip(&k.list) {
                let size = if exponential {
                    Tracked { value: q.value + k.value, error: q.error + k.error + 16.0 * U * all }
                } else {
                    let error = q.value.abs() * k.error + k.value.abs() * q.error + q.error * k.error;
                    Tracked { value: q.value * k.value, error: error + 1e-37 }
                };
                terms.push(Term { key, size });
            }
        }
        terms
    }

    fn quotient(
        &self,
        terms: &[Term],
        values: &[Vec<f64>],
        (totals, seen): (&[f64], usize),
    ) -> Vec<Option<Tracked>> {
        let exponential = is_exponential(&self.map);
        let n = self.lens[1];
        let features = self.map.features(self.head_dim).expect("small sizes");
        let h = g(2 * (features + n + 96));
        let shift = terms.iter().map(|term| term.size.value).fold(f64::NEG_INFINITY, f64::max);
        let total = totals[n].abs();
        let (mut sum, mut size_of_sum) = (Tracked::default(), 0.0);
        let mut row = vec![Tracked::default(); self.v_dim];
        for Term { key, size } in terms {
            let mut weight = *size;
            if exponential {
                let value = (LN_2 * (size.value - shift)).exp();
                let off = LN_2 * size.error + (4 * n + 16) as f64 * U;
                weight = Tracked { value, error: value * off.exp_m1() + 2f64.powi(-108) };
            }
            if self.decay.is_some() {
                let factor = (totals[seen] - totals[key + 1]).exp();
                let off = (g(2 * n + 140) + 4.0 * U) * total + 4.0 * U * (n / 64 + 4) as f64;
                let error = factor * (weight.error + (weight.value.abs() + weight.error) * off.exp_m1());
                weight = Tracked { value: weight.value * factor, error: error + 1e-36 };
            }
            let off = weight.error + h * (weight.value.abs() + weight.error);
            sum.value += weight.value;
            sum.error += off;
            size_of_sum += weight.value.abs();
            for (out, v) in row.iter_mut().zip(&values[*key]) {
                out.value += weight.value * v;
                out.error += v.abs() * off + 1e-37;
            }
        }
        let quotient = |out: Tracked| {
            if !self.options.normalize {
                return Some(Tracked { error: out.error * 1.01, ..out });
            }
            // No key, or no feature that is not 0: +0.
            if size_of_sum == 0.0 && sum.error <= 1e-30 {
                return Some(Tracked::default());
            }
            let left = sum.value.abs() - sum.error;
            if left <= 0.0 {
                return None;
            }
            let value = out.value / sum.value;
            let error = (out.error + value.abs() * sum.error) / left;
            Some(Tracked { value, error: (error + U * (value.abs() + error)) * 1.01 + 1e-38 })
        };
        row.into_iter().map(quotient).collect()
    }
}
