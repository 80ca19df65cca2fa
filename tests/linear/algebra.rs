//! L1: every form is the same sum, weights sum to 1, rows are means.

use super::case::{Case, Decay, Operands};
use super::definition::{definition, maps};
use super::{difference, levels};
use half::{bf16, f16};
use lucid_attention::linear::{FeatureMap, LinearInputs, LinearPlan, LinearState, LogDecay};
use lucid_attention::{Element, View, ViewMut};
use std::ops::Range;

/// Where some tokens of a contiguous operand start, their shape and strides.
fn part([batch, heads, len, dim]: [usize; 4], tokens: &Range<usize>) -> (usize, [usize; 4], [usize; 4]) {
    let strides = [heads * len * dim, len * dim, dim, 1];
    (tokens.start * dim, [batch, heads, tokens.len(), dim], strides)
}

fn view<'a>(data: &'a [f32], shape: [usize; 4], tokens: &Range<usize>) -> View<'a, f32> {
    let (start, shape, strides) = part(shape, tokens);
    View::with_strides(&data[start..], shape, strides).expect("a part")
}

/// A causal call in pieces, each continuing the state of those before.
pub(crate) fn in_pieces(
    case: &Case,
    plan: &LinearPlan,
    operands: &Operands<f32>,
    pieces: &[Range<usize>],
) -> (Vec<f32>, LinearState) {
    let mut state = plan.state(case.batch).expect("memory");
    let mut workspace = plan.workspace().expect("memory");
    let mut out = vec![f32::NAN; case.out_shape().iter().product()];
    for tokens in pieces {
        let q = view(&operands.q, case.q_shape(), tokens);
        let k = view(&operands.k, case.k_shape(), tokens);
        let v = view(&operands.v, case.v_shape(), tokens);
        let decays = view(&operands.per_token, [case.batch, case.heads[1], case.kv_len, 1], tokens);
        let inputs = LinearInputs::new(q, k, v).causal();
        let inputs = match case.decay {
            None => inputs,
            Some(Decay::PerHead) => inputs.log_decay(LogDecay::PerHead(&operands.per_head)),
            Some(Decay::PerToken) => inputs.log_decay(LogDecay::PerToken(decays)),
        };
        let (start, shape, strides) = part(case.out_shape(), tokens);
        let target = ViewMut::with_strides(&mut out[start..], shape, strides).expect("a part");
        plan.extend(&inputs, target, &mut state, &mut workspace).expect("a call that fits");
    }
    (out, state)
}

/// Token by token.
pub(crate) fn singly(len: usize) -> Vec<Range<usize>> {
    (0..len).map(|t| t..t + 1).collect()
}

/// In blocks, token by token, in odd pieces: the same, and the definition.
#[test]
fn blocks_and_recurrence_are_the_definition() {
    for (index, map) in maps(12, 30).into_iter().enumerate() {
        let case = Case { seed: index as u64, batch: 2, heads: [4, 2], head_dim: 12, map, ..Case::default() };
        let case = Case { causal: true, q_len: 150, kv_len: 150, ..case };
        let operands = case.operands::<f32>();
        let expected = definition(&case, &operands);
        for level in levels() {
            let plan = case.plan(level);
            let odd = [0..1, 1..65, 65..66, 66..129, 129..150];
            for pieces in [std::iter::once(0..150).collect(), singly(150), odd.to_vec()] {
                let (out, _) = in_pieces(&case, &plan, &operands, &pieces);
                let off = difference(&out, &expected);
                assert!(off <= 2e-5, "{level}, {} pieces: off by {off}, {case:?}", pieces.len());
            }
        }
    }
}

/// Values of 1 give 1, whatever the weights: within 1e-6, and in the narrow types, whose units are larger, exactly.
#[test]
fn weights_sum_to_one() {
    sums_to_one::<f32>(1e-6);
    sums_to_one::<f16>(0.0);
    sums_to_one::<bf16>(0.0);
}

fn sums_to_one<T: Element>(limit: f64) {
    for map in maps(16, 64) {
        for causal in [false, true] {
            let case =
                Case { q_len: 2000, kv_len: 2000, v_dim: 3, causal, map: map.clone(), ..Case::default() };
            let mut operands = case.operands::<T>();
            operands.v.fill(T::from_f32(1.0));
            for level in levels() {
                let out: Vec<f32> = case.run(level, &operands).iter().map(|x| x.to_f32()).collect();
                let off = difference(&out, &vec![1.0; 6000]);
                assert!(off <= limit, "{level}, {}: off by {off}, {case:?}", T::DTYPE);
            }
        }
    }
}

/// Rows of maps that are nowhere negative lie between the smallest and the largest value of a column.
#[test]
fn rows_are_means() {
    are_means::<f32>();
    are_means::<f16>();
    are_means::<bf16>();
}

fn are_means<T: Element>() {
    let positive = |map: &FeatureMap| !matches!(map, FeatureMap::Custom(_) | FeatureMap::Taylor);
    let cases = maps(16, 24).into_iter().filter(positive).flat_map(|map| {
        [(0.3, false), (3.0, false), (30.0, false), (3.0, true)].map(|(sigma, causal)| Case {
            sigma,
            causal,
            q_len: 200,
            kv_len: 200,
            map: map.clone(),
            ..Case::default()
        })
    });
    for case in cases {
        let operands = case.operands::<T>();
        for level in levels() {
            let out = case.run(level, &operands);
            for column in 0..case.v_dim {
                let of =
                    |list: &[T]| list.iter().skip(column).step_by(case.v_dim).map(|x| x.to_f32()).collect();
                let (values, outputs): (Vec<f32>, Vec<f32>) = (of(&operands.v), of(&out));
                let low = values.iter().copied().fold(f32::INFINITY, f32::min) - 1e-5;
                let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max) + 1e-5;
                assert!(outputs.iter().all(|x| (low..=high).contains(x)), "{level}, {case:?}");
            }
        }
    }
}

/// Where keys are all the same, so are weights: the mean of the values, however large the feature's variance.
#[test]
fn equal_keys_give_the_mean() {
    for map in maps(16, 24) {
        let case = Case { kv_len: 300, map, sigma: 1.0, ..Case::default() };
        let mut operands = case.operands::<f32>();
        let key = operands.k[..16].to_vec();
        operands.k.chunks_exact_mut(16).for_each(|row| row.copy_from_slice(&key));
        let mean = |column: usize| {
            operands.v.iter().skip(column).step_by(case.v_dim).map(|&x| f64::from(x)).sum::<f64>() / 300.0
        };
        let row: Vec<f64> = (0..case.v_dim).map(mean).collect();
        let expected: Vec<f64> = row.iter().copied().cycle().take(case.q_len * case.v_dim).collect();
        for level in levels() {
            let off = difference(&case.run(level, &operands), &expected);
            assert!(off <= 2e-5, "{level}: off by {off}, {case:?}");
        }
    }
}

/// A large offset of all values is an offset of all rows.
#[test]
fn offsets_of_values() {
    let mut case = Case { q_len: 300, kv_len: 300, ..Case::default() };
    for causal in [false, true] {
        case.causal = causal;
        let mut operands = case.operands::<f32>();
        operands.v.iter_mut().for_each(|x| *x += 1e6);
        let expected = definition(&case, &operands);
        for level in levels() {
            let off = difference(&case.run(level, &operands), &expected);
            assert!(off <= 1e6 * 2e-6, "{level}: off by {off}");
        }
    }
}
