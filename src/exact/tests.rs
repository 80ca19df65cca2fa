//! The order of operations with shorter tiles and splits than version 1's: every edge of both, reached with few keys.

use super::call::Order;
use crate::{Level, Outputs, Plan, PlanOptions, Problem, ScoreStage, Scores, ViewMut};

#[path = "../../tests/common/mod.rs"]
mod common;
use common::cases::{Case, Place, Rules, STORAGES, TYPES, assert_same, levels};
use common::model::{Lengths, Model};

const ORDERS: [Order; 6] = [
    Order { tile: 64, split: 64 },
    Order { tile: 64, split: 128 },
    Order { tile: 64, split: 192 },
    Order { tile: 128, split: 128 },
    Order { tile: 128, split: 384 },
    Order { tile: 256, split: 256 },
];

/// Holds the engine in some order against the model in that order; returns how many splits ran side by side.
fn verify(case: Case, order: Order, level: Level, threads: usize) -> usize {
    let _announced = common::guard::announce(&(case, order));
    let operands = case.operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    let stage = ScoreStage::Softmax;
    let lengths = Lengths { tile: order.tile, split: order.split };
    let model = Model::with_lengths(&inputs, level, Some(stage), lengths);

    let options = PlanOptions { level: Some(level), max_threads: Some(threads), ..PlanOptions::default() };
    let plan = Plan::with_order(&Problem::of(&inputs), &options, order).expect("a plan");
    let mut out = vec![f32::NAN; model.out.len()];
    let mut lse = vec![f32::NAN; model.lse.len()];
    let mut scores = vec![f32::NAN; model.scores.len()];
    let shape = inputs.output_shape();
    let score_shape = [shape[0], shape[1], shape[2], inputs.k().shape()[2]];
    let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("contiguous"))
        .lse(&mut lse)
        .scores(Scores::new(stage, ViewMut::new(&mut scores, score_shape).expect("contiguous")));
    plan.run(&inputs, outputs, &mut plan.workspace().expect("memory")).expect("operands that fit");

    assert_same(&out, &model.out, &format!("{level}, {order:?}: out"));
    assert_same(&lse, &model.lse, &format!("{level}, {order:?}: lse"));
    assert_same(&scores, &model.scores, &format!("{level}, {order:?}: scores"));
    plan.explain(&inputs).expect("operands that fit").splits
}

#[test]
fn key_lengths_around_every_tile_and_split() {
    for (at, order) in ORDERS.into_iter().enumerate() {
        let edges = (0..=3 * order.split).step_by(order.tile);
        let lengths = edges.flat_map(|edge| [edge.saturating_sub(1), edge, edge + 1, edge + 17]);
        for (index, kv_len) in lengths.enumerate() {
            let seed = (at * 1000 + index) as u64;
            let rules = Rules::FEW[(at + index) % Rules::FEW.len()];
            let storage = STORAGES[(at + index / 2) % STORAGES.len()];
            for q_len in [1, 13] {
                let case = Case { seed, q_len, kv_len, rules, storage, ..Case::default() }.possible();
                for level in levels() {
                    verify(case, order, level, 1);
                }
            }
        }
    }
}

/// Blocks of rows that share the keys and values that are packed.
#[test]
fn shared_keys_and_values() {
    for (at, order) in ORDERS.into_iter().enumerate() {
        for (index, [kv_len, v_dim]) in [[500, 40], [333, 16], [257, 17]].into_iter().enumerate() {
            let rules = Rules::FEW[(at + index) % Rules::FEW.len()];
            let storage = STORAGES[(at + index) % STORAGES.len()];
            let case = Case { heads: [2, 1], q_len: 100, kv_len, v_dim, rules, storage, ..Case::default() };
            for level in levels() {
                verify(case.possible(), order, level, 1 + index % 2);
            }
        }
    }
}

#[test]
fn random_cases() {
    for seed in 0..1500 {
        let order = ORDERS[seed as usize % ORDERS.len()];
        let case = Case { types: TYPES[0], ..Case::random(1 << 40 | seed) };
        for level in levels() {
            verify(case, order, level, 1);
        }
    }
}

/// Many splits that run side by side, and their merge.
#[cfg(feature = "rayon")]
#[test]
fn splits_side_by_side() {
    use common::cases::Storage;

    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().expect("a pool");
    for order in ORDERS {
        for (index, rules) in Rules::FEW.into_iter().enumerate() {
            let storage = if index % 2 == 0 { Storage::Panels } else { Storage::HeadMajor };
            let case = Case {
                q_len: 3,
                kv_len: 2500 + index,
                heads: [4, 2],
                head_dim: 64,
                v_dim: 70,
                storage,
                rules,
                ..Case::default()
            };
            for level in levels() {
                let splits = pool.install(|| verify(case.possible(), order, level, 4));
                let visible = rules.left.is_none();
                assert!(!visible || splits > 1, "{order:?}: {splits} splits side by side");
            }
        }
    }
}
