//! Sizes of 0 and extreme numbers: answered rightly, or refused.

use super::*;

/// The stride of an axis with one element means nothing, however large.
#[test]
fn strides_that_are_never_taken() {
    let one = |dim| View::with_strides(&NUMBERS, [1, 1, 1, dim], [MAX, MAX, MAX / 2 + 1, 1]).unwrap();
    let call = Inputs::new(one(8), one(8), one(6)).bias(one(1));
    let plan = Plan::new(&Problem::of(&call)).unwrap();
    let ask = Ask { out: [1, 1, 1, 6], lse: Some(1), scores: Some(([1; 4], [MAX; 4])), ..NOTHING_ELSE };
    let [out, ..] = run(&plan, &call, &ask).unwrap();
    assert_eq!(out[..6], [0.5; 6]);
    let empty = View::with_strides(&NUMBERS, [2, 2, 5, 0], [MAX; 4]).unwrap();
    let call = Inputs::new(view(Q), view(K), empty);
    run(&Plan::new(&Problem::of(&call)).unwrap(), &call, &Ask { out: [2, 4, 3, 0], ..ALL }).unwrap();
}

/// Every choice of sizes that are 0: rule A.3 without keys, rule A.8 for the rest.
#[test]
fn sizes_of_zero() {
    for (level, zeros) in levels().into_iter().flat_map(|level| (0..32).map(move |zeros| (level, zeros))) {
        let size = |bit: u32, size: usize| if zeros >> bit & 1 == 1 { 0 } else { size };
        let [batch, heads, q_len, kv_len, v_dim] =
            [size(0, 2), size(1, 2), size(2, 3), size(3, 5), size(4, 6)];
        let (q, out) = ([batch, 2 * heads, q_len, 8], [batch, 2 * heads, q_len, v_dim]);
        let (k, v) = (view([batch, heads, kv_len, 8]), view([batch, heads, kv_len, v_dim]));
        let panels = KeyPanels::from_rows(k, kv_len).unwrap();
        let rows = batch * 2 * heads * q_len;
        let strides = [2 * heads * q_len * kv_len, q_len * kv_len, kv_len, 1];
        let scores = Some(([batch, 2 * heads, q_len, kv_len], strides));
        let ask = Ask { out, lse: Some(rows), row_max: Some(rows), scores, ..NOTHING_ELSE };
        for call in [Inputs::new(view(q), k, v), Inputs::new(view(q), &panels, v)] {
            let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
            let plan = Plan::with_options(&Problem::of(&call), &options).unwrap();
            let [out, lse, row_max, _] = run(&plan, &call, &ask).unwrap();
            let what = format!("{level}: {q:?} with {kv_len} keys of {v_dim}");
            let (out, rest) = out.split_at(rows * v_dim);
            let expected = if kv_len == 0 { [0.0f32, f32::NEG_INFINITY] } else { [0.5, 0.5 * 8f32.sqrt()] };
            let near = |x: &f32, y: f32| x.to_bits() == y.to_bits() || (x - y).abs() < 0.1 && kv_len > 0;
            assert!(out.iter().all(|x| near(x, expected[0])) && untouched(rest), "{what}: {out:?}");
            assert_eq!(
                lse.iter().all(|&x| x == f32::NEG_INFINITY),
                kv_len == 0 || rows == 0,
                "{what}: {lse:?}"
            );
            assert_eq!(row_max.contains(&f32::NEG_INFINITY), kv_len == 0 && rows > 0, "{what}: {row_max:?}");
            assert_eq!(attention(&call).map(|out| out.len()), Ok(rows * v_dim), "{what}");
            plan.explain(&call).unwrap();
        }
        let error = value("head_dim", "at least 1", "0");
        let [q, k] = [q, k.shape()].map(|[batch, heads, tokens, _]| view([batch, heads, tokens, 0]));
        assert_error(attention(&Inputs::new(q, k, v)), &error);
        assert_error(reference::attention(&Inputs::new(q, k, v)), &error);
    }
}

/// More rows than can be visited, none of which has an element.
#[test]
fn nothing_of_huge_shapes() {
    let [q, k, v] = [[MAX, 2, TOO_MANY, 1], [MAX, 1, 2, 1], [MAX, 1, 2, 0]].map(repeat);
    let call = Inputs::new(q, k, v).mask(Mask::causal()).q_start(QueryStart::BottomRight);
    let plan = Plan::new(&Problem::of(&call)).unwrap();
    let nothing = Ask { out: call.output_shape(), out_strides: Some([0; 4]), ..NOTHING_ELSE };
    run(&plan, &call, &nothing).unwrap();
    assert_eq!(plan.explain(&call).unwrap().tasks, MAX, "counted as far as a number goes");
    assert_error(run(&plan, &call, &Ask { lse: Some(5), ..nothing }), &SizeOverflow { operand: "lse" });
}

/// Positions and windows at both ends of what a number holds, against the definition.
#[test]
fn extreme_positions() {
    let far = [i64::MIN, i64::MIN + 1, -4, 4, i64::MAX - 1, i64::MAX];
    let wide = [0, 1, MAX / 2, MAX / 2 + 1, MAX];
    let documents = [&[][..], &[MAX], &[0, 0, MAX], &[3, 3, 3, 5, MAX, MAX]];
    let mut masks = vec![Mask::causal(), Mask::prefix_lm(&[MAX]), Mask::prefix_lm(&[2, 0])];
    masks.extend(
        wide.iter().flat_map(|&w| [Mask::NONE.window(Some(w), None), Mask::NONE.window(None, Some(w))]),
    );
    masks.extend(wide[1..].iter().map(|&w| Mask::causal().last_n_keys(w)));
    masks.extend(documents.map(|bounds| Mask::NONE.documents(bounds)));
    for level in levels() {
        let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
        let plan = Plan::with_options(&Problem::of(&inputs()), &options).unwrap();
        for (mask, start) in masks.iter().flat_map(|mask| far.map(|start| (mask, start))) {
            for call in [inputs(), inputs().alibi(&[0.5; 4])]
                .map(|call| call.mask(*mask).q_start(QueryStart::At(start)))
            {
                let expected = reference::attention(&call).unwrap().out;
                let got = run(&plan, &call, &ALL).unwrap();
                let near = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs() < 1e-6;
                assert!(got[0].iter().zip(&expected).all(near), "{level}, {start}, {mask:?}: {expected:?}");
            }
        }
    }
}
