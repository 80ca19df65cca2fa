//! Linear attention against its definition in `f64`, and the laws it obeys.

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
