//! Linear attention against its definition in `f64`, and the laws it obeys; on every level.
//!
//! | law | where |
//! |---|---|
//! | L1 in blocks, token by token, in pieces: the definition | `definition`, `algebra`, `window`, `decay` |
//! | L1 however it is cut, within 1e-5 | `purity` (a prompt and what follows), `states` (merged) |
//! | L1 weights sum to one | `algebra` |
//! | L1 rows of positive maps are means | `algebra` |
//! | L1 finite numbers give finite numbers; vanishing weights | `limits` |
//! | L2 later tokens never show, nor does whether there are any | `purity` |
//! | L2 a prompt and what follows are a longer prompt | `purity` |
//! | L2 threads, neighbours, what memory held before | `purity` |
//! | L3 estimates of the kernel are unbiased, in all kinds of directions | `kernels` |
//! | L4 their variances are those of the formulas; orthogonal directions and FAVOR++ have less | `kernels` |
//! | L5 errors of outputs; an exact window helps | `kernels` |
//! | L6 speed against the dense call, where it is the faster one, the cost of a token | `cargo bench --bench linear` |
//! | every storage type | `definition`, `algebra`, `purity`, `kernels` |
//! | gates: fading and shut ones | `decay` |
//! | states: saved, restored, merged; another map's | `states`, `decay` |
//! | calls do not allocate | `tests/linear_allocation.rs` |

#[path = "../common/cases/rng.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of what the integration tests share")]
mod rng;

mod algebra;
mod case;
mod decay;
mod definition;
mod errors;
mod kernels;
mod limits;
mod purity;
mod states;
mod window;

use lucid_attention::Level;
use rng::Rng;

/// The levels to test: all that are available, among them those that `LUCID_TEST_LEVELS` names.
fn levels() -> Vec<Level> {
    let levels: Vec<Level> = Level::available().collect();
    for name in std::env::var("LUCID_TEST_LEVELS").iter().flat_map(|names| names.split(',')) {
        let level = Level::from_name(name).expect("LUCID_TEST_LEVELS names levels");
        assert!(levels.contains(&level), "LUCID_TEST_LEVELS names {level}, which cannot run here");
    }
    levels
}

/// The largest difference of two lists.
#[track_caller]
fn difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len(), "as many numbers");
    assert!(got.iter().all(|x| x.is_finite()), "finite numbers");
    got.iter().zip(expected).map(|(&x, y)| (f64::from(x) - y).abs()).fold(0.0, f64::max)
}

/// Bits of a list.
fn bits(list: &[f32]) -> Vec<u32> {
    list.iter().map(|x| x.to_bits()).collect()
}
