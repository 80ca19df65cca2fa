//! A cache that is appended to, cut back and asked, against the rows that it should hold.

use crate::Tally;
use crate::common::cases::{Rng, levels};
use crate::size::{most_work, shrink};
use arbitrary::{Result, Unstructured};
use half::{bf16, f16};
use lucid_attention::certify::{self, Bound};
use lucid_attention::{
    Element, Inputs, KvCache, Level, Mask, Outputs, Plan, PlanOptions, Problem, QueryStart, View, ViewMut,
};

pub fn decode(data: &[u8], tally: &mut Tally) {
    let input = &mut Unstructured::new(data);
    // Decoding that ends early has done what there was to do.
    let _ = match data.first().map_or(0, |byte| byte % 3) {
        0 => decode_as::<f32>(input, tally),
        1 => decode_as::<f16>(input, tally),
        _ => decode_as::<bf16>(input, tally),
    };
}

/// The cache, and what it should hold: `[batch * kv_heads][tokens][dim]`.
struct Decoding<T: Element> {
    batch: usize,
    problem: Problem,
    cache: KvCache<T>,
    keys: Vec<Vec<T>>,
    values: Vec<Vec<T>>,
    numbers: Rng,
    /// Multiply-adds of what was asked.
    work: usize,
}

fn decode_as<T: Element>(input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
    let seed = input.arbitrary::<u32>()?;
    let [mut batch, mut kv_heads, mut group] =
        [input.int_in_range(1..=2)?, input.int_in_range(1..=2)?, input.int_in_range(1..=2)?];
    let [mut head_dim, mut v_dim] = [input.int_in_range(1..=20)?, input.int_in_range(0..=20)?];
    let max_kv_len = *input.choose(&[0, 1, 63, 64, 65, 130, 300, 1100])?;
    let most = 8 * most_work(seed.into());
    shrink(most, max_kv_len * (head_dim + v_dim), [&mut batch, &mut group, &mut kv_heads]);
    for dim in [&mut head_dim, &mut v_dim] {
        shrink(most / 2, batch * kv_heads * group * max_kv_len, [dim]);
    }
    let q_heads = kv_heads * group;
    let problem = Problem { q_heads, kv_heads, head_dim, v_dim, max_q_len: 4, max_kv_len };
    let mut decoding = Decoding {
        batch,
        problem,
        cache: KvCache::<T>::new(batch, &problem).expect("small sizes"),
        keys: vec![Vec::new(); batch * kv_heads],
        values: vec![Vec::new(); batch * kv_heads],
        numbers: Rng::new(seed.into()),
        work: 0,
    };
    while !input.is_empty() && decoding.work < most {
        match input.int_in_range(0..=3)? {
            0 | 1 => decoding.append(
                *input.choose(&[0, 1, 2, 7, 63, 64, 65, 200, 1025])?,
                input.arbitrary()?,
                tally,
            ),
            2 => decoding.truncate(input.int_in_range(0..=1200)?),
            _ => decoding.ask(input, tally)?,
        }
    }
    Ok(())
}

impl<T: Element> Decoding<T> {
    /// Adds tokens, in rows with or without gaps, if there is room.
    fn append(&mut self, tokens: usize, gaps: bool, tally: &mut Tally) {
        let Problem { kv_heads, head_dim, v_dim, .. } = self.problem;
        let gap = if gaps { 3 } else { 0 };
        let rows = self.batch * kv_heads * tokens;
        let drawn = |numbers: &mut Rng, dim: usize| -> Vec<T> {
            let row = dim + gap;
            let number =
                |at: usize, numbers: &mut Rng| if at % row < dim { numbers.normal() } else { f32::NAN };
            (0..rows * row).map(|at| T::from_f32(number(at, numbers))).collect()
        };
        let (keys, values) = (drawn(&mut self.numbers, head_dim), drawn(&mut self.numbers, v_dim));
        let view = |data, dim| {
            let (row, shape) = (dim + gap, [self.batch, kv_heads, tokens, dim]);
            View::with_strides(data, shape, [kv_heads * tokens * row, tokens * row, row, 1])
                .expect("sized to it")
        };
        let room = self.cache.capacity() - self.cache.len();
        let added = self.cache.append(view(&keys, head_dim), view(&values, v_dim));
        assert_eq!(added.is_ok(), tokens <= room, "{tokens} tokens, room for {room}: {added:?}");
        if added.is_err() {
            tally.refused += 1;
            return;
        }
        for (all, new, dim) in [(&mut self.keys, &keys, head_dim), (&mut self.values, &values, v_dim)] {
            let row = dim + gap;
            for (head, all) in all.iter_mut().enumerate() {
                let new = new.get(head * tokens * row..).unwrap_or(&[]);
                (0..tokens).for_each(|t| all.extend_from_slice(&new[t * row..][..dim]));
            }
        }
    }

    fn truncate(&mut self, len: usize) {
        let before = self.cache.len();
        self.cache.truncate(len);
        assert_eq!(self.cache.len(), before.min(len), "truncated to {len}");
        self.keys.iter_mut().for_each(|keys| keys.truncate(len * self.problem.head_dim));
        self.values.iter_mut().for_each(|values| values.truncate(len * self.problem.v_dim));
    }

    /// Asks both, at every level, and one of the levels with the same bits for its certificate.
    fn ask(&mut self, input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
        let Problem { q_heads, kv_heads, head_dim, v_dim, .. } = self.problem;
        let (q_len, kv_len) = (input.int_in_range(1..=4)?, self.cache.len());
        self.work += self.batch * q_heads * q_len * kv_len * (head_dim + v_dim);
        let mask = match input.int_in_range(0..=2)? {
            0 => Mask::NONE,
            1 => Mask::causal(),
            _ => Mask::causal().window(Some(input.int_in_range(0..=70)?), None),
        };
        let threads = input.int_in_range(1..=2)?;
        let q: Vec<f32> =
            (0..self.batch * q_heads * q_len * head_dim).map(|_| self.numbers.normal()).collect();
        let q = View::new(&q, [self.batch, q_heads, q_len, head_dim]).expect("sized to it");
        let (keys, values) = (self.keys.concat(), self.values.concat());
        let rows = |data, dim| View::new(data, [self.batch, kv_heads, kv_len, dim]).expect("sized to it");
        let from_cache = self.cache.inputs(q).mask(mask).q_start(QueryStart::BottomRight);
        let from_rows = Inputs::new(q, rows(&keys, head_dim), rows(&values, v_dim));
        let from_rows = from_rows.mask(mask).q_start(QueryStart::BottomRight);
        // With and without fused multiply-add: levels that agree on that have the same bits.
        let mut certified: [Option<(Vec<f32>, Vec<f32>)>; 2] = [None, None];
        for level in levels() {
            let (got, got_lse) = self.call(&from_cache, level, threads);
            let (expected, expected_lse) = self.call(&from_rows, level, 1);
            tally.same(&got, &expected, &|| format!("{level}: from the cache and from rows"));
            tally.same(&got_lse, &expected_lse, &|| format!("{level}: LSE from the cache and from rows"));
            let certified = &mut certified[usize::from(level.is_fused())];
            if let Some((out, lse)) = certified {
                tally.same(&got, out, &|| format!("{level}: another level's output"));
                tally.same(&got_lse, lse, &|| format!("{level}: another level's LSE"));
                continue;
            }
            let out = View::new(&got, from_cache.output_shape()).expect("sized to it");
            let bound = Bound::exact(level);
            let certificate = certify::check(&from_cache, &out, Some(&got_lse), &bound).expect("they fit");
            tally.certificate(&certificate, &|| level.to_string());
            *certified = Some((got, got_lse));
        }
        Ok(())
    }

    fn call(&self, inputs: &Inputs<'_, f32, T>, level: Level, threads: usize) -> (Vec<f32>, Vec<f32>) {
        let options = PlanOptions {
            level: Some(level),
            max_threads: Some(threads),
            // Nothing here is large enough by itself.
            spread_from_microseconds: (threads > 1).then_some(0),
            ..PlanOptions::default()
        };
        let problem = Problem { max_kv_len: self.cache.capacity(), ..self.problem };
        let plan = Plan::with_options(&problem, &options).expect("small sizes");
        let shape = inputs.output_shape();
        let mut out = vec![f32::NAN; shape.iter().product()];
        let mut lse = vec![f32::NAN; shape[..3].iter().product()];
        let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("sized to it")).lse(&mut lse);
        plan.run(inputs, outputs, &mut plan.workspace().expect("memory")).expect("they fit");
        (out, lse)
    }
}
