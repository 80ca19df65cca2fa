//! Elementary functions: 2^x, e^x, tanh and erf on slices and on vectors, and a scalar log2.
//!
//! None of them calls the platform's mathematical library, whose results differ from system to system. Each
//! is a fixed sequence of IEEE-754 operations without branches, so a result depends on nothing but its
//! argument and on whether a multiply-add rounds once ([`Level::is_fused`]): the fused levels agree bit for
//! bit on all 2^32 arguments, but for the payload of NaN. `tanh` and `erf` are what the two usual forms of
//! GELU need.
//!
//! Largest errors in units in the last place (ULP) of the exact result rounded to `f32`, where the unit of a
//! subnormal is 2^-149. `tests/exhaustive_math.rs` measures them over all arguments and holds the code to
//! them:
//!
//! | function | fused levels | portable without fused multiply-add | monotone |
//! |----------|--------------|-------------------------------------|----------|
//! | `exp2`   | 0.921        | 0.831                               | yes      |
//! | `exp`    | 0.892        | 1.168                               | no       |
//! | `tanh`   | 1.061        | 1.104                               | no       |
//! | `erf`    | 1.135        | 1.446                               | no       |
//!
//! Every argument is valid. NaN gives NaN, `exp2` and `exp` overflow to infinity and underflow gradually to 0
//! with one rounding, `tanh` and `erf` are odd (signed zeros included) and stay within [-1, 1].
//!
//! The coefficients come from fits made for this file. Each is minimax in the final relative error: a linear
//! program on some 300 Chebyshev points, its residuals taken in 120-bit arithmetic and refined three times.
//! The coefficients are rounded to `f32` one at a time, lowest power first, and the others fitted again after
//! each. For `exp2` and `exp` a random search over `f32` neighbours, scored by the error of the code on a
//! sample of arguments, brought no gain that held for all of them.

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
pub(crate) trait Function {
    fn apply<I: Isa>(isa: I, x: I::F) -> I::F;
}

macro_rules! function {
    ($name:ident, $function:path) => {
        pub(crate) struct $name;
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

/// Applies a function to each value.
pub(crate) fn map<U: Function>(level: Level, values: &mut [f32]) -> Result<(), AttentionError> {
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

    /// (2^r - 1) / r - 1 for |r| <= 1/2; the fit errs by 0.04 of 2^-24, relative to the function.
    const EXP2: [f32; 6] = [-0.3068528, 0.24022652, 0.055503186, 0.009617867, 0.0013402799, 0.00015512272];
    /// (e^r - 1) / r for |r| <= ln(2) / 2, by 0.05 of 2^-24.
    const EXP: [f32; 6] = [1.0, 0.49999994, 0.16666523, 0.041668292, 0.008368532, 0.0013818304];
    /// tanh(a) / a - 1 for a <= 0.75, in powers of a^2, by 0.03 of 2^-24.
    const TANH_SMALL: [f32; 7] =
        [0.0, -0.33333316, 0.1333272, -0.053894535, 0.021457793, -0.0076658125, 0.0017417567];
    /// erf(a) / a - 1 for a <= 1, in powers of a^2, by 0.03 of 2^-24.
    const ERF_SMALL: [f32; 7] =
        [0.12837917, -0.37612626, 0.11283579, -0.026853347, 0.005187162, -0.0007997853, 7.806903e-5];
    /// log2(1 - erf(a)) for a in [1, 4], by 0.02 of 2^-24 of erf(a), which asks ever less of it as a grows.
    const ERF_LARGE: [f32; 7] =
        [-0.0004927139, -1.626046, -0.9206485, -0.14875145, 0.031505585, -0.0042525525, 0.00026888694];

    /// ln 2 in two parts; the first has 16 significant bits, so that its product with an exponent is exact.
    const LN_2_HIGH: f32 = 45426.0 / 65536.0;
    const LN_2_LOW: f32 = 1.4286068e-6;

    /// 2^x, within 0.921 ULP at the fused levels and 0.831 at the portable one; monotone at each.
    ///
    /// 1. x = n + r, n the nearest integer: exact.
    /// 2. 2^r = 1 + (r + r q), q the polynomial [`EXP2`]. Adding r apart leaves q small, hence its rounding
    ///    too, which is what makes the function monotone; a plain Horner scheme, one addition shorter, is
    ///    not.
    /// 3. Times 2^n, which rounds only into the subnormals.
    ///
    /// Both zeros give 1, -inf gives 0, +inf gives +inf, NaN gives NaN. Below -150 the result is 0, from 128
    /// on +inf.
    #[inline(always)]
    pub(crate) fn exp2<I: Isa>(isa: I, x: I::F) -> I::F {
        // Where any n scales, an infinite x has r = 0 and p = 1, or NaN for both, and the scaling turns either times 2^-inf into 0 and
        // times 2^inf into +inf.
        exp2_in_range(isa, if I::SCALES_ANY { x } else { clamp(isa, -160.0, 160.0, x) })
    }

    /// 2^x for x <= 0, with the bits of [`exp2`] but fewer operations, and x itself, raised to -160 where it is below: a power
    /// times that is never 0 times infinity. NaN gives NaN, any other x anything.
    #[inline(always)]
    pub(crate) fn exp2_nonpositive<I: Isa>(isa: I, x: I::F) -> (I::F, I::F) {
        let lowest = isa.splat(-160.0);
        let raised = mutant!("nan-weighs-nothing", isa.max(lowest, x), isa.max(x, lowest));
        (if I::SCALES_ANY { exp2_in_range(isa, x) } else { exp2_by_shifts(isa, raised) }, raised)
    }

    /// 2^-63: with it taken out, 2^n for n in [-160, 0] is 2^(n+63), a normal number.
    const SMALL: f32 = f32::from_bits((127 - 63) << 23);
    /// Where the ULP is 1, and the last 9 bits of this number plus n are the exponent of 2^(n+63).
    const WHOLE: f32 = 1.5 * (1 << 23) as f32 + 63.0 + 127.0;

    /// [`exp2`] in [-160, 0] or of NaN, by which prefill gains 2 to 3 % (bench `roofline`, level AVX2, up to 64 dimensions).
    ///
    /// 1. x + [`WHOLE`] rounds to an integer n, ties to even as it is even itself, and is the bits of 2^(n+63) but for a shift:
    ///    n + 190 is in 30..=190, so that the ninth bit, which becomes the sign, is 0.
    /// 2. 2^r - 1 as in [`exp2`], and the 1 added as 2^-63 + 2^-63 (2^r - 1), which rounds as without that factor.
    /// 3. Times 2^(n+63), which rounds only into the subnormals. A shifted NaN is none, so that the polynomial's shows.
    #[inline(always)]
    fn exp2_by_shifts<I: Isa>(isa: I, x: I::F) -> I::F {
        let (whole, small) = (isa.splat(WHOLE), isa.splat(SMALL));
        let sum = isa.add(x, whole);
        let r = isa.sub(x, isa.sub(sum, whole));
        let q = horner(isa, EXP2, r);
        let p = isa.mul_add(isa.mul_add(q, r, r), small, small);
        isa.mul(p, isa.shift_into_exponent(sum))
    }

    /// [`exp2`] where [`Isa::scale_exp2`] takes the exponent as it is.
    #[inline(always)]
    fn exp2_in_range<I: Isa>(isa: I, x: I::F) -> I::F {
        let (n, r) = isa.nearest_and_rest(x);
        let q = horner(isa, EXP2, r);
        let p = isa.add(isa.mul_add(q, r, r), isa.splat(1.0));
        isa.scale_exp2(p, n)
    }

    /// e^x, within 0.892 ULP at the fused levels and 1.168 at the portable one.
    ///
    /// 1. x clamped to where the result is neither 0 nor infinite, and a little beyond.
    /// 2. x = n ln 2 + r, n an integer and |r| about ln(2) / 2 at most; ln 2 in two parts, of which the first
    ///    multiplies n without error, so that only the last step rounds.
    /// 3. e^r = 1 + r q, q the polynomial [`EXP`], times 2^n, which rounds only into the subnormals.
    ///
    /// Both zeros give 1, -inf gives 0, +inf gives +inf, NaN gives NaN. Below -103.98 the result is 0, above
    /// 88.7228 it is +inf, as rounding e^x demands.
    #[inline(always)]
    pub(crate) fn exp<I: Isa>(isa: I, x: I::F) -> I::F {
        exp_in_range(isa, clamp(isa, -105.0, 90.0, x))
    }

    /// [`exp`] in [-105, 90].
    #[inline(always)]
    fn exp_in_range<I: Isa>(isa: I, x: I::F) -> I::F {
        let (n, _) = isa.nearest_and_rest(isa.mul(x, isa.splat(std::f32::consts::LOG2_E)));
        let r = isa.mul_add(n, isa.splat(-LN_2_HIGH), x);
        let r = mutant!("ln-2-in-one-part", isa.mul_add(n, isa.splat(-LN_2_LOW), r), r);
        let p = isa.mul_add(horner(isa, EXP, r), r, isa.splat(1.0));
        isa.scale_exp2(p, n)
    }

    /// tanh x, within 1.061 ULP at the fused levels and 1.104 at the portable one.
    ///
    /// 1. a = |x|.
    /// 2. Below 0.75: a + a q, q the polynomial [`TANH_SMALL`] in a^2.
    /// 3. Otherwise: 1 - 2 / (e^(2a) + 1), where the errors of the power and the quotient weigh 0.36 at most.
    /// 4. The sign of x.
    ///
    /// Zeros give themselves, infinities 1 with their sign, as does all beyond 9.02; NaN gives NaN.
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

    /// The error function, within 1.135 ULP at the fused levels and 1.446 at the portable one.
    ///
    /// 1. a = |x|.
    /// 2. Below 1: a + a q, q the polynomial [`ERF_SMALL`] in a^2.
    /// 3. Otherwise: 1 - 2^p, p the polynomial [`ERF_LARGE`], where the error of the power weighs 0.19 at
    ///    most.
    /// 4. The sign of x.
    ///
    /// Zeros give themselves, infinities 1 with their sign, as does all beyond 3.92; NaN gives NaN.
    #[inline(always)]
    pub(crate) fn erf<I: Isa>(isa: I, x: I::F) -> I::F {
        let a = isa.abs(x);
        let small = near_zero(isa, ERF_SMALL, a);
        let exponent = horner(isa, ERF_LARGE, isa.min(isa.splat(4.0), a));
        let large = isa.sub(isa.splat(1.0), exp2_in_range(isa, exponent));
        isa.copysign(isa.select(isa.lt(a, isa.splat(1.0)), small, large), x)
    }

    /// The nearest value in `low..=high`, or NaN, which is why `x` is the second operand.
    #[inline(always)]
    fn clamp<I: Isa>(isa: I, low: f32, high: f32, x: I::F) -> I::F {
        let (low, high) = (isa.splat(low), isa.splat(high));
        mutant!("clamp-loses-nan", isa.min(high, isa.max(low, x)), isa.min(isa.max(x, low), high))
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
/// Both zeros give -inf, +inf gives +inf, negative values and NaN give NaN.
pub(crate) fn log2(x: f32) -> f32 {
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if !(x > 0.0 && x < f32::INFINITY) {
        return if x > 0.0 { x } else { f32::NAN };
    }
    log2_f64(f64::from(x)) as f32
}

/// The binary logarithm of a positive, normal number, steps 2 and 3 of [`log2`] without the rounding: within some 2^-50.
pub(crate) fn log2_f64(x: f64) -> f64 {
    // Subtracting the bits of sqrt(1/2) makes the exponent field step at the ends of the range of m.
    let bits = x.to_bits();
    let exponent = (bits.wrapping_sub(std::f64::consts::FRAC_1_SQRT_2.to_bits()) as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((exponent as u64) << 52));
    let y = (m - 1.0) / (m + 1.0);
    let square = y * y;
    let series = (0..12).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    exponent as f64 + 2.0 * std::f64::consts::LOG2_E * (y * series)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INF: f32 = f32::INFINITY;
    /// Smallest positive subnormal.
    const TINY: f32 = f32::from_bits(1);

    struct Exp2Nonpositive;
    impl Function for Exp2Nonpositive {
        #[inline(always)]
        fn apply<I: Isa>(isa: I, x: I::F) -> I::F {
            vector::exp2_nonpositive(isa, x).0
        }
    }

    struct ShiftIntoExponent;
    impl Function for ShiftIntoExponent {
        #[inline(always)]
        fn apply<I: Isa>(isa: I, x: I::F) -> I::F {
            isa.shift_into_exponent(x)
        }
    }

    struct Nearest;
    impl Function for Nearest {
        #[inline(always)]
        fn apply<I: Isa>(isa: I, x: I::F) -> I::F {
            isa.nearest_and_rest(x).0
        }
    }

    struct Rest;
    impl Function for Rest {
        #[inline(always)]
        fn apply<I: Isa>(isa: I, x: I::F) -> I::F {
            isa.nearest_and_rest(x).1
        }
    }

    type Apply = fn(Level, &mut [f32]) -> Result<(), AttentionError>;
    const ALL: [(&str, Apply); 4] = [("exp2", exp2), ("exp", exp), ("tanh", tanh), ("erf", erf)];

    fn one(function: Apply, level: Level, x: f32) -> f32 {
        let mut value = [x];
        function(level, &mut value).unwrap();
        value[0]
    }

    #[track_caller]
    fn expect(function: Apply, pairs: &[(f32, f32)]) {
        for level in Level::available() {
            for &(x, y) in pairs {
                let got = one(function, level, x);
                assert_eq!(got.to_bits(), y.to_bits(), "{level}: f({x:e}) = {got:e}, expected {y:e}");
            }
            assert!(one(function, level, f32::NAN).is_nan(), "{level}");
            assert!(one(function, level, -f32::NAN).is_nan(), "{level}");
        }
    }

    /// What [`Isa::nearest_and_rest`] promises, of zeros but for their sign.
    #[test]
    fn numbers_are_the_nearest_integer_and_a_rest() {
        let halves = (-9..=9).map(|half| half as f32 / 2.0);
        let next = |x: f32| [f32::from_bits(x.to_bits() - 1), x, f32::from_bits(x.to_bits() + 1)];
        let near = [0.5, 1.5, 2.5, 127.5, 149.5, 4194303.5].into_iter().flat_map(next).flat_map(|x| [x, -x]);
        let numbers: Vec<f32> =
            halves.chain(near).chain([-0.0, TINY, 1e-40, 4194304.0, -4194304.0]).collect();
        for level in Level::available() {
            let wide: &[f32] =
                if level.lanes() == 16 { &[f32::MAX, -1e20, 4194305.0, 8388609.0] } else { &[] };
            for &x in numbers.iter().chain(wide) {
                let (nearest, rest) = (one(map::<Nearest>, level, x), one(map::<Rest>, level, x));
                assert_eq!(nearest, x.round_ties_even(), "{level}: nearest to {x:e}");
                assert_eq!(rest, x - x.round_ties_even(), "{level}: rest of {x:e}");
            }
            for x in [INF, -INF] {
                assert_eq!(one(map::<Nearest>, level, x), x, "{level}");
                let rest = one(map::<Rest>, level, x);
                assert!(rest == 0.0 || rest.is_nan(), "{level}: rest of {x}: {rest}");
            }
            assert!(
                one(map::<Nearest>, level, f32::NAN).is_nan() && one(map::<Rest>, level, f32::NAN).is_nan(),
                "{level}"
            );
        }
    }

    #[test]
    fn exp2_edges() {
        expect(exp2, &[(0.0, 1.0), (-0.0, 1.0), (TINY, 1.0), (-TINY, 1.0), (-INF, 0.0), (INF, INF)]);
        expect(exp2, &[(f32::MIN, 0.0), (f32::MAX, INF), (128.0, INF), (-151.0, 0.0), (-150.0, 0.0)]);
        expect(exp2, &[(-149.0, TINY), (-126.0, f32::MIN_POSITIVE), (127.0, 2f32.powi(127)), (-1.0, 0.5)]);
    }

    /// To the bit, ties and subnormal results among them; NaN is NaN whatever its payload.
    #[test]
    fn exp2_of_what_is_not_positive() {
        let halves = (0..400).map(|n| n as f32 * -0.5);
        let edges = [0.0, -INF, f32::MIN, -160.0f32.next_up(), -160.0f32.next_down()];
        let all = (0..161f32.to_bits()).step_by(521).map(|bits| -f32::from_bits(bits));
        let arguments: Vec<f32> = halves.chain(edges).chain(all).collect();
        let nan = |bits: u32| [f32::from_bits(0x7fc0_0000 | bits), f32::from_bits(0xffc0_0000 | bits)];
        let payloads: Vec<f32> = (0..512).flat_map(nan).collect();
        for level in Level::available() {
            for arguments in arguments.chunks(4096) {
                let (mut expected, mut got) = (arguments.to_vec(), arguments.to_vec());
                exp2(level, &mut expected).unwrap();
                map::<Exp2Nonpositive>(level, &mut got).unwrap();
                let differs = (0..got.len()).find(|&i| got[i].to_bits() != expected[i].to_bits());
                assert_eq!(differs.map(|i| (arguments[i], got[i], expected[i])), None, "{level}");
            }
            let mut nan = payloads.clone();
            map::<Exp2Nonpositive>(level, &mut nan).unwrap();
            assert!(nan.iter().all(|x| x.is_nan()), "{level}");
        }
    }

    #[test]
    fn shifts_of_representations() {
        let values: Vec<f32> = (0..2000u32).map(|n| f32::from_bits(n.wrapping_mul(0x9e37_79b9))).collect();
        for level in Level::available() {
            let mut shifted = values.clone();
            map::<ShiftIntoExponent>(level, &mut shifted).unwrap();
            for (value, shifted) in values.iter().zip(shifted) {
                assert_eq!(shifted.to_bits(), value.to_bits() << 23, "{level}: {value:e}");
            }
        }
    }

    #[test]
    fn exp_edges() {
        expect(exp, &[(0.0, 1.0), (-0.0, 1.0), (TINY, 1.0), (-TINY, 1.0), (-INF, 0.0), (INF, INF)]);
        expect(exp, &[(f32::MIN, 0.0), (f32::MAX, INF), (-104.0, 0.0), (-103.9, TINY), (88.73, INF)]);
    }

    #[test]
    fn odd_functions_edges() {
        for function in [tanh, erf] {
            expect(function, &[(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (f32::MAX, 1.0)]);
            expect(function, &[(TINY, TINY), (-TINY, -TINY), (f32::MIN, -1.0), (10.0, 1.0), (-10.0, -1.0)]);
        }
    }

    #[test]
    fn tails_of_every_length() {
        let arguments: Vec<f32> = (0..50).map(|i| i as f32 * 0.17 - 4.0).collect();
        for (name, function) in ALL {
            for level in Level::available() {
                for length in 0..arguments.len() {
                    let mut got = arguments[..length].to_vec();
                    function(level, &mut got).unwrap();
                    let singly: Vec<f32> =
                        arguments[..length].iter().map(|&x| one(function, level, x)).collect();
                    assert_eq!(got, singly, "{name} {level} {length}");
                }
            }
        }
    }

    #[test]
    fn fused_levels_agree_on_samples() {
        // An odd stride visits patterns of every exponent; the exhaustive test takes them all.
        let arguments: Vec<f32> = (0..=u32::MAX).step_by(2011).map(f32::from_bits).collect();
        for (name, function) in ALL {
            let mut results = Level::available().filter(|level| level.is_fused()).map(|level| {
                let mut got = arguments.clone();
                function(level, &mut got).unwrap();
                got.iter()
                    .map(|y| if y.is_nan() { f32::NAN.to_bits() } else { y.to_bits() })
                    .collect::<Vec<_>>()
            });
            if let Some(first) = results.next() {
                assert!(results.all(|other| other == first), "{name}");
            }
        }
    }

    /// The documented errors, on samples; the exhaustive test takes all arguments.
    #[test]
    fn powers_against_f64() {
        type Exact = fn(f64) -> f64;
        let powers: [(Apply, Exact, [f64; 2]); 2] =
            [(exp2, f64::exp2, [0.831, 0.921]), (exp, f64::exp, [1.168, 0.892])];
        // Results are normal.
        let arguments: Vec<f32> = (-80_000..80_000).map(|i| i as f32 / 1009.0).collect();
        for (function, exact, limits) in powers {
            for level in Level::available() {
                let mut got = arguments.clone();
                function(level, &mut got).unwrap();
                for (&x, got) in arguments.iter().zip(got) {
                    let exact = exact(f64::from(x));
                    let exponent = ((exact as f32).to_bits() >> 23) as i32;
                    let error = (f64::from(got) - exact).abs() * 2f64.powi(150 - exponent);
                    let limit = limits[usize::from(level.is_fused())];
                    assert!(error <= limit, "{level}: f({x:e}) errs by {error} ULP");
                }
            }
        }
    }

    #[test]
    fn missing_level_is_refused() {
        for level in Level::ALL.into_iter().filter(|level| !level.is_available()) {
            let mut values = [1.0];
            assert_eq!(
                exp2(level, &mut values),
                Err(AttentionError::LevelUnavailable { level: level.name() })
            );
            assert_eq!(values, [1.0]);
        }
    }

    #[test]
    fn log2_edges() {
        assert_eq!(log2(0.0), -INF);
        assert_eq!(log2(-0.0), -INF);
        assert_eq!(log2(INF), INF);
        assert_eq!(log2(1.0).to_bits(), 0);
        assert_eq!(log2(TINY), -149.0);
        assert!((-149..128).all(|n| log2(one(exp2, Level::Portable, n as f32)) == n as f32));
        for x in [-TINY, -1.0, -INF, f32::NAN, -f32::NAN] {
            assert!(log2(x).is_nan(), "{x}");
        }
    }

    #[test]
    fn log2_against_f64() {
        let around_one = 1.0f32.to_bits() - (1 << 21)..1.0f32.to_bits() + (1 << 21);
        let everywhere = (1..INF.to_bits()).step_by(1009);
        for x in around_one.chain(everywhere).map(f32::from_bits) {
            let exact = f64::from(x).log2();
            let exponent = ((exact as f32).to_bits() >> 23 & 0xff) as i32;
            let error = (f64::from(log2(x)) - exact).abs() * 2f64.powi(150 - exponent);
            assert!(error <= 0.500001, "log2({x:e}) errs by {error} ULP");
        }
    }
}
