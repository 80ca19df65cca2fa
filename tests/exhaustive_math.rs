//! Every function of `math` at every level on all 2^32 arguments, against references in `f64`.
#![cfg(feature = "rayon")]
#![allow(missing_docs, reason = "a test")]

use lucid_attention::{AttentionError, Level, math};
use rayon::prelude::*;
use std::cmp::Ordering;

type Apply = fn(Level, &mut [f32]) -> Result<(), AttentionError>;

/// A function with what its documentation promises.
struct Case {
    name: &'static str,
    apply: Apply,
    /// The exact result to some 1e-13, for non-negative and (unless `odd`) negative arguments.
    reference: fn(f64) -> f64,
    odd: bool,
    monotone: bool,
    /// The documented largest errors in ULP: where a multiply-add rounds once, and where it rounds twice.
    limits: [f64; 2],
}

/// The largest error at one level and its argument.
#[derive(Clone, Copy)]
struct Worst {
    error: f64,
    argument: f32,
}

impl Worst {
    /// Half a unit is what a correctly rounded result may err by; only the others are looked at.
    const ROUNDED: Worst = Worst { error: 0.5, argument: 0.0 };

    fn join(self, other: Worst) -> Worst {
        if other.error > self.error { other } else { self }
    }
}

/// Patterns in a chunk; the magnitudes of `f32` are a whole number of chunks.
const CHUNK: u32 = 1 << 12;
const CHUNKS: u32 = (1 << 31) / CHUNK;
const SIGN: u32 = 1 << 31;

/// Checks the function on all arguments, prints and asserts its largest error at each level.
fn check(case: &Case) {
    let levels: Vec<Level> = Level::available().collect();
    let none = || vec![Worst::ROUNDED; levels.len()];
    let join = |a: Vec<Worst>, b: Vec<Worst>| a.into_iter().zip(b).map(|(a, b)| a.join(b)).collect();
    let worst = (0..CHUNKS).into_par_iter().map(|chunk| check_chunk(case, &levels, chunk)).reduce(none, join);
    for (level, worst) in levels.iter().zip(&worst) {
        let Worst { error, argument } = worst;
        println!("{} {level}: {error:.6} ULP at {argument:e} ({:#010x})", case.name, argument.to_bits());
    }
    for (level, worst) in levels.iter().zip(&worst) {
        let limit = case.limits[usize::from(!level.is_fused())];
        assert!(worst.error <= limit, "{} {level}: {} > {limit}", case.name, worst.error);
    }
}

/// The largest error per level on the arguments of either sign whose magnitudes form this chunk.
fn check_chunk(case: &Case, levels: &[Level], chunk: u32) -> Vec<Worst> {
    // One more than the chunk, so that the order of neighbours is seen across chunks too.
    let last = (chunk * CHUNK + CHUNK).min(SIGN - 1);
    let patterns = chunk * CHUNK..=last;
    let mut worst = vec![Worst::ROUNDED; levels.len()];
    let mut exact = Vec::new();
    for sign in [0, SIGN] {
        let arguments: Vec<f32> = patterns.clone().map(|bits| f32::from_bits(sign | bits)).collect();
        if case.odd && sign != 0 {
            exact.iter_mut().for_each(|y: &mut f64| *y = -*y);
        } else {
            exact = arguments.iter().map(|&x| (case.reference)(f64::from(x))).collect();
        }
        // Results of the fused levels so far and their largest error, which holds for the equal ones too.
        let mut fused: Option<(Vec<f32>, Worst)> = None;
        for (level, worst) in levels.iter().zip(&mut worst) {
            let mut got = arguments.clone();
            (case.apply)(*level, &mut got).expect("an available level");
            if let Some((first, its_worst)) = fused.as_ref().filter(|_| level.is_fused()) {
                assert!(same(first, &got), "{}: the fused levels differ near {:e}", case.name, arguments[0]);
                *worst = worst.join(*its_worst);
                continue;
            }
            let here = compare(&arguments, &got, &exact);
            check_shape(case, *level, &arguments, &got);
            *worst = worst.join(here);
            if level.is_fused() {
                fused = Some((got, here));
            }
        }
    }
    worst
}

/// Whether all bits agree, but for those of NaN.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

fn compare(arguments: &[f32], got: &[f32], exact: &[f64]) -> Worst {
    let mut worst = Worst::ROUNDED;
    for ((&argument, &got), &exact) in arguments.iter().zip(got).zip(exact) {
        if got.to_bits() != (exact as f32).to_bits() {
            worst = worst.join(Worst { error: error_in_ulp(got, exact), argument });
        }
    }
    worst
}

/// |got - exact| in units in the last place of `exact` rounded to `f32`; infinite where only one of them is
/// NaN or they disagree about infinity.
fn error_in_ulp(got: f32, exact: f64) -> f64 {
    let rounded = exact as f32;
    if got == rounded && rounded.is_infinite() || got.is_nan() && exact.is_nan() {
        return 0.0;
    }
    let exponent = (rounded.to_bits() >> 23 & 0xff).max(1);
    // 2^(150 - exponent), the reciprocal of the unit.
    let units = f64::from_bits(u64::from(1023 + 150 - exponent) << 52);
    let error = (f64::from(got) - exact).abs() * units;
    if error.is_nan() { f64::INFINITY } else { error }
}

/// What must hold exactly: odd functions stay within [-1, 1] and keep the sign, monotone ones do not
/// decrease.
fn check_shape(case: &Case, level: Level, arguments: &[f32], got: &[f32]) {
    let negative = arguments[0].is_sign_negative();
    let place = || format!("{} {level} near {:e}", case.name, arguments[0]);
    if case.odd {
        let fits = |y: &f32| y.is_nan() || y.abs() <= 1.0 && y.is_sign_negative() == negative;
        assert!(got.iter().all(fits), "{}: outside [-1, 1] or wrong sign", place());
    }
    if case.monotone {
        let wrong = if negative { Ordering::Less } else { Ordering::Greater };
        let ordered = |pair: &[f32]| pair[0].partial_cmp(&pair[1]) != Some(wrong);
        assert!(got.windows(2).all(ordered), "{}: not monotone", place());
    }
}

/// `f(x)` where it is not practically constant: 0 below the range, infinite above.
fn power(x: f64, range: std::ops::Range<f64>, f: fn(f64) -> f64) -> f64 {
    if x < range.start {
        0.0
    } else if x > range.end {
        f64::INFINITY
    } else {
        f(x)
    }
}

/// Two terms of the power series below 2^-12, 1 above `end`, `f(x)` between.
fn saturating(x: f64, [first, third]: [f64; 2], end: f64, f: fn(f64) -> f64) -> f64 {
    if x < 1.0 / 4096.0 {
        x * (first + third * x * x)
    } else if x > end {
        1.0
    } else {
        f(x)
    }
}

const TWO_OVER_SQRT_PI: f64 = std::f64::consts::FRAC_2_SQRT_PI;

/// exp(-x^2) 2 x / sqrt(pi) (1 + 2x^2/3 + (2x^2)^2/(3 5) + ...), all terms positive.
fn erf(x: f64) -> f64 {
    let double_square = 2.0 * x * x;
    let (mut term, mut sum, mut odd) = (1.0, 1.0, 1.0);
    while term > 1e-15 * sum {
        odd += 2.0;
        term *= double_square / odd;
        sum += term;
    }
    TWO_OVER_SQRT_PI * x * (-x * x).exp() * sum
}

#[test]
fn exp2() {
    check(&Case {
        name: "exp2",
        apply: math::exp2,
        reference: |x| power(x, -200.0..130.0, f64::exp2),
        odd: false,
        monotone: true,
        limits: [0.921, 0.831],
    });
}

#[test]
fn exp() {
    check(&Case {
        name: "exp",
        apply: math::exp,
        reference: |x| power(x, -140.0..90.0, f64::exp),
        odd: false,
        monotone: false,
        limits: [0.892, 1.168],
    });
}

#[test]
fn tanh() {
    check(&Case {
        name: "tanh",
        apply: math::tanh,
        reference: |x| saturating(x, [1.0, -1.0 / 3.0], 16.0, f64::tanh),
        odd: true,
        monotone: false,
        limits: [1.061, 1.104],
    });
}

#[test]
fn error_function() {
    check(&Case {
        name: "erf",
        apply: math::erf,
        reference: |x| saturating(x, [TWO_OVER_SQRT_PI, -TWO_OVER_SQRT_PI / 3.0], 6.0, erf),
        odd: true,
        monotone: false,
        limits: [1.135, 1.446],
    });
}

/// 1 at 0, and powers of two of all whole numbers, exactly: a weight of the largest logit is 1, and factors of equal maxima too.
#[test]
fn exact_points() {
    let zeros = [0.0f32, -0.0];
    let whole: Vec<f32> = (-149i16..=127).map(f32::from).collect();
    let powers: Vec<f32> = whole.iter().map(|&n| f64::from(n).exp2() as f32).collect();
    for level in Level::available() {
        let of = |apply: Apply, x: &[f32]| {
            let mut y = x.to_vec();
            apply(level, &mut y).expect("an available level");
            y
        };
        assert_eq!(of(math::exp, &zeros), [1.0, 1.0], "{level}: exp(0)");
        assert_eq!(of(math::exp2, &zeros), [1.0, 1.0], "{level}: exp2(0)");
        assert_eq!(of(math::exp2, &whole), powers, "{level}: exp2 of whole numbers");
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&of(math::tanh, &zeros)), bits(&zeros), "{level}: tanh(0)");
        assert_eq!(bits(&of(math::erf, &zeros)), bits(&zeros), "{level}: erf(0)");
    }
}
