//! What is refused, with nothing written.

use super::case::{Case, Decay, positive};
use lucid_attention::linear::{
    FeatureMap, LinearInputs, LinearOptions, LinearPlan, LogDecay, Norms, Projection,
};
use lucid_attention::{AttentionError, Level, Problem, View, ViewMut};

fn planned(map: &FeatureMap, options: LinearOptions) -> Result<LinearPlan, AttentionError> {
    LinearPlan::with_options(&Case::default().problem(), map, &options)
}

#[test]
fn plans() {
    let plain = LinearOptions::default();
    let directions = || Projection::orthogonal(4, 16, Norms::Chi, 1).unwrap();
    assert!(matches!(
        planned(&positive(4, 8), plain),
        Err(AttentionError::Shape { operand: "projection", .. })
    ));
    for a in [0.125, 1.0, f32::NAN, f32::NEG_INFINITY] {
        let map = FeatureMap::Optimal { projection: directions(), a };
        assert!(matches!(planned(&map, plain), Err(AttentionError::Value { operand: "a", .. })), "{a}");
    }
    for epsilon in [-1.0, f32::NAN, f32::INFINITY] {
        let map = FeatureMap::Relu { projection: None, epsilon };
        assert!(matches!(planned(&map, plain), Err(AttentionError::Value { operand: "epsilon", .. })));
    }
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let options = LinearOptions { scale: Some(scale), ..plain };
        let error = planned(&FeatureMap::Elu, options);
        assert!(matches!(error, Err(AttentionError::Value { operand: "scale", .. })), "{scale}");
    }
    let options = LinearOptions { normalize: false, ..plain };
    let error = planned(&positive(4, 16), options);
    assert!(matches!(error, Err(AttentionError::Conflict { operand: "normalize", .. })));
    let options = LinearOptions { exact_window: true, ..plain };
    let error = planned(&FeatureMap::Elu, options);
    assert!(matches!(error, Err(AttentionError::Conflict { operand: "exact_window", .. })));
    let options = LinearOptions { max_threads: Some(0), ..plain };
    assert!(matches!(planned(&FeatureMap::Elu, options), Err(AttentionError::Value { .. })));
    for level in Level::ALL.into_iter().filter(|level| !level.is_available()) {
        let options = LinearOptions { level: Some(level), ..plain };
        assert!(matches!(planned(&FeatureMap::Elu, options), Err(AttentionError::LevelUnavailable { .. })));
    }
    let huge = Problem::new(1, 1 << 40, 1, 1);
    assert!(matches!(LinearPlan::new(&huge, &FeatureMap::Taylor), Err(AttentionError::SizeOverflow { .. })));
}

/// A call with something wrong, and whether the output is as before.
fn refused(case: &Case, change: impl FnOnce(&mut LinearInputs<'_>)) -> AttentionError {
    let plan = case.plan(Level::Portable);
    let operands = case.operands::<f32>();
    let mut inputs = case.inputs(&operands);
    change(&mut inputs);
    let mut out = vec![1.0f32; case.out_shape().iter().product()];
    let view = ViewMut::new(&mut out, case.out_shape()).unwrap();
    let error = plan.run(&inputs, view, &mut plan.workspace().unwrap()).unwrap_err();
    assert!(out.iter().all(|&x| x == 1.0), "nothing is written");
    error
}

#[test]
fn calls() {
    let case = Case { heads: [2, 1], ..Case::default() };
    let error = refused(&case, |inputs| *inputs = inputs.kv_lens(&[101]));
    assert!(matches!(error, AttentionError::TooLarge { operand: "kv_lens", .. }), "{error}");
    let error = refused(&case, |inputs| *inputs = inputs.kv_lens(&[1, 2]));
    assert!(matches!(error, AttentionError::Shape { operand: "kv_lens", .. }), "{error}");
    let error = refused(&Case { kv_len: 99, ..case.clone() }, |inputs| *inputs = inputs.causal());
    assert!(matches!(error, AttentionError::Shape { operand: "q", axis: "q_len", .. }), "{error}");
    let mut window = case.clone();
    window.options.exact_window = true;
    let error = refused(&window, |_| {});
    assert!(matches!(error, AttentionError::Conflict { operand: "exact_window", .. }), "{error}");

    let decayed = Case { decay: Some(Decay::PerHead), causal: true, ..case.clone() };
    let error = refused(&decayed, |_| {});
    assert!(matches!(error, AttentionError::Conflict { other: "an exponential map", .. }), "{error}");
    let plain = Case { map: FeatureMap::Elu, ..decayed };
    let error = refused(&Case { causal: false, ..plain.clone() }, |_| {});
    assert!(matches!(error, AttentionError::Conflict { operand: "log_decay", .. }), "{error}");
    for decays in [&[0.5][..], &[f32::NAN], &[f32::INFINITY], &[0.0, 0.0]] {
        let error = refused(&plain, |inputs| *inputs = inputs.log_decay(LogDecay::PerHead(decays)));
        let fits = matches!(
            error,
            AttentionError::Value { operand: "log_decay", .. }
                | AttentionError::Shape { operand: "log_decay", .. }
        );
        assert!(fits, "{error}");
    }
}

#[test]
fn operands_and_workspaces() {
    let case = Case { heads: [2, 1], ..Case::default() };
    let plan = case.plan(Level::Portable);
    let operands = case.operands::<f32>();
    let mut out = vec![1.0f32; case.out_shape().iter().product()];
    let other = Case { v_dim: 9, ..case.clone() };
    let view = ViewMut::new(&mut out, case.out_shape()).unwrap();
    let mut workspace = other.plan(Level::Portable).workspace().unwrap();
    let error = plan.run(&case.inputs(&operands), view, &mut workspace).unwrap_err();
    assert!(matches!(error, AttentionError::Shape { operand: "workspace", axis: "v_dim", .. }), "{error}");

    let mut workspace = plan.workspace().unwrap();
    let mut long = vec![1.0f32; 2 * 101 * 8];
    let view = ViewMut::new(&mut long, [1, 2, 101, 8]).unwrap();
    let error = plan.run(&case.inputs(&operands), view, &mut workspace).unwrap_err();
    assert!(matches!(error, AttentionError::Shape { operand: "out", .. }), "{error}");
    let q = View::with_strides(&operands.q, [1, 2, 10, 16], [1000, 400, 32, 2]).unwrap();
    let inputs = LinearInputs::new(
        q,
        View::new(&operands.k, case.k_shape()).unwrap(),
        View::new(&operands.v, case.v_shape()).unwrap(),
    );
    let view = ViewMut::new(&mut out[..160], [1, 2, 10, 8]).unwrap();
    let error = plan.run(&inputs, view, &mut workspace).unwrap_err();
    assert!(matches!(error, AttentionError::Stride { operand: "q", .. }), "{error}");
    let longer = Case { kv_len: 101, ..case.clone() };
    let operands = longer.operands::<f32>();
    let view = ViewMut::new(&mut out, case.out_shape()).unwrap();
    let error = plan.run(&longer.inputs(&operands), view, &mut workspace).unwrap_err();
    assert!(matches!(error, AttentionError::TooLarge { operand: "k", .. }), "{error}");
    assert!(out.iter().all(|&x| x == 1.0));
}
