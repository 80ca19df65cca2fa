//! Masks from their parts, list by list and bit by bit, mostly valid ones.

use crate::Tally;
use crate::call::{call, refused};
use crate::common::cases::{Rng, levels};
use crate::size::shrink;
use arbitrary::{Result, Unstructured};
use lucid_attention::certify::{self, Bound};
use lucid_attention::{
    AttentionError, Inputs, Intervals, KeyPanels, Mask, QueryStart, Ragged, Span, View, reference,
};

/// Everything that a mask may hold, and the sizes it is for.
#[derive(Debug)]
struct Parts {
    seed: u32,
    batch: usize,
    heads: [usize; 2],
    q_len: usize,
    kv_len: usize,
    dims: [usize; 2],
    bounds: Option<[Vec<usize>; 2]>,
    causal: bool,
    prefix: Option<Vec<usize>>,
    window: Option<[Option<usize>; 2]>,
    last_n: Option<usize>,
    kv_lens: Option<Vec<usize>>,
    documents: Option<Vec<usize>>,
    /// Shape, offsets, spans.
    intervals: Option<([usize; 3], Vec<usize>, Vec<Span>)>,
    allowed: Option<([usize; 4], Vec<bool>)>,
    /// Numbers are 0 or -inf.
    bias: Option<([usize; 4], Vec<f32>)>,
    start: i64,
    alibi: bool,
    sinks: bool,
}

/// Something, every other time.
fn maybe<'a, T>(
    input: &mut Unstructured<'a>,
    make: impl FnOnce(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if input.arbitrary()? { make(input).map(Some) } else { Ok(None) }
}

/// Ascending, the ends included.
fn bounds(input: &mut Unstructured<'_>, parts: usize, len: usize) -> Result<Vec<usize>> {
    let inner: Result<Vec<usize>> = (1..parts).map(|_| input.int_in_range(0..=len)).collect();
    let mut bounds = inner?;
    bounds.extend([0, len]);
    bounds.sort_unstable();
    Ok(bounds)
}

/// A shape with axes that repeat.
fn repeated(input: &mut Unstructured<'_>, shape: [usize; 4]) -> Result<[usize; 4]> {
    let mut repeated = shape;
    for size in &mut repeated {
        if input.arbitrary()? {
            *size = 1;
        }
    }
    Ok(repeated)
}

impl Parts {
    fn new(input: &mut Unstructured<'_>) -> Result<Self> {
        let heads = *input.choose(&[[1, 1], [2, 1], [2, 2], [6, 2]])?;
        let (mut q_len, mut kv_len) = (input.int_in_range(0..=14)?, input.int_in_range(0..=90)?);
        // Now and then several tiles and splits.
        let mut most_pairs = 1_500;
        if input.ratio(1, 8)? {
            kv_len *= 12;
            // Some of them for several groups of rows.
            most_pairs = if kv_len < 960 { 5_000 } else { 50_000 };
        }
        shrink(most_pairs, heads[0], [&mut q_len, &mut kv_len]);
        let bounds_of = maybe(input, |input| {
            let sequences = input.int_in_range(1..=4)?;
            Ok([bounds(input, sequences, q_len)?, bounds(input, sequences, kv_len)?])
        })?;
        let batch = if bounds_of.is_some() { 1 } else { input.int_in_range(1..=2)? };
        let longest = |bounds: &[usize]| bounds.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let [sequences, queries, keys] = match &bounds_of {
            Some([q, kv]) => [q.len() - 1, longest(q), longest(kv)],
            None => [batch, q_len, kv_len],
        };
        let list = |input: &mut Unstructured<'_>, most: usize| -> Result<Vec<usize>> {
            (0..sequences).map(|_| input.int_in_range(0..=most)).collect()
        };
        let reach = |input: &mut Unstructured<'_>| -> Result<usize> {
            Ok(if input.ratio(1, 16)? { usize::MAX } else { input.int_in_range(0..=keys + 2)? })
        };
        let dense = [sequences, heads[0], queries, keys];
        Ok(Self {
            seed: input.arbitrary()?,
            batch,
            heads,
            q_len,
            kv_len,
            dims: [input.int_in_range(1..=9)?, input.int_in_range(1..=9)?],
            causal: input.arbitrary()?,
            prefix: maybe(input, |input| list(input, keys + 1))?,
            window: maybe(input, |input| Ok([maybe(input, reach)?, maybe(input, reach)?]))?,
            last_n: maybe(input, |input| input.int_in_range(0..=keys + 2))?,
            // One beyond what there is, now and then: an error.
            kv_lens: maybe(input, |input| {
                let most = if input.ratio(1, 16)? { keys + 1 } else { 0 };
                let mut lens = list(input, keys.max(most))?;
                if let (Some([_, kv]), true) = (&bounds_of, most == 0) {
                    lens.iter_mut()
                        .zip(kv.windows(2))
                        .for_each(|(len, pair)| *len = (*len).min(pair[1] - pair[0]));
                }
                Ok(lens)
            })?,
            documents: maybe(input, |input| {
                let count = input.int_in_range(0..=4)?;
                let mut bounds = bounds(input, count, keys + 2)?;
                if input.ratio(1, 16)? {
                    bounds.reverse();
                }
                Ok(bounds)
            })?,
            intervals: maybe(input, |input| {
                let [s, h, ..] = repeated(input, dense)?;
                let (mut offsets, mut spans) = (vec![0], Vec::new());
                for _ in 0..s * h * queries {
                    let count = input.int_in_range(0..=3)?;
                    let ends = bounds(input, 2 * count + 1, keys + 1)?;
                    spans.extend(ends[1..].chunks_exact(2).map(|ends| Span { start: ends[0], end: ends[1] }));
                    offsets.push(spans.len());
                }
                if input.ratio(1, 16)? {
                    spans.reverse();
                }
                Ok(([s, h, queries], offsets, spans))
            })?,
            allowed: maybe(input, |input| {
                let shape = repeated(input, dense)?;
                let bytes = input.bytes(shape.iter().product::<usize>().div_ceil(8).min(input.len()))?;
                let bit = |at: usize| bytes.get(at / 8).is_none_or(|byte| byte >> (at % 8) & 1 == 1);
                Ok((shape, (0..shape.iter().product()).map(bit).collect()))
            })?,
            bias: maybe(input, |input| {
                let shape = repeated(input, dense)?;
                let bytes = input.bytes(shape.iter().product::<usize>().div_ceil(8).min(input.len()))?;
                let bit = |at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
                let number = |at| if bit(at) { f32::NEG_INFINITY } else { 0.25 };
                Ok((shape, (0..shape.iter().product()).map(number).collect()))
            })?,
            start: if input.ratio(1, 16)? { input.arbitrary()? } else { input.int_in_range(-20..=100)? },
            alibi: input.arbitrary()?,
            sinks: input.arbitrary()?,
            bounds: bounds_of,
        })
    }

    /// The sequence that a key token of the operand belongs to, and where it stands in it.
    fn place(&self, batch: usize, token: usize) -> [usize; 2] {
        let Some([_, kv]) = &self.bounds else { return [batch, token] };
        let sequence = kv.windows(2).position(|pair| (pair[0]..pair[1]).contains(&token));
        let sequence = sequence.expect("bounds cover all tokens");
        [sequence, token - kv[sequence]]
    }

    /// Whether a row's spans are no list: backward, or not in order.
    fn spans_are_wrong(&self) -> bool {
        self.intervals.as_ref().is_some_and(|(_, offsets, spans)| {
            offsets.windows(2).any(|row| {
                let ends = spans[row[0]..row[1]].iter().flat_map(|span| [span.start, span.end]);
                !ends.is_sorted()
            })
        })
    }

    /// The operands that are wrong in a call.
    fn wrong(&self) -> Vec<&'static str> {
        let keys_of = |sequence: usize| match &self.bounds {
            Some([_, kv]) => kv[sequence + 1] - kv[sequence],
            None => self.kv_len,
        };
        let too_long = |lens: &Vec<usize>| lens.iter().enumerate().any(|(at, &len)| len > keys_of(at));
        let unsorted = |bounds: &Vec<usize>| bounds.windows(2).any(|pair| pair[0] > pair[1]);
        let rules = [
            ("mask.last_n_keys", self.last_n == Some(0)),
            ("kv_lens", self.kv_lens.as_ref().is_some_and(too_long)),
            ("mask.documents", self.documents.as_ref().is_some_and(unsorted)),
        ];
        rules.into_iter().filter(|(_, wrong)| *wrong).map(|(operand, _)| operand).collect()
    }

    fn mask(&self) -> std::result::Result<Mask<'_>, AttentionError> {
        let mut mask = match (&self.prefix, self.causal) {
            (Some(prefix), _) => Mask::prefix_lm(prefix),
            (None, true) => Mask::causal(),
            (None, false) => Mask::NONE,
        };
        if let Some([left, right]) = self.window {
            mask = mask.window(left, right);
        }
        if let Some(n) = self.last_n {
            mask = mask.last_n_keys(n);
        }
        if let Some(lens) = &self.kv_lens {
            mask = mask.kv_lens(lens);
        }
        if let Some(documents) = &self.documents {
            mask = mask.documents(documents);
        }
        if let Some((shape, offsets, spans)) = &self.intervals {
            mask = mask.intervals(Intervals::new(*shape, offsets, spans)?);
        }
        if let Some((shape, allowed)) = &self.allowed {
            mask = mask.allowed(View::new(allowed, *shape)?);
        }
        Ok(mask)
    }
}

/// Numbers of the operands.
#[derive(Clone)]
struct Numbers {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    slopes: Vec<f32>,
    sinks: Vec<f32>,
}

pub fn masks(data: &[u8], tally: &mut Tally) {
    if let Ok(parts) = Parts::new(&mut Unstructured::new(data)) {
        check(&parts, tally).unwrap_or_else(|error| panic!("{error}, of {parts:?}"));
    }
}

/// Compares the call with its definition. What is wrong is refused here; an error that gets out has no reason.
fn check(parts: &Parts, tally: &mut Tally) -> std::result::Result<(), AttentionError> {
    let &Parts { batch, heads: [q_heads, kv_heads], q_len, kv_len, dims: [head_dim, v_dim], .. } = parts;
    let rng = &mut Rng::new(parts.seed.into());
    let mut drawn = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal()).collect() };
    let numbers = Numbers {
        q: drawn(batch * q_heads * q_len * head_dim),
        k: drawn(batch * kv_heads * kv_len * head_dim),
        v: drawn(batch * kv_heads * kv_len * v_dim),
        slopes: drawn(q_heads),
        sinks: drawn(q_heads),
    };
    let mask = match (parts.mask(), parts.spans_are_wrong()) {
        (Ok(mask), false) => mask,
        (Err(error), true) => {
            refused(&error, &["intervals"], tally);
            return Ok(());
        }
        (mask, wrong) => panic!("wrong spans: {wrong}, but {mask:?}, of {parts:?}"),
    };
    let inputs = inputs_of(parts, &numbers, mask, None)?;
    let wrong = parts.wrong();
    if !wrong.is_empty() {
        let answers = levels().into_iter().map(|level| call(&inputs, level, 1).map(|_| ()));
        let mut answers: Vec<_> = answers.collect();
        // The definition takes any list but one that reaches beyond the keys there are.
        if wrong.contains(&"kv_lens") {
            answers.push(reference::attention(&inputs).map(|_| ()));
        }
        for answer in answers {
            let error = answer.expect_err(&format!("{wrong:?} are wrong with {parts:?}"));
            refused(&error, &wrong, tally);
        }
        return Ok(());
    }
    // What no row attends to is poisoned.
    let mut attended = vec![false; batch * kv_heads * kv_len];
    let mut poisoned = numbers.clone();
    reference::for_each_row(&inputs, |row| {
        let [batch, head, _] = row.index;
        let kv_head = head / (q_heads / kv_heads);
        for token in 0..kv_len {
            let [sequence, key] = parts.place(batch, token);
            if sequence == row.sequence && row.scores.get(key).is_some_and(|score| score.attended) {
                attended[(batch * kv_heads + kv_head) * kv_len + token] = true;
            }
        }
    })?;
    for (at, _) in attended.iter().enumerate().filter(|(_, attended)| !**attended) {
        poisoned.k[at * head_dim..][..head_dim].fill(f32::NAN);
        poisoned.v[at * v_dim..][..v_dim].fill(f32::INFINITY);
    }
    for level in levels() {
        let (out, lse) = call(&inputs, level, 1)?;
        let view = View::new(&out, inputs.output_shape())?;
        let certificate = certify::check(&inputs, &view, Some(&lse), &Bound::exact(level))?;
        tally.certificate(&certificate, &|| format!("{level}: {parts:?}"));

        let (other, other_lse) = call(&inputs_of(parts, &poisoned, mask, None)?, level, 2)?;
        tally.same(&other, &out, &|| format!("{level}: poisoned, {parts:?}"));
        tally.same(&other_lse, &lse, &|| format!("{level}: LSE, poisoned, {parts:?}"));
        if parts.bounds.is_none() {
            let k = View::new(&poisoned.k, [batch, kv_heads, kv_len, head_dim])?;
            let panels = KeyPanels::from_rows(k, kv_len)?;
            let (other, _) = call(&inputs_of(parts, &poisoned, mask, Some(&panels))?, level, 1)?;
            tally.same(&other, &out, &|| format!("{level}: from panels, {parts:?}"));
        }
    }
    Ok(())
}

/// The call.
fn inputs_of<'a>(
    parts: &'a Parts,
    numbers: &'a Numbers,
    mask: Mask<'a>,
    panels: Option<&'a KeyPanels<f32>>,
) -> std::result::Result<Inputs<'a, f32, f32>, AttentionError> {
    let &Parts { batch, heads: [q_heads, kv_heads], q_len, kv_len, dims: [head_dim, v_dim], .. } = parts;
    let q = View::new(&numbers.q, [batch, q_heads, q_len, head_dim])?;
    let k = View::new(&numbers.k, [batch, kv_heads, kv_len, head_dim])?;
    let v = View::new(&numbers.v, [batch, kv_heads, kv_len, v_dim])?;
    let mut inputs = match panels {
        Some(panels) => Inputs::new(q, panels, v),
        None => Inputs::new(q, k, v),
    };
    inputs = inputs.mask(mask).q_start(QueryStart::At(parts.start));
    if let Some([q_bounds, kv_bounds]) = &parts.bounds {
        inputs = inputs.ragged(Ragged { q_bounds, kv_bounds });
    }
    if let Some((shape, bias)) = &parts.bias {
        inputs = inputs.bias(View::new(bias, *shape)?);
    }
    if parts.alibi {
        inputs = inputs.alibi(&numbers.slopes);
    }
    if parts.sinks {
        inputs = inputs.sinks(&numbers.sinks);
    }
    Ok(inputs)
}
