//! The same bits, however a call is made: again, on any number of threads, in any company, in any pieces, from any
//! layout, and on any level that fuses multiply-add.

#[path = "../common/mod.rs"]
mod common;

#[cfg(feature = "rayon")]
mod callers;
mod layouts;
mod pieces;
#[cfg(feature = "rayon")]
mod repeats;
#[cfg(feature = "rayon")]
mod threads;

use common::cases::*;
use common::guard::announce;
use lucid_attention::{Element, Inputs, Level, ScoreStage};

/// Calls that are large enough to be spread over threads, in every way there is.
fn large_cases() -> Vec<Case> {
    let base = Case { heads: [4, 2], q_len: 200, kv_len: 330, head_dim: 40, v_dim: 48, ..Case::default() };
    let decode = Case { heads: [2, 1], q_len: 1, kv_len: 5000, head_dim: 64, v_dim: 64, ..base };
    let prefill = [
        base,
        Case { rules: Rules::CAUSAL, types: TYPES[1], ..base },
        Case { rules: Rules { ragged: true, ..Rules::CAUSAL }, types: TYPES[2], q_len: 500, ..base },
        Case { rules: Rules { allowed: Some(0.5), ..Rules::NONE }, types: TYPES[3], ..base },
        Case { rules: Rules { alibi: true, sinks: true, ..Rules::CAUSAL }, storage: Storage::Panels, ..base },
        Case { rules: Rules::CAUSAL, types: TYPES[1], storage: Storage::Panels, ..base },
        Case { seed: 32, rules: Rules { blocks: true, ..Rules::NONE }, q_len: 330, ..base },
        Case {
            seed: 35,
            rules: Rules { blocks: true, ..Rules::CAUSAL },
            types: TYPES[1],
            storage: Storage::Panels,
            ..base
        },
    ];
    let decoding = [
        decode,
        Case { rules: Rules { sinks: true, ..Rules::CAUSAL }, storage: Storage::Panels, ..decode },
        Case { types: TYPES[1], storage: Storage::Panels, ..decode },
        Case { heads: [4, 2], batch: 2, rules: Rules { kv_lens: true, ..Rules::NONE }, ..decode },
        Case { q_len: 7, rules: Rules { left: Some(1500), ..Rules::CAUSAL }, types: TYPES[2], ..decode },
        Case { q_len: 3, rules: Rules { allowed: Some(0.01), ..Rules::NONE }, ..decode },
        // One unit whose rows stay together on several threads, which share its splits.
        Case { heads: [4, 1], q_len: 12, rules: Rules::CAUSAL, ..decode },
    ];
    prefill.into_iter().chain(decoding).map(Case::possible).collect()
}

/// Everything a call returns.
fn everything<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>, level: Level, threads: usize) -> Results<Q> {
    run(inputs, &Ask { threads, ..Ask::all(level).scores(ScoreStage::Softmax) })
}

/// D1.
#[test]
fn again() {
    for case in large_cases() {
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let inputs = operands.inputs();
            for level in levels() {
                let first = everything(&inputs, level, 4);
                for _ in 0..4 {
                    assert_equal(&everything(&inputs, level, 4), &first, &format!("{level}, again"));
                }
            }
        });
    }
}

/// D5, beyond the sizes that the model is held against.
#[test]
fn any_fused_level() {
    let fused: Vec<Level> = levels().into_iter().filter(|level| level.is_fused()).collect();
    let mut cases = large_cases();
    cases.extend((0..2000).map(|seed| Case::random(seed + 1_000_000)));
    for case in cases {
        let _announced = announce(&case);
        with_types!(case.types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let results: Vec<_> =
                fused.iter().map(|&level| everything(&operands.inputs(), level, 2)).collect();
            for (level, got) in fused.iter().zip(&results) {
                assert_equal(got, &results[0], &format!("{level} against {}", fused[0]));
            }
        });
    }
}
