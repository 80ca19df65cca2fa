//! From a call's scores to a picture.

use crate::{TOKENS, view};
use lucid_attention::viz::HeatMap;
use lucid_attention::{Inputs, Mask, Outputs, Plan, Problem, ScoreStage, Scores, View, ViewMut, reference};

/// What `Scores` wrote for chosen heads and rows draws the same picture as those parts of the whole matrix.
#[test]
fn chosen_heads_and_rows() {
    let (heads, tokens, dim) = (4, 8, 16);
    let shape = [1, heads, tokens, dim];
    let [q, k] =
        [0.7f32, 1.3].map(|f| (0..heads * tokens * dim).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>());
    let inputs = Inputs::new(view(&q, shape), view(&k, shape), view(&k, shape)).mask(Mask::causal());

    let (chosen, rows) = ([3, 1], [7, 2, 5]);
    let scores_shape = [1, 2, 3, tokens];
    let mut probabilities = vec![0.0; 48];
    let mut out = vec![0.0f32; q.len()];
    let scores = Scores::new(ScoreStage::Softmax, ViewMut::new(&mut probabilities, scores_shape).unwrap());
    let outputs =
        Outputs::new(ViewMut::new(&mut out, shape).unwrap()).scores(scores.heads(&chosen).rows(&rows));
    let plan = Plan::new(&Problem::new(heads, dim, tokens, tokens)).unwrap();
    plan.run(&inputs, outputs, &mut plan.workspace().unwrap()).unwrap();

    let all = reference::scores(&inputs, ScoreStage::Softmax).unwrap();
    let picked =
        |head: usize, row: usize| all[(head * tokens + row) * tokens..][..tokens].iter().map(|&p| p as f32);
    let by_hand: Vec<f32> =
        chosen.iter().flat_map(|&head| rows.iter().flat_map(move |&row| picked(head, row))).collect();
    assert!(by_hand.iter().zip(&probabilities).all(|(a, b)| (a - b).abs() < 1e-6));

    let draw = |numbers: &[f32]| {
        let map = HeatMap::new(view(numbers, scores_shape)).heads(&chosen).rows(&rows).tokens(&TOKENS);
        map.mask(Mask::causal()).upper(1.0).terminal(80, lucid_attention::viz::TerminalColors::Ascii).unwrap()
    };
    assert_eq!(draw(&probabilities), draw(&by_hand));
}

/// A view with strides: one sequence of a batch, token-major, without a copy.
#[test]
fn any_strides() {
    let numbers: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| (i % 31) as f32).collect();
    let strided = View::with_strides(&numbers, [2, 3, 4, 5], [60, 5, 15, 1]).unwrap();
    let copied: Vec<f32> = (0..3)
        .flat_map(|head| (0..4).flat_map(move |row| (0..5).map(move |key| 60 + head * 5 + row * 15 + key)))
        .map(|at| numbers[at])
        .collect();
    let expected = HeatMap::new(view(&copied, [1, 3, 4, 5])).draw().unwrap();
    assert_eq!(HeatMap::new(strided).batch(1).draw().unwrap(), expected);
    assert_ne!(HeatMap::new(strided).draw().unwrap(), expected);
}
