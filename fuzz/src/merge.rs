//! Partial results, some of them nonsense, against the formula in `f64`.
//!
//! What [`lucid_attention::merge`] may be off, with u = 2^-24, d = L1 - L2 and 1.25 ULP for `exp`: the weight of the smaller
//! part is off by e = u |d| + 2.5 u (the difference, the exponential), the sum of both by w e + u where w is the smaller
//! weight, quotients by one more u, product and addition by one each: w e + 4 u, taken as 6 u, for the larger part's term,
//! and e more for the smaller's. A weight below 2^-126 may
//! be lost.

use crate::Tally;
use crate::common::cases::{Rng, same};
use arbitrary::{Result, Unstructured};
use half::f16;
use lucid_attention::{Element, View, ViewMut, merge as merge_parts};

const U: f64 = 1.0 / (1 << 24) as f64;

/// A partial result: rows and their LSE.
#[derive(Clone, Debug)]
struct Part<Q> {
    out: Vec<Q>,
    lse: Vec<f32>,
}

pub fn merge(data: &[u8], tally: &mut Tally) {
    let input = &mut Unstructured::new(data);
    // What ends early has been checked so far.
    let _ = match data.first().map_or(0, |byte| byte % 2) {
        0 => parts::<f32>(input, tally),
        _ => parts::<f16>(input, tally),
    };
}

/// Joins a few parts, one after another.
fn parts<Q: Element>(input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
    let _ = input.arbitrary::<u8>()?;
    let shape = [input.int_in_range(0..=2)?, input.int_in_range(0..=2)?, input.int_in_range(0..=5)?];
    let dim = input.int_in_range(0..=40)?;
    let rng = &mut Rng::new(input.arbitrary::<u32>()?.into());
    let mut total = part::<Q>(input, rng, shape, dim)?;
    for _ in 0..input.int_in_range(1..=5)? {
        let other = part(input, rng, shape, dim)?;
        let joint = joined(&total, &other, shape, dim);
        let reverse = joined(&other, &total, shape, dim);
        for (row, (lse, other_lse)) in total.lse.iter().zip(&other.lse).enumerate() {
            let pair = [joint.lse[row], reverse.lse[row]];
            tally.same(&pair[..1], &pair[1..], &|| {
                format!("row {row}: LSE {lse:e} and {other_lse:e} commute")
            });
            let own = &total.out[row * dim..][..dim];
            let others = &other.out[row * dim..][..dim];
            for got in [&joint, &reverse] {
                let got = (&got.out[row * dim..][..dim], got.lse[row]);
                check_row((own, *lse), (others, *other_lse), got, tally);
            }
        }
        total = joint;
    }
    Ok(())
}

fn part<Q: Element>(
    input: &mut Unstructured<'_>,
    rng: &mut Rng,
    shape: [usize; 3],
    dim: usize,
) -> Result<Part<Q>> {
    let rows = shape.iter().product::<usize>();
    let special =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0, 1e-45, 88.0, -104.0];
    let mut lse = Vec::new();
    for _ in 0..rows {
        lse.push(match input.int_in_range(0..=5)? {
            0 => f32::NEG_INFINITY,
            1 => *input.choose(&special)?,
            2 => input.arbitrary()?,
            _ => 30.0 * rng.normal(),
        });
    }
    let wild = input.ratio(1, 4)?;
    let out = (0..rows * dim)
        .map(|_| if wild && rng.chance(0.2) { rng.pick(&special) } else { rng.normal() })
        .map(Q::from_f32)
        .collect();
    Ok(Part { out, lse })
}

fn joined<Q: Element>(a: &Part<Q>, b: &Part<Q>, [batch, heads, tokens]: [usize; 3], dim: usize) -> Part<Q> {
    let shape = [batch, heads, tokens, dim];
    let mut joint = a.clone();
    let out = ViewMut::new(&mut joint.out, shape).expect("sized to it");
    let other = View::new(&b.out, shape).expect("sized to it");
    merge_parts(out, &mut joint.lse, other, &b.lse).expect("the same shapes");
    joint
}

/// Holds one joint row against the formula.
fn check_row<Q: Element>(
    (a, la): (&[Q], f32),
    (b, lb): (&[Q], f32),
    (got, got_lse): (&[Q], f32),
    tally: &mut Tally,
) {
    let at = format!("LSE {la:e} and {lb:e}");
    let row_is = |row: &[Q]| got.iter().zip(row).all(|(&x, &y)| same(x, y));
    tally.same += 1 + got.len() as u64;
    if la.is_nan() || lb.is_nan() {
        assert!(got_lse.is_nan() && got.iter().all(|x| x.to_f32().is_nan()), "{at}: {got_lse:e}, {got:?}");
        return;
    }
    // A part without keys changes no bit of the other; of two such parts either will do.
    if la == f32::NEG_INFINITY || lb == f32::NEG_INFINITY {
        assert!(same(got_lse, la.max(lb)), "{at}: got {got_lse:e}");
        assert!(
            la == f32::NEG_INFINITY && row_is(b) || lb == f32::NEG_INFINITY && row_is(a),
            "{at}: {got:?}"
        );
        return;
    }
    // What weighs infinitely shows.
    if la == f32::INFINITY || lb == f32::INFINITY {
        assert!(got_lse.is_nan() || got_lse == f32::INFINITY, "{at}: got {got_lse:e}");
        assert!(got.iter().all(|x| !x.to_f32().is_finite()), "{at}: {got:?}");
        return;
    }
    let [la, lb] = [la, lb].map(f64::from);
    let (max, distance) = (la.max(lb), (la - lb).abs());
    let off = U * distance + 2.5 * U;
    let log = (-distance).exp().ln_1p();
    let lse = max + log;
    let allowed = (-distance).exp() * off + 8.0 * U * log + U * (lse.abs() + 2.0) + 1e-38;
    if lse.abs() <= 3.4e38 {
        tally.bound(f64::from(got_lse), lse, allowed, &|| format!("{at}: LSE"));
    }
    // Not by the LSE, in which a large maximum loses the logarithm.
    let [wa, wb] = [la, lb].map(|part| (part - max - log).exp());
    for ((&x, &y), &got) in a.iter().zip(b).zip(got) {
        let [x, y, got] = [x, y, got].map(|x| f64::from(x.to_f32()));
        if !x.is_finite() || !y.is_finite() {
            assert!(!got.is_finite(), "{at}: {x:e} and {y:e} gave {got:e}");
            continue;
        }
        let exact = x * wa + y * wb;
        let shared = wa.min(wb) * off + 6.0 * U;
        let (own, other) = if la < lb { (off + shared, shared) } else { (shared, off + shared) };
        let rounded = ((x * wa).abs() * own + (y * wb).abs() * other) * 1.01;
        let rounded = rounded + (x.abs() + y.abs()) * 2f64.powi(-125) + 2f64.powi(-147);
        let stored = match Q::DTYPE.unit_roundoff() {
            unit if unit > U => unit * (exact.abs() + rounded) + 2f64.powi(-25),
            _ => 0.0,
        };
        let largest = if stored > 0.0 { 65504.0 } else { f64::from(f32::MAX) };
        let too_large = got.is_infinite() && got.signum() == exact.signum() && exact.abs() >= 0.99 * largest;
        if !too_large {
            tally.bound(got, exact, rounded + stored, &|| format!("{at}: {x:e} and {y:e}"));
        }
    }
}
