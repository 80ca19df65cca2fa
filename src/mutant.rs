//! Seeded bugs: mistakes that attention kernels are known to have shipped with, each in the place where it would sit here,
//! to see that the tests find them.
//!
//! A site names its bug and has both expressions, the right one first:
//!
//! ```text
//! let end = mutant!("causal-sees-the-next-key", q_pos + 1, q_pos + 2);
//! ```
//!
//! It expands to the right one, and the other is not even compiled. Built with `--cfg lucid_mutants` the crate has all of them,
//! and the environment variable `LUCID_MUTANT` says which one a process runs with, if any. `tests/mutants` has the list, and
//! the tests that have to fail.

/// The first expression; with the bug of this name, the second.
#[cfg(not(lucid_mutants))]
macro_rules! mutant {
    ($name:literal, $right:expr, $wrong:expr $(,)?) => {{ $right }};
}

/// The first expression; with the bug of this name, the second.
#[cfg(lucid_mutants)]
macro_rules! mutant {
    ($name:literal, $right:expr, $wrong:expr $(,)?) => {{
        static RUNS: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| $crate::mutant::runs($name));
        if *RUNS { $wrong } else { $right }
    }};
}

/// Whether the process runs with the bug of this name.
#[cfg(lucid_mutants)]
pub(crate) fn runs(name: &str) -> bool {
    std::env::var_os("LUCID_MUTANT").is_some_and(|chosen| chosen == name)
}

/// A vector's numbers, rounded to `f16`.
#[cfg(lucid_mutants)]
#[inline(always)]
pub(crate) fn through_f16<I: crate::isa::Isa>(isa: I, x: I::F) -> I::F {
    let mut halves = [half::f16::ZERO; 16];
    isa.store_f16(x, &mut halves);
    isa.load_f16(&halves)
}

/// A vector's numbers, rounded to `bf16`.
#[cfg(lucid_mutants)]
#[inline(always)]
pub(crate) fn through_bf16<I: crate::isa::Isa>(isa: I, x: I::F) -> I::F {
    let mut halves = [half::bf16::ZERO; 16];
    isa.store_bf16(x, &mut halves);
    isa.load_bf16(&halves)
}
