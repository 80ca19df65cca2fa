//! I18: what a workspace was made for, and did before, does not show.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::{cases, with_types};
use lucid_attention::{
    Element, Inputs, Level, Outputs, Plan, PlanOptions, Problem, View, ViewMut, Workspace,
};

/// At least what all calls need, of everything.
const LARGE: Problem =
    Problem { q_heads: 4, kv_heads: 2, head_dim: 37, v_dim: 50, max_q_len: 110, max_kv_len: 3000 };

fn plan(level: Level, bf16_dot: bool, problem: &Problem) -> Plan {
    let options =
        PlanOptions { level: Some(level), max_threads: Some(2), bf16_dot, ..PlanOptions::default() };
    Plan::with_options(problem, &options).expect("a plan")
}

/// The output of a call in this workspace.
fn run_in<Q: Element, T: Element>(
    workspace: &mut Workspace,
    plan: &Plan,
    inputs: &Inputs<'_, Q, T>,
) -> Vec<Q> {
    let shape = inputs.output_shape();
    let mut out = vec![Q::from_f32(0.0); shape.iter().product()];
    let view = ViewMut::new(&mut out, shape).expect("an output");
    plan.run(inputs, Outputs::new(view), workspace).expect("operands that fit");
    out
}

/// Makes the call of every case, with its own plan or the large one, in a workspace of the plan for `large`, after calls
/// of that plan that leave NaN all over it: one with many queries, one with many keys.
fn after_calls_of_nan(large: Problem, own_plan: bool) {
    let Problem { head_dim, v_dim, max_q_len, max_kv_len, .. } = large;
    let like = Case { heads: [4, 2], head_dim, v_dim, ..Case::default() };
    let sizes = [(max_q_len, 400), (1, max_kv_len)];
    let nan = sizes.map(|(q_len, kv_len)| Case { q_len, kv_len, ..like }.operands::<f32, f32>(Place::Heap));
    let bias = [f32::NAN];
    let bias = View::new(&bias, [1; 4]).expect("a bias");
    // Several splits of keys.
    let decode = Case { heads: [4, 2], q_len: 1, kv_len: 2500, head_dim: 11, v_dim: 18, ..Case::default() };
    // Several blocks of rows, which share what is packed.
    let blocks = Case { heads: [4, 2], q_len: 60, kv_len: 333, head_dim: 11, v_dim: 18, ..Case::default() };
    for (level, bf16_dot) in tiers() {
        let large = plan(level, bf16_dot, &large);
        let mut workspace = large.workspace().expect("memory");
        for case in cases().chain([decode, blocks]) {
            let _announced = announce(&case);
            for operands in &nan {
                let out = run_in(&mut workspace, &large, &operands.inputs().bias(bias));
                assert!(out.iter().all(|x| x.is_nan()), "{level}: a call full of NaN");
            }
            with_types!(case.types, Q, T => {
                let operands = case.operands::<Q, T>(Place::Heap);
                let inputs = operands.inputs();
                let own = plan(level, bf16_dot, &Problem::of(&inputs));
                let got = run_in(&mut workspace, if own_plan { &own } else { &large }, &inputs);
                let expected = run(&inputs, &Ask { bf16_dot, ..Ask::at(level) }).out;
                assert_same(&got, &expected, &format!("{level}, bf16 {bf16_dot}: after calls full of NaN"));
            });
        }
    }
}

#[test]
fn used_before() {
    after_calls_of_nan(Problem { head_dim: 11, v_dim: 18, ..LARGE }, false);
}

#[test]
fn made_for_a_larger_plan() {
    after_calls_of_nan(LARGE, true);
}

/// Keys of another call with the same head: nothing packed for one serves the other.
#[test]
fn used_for_other_keys() {
    let like = Case { heads: [2, 1], q_len: 60, kv_len: 333, v_dim: 40, ..Case::default() };
    let cases = [1, 2].map(|seed| Case { seed, ..like }.possible());
    let calls = cases.map(|case| case.operands::<f32, f32>(Place::Heap));
    for (level, bf16_dot) in tiers() {
        let plan = plan(level, bf16_dot, &Problem::of(&calls[0].inputs()));
        let mut workspace = plan.workspace().expect("memory");
        for operands in &calls {
            let got = run_in(&mut workspace, &plan, &operands.inputs());
            let expected = run(&operands.inputs(), &Ask { bf16_dot, ..Ask::at(level) }).out;
            assert_same(&got, &expected, &format!("{level}, bf16 {bf16_dot}"));
        }
    }
}
