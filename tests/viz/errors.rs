//! What is refused, and in which words.

use crate::{map, values, view};
use lucid_attention::viz::TerminalColors::Ascii;
use lucid_attention::viz::{EntropyMap, HeatMap};
use lucid_attention::{Mask, View};

const SHAPE: [usize; 4] = [2, 3, 4, 5];

/// Both ways of drawing refuse it.
#[track_caller]
fn assert_refused(map: &HeatMap<'_>, message: &str) {
    assert_eq!(map.draw().unwrap_err().to_string(), message);
    assert_eq!(map.terminal(80, Ascii).unwrap_err().to_string(), message);
}

#[test]
fn sizes() {
    let numbers = values(SHAPE);
    let valid = HeatMap::new(view(&numbers, SHAPE));
    assert!(valid.draw().is_ok() && valid.terminal(40, Ascii).is_ok());

    for axis in 0..4 {
        let mut shape = SHAPE;
        shape[axis] = 0;
        let message = "probabilities: expected at least one sequence, head, row and key, got shape";
        assert_refused(&HeatMap::new(view(&numbers, shape)), &format!("{message} {shape:?}"));
    }
    assert_refused(&valid.clone().batch(2), "batch: index may be at most 1, got 2");
    assert_refused(&valid.clone().heads(&[0, 1]), "heads: expected heads = 3, got 2");
    assert_refused(&valid.clone().rows(&[0, 1]), "rows: expected rows = 4, got 2");
    assert_refused(&valid.clone().tokens(&["a"; 4]), "tokens: expected kv_len = 5, got 4");
    assert_refused(&valid.clone().head(3), "head: expected one of the heads that are there, got 3");
    assert_refused(
        &valid.clone().heads(&[4, 5, 6]).head(0),
        "head: expected one of the heads that are there, got 0",
    );
    assert_refused(&valid.clone().max_cells(0), "max_cells: expected 1 to 2048, got 0");
    assert_refused(&valid.max_cells(2049), "max_cells: expected 1 to 2048, got 2049");
}

#[test]
fn rows_without_tokens() {
    let numbers = values(SHAPE);
    let valid = HeatMap::new(view(&numbers, SHAPE));
    assert_refused(
        &valid.clone().query_tokens(&["a", "b"]).rows(&[0, 1, 7, 1]),
        "query_tokens: expected a token for every row, got 2 tokens and row 7 at position 7",
    );
    assert_refused(
        &valid.clone().tokens(&["a"; 5]).q_start(2),
        "tokens: expected a token for every row, got 5 tokens and row 3 at position 5",
    );
    assert_refused(
        &valid.clone().tokens(&["a"; 5]).q_start(-1),
        "tokens: expected a token for every row, got 5 tokens and row 0 at position -1",
    );
    // Extreme positions are positions.
    let far = valid.rows(&[usize::MAX, 0, 1, 2]).q_start(i64::MAX);
    assert!(far.draw().is_ok() && far.terminal(40, Ascii).is_ok());
}

#[test]
fn numbers() {
    let at = |number: f32| [0.5, number, 0.25, 0.0];
    for number in [-0.25, -f32::MIN_POSITIVE, f32::NEG_INFINITY, f32::INFINITY] {
        let message = format!("probabilities: expected finite numbers from 0 up, or NaN, got {number}");
        assert_refused(&map(&at(number), 2, 2), &message);
    }
    // What a mask removes is never looked at.
    assert!(map(&at(f32::INFINITY), 2, 2).mask(Mask::causal()).draw().is_ok());

    let nothing = "probabilities: expected a number in some cell that the mask leaves, got none";
    assert_refused(&map(&[f32::NAN; 4], 2, 2), nothing);
    assert_refused(&map(&[0.5; 4], 2, 2).q_start(-5).mask(Mask::causal()), nothing);

    for (upper, got) in [(0.0, "0"), (-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let message = format!("upper: expected a positive, finite, normal number, got {got}");
        assert_refused(&map(&[0.5; 4], 2, 2).upper(upper), &message);
    }
}

/// Any finite number is drawn: subnormal, huge, and those that a mean in `f32` would overflow with.
#[test]
fn extreme_numbers() {
    for number in [1e-45, f32::MIN_POSITIVE, f32::MAX] {
        let numbers = [number; 16];
        let map = map(&numbers, 4, 4).max_cells(2).reduce(lucid_attention::viz::Reduce::Mean);
        assert!(map.draw().is_ok() && map.terminal(40, Ascii).is_ok(), "{number}");
        let entropy = EntropyMap::new(&numbers, [4, 4]);
        assert!(entropy.draw().is_ok() && entropy.terminal(80, Ascii).is_ok(), "{number}");
    }
}

#[test]
fn sizes_of_output() {
    let numbers = values([1, 1, 2, 2]);
    let map = map(&numbers, 2, 2);
    let error = map.terminal(39, Ascii).unwrap_err();
    assert_eq!(error.to_string(), "width: expected at least 40 columns, got 39");
    let picture = map.draw().unwrap();
    for scale in [0, 9] {
        let error = picture.png(scale).unwrap_err();
        assert_eq!(error.to_string(), format!("scale: expected 1 to 8, got {scale}"));
    }
    // 36 heads of 2048 columns are a picture of some 12 000 columns, times 8.
    let one = [0.5f32];
    let heads = View::with_strides(&one, [1, 36, 1, 2048], [0; 4]).unwrap();
    let wide = HeatMap::new(heads).max_cells(2048).draw().unwrap();
    let error = wide.png(8).unwrap_err().to_string();
    assert!(error.starts_with("picture: pixels may be at most 100000000, got "), "{error}");
}

#[test]
fn entropy() {
    let refused = |entropy: &[f32], shape, message: &str| {
        let map = EntropyMap::new(entropy, shape);
        assert_eq!(map.draw().unwrap_err().to_string(), message);
        assert_eq!(map.terminal(80, Ascii).unwrap_err().to_string(), message);
    };
    refused(&[], [0, 3], "entropy: expected 1 to 256 layers and heads, got 0 layers");
    refused(&[], [3, 0], "entropy: expected 1 to 256 layers and heads, got 0 heads");
    refused(
        &[],
        [3, usize::MAX],
        &format!("entropy: expected 1 to 256 layers and heads, got {} heads", usize::MAX),
    );
    refused(&[1.0; 5], [2, 3], "entropy: expected layers * heads = 6, got 5");
    refused(&[1.0, -0.5], [1, 2], "entropy: expected finite numbers from 0 up, or NaN, got -0.5");
    refused(&[f32::NAN; 2], [1, 2], "entropy: expected a number in some cell that the mask leaves, got none");
    let error = EntropyMap::new(&[1.0], [1, 1]).upper(0.0).draw().unwrap_err();
    assert_eq!(error.to_string(), "upper: expected a positive, finite, normal number, got 0");
    let error = EntropyMap::new(&[1.0; 40], [1, 40]).terminal(40, Ascii).unwrap_err();
    assert_eq!(error.to_string(), "width: expected a column for each head, got 40 columns, 40 heads");
}
