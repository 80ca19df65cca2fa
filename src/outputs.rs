//! What a call writes.

use crate::element::Element;
use crate::metrics::Metrics;
use crate::view::ViewMut;

/// Which numbers [`Scores`] are, in the order in which they come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum ScoreStage {
    /// `scale * q.k`, masked keys included.
    Raw,
    /// After softcap, masked keys included.
    Capped,
    /// After ALiBi, bias and mask: -inf at removed keys.
    Biased,
    /// Probabilities: 0 at removed keys. With a sink they sum to less than 1.
    Softmax,
}

/// How an ONNX model numbers `qk_matmul_output_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnnxNumbering {
    /// The operator's text since the errata of 2026: 0 raw, 1 capped, 2 biased, 3 softmax.
    Errata,
    /// Models and runtimes from before it, where 1 and 2 were exchanged.
    Original,
}

impl ScoreStage {
    /// The stage that ONNX `Attention` calls `mode`; `None` if there is none.
    pub fn from_onnx_mode(mode: i64, numbering: OnnxNumbering) -> Option<Self> {
        match (mode, numbering) {
            (0, _) => Some(ScoreStage::Raw),
            (1, OnnxNumbering::Errata) | (2, OnnxNumbering::Original) => Some(ScoreStage::Capped),
            (2, OnnxNumbering::Errata) | (1, OnnxNumbering::Original) => Some(ScoreStage::Biased),
            (3, _) => Some(ScoreStage::Softmax),
            _ => None,
        }
    }
}

/// A request for scores or probabilities, in `f32`.
///
/// The output has shape `[batch, heads, rows, kv_len]`: all query heads and rows, or those chosen, in the order
/// given. Only what is asked for is computed and held. In a ragged batch rows are the tokens of the operand, keys count
/// within the row's sequence, and the last axis has room for all key tokens. Keys beyond a sequence's key length get -inf (0 at
/// [`ScoreStage::Softmax`]).
#[derive(Debug)]
pub struct Scores<'a> {
    pub(crate) stage: ScoreStage,
    pub(crate) out: ViewMut<'a, f32>,
    pub(crate) heads: Option<&'a [usize]>,
    pub(crate) rows: Option<&'a [usize]>,
}

impl<'a> Scores<'a> {
    /// Scores of all heads and rows.
    pub fn new(stage: ScoreStage, out: ViewMut<'a, f32>) -> Self {
        Self { stage, out, heads: None, rows: None }
    }

    /// Only these query heads.
    pub fn heads(mut self, heads: &'a [usize]) -> Self {
        self.heads = Some(heads);
        self
    }

    /// Only these query rows.
    pub fn rows(mut self, rows: &'a [usize]) -> Self {
        self.rows = Some(rows);
        self
    }
}

/// One of the keys that a query attends to most, or none: see [`TopKeys`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopKey {
    /// `usize::MAX` where there is none.
    key: usize,
    probability: f32,
}

impl TopKey {
    /// No key, of probability 0.
    pub const NONE: TopKey = TopKey { key: usize::MAX, probability: 0.0 };

    pub(crate) fn new(key: usize, probability: f32) -> Self {
        Self { key, probability }
    }

    /// Which key it is, counted within the row's sequence.
    pub fn key(&self) -> Option<usize> {
        (!self.is_none()).then_some(self.key)
    }

    /// Its probability.
    pub fn probability(&self) -> f32 {
        self.probability
    }

    /// Whether there is no key.
    pub fn is_none(&self) -> bool {
        self.key == usize::MAX
    }
}

impl Default for TopKey {
    fn default() -> Self {
        Self::NONE
    }
}

/// A request for the most probable keys of rows, with their probabilities, without the matrix.
///
/// The output has shape `[batch, heads, rows, k]`: of each row the `k` keys of largest probability, in descending order, of
/// equal ones the earlier key first. Where fewer are left by the mask, the list ends in [`TopKey::NONE`]; a row that is NaN
/// has none. The probabilities are to the bit those of [`ScoreStage::Softmax`].
///
/// Scores are computed twice more for it, as for [`Scores`] (each such request by itself), for the chosen heads and rows only.
/// Meant for a few keys of each row: a list is kept in order, so a row takes up to `kv_len * k` moves.
///
/// ```
/// use lucid_attention::{Inputs, Outputs, Plan, Problem, TopKey, TopKeys, View, ViewMut};
///
/// let (tokens, dim, k) = (100, 8, 3);
/// let shape = [1, 1, tokens, dim];
/// let x: Vec<f32> = (0..tokens * dim).map(|i| (i as f32).sin()).collect();
/// let (view, mut out) = (View::new(&x, shape)?, vec![0.0; x.len()]);
///
/// let last = [tokens - 1];
/// let mut top = vec![TopKey::NONE; k];
/// let outputs = Outputs::new(ViewMut::new(&mut out, shape)?)
///     .top_keys(TopKeys::new(ViewMut::new(&mut top, [1, 1, 1, k])?).rows(&last));
/// let plan = Plan::new(&Problem::new(1, dim, tokens, tokens))?;
/// plan.run(&Inputs::new(view, view, view), outputs, &mut plan.workspace()?)?;
/// assert!(top[0].key().is_some() && top[0].probability() >= top[1].probability());
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct TopKeys<'a> {
    pub(crate) out: ViewMut<'a, TopKey>,
    pub(crate) heads: Option<&'a [usize]>,
    pub(crate) rows: Option<&'a [usize]>,
}

impl<'a> TopKeys<'a> {
    /// Those of all heads and rows; the last axis says how many of each.
    pub fn new(out: ViewMut<'a, TopKey>) -> Self {
        Self { out, heads: None, rows: None }
    }

    /// Only these query heads.
    pub fn heads(mut self, heads: &'a [usize]) -> Self {
        self.heads = Some(heads);
        self
    }

    /// Only these query rows.
    pub fn rows(mut self, rows: &'a [usize]) -> Self {
        self.rows = Some(rows);
        self
    }
}

/// What a call writes. Nothing that is asked for besides `out` changes a bit of it.
#[derive(Debug)]
pub struct Outputs<'a, Q> {
    pub(crate) out: ViewMut<'a, Q>,
    pub(crate) lse: Option<&'a mut [f32]>,
    pub(crate) row_max: Option<&'a mut [f32]>,
    pub(crate) scores: Option<Scores<'a>>,
    pub(crate) top_keys: Option<TopKeys<'a>>,
    pub(crate) metrics: Option<&'a mut Metrics>,
}

impl<'a, Q: Element> Outputs<'a, Q> {
    /// `out`: `[batch, q_heads, q_len, v_dim]`, any strides that keep elements apart.
    pub fn new(out: ViewMut<'a, Q>) -> Self {
        Self { out, lse: None, row_max: None, scores: None, top_keys: None, metrics: None }
    }

    /// The natural logarithm of the sum of `exp(score)` over the keys left, without the sink: `[batch, q_heads,
    /// q_len]`, contiguous. -inf where no key is left.
    pub fn lse(mut self, lse: &'a mut [f32]) -> Self {
        self.lse = Some(lse);
        self
    }

    /// The largest score of each row (biased, without the sink): `[batch, q_heads, q_len]`, contiguous. -inf where
    /// no key is left, NaN where the row is NaN.
    pub fn row_max(mut self, row_max: &'a mut [f32]) -> Self {
        self.row_max = Some(row_max);
        self
    }

    /// Scores at some stage.
    pub fn scores(mut self, scores: Scores<'a>) -> Self {
        self.scores = Some(scores);
        self
    }

    /// The most probable keys of rows.
    pub fn top_keys(mut self, top_keys: TopKeys<'a>) -> Self {
        self.top_keys = Some(top_keys);
        self
    }

    /// Metrics of each row, added to the running totals of each head: see [`Metrics`].
    pub fn metrics(mut self, metrics: &'a mut Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }
}
