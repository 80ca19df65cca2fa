//! The standard's `Attention`, opsets 23 to 25 with their errata: `operator.rs` expresses the operator with this
//! crate, and is run on every case of the PyPI package `onnx` and on more written against the operator's text.

mod cases;
mod operator;

use cases::{Case, Cases};
use half::{bf16, f16};
use lucid_attention::Element;
use operator::{Results, Tensor, run_onnx_attention};
use std::collections::{BTreeMap, BTreeSet};

/// `|got - want| <= atol + rtol * |want|`, as NumPy's `assert_allclose` says it.
#[derive(Clone, Copy, Debug)]
struct Tolerance {
    rtol: f64,
    atol: f64,
}

/// What the package's own runner allows; it has the second for bf16.
const PACKAGE: Tolerance = Tolerance { rtol: 1e-3, atol: 1e-7 };
const PACKAGE_BF16: Tolerance = Tolerance { rtol: 1.0 / 64.0, atol: 1e-7 };

/// What an f32 reference and f32 kernels leave between them.
const TIGHT: Tolerance = Tolerance { rtol: 1e-5, atol: 1e-6 };

/// One rounding to the storage type, of a value computed in f32.
fn one_rounding<T: Element>() -> Tolerance {
    Tolerance { rtol: T::DTYPE.unit_roundoff() * 1.01, atol: 1e-6 }
}

fn assert_close<T: Element>(what: &str, got: &Tensor<T>, want: &Tensor<f32>, tolerance: Tolerance) {
    assert_eq!(got.shape, want.shape, "{what}: shape");
    for (index, (got, &want)) in got.data.iter().zip(&want.data).enumerate() {
        let (got, want) = (f64::from(got.to_f32()), f64::from(want));
        let close = got == want || (got - want).abs() <= tolerance.atol + tolerance.rtol * want.abs();
        assert!(close, "{what}: element {index} is {got}, expected {want} within {tolerance:?}");
    }
}

/// Compares all outputs that the case has in `group`.
fn check<T: Element>(case: &Case<'_>, results: &Results<T>, group: &str, tolerance: Tolerance) {
    let outputs = [
        ("Y", &results.y),
        ("present_key", &results.present_key),
        ("present_value", &results.present_value),
        ("qk_matmul_output", &results.qk_matmul_output),
    ];
    for (name, got) in outputs {
        if let Some(want) = case.numbers(group, name) {
            // Caches are copied, not computed.
            let tolerance =
                if name.starts_with("present") { Tolerance { rtol: 0.0, atol: 0.0 } } else { tolerance };
            assert_close(&format!("{}: {group} {name}", case.name()), got, &want, tolerance);
        }
    }
}

fn run<T: Element>(case: &Case<'_>, tolerances: &[Tolerance]) {
    let results = match run_onnx_attention(&case.attention::<T>()) {
        Ok(results) => results,
        Err(error) => panic!("{}: {error}", case.name()),
    };
    for &tolerance in tolerances {
        check(case, &results, "outputs", tolerance);
    }
    check(case, &results, "wide", one_rounding::<T>());
}

#[test]
fn every_case_of_the_package() {
    let cases = Cases::load();
    let mut counts = BTreeMap::<i64, usize>::new();
    for case in cases.of("package") {
        match case.dtype() {
            "f32" => run::<f32>(&case, &[PACKAGE, TIGHT]),
            "f16" => run::<f16>(&case, &[PACKAGE]),
            "bf16" => run::<bf16>(&case, &[PACKAGE_BF16]),
            dtype => panic!("{}: {dtype}", case.name()),
        }
        *counts.entry(case.opset()).or_default() += 1;
    }
    // All of onnx 1.23.2: none is left out.
    assert_eq!(counts, BTreeMap::from([(23, 69), (24, 13), (25, 11)]), "cases by opset");
}

#[test]
fn every_case_of_the_text() {
    let cases = Cases::load();
    for case in cases.of("text") {
        match case.dtype() {
            "f32" => run::<f32>(&case, &[TIGHT]),
            "f16" => run::<f16>(&case, &[Tolerance { rtol: 4e-3, atol: 1e-3 }]),
            dtype => panic!("{}: {dtype}", case.name()),
        }
    }
    assert_eq!(cases.of("text").len(), 220, "cases");
}

/// Modes 1 and 2 of models from before the errata are each other's.
#[test]
fn original_numbering() {
    use lucid_attention::{OnnxNumbering::*, ScoreStage};
    for (errata, original) in [(0, 0), (1, 2), (2, 1), (3, 3)] {
        let [a, b] =
            [(errata, Errata), (original, Original)].map(|(mode, n)| ScoreStage::from_onnx_mode(mode, n));
        assert_eq!(a, b, "mode {errata} since the errata, {original} before");
    }
    for mode in [-1, 4] {
        assert_eq!(ScoreStage::from_onnx_mode(mode, Errata), None, "there is no mode {mode}");
    }
}

/// The features that the standard lists, each in some case that was run.
#[test]
fn the_cases_cover_every_feature() {
    let cases = Cases::load();
    let mut seen = BTreeSet::new();
    for case in cases.of("package").into_iter().chain(cases.of("text")) {
        let opset = case.opset();
        let rank = case.shape("Q").map_or(0, |shape| shape.len());
        let offset = match (case.shape("past_key"), case.shape("nonpad_kv_seqlen")) {
            (Some(_), None) => "past",
            (None, Some(_)) => "nonpad",
            (None, None) => "no cache",
            (Some(_), Some(_)) => "both",
        };
        let causal = case.attribute("is_causal") == Some(1);
        let window = |side| case.attribute(side).is_some_and(|size| size >= 0);
        let (left, right) = (window("left_window_size"), window("right_window_size"));
        let mask = case.mask_dtype().map(|dtype| if dtype == "bool" { dtype } else { "float" });
        seen.insert(format!("opset {opset}"));
        seen.insert(format!("{} operands", case.dtype()));
        seen.insert(format!("rank {rank}, {offset}"));
        seen.insert(format!("{offset}, causal {causal}, left {left}, right {right}"));
        seen.insert(format!("mode {}", case.attribute("qk_matmul_output_mode").unwrap_or(0)));
        if let (Some(mask), Some(shape)) = (mask, case.shape("attn_mask")) {
            seen.insert(format!("{mask} mask of rank {}, causal {causal}", shape.len()));
            seen.insert(format!("{mask} mask, {offset}"));
        }
        if case.attribute("softmax_precision").is_some() {
            seen.insert("softmax_precision".to_owned());
        }
    }
    let mut wanted: Vec<String> = ["f32", "f16", "bf16"].map(|dtype| format!("{dtype} operands")).into();
    wanted.extend((23..=25).map(|opset| format!("opset {opset}")));
    wanted.extend((0..4).map(|mode| format!("mode {mode}")));
    wanted.push("softmax_precision".to_owned());
    for offset in ["past", "nonpad", "no cache"] {
        wanted.extend([3, 4].map(|rank| format!("rank {rank}, {offset}")));
        wanted.extend(["bool", "float"].map(|mask| format!("{mask} mask, {offset}")));
        for bits in 0..8 {
            let [causal, left, right] = [0, 1, 2].map(|bit| bits >> bit & 1 == 1);
            wanted.push(format!("{offset}, causal {causal}, left {left}, right {right}"));
        }
    }
    for rank in 1..=4 {
        for causal in [false, true] {
            let of_rank = |mask| format!("{mask} mask of rank {rank}, causal {causal}");
            wanted.extend(["bool", "float"].map(of_rank));
        }
    }
    let missing: Vec<_> = wanted.iter().filter(|feature| !seen.contains(*feature)).collect();
    assert!(missing.is_empty(), "no case has: {missing:?}");
    assert!(!seen.iter().any(|feature| feature.contains("both")), "the operator forbids both caches at once");
}
