//! Dropout: the mask's statistics, that it is the same however the call is made, and what it does to the output.

#[path = "common/mod.rs"]
mod common;

use common::cases::*;
use common::guard::announce;
use lucid_attention::certify::{self, Bound};
use lucid_attention::{
    AttentionError, Cell, Dropout, Element, Inputs, Mask, Metrics, MetricsOptions, Outputs, Plan, Problem,
    ScoreStage, View, ViewMut, attention, reference,
};

fn keeps(dropout: Dropout, [sequence, q_head, q, k_pos]: [usize; 4]) -> bool {
    dropout.keeps(Cell { sequence, q_head, query: q, q_pos: q as i64, k_pos })
}

/// Cells of a call of this shape.
fn cells(shape: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    (0..shape.iter().product()).map(move |mut index| {
        let mut cell = [0; 4];
        for axis in (0..4).rev() {
            cell[axis] = index % shape[axis];
            index /= shape[axis];
        }
        cell
    })
}

/// Shares within 5 sigma: of all cells, and of neighbours along each axis and with the next seed that share a fate.
#[test]
fn statistics() {
    let shape = [3, 4, 60, 500];
    let count = shape.iter().product::<usize>() as f64;
    for (seed, rate) in [(1, 0.1f32), (2, 0.5), (3, 0.9), (u64::MAX, 0.25)] {
        let dropout = Dropout { rate, seed };
        let p = 1.0 - f64::from(rate);
        let check = |what: &str, p: f64, variance: f64, holds: &dyn Fn([usize; 4]) -> bool| {
            let share = cells(shape).filter(|&cell| holds(cell)).count() as f64 / count;
            let sigma = (variance / count).sqrt();
            assert!(
                (share - p).abs() <= 5.0 * sigma,
                "{dropout:?}: {what}: {share}, expected {p} within {sigma}"
            );
        };
        check("kept", p, p * (1.0 - p), &|cell| keeps(dropout, cell));
        // Of a product of two; where each is part of two products, those are correlated.
        let apart = p * p * (1.0 - p * p);
        let chained = apart + 2.0 * p.powi(3) * (1.0 - p);
        for axis in 0..4 {
            let next = |mut cell: [usize; 4]| {
                cell[axis] += 1;
                cell
            };
            let both = |cell| keeps(dropout, cell) && keeps(dropout, next(cell));
            check(&format!("kept with the next along axis {axis}"), p * p, chained, &both);
        }
        let other = Dropout { seed: seed.wrapping_add(1), ..dropout };
        check("kept with the next seed", p * p, apart, &|cell| keeps(dropout, cell) && keeps(other, cell));
        let high = Dropout { seed: seed ^ 1 << 32, ..dropout };
        check("kept with another high half", p * p, apart, &|cell| keeps(dropout, cell) && keeps(high, cell));
    }
}

/// Values that are unit vectors read the weights off: what is dropped is exactly 0, the rest is scaled, in every tier, for
/// every mask of [`Rules::FEW`].
#[test]
fn weights_are_dropped_and_scaled() {
    let (mut kept, mut dropped) = (0, 0);
    for (seed, rules) in Rules::FEW.into_iter().enumerate() {
        let kv_len = 300;
        let case =
            Case { seed: seed as u64, batch: 2, heads: [4, 2], q_len: 9, kv_len, rules, ..Case::default() };
        let case = Case { v_dim: kv_len, ..case }.possible();
        let operands = case.operands::<f32, f32>(Place::Heap);
        let unit: Vec<f32> =
            (0..kv_len * kv_len).map(|i| f32::from(u8::from(i / kv_len == i % kv_len))).collect();
        let v = View::with_strides(&unit, [2, 2, kv_len, kv_len], [0, 0, kv_len, 1]).expect("unit vectors");
        let plain = operands.inputs_with(operands.q.view(), operands.k.view(), v);
        let dropout = Dropout { rate: 0.3, seed: 99 };
        for (level, bf16_dot) in tiers() {
            let ask = Ask { bf16_dot, ..Ask::all(level).scores(ScoreStage::Softmax) };
            let got = run(&plain.dropout(dropout), &ask);
            let without = run(&plain, &ask);
            assert_same(&got.lse, &without.lse, &format!("{level}: LSE"));
            assert_same(&got.row_max, &without.row_max, &format!("{level}: row_max"));
            assert_same(&got.scores, &without.scores, &format!("{level}: probabilities"));
            // Relative, and what is lost below normal numbers: a few of their spacings, or all of them.
            let (tolerance, lost) =
                if bf16_dot { (2f32.powi(-7), 2.0 * f32::MIN_POSITIVE) } else { (1e-6, 5e-45) };
            reference::for_each_row(&plain.dropout(dropout), |row| {
                let [b, h, i] = row.index;
                let at = ((b * 4 + h) * 9 + i) * kv_len;
                for (key, score) in row.scores.iter().enumerate() {
                    let (weight, p) = (got.out[at + key], without.scores[at + key]);
                    if !score.attended || score.dropout == 0.0 {
                        assert_eq!(weight, 0.0, "{level}: {:?}, key {key} is dropped or removed", row.index);
                        dropped += usize::from(score.attended);
                    } else {
                        let want = p / 0.7;
                        assert!(
                            (weight - want).abs() <= tolerance * want + lost,
                            "{level}: {weight} and {want}"
                        );
                        kept += 1;
                    }
                }
            })
            .expect("operands that fit");
        }
    }
    let share = dropped as f64 / (kept + dropped) as f64;
    assert!(kept > 10_000 && (share - 0.3).abs() < 0.01, "{share} of {} dropped", kept + dropped);
}

/// Against the reference, which asks [`Dropout::keeps`], for every option, in all types and layouts.
#[test]
fn values() {
    for (index, option) in Rules::OPTIONS.into_iter().enumerate() {
        for (at, (q_len, kv_len)) in [(7, 90), (30, 30), (1, 1500), (1, 40)].into_iter().enumerate() {
            let (types, storage) =
                (TYPES[(index + at) % TYPES.len()], STORAGES[(index + 2 * at) % STORAGES.len()]);
            let mut case = Case { types, storage, heads: [4, 2], q_len, kv_len, batch: 2, ..Case::default() };
            option(&mut case.rules);
            let case = Case { seed: index as u64, ..case }.possible();
            let _announced = announce(&case);
            with_types!(case.types, Q, T => {
                let operands = case.operands::<Q, T>(Place::AtEnd);
                check(&operands.inputs().dropout(Dropout { rate: 0.4, seed: 5 + index as u64 }));
            });
        }
    }
}

fn check<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>) {
    for level in levels() {
        let got = run(inputs, &Ask::all(level));
        let out = View::new(&got.out, inputs.output_shape()).expect("contiguous");
        let certificate = certify::check(inputs, &out, Some(&got.lse), &Bound::exact(level));
        certificate.expect("operands that fit").verdict().unwrap_or_else(|wrong| panic!("{level}: {wrong}"));
    }
}

/// The same bits on any number of threads, at every fused level, from a mask of its own in each place of the batch, and in
/// chunks.
#[test]
fn the_same_mask_however_called() {
    let rows = Case { heads: [4, 2], q_len: 200, kv_len: 330, head_dim: 40, v_dim: 48, ..Case::default() };
    let keys = Case { heads: [2, 1], q_len: 2, kv_len: 6000, head_dim: 64, v_dim: 64, ..rows };
    let dropout = Dropout { rate: 0.2, seed: 1 << 40 };
    for case in [Case { batch: 2, ..rows }, Case { rules: Rules::CAUSAL, ..rows }, keys] {
        let case = case.possible();
        let _announced = announce(&case);
        let operands = case.operands::<f32, f32>(Place::Heap);
        let inputs = operands.inputs().dropout(dropout);
        let mut of_fused: Option<Results<f32>> = None;
        for (level, bf16_dot) in tiers() {
            let ask = Ask { bf16_dot, ..Ask::all(level) };
            let alone = run(&inputs, &ask);
            #[cfg(feature = "rayon")]
            for threads in 2..=4 {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let got = pool.install(|| run(&inputs, &Ask { threads, ..ask }));
                assert_equal(&got, &alone, &format!("{level}, {threads} threads"));
            }
            if case.batch == 1 {
                for chunk in [0..1, 1..case.q_len] {
                    let got =
                        run(&operands.inputs_of(chunk.clone(), operands.k.view()).dropout(dropout), &ask);
                    for head in 0..case.heads[0] {
                        let (from, of) = (head * case.q_len + chunk.start, head * chunk.len());
                        let len = chunk.len() * case.v_dim;
                        let expected = &alone.out[from * case.v_dim..][..len];
                        assert_same(
                            &got.out[of * case.v_dim..][..len],
                            expected,
                            &format!("{level}, {chunk:?}"),
                        );
                    }
                }
            }
            if level.is_fused() && !bf16_dot {
                let first = of_fused.get_or_insert_with(|| alone.clone());
                assert_equal(&alone, first, &format!("{level}"));
            }
        }
    }
}

/// The mean over many seeds is the output without dropout, within 5 sigma of what dropping makes of it.
#[test]
fn expectation() {
    let case = Case { heads: [2, 2], q_len: 3, kv_len: 40, v_dim: 5, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    let (rate, seeds) = (0.25, 4000u64);
    let level = levels()[0];
    let mut mean = vec![0.0; inputs.output_shape().iter().product()];
    for seed in 0..seeds {
        let got = run(&inputs.dropout(Dropout { rate, seed }), &Ask::at(level));
        mean.iter_mut().zip(&got.out).for_each(|(mean, &x)| *mean += f64::from(x) / seeds as f64);
    }
    let scores = reference::scores(&inputs, ScoreStage::Softmax).expect("operands that fit");
    let answer = reference::attention(&inputs).expect("operands that fit");
    reference::for_each_row(&inputs, |row| {
        let at = row.index[1] * 3 + row.index[2];
        for d in 0..5 {
            let squares: f64 = (0..40).map(|key| (scores[at * 40 + key] * row.v[key * 5 + d]).powi(2)).sum();
            let sigma = (squares * f64::from(rate / (1.0 - rate)) / seeds as f64).sqrt();
            let (got, want) = (mean[at * 5 + d], answer.out[at * 5 + d]);
            assert!(
                (got - want).abs() <= 5.0 * sigma,
                "{:?}, {d}: {got} and {want} within {sigma}",
                row.index
            );
        }
    })
    .expect("operands that fit");
}

#[test]
fn it_binds_and_leaves_the_rest() {
    let case = Case { batch: 2, heads: [2, 2], q_len: 8, kv_len: 20, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    let dropped = |rate, seed| attention(&inputs.dropout(Dropout { rate, seed })).expect("operands that fit");
    let plain = attention(&inputs).expect("operands that fit");
    assert_same(&dropped(0.0, 3), &plain, "a rate of 0");
    assert_ne!(dropped(0.5, 3), plain);
    assert_ne!(dropped(0.5, 3), dropped(0.5, 4), "another seed");
    assert_ne!(dropped(0.5, 3), dropped(0.6, 3), "another rate");

    // Metrics are those before dropout, of a row without keys too.
    let plan = Plan::new(&Problem::of(&inputs)).expect("a plan");
    let measured = |inputs: &Inputs<'_, f32, f32>| {
        let mut metrics = Metrics::new(MetricsOptions::SPECIFIED, 2, 32).expect("memory");
        let mut out = vec![0.0; plain.len()];
        let view = ViewMut::new(&mut out, inputs.output_shape()).expect("contiguous");
        let mut workspace = plan.workspace().expect("memory");
        plan.run(inputs, Outputs::new(view).metrics(&mut metrics), &mut workspace)
            .expect("operands that fit");
        (metrics.rows().to_vec(), out)
    };
    let inputs = inputs.mask(Mask::NONE.kv_lens(&[20, 0]));
    let (rows, out) = measured(&inputs.dropout(Dropout { rate: 0.9, seed: 1 }));
    assert_eq!(rows, measured(&inputs).0);
    assert!(out[out.len() / 2..].iter().all(|x| x.to_bits() == 0), "rows without keys are +0");

    for rate in [-0.1, 1.0, 2.0, f32::NAN, f32::INFINITY] {
        let error = attention(&inputs.dropout(Dropout { rate, seed: 0 })).expect_err("a rate out of range");
        assert!(matches!(error, AttentionError::Value { operand: "dropout", .. }), "{rate}: {error}");
    }
}

/// What the mask removes is never touched, dropped or not: 0 times NaN would show.
#[test]
fn removed_keys_are_never_touched() {
    let case = Case { heads: [2, 2], q_len: 40, kv_len: 40, rules: Rules::CAUSAL, ..Case::default() };
    let clean = case.operands::<f32, f32>(Place::Heap);
    let mut dirty = case.operands::<f32, f32>(Place::Heap);
    let dropout = Dropout { rate: 0.5, seed: 11 };
    let seen = 17;
    for operand in [&mut dirty.k, &mut dirty.v] {
        for_each_index([case.batch, 2, case.kv_len - seen, 1], |[b, h, token, _]| {
            let token = [b, h, seen + token];
            let at: usize = token.iter().zip(operand.strides).map(|(at, stride)| at * stride).sum();
            operand.data[at..][..operand.shape[3]].fill(f32::NAN);
        });
    }
    for (level, bf16_dot) in tiers() {
        let ask = Ask { bf16_dot, ..Ask::all(level) };
        let expected = run(&clean.inputs().dropout(dropout), &ask);
        let got = run(&dirty.inputs().dropout(dropout), &ask);
        let rows = got.out.chunks_exact(case.v_dim).zip(expected.out.chunks_exact(case.v_dim));
        for (row, (got, expected)) in rows.enumerate().filter(|(row, _)| row % case.q_len < seen) {
            assert_same(got, expected, &format!("{level}, row {row}"));
        }
        assert!(got.out.iter().any(|x| x.is_nan()), "{level}: rows that attend them");
    }
}
