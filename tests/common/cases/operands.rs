//! The data of a case, and its call.

use super::memory::{contiguous, rows_of, strides};
use super::values::Numbers;
use super::{Case, Operand, Place, Rng, Rules, Start, Storage, blocks, slice};
use half::{bf16, f16};
use lucid_attention::DType::{self, F16, F32};
use lucid_attention::sparse::BlockMask;
use lucid_attention::{
    AnyView, Element, Inputs, Intervals, KeyPanels, Keys, Mask, QueryStart, Ragged, Span, View,
};
use std::ops::Range;

impl Case {
    /// Makes the data.
    pub fn operands<Q: Element, T: Element>(&self, place: Place) -> Operands<Q, T> {
        let &Case { batch, heads: [q_heads, _], q_len, kv_len, rules, .. } = self;
        let rng = &mut Rng::new(self.seed ^ 0x1234_5678_9abc_def0);
        let sequences = if rules.ragged { rng.between(1..=4) } else { batch };
        let (q_bounds, kv_bounds) = if rules.ragged {
            (rng.bounds(sequences, q_len), rng.bounds(sequences, kv_len))
        } else {
            (vec![0, q_len], vec![0, kv_len])
        };
        let longest = |bounds: &[usize]| bounds.windows(2).map(|b| b[1] - b[0]).max().unwrap_or(0);
        let (longest_q, longest_kv) = (longest(&q_bounds), longest(&kv_bounds));
        let keys_of = |s: usize| {
            if rules.ragged { kv_bounds[s]..kv_bounds[s + 1] } else { 0..kv_len }
        };
        let kv_lens: Vec<usize> = (0..sequences).map(|s| rng.between(0..=keys_of(s).len())).collect();
        let prefix: Vec<usize> = (0..sequences).map(|_| rng.between(0..=longest_kv)).collect();
        let reach = (longest_q + longest_kv) as i64;
        let starts = (0..sequences).map(|_| rng.between(0..=2 * reach as usize) as i64 - reach).collect();
        let first = rng.between(0..=2);
        let documents = rng.bounds(4, longest_kv + 2).into_iter().map(|bound| bound + first).collect();

        let interval_shape = [rng.pick(&[1, sequences]), rng.pick(&[1, q_heads]), longest_q];
        let (mut offsets, mut spans) = (vec![0], Vec::new());
        for _ in 0..interval_shape.iter().product() {
            let count = rng.between(0..=3);
            let ends = rng.bounds(2 * count + 1, longest_kv + 1);
            spans.extend(ends[1..].chunks_exact(2).map(|ends| Span { start: ends[0], end: ends[1] }));
            offsets.push(spans.len());
        }

        let blocks = rules.blocks.then(|| {
            // Most where queries are likely to stand.
            blocks::draw(rng, [sequences, q_heads], [longest_q + longest_kv, longest_kv])
        });

        let dense = |rng: &mut Rng| {
            [sequences, q_heads, longest_q, longest_kv].map(|n| if rng.chance(0.3) { 1 } else { n })
        };
        let allowed = rules.allowed.map(|share| {
            let shape = dense(rng);
            Operand::new(shape, contiguous(shape), place, false, |_| rng.chance(share))
        });
        let bias = rules.bias.map(|dtype| {
            let shape = dense(rng);
            Bias::new(dtype, shape, place, rng)
        });
        let slopes = (0..q_heads).map(|_| rng.uniform().abs()).collect();
        let sinks = (0..q_heads).map(|_| rng.normal()).collect();

        // Keys and values past the key length must not matter; with stride 0 they are those before it, too.
        let shared = matches!(self.storage, Storage::SharedHeads | Storage::SharedTokens);
        let slack = |b: usize, t: usize| {
            let dead = |s: usize| keys_of(s).contains(&t) && t - keys_of(s).start >= kv_lens[s];
            rules.kv_lens && !shared && if rules.ragged { (0..sequences).any(dead) } else { dead(b) }
        };
        let (q, k, v) = self.numbers(place, rng, slack);
        let panels = (self.storage == Storage::Panels)
            .then(|| KeyPanels::from_rows(k.view(), kv_len).expect("panels of these keys"));
        Operands {
            rules,
            q,
            k,
            v,
            panels,
            q_bounds,
            kv_bounds,
            kv_lens,
            prefix,
            starts,
            documents,
            interval_shape,
            offsets,
            spans,
            blocks,
            allowed,
            bias,
            slopes,
            sinks,
        }
    }

    /// Queries, keys and values: NaN for the keys and values of the batches and tokens that are `slack`.
    fn numbers<Q: Element, T: Element>(
        &self,
        place: Place,
        rng: &mut Rng,
        slack: impl Fn(usize, usize) -> bool,
    ) -> (Operand<Q>, Operand<T>, Operand<T>) {
        let &Case { batch, heads: [q_heads, kv_heads], q_len, kv_len, head_dim, v_dim, storage, .. } = self;
        let number = Numbers { case: self, q: Q::DTYPE, kv: T::DTYPE };
        let packed = q_heads + 2 * kv_heads;
        let shape = [batch, q_heads, q_len, head_dim];
        let nan = Q::from_f32(f32::NAN);
        let q =
            Operand::new(shape, strides(storage, shape, packed), place, nan, |_| Q::from_f32(number.q(rng)));

        let shared_strides = |shape| {
            let [b, h, t, d] = strides(storage, shape, packed);
            match storage {
                Storage::SharedHeads => [0, 0, t, d],
                Storage::SharedTokens => [b, h, 0, d],
                _ => [b, h, t, d],
            }
        };
        let nan = T::from_f32(f32::NAN);
        let shape = [batch, kv_heads, kv_len, head_dim];
        let mut keys = number.keys();
        let k = Operand::new(shape, shared_strides(shape), place, nan, |[b, _, t, d]| {
            if slack(b, t) { nan } else { T::from_f32(keys.next(rng, t, d)) }
        });
        let shape = [batch, kv_heads, kv_len, v_dim];
        let v = Operand::new(shape, shared_strides(shape), place, nan, |[b, _, t, d]| {
            if slack(b, t) { nan } else { T::from_f32(number.v(rng, t, d)) }
        });
        (q, k, v)
    }
}

/// A dense bias as it is stored.
#[derive(Debug)]
enum Bias {
    F32(Operand<f32>),
    F16(Operand<f16>),
    Bf16(Operand<bf16>),
}

impl Bias {
    fn new(dtype: DType, shape: [usize; 4], place: Place, rng: &mut Rng) -> Self {
        fn drawn<T: Element>(shape: [usize; 4], place: Place, rng: &mut Rng) -> Operand<T> {
            // A last stride above 1 is legal for biases.
            let step = rng.pick(&[1, 1, 2]);
            let strides = contiguous(shape).map(|stride| stride * step);
            Operand::new(shape, strides, place, T::from_f32(f32::NAN), |_| {
                T::from_f32(if rng.chance(0.1) { f32::NEG_INFINITY } else { rng.normal() })
            })
        }
        match dtype {
            F32 => Bias::F32(drawn(shape, place, rng)),
            F16 => Bias::F16(drawn(shape, place, rng)),
            _ => Bias::Bf16(drawn(shape, place, rng)),
        }
    }

    /// Some of its rows, if any are named.
    fn rows(&self, queries: Option<Range<usize>>) -> AnyView<'_> {
        match self {
            Bias::F32(bias) => rows_of(bias, queries).into(),
            Bias::F16(bias) => rows_of(bias, queries).into(),
            Bias::Bf16(bias) => rows_of(bias, queries).into(),
        }
    }
}

/// The data of a case.
#[derive(Debug)]
pub struct Operands<Q: Element, T: Element> {
    pub rules: Rules,
    pub q: Operand<Q>,
    pub k: Operand<T>,
    pub v: Operand<T>,
    pub panels: Option<KeyPanels<T>>,
    pub q_bounds: Vec<usize>,
    pub kv_bounds: Vec<usize>,
    pub kv_lens: Vec<usize>,
    pub prefix: Vec<usize>,
    pub starts: Vec<i64>,
    documents: Vec<usize>,
    interval_shape: [usize; 3],
    offsets: Vec<usize>,
    spans: Vec<Span>,
    pub blocks: Option<BlockMask>,
    pub allowed: Option<Operand<bool>>,
    bias: Option<Bias>,
    slopes: Vec<f32>,
    sinks: Vec<f32>,
}

impl<Q: Element, T: Element> Operands<Q, T> {
    /// The case's mask.
    pub fn mask(&self) -> Mask<'_> {
        self.mask_with(&self.kv_lens, self.allowed.as_ref().map(Operand::view))
    }

    /// The mask with other key lengths and another dense part, where it has them.
    pub fn mask_with<'a>(&'a self, lens: &'a [usize], allowed: Option<View<'a, bool>>) -> Mask<'a> {
        let Rules { causal, prefix, left, right, last_n, kv_lens, documents, intervals, .. } = self.rules;
        let mut mask = match (prefix, causal) {
            (true, _) => Mask::prefix_lm(&self.prefix),
            (false, true) => Mask::causal(),
            (false, false) => Mask::NONE,
        };
        mask = mask.window(left, right);
        if let Some(n) = last_n {
            mask = mask.last_n_keys(n);
        }
        if kv_lens {
            mask = mask.kv_lens(lens);
        }
        if documents {
            mask = mask.documents(&self.documents);
        }
        if intervals {
            let list = Intervals::new(self.interval_shape, &self.offsets, &self.spans);
            mask = mask.intervals(list.expect("sorted spans"));
        }
        if let Some(blocks) = &self.blocks {
            mask = mask.blocks(blocks);
        }
        allowed.map_or(mask, |allowed| mask.allowed(allowed))
    }

    /// The case's call.
    pub fn inputs(&self) -> Inputs<'_, Q, T> {
        let keys = match &self.panels {
            Some(panels) => Keys::Panels(panels),
            None => Keys::Rows(self.k.view()),
        };
        self.inputs_with(self.q.view(), keys, self.v.view())
    }

    /// The same call with other operands.
    pub fn inputs_with<'a>(
        &'a self,
        q: View<'a, Q>,
        keys: impl Into<Keys<'a, T>>,
        v: View<'a, T>,
    ) -> Inputs<'a, Q, T> {
        let mut inputs = self.options(Inputs::new(q, keys, v).mask(self.mask()));
        if let Some(start) = self.rules.start {
            inputs = inputs.q_start(match start {
                Start::TopLeft => QueryStart::TopLeft,
                Start::BottomRight => QueryStart::BottomRight,
                Start::At(start) => QueryStart::At(start),
                Start::PerSequence => QueryStart::PerSequence(&self.starts),
            });
        }
        if self.rules.ragged {
            inputs = inputs.ragged(Ragged { q_bounds: &self.q_bounds, kv_bounds: &self.kv_bounds });
        }
        self.bias.iter().fold(inputs, |inputs, bias| inputs.bias(bias.rows(None)))
    }

    /// Only these queries, where they stood, against other keys. For one sequence, and without intervals.
    pub fn inputs_of<'a>(&'a self, queries: Range<usize>, keys: impl Into<Keys<'a, T>>) -> Inputs<'a, Q, T> {
        assert!(self.q.shape[0] == 1 && !self.rules.ragged && !self.rules.intervals, "a plain sequence");
        let keys = keys.into();
        let [_, _, q_len, _] = self.q.shape;
        let kv_len = if self.rules.kv_lens { self.kv_lens[0] } else { self.k.shape[2] };
        let first = match self.rules.start {
            None | Some(Start::TopLeft) => 0,
            Some(Start::BottomRight) => kv_len as i64 - q_len as i64,
            Some(Start::At(start)) => start,
            Some(Start::PerSequence) => self.starts[0],
        };
        let v = slice(&self.v, 0..keys.shape()[2]);
        let allowed = self.allowed.as_ref().map(|allowed| rows_of(allowed, Some(queries.clone())));
        let mask = self.mask_with(&self.kv_lens, allowed);
        let inputs = self.options(Inputs::new(slice(&self.q, queries.clone()), keys, v).mask(mask));
        let inputs = inputs.q_start(QueryStart::At(first + queries.start as i64));
        self.bias.iter().fold(inputs, |inputs, bias| inputs.bias(bias.rows(Some(queries.clone()))))
    }

    /// Adds what is neither a mask nor depends on the query's index.
    pub fn options<'a>(&'a self, mut inputs: Inputs<'a, Q, T>) -> Inputs<'a, Q, T> {
        let rules = self.rules;
        if let Some(scale) = rules.scale {
            inputs = inputs.scale(scale);
        }
        if let Some(cap) = rules.softcap {
            inputs = inputs.softcap(cap);
        }
        if rules.alibi {
            inputs = inputs.alibi(&self.slopes);
        }
        if rules.sinks {
            inputs = inputs.sinks(&self.sinks);
        }
        inputs
    }
}
