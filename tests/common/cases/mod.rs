//! Cases: plain descriptions of calls, the operands they stand for, and the calls themselves.
//!
//! A [`Case`] is a few numbers and flags and a seed; it prints as the Rust expression that makes it again. All data
//! follows from it: values, lengths, boundaries, masks. [`Case::operands`] makes them, in the layout the case names and
//! in memory that ends or begins at an inaccessible page if asked; [`run`] makes the call.

pub mod blocks;
mod call;
mod memory;
mod operands;
mod rng;
mod rules;
mod values;

pub use call::*;
pub use memory::*;
pub use operands::*;
pub use rng::*;
pub use rules::*;
pub use values::*;

use lucid_attention::DType::{self, Bf16, F16, F32};
use lucid_attention::Level;

/// The levels to test: all that are available, among them those that `LUCID_TEST_LEVELS` names (`avx2,avx512`).
pub fn levels() -> Vec<Level> {
    let levels: Vec<Level> = Level::available().collect();
    for name in std::env::var("LUCID_TEST_LEVELS").iter().flat_map(|names| names.split(',')) {
        let level = Level::from_name(name).expect("LUCID_TEST_LEVELS names levels");
        assert!(levels.contains(&level), "LUCID_TEST_LEVELS names {level}, which cannot run here");
    }
    levels
}

/// Every level, and again on bf16 dot products where it has them.
pub fn tiers() -> Vec<(Level, bool)> {
    let exact = levels().into_iter().map(|level| (level, false));
    let fast = levels().into_iter().filter(|level| level.has_bf16_dot()).map(|level| (level, true));
    exact.chain(fast).collect()
}

/// Runs `$body` with `$q` and `$t` as the types that `$types` names.
#[macro_export]
macro_rules! with_types {
    ($types:expr, $q:ident, $t:ident => $body:expr) => {{
        use half::{bf16, f16};
        use lucid_attention::DType::{Bf16, F16, F32};
        macro_rules! arm {
            ($first:ty, $second:ty) => {{
                type $q = $first;
                type $t = $second;
                $body
            }};
        }
        match $types {
            [F32, F32] => arm!(f32, f32),
            [F32, F16] => arm!(f32, f16),
            [F32, Bf16] => arm!(f32, bf16),
            [F16, F32] => arm!(f16, f32),
            [F16, F16] => arm!(f16, f16),
            [F16, Bf16] => arm!(f16, bf16),
            [Bf16, F32] => arm!(bf16, f32),
            [Bf16, F16] => arm!(bf16, f16),
            [Bf16, Bf16] => arm!(bf16, bf16),
            #[allow(unreachable_patterns, reason = "the crate's own tests know that there is no other")]
            other => panic!("a new storage type: {other:?}"),
        }
    }};
}

/// All pairs of storage types: of queries and output, of keys and values.
pub const TYPES: [[DType; 2]; 9] = [
    [F32, F32],
    [F16, F16],
    [Bf16, Bf16],
    [F32, F16],
    [F32, Bf16],
    [F16, F32],
    [Bf16, F32],
    [F16, Bf16],
    [Bf16, F16],
];

/// Query heads and KV heads.
pub const RATIOS: [[usize; 2]; 7] = [[1, 1], [2, 1], [3, 3], [6, 2], [8, 1], [28, 4], [48, 2]];

/// A call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    pub seed: u64,
    /// Of queries and output, of keys and values.
    pub types: [DType; 2],
    pub batch: usize,
    /// Query heads, KV heads.
    pub heads: [usize; 2],
    pub q_len: usize,
    pub kv_len: usize,
    pub head_dim: usize,
    pub v_dim: usize,
    pub storage: Storage,
    pub values: Values,
    pub rules: Rules,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            seed: 1,
            types: [F32, F32],
            batch: 1,
            heads: [1, 1],
            q_len: 7,
            kv_len: 37,
            head_dim: 8,
            v_dim: 8,
            storage: Storage::HeadMajor,
            values: Values::Spread(1.0),
            rules: Rules::NONE,
        }
    }
}

impl Case {
    /// Any case: a little of everything, seldom large.
    pub fn random(seed: u64) -> Case {
        let rng = &mut Rng::new(seed);
        let size = |rng: &mut Rng, small: usize, large: usize| {
            if rng.chance(0.8) { rng.between(0..=small) } else { rng.between(0..=large) }
        };
        let ratios = if rng.chance(0.8) { &RATIOS[..4] } else { &RATIOS };
        let mut case = Case {
            seed,
            types: rng.pick(&TYPES),
            batch: if rng.chance(0.6) { 1 } else { rng.between(0..=3) },
            heads: rng.pick(ratios),
            q_len: size(rng, 12, 110),
            kv_len: size(rng, 70, 1100),
            head_dim: size(rng, 20, 130).max(1),
            v_dim: size(rng, 20, 130),
            storage: rng.pick(&STORAGES),
            values: if rng.chance(0.5) { Values::Spread(1.0) } else { rng.pick(&VALUES) },
            rules: Rules::NONE,
        };
        for _ in 0..rng.between(0..=4) {
            rng.pick(&Rules::OPTIONS)(&mut case.rules);
        }
        let most = 400_000;
        while case.work() > most && case.batch > 1 {
            case.batch = 1;
        }
        while case.work() > most && case.q_len > 1 {
            case.q_len /= 2;
        }
        if case.work() > most {
            case.heads = [1, 1];
        }
        case.possible()
    }

    /// Multiply-adds.
    pub fn work(&self) -> usize {
        self.batch * self.heads[0] * self.q_len * self.kv_len * (self.head_dim + self.v_dim)
    }

    /// The same but for what contradicts itself.
    pub fn possible(mut self) -> Case {
        if self.rules.ragged {
            self.batch = 1;
            if self.storage == Storage::Panels {
                self.storage = Storage::Gaps;
            }
        }
        // Lengths may differ within a ragged batch: positions then have to be said.
        if self.rules.start.is_none() && (self.rules.ragged || self.q_len != self.kv_len) {
            self.rules.start = Some(Start::BottomRight);
        }
        self
    }
}
