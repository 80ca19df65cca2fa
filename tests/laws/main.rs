//! Laws that attention obeys whatever the numbers, and rules for numbers that are none; on every level.
//!
//! The exact ones hold bit for bit, the others within roundings. Where the law is about ways of making the same call, it
//! is in `tests/determinism`.
//!
//! E: every bit, B: within the certified bounds of both sides, everywhere at every level. Files without a directory are here,
//! others in `tests`.
//!
//! | law | | where |
//! |---|---|---|
//! | I1 rows sum to one, unit vectors recover probabilities | B, E | `bounds`, `algebra`; `exact.rs` (`probabilities_are_those_of_the_output`) |
//! | I2 shifts of a row's logits cancel | B | `bounds`, `algebra` |
//! | I3 no key left: +0 and -inf | E | `limits` (`rows_without_keys`, `splits_without_keys`) |
//! | I4 removed keys, values and biases never show, nor do gaps and slack | E | `poison`, `biases`; gaps and slack are NaN in every case; fuzz target `masks` |
//! | I5 NaN stays where it is attended | E | `poison` |
//! | I6 later keys never show; a decode loop is a prefill | E | `poison`; `determinism/pieces` (`a_growing_cache`, `any_pieces`) |
//! | I7 a block mask is a dense one of the same pairs | E | `sparse/exactness`; `options` (everything allowed) |
//! | I8 parts merge to the whole, in any order; nothing is the identity | B, E | `splits`, `bounds`, `algebra`; fuzz target `merge` |
//! | I9 threads, pools, batches, pieces, repeats | E | `determinism/repeats`, `determinism/threads`, `determinism/callers`, `determinism/pieces` |
//! | I10 grouped heads are repeated heads | E | `determinism/layouts` (`repeated_heads`) |
//! | I11 keys in any order; queries, heads, batches | B, E | `bounds` (`any_order`), `algebra`; `determinism/pieces` (`any_company`) |
//! | I12 repeated keys add the logarithm of how often | B | `bounds`, `algebra` |
//! | I13 values scale by powers of two and add | E, B | `algebra`, `bounds` |
//! | I14 scale moves between operands and the factor; dimensions permute | E, B | `algebra`, `bounds` |
//! | I15 outputs lie in the hull of their values | B | `algebra`; every row without a bound (`certify`) |
//! | I16 storage rounds once | E | `storage`; `exhaustive_storage.rs`; the bf16 tier, B: `bf16_dot.rs` |
//! | I17 panels and caches: appended, built at once, rows | E | `determinism/pieces` (`any_history_of_panels`); `cache.rs`; fuzz target `decode` |
//! | I18 layouts, offsets, what outputs and scratch held before | E | `determinism/layouts`, `workspaces`; outputs start as NaN in every case; `linear/purity`, `module/determinism` |
//! | I19 options at their limits are no options | E, B | `options` |
//! | I20 linear attention with the same features; equal values | B | `linear/definition`, `linear/algebra` |
//! | I21 estimates of random features: unbiased, variances of the formulas | | `linear/kernels` |

#[path = "../common/mod.rs"]
mod common;

mod algebra;
mod biases;
mod bounds;
#[cfg(feature = "rayon")]
mod estimates;
mod limits;
mod options;
mod poison;
mod splits;
mod storage;
mod workspaces;

use common::cases::*;
use common::guard::announce;
use lucid_attention::{Inputs, Level, View};

/// A few hundred cases: all pairs of options, with types and layouts taking turns.
fn cases() -> impl Iterator<Item = Case> {
    let options = Rules::OPTIONS;
    let pairs = (0..options.len()).flat_map(move |a| (0..=a).map(move |b| (a, b)));
    pairs.enumerate().map(move |(index, (a, b))| {
        let (q_len, kv_len) = [(9, 40), (30, 30), (1, 300), (14, 70)][index % 4];
        let storage = [Storage::HeadMajor, Storage::Gaps, Storage::TokenMajor][index % 3];
        let types = TYPES[index % TYPES.len()];
        let mut case = Case { types, heads: [4, 2], q_len, kv_len, storage, ..Case::default() };
        case = Case { seed: index as u64, head_dim: 11, v_dim: 18, batch: 1 + index % 2, ..case };
        options[a](&mut case.rules);
        options[b](&mut case.rules);
        case.possible()
    })
}

/// Queries and keys of size 1, values of size 1.
fn plain<'a>(q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Inputs<'a, f32, f32> {
    let view = |data: &'a [f32]| View::new(data, [1, 1, data.len(), 1]).expect("a column");
    Inputs::new(view(q), view(k), view(v))
}

/// A well-conditioned case with random operands.
fn normal(seed: u64) -> Case {
    let rng = &mut Rng::new(seed);
    let case = Case { seed, head_dim: rng.between(1..=40), v_dim: rng.between(1..=40), ..Case::default() };
    Case { heads: [4, 2], q_len: rng.between(1..=9), kv_len: rng.between(1..=400), ..case }
}

const SEEDS: u64 = 60;

/// Calls `check` with a level and a well-conditioned case's operands.
fn for_normal_cases(check: impl Fn(Level, &Case, &Operands<f32, f32>)) {
    for case in (0..SEEDS).map(normal) {
        let _announced = announce(&case);
        let operands = case.operands::<f32, f32>(Place::Heap);
        for level in levels() {
            check(level, &case, &operands);
        }
    }
}
