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

/// The bits of the nearest number of 16 bits whose exponent has so many, of two as near the even one, of what exceeds the
/// largest by half a unit infinity; 0 for NaN.
fn nearest(x: f32, exponent_bits: u32) -> u16 {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    if magnitude > f32::INFINITY.to_bits() {
        return 0;
    }
    let mantissa_bits = 15 - exponent_bits;
    let bias = (1 << (exponent_bits - 1)) - 1;
    // Units below the smallest normal number are all alike.
    let smallest = f64::from(1 - bias - mantissa_bits as i32).exp2();
    let exponent = (magnitude >> 23) as i32 - 127;
    let rounded = if exponent < 1 - bias {
        (f64::from(f32::from_bits(magnitude)) / smallest).round_ties_even() as u32
    } else {
        let dropped = 23 - mantissa_bits;
        let above = magnitude >> dropped;
        let (rest, half) = (magnitude & ((1 << dropped) - 1), 1 << (dropped - 1));
        let up = rest > half || rest == half && above & 1 == 1;
        above + u32::from(up) - ((127 - bias as u32) << mantissa_bits)
    };
    let infinity = ((1 << exponent_bits) - 1) << mantissa_bits;
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

fn check<Q: Element>(exponent_bits: u32, bits: fn(Q) -> u16) {
    let levels: Vec<Level> = Level::available().collect();
    let calls = || levels.iter().map(|&level| Stored::<Q>::new(level)).collect::<Vec<_>>();
    (0..(1u64 << 32) / CHUNK as u64).into_par_iter().for_each_init(calls, |calls, chunk| {
        let first = (chunk * CHUNK as u64) as u32;
        let numbers: Vec<f32> = (first..=first + (CHUNK as u32 - 1)).map(f32::from_bits).collect();
        let expected: Vec<u16> = numbers.iter().map(|&x| nearest(x, exponent_bits)).collect();
        let assert_stored = |got: &[Q], what: &dyn std::fmt::Display, zero: bool| {
            for ((&x, &got), &expected) in numbers.iter().zip(got).zip(&expected) {
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
    check::<f16>(5, f16::to_bits);
}

#[test]
fn every_number_as_bf16() {
    check::<bf16>(8, bf16::to_bits);
}
