//! The ONNX operator `Attention` (opsets 23 to 25, errata included), written with this crate.
//!
//! | ONNX | here |
//! |---|---|
//! | operands of rank 4, `[batch, heads, tokens, dim]` | [`View::new`] |
//! | operands of rank 3, `[batch, tokens, heads * dim]` | [`View::with_layout`], [`Layout::TokenMajor`]: no transposition |
//! | `q_num_heads` a multiple of `kv_num_heads` | the views' head counts |
//! | `past_key`, `past_value` | concatenated into `present_*`; the queries start behind: [`QueryStart::At`] |
//! | `nonpad_kv_seqlen` | [`Mask::kv_lens`]; the queries end there: [`QueryStart::PerSequence`] |
//! | neither | the queries start at key 0: [`QueryStart::At`]`(0)` |
//! | `is_causal` | [`Mask::causal`] |
//! | `left_window_size`, `right_window_size` | [`Mask::window`], -1 is `None` |
//! | boolean `attn_mask` | [`Mask::allowed`], true means attend in both |
//! | float `attn_mask` | [`Inputs::bias`] |
//! | `scale`, `softcap` | the same; `softcap` 0 is none |
//! | `softmax_precision` | nothing: the softmax is f32 for all storage types |
//! | `qk_matmul_output_mode` | [`ScoreStage::from_onnx_mode`] |
//! | rows without a key | zero in both |

use lucid_attention::{
    AttentionError, Element, Inputs, Intervals, Layout, Mask, OnnxNumbering, Outputs, Plan, Problem,
    QueryStart, ScoreStage, Scores, Span, View, ViewMut,
};

/// A dense array.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor<T> {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<T>,
}

/// The operator's two kinds of `attn_mask`.
#[derive(Clone, Debug)]
pub(crate) enum AttnMask<T> {
    /// True means attend.
    Bool(Tensor<bool>),
    /// Added to the scores.
    Float(Tensor<T>),
}

/// The operator's attributes; `None` is "not given".
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes {
    pub(crate) is_causal: bool,
    pub(crate) kv_num_heads: Option<usize>,
    pub(crate) left_window_size: i64,
    pub(crate) q_num_heads: Option<usize>,
    pub(crate) qk_matmul_output_mode: i64,
    pub(crate) right_window_size: i64,
    pub(crate) scale: Option<f32>,
    pub(crate) softcap: f32,
}

/// A node and its inputs. `T` is the operator's T1 and T2.
#[derive(Clone, Debug)]
pub(crate) struct Attention<T> {
    pub(crate) opset: i64,
    pub(crate) attributes: Attributes,
    pub(crate) q: Tensor<T>,
    pub(crate) k: Tensor<T>,
    pub(crate) v: Tensor<T>,
    pub(crate) attn_mask: Option<AttnMask<T>>,
    /// `past_key` and `past_value`, which come together.
    pub(crate) past: Option<[Tensor<T>; 2]>,
    pub(crate) nonpad_kv_seqlen: Option<Vec<usize>>,
}

/// What the node returns.
#[derive(Clone, Debug)]
pub(crate) struct Results<T> {
    pub(crate) y: Tensor<T>,
    pub(crate) present_key: Tensor<T>,
    pub(crate) present_value: Tensor<T>,
    pub(crate) qk_matmul_output: Tensor<T>,
}

/// The operator.
pub(crate) fn run_onnx_attention<T: Element>(node: &Attention<T>) -> Result<Results<T>, AttentionError> {
    let attributes = node.attributes;
    let q = operand(&node.q, attributes.q_num_heads)?;
    let k = operand(&node.k, attributes.kv_num_heads)?;
    let v = operand(&node.v, attributes.kv_num_heads)?;

    // A cache inside the operator. (An engine would append to a buffer with spare room and hand out a view of it.)
    let [past_key, past_value] =
        node.past.as_ref().map_or([None, None], |[key, value]| [Some(key), Some(value)]);
    let present_key = concatenate(past_key, k)?;
    let present_value = concatenate(past_value, v)?;
    let k = operand(&present_key, None)?;
    let v = operand(&present_value, None)?;
    let ([batch, q_heads, q_len, _], keys) = (q.shape(), k.shape()[2]);

    // Position of the first query: behind the past, or such that the last one stands at the last valid key.
    let past_len = past_key.map_or(0, |key| key.shape[2]);
    let starts: Option<Vec<i64>> = node
        .nonpad_kv_seqlen
        .as_ref()
        .map(|lens| lens.iter().map(|&len| len as i64 - q_len as i64).collect());
    let q_start = starts.as_deref().map_or(QueryStart::At(past_len as i64), QueryStart::PerSequence);

    let mut mask = if attributes.is_causal { Mask::causal() } else { Mask::NONE };
    mask = mask.window(distance(attributes.left_window_size), distance(attributes.right_window_size));

    // Padding. A key length also ends what `qk_matmul_output` shows; modes 0 and 1 show padding as well, so there
    // the padding is removed by one interval per row instead.
    let stage = score_stage(attributes.qk_matmul_output_mode)?;
    let shows_padding = matches!(stage, ScoreStage::Raw | ScoreStage::Capped);
    let (offsets, spans) = valid_spans(node.nonpad_kv_seqlen.as_deref().unwrap_or(&[]), q_len);
    match &node.nonpad_kv_seqlen {
        Some(_) if shows_padding => {
            mask = mask.intervals(Intervals::new([batch, 1, q_len], &offsets, &spans)?)
        }
        Some(lens) => mask = mask.kv_lens(lens),
        None => {}
    }

    // A mask may end before the keys do (from opset 24 on); what it lacks is masked.
    let pads = node.opset >= 24;
    let mut inputs = Inputs::new(q, k, v).q_start(q_start);
    let (allowed, bias);
    match &node.attn_mask {
        None => {}
        Some(AttnMask::Bool(given)) => {
            allowed = if pads { padded(given, keys, false) } else { given.clone() };
            mask = mask.allowed(mask_view(&allowed)?);
        }
        Some(AttnMask::Float(given)) => {
            bias = if pads { padded(given, keys, T::from_f32(f32::NEG_INFINITY)) } else { given.clone() };
            inputs = inputs.bias(mask_view(&bias)?);
        }
    }
    inputs = inputs.mask(mask);
    if let Some(scale) = attributes.scale {
        inputs = inputs.scale(scale);
    }
    if attributes.softcap != 0.0 {
        inputs = inputs.softcap(attributes.softcap);
    }

    // The output has the rank of the queries.
    let shape = inputs.output_shape();
    let layout = if node.q.shape.len() == 3 { Layout::TokenMajor } else { Layout::HeadMajor };
    let mut y = vec![T::default(); shape.iter().product()];
    let mut scores = vec![0.0f32; batch * q_heads * q_len * keys];
    let scores_shape = [batch, q_heads, q_len, keys];

    let plan = Plan::new(&Problem::of(&inputs))?;
    let outputs = Outputs::new(ViewMut::with_layout(&mut y, shape, layout)?)
        .scores(Scores::new(stage, ViewMut::new(&mut scores, scores_shape)?));
    plan.run(&inputs, outputs, &mut plan.workspace()?)?;

    let y_shape = match layout {
        Layout::TokenMajor => vec![batch, q_len, q_heads * shape[3]],
        Layout::HeadMajor => shape.to_vec(),
    };
    let scores = scores.into_iter().map(T::from_f32).collect();
    Ok(Results {
        y: Tensor { shape: y_shape, data: y },
        present_key,
        present_value,
        qk_matmul_output: Tensor { shape: scores_shape.to_vec(), data: scores },
    })
}

/// Q, K or V: `[batch, heads, tokens, dim]`, or `[batch, tokens, heads * dim]` with the heads from an attribute.
fn operand<T>(tensor: &Tensor<T>, heads: Option<usize>) -> Result<View<'_, T>, AttentionError> {
    match (tensor.shape.as_slice(), heads) {
        (&[batch, heads, tokens, dim], None) => View::new(&tensor.data, [batch, heads, tokens, dim]),
        (&[batch, tokens, hidden], Some(heads)) if heads > 0 && hidden % heads == 0 => {
            View::with_layout(&tensor.data, [batch, heads, tokens, hidden / heads], Layout::TokenMajor)
        }
        (shape, heads) => Err(AttentionError::Value {
            operand: "Q, K or V",
            expected: "rank 4, or rank 3 with a number of heads that divides the last axis",
            got: format!("shape {shape:?}, heads {heads:?}"),
        }),
    }
}

/// The tokens of the past and the new ones behind them, `[batch, heads, tokens, dim]`.
fn concatenate<T: Element>(past: Option<&Tensor<T>>, new: View<'_, T>) -> Result<Tensor<T>, AttentionError> {
    let [batch, heads, tokens, dim] = new.shape();
    let past = past.map(|past| operand(past, None)).transpose()?;
    let past_len = past.map_or(0, |past| past.shape()[2]);
    let mut data = Vec::new();
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let rows = |view: View<'_, T>| {
            let dims = move |t| (0..dim).filter_map(move |d| view.get([b, h, t, d]).copied());
            (0..view.shape()[2]).flat_map(dims).collect::<Vec<T>>()
        };
        data.extend(past.map(rows).unwrap_or_default());
        data.extend(rows(new));
    }
    Ok(Tensor { shape: vec![batch, heads, past_len + tokens, dim], data })
}

/// A window's size; -1 leaves the side open.
fn distance(size: i64) -> Option<usize> {
    usize::try_from(size).ok()
}

fn score_stage(mode: i64) -> Result<ScoreStage, AttentionError> {
    ScoreStage::from_onnx_mode(mode, OnnxNumbering::Errata).ok_or_else(|| AttentionError::Value {
        operand: "qk_matmul_output_mode",
        expected: "0, 1, 2 or 3",
        got: mode.to_string(),
    })
}

/// For each sequence and query one span of keys `0..len`, with the offsets that [`Intervals`] want.
fn valid_spans(lens: &[usize], q_len: usize) -> (Vec<usize>, Vec<Span>) {
    let spans = lens.iter().flat_map(|&end| std::iter::repeat_n(Span { start: 0, end }, q_len)).collect();
    ((0..=lens.len() * q_len).collect(), spans)
}

/// A mask, its last axis filled up to the number of keys.
fn padded<T: Copy>(mask: &Tensor<T>, keys: usize, fill: T) -> Tensor<T> {
    let (mut shape, mut data) = (mask.shape.clone(), mask.data.clone());
    if let Some(last) = shape.last_mut().filter(|last| **last < keys && **last > 0) {
        let rows = mask.data.chunks_exact(*last);
        data = rows
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(fill, keys - row.len())))
            .collect();
        *last = keys;
    }
    Tensor { shape, data }
}

/// A mask of up to four axes, which align at the right; the crate repeats axes of size 1.
fn mask_view<T>(mask: &Tensor<T>) -> Result<View<'_, T>, AttentionError> {
    let mut shape = [1; 4];
    let Some(missing) = 4usize.checked_sub(mask.shape.len()) else {
        let (expected, got) = (4, mask.shape.len());
        return Err(AttentionError::Shape { operand: "attn_mask", axis: "rank", expected, got });
    };
    shape[missing..].copy_from_slice(&mask.shape);
    View::new(&mask.data, shape)
}
