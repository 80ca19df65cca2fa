//! Rows in which many keys come close to the threshold, for a while: what one pass keeps of them has to be looked through
//! again and again.

use crate::measure;
use lucid_attention::{Inputs, MetricsOptions, View};

use crate::common::cases::tiers;

/// The metrics of one query whose logits are these, against the probabilities that the call returns.
fn check(logits: &[f32], threshold: f32, what: &str) {
    let q = [1.0f32];
    let len = logits.len();
    let v = vec![1.0f32; len];
    let view = |numbers, len| View::new(numbers, [1, 1, len, 1]).expect("sized to its shape");
    let inputs = Inputs::new(view(&q, 1), view(logits, len), view(&v, len)).scale(1.0);
    let options = MetricsOptions { sparsity: Some(threshold), top_k: Some(64), ..MetricsOptions::default() };
    for tier in tiers() {
        let got = measure(&inputs, tier, 1, options);
        let row = got.metrics.rows()[0];
        let below = got.probabilities.iter().filter(|&&p| p < threshold).count();
        assert_eq!(row.below_threshold, Some(below), "{tier:?}: {what}, below {threshold}");
        let mut descending = got.probabilities.clone();
        descending.sort_by(|a, b| b.total_cmp(a));
        let top: f64 = descending[..64].iter().map(|&p| f64::from(p)).sum();
        assert_eq!(row.top_mass, Some(top as f32), "{tier:?}: {what}");
    }
}

/// In each tile some keys stand out by as much as the tile's height, at places of their own.
fn peaks(tiles: usize, each: usize, height: impl Fn(usize) -> f32) -> Vec<f32> {
    let key = |key: usize| {
        let (tile, at) = (key / 256, key % 256);
        if (at * 37 + tile * 11) % 256 < each { height(tile) } else { height(tile) - 30.0 }
    };
    (0..tiles * 256).map(key).collect()
}

#[test]
fn many_keys_near_the_threshold() {
    for threshold in [1.0 / 128.0, 0.008, 0.01, 0.03] {
        for each in [30, 99, 120, 127, 128, 256] {
            check(
                &peaks(20, each, |tile| 3.0 * tile as f32),
                threshold,
                &format!("{each} rise in each tile"),
            );
            check(
                &peaks(20, each, |tile| -3.0 * tile as f32),
                threshold,
                &format!("{each} fall in each tile"),
            );
            check(&peaks(20, each, |tile| 2.0 * (tile / 4) as f32), threshold, &format!("{each} by split"));
            check(&peaks(9, each, |_| 0.0), threshold, &format!("{each} alike"));
        }
        // No more than reach it in the end.
        check(&peaks(20, 5, |_| 0.0), threshold, "5 alike");
    }
}

/// Logits that all overflow, in one split, say nothing of the others', however low those are.
#[test]
fn a_split_that_overflows() {
    let dead = vec![f32::MIN; 1024];
    let low = peaks(8, 100, |tile| 2.0 * tile as f32 - 200.0);
    for (what, logits) in [
        ("first", [&dead[..], &low, &low[..256]].concat()),
        ("last", [&low[..], &dead, &dead].concat()),
        ("between", [&low[..1024], &dead, &low].concat()),
    ] {
        for threshold in [0.008, 0.01] {
            check(&logits, threshold, &format!("the dead split is {what}"));
        }
    }
}
