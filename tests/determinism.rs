//! The same bits, however a call is made: again, on any number of threads, in any company, in any pieces, from any
//! layout, and on any level that fuses multiply-add.

mod common;

use common::cases::*;
use common::guard::announce;
use lucid_attention::{
    Element, Inputs, KeyPanels, Keys, Level, Outputs, Plan, PlanOptions, Problem, QueryStart, ScoreStage,
    View, ViewMut,
};

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
    ];
    let decoding = [
        decode,
        Case { rules: Rules { sinks: true, ..Rules::CAUSAL }, storage: Storage::Panels, ..decode },
        Case { types: TYPES[1], storage: Storage::Panels, ..decode },
        Case { heads: [4, 2], batch: 2, rules: Rules { kv_lens: true, ..Rules::NONE }, ..decode },
        Case { q_len: 7, rules: Rules { left: Some(1500), ..Rules::CAUSAL }, types: TYPES[2], ..decode },
        Case { q_len: 3, rules: Rules { allowed: Some(0.01), ..Rules::NONE }, ..decode },
    ];
    prefill.into_iter().chain(decoding).map(Case::possible).collect()
}

/// Everything a call returns.
fn everything<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>, level: Level, threads: usize) -> Results<Q> {
    run(inputs, &Ask { threads, ..Ask::all(level).scores(ScoreStage::Softmax) })
}

#[track_caller]
fn assert_equal<Q: Element>(got: &Results<Q>, expected: &Results<Q>, what: &str) {
    assert_same(&got.out, &expected.out, &format!("{what}: out"));
    assert_same(&got.lse, &expected.lse, &format!("{what}: lse"));
    assert_same(&got.row_max, &expected.row_max, &format!("{what}: row_max"));
    assert_same(&got.scores, &expected.scores, &format!("{what}: scores"));
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

/// D2, and every way of being called.
#[cfg(feature = "rayon")]
mod threads {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool")
    }

    #[test]
    fn any_number_of_threads() {
        for case in large_cases() {
            let _announced = announce(&case);
            with_types!(case.types, Q, T => {
                let operands = case.operands::<Q, T>(Place::Heap);
                let inputs = operands.inputs();
                for level in levels() {
                    let alone = everything(&inputs, level, 1);
                    for (size, most) in [(1, 8), (2, 2), (3, 3), (3, 8), (8, 2), (8, 8), (2, 100)] {
                        let got = pool(size).install(|| everything(&inputs, level, most));
                        assert_equal(&got, &alone, &format!("{level}, at most {most} in a pool of {size}"));
                    }
                }
            });
        }
    }

    /// The cases above do what they are there for: work side by side, over blocks and over splits of keys.
    #[test]
    fn the_cases_are_large_enough() {
        let split = |case: &Case| {
            let operands = case.operands::<f32, f32>(Place::Heap);
            let inputs = operands.inputs();
            let explanation = pool(4).install(|| {
                let options = PlanOptions { max_threads: Some(4), ..PlanOptions::default() };
                let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
                plan.explain(&inputs).expect("operands that fit")
            });
            assert!(explanation.threads > 1, "{case:?} runs on one thread: {explanation}");
            explanation.splits > 1
        };
        let cases = large_cases();
        let splitting = cases.iter().filter(|case| split(case)).count();
        assert!(splitting >= 5, "only {splitting} cases split their keys");
        assert!(splitting < cases.len(), "all cases split their keys");
    }

    /// Calls side by side, from inside workers, in a pool of one thread or more.
    #[test]
    fn from_inside_workers() {
        let case = large_cases()[0];
        let operands = case.operands::<f32, f32>(Place::Heap);
        let decode = large_cases()[6];
        let decode = decode.operands::<f32, f32>(Place::Heap);
        for level in levels() {
            let alone = [&operands, &decode].map(|operands| everything(&operands.inputs(), level, 1));
            for size in [1, 2, 3] {
                pool(size).install(|| {
                    let call = || {
                        let got = everything(&operands.inputs(), level, 3);
                        assert_equal(&got, &alone[0], &format!("{level}, prefill in a pool of {size}"));
                    };
                    let other = || {
                        let got = everything(&decode.inputs(), level, 3);
                        assert_equal(&got, &alone[1], &format!("{level}, decode in a pool of {size}"));
                    };
                    rayon::join(|| rayon::join(call, other), || rayon::join(other, call));
                });
            }
        }
    }
}

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
        let (q_len, kv_len) = [(40, 40), (33, 290), (100, 70)][index % 3];
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
fn rows_of_each_head<T: Copy>(all: &[T], case: &Case, rows: std::ops::Range<usize>) -> Vec<T> {
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
            let empty = || KeyPanels::with_capacity(2, 2, 19, 230).expect("panels");
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
                    let all = operand.gather();
                    let mut repeated = Vec::new();
                    for_each_index(shape, |[b, h, t, d]| {
                        let head = b * kv_heads + h / (heads[0] / kv_heads);
                        repeated.push(all[(head * tokens + t) * dim + d]);
                    });
                    (repeated, shape)
                });
                let view = "a contiguous operand";
                let keys = View::new(&k.0, k.1).expect(view);
                let inputs = operands.inputs_with(operands.q.view(), keys, View::new(&v.0, v.1).expect(view));
                for level in levels() {
                    let grouped = everything(&operands.inputs(), level, 1);
                    assert_equal(&everything(&inputs, level, 1), &grouped, &format!("{level}, {heads:?}"));
                }
            });
        }
    }
}

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

/// One packed projection in place of three operands.
#[test]
fn packed_projections() {
    let (batch, tokens, dim) = (2, 33, 12);
    let mut rng = Rng::new(5);
    for (q_heads, kv_heads) in [(4, 2), (3, 3)] {
        let data: Vec<f32> =
            (0..batch * tokens * (q_heads + 2 * kv_heads) * dim).map(|_| rng.normal()).collect();
        let mut packed =
            vec![View::split_qkv(&data, batch, tokens, [q_heads, kv_heads], dim).expect("a projection")];
        if q_heads == kv_heads {
            packed
                .push(View::split_interleaved_qkv(&data, batch, tokens, q_heads, dim).expect("a projection"));
        }
        for [q, k, v] in packed {
            let copies = [q, k, v].map(|view| {
                let mut copy = Vec::new();
                for_each_index(view.shape(), |index| copy.push(*view.get(index).expect("an index inside")));
                (copy, view.shape())
            });
            let [q_copy, k_copy, v_copy] =
                [0, 1, 2].map(|part| View::new(&copies[part].0, copies[part].1).expect("a copy"));
            for level in levels() {
                let expected = everything(&Inputs::new(q_copy, k_copy, v_copy), level, 1);
                let got = everything(&Inputs::new(q, k, v), level, 1);
                assert_equal(&got, &expected, &format!("{level}, {:?}", q.strides()));
            }
        }
    }
}

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
                for bytes in (0..64).step_by(size_of::<Q>().max(size_of::<T>())) {
                    for moved in [[true, false, false, false], [false, true, false, false], [false, false, true, false], [false, false, false, true], [true; 4]] {
                        let at = moved.map(|moved| if moved { bytes } else { 0 });
                        let q = Shifted::new(&operands.q.gather(), at[0]);
                        let k = Shifted::new(&operands.k.gather(), at[1]);
                        let v = Shifted::new(&operands.v.gather(), at[2]);
                        let mut out = Shifted::new(&expected, at[3]);
                        out.values_mut().fill(Q::from_f32(f32::NAN));
                        let inputs = operands.inputs_with(q.view(operands.q.shape), k.view(operands.k.shape), v.view(operands.v.shape));
                        let view = ViewMut::new(out.values_mut(), shape).expect("an output");
                        plan.run(&inputs, Outputs::new(view), &mut workspace).expect("operands that fit");
                        assert_same(out.values_mut(), &expected, &format!("{level}, offsets {at:?}"));
                    }
                }
            }
        });
    }
}

/// A copy whose first element lies some bytes after a multiple of 64.
struct Shifted<T> {
    buffer: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Element> Shifted<T> {
    fn new(values: &[T], bytes: usize) -> Self {
        let mut buffer = vec![T::from_f32(f32::NAN); values.len() + 128 / size_of::<T>()];
        let start = (buffer.as_ptr().addr().wrapping_neg() % 64 + bytes) / size_of::<T>();
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
