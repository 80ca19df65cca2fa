//! The part that this crate does: attention of a ragged batch, and a look at its probabilities.

use crate::Result;
use crate::model::{HEAD_DIM, HEADS, HIDDEN, MAX_TOKENS};
use crate::text::Batch;
use lucid_attention::{
    Inputs, Layout, Outputs, Plan, Problem, Ragged, ScoreStage, Scores, View, ViewMut, Workspace,
};

/// A plan and its scratch, made once for all layers and batches.
pub(crate) struct Attention {
    plan: Plan,
    workspace: Workspace,
}

impl Attention {
    pub(crate) fn new() -> Result<Self> {
        let plan = Plan::new(&Problem::new(HEADS, HEAD_DIM, MAX_TOKENS, MAX_TOKENS))?;
        let workspace = plan.workspace()?;
        Ok(Self { plan, workspace })
    }

    /// Every token attends to all tokens of its own sentence. `qkv` is `[tokens, 3 * HIDDEN]`, the answer
    /// `[tokens, HIDDEN]`: the views read and write the heads where the projections have them.
    pub(crate) fn attend(&mut self, qkv: &[f32], batch: &Batch) -> Result<Vec<f32>> {
        let tokens = batch.tokens();
        let mut context = vec![0.0; tokens * HIDDEN];
        let [q, k, v] = View::split_qkv(qkv, 1, tokens, [HEADS, HEADS], HEAD_DIM)?;
        let inputs =
            Inputs::new(q, k, v).ragged(Ragged { q_bounds: &batch.bounds, kv_bounds: &batch.bounds });
        let out = ViewMut::with_layout(&mut context, [1, HEADS, tokens, HEAD_DIM], Layout::TokenMajor)?;
        self.plan.run(&inputs, Outputs::new(out), &mut self.workspace)?;
        Ok(context)
    }

    /// The probabilities of one sentence, `[HEADS, tokens, tokens]`. `qkv` holds the tokens of that sentence.
    pub(crate) fn probabilities(&mut self, qkv: &[f32]) -> Result<Vec<f32>> {
        let tokens = qkv.len() / (3 * HIDDEN);
        let mut context = vec![0.0; tokens * HIDDEN];
        let mut probabilities = vec![0.0; HEADS * tokens * tokens];
        let [q, k, v] = View::split_qkv(qkv, 1, tokens, [HEADS, HEADS], HEAD_DIM)?;
        let out = ViewMut::with_layout(&mut context, [1, HEADS, tokens, HEAD_DIM], Layout::TokenMajor)?;
        let scores = ViewMut::new(&mut probabilities, [1, HEADS, tokens, tokens])?;
        let outputs = Outputs::new(out).scores(Scores::new(ScoreStage::Softmax, scores));
        self.plan.run(&Inputs::new(q, k, v), outputs, &mut self.workspace)?;
        Ok(probabilities)
    }
}

/// Attention entropy by head, in nats, from the probabilities of one sentence of so many tokens: the mean over its
/// tokens of `-sum p ln p`. 0 means each token looks at a single one, `ln(tokens)` at all alike.
pub(crate) fn entropy(probabilities: &[f32], tokens: usize) -> Vec<f32> {
    let mean = |head: &[f32]| {
        let terms = head.iter().map(|&p| f64::from(p)).filter(|&p| p > 0.0).map(|p| -p * p.ln());
        (terms.sum::<f64>() / tokens as f64) as f32
    };
    probabilities.chunks_exact(tokens * tokens).map(mean).collect()
}
