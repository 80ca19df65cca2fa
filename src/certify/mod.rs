//! A certified bound on the error of every output element, and the check that holds results against it.
//!
//! [`check`] computes, next to the [`reference`](mod@reference) in `f64`, how far each element of an output may be from the
//! exact one given nothing but the inputs and the order of operations, and says how close to that limit the worst one
//! comes. A ratio above 1 is a bug: in the kernels, in the machine, or in the derivation below. The bound is per element
//! and per call. It is not a tolerance: where logits are large it grows with them, as errors do; where values
//! cancel it does not shrink with the output, as errors do not.
//!
//! ```
//! use lucid_attention::certify::{self, Bound};
//! use lucid_attention::{Inputs, Outputs, Plan, Problem, View, ViewMut};
//!
//! let (q, k, v) = ([0.5f32; 2 * 4], [0.25f32; 3 * 4], [1.0f32, 2.0, 4.0]);
//! let inputs = Inputs::new(
//!     View::new(&q, [1, 1, 2, 4])?,
//!     View::new(&k, [1, 1, 3, 4])?,
//!     View::new(&v, [1, 1, 3, 1])?,
//! );
//! let plan = Plan::new(&Problem::of(&inputs))?;
//! let (mut out, mut lse) = ([0.0f32; 2], [0.0f32; 2]);
//! let shape = inputs.output_shape();
//! let outputs = Outputs::new(ViewMut::new(&mut out, shape)?).lse(&mut lse);
//! plan.run(&inputs, outputs, &mut plan.workspace()?)?;
//!
//! let certificate = certify::check(&inputs, &View::new(&out, shape)?, Some(&lse), &Bound::of(&plan))?;
//! assert!(certificate.holds() && certificate.worst.ratio <= 1.0);
//!
//! out[1] += 1e-3; // a wrong number is found, and named
//! let certificate = certify::check(&inputs, &View::new(&out, shape)?, Some(&lse), &Bound::of(&plan))?;
//! assert_eq!(certificate.worst.element, [0, 0, 1, 0]);
//! assert!(certificate.violation.is_some());
//! # Ok::<(), lucid_attention::AttentionError>(())
//! ```
//!
//! # Assumptions
//!
//! - The result was computed by this crate's order of operations, version 1 (or the bf16 tier's), with the same inputs.
//! - Rounding is to nearest even and subnormals are kept (but in the bf16 tier), as in every thread's default
//!   floating-point environment.
//! - `exp2` is off by at most 1.5 ULP, `tanh` by 4, the logarithm by 2: their maxima over all 2^32 inputs are 0.93, 1.11
//!   and 0.51 (`tests/exhaustive_math.rs`, and the tests of [`math`](crate::math)).
//! - The reference's own error, some 2^-53 for each term of a sum, is taken for nothing beside u = 2^-24.
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
//! **Dropout** multiplies the weights of the numerator by d_j, 0 or RN(1 / (1 - rate)): with d_j v_j in place of v_j all
//! of the above holds, and the roundings of d_j and of the product make h_N two more.
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

mod certificate;
mod logits;
mod row;
mod weights;

pub use certificate::{Certificate, Finding, Violation};

use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::exact::call::Order;
use crate::inputs::{Inputs, Keys};
use crate::isa::Level;
use crate::plan::Plan;
use crate::reference;
use crate::view::View;
use half::bf16;
use row::{Checker, Scratch, Store};

const U: f64 = 1.0 / (1u64 << 24) as f64;
/// Half of the smallest subnormal f32.
const TINY: f64 = 1.0 / (1u128 << 100) as f64 / (1u64 << 50) as f64;
/// 2^-125: twice the smallest normal f32.
const FLUSH: f64 = 1.0 / (1u128 << 125) as f64;
/// 2^-126, the smallest normal f32.
const NORMAL: f64 = f32::MIN_POSITIVE as f64;
/// Magnitudes below it cannot overflow.
const SAFE: f64 = f32::MAX as f64 / 2.0;

/// The most ULPs by which `exp2` is off.
const EXP2_ULP: f64 = 1.5;
/// The same for `tanh`.
const TANH_ULP: f64 = 4.0;
/// The same for the logarithm in the LSE.
const LOG_ULP: f64 = 2.0;

/// What the bound depends on besides the inputs: how sums are rounded, and how keys are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Whether a multiply-add rounds once.
    fused: bool,
    order: Order,
    /// Whether operands are rounded to bf16 before anything else.
    bf16_dot: bool,
    /// The rounding of weights before they meet values; 0 in the exact tier.
    weight_unit: f64,
    /// By how much a step of a sum may be off when it is subnormal.
    step_flush: f64,
}

impl Bound {
    /// The bound of a plan's results.
    pub fn of(plan: &Plan) -> Self {
        let bound = if plan.bf16_dot() { Self::bf16_dot() } else { Self::exact(plan.level()) };
        Self { order: plan.order, ..bound }
    }

    /// That of the exact tier at a level.
    pub fn exact(level: Level) -> Self {
        let fused = level.is_fused();
        Self { fused, order: Order::VERSION_1, bf16_dot: false, weight_unit: 0.0, step_flush: TINY }
    }

    /// That of the bf16 dot-product tier ([`PlanOptions::bf16_dot`](crate::PlanOptions::bf16_dot)), against attention of the
    /// rounded operands.
    pub fn bf16_dot() -> Self {
        Self {
            // A pair is two roundings: an odd dimension or key takes part in one rounding more.
            fused: false,
            order: Order::VERSION_1,
            bf16_dot: true,
            weight_unit: 2f64.powi(-8),
            step_flush: NORMAL,
        }
    }

    /// The relative error of a weight that is a product of one exponential and `factors` more.
    fn factor_error(&self, factors: f64) -> f64 {
        (1.0 + factors) * 2.0 * EXP2_ULP * U * (1.0 + 1e-6)
    }
}

/// Holds an output, and an LSE if given, against the reference and the bound of the [module](self).
///
/// | operand | shape |
/// |---|---|
/// | `out` | `[batch, q_heads, q_len, v_dim]`, any strides |
/// | `lse` | `[batch, q_heads, q_len]`, contiguous |
///
/// Rows without keys have to be exactly +0 with an LSE of -inf, rows with a logit that is no number NaN. It takes some hundred
/// times as long as the kernels, in `f64` on one thread, and memory for the operands in `f64`.
///
/// # Errors
/// Operands that do not fit one another, or memory that cannot be had. Wrong numbers are no error: the certificate says so
/// ([`Certificate::holds`]).
pub fn check<Q: Element, T: Element>(
    inputs: &Inputs<'_, Q, T>,
    out: &View<'_, Q>,
    lse: Option<&[f32]>,
    bound: &Bound,
) -> Result<Certificate, AttentionError> {
    if !bound.bf16_dot {
        return check_against(inputs, out, lse, bound);
    }
    // The tier's errors are those over rounded operands.
    let (q_shape, k_shape, v_shape) = (inputs.q.shape(), inputs.k.shape(), inputs.v.shape());
    let q = rounded(q_shape, |index| inputs.q.get(index).map(|x| x.to_f32()))?;
    let k = rounded(k_shape, |index| match inputs.k {
        Keys::Rows(view) => view.get(index).map(|x| x.to_f32()),
        Keys::Panels(panels) => panels.get(index).map(|x| x.to_f32()),
    })?;
    let v = rounded(v_shape, |index| inputs.v.get(index).map(|x| x.to_f32()))?;
    let (q, k, v) = (View::new(&q, q_shape)?, View::new(&k, k_shape)?, View::new(&v, v_shape)?);
    let Inputs { mask, q_start, ragged, scale, softcap, alibi, bias, sinks, dropout, cancel, awake, .. } =
        *inputs;
    let k = Keys::Rows(k);
    let inputs =
        Inputs { q, k, v, mask, q_start, ragged, scale, softcap, alibi, bias, sinks, dropout, cancel, awake };
    check_against(&inputs, out, lse, bound)
}

/// [`check`] with the operands as they are.
fn check_against<A: Element, T: Element, Q: Element>(
    inputs: &Inputs<'_, A, T>,
    out: &View<'_, Q>,
    lse: Option<&[f32]>,
    bound: &Bound,
) -> Result<Certificate, AttentionError> {
    let shape = inputs.output_shape();
    out.check_shape("out", shape)?;
    let answer = reference::attention(inputs)?;
    let rows = answer.lse.len();
    check_size("lse", "elements", rows, lse.map_or(rows, <[f32]>::len))?;
    let mut checker = Checker {
        bound,
        answer: &answer,
        shape,
        store: Store::of(Q::DTYPE),
        dropout: inputs.dropout.is_some_and(|dropout| dropout.rate > 0.0),
        scratch: Scratch::default(),
        certificate: Certificate::default(),
    };
    reference::for_each_row(inputs, |row| {
        let [b, h, i] = row.index;
        let got = |d: usize| out.get([b, h, i, d]).map_or(f32::NAN, |x| x.to_f32());
        checker.row(row, got, lse.map(|lse| lse[(b * shape[1] + h) * shape[2] + i]));
    })?;
    Ok(checker.certificate)
}

/// An operand as the bf16 tier sees it, contiguous: to nearest even, subnormals to zero.
fn rounded(shape: [usize; 4], get: impl Fn([usize; 4]) -> Option<f32>) -> Result<Vec<bf16>, AttentionError> {
    let overflow = AttentionError::SizeOverflow { operand: "operand" };
    let count = shape.iter().try_fold(1usize, |count, &n| count.checked_mul(n)).ok_or(overflow)?;
    let mut values = Vec::new();
    let bytes = count.saturating_mul(size_of::<bf16>());
    let out_of_memory = |_| AttentionError::OutOfMemory { what: "operand", bytes };
    values.try_reserve_exact(count).map_err(out_of_memory)?;
    let [_, heads, tokens, dim] = shape;
    values.extend((0..count).map(|at| {
        let index = [at / dim / tokens / heads, at / dim / tokens % heads, at / dim % tokens, at % dim];
        let x = get(index).unwrap_or(f32::NAN);
        bf16::from_f32(if x.is_subnormal() { 0f32.copysign(x) } else { x })
    }));
    Ok(values)
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

impl Key {
    /// The most that its computed logit may be.
    fn highest(&self) -> f64 {
        self.t + self.eps.hard
    }
}

/// n roundings in a row.
fn gamma(n: f64) -> f64 {
    n * U / (1.0 - n * U)
}

/// n roundings of a chain of multiply-adds, `extra` more without FMA.
fn roundings(n: f64, fused: bool, extra: f64) -> Two {
    if fused {
        Two { hard: n, sqrt: n.sqrt() + 1.0 }
    } else {
        Two { hard: n + extra, sqrt: (2.0 * n).sqrt() + 1.0 }
    }
}
