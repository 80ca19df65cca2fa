//! What every level stores for each of the 2^32 numbers of `f32`, as `f16` and as `bf16`, and what scalars are converted to.
//! The other way, all 2^16 numbers of each are loaded in `tests/laws/storage.rs`.
#![cfg(feature = "rayon")]
#![allow(missing_docs, reason = "a test")]

use half::{bf16, f16};
use lucid_attention::{
    Element, Inputs, Level, Outputs, Plan, PlanOptions, Problem, View, ViewMut, Workspace,
};
use rayon::prelude::*;

/// Numbers of a call, which are the value of its one key, whose weight is 1: sums start from +0 and are divided by 1.
const CHUNK: usize = 1 << 14;

/// The bits of the nearest number of 16 bits of which the exponent has some, of two as near the even one, and infinity from
/// half a unit above the largest on; NaN is not asked for.
#[inline(always)]
fn nearest<const EXPONENT: u32>(x: f32) -> u16 {
    let mantissa = 15 - EXPONENT;
    let bias = (1 << (EXPONENT - 1)) - 1;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let exponent = (magnitude >> 23).max(1) as i32 - 127;
    let normal = u32::from(magnitude >> 23 > 0);
    let significand = magnitude & 0x7f_ffff | normal << 23;
    // Below the smallest normal number units are all alike.
    let below = (1 - bias - exponent).max(0);
    let dropped = (23 - mantissa + below as u32).min(25);
    let (above, rest, half) =
        (significand >> dropped, significand & ((1 << dropped) - 1), 1 << (dropped - 1));
    let up = u32::from(rest > half) | u32::from(rest == half) & above;
    let rounded = above + up + (((exponent + bias - 1).max(0) as u32) << mantissa);
    let infinity = ((1 << EXPONENT) - 1) << mantissa;
    (x.to_bits() >> 16 & 0x8000) as u16 | rounded.min(infinity) as u16
}

/// What a call at a level stores.
struct Stored<Q> {
    plan: Plan,
    workspace: Workspace,
    out: Vec<Q>,
}

impl<Q: Element> Stored<Q> {
    fn new(level: Level) -> Self {
        let options = PlanOptions { level: Some(level), max_threads: Some(1), ..PlanOptions::default() };
        let problem = Problem { v_dim: CHUNK, ..Problem::new(1, 1, 1, 1) };
        let plan = Plan::with_options(&problem, &options).expect("a plan");
        let workspace = plan.workspace().expect("memory");
        Self { plan, workspace, out: vec![Q::default(); CHUNK] }
    }

    fn of(&mut self, numbers: &[f32]) -> &[Q] {
        let (q, k) = ([Q::from_f32(1.0)], [1.0f32]);
        let shape = [1, 1, 1, 1];
        let inputs = Inputs::new(
            View::new(&q, shape).expect("a query"),
            View::new(&k, shape).expect("a key"),
            View::new(numbers, [1, 1, 1, CHUNK]).expect("a row"),
        );
        let out = ViewMut::new(&mut self.out, [1, 1, 1, CHUNK]).expect("a row");
        self.plan.run(&inputs, Outputs::new(out), &mut self.workspace).expect("operands that fit");
        &self.out
    }
}

fn check<const EXPONENT: u32, Q: Element>(bits: impl Fn(Q) -> u16 + Copy + Sync) {
    let levels: Vec<Level> = Level::available().collect();
    let calls = || levels.iter().map(|&level| Stored::<Q>::new(level)).collect::<Vec<_>>();
    (0..(1u64 << 32) / CHUNK as u64).into_par_iter().for_each_init(calls, |calls, chunk| {
        let first = (chunk * CHUNK as u64) as u32;
        let numbers: Vec<f32> = (first..=first + (CHUNK as u32 - 1)).map(f32::from_bits).collect();
        let expected: Vec<u16> = numbers.iter().map(|&x| nearest::<EXPONENT>(x)).collect();
        let assert_stored = |got: &[Q], what: &dyn std::fmt::Display, zero: bool| {
            // All at once first, which is most of them.
            let pairs = || got.iter().zip(&expected);
            if pairs().fold(0, |differs, (&got, &expected)| differs | bits(got) ^ expected) == 0 {
                return;
            }
            for (&x, (&got, &expected)) in numbers.iter().zip(pairs()) {
                let right = bits(got) == expected || zero && x == 0.0 && bits(got) == 0;
                let right = if x.is_nan() { got.to_f32().is_nan() } else { right };
                let name = Q::DTYPE;
                assert!(right, "{what}: {x:e} is stored as {name} {:#06x}, not {expected:#06x}", bits(got));
            }
        };
        for (call, level) in calls.iter_mut().zip(&levels) {
            // -0 is added to +0.
            assert_stored(call.of(&numbers), level, true);
        }
        let scalars: Vec<Q> = numbers.iter().map(|&x| Q::from_f32(x)).collect();
        assert_stored(&scalars, &"from_f32", false);
    });
}

#[test]
fn every_number_as_f16() {
    check::<5, f16>(|x| x.to_bits());
}

#[test]
fn every_number_as_bf16() {
    check::<8, bf16>(|x| x.to_bits());
}
