//! D3 and D4: sequences in any company, prefills in any pieces, keys appended in any.

use crate::common::cases::*;
use crate::common::guard::announce;
use crate::{everything, with_types};
use lucid_attention::{Element, Inputs, KeyPanels, Keys, Level, QueryStart, View};
use std::ops::Range;

/// D3: a sequence alone, and in any order among any others.
#[test]
fn any_company() {
    let rules =
        Rules { causal: true, kv_lens: true, sinks: true, start: Some(Start::PerSequence), ..Rules::NONE };
    for (types, rules) in TYPES.into_iter().flat_map(|types| [Rules::NONE, rules].map(|rules| (types, rules)))
    {
        let case = Case {
            types,
            rules,
            batch: 4,
            heads: [6, 2],
            q_len: 9,
            kv_len: 90,
            head_dim: 20,
            v_dim: 18,
            ..Case::default()
        };
        let _announced = announce(&case);
        with_types!(types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            let inputs = operands.inputs();
            for level in levels() {
                let together = everything(&inputs, level, 1);
                for order in [[0, 1, 2, 3], [3, 1, 0, 2], [2, 2, 2, 2], [1, 0, 1, 3]] {
                    for count in 1..=4 {
                        let got = everything_of(&operands, &order[..count], level);
                        let expected = Results {
                            out: pick(&together.out, &order[..count], 4),
                            lse: pick(&together.lse, &order[..count], 4),
                            row_max: pick(&together.row_max, &order[..count], 4),
                            scores: pick(&together.scores, &order[..count], 4),
                        };
                        assert_equal(&got, &expected, &format!("{level}, sequences {:?}", &order[..count]));
                    }
                }
            }
        });
    }
}

/// Some entries of a batch of `batch`, joined.
fn pick<T: Copy>(all: &[T], order: &[usize], batch: usize) -> Vec<T> {
    let size = all.len() / batch;
    order.iter().flat_map(|&b| all[b * size..][..size].iter().copied()).collect()
}

/// A call of some of a batch's sequences.
fn everything_of<Q: Element, T: Element>(
    operands: &Operands<Q, T>,
    order: &[usize],
    level: Level,
) -> Results<Q> {
    let batch = operands.q.shape[0];
    let shape = |[_, h, t, d]: [usize; 4]| [order.len(), h, t, d];
    let (q, k, v) = (
        pick(&operands.q.gather(), order, batch),
        pick(&operands.k.gather(), order, batch),
        pick(&operands.v.gather(), order, batch),
    );
    let view = "a contiguous operand";
    let mut inputs = Inputs::new(
        View::new(&q, shape(operands.q.shape)).expect(view),
        View::new(&k, shape(operands.k.shape)).expect(view),
        View::new(&v, shape(operands.v.shape)).expect(view),
    );
    let (starts, lens) = (pick(&operands.starts, order, batch), pick(&operands.kv_lens, order, batch));
    let mask = operands.mask_with(&lens, operands.allowed.as_ref().map(Operand::view));
    if operands.rules.start.is_some() {
        inputs = inputs.q_start(QueryStart::PerSequence(&starts));
    }
    everything(&operands.options(inputs).mask(mask), level, 1)
}

/// D4: a row of a prefill, alone, as one query against panels, and in chunks of any size.
#[test]
fn any_pieces() {
    let causal = Rules { start: Some(Start::TopLeft), ..Rules::CAUSAL };
    let rules = [
        Rules::NONE,
        causal,
        Rules { left: Some(30), right: Some(2), start: Some(Start::BottomRight), ..Rules::NONE },
        Rules { last_n: Some(11), sinks: true, start: Some(Start::At(70)), ..Rules::NONE },
        Rules { alibi: true, softcap: Some(3.0), ..causal },
        Rules { bias: Some(TYPES[1][0]), ..causal },
        Rules { allowed: Some(0.5), documents: true, ..causal },
        Rules { prefix: true, kv_lens: true, scale: Some(0.3), ..causal },
    ];
    for (index, (types, rules)) in
        TYPES.into_iter().flat_map(|types| rules.map(|rules| (types, rules))).enumerate()
    {
        let (q_len, kv_len) = [(40, 40), (33, 290), (100, 250)][index % 3];
        let heads = [[1, 1], [2, 1], [6, 2]][index % 3];
        let case = Case { types, rules, heads, q_len, kv_len, head_dim: 24, v_dim: 20, ..Case::default() };
        let case = case.possible();
        let _announced = announce(&case);
        with_types!(types, Q, T => in_pieces::<Q, T>(&case));
    }
}

fn in_pieces<Q: Element, T: Element>(case: &Case) {
    let operands = case.operands::<Q, T>(Place::Heap);
    let panels = KeyPanels::from_rows(operands.k.view(), case.kv_len + 100).expect("panels of these keys");
    let sources = [Keys::Rows(operands.k.view()), Keys::Panels(&panels)];
    for level in levels() {
        let whole = run(&operands.inputs(), &Ask::all(level));
        for (source, size) in
            sources.into_iter().flat_map(|keys| [1, 2, 5, 6, 7, 13, 16, 64].map(|n| (keys, n)))
        {
            for first in (0..case.q_len).step_by(size) {
                let queries = first..case.q_len.min(first + size);
                let got = run(&operands.inputs_of(queries.clone(), source), &Ask::all(level));
                let rows = |all: &[Q]| rows_of_each_head(all, case, queries.clone());
                let numbers = |all: &[f32]| rows_of_each_head(all, case, queries.clone());
                let what = format!("{level}, queries {queries:?} of {}", case.q_len);
                assert_same(&got.out, &rows(&whole.out), &format!("{what}: out"));
                assert_same(&got.lse, &numbers(&whole.lse), &format!("{what}: lse"));
                assert_same(&got.row_max, &numbers(&whole.row_max), &format!("{what}: row_max"));
            }
        }
    }
}

/// Rows of `[1, q_heads, q_len, ..]`.
fn rows_of_each_head<T: Copy>(all: &[T], case: &Case, rows: Range<usize>) -> Vec<T> {
    let size = all.len() / case.heads[0] / case.q_len;
    let heads = all.chunks(size * case.q_len);
    heads.flat_map(|head| &head[rows.start * size..rows.end * size]).copied().collect()
}

/// D4 with a cache that grows: a causal prefill in chunks sees only the keys that are there yet.
#[test]
fn a_growing_cache() {
    for (index, types) in TYPES.into_iter().enumerate() {
        let rules = Rules { start: Some(Start::TopLeft), sinks: index % 2 == 0, ..Rules::CAUSAL };
        let case =
            Case { types, rules, heads: [4, 2], q_len: 150, kv_len: 150, head_dim: 20, ..Case::default() };
        let _announced = announce(&case);
        with_types!(types, Q, T => {
            let operands = case.operands::<Q, T>(Place::Heap);
            for (level, size) in levels().into_iter().flat_map(|level| [1, 7, 64, 100].map(|size| (level, size))) {
                let whole = run(&operands.inputs(), &Ask::all(level));
                let mut panels = KeyPanels::with_capacity(1, 2, 20, 150).expect("panels");
                for first in (0..150).step_by(size) {
                    let queries = first..150.min(first + size);
                    panels.append(slice(&operands.k, queries.clone())).expect("room");
                    let rows = slice(&operands.k, 0..queries.end);
                    for keys in [Keys::Rows(rows), Keys::Panels(&panels)] {
                        let got = run(&operands.inputs_of(queries.clone(), keys), &Ask::all(level));
                        let what = format!("{level}, queries {queries:?}");
                        let expected = rows_of_each_head(&whole.out, &case, queries.clone());
                        assert_same(&got.out, &expected, &format!("{what}: out"));
                        let expected = rows_of_each_head(&whole.lse, &case, queries.clone());
                        assert_same(&got.lse, &expected, &format!("{what}: lse"));
                    }
                }
            }
        });
    }
}

/// Panels give the bits of the rows they were made of, however they came to be.
#[test]
fn any_history_of_panels() {
    for (index, types) in TYPES.into_iter().enumerate() {
        let heads = [6, 2];
        let case = Case { types, batch: 2, heads, kv_len: 200, head_dim: 19, v_dim: 21, ..Case::default() };
        let q_len = [1, 7, 50][index % 3];
        let case = Case { q_len, rules: Rules::FEW[index % 6], ..case }.possible();
        let _announced = announce(&case);
        with_types!(types, Q, T => {
            let mut operands = case.operands::<Q, T>(Place::Heap);
            let empty = || KeyPanels::with_capacity(2, 2, 19, 330).expect("panels");
            let mut histories = vec![KeyPanels::from_rows(operands.k.view(), 0).expect("panels")];
            for piece in [1, 3, 63, 64, 65, 199] {
                let mut panels = empty();
                for first in (0..200).step_by(piece) {
                    panels.append(slice(&operands.k, first..200.min(first + piece))).expect("room");
                }
                histories.push(panels);
            }
            for kept in [0, 1, 63, 64, 65, 130] {
                let mut panels = empty();
                panels.append(slice(&operands.k, 0..kept)).expect("room");
                let stale = vec![T::from_f32(f32::NAN); 2 * 2 * 100 * 19];
                panels.append(View::new(&stale, [2, 2, 100, 19]).expect("a view")).expect("room");
                panels.truncate(kept);
                panels.append(slice(&operands.k, kept..200)).expect("room");
                histories.push(panels);
            }
            for level in levels() {
                operands.panels = None;
                let rows = everything(&operands.inputs(), level, 1);
                for (history, panels) in histories.iter_mut().enumerate() {
                    let spare = KeyPanels::with_capacity(0, 0, 1, 0).expect("panels");
                    operands.panels = Some(std::mem::replace(panels, spare));
                    let got = everything(&operands.inputs(), level, 1);
                    assert_equal(&got, &rows, &format!("{level}, history {history}"));
                    *panels = operands.panels.take().expect("just put there");
                }
            }
        });
    }
}
