//! A certified bound on the error of every output element, and the check that holds results against it.
//!
//! # The bound
//!
//! It follows the order of operations, version 1, term by term. One query row; sums over `j` run over the keys left;
//! u = 2^-24 is half the relative spacing of `f32`, K and K' are the ULPs of `exp2` and `tanh` (1 ULP <= 2u of the
//! result); gamma(n) = n u / (1 - n u) bounds the effect of n roundings in a row. Exact quantities carry no hat:
//! t_j = s_j log2 e is the exact logit in log2 units, p_j its exact probability, o_d the exact output. "Flush"
//! constants cover subnormals, whether they are kept or set to 0.
//!
//! **1. Logit, t^_j = t_j +- eps_j.** With c = scale log2 e, the magnitude of a logit is
//!
//! ```text
//! T_j = sum_d max(|c q_d|, 2^-126) |k_jd|                 (d with q_d = 0 contribute 0)
//! ```
//!
//! - c^ = RN(scale RN(log2 e)): relative error <= 1.25 u (log2 e in f32 is off by 0.224 u) + 2^-150 / |c|.
//! - q'_d = RN(q_d c^): u |c q_d|, or 2^-150 if subnormal. That is u 2^-126, hence the max in T_j.
//! - The FMA chain over D dimensions: a term takes part in at most D roundings; without FMA its product takes one
//!   more. (So the *count* of roundings doubles, but a sum of D terms is off by gamma(D + 1), not gamma(2 D): an
//!   addition chain rounds partial sums, and each term sits in at most D of them.) Subnormal steps: 2^-150 each,
//!   at most 2 D of them.
//!
//! eps_j = T_j ((1 + 1.25 u + 2^-150/|c|) (1 + u) (1 + gamma(D [+ 1])) - 1) + D 2^-149.
//!
//! **2. Softcap.** x = s / cap. a^ = RN(ln2 / cap) is off by 1.25 u (+ 2^-150 / a), the product a^ t^ rounds once:
//!
//! ```text
//! dx   = |x| (2.25 u + 2^-150/a) + (ln2 / cap) eps_j + 2^-150
//! dtanh = min(2, dx sech^2(max(0, |x| - dx)))             mean value theorem; sech^2 falls with |x|
//! eps_j = C (dtanh + 2 K' u (tanh|x| + dtanh) + K' 2^-149)          C = cap log2 e
//!       + C (tanh|x| + dtanh) (2.25 u + 2^-150/C) + 2^-150          C^ and the product
//! ```
//!
//! This caps a hopeless raw logit: eps_j <= 2 C and a little.
//!
//! **3. ALiBi**, t = fma(dist, RN(-slope log2 e), t): 1.25 u |slope dist log2 e| + dist 2^-150 for the coefficient,
//! u |slope dist log2 e| for converting dist if it exceeds 2^24, u (|t| + eps_j) for the rounding; without FMA
//! u |slope dist log2 e| for the product.
//! **4. Bias**, t = fma(bias, RN(log2 e), t): 0.25 u |bias log2 e| for the constant, u (|t| + eps_j) for the rounding;
//! without FMA u |bias log2 e| for the product. (2^-150 for each rounding if subnormal.)
//!
//! **5. Weight.** The final maximum m^ is one of the t^_j (or the sink's), exactly; m^ <= M = max_j (t_j + eps_j). Key
//! j is weighted with exp2(RN(t^_j - m)) for the running maximum m of its tile, then multiplied by one
//! exp2(RN(m - m')) for each rise and each merge after it. All these differences have one sign and add up to
//! m^ - t^_j, so their roundings together are at most u (M - t_j + eps_j), however many there are. With G the factors
//! after the first, the weight is that of the exact logit times e^(+-rho_j),
//!
//! ```text
//! rho_j = ln2 (eps_j + u (M - t_j + eps_j)) + (1 + G) 2 K u
//! G     = (tiles of the fullest split) - 1 + (splits, if more than 1) + (1 with a sink)
//! r_j   = e^rho_j - 1
//! ```
//!
//! up to a factor common to all weights and to both sums, which cancels. (Only tiles and splits with keys left
//! count.) A weight below 2^-126 in the frame of m^, where the sum is at least 1, may be flushed: it is then off by
//! at most 2^-126. The sink is one more key with value 0 and eps = 1.25 u |sink log2 e|.
//!
//! With dw_j = p_j r_j (+ 2^-125 if t_j - eps_j - M < -120) the error of the exactly normalised weights is
//!
//! ```text
//! E1_d = sum_j dw_j |v_jd - o_d| / D-,   D- = sum_j p_j e^-rho_j (- the flush terms) <= (sum of weights) / (exact sum)
//! ```
//!
//! because sum_j p_j (v_jd - o_d) = 0. A row is *certified* if r_bar = sum_j dw_j < 1.
//!
//! **6. Sums.** The same f32 weights and factors enter numerator and denominator; what is left are the roundings of
//! the sums. A term passes through at most
//!
//! ```text
//! h_N = (most keys left in a split) [+ 1 without FMA] + rises + 2 (splits - 1) + 1          of the numerator
//! h_l = min(that, split / 16) + 4 + 2 rises + 2 (splits - 1) + 2                            of the denominator
//! A~_d = sum_j (p_j + dw_j) |v_jd| / D-                                        at least the computed magnitude
//! E2_d = E1_d + gamma(h_N) A~_d + (2 N + 3 G + 3) 2^-150 / l                   subnormal steps; l >= 1 the sum
//! E3_d = E2_d + (gamma(h_l) / (1 - gamma(h_l)) + u) (|o_d| + E2_d) + 2^-150    denominator, division
//! B_d  = E3_d + u_out (|o_d| + E3_d) + tiny_out                                store to f16 or bf16
//! ```
//!
//! In the **bf16 dot-product tier** (its order is in `src/exact/bf16_dot.rs`; the inputs are the rounded ones) c^ multiplies
//! the chain instead of q, with as many roundings; a chain takes two roundings per pair, so one more where their number
//! is odd (as without FMA); steps flush what is below 2^-126 (`step_flush` in place of 2^-150); and each weight in the
//! numerator is rounded once more, by `weight_unit` = 2^-8, which makes gamma(h_N) into
//! (1 + 2^-8) (1 + gamma(h_N)) - 1.
//!
//! **LSE** = (m^ + log2 l^) ln 2 without the sink, p' the probabilities without it:
//! max(ln(1 + sum p'_j r_j), -ln(sum p'_j e^-rho_j)) + gamma(h_l) + 2 K'' u |ln l| for a logarithm of K'' ULP
//! + 3 u (|m| + |ln l|) for the additions and the factor ln 2.
//!
//! `B_sqrt` is the same with every count of roundings n replaced by sqrt(n) + 1 (sqrt(2 n) + 1 without FMA): what
//! independent roundings give, not a theorem.
//!
//! # What f32 cannot hold
//!
//! Where some T_j (or a coefficient) comes near the largest f32, the logits are evaluated in f32 in the order of
//! operations, to see which overflow: NaN or +inf makes a NaN row, -inf a weight of 0, nothing but -inf a NaN row.
//! Where sum_j |v_jd| exceeds f32, the unnormalised sum may overflow, and a non-finite output is accepted. Where a
//! weight may underflow, inf times it may be inf or NaN.

use lucid_attention::reference::{self, Answer, Row, Score};
use lucid_attention::{DType, Element, Inputs, View};
use std::f64::consts::{LN_2, LOG2_E};

const U: f64 = 1.0 / (1u64 << 24) as f64;
/// Half of the smallest subnormal f32.
const TINY: f64 = 1.0 / (1u128 << 100) as f64 / (1u64 << 50) as f64;
/// 2^-125: twice the smallest normal f32.
const FLUSH: f64 = 1.0 / (1u128 << 125) as f64;
/// 2^-126, the smallest normal f32.
const NORMAL: f64 = f32::MIN_POSITIVE as f64;
/// Magnitudes below it cannot overflow.
const SAFE: f64 = f32::MAX as f64 / 2.0;

/// What the bound depends on besides the inputs.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// The most ULPs by which `exp2` is off.
    pub exp2_ulp: f64,
    /// The same for `tanh`.
    pub tanh_ulp: f64,
    /// The same for the logarithm in the LSE.
    pub log_ulp: f64,
    /// Whether a multiply-add rounds once.
    pub fused: bool,
    /// Keys in a tile of the order of operations.
    pub tile: usize,
    /// Keys in a split.
    pub split: usize,
    /// The rounding of weights before they meet values; 0 in the exact tier.
    pub weight_unit: f64,
    /// By how much a step of a sum may be off when it is subnormal.
    pub step_flush: f64,
}

impl Default for Bound {
    fn default() -> Self {
        Self {
            exp2_ulp: 1.5,
            tanh_ulp: 4.0,
            log_ulp: 2.0,
            fused: true,
            tile: 256,
            split: 1024,
            weight_unit: 0.0,
            step_flush: TINY,
        }
    }
}

impl Bound {
    /// The relative error of a weight that is a product of one exponential and `factors` more.
    fn factor_error(&self, factors: f64) -> f64 {
        (1.0 + factors) * 2.0 * self.exp2_ulp * U * (1.0 + 1e-6)
    }
}

/// What [`check`] found in results that hold.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// The largest error over its bound, of all certified elements.
    pub worst: f64,
    /// The largest error over `B_sqrt`.
    pub worst_sqrt: f64,
    /// The largest error of an LSE over its bound, of all certified rows.
    pub worst_lse: f64,
    /// Output elements looked at.
    pub elements: usize,
    /// Rows whose logits are too large for f32 to tell the weights: only finite and inside the hull of V.
    pub uncertified_rows: usize,
    /// Where `worst` is: `[batch, q_head, query, dim]`.
    pub worst_at: [usize; 4],
}

impl Checked {
    /// Takes in what another check found.
    pub fn merge(&mut self, other: &Checked) {
        if other.worst > self.worst {
            (self.worst, self.worst_at) = (other.worst, other.worst_at);
        }
        self.worst_sqrt = self.worst_sqrt.max(other.worst_sqrt);
        self.worst_lse = self.worst_lse.max(other.worst_lse);
        self.elements += other.elements;
        self.uncertified_rows += other.uncertified_rows;
    }
}

/// Holds an output, and an LSE if given, against the reference and the bound of the [module](self).
///
/// An error names the first element that is wrong. Rows without keys have to be exactly +0 with an LSE of -inf.
pub fn check<Q: Element, T: Element>(
    inputs: &Inputs<'_, Q, T>,
    out: &View<'_, Q>,
    lse: Option<&[f32]>,
    params: &Bound,
) -> Result<Checked, String> {
    let shape = inputs.output_shape();
    let rows = shape[0] * shape[1] * shape[2];
    if out.shape() != shape || lse.is_some_and(|lse| lse.len() != rows) {
        return Err(format!(
            "shape: out {:?}, lse {:?}, expected {shape:?}",
            out.shape(),
            lse.map(<[f32]>::len)
        ));
    }
    let answer = reference::attention(inputs).map_err(|error| error.to_string())?;
    let mut checker =
        Checker { params, answer: &answer, shape, scratch: Scratch::default(), checked: Checked::default() };
    let mut verdict = Ok(());
    reference::for_each_row(inputs, |row| {
        if verdict.is_ok() {
            let [b, h, i] = row.index;
            let got = |d: usize| out.get([b, h, i, d]).map_or(f32::NAN, |x| x.to_f32());
            let lse = lse.map(|lse| lse[(b * shape[1] + h) * shape[2] + i]);
            verdict = checker.row(row, got, lse, Store::of(Q::DTYPE));
        }
    })
    .map_err(|error| error.to_string())?;
    verdict.map(|()| checker.checked)
}

/// The rounding of a store.
#[derive(Clone, Copy)]
struct Store {
    unit: f64,
    tiny: f64,
    /// From here on values round to infinity.
    overflow: f64,
}

impl Store {
    fn of(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Store { unit: dtype.unit_roundoff(), tiny: 2f64.powi(-25), overflow: 65520.0 },
            DType::Bf16 => Store {
                unit: dtype.unit_roundoff(),
                tiny: 2f64.powi(-134),
                overflow: 2f64.powi(128) * (1.0 - 2f64.powi(-9)),
            },
            _ => Store { unit: 0.0, tiny: 0.0, overflow: 2f64.powi(128) * (1.0 - 2f64.powi(-25)) },
        }
    }
}

/// n roundings in a row.
fn gamma(n: f64) -> f64 {
    n * U / (1.0 - n * U)
}

/// A bound computed two ways: for every rounding at its worst, and for independent ones.
#[derive(Clone, Copy, Debug, Default)]
struct Two {
    hard: f64,
    sqrt: f64,
}

impl Two {
    fn map(self, f: impl Fn(f64) -> f64) -> Two {
        Two { hard: f(self.hard), sqrt: f(self.sqrt) }
    }
}

/// One key left.
#[derive(Clone, Copy, Default)]
struct Key {
    index: usize,
    /// Exact logit, log2 units.
    t: f64,
    eps: Two,
    /// Exact probability.
    p: f64,
    /// Error of the weight.
    dw: Two,
}

/// Buffers that live from row to row.
#[derive(Default)]
struct Scratch {
    /// The sequence, head and keys that `abs_k` belongs to.
    head: Option<[usize; 3]>,
    /// `|k|` transposed: `[head_dim, keys]`.
    abs_k: Vec<f64>,
    magnitude: Vec<f64>,
    keys: Vec<Key>,
    spread: Vec<Two>,
    weighted: Vec<f64>,
    total: Vec<f64>,
}

struct Checker<'a> {
    params: &'a Bound,
    answer: &'a Answer,
    shape: [usize; 4],
    scratch: Scratch,
    checked: Checked,
}

/// The numbers of roundings in a row of keys.
struct Depths {
    factors: f64,
    numerator: Two,
    denominator: Two,
}

/// What f32 makes of a row's logits.
enum Fate {
    /// Finite ones are left, and none is lost that has a weight.
    Finite,
    /// Some overflow to -inf that exactly would have a weight, or might have one.
    Doubtful,
    /// The row is NaN.
    Nan,
}

impl Checker<'_> {
    fn row(
        &mut self,
        row: &Row<'_>,
        got: impl Fn(usize) -> f32,
        got_lse: Option<f32>,
        store: Store,
    ) -> Result<(), String> {
        let [b, h, i] = row.index;
        let [_, q_heads, q_len, v_dim] = self.shape;
        let at = (b * q_heads + h) * q_len + i;
        self.checked.elements += v_dim;
        let expect_all = |what: &str, holds: &dyn Fn(f32) -> bool| match (0..v_dim).find(|&d| !holds(got(d)))
        {
            Some(d) => Err(format!("out[{b}, {h}, {i}, {d}]: got {:e}, expected {what}", got(d))),
            None => Ok(()),
        };
        let expect_lse = |what: &str, holds: &dyn Fn(f32) -> bool| match got_lse {
            Some(lse) if !holds(lse) => Err(format!("lse[{b}, {h}, {i}]: got {lse:e}, expected {what}")),
            _ => Ok(()),
        };

        if !row.scores.iter().any(|score| score.attended) {
            expect_all("+0: no key is left", &|x| x.to_bits() == 0)?;
            return expect_lse("-inf: no key is left", &|x| x == f32::NEG_INFINITY);
        }
        self.magnitudes(row);
        let fate = self.logits(row);
        if matches!(fate, Fate::Nan) || self.answer.row_max[at].is_nan() {
            expect_all("NaN: a logit is NaN or +inf, or all are -inf", &f32::is_nan)?;
            return expect_lse("NaN: a logit is NaN or +inf, or all are -inf", &f32::is_nan);
        }

        // 5. Weights without the sink, for the LSE.
        let (lse, max) = (self.answer.lse[at], self.answer.row_max[at]);
        let depths = self.depths(false);
        let keys = &mut self.scratch.keys;
        let top = keys.iter().map(|key| key.t + key.eps.hard).fold(f64::NEG_INFINITY, f64::max);
        let mut weights = weigh(keys, lse, top, self.params.factor_error(depths.factors));
        if let Some(got) = got_lse.filter(|_| !matches!(fate, Fate::Doubtful)) {
            let log = (lse - max).abs();
            let shift = weights.up.hard.ln_1p().max(-(-weights.down.hard).ln_1p());
            let shift = if shift < weights.worst_rho { shift } else { weights.worst_rho };
            let bound = shift
                + gamma(depths.denominator.hard)
                + 2.0 * U * self.params.log_ulp * log
                + 3.0 * U * (max.abs() + (top * LN_2 - max) + log + shift)
                + TINY;
            let error = (f64::from(got) - lse).abs();
            if error.is_nan() || error > bound {
                return Err(format!(
                    "lse[{b}, {h}, {i}]: got {got:e}, expected {lse:e}, error {error:e}, bound {bound:e}"
                ));
            }
            if weights.up.hard < 1.0 {
                self.checked.worst_lse = self.checked.worst_lse.max(ratio(error, bound));
            }
        }

        // The sink is one more key, with value 0.
        let sink = row.sink.filter(|&sink| sink_in_f32(sink) != f32::NEG_INFINITY);
        if sink.is_some_and(|sink| !sink_in_f32(sink).is_finite()) {
            return expect_all("NaN: the sink is NaN or +inf", &f32::is_nan);
        }
        let (mut denominator, mut frame, mut sink_dw) = (lse, top, Two::default());
        let depths = self.depths(sink.is_some());
        let keys = &mut self.scratch.keys;
        if let Some(sink) = sink {
            let t = sink * LOG2_E;
            let eps = 1.25 * U * t.abs() + 2.0 * TINY;
            denominator = lse.max(sink) + (-(lse - sink).abs()).exp().ln_1p();
            frame = top.max(t + eps);
            let exp_error = self.params.factor_error(depths.factors);
            let mut key = [Key { t, eps: Two { hard: eps, sqrt: eps }, ..Key::default() }];
            let sunk = weigh(&mut key, denominator, frame, exp_error);
            weights = weigh(keys, denominator, frame, exp_error);
            weights.add(&sunk);
            sink_dw = key[0].dw;
        }
        let left = weights.down.map(|down| (1.0 - down).max(f64::MIN_POSITIVE));

        // The exact sum in the frame of the computed maximum; as one weight is 1, it is at least about 1.
        let sum = 0.99 * (denominator - frame * LN_2).exp().max(1.0);
        let flushed = (2.0 * keys.len() as f64 + 3.0 * depths.factors + 3.0) * self.params.step_flush / sum;

        let certified = weights.up.hard < 1.0 && !matches!(fate, Fate::Doubtful);
        self.checked.uncertified_rows += usize::from(!certified);
        self.column_sums(row, &self.answer.out[at * v_dim..][..v_dim]);
        for d in 0..v_dim {
            let exact = self.answer.out[at * v_dim + d];
            let got = f64::from(got(d));
            let wrong = |what: &str| {
                let uncertified = if certified { "" } else { " (uncertified row)" };
                Err(format!("out[{b}, {h}, {i}, {d}]: got {got:e}, expected {exact:e}: {what}{uncertified}"))
            };
            let overflow =
                self.scratch.total[d].is_nan() || self.scratch.total[d] > f64::from(f32::MAX) * 0.99;
            if !exact.is_finite() {
                // A value is not finite: NaN stays NaN, and so does infinity, unless its weight may be 0.
                let holds =
                    got.is_nan() && (exact.is_nan() || weights.low || overflow || !certified) || got == exact;
                if !holds && (certified || got.is_finite()) {
                    return wrong("a value is not finite");
                }
                continue;
            }
            if !certified {
                let (lowest, highest) = hull(&self.scratch.keys, row, v_dim, d, sink.is_some());
                let size = lowest.abs().max(highest.abs());
                let slack = gamma(depths.numerator.hard)
                    + 2.0 * gamma(depths.denominator.hard)
                    + 2.0 * U
                    + self.params.weight_unit
                    + store.unit;
                let slack = slack * (1.0 + slack) * size + flushed * 2.0 + store.tiny;
                let inside = lowest - slack <= got && got <= highest + slack;
                let too_large = size + slack >= store.overflow && got.is_infinite();
                if !(inside || too_large || overflow && !got.is_finite()) {
                    return wrong(&format!("outside [{lowest:e}, {highest:e}]"));
                }
                continue;
            }
            let of = |spread: f64, sink_dw: f64, left: f64, numerator: f64, denominator: f64| {
                let weights = (spread + sink_dw * exact.abs()) / left;
                let rounded = (1.0 + self.params.weight_unit) * (1.0 + gamma(numerator)) - 1.0;
                let sums = weights + rounded * self.scratch.weighted[d] / left + flushed;
                let relative = gamma(denominator) / (1.0 - gamma(denominator)) + U;
                let divided = sums + relative * (exact.abs() + sums) + 2.0 * TINY;
                (divided + store.unit * (exact.abs() + divided) + store.tiny) * (1.0 + 1e-9)
            };
            let spread = self.scratch.spread[d];
            let hard =
                of(spread.hard, sink_dw.hard, left.hard, depths.numerator.hard, depths.denominator.hard);
            let error = (got - exact).abs();
            if error.is_nan() || error > hard {
                let too_large =
                    got.is_infinite() && got * exact > 0.0 && exact.abs() + hard >= store.overflow;
                if too_large || overflow && !got.is_finite() {
                    continue;
                }
                return wrong(&format!("error {error:e}, bound {hard:e}"));
            }
            let sqrt =
                of(spread.sqrt, sink_dw.sqrt, left.sqrt, depths.numerator.sqrt, depths.denominator.sqrt);
            self.checked.worst_sqrt = self.checked.worst_sqrt.max(ratio(error, sqrt));
            if ratio(error, hard) > self.checked.worst {
                self.checked.worst = ratio(error, hard);
                self.checked.worst_at = [b, h, i, d];
            }
        }
        Ok(())
    }

    /// T_j of the derivation for all keys of a row.
    fn magnitudes(&mut self, row: &Row<'_>) {
        let (keys, head_dim) = (row.scores.len(), row.q.len());
        let scratch = &mut self.scratch;
        let head = Some([row.sequence, row.index[0], row.index[1]]);
        if scratch.head != head {
            scratch.head = head;
            scratch.abs_k.clear();
            scratch.abs_k.resize(row.k.len(), 0.0);
            for (j, k) in row.k.chunks_exact(head_dim).enumerate() {
                for (d, k) in k.iter().enumerate() {
                    scratch.abs_k[d * keys + j] = k.abs();
                }
            }
        }
        scratch.magnitude.clear();
        scratch.magnitude.resize(keys, 0.0);
        for (q, k) in row.q.iter().zip(scratch.abs_k.chunks_exact(keys)) {
            let scaled = q * row.scale * LOG2_E;
            let scaled = if scaled == 0.0 { 0.0 } else { scaled.abs().max(NORMAL) };
            for (magnitude, k) in scratch.magnitude.iter_mut().zip(k) {
                *magnitude += scaled * k;
            }
        }
    }

    /// Steps 1 to 4: exact logits and their errors, of the keys whose weight is not 0.
    fn logits(&mut self, row: &Row<'_>) -> Fate {
        let Scratch { magnitude, keys, .. } = &mut self.scratch;
        let params = self.params;
        let head_dim = row.q.len() as f64;
        let c = (row.scale * LOG2_E).abs();
        let chain = roundings(head_dim, params.fused, 1.0);
        let c_error = if c > 0.0 { 1.25 * U + TINY / c } else { 0.0 };
        let per_magnitude = chain.map(|n| (1.0 + c_error) * (1.0 + U) * (1.0 + gamma(n)) - 1.0);
        let product = if params.fused { 0.0 } else { U };
        let slope_error = 1.25 * U + product;

        let cap_safe = row.softcap.is_none_or(|cap| cap * LOG2_E < SAFE && LN_2 / cap < SAFE);
        let mut safe = c < SAFE && row.slope.abs() * LOG2_E < SAFE && cap_safe;
        keys.clear();
        for (index, score) in row.scores.iter().enumerate().filter(|(_, score)| score.attended) {
            let (alibi, bias) = (score.alibi.abs() * LOG2_E, score.bias.abs() * LOG2_E);
            safe &= magnitude[index] + alibi + bias < SAFE;
            let steps = 2.0 * (head_dim + 1.0) * params.step_flush * c.max(1.0);
            let mut eps = per_magnitude.map(|e| magnitude[index] * e + steps);
            if let Some(cap) = row.softcap {
                eps = eps.map(|eps| capped_error(score.raw, cap, eps, params.tanh_ulp));
            }
            if row.slope != 0.0 {
                let t = (score.capped - score.alibi).abs() * LOG2_E;
                let convert = if score.distance > (1 << 24) as f64 { U } else { 0.0 };
                let term = alibi * (slope_error + convert) + (score.distance + 2.0) * TINY;
                eps = eps.map(|eps| eps + term + U * (t + eps));
            }
            if score.bias != 0.0 {
                let t = score.logit().abs() * LOG2_E;
                let term = bias * (0.25 * U + product) + 2.0 * TINY;
                eps = eps.map(|eps| eps + term + U * (t + eps));
            }
            let eps = eps.map(|eps| eps * (1.0 + 1e-5));
            keys.push(Key { index, t: score.logit() * LOG2_E, eps, ..Key::default() });
        }
        if safe {
            return Fate::Finite;
        }
        let as_f32 = |key: &Key| logit_in_f32(row, &row.scores[key.index], key.index, params.fused);
        if keys.iter().any(|key| as_f32(key).is_nan() || as_f32(key) == f32::INFINITY) {
            return Fate::Nan;
        }
        let highest = |key: &Key| key.t + key.eps.hard;
        let top = keys.iter().map(highest).fold(f64::NEG_INFINITY, f64::max);
        let mut fate = Fate::Finite;
        keys.retain(|key| {
            let lost = as_f32(key) == f32::NEG_INFINITY;
            if lost && key.t != f64::NEG_INFINITY && highest(key) >= top - 200.0 {
                fate = Fate::Doubtful;
            }
            !lost
        });
        if keys.is_empty() { Fate::Nan } else { fate }
    }

    /// G, h_N and h_l of the derivation.
    fn depths(&self, sink: bool) -> Depths {
        let Bound { tile, split, fused, .. } = *self.params;
        let (mut splits, mut most_tiles, mut most_keys) = (0, 0, 0);
        for split in self.scratch.keys.chunk_by(|a, b| a.index / split == b.index / split) {
            splits += 1;
            most_tiles = most_tiles.max(split.chunk_by(|a, b| a.index / tile == b.index / tile).count());
            most_keys = most_keys.max(split.len());
        }
        let (rises, merges) = (most_tiles - 1, splits - 1);
        let factors = rises + if splits > 1 { splits } else { 0 } + usize::from(sink);
        let numerator = most_keys + rises + 2 * merges + 1;
        let denominator = most_keys.min(split.div_ceil(16)) + 4 + 2 * rises + 2 * merges + 2;
        Depths {
            factors: factors as f64,
            numerator: roundings(numerator as f64, fused, 1.0),
            denominator: roundings(denominator as f64, true, 0.0),
        }
    }

    /// For each column: sum dw |v - o|, sum (p + dw) |v| and sum |v|.
    fn column_sums(&mut self, row: &Row<'_>, out: &[f64]) {
        let Scratch { keys, spread, weighted, total, .. } = &mut self.scratch;
        let v_dim = out.len();
        spread.clear();
        spread.resize(v_dim, Two::default());
        weighted.clear();
        weighted.resize(v_dim, 0.0);
        total.clear();
        total.resize(v_dim, 0.0);
        for key in keys.iter() {
            let v = &row.v[key.index * v_dim..][..v_dim];
            let weight = key.p + key.dw.hard;
            for d in 0..v_dim {
                let (distance, size) = ((v[d] - out[d]).abs(), v[d].abs());
                spread[d].hard += key.dw.hard * distance;
                spread[d].sqrt += key.dw.sqrt * distance;
                weighted[d] += weight * size;
                total[d] += size;
            }
        }
    }
}

/// The errors of a row's weights, summed up.
#[derive(Default)]
struct Weights {
    /// At least sum dw.
    up: Two,
    /// At least sum p (1 - e^-rho).
    down: Two,
    worst_rho: f64,
    /// Whether some weight may underflow.
    low: bool,
}

impl Weights {
    fn add(&mut self, other: &Weights) {
        self.up = Two { hard: self.up.hard + other.up.hard, sqrt: self.up.sqrt + other.up.sqrt };
        self.down = Two { hard: self.down.hard + other.down.hard, sqrt: self.down.sqrt + other.down.sqrt };
        self.worst_rho = self.worst_rho.max(other.worst_rho);
        self.low |= other.low;
    }
}

/// Step 5: sets `p` and `dw` of all keys. `ln_sum` is the logarithm of what normalises them, `frame` is M.
fn weigh(keys: &mut [Key], ln_sum: f64, frame: f64, exp_error: f64) -> Weights {
    let mut weights = Weights::default();
    for key in keys {
        let ln_p = key.t * LN_2 - ln_sum;
        key.p = ln_p.exp();
        let low = key.t - key.eps.hard - frame < -120.0;
        let flush = if low { FLUSH } else { 0.0 };
        let rho = key.eps.map(|eps| LN_2 * (eps + U * (frame - key.t + eps)) * (1.0 + 1e-6) + exp_error);
        key.dw = rho.map(|rho| surplus(ln_p, key.p, rho) + flush);
        let down = rho.map(|rho| shortfall(key.p, rho) + flush);
        weights.add(&Weights { up: key.dw, down, worst_rho: rho.hard, low });
    }
    weights
}

/// n roundings of a chain of multiply-adds, `extra` more without FMA.
fn roundings(n: f64, fused: bool, extra: f64) -> Two {
    if fused {
        Two { hard: n, sqrt: n.sqrt() + 1.0 }
    } else {
        Two { hard: n + extra, sqrt: (2.0 * n).sqrt() + 1.0 }
    }
}

/// p (e^rho - 1), also where rho is large and p tiny.
fn surplus(ln_p: f64, p: f64, rho: f64) -> f64 {
    if rho < 1e-3 {
        p * rho * (1.0 + rho)
    } else if rho < 1.0 {
        p * rho.exp_m1()
    } else {
        (ln_p + rho).exp()
    }
}

/// p (1 - e^-rho).
fn shortfall(p: f64, rho: f64) -> f64 {
    if rho < 1e-3 { p * rho } else { p * -(-rho).exp_m1() }
}

/// The sink in log2 units, in f32.
fn sink_in_f32(sink: f64) -> f32 {
    sink as f32 * std::f32::consts::LOG2_E
}

/// Step 2: the error of a capped logit in log2 units, from that of the raw one.
fn capped_error(raw: f64, cap: f64, eps: f64, tanh_ulp: f64) -> f64 {
    let (a, c, x) = (LN_2 / cap, cap * LOG2_E, (raw / cap).abs());
    let x = x.min(1e6);
    let dx = x * (2.25 * U + TINY / a) + a * eps + TINY;
    let tanh = x.tanh();
    let slope = 1.0 - (x - dx).max(0.0).tanh().powi(2);
    let moved = (dx * slope * (1.0 + 1e-6) + 1e-15 * dx.min(1.0)).min(2.0);
    let function = 2.0 * tanh_ulp * U * (tanh + moved) + 2.0 * tanh_ulp * TINY;
    c * (moved + function) * (1.0 + 1e-6) + c * (tanh + moved) * (2.25 * U + TINY / c) + TINY
}

/// One logit in f32, log2 units, by the order of operations.
fn logit_in_f32(row: &Row<'_>, score: &Score, key: usize, fused: bool) -> f32 {
    let fma = |a: f32, b: f32, c: f32| if fused { a.mul_add(b, c) } else { a * b + c };
    let log2_e = std::f32::consts::LOG2_E;
    let c = row.scale as f32 * log2_e;
    let k = &row.k[key * row.q.len()..];
    let mut t = row.q.iter().zip(k).fold(0.0, |t, (&q, &k)| fma(q as f32 * c, k as f32, t));
    if let Some(cap) = row.softcap {
        let cap = cap as f32;
        t = cap * log2_e * (std::f32::consts::LN_2 / cap * t).tanh();
    }
    if row.slope != 0.0 {
        t = fma(score.distance as f32, -row.slope as f32 * log2_e, t);
    }
    if score.bias != 0.0 { fma(score.bias as f32, log2_e, t) } else { t }
}

/// The smallest and largest value of a column, 0 among them if there is a sink.
fn hull(keys: &[Key], row: &Row<'_>, v_dim: usize, d: usize, sink: bool) -> (f64, f64) {
    let start = if sink { (0.0, 0.0) } else { (f64::INFINITY, f64::NEG_INFINITY) };
    keys.iter()
        .map(|key| row.v[key.index * v_dim + d])
        .fold(start, |(low, high), v| (low.min(v), high.max(v)))
}

/// Error over bound; nothing over nothing is nothing.
fn ratio(error: f64, bound: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / bound }
}
