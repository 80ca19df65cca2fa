//! I4 for biases, at every size: what a bias says of a removed key does not show, whatever removed it.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::poison::Attended;
use crate::with_types;
use lucid_attention::{Element, ScoreStage};

/// Ways to remove keys, and options that see scores too.
const RULES: [Rules; 7] = [
    Rules::CAUSAL,
    Rules { left: Some(20), right: Some(3), start: Some(Start::TopLeft), ..Rules::NONE },
    Rules { allowed: Some(0.5), ..Rules::NONE },
    Rules { allowed: Some(0.99), alibi: true, ..Rules::CAUSAL },
    Rules { kv_lens: true, softcap: Some(2.0), ..Rules::NONE },
    Rules { documents: true, sinks: true, ..Rules::CAUSAL },
    Rules { blocks: true, intervals: true, ..Rules::NONE },
];

/// One call with a bias, clean and full of poison where keys are removed, at all levels.
fn check<Q: Element, T: Element, B: Element>(case: &Case) {
    let operands = case.operands::<Q, T>(Place::Heap);
    let attended = Attended::new(&operands);
    let &Case { batch, heads: [q_heads, kv_heads], q_len, kv_len, .. } = case;
    let (shape, group) = ([batch, q_heads, q_len, kv_len], q_heads / kv_heads);
    let of = |poison: f32| {
        let rng = &mut Rng::new(case.seed);
        Operand::new(shape, contiguous(shape), Place::AtEnd, B::from_f32(f32::NAN), |[b, h, i, j]| {
            let number = rng.normal();
            let row = (b * q_heads + h) * q_len + i;
            B::from_f32(if attended.at(row, [b, h / group, j], group) { number } else { poison })
        })
    };
    let clean = of(0.0);
    for level in levels() {
        let ask = Ask::all(level).scores(ScoreStage::Softmax);
        let expected = run(&operands.inputs().bias(clean.view()), &ask);
        for poison in [f32::NAN, f32::INFINITY, f32::MAX] {
            let dirty = of(poison);
            let got = run(&operands.inputs().bias(dirty.view()), &ask);
            assert_equal(&got, &expected, &format!("{level}, {poison} in a bias of {}", B::DTYPE));
        }
    }
}

#[test]
fn removed_biases_are_never_touched() {
    for (index, rules) in RULES.into_iter().enumerate() {
        for (size, [q_len, kv_len]) in [[1, 300], [9, 40], [14, 530], [70, 70]].into_iter().enumerate() {
            let types = TYPES[(index + size) % TYPES.len()];
            let storage = [Storage::HeadMajor, Storage::Gaps, Storage::Panels][(index + size) % 3];
            let case = Case { seed: (index * 4 + size) as u64, types, rules, storage, ..Case::default() };
            let case =
                Case { batch: 1 + size % 2, heads: [4, 2], q_len, kv_len, v_dim: 18, ..case }.possible();
            let _announced = announce(&case);
            with_types!(types, Q, T => {
                check::<Q, T, f32>(&case);
                check::<Q, T, f16>(&case);
                check::<Q, T, bf16>(&case);
            });
        }
    }
}
