//! Exact attention, element by element: the bits of the scalar model on every level, within the certified bound.
//!
//! One axis at a time is swept through all sizes that matter, with rules, storage types, layouts and families of
//! values taking turns; then all triples of options, and random cases. Each case is called twice a level, its operands
//! and results flush against an inaccessible page at either end, with and without optional outputs.

mod common;

use common::cases::*;
use common::guard::announce;
use common::verify::{STAGES, turn, verify};
use lucid_attention::certify::Certificate;
use lucid_attention::{Inputs, ScoreStage, reference};
use proptest::prelude::*;

/// The sizes of a head that are tested one by one.
fn dims() -> impl Iterator<Item = usize> {
    (1..=80).chain([96, 112, 128, 160, 192, 255, 256, 257, 512])
}

/// One row, and groups of 6, 4 and 3 rows where vectors have 16 lanes, of 6, 6 and 1 where they have 8.
const Q_LENS: [usize; 2] = [1, 13];

#[test]
fn head_dims() {
    for head_dim in dims() {
        for (index, types) in TYPES.into_iter().enumerate() {
            for q_len in Q_LENS {
                let seed = (head_dim * 20 + index * 2 + q_len) as u64;
                let rules = turn(&Rules::FEW, seed as usize);
                let storage = turn(&STORAGES, head_dim + index + q_len);
                verify(Case { seed, types, q_len, head_dim, rules, storage, ..Case::default() });
            }
        }
    }
}

#[test]
fn value_dims() {
    for v_dim in dims().chain([0]) {
        for (index, types) in TYPES.into_iter().enumerate() {
            for q_len in Q_LENS {
                let seed = (v_dim * 20 + index * 2 + q_len) as u64;
                let rules = turn(&Rules::FEW, seed as usize);
                let storage = turn(&STORAGES, v_dim + index + q_len);
                verify(Case { seed, types, q_len, v_dim, rules, storage, ..Case::default() });
            }
        }
    }
    // As many queries as have values packed, where vectors have 8 lanes.
    for storage in STORAGES {
        verify(Case { q_len: 40, v_dim: 0, storage, ..Case::default() });
    }
}

#[test]
fn key_lengths() {
    for kv_len in (0..=600).chain([1023, 1024, 1025, 1279, 1281, 2047, 2048, 2049, 3100]) {
        for (index, q_len) in [1, 13, 1, 7, 2, 3].into_iter().enumerate() {
            let seed = (kv_len * 4 + index) as u64;
            let rules = turn(&Rules::FEW, kv_len + index / 2 * 3);
            let (types, storage) = (turn(&TYPES, kv_len), turn(&STORAGES, kv_len / 2 + index));
            verify(Case { seed, types, q_len, kv_len, rules, storage, ..Case::default() });
        }
    }
}

#[test]
fn query_lengths() {
    for q_len in 0..=200 {
        for index in 0..6 {
            let seed = (q_len * 6 + index) as u64;
            let heads = turn(&RATIOS[..2], index);
            let (types, storage) = (turn(&TYPES, q_len + index), turn(&STORAGES, q_len / 3 + index));
            let rules = Rules::FEW[index];
            verify(Case { seed, types, heads, q_len, rules, storage, ..Case::default() });
        }
    }
}

#[test]
fn tile_edges() {
    const ROWS: [usize; 15] = [1, 3, 4, 5, 6, 7, 8, 12, 13, 16, 32, 33, 64, 96, 97];
    const KEYS: [usize; 13] = [15, 16, 17, 63, 64, 65, 255, 256, 257, 513, 1023, 1024, 1025];
    for (row, q_len) in ROWS.into_iter().enumerate() {
        for (column, kv_len) in KEYS.into_iter().enumerate() {
            for index in 0..2 {
                let seed = (row * 31 + column * 7 + index * 3) as u64;
                let rules = turn(&Rules::FEW, row + column + 3 * index);
                let (types, storage) =
                    (turn(&TYPES, seed as usize), turn(&STORAGES, row + 2 * column + index));
                let (head_dim, v_dim) = turn(&[(5, 16), (16, 5), (8, 33)], seed as usize);
                verify(Case {
                    seed,
                    types,
                    q_len,
                    kv_len,
                    head_dim,
                    v_dim,
                    rules,
                    storage,
                    ..Case::default()
                });
            }
        }
    }
}

#[test]
fn groups_of_heads() {
    for heads in RATIOS {
        for q_len in [1, 2, 5, 6, 7, 17] {
            for (index, rules) in Rules::FEW.into_iter().enumerate() {
                let seed = (heads[0] * 50 + q_len * 6 + index) as u64;
                let (types, storage) = (turn(&TYPES, seed as usize), turn(&STORAGES, q_len + index));
                let batch = 1 + index % 2;
                verify(Case { seed, types, batch, heads, q_len, rules, storage, ..Case::default() });
            }
        }
    }
}

/// Several KV heads of few rows and few keys, in as many ways as their rows make up blocks, or do not.
#[test]
fn small_heads_together() {
    const HEADS: [[usize; 2]; 9] =
        [[4, 4], [6, 3], [9, 9], [6, 6], [7, 7], [4, 2], [12, 12], [12, 4], [10, 10]];
    let options = Rules::OPTIONS;
    for (a, first) in options.iter().enumerate() {
        for (b, second) in options[..=a].iter().enumerate() {
            let turns = a * options.len() + b;
            let mut case = Case { seed: turns as u64, batch: 1 + b % 2, ..Case::default() };
            [first, second].into_iter().for_each(|option| option(&mut case.rules));
            (case.storage, case.types) = (turn(&STORAGES, a + b), turn(&TYPES, 2 * a + b));
            let (heads, q_len) = (turn(&HEADS, turns), turn(&[1, 1, 2, 3, 1], a + 2 * b));
            let kv_len = turn(&[10, 1, 16, 64, 100, 256, 255, 257, 3, 50, 129], turns);
            verify(Case { heads, q_len, kv_len, ..case });
        }
    }
}

#[test]
fn options_three_at_a_time() {
    let options = Rules::OPTIONS;
    for a in 0..options.len() {
        for b in 0..a {
            for c in 0..b {
                let mut case = Case { seed: (a * 529 + b * 23 + c) as u64, ..Case::default() };
                [a, b, c].into_iter().for_each(|option| options[option](&mut case.rules));
                let turns = a + 2 * b + 3 * c;
                case.storage = turn(&STORAGES, turns);
                case.types = turn(&TYPES, turns);
                verify(case);
                let (q_len, kv_len) = turn(&[(40, 40), (13, 270), (1, 530), (33, 9)], turns);
                verify(Case { batch: 2, heads: [2, 1], q_len, kv_len, ..case });
            }
        }
    }
}

#[test]
fn families_of_values() {
    for (family, values) in VALUES.into_iter().chain(RARE_VALUES).enumerate() {
        for (index, types) in TYPES.into_iter().enumerate() {
            for (rule, rules) in Rules::FEW.into_iter().enumerate() {
                let seed = (family * 54 + index * 6 + rule) as u64;
                let storage = turn(&STORAGES, family + index + rule);
                let case = Case { seed, types, values, rules, storage, ..Case::default() };
                verify(case);
                verify(Case { heads: [2, 1], q_len: 3, kv_len: 600, head_dim: 24, v_dim: 20, ..case });
            }
        }
    }
}

#[test]
fn layouts() {
    for storage in STORAGES {
        for (index, types) in TYPES.into_iter().enumerate() {
            for (rule, rules) in Rules::FEW.into_iter().enumerate() {
                let seed = (index * 6 + rule) as u64;
                let case = Case { seed, types, batch: 2, heads: [4, 2], rules, storage, ..Case::default() };
                verify(Case { head_dim: 17, v_dim: 33, ..case });
                verify(Case { q_len: 40, kv_len: 70, ..case });
            }
        }
    }
}

#[test]
fn seeds() {
    for seed in 0..30_000 {
        verify(Case::random(seed));
    }
}

/// How close errors come to the bounds. Prints the table of the README
/// (`cargo test --test exact accuracy -- --nocapture`).
///
/// The statistical bound is what independent roundings give. It is asked of random values under masks; values with ties
/// and rounded constants (biases, slopes, caps) make roundings that are not independent, and only the certified bound.
#[test]
fn accuracy() {
    let random = |seed: u64| Case {
        values: turn(&VALUES[..2], seed as usize),
        rules: Rules::FEW[seed as usize / 2 % 4],
        storage: Storage::HeadMajor,
        ..Case::random(seed)
    };
    let adversarial = |seed: u64| Case { values: turn(&VALUES[2..], seed as usize), ..Case::random(seed) };
    let families: [(&str, &dyn Fn(u64) -> Case); 2] = [("random", &random), ("adversarial", &adversarial)];
    println!(
        "| storage | multiply-adds | values | outputs | error / bound | / statistical bound | LSE / bound |"
    );
    println!("|---|---|---|---|---|---|---|");
    for types in &TYPES[..3] {
        for (name, case) in families {
            let mut found = [Certificate::default(), Certificate::default()];
            for seed in 0..1500 {
                let checked = verify(Case { types: *types, ..case(seed) });
                found.iter_mut().zip(&checked).for_each(|(found, checked)| found.merge(checked));
            }
            for (rounding, checked) in ["rounded twice", "fused"].into_iter().zip(found) {
                let Certificate { elements, uncertified_rows, .. } = checked;
                let [worst, worst_sqrt, lse] =
                    [checked.worst, checked.worst_statistical, checked.worst_lse].map(|found| found.ratio);
                let independent = name == "random" && elements > 0;
                let statistical = if independent { format!("{worst_sqrt:.2}") } else { "-".to_owned() };
                let storage = types[0];
                println!(
                    "| {storage} | {rounding} | {name} | {elements} | {worst:.2} | {statistical} | {lse:.2} |"
                );
                assert!(!independent || worst_sqrt <= 1.0, "{types:?}, {rounding}: {worst_sqrt} of B_sqrt");
                assert!(name != "random" || uncertified_rows == 0, "{types:?}: rows that no bound holds for");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// As `seeds`, but what fails shrinks.
    #[test]
    fn everything(
        seed in any::<u64>(),
        (types, storage, values) in (0..TYPES.len(), 0..STORAGES.len(), 0..VALUES.len()),
        (batch, ratio) in (0..3usize, 0..RATIOS.len()),
        (q_len, kv_len) in (0..20usize, 0..300usize),
        (head_dim, v_dim) in (1..40usize, 0..40usize),
        options in prop::collection::vec(0..Rules::OPTIONS.len(), 0..5),
    ) {
        let mut case = Case { seed, batch, q_len, kv_len, head_dim, v_dim, ..Case::default() };
        (case.types, case.storage, case.values) = (TYPES[types], STORAGES[storage], VALUES[values]);
        case.heads = if case.work() < 50_000 { RATIOS[ratio] } else { [1, 1] };
        options.into_iter().for_each(|option| Rules::OPTIONS[option](&mut case.rules));
        verify(case);
    }
}

/// Chosen heads and rows, in any order and more than once, are what asking for all gives.
#[test]
fn scores_of_chosen_heads_and_rows() {
    let (heads, rows) = ([3, 0, 3], [6, 1, 1, 12, 0, 5, 4, 9]);
    for level in levels() {
        for (stage, rules) in STAGES.into_iter().flat_map(|stage| Rules::FEW.map(|rules| (stage, rules))) {
            for ragged in [false, true] {
                let mut case = Case { batch: 2, heads: [4, 2], q_len: 13, kv_len: 300, ..Case::default() };
                case.rules = Rules { ragged, ..rules };
                let case = case.possible();
                let operands = case.operands::<f32, f32>(Place::AtEnd);
                let inputs = operands.inputs();
                let all = run(&inputs, &Ask::at(level).scores(stage)).scores;
                let ask = Ask { heads: Some(&heads), rows: Some(&rows), ..Ask::at(level).scores(stage) };
                let mut expected = Vec::new();
                for_each_index([case.batch, heads.len(), rows.len(), 1], |[b, h, i, _]| {
                    let row = (b * case.heads[0] + heads[h]) * case.q_len + rows[i];
                    expected.extend_from_slice(&all[row * case.kv_len..][..case.kv_len]);
                });
                assert_same(&run(&inputs, &ask).scores, &expected, &format!("{level}: {stage:?}, {case:?}"));
            }
        }
    }
}

/// The model's scores, whose bits all levels have to give, are those of the definition.
#[test]
fn scores_follow_the_definition() {
    for level in levels() {
        for (index, option) in Rules::OPTIONS.into_iter().enumerate() {
            let mut case = Case { heads: [2, 1], kv_len: 300, head_dim: 20, ..Case::default() };
            Rules::OPTIONS[index / 2](&mut case.rules);
            option(&mut case.rules);
            let case = Case { seed: index as u64, ..case }.possible();
            let _announced = announce(&case);
            let operands = case.operands::<f32, f32>(Place::Heap);
            let inputs = operands.inputs();
            let magnitudes = magnitudes(&inputs, &case);
            for stage in STAGES {
                let got = run(&inputs, &Ask::at(level).scores(stage)).scores;
                let definition = definition(&inputs, stage, &case);
                for ((at, &exact), magnitude) in definition.iter().enumerate().zip(&magnitudes) {
                    let got = f64::from(got[at]);
                    let logit = (case.head_dim + 12) as f64 * 2f64.powi(-24) * magnitude;
                    let allowed = if stage == ScoreStage::Softmax { exact * 3.0 * logit } else { logit };
                    let holds = got == exact || (got - exact).abs() <= allowed + 1e-37;
                    assert!(holds, "{level}: {stage:?} at {at}: {got:e}, expected {exact:e} +- {allowed:e}");
                }
            }
        }
    }
}

/// [`reference::scores`], with the last axis that of the operands.
fn definition(inputs: &Inputs<'_, f32, f32>, stage: ScoreStage, case: &Case) -> Vec<f64> {
    let scores = reference::scores(inputs, stage).expect("operands that fit");
    let rows = case.batch * case.heads[0] * case.q_len;
    let longest = scores.len() / rows.max(1);
    let nothing = if stage == ScoreStage::Softmax { 0.0 } else { f64::NEG_INFINITY };
    let padding = vec![nothing; case.kv_len - longest];
    scores.chunks(longest.max(1)).flat_map(|row| row.iter().chain(&padding).copied()).collect()
}

/// The largest that roundings of a row's logits are relative to, for each score.
fn magnitudes(inputs: &Inputs<'_, f32, f32>, case: &Case) -> Vec<f64> {
    let mut magnitudes = vec![0.0; case.batch * case.heads[0] * case.q_len * case.kv_len];
    reference::for_each_row(inputs, |row| {
        let of = |(key, score): (usize, &reference::Score)| {
            let k = &row.k[key * case.head_dim..];
            let dot: f64 = row.q.iter().zip(k).map(|(q, k)| (q * k).abs()).sum();
            let bias = if score.attended { score.bias.abs() } else { 0.0 };
            dot * row.scale.abs() + 2.0 * (score.alibi.abs() + bias) + 1.0
        };
        let largest = row.scores.iter().enumerate().map(of).fold(1.0, f64::max);
        let [b, h, i] = row.index;
        let at = ((b * case.heads[0] + h) * case.q_len + i) * case.kv_len;
        magnitudes[at..][..case.kv_len].fill(largest);
    })
    .expect("operands that fit");
    magnitudes
}

/// With unit vectors as values the output is the probabilities, bit for bit.
#[test]
fn probabilities_are_those_of_the_output() {
    for level in levels() {
        for rules in Rules::FEW {
            for kv_len in [1, 16, 37, 100, 255, 256] {
                // A sink above all logits would scale weights and sum in two steps.
                let rules = Rules { sinks: false, ..rules };
                let case = Case { kv_len, v_dim: kv_len, values: Values::OneHot, rules, ..Case::default() };
                let case = case.possible();
                let operands = case.operands::<f32, f32>(Place::Heap);
                let inputs = operands.inputs();
                let results = run(&inputs, &Ask::at(level).scores(ScoreStage::Softmax));
                assert_same(&results.scores, &results.out, &format!("{level}: probabilities, {case:?}"));
            }
        }
    }
}
