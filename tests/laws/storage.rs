//! What storing an operand or a result as something narrow does: one rounding.

use crate::algebra::mapped;
use crate::common::cases::*;
use crate::common::guard::announce;
use crate::{cases, with_types};
use half::{bf16, f16};
use lucid_attention::DType::F32;
use lucid_attention::{Element, Inputs, View};

/// I16: narrow storage changes nothing but the roundings of operands and of the result.
#[test]
fn storage_rounds_once() {
    for case in cases() {
        let _announced = announce(&case);
        let in_f32 = Case { types: [F32, F32], ..case }.operands::<f32, f32>(Place::Heap);
        with_types!(case.types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let q = mapped(&operands.q, |_, x| x.to_f32());
            let [k, v] = [&operands.k, &operands.v].map(|operand| mapped(operand, |_, x| x.to_f32()));
            let inputs = in_f32.inputs_with(q.view(), k.view(), v.view());
            for level in levels() {
                let wide = run(&inputs, &Ask::all(level));
                let narrow = run(&operands.inputs(), &Ask::all(level));
                let rounded: Vec<Q> = wide.out.iter().map(|&x| Q::from_f32(x)).collect();
                assert_same(&narrow.out, &rounded, &format!("{level}: out"));
                assert_same(&narrow.lse, &wide.lse, &format!("{level}: lse"));
            }
        });
    }
}

/// A call whose output is its values as they are stored: one key, of weight 1.
fn stored<Q: Element, T: Element>(values: &[T]) {
    let (q, k) = ([Q::from_f32(1.0)], [T::from_f32(1.0)]);
    let column = [1, 1, 1, 1];
    let v = View::new(values, [1, 1, 1, values.len()]).expect("a row");
    let (q, k) = (View::new(&q, column).expect("a query"), View::new(&k, column).expect("a key"));
    // Sums start from +0.
    let expected: Vec<Q> = values.iter().map(|x| Q::from_f32(x.to_f32() + 0.0)).collect();
    for level in levels() {
        let got = run(&Inputs::new(q, k, v), &Ask::at(level)).out;
        assert_same(&got, &expected, &format!("{level}, {} as {}", T::DTYPE, Q::DTYPE));
    }
}

/// I16, number by number: what is loaded is exact, what is stored the nearest, ties to even, NaN still NaN.
#[test]
fn every_kind_of_number() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    stored::<f32, f16>(&all.iter().map(|&bits| f16::from_bits(bits)).collect::<Vec<_>>());
    stored::<f32, bf16>(&all.iter().map(|&bits| bf16::from_bits(bits)).collect::<Vec<_>>());
    // An odd stride meets every exponent; half of a unit more or less, ties; and NaN of every payload's ends.
    let strided = (0..=u32::MAX).step_by(4099);
    let ties = all.iter().flat_map(|&high| {
        [0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| u32::from(high) << 16 | low)
    });
    let numbers: Vec<f32> = strided.chain(ties).map(f32::from_bits).collect();
    stored::<f16, f32>(&numbers);
    stored::<bf16, f32>(&numbers);
}
