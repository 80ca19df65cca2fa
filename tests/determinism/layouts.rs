//! Operands and results anywhere in memory, in any layout.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::{everything, with_types};
use lucid_attention::{
    Element, Inputs, Mask, Outputs, Plan, PlanOptions, Problem, ScoreStage, View, ViewMut,
};

/// Strides and layouts of operands and results.
#[test]
fn any_layout() {
    for (index, types) in TYPES.into_iter().enumerate() {
        for rules in Rules::FEW {
            let q_len = [1, 6, 40][index % 3];
            let case = Case { types, rules, batch: 2, heads: [4, 2], q_len, kv_len: 40, ..Case::default() };
            let case = Case { head_dim: 17, v_dim: 35, ..case }.possible();
            with_types!(types, Q, T => {
                let operands = case.operands::<Q, T>(Place::Heap);
                for level in levels() {
                    let expected = everything(&operands.inputs(), level, 1);
                    for storage in [Storage::TokenMajor, Storage::Gaps, Storage::Packed, Storage::Panels] {
                        let case = Case { storage, ..case };
                        let _announced = announce(&case);
                        let operands = case.operands::<Q, T>(Place::AtEnd);
                        let ask = Ask { storage, place: Place::AtEnd, ..Ask::all(level) };
                        let ask = ask.scores(ScoreStage::Softmax);
                        let got = run(&operands.inputs(), &ask);
                        assert_equal(&got, &expected, &format!("{level}, {storage:?}"));
                    }
                }
            });
        }
    }
}

/// Which of queries, keys, values and output are moved at a time.
const MOVED: [[bool; 4]; 5] = [
    [true, false, false, false],
    [false, true, false, false],
    [false, false, true, false],
    [false, false, false, true],
    [true; 4],
];

/// Every place of an operand's first element relative to a cache line, and of the output's.
#[test]
fn any_base_offset() {
    for (index, types) in TYPES.into_iter().enumerate() {
        let (q_len, rules) = ([1, 6, 37][index % 3], Rules::FEW[index % 3]);
        let case = Case { types, q_len, head_dim: 21, v_dim: 19, rules, ..Case::default() }.possible();
        let _announced = announce(&case);
        with_types!(types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let shape = operands.inputs().output_shape();
            for level in levels() {
                let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
                let plan = Plan::with_options(&Problem::of(&operands.inputs()), &options).expect("a plan");
                let mut workspace = plan.workspace().expect("memory");
                let expected = run(&operands.inputs(), &Ask::at(level)).out;
                // In elements of each; the larger ones come around again.
                for offset in 0..64 / size_of::<Q>().min(size_of::<T>()) {
                    for moved in MOVED {
                        let at = moved.map(|moved| if moved { offset } else { 0 });
                        let q = Shifted::new(&operands.q.gather(), at[0]);
                        let k = Shifted::new(&operands.k.gather(), at[1]);
                        let v = Shifted::new(&operands.v.gather(), at[2]);
                        let mut out = Shifted::new(&vec![Q::from_f32(f32::NAN); expected.len()], at[3]);
                        let (q, k, v) = (
                            q.view(operands.q.shape),
                            k.view(operands.k.shape),
                            v.view(operands.v.shape),
                        );
                        let inputs = operands.inputs_with(q, k, v);
                        let view = ViewMut::new(out.values_mut(), shape).expect("an output");
                        plan.run(&inputs, Outputs::new(view), &mut workspace).expect("operands that fit");
                        assert_same(out.values_mut(), &expected, &format!("{level}, offsets {at:?}"));
                    }
                }
            }
        });
    }
}

/// A copy whose first element lies some elements after a multiple of 64 bytes.
struct Shifted<T> {
    buffer: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Element> Shifted<T> {
    fn new(values: &[T], elements: usize) -> Self {
        let line = 64 / size_of::<T>();
        let mut buffer = vec![T::from_f32(f32::NAN); values.len() + 2 * line];
        let start = buffer.as_ptr().addr().wrapping_neg() % 64 / size_of::<T>() + elements % line;
        buffer[start..][..values.len()].copy_from_slice(values);
        Self { buffer, start, len: values.len() }
    }

    fn values_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.start..][..self.len]
    }

    fn view(&self, shape: [usize; 4]) -> View<'_, T> {
        View::new(&self.buffer[self.start..][..self.len], shape).expect("a contiguous operand")
    }
}

/// One packed projection in place of three operands, which lie where their layouts say.
#[test]
fn packed_projections() {
    let (batch, tokens, dim) = (2, 33, 12);
    let mut rng = Rng::new(5);
    for [q_heads, kv_heads] in [[4, 2], [3, 3]] {
        let blocks = q_heads + 2 * kv_heads;
        let data: Vec<f32> = (0..batch * tokens * blocks * dim).map(|_| rng.normal()).collect();
        // The three, contiguous; a head's block by its part (queries, keys, values) and its own number.
        let copies = |block: &dyn Fn(usize, usize) -> usize| {
            [(0, q_heads), (1, kv_heads), (2, kv_heads)].map(|(part, heads)| {
                let shape = [batch, heads, tokens, dim];
                Operand::new(shape, contiguous(shape), Place::Heap, f32::NAN, |[b, h, t, d]| {
                    data[((b * tokens + t) * blocks + block(part, h)) * dim + d]
                })
            })
        };
        let compare = |packed: [View<'_, f32>; 3], copies: [Operand<f32>; 3], what: &str| {
            let [q, k, v] = packed;
            for level in levels() {
                let inputs = Inputs::new(copies[0].view(), copies[1].view(), copies[2].view());
                let expected = everything(&inputs, level, 1);
                assert_equal(
                    &everything(&Inputs::new(q, k, v), level, 1),
                    &expected,
                    &format!("{level}, {what}"),
                );
            }
        };
        let packed = View::split_qkv(&data, batch, tokens, [q_heads, kv_heads], dim).expect("a projection");
        let block = |part: usize, head: usize| [0, q_heads, q_heads + kv_heads][part] + head;
        compare(packed, copies(&block), "one after another");
        if q_heads == kv_heads {
            let packed =
                View::split_interleaved_qkv(&data, batch, tokens, q_heads, dim).expect("a projection");
            compare(packed, copies(&|part, head| head * 3 + part), "interleaved");
        }
    }
}

/// Masks and biases whose neighbours lie apart, over more than one tile.
#[test]
fn masks_and_biases_with_steps() {
    let case = Case { q_len: 3, kv_len: 700, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    let mut rng = Rng::new(8);
    let shape = [1, 1, 3, 700];
    let allowed: Vec<bool> = (0..3 * 700).map(|_| rng.chance(0.7)).collect();
    let bias: Vec<f32> = (0..3 * 700).map(|_| rng.normal()).collect();
    for step in [2, 3] {
        let strides = [3 * 700 * step, 3 * 700 * step, 700 * step, step];
        let apart: Vec<bool> = allowed.iter().flat_map(|&x| (0..step).map(move |i| x ^ (i > 0))).collect();
        let bias_apart: Vec<f32> =
            bias.iter().flat_map(|&x| (0..step).map(move |i| if i > 0 { f32::NAN } else { x })).collect();
        let view = |allowed, bias| operands.inputs().mask(Mask::NONE.allowed(allowed)).bias(bias);
        let inputs = view(
            View::with_strides(&apart, shape, strides).expect("a mask"),
            View::with_strides(&bias_apart, shape, strides).expect("a bias"),
        );
        let plain =
            view(View::new(&allowed, shape).expect("a mask"), View::new(&bias, shape).expect("a bias"));
        for level in levels() {
            let expected = everything(&plain, level, 1);
            assert_equal(&everything(&inputs, level, 1), &expected, &format!("{level}, a step of {step}"));
        }
    }
}

/// Grouped query heads give the bits of physically repeated KV heads.
#[test]
fn repeated_heads() {
    for (index, heads) in RATIOS.into_iter().enumerate() {
        let types = TYPES[index % TYPES.len()];
        for rules in Rules::FEW {
            let case =
                Case { types, heads, batch: 2, q_len: 5, kv_len: 80, rules, ..Case::default() }.possible();
            let _announced = announce(&case);
            with_types!(types, Q, T => {
                let operands = case.operands::<Q, T>(Place::Heap);
                let [k, v] = [&operands.k, &operands.v].map(|operand| {
                    let [batch, kv_heads, tokens, dim] = operand.shape;
                    let shape = [batch, heads[0], tokens, dim];
                    let value = |[b, h, t, d]: [usize; 4]| operand.at([b, h / (heads[0] / kv_heads), t, d]);
                    Operand::new(shape, contiguous(shape), Place::Heap, T::from_f32(f32::NAN), value)
                });
                let inputs = operands.inputs_with(operands.q.view(), k.view(), v.view());
                for level in levels() {
                    let grouped = everything(&operands.inputs(), level, 1);
                    assert_equal(&everything(&inputs, level, 1), &grouped, &format!("{level}, {heads:?}"));
                }
            });
        }
    }
}
