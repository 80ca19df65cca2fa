//! The floating-point environment belongs to the caller: a call neither sets nor changes it, on any thread.
//!
//! What results are worth is promised for the default environment only (see the README). In one that flushes subnormals
//! calls still return, with numbers that are about right where no subnormals matter.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, reason = "a test")]

mod common;

use common::cases::*;
use common::engines::engines;
use common::guard::announce;
use lucid_attention::{Element, Inputs, KeyPanels, View, ViewMut, attention, math, merge};
use std::arch::asm;
use std::hint::black_box;

/// MXCSR but for the flags, which any operation may raise: rounding, subnormals, exceptions.
const CONTROL: u32 = 0xffc0;
/// What a process starts with: round to nearest, keep subnormals, no exceptions.
const DEFAULT: u32 = 0x1f80;
/// Subnormal results become 0 (FTZ), and so do subnormal operands (DAZ).
const FLUSHING: u32 = DEFAULT | 1 << 15 | 1 << 6;

fn control() -> u32 {
    let mut mxcsr = 0u32;
    // SAFETY: writes the register to a variable of its size.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags)) };
    mxcsr & CONTROL
}

fn set_control(control: u32) {
    assert_eq!(control & !CONTROL, 0, "a reserved bit would fault");
    // SAFETY: reads a variable of the register's size; no reserved bit is set, and no exception unmasked. Compiled code may
    // take the environment for the default one. What another does is what is tested: C code that a service loads sets it
    // behind the compiler's back just so. It changes numbers, never where memory is accessed; tests do not look at numbers
    // before they have set it back.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const control, options(nostack, preserves_flags)) };
}

/// Does some work in an environment, and asserts that it is left as it was.
#[track_caller]
fn in_environment<R>(environment: u32, work: impl FnOnce() -> R) -> R {
    /// Sets it back, also in a panic.
    struct Back(u32);
    impl Drop for Back {
        fn drop(&mut self) {
            set_control(self.0);
        }
    }
    let back = Back(control());
    set_control(environment);
    let result = work();
    let left = control();
    drop(back);
    assert_eq!(left, environment, "MXCSR is {left:#x}, was {environment:#x}");
    result
}

/// The constants mean what they say.
#[test]
fn flushing_flushes() {
    let half = || black_box(black_box(f32::MIN_POSITIVE) * 0.5);
    assert_eq!(in_environment(FLUSHING, half), 0.0, "a subnormal result");
    assert_eq!(in_environment(DEFAULT, half), f32::MIN_POSITIVE / 2.0, "a subnormal result");
    let double = || black_box(black_box(f32::MIN_POSITIVE / 2.0) * 2.0);
    assert_eq!(in_environment(FLUSHING, double), 0.0, "a subnormal operand");
}

/// Calls with every family of values, some of them full of subnormals.
fn cases() -> impl Iterator<Item = Case> {
    let both = VALUES.into_iter().flat_map(|values| Rules::FEW.map(|rules| (values, rules)));
    both.enumerate().map(|(index, (values, rules))| {
        let (q_len, kv_len) = [(1, 300), (13, 40)][index % 2];
        let (types, storage) = (TYPES[index % TYPES.len()], STORAGES[index % STORAGES.len()]);
        let case = Case { seed: index as u64, types, heads: [4, 2], q_len, kv_len, ..Case::default() };
        Case { head_dim: 19, v_dim: 21, storage, values, rules, ..case }.possible()
    })
}

#[test]
fn calls() {
    for case in cases() {
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let inputs = operands.inputs();
            for (level, bf16_dot) in tiers() {
                let ask = Ask { bf16_dot, ..Ask::all(level) };
                let expected = in_environment(DEFAULT, || run(&inputs, &ask));
                let got = in_environment(FLUSHING, || run(&inputs, &ask));
                if case.values == Values::Spread(1.0) {
                    let what = format!("{level}, bf16 {bf16_dot}, flushing subnormals");
                    let tolerance = 1e-5 + 2.0 * Q::DTYPE.unit_roundoff() as f32;
                    assert_close(&widened(&got.out), &widened(&expected.out), tolerance, &what);
                    assert_close(&got.lse, &expected.lse, 1e-5, &format!("{what}: lse"));
                }
            }
        });
    }
}

fn widened<T: Element>(values: &[T]) -> Vec<f32> {
    values.iter().map(|x| x.to_f32()).collect()
}

/// What there is beside planned calls.
#[test]
fn other_functions() {
    let shape = [1, 2, 13, 20];
    // From 0 through subnormals to infinity, NaN and negative ones.
    let x: Vec<f32> = (0..520u32).map(|at| f32::from_bits(16 * at.pow(3))).collect();
    let half: Vec<half::f16> = x.iter().map(|&x| half::f16::from_f32(x)).collect();
    let view = View::new(&x, shape).expect("520 elements");
    for environment in [DEFAULT, FLUSHING] {
        in_environment(environment, || {
            attention(&Inputs::new(view, view, view)).expect("operands that fit");
            let narrow = View::new(&half, shape).expect("520 elements");
            let keys = KeyPanels::from_rows(narrow, 20).expect("memory");
            attention(&Inputs::new(narrow, &keys, narrow)).expect("operands that fit");
            let (mut out, mut lse) = (x.clone(), [0.5; 26]);
            let into = ViewMut::new(&mut out, shape).expect("520 elements");
            merge(into, &mut lse, view, &[0.25; 26]).expect("parts that fit");
            for level in levels() {
                for function in [math::exp2, math::exp, math::tanh, math::erf] {
                    function(level, &mut x.clone()).expect("an available level");
                }
            }
        });
    }
}

/// Everything that computes, on the calling thread.
#[test]
fn everything_else() {
    for level in levels() {
        for engine in engines(level, 1) {
            let _announced = announce(&(level, engine.name));
            let expected = in_environment(DEFAULT, || (engine.call)());
            in_environment(FLUSHING, || (engine.call)());
            let got = in_environment(DEFAULT, || (engine.call)());
            assert!(
                got == expected,
                "{level}, {}: a call that flushed subnormals left something",
                engine.name
            );
        }
    }
}

/// Workers of a pool have environments of their own.
#[cfg(feature = "rayon")]
#[test]
fn on_every_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
    let prefill = Case { heads: [4, 2], q_len: 200, kv_len: 330, head_dim: 40, v_dim: 48, ..Case::default() };
    let decode = Case { heads: [2, 1], q_len: 1, kv_len: 5000, head_dim: 64, v_dim: 64, ..Case::default() };
    for environment in [DEFAULT, FLUSHING] {
        pool.broadcast(|_| set_control(environment));
        for case in [prefill.possible(), decode.possible()] {
            let operands = case.operands::<f32, f32>(Place::Heap);
            for (level, bf16_dot) in tiers() {
                let ask = Ask { threads: 3, bf16_dot, ..Ask::all(level) };
                pool.install(|| run(&operands.inputs(), &ask));
                let left = pool.broadcast(|_| control());
                assert_eq!(left, [environment; 3], "{level}, bf16 {bf16_dot}: MXCSR of the workers");
            }
        }
    }
}
