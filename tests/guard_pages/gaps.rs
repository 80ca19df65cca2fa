//! Gaps between the rows of outputs stay as they were; attention's own are looked at after every call of the other tests.

use super::numbers;
use crate::common::cases::*;
use crate::common::guard::announce;
use half::{bf16, f16};
use lucid_attention::linear::{FeatureMap, LinearInputs, LinearOptions, LinearPlan, Norms, Projection};
use lucid_attention::{Element, Problem, View, ViewMut, merge};

/// Rows, heads and batches that do not touch, all of it NaN.
fn with_gaps<T: Element>(shape: [usize; 4]) -> Operand<T> {
    let [_, heads, tokens, dim] = shape;
    let (row, head) = (dim + 3, tokens * (dim + 3) + 5);
    filled(shape, [heads * head + 1, head, row, 1], Place::AtEnd, T::from_f32(CANARY))
}

fn view_mut<T>(operand: &mut Operand<T>) -> ViewMut<'_, T> {
    ViewMut::with_strides(&mut operand.data, operand.shape, operand.strides).expect("disjoint elements")
}

fn of_merged<T: Element>() {
    for dim in (1..=40).chain([64, 65]) {
        let shape = [2, 2, 3, dim];
        let _announced = announce(&(T::DTYPE, shape));
        let (own, other) = (numbers::<T>(12 * dim, 1, Place::Heap), numbers::<T>(12 * dim, 2, Place::Heap));
        let lse = numbers::<f32>(12, 3, Place::Heap);
        let mut out = with_gaps::<T>(shape);
        let own = View::new(&own, shape).expect("sized to its shape");
        let strides = out.strides;
        for_each_index(shape, |index| {
            let at: usize = (0..4).map(|axis| index[axis] * strides[axis]).sum();
            out.data[at] = *own.get(index).expect("an index inside");
        });
        let other = View::new(&other, shape).expect("sized to its shape");
        merge(view_mut(&mut out), &mut [0.25; 12], other, &lse).expect("parts that fit");
        assert_gaps(&out, "a merged output");
        let mut dense = own.data().to_vec();
        merge(ViewMut::new(&mut dense, shape).expect("contiguous"), &mut [0.25; 12], other, &lse)
            .expect("parts that fit");
        assert_same(&out.gather(), &dense, &format!("{shape:?}, with gaps"));
    }
}

#[test]
fn of_merged_rows() {
    of_merged::<f32>();
    of_merged::<f16>();
    of_merged::<bf16>();
}

fn of_linear<T: Element>() {
    for level in levels() {
        for v_dim in (1..=40).chain([64, 65]) {
            let _announced = announce(&(level, T::DTYPE, v_dim));
            let map = FeatureMap::Positive(Projection::orthogonal(20, 9, Norms::Chi, 1).expect("memory"));
            let options =
                LinearOptions { level: Some(level), max_threads: Some(1), ..LinearOptions::default() };
            let problem = Problem { kv_heads: 1, v_dim, ..Problem::new(2, 9, 70, 70) };
            let plan = LinearPlan::with_options(&problem, &map, &options).expect("a plan");
            let mut workspace = plan.workspace().expect("memory");
            let (q, k, v) = (
                numbers::<T>(4 * 70 * 9, 1, Place::Heap),
                numbers::<T>(2 * 70 * 9, 2, Place::Heap),
                numbers::<T>(2 * 70 * v_dim, 3, Place::Heap),
            );
            let fits = "sized to its shape";
            let q = View::new(&q, [2, 2, 70, 9]).expect(fits);
            let k = View::new(&k, [2, 1, 70, 9]).expect(fits);
            let v = View::new(&v, [2, 1, 70, v_dim]).expect(fits);
            let inputs = LinearInputs::new(q, k, v).causal();
            let shape = [2, 2, 70, v_dim];
            let mut dense = vec![T::from_f32(CANARY); 4 * 70 * v_dim];
            plan.run(&inputs, ViewMut::new(&mut dense, shape).expect(fits), &mut workspace)
                .expect("operands that fit");
            let what = format!("{level}, {shape:?}, with gaps");
            let mut out = with_gaps::<T>(shape);
            plan.run(&inputs, view_mut(&mut out), &mut workspace).expect("operands that fit");
            assert_gaps(&out, "an output of linear attention");
            assert_same(&out.gather(), &dense, &what);

            let (mut state, mut out) = (plan.state(2).expect("memory"), with_gaps::<T>(shape));
            plan.extend(&inputs, view_mut(&mut out), &mut state, &mut workspace).expect("operands that fit");
            assert_gaps(&out, "an output that extends a state");
            let mut out = with_gaps::<T>(shape);
            plan.attend(q, view_mut(&mut out), &state, &mut workspace).expect("operands that fit");
            assert_gaps(&out, "an output out of a state");
        }
    }
}

#[test]
fn of_linear_attention() {
    of_linear::<f32>();
    of_linear::<f16>();
    of_linear::<bf16>();
}
