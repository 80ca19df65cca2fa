//! Plans and calls with something wrong, and the same without.

use super::case::{is_exponential, map};
use crate::Tally;
use crate::call::refused;
use crate::common::cases::{CANARY, levels};
use arbitrary::{Result, Unstructured};
use lucid_attention::linear::{FeatureMap, LinearInputs, LinearOptions, LinearPlan, LogDecay};
use lucid_attention::{Problem, View, ViewMut};

/// What is right, but for now and then.
fn mostly<T: Copy>(input: &mut Unstructured<'_>, right: T, wrong: &[T]) -> Result<T> {
    if input.ratio(1, 8)? { Ok(*input.choose(wrong)?) } else { Ok(right) }
}

pub(super) fn check(input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
    const MAX: usize = usize::MAX;
    let dim = input.int_in_range(1..=5)?;
    let mut map = map(input, dim)?;
    let number = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.125, 1.0];
    match &mut map {
        FeatureMap::Optimal { a, .. } => *a = mostly(input, *a, &number)?,
        FeatureMap::Relu { epsilon, .. } => *epsilon = mostly(input, *epsilon, &number)?,
        _ => {}
    }
    let head_dim = mostly(input, dim, &[dim + 1, 0, MAX, MAX / 4, 1 << 33])?;
    let [kv_heads, group] = [input.int_in_range(0..=2)?, input.int_in_range(1..=2)?];
    let v_dim = input.int_in_range(0..=5)?;
    let v_dim = mostly(input, v_dim, &[MAX, MAX / 2, MAX - 14, 1 << 50])?;
    let lens = [mostly(input, 9, &[MAX, MAX / 2])?, mostly(input, 9, &[MAX, MAX / 2])?];
    let q_heads = mostly(input, kv_heads * group, &[kv_heads * group + 1, MAX])?;
    let problem = Problem { q_heads, kv_heads, head_dim, v_dim, max_q_len: lens[0], max_kv_len: lens[1] };
    let exponential = is_exponential(&map);
    let options = LinearOptions {
        level: None,
        max_threads: Some(mostly(input, 2, &[0, 1])?),
        spread_from_microseconds: None,
        scale: mostly(input, None, &[Some(0.0), Some(-1.0), Some(f32::NAN), Some(f32::INFINITY), Some(0.5)])?,
        normalize: mostly(input, true, &[false])?,
        exact_window: mostly(input, false, &[true])?,
    };
    let of_directions = matches!(
        &map,
        FeatureMap::Positive(_)
            | FeatureMap::Hyperbolic(_)
            | FeatureMap::Optimal { .. }
            | FeatureMap::Relu { projection: Some(_), .. }
    );
    let heads_divide = if kv_heads == 0 { q_heads == 0 } else { q_heads % kv_heads == 0 };
    let product = |sizes: [usize; 3]| {
        let zero = sizes.contains(&0);
        let product = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        zero || product.is_some_and(|size| size <= isize::MAX as usize)
    };
    let widest = head_dim.max(v_dim);
    let rules = [
        ("head_dim", head_dim == 0),
        ("q_heads", !heads_divide),
        ("queries", !product([q_heads, lens[0], widest])),
        ("keys and values", !product([kv_heads, lens[1], widest])),
        ("max_threads", options.max_threads == Some(0)),
        ("projection", of_directions && head_dim != dim),
        ("a", matches!(map, FeatureMap::Optimal { a, .. } if !(a.is_finite() && a < 0.125))),
        (
            "epsilon",
            matches!(map, FeatureMap::Relu { epsilon, .. } if !(epsilon.is_finite() && epsilon >= 0.0)),
        ),
        ("scale", options.scale.is_some_and(|scale| !(scale.is_finite() && scale > 0.0))),
        ("normalize", exponential && !options.normalize),
        ("exact_window", !exponential && options.exact_window),
    ];
    let wrong: Vec<&str> = rules.into_iter().filter(|rule| rule.1).map(|rule| rule.0).collect();
    // Sizes that are right by themselves may be too much together, or for memory.
    let large = head_dim > 100 || v_dim > 100 || lens[1] > 100;
    for level in levels() {
        let options = LinearOptions { level: Some(level), ..options };
        let made = LinearPlan::with_options(&problem, &map, &options);
        if wrong.is_empty() && !large {
            let plan = made.unwrap_or_else(|error| panic!("{error}: {problem:?}, {map:?}, {options:?}"));
            call(input, &plan, &problem, exponential, options.exact_window, tally)?;
        } else if !wrong.is_empty() {
            let error = made.expect_err(&format!("{wrong:?} of {problem:?}, {map:?}, {options:?}"));
            let sizes = if large { &["features", "workspace", "state"][..] } else { &[] };
            refused(&error, &[&wrong, sizes].concat(), tally);
        } else if let Err(error) = made {
            let reasons = ["features", "workspace", "state"];
            let memory = error.to_string().contains("could not allocate");
            assert!(memory || reasons.iter().any(|reason| error.to_string().starts_with(reason)), "{error}");
            tally.refused += 1;
        }
    }
    Ok(())
}

/// A call of the plan; an error leaves the output as it was.
fn call(
    input: &mut Unstructured<'_>,
    plan: &LinearPlan,
    problem: &Problem,
    exponential: bool,
    window: bool,
    tally: &mut Tally,
) -> Result<()> {
    let &Problem { q_heads, kv_heads, head_dim, v_dim, max_q_len, max_kv_len } = problem;
    let batch = input.int_in_range(0..=2)?;
    let kv_len = input.int_in_range(0..=max_kv_len.min(9))?;
    let kv_len = mostly(input, kv_len, &[max_kv_len + 1])?;
    let causal = input.arbitrary()?;
    let other = input.int_in_range(0..=9)?;
    let q_len = if causal { mostly(input, kv_len, &[kv_len + 1])? } else { other };
    let lens_len = mostly(input, batch, &[batch + 1])?;
    let lens: Option<Vec<usize>> = if input.arbitrary()? {
        Some(vec![mostly(input, kv_len / 2, &[kv_len, kv_len + 1])?; lens_len])
    } else {
        None
    };
    let decay = mostly(input, -0.5, &[0.0, 0.5, f32::NAN, f32::NEG_INFINITY])?;
    let per_head = vec![decay; mostly(input, kv_heads, &[kv_heads + 1])?];
    let per_token = vec![decay; batch * kv_heads * kv_len];
    let kind = mostly(input, 0, &[1, 2])?;
    let numbers = vec![0.5f32; batch * q_heads.max(kv_heads) * q_len.max(kv_len) * head_dim.max(v_dim)];
    let view = |[heads, len, dim]: [usize; 3]| {
        let shape = [batch, heads, len, dim];
        View::new(&numbers[..shape.iter().product()], shape).expect("sized to it")
    };
    let mut inputs = LinearInputs::new(
        view([q_heads, q_len, head_dim]),
        view([kv_heads, kv_len, head_dim]),
        view([kv_heads, kv_len, v_dim]),
    );
    inputs = if causal { inputs.causal() } else { inputs };
    inputs = lens.as_ref().map_or(inputs, |lens| inputs.kv_lens(lens));
    inputs = match kind {
        0 => inputs,
        1 => inputs.log_decay(LogDecay::PerHead(&per_head)),
        _ => {
            let shape = [batch, kv_heads, kv_len, 1];
            inputs.log_decay(LogDecay::PerToken(View::new(&per_token, shape).expect("sized to it")))
        }
    };
    let bad = decay.is_nan() || decay > 0.0; // -inf is a gate that is shut
    // Of each sequence only the keys there are count.
    let some_token = lens.as_ref().map_or(batch * kv_len, |lens| lens.iter().sum()) * kv_heads > 0;
    let bad_decay = match kind {
        0 => false,
        1 => bad && !per_head.is_empty() || per_head.len() != kv_heads,
        _ => bad && some_token,
    };
    let bad_lens =
        lens.as_ref().is_some_and(|lens| lens.len() != batch || lens.iter().any(|&len| len > kv_len));
    let rules = [
        ("k", kv_len > max_kv_len),
        ("q", q_len > max_q_len || causal && q_len != kv_len),
        ("kv_lens", bad_lens),
        ("log_decay", bad_decay || kind > 0 && (exponential || !causal)),
        ("exact_window", window && !causal),
    ];
    let wrong: Vec<&str> = rules.into_iter().filter(|rule| rule.1).map(|rule| rule.0).collect();
    let shape = [batch, q_heads, q_len, v_dim];
    let mut out = vec![CANARY; shape.iter().product()];
    let view = ViewMut::new(&mut out, shape).expect("sized to it");
    let result = plan.run(&inputs, view, &mut plan.workspace().expect("memory"));
    match result {
        Ok(()) => {
            assert!(wrong.is_empty(), "{wrong:?} are wrong: {problem:?}, {inputs:?}");
            // Values are all alike: so are outputs, but where there is no key.
            let written = out.iter().all(|x| x.to_bits() != CANARY.to_bits());
            assert!(written, "rows that were not written: {inputs:?}");
            tally.close += out.len() as u64;
        }
        Err(error) => {
            refused(&error, &wrong, tally);
            assert!(out.iter().all(|x| x.to_bits() == CANARY.to_bits()), "written in spite of {error}");
        }
    }
    Ok(())
}
