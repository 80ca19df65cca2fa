//! Elementary functions on vectors: 2^x, e^x, tanh and erf, and a scalar log2.
//!
//! None of them calls the platform's mathematical library, whose results differ from system to system. Each is a
//! fixed sequence of IEEE-754 operations without branches, so a result depends on nothing but its argument and on
//! whether a multiply-add rounds once ([`Level::is_fused`]): the fused levels agree bit for bit. `tanh` and `erf` are
//! what the two usual forms of GELU need.
//!
//! Errors are in units in the last place (ULP) of the exact result rounded to `f32`, measured over all 2^32 inputs by
//! `tests/exhaustive_math.rs`. Every coefficient comes from fits made for this file: a weighted minimax fit in
//! 120-bit arithmetic (linear programming on Chebyshev points), coefficients rounded to `f32` one at a time from the
//! most significant, the rest fitted again after each.

use crate::error::AttentionError;
use crate::isa::{Isa, Kernel, Level};
use std::marker::PhantomData;

/// Replaces each value by 2 to its power, at one instruction-set level.
///
/// # Errors
/// [`AttentionError::LevelUnavailable`] if this CPU or build lacks `level`; the values are then as before.
///
/// # Examples
/// ```
/// use lucid_attention::{Level, math};
///
/// let mut values = [3.0, -1.0, 0.0, f32::NEG_INFINITY];
/// math::exp2(Level::detect()?, &mut values)?;
/// assert_eq!(values, [8.0, 0.5, 1.0, 0.0]);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
pub fn exp2(level: Level, values: &mut [f32]) -> Result<(), AttentionError> {
    map::<Exp2>(level, values)
}

/// Replaces each value `x` by e^x, otherwise like [`exp2`].
///
/// # Errors
/// [`AttentionError::LevelUnavailable`] if this CPU or build lacks `level`; the values are then as before.
pub fn exp(level: Level, values: &mut [f32]) -> Result<(), AttentionError> {
    map::<Exp>(level, values)
}

/// Replaces each value by its hyperbolic tangent, otherwise like [`exp2`].
///
/// The tanh form of GELU is `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
///
/// # Errors
/// [`AttentionError::LevelUnavailable`] if this CPU or build lacks `level`; the values are then as before.
pub fn tanh(level: Level, values: &mut [f32]) -> Result<(), AttentionError> {
    map::<Tanh>(level, values)
}

/// Replaces each value by its error function, otherwise like [`exp2`].
///
/// The exact form of GELU is `0.5 x (1 + erf(x / sqrt(2)))`.
///
/// # Errors
/// [`AttentionError::LevelUnavailable`] if this CPU or build lacks `level`; the values are then as before.
pub fn erf(level: Level, values: &mut [f32]) -> Result<(), AttentionError> {
    map::<Erf>(level, values)
}

/// A function of one variable, as a type: a closure would not reliably be inlined into the dispatch shim.
trait Function {
    fn apply<I: Isa>(isa: I, x: I::F) -> I::F;
}

macro_rules! function {
    ($name:ident, $function:path) => {
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn apply<I: Isa>(isa: I, x: I::F) -> I::F {
                $function(isa, x)
            }
        }
    };
}
function!(Exp2, vector::exp2);
function!(Exp, vector::exp);
function!(Tanh, vector::tanh);
function!(Erf, vector::erf);

fn map<U: Function>(level: Level, values: &mut [f32]) -> Result<(), AttentionError> {
    level.check_available()?.dispatch(Map::<U> { values, function: PhantomData });
    Ok(())
}

/// Applies a function in place.
struct Map<'a, U> {
    values: &'a mut [f32],
    function: PhantomData<U>,
}

impl<U: Function> Kernel for Map<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut chunks = self.values.chunks_exact_mut(I::LANES);
        for chunk in &mut chunks {
            let y = U::apply(isa, isa.load(chunk));
            isa.store(y, chunk);
        }
        let tail = chunks.into_remainder();
        let mut padded = [0.0; MAX_LANES];
        padded[..tail.len()].copy_from_slice(tail);
        let y = U::apply(isa, isa.load(&padded));
        isa.store(y, &mut padded);
        tail.copy_from_slice(&padded[..tail.len()]);
    }
}

/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

/// The functions on one vector, for use inside kernels.
pub(crate) mod vector {
    use crate::isa::Isa;

    /// (2^r - 1) / r.
    const EXP2: [f32; 6] = [0.6931472, 0.24022648, 0.0555036, 0.009618506, 0.0013390806, 0.00015326471];
    /// (e^r - 1) / r.
    const EXP: [f32; 6] = [1.0, 0.49999994, 0.16666523, 0.041668292, 0.008368532, 0.0013818304];
    /// tanh(a) / a - 1, in powers of a^2.
    const TANH_SMALL: [f32; 7] =
        [0.0, -0.33333316, 0.1333272, -0.053894535, 0.021457793, -0.0076658125, 0.0017417567];
    /// erf(a) / a - 1, in powers of a^2.
    const ERF_SMALL: [f32; 7] =
        [0.12837917, -0.37612626, 0.11283579, -0.026853347, 0.005187162, -0.0007997853, 7.806903e-5];
    /// log2(1 - erf(a)).
    const ERF_LARGE: [f32; 7] =
        [-0.0004927139, -1.626046, -0.9206485, -0.14875145, 0.031505585, -0.0042525525, 0.00026888694];

    /// ln 2 in two parts; the first has 16 significant bits, so that its product with an exponent is exact.
    const LN_2_HIGH: f32 = 45426.0 / 65536.0;
    const LN_2_LOW: f32 = 1.4286068e-6;

    /// 2^x.
    #[inline(always)]
    pub(crate) fn exp2<I: Isa>(isa: I, x: I::F) -> I::F {
        // A constant first operand, so that a NaN in x survives.
        let x = if I::SCALES_ANY { x } else { isa.min(isa.splat(160.0), isa.max(isa.splat(-160.0), x)) };
        exp2_in_range(isa, x)
    }

    #[inline(always)]
    fn exp2_in_range<I: Isa>(isa: I, x: I::F) -> I::F {
        let n = isa.round(x);
        let r = isa.sub(x, n);
        let p = isa.mul_add(horner(isa, EXP2, r), r, isa.splat(1.0));
        isa.scale_exp2(p, n)
    }

    /// e^x.
    #[inline(always)]
    pub(crate) fn exp<I: Isa>(isa: I, x: I::F) -> I::F {
        let x = isa.min(isa.splat(90.0), isa.max(isa.splat(-105.0), x));
        exp_in_range(isa, x)
    }

    #[inline(always)]
    fn exp_in_range<I: Isa>(isa: I, x: I::F) -> I::F {
        let n = isa.round(isa.mul(x, isa.splat(std::f32::consts::LOG2_E)));
        let r = isa.mul_add(n, isa.splat(-LN_2_HIGH), x);
        let r = isa.mul_add(n, isa.splat(-LN_2_LOW), r);
        let p = isa.mul_add(horner(isa, EXP, r), r, isa.splat(1.0));
        isa.scale_exp2(p, n)
    }

    /// tanh x.
    #[inline(always)]
    pub(crate) fn tanh<I: Isa>(isa: I, x: I::F) -> I::F {
        let a = isa.abs(x);
        let small = near_zero(isa, TANH_SMALL, a);
        let one = isa.splat(1.0);
        let capped = isa.min(isa.splat(10.0), a);
        let power = exp_in_range(isa, isa.add(capped, capped));
        let large = isa.sub(one, isa.div(isa.splat(2.0), isa.add(power, one)));
        isa.copysign(isa.select(isa.lt(a, isa.splat(0.75)), small, large), x)
    }

    /// The error function.
    #[inline(always)]
    pub(crate) fn erf<I: Isa>(isa: I, x: I::F) -> I::F {
        let a = isa.abs(x);
        let small = near_zero(isa, ERF_SMALL, a);
        let exponent = horner(isa, ERF_LARGE, isa.min(isa.splat(4.0), a));
        let large = isa.sub(isa.splat(1.0), exp2_in_range(isa, exponent));
        isa.copysign(isa.select(isa.lt(a, isa.splat(1.0)), small, large), x)
    }

    /// `a + a q(a^2)`: the small correction is rounded, the large term is not.
    #[inline(always)]
    fn near_zero<I: Isa, const N: usize>(isa: I, q: [f32; N], a: I::F) -> I::F {
        isa.mul_add(a, horner(isa, q, isa.mul(a, a)), a)
    }

    /// The polynomial with these coefficients, lowest power first.
    #[inline(always)]
    fn horner<I: Isa, const N: usize>(isa: I, coefficients: [f32; N], x: I::F) -> I::F {
        let mut sum = isa.splat(coefficients[N - 1]);
        for &coefficient in coefficients[..N - 1].iter().rev() {
            sum = isa.mul_add(sum, x, isa.splat(coefficient));
        }
        sum
    }
}

/// The binary logarithm, within 0.500001 ULP and with the same bits on every platform.
///
/// 1. x = 2^e m with m in [sqrt(1/2), sqrt(2)), in `f64`, where subnormal arguments are normal.
/// 2. With y = (m - 1) / (m + 1), ln m = 2 (y + y^3/3 + y^5/5 + ...), cut where the rest is below 2^-60.
/// 3. e + ln m / ln 2, rounded once to `f32`.
///
/// 0 gives -inf, +inf gives +inf, negative values and NaN give NaN.
pub(crate) fn log2(x: f32) -> f32 {
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if !(x > 0.0 && x < f32::INFINITY) {
        return if x > 0.0 { x } else { f32::NAN };
    }
    // Subtracting the bits of sqrt(1/2) makes the exponent field step at the ends of the range of m.
    let bits = f64::from(x).to_bits();
    let exponent = (bits.wrapping_sub(std::f64::consts::FRAC_1_SQRT_2.to_bits()) as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((exponent as u64) << 52));
    let y = (m - 1.0) / (m + 1.0);
    let square = y * y;
    let series = (0..12).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    (exponent as f64 + 2.0 * std::f64::consts::LOG2_E * (y * series)) as f32
}
