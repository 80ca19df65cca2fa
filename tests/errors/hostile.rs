//! Calls made of arbitrary choices, mostly wrong ones: sizes that no machine has, strides that reach anywhere, lists of
//! any length.

use super::asking::*;
use lucid_attention::certify::{self, Bound};
use lucid_attention::{
    AttentionError, Inputs, Intervals, KeyPanels, Level, Mask, Plan, PlanOptions, Problem, QueryStart,
    Ragged, Span, View, attention, reference,
};

/// Choices that a call is made of; what is missing is 0, the tamest, so that failures shrink to few of them.
pub(crate) struct Choices<'a>(pub(crate) std::slice::Iter<'a, u16>);

impl Choices<'_> {
    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % limit
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// `Some` once in four times.
    fn sometimes<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(4) == 3).then(|| make(self))
    }

    /// A size, small or hostile.
    fn size(&mut self) -> usize {
        match self.below(8) {
            7 => self.pick(&[MAX, MAX / 2, MAX / 2 + 1, MAX - 63, MAX / 64, 1 << 40]),
            _ => self.below(6),
        }
    }

    /// What is right, but for once in 64 times.
    fn mostly(&mut self, right: usize) -> usize {
        if self.below(64) == 63 { self.size() } else { right }
    }

    fn list(&mut self, right: usize) -> Vec<usize> {
        (0..self.mostly(right).min(9)).map(|_| self.size()).collect()
    }

    /// Ascending from 0 to `total`, mostly.
    fn bounds(&mut self, total: usize) -> Vec<usize> {
        let middle = self.below(total.saturating_add(1).min(99));
        [0, middle, total].map(|bound| self.mostly(bound)).to_vec()
    }

    fn number(&mut self) -> f32 {
        self.pick(&[1.0, 0.5, 0.0, -3.0, 1e-45, 1e30, f32::MAX, f32::INFINITY, f32::NAN])
    }

    fn position(&mut self) -> i64 {
        self.pick(&[0, 1, -2, 7, i64::MIN, i64::MIN + 1, i64::MAX])
    }

    fn shape(&mut self, right: [usize; 4]) -> [usize; 4] {
        right.map(|size| self.mostly(size))
    }

    /// A shape where axes may be 1 instead.
    fn broadcast(&mut self, right: [usize; 4]) -> [usize; 4] {
        self.shape(right).map(|size| if self.below(3) == 0 { 1 } else { size })
    }

    fn strides(&mut self, [_, heads, tokens, dim]: [usize; 4]) -> [usize; 4] {
        let row = dim.wrapping_mul(tokens);
        match self.below(8) {
            5 => [0, 0, 0, 1],
            6 => [heads.wrapping_mul(row), dim, heads.wrapping_mul(dim), 1],
            7 => [(); 4].map(|()| self.size()),
            _ => [heads.wrapping_mul(row), row, dim, 1],
        }
    }

    fn view<T>(&mut self, data: &'static [T], shape: [usize; 4]) -> Result<View<'static, T>, AttentionError> {
        View::with_strides(data, shape, self.strides(shape))
    }
}

/// Makes a call, if its parts can be made. Says whether it was legal.
pub(crate) fn make(choices: &mut Choices<'_>) -> Result<bool, AttentionError> {
    let c = choices;
    let ragged = c.sometimes(|_| ()).is_some();
    let batch = if ragged { 1 } else { c.below(3) };
    let (kv_heads, group) = (c.below(3), 1 + c.below(2));
    let (q_len, kv_len, head_dim, v_dim) = (c.below(4), c.below(9), 1 + c.below(4), c.below(4));
    let q_heads = kv_heads * group;
    let q = c.shape([batch, q_heads, q_len, head_dim]);
    let k = c.shape([batch, kv_heads, kv_len, head_dim]);
    let v = c.shape([batch, kv_heads, kv_len, v_dim]);
    let (q, k, v) = (c.view(&NUMBERS, q)?, c.view(&NUMBERS, k)?, c.view(&NUMBERS, v)?);
    let panels = c.sometimes(|c| KeyPanels::from_rows(k, c.size())).transpose()?;
    let mut call = match &panels {
        Some(panels) => Inputs::new(q, panels, v),
        None => Inputs::new(q, k, v),
    };

    let sequences = if ragged { 2 } else { batch };
    let dense = [sequences, q_heads, q_len, kv_len];
    let (kv_lens, prefix, documents) = (c.list(sequences), c.list(1), c.bounds(kv_len));
    let (q_bounds, kv_bounds) = (c.bounds(q_len), c.bounds(kv_len));
    let starts: Vec<i64> = c.list(sequences).iter().map(|_| c.position()).collect();
    let spans: Vec<Span> = c.list(q_len).iter().map(|&start| Span { start, end: c.size() }).collect();
    let offsets: Vec<usize> = (0..=spans.len()).map(|offset| c.mostly(offset)).collect();
    let per_head = [(); 2].map(|()| (0..c.mostly(q_heads).min(9)).map(|_| c.number()).collect::<Vec<f32>>());

    let mut mask = if c.below(2) == 1 { Mask::causal() } else { Mask::NONE };
    mask = c.sometimes(|_| Mask::prefix_lm(&prefix)).unwrap_or(mask);
    mask =
        c.sometimes(|c| mask.window(c.sometimes(Choices::size), c.sometimes(Choices::size))).unwrap_or(mask);
    mask = c.sometimes(|c| mask.last_n_keys(c.size())).unwrap_or(mask);
    mask = c.sometimes(|_| mask.kv_lens(&kv_lens)).unwrap_or(mask);
    mask = c.sometimes(|_| mask.documents(&documents)).unwrap_or(mask);
    if let Some(shape) = c.sometimes(|c| c.broadcast([sequences, q_heads, q_len, 1])) {
        mask = mask.intervals(Intervals::new([shape[0], shape[1], q_len], &offsets, &spans)?);
    }
    if let Some(shape) = c.sometimes(|c| c.broadcast(dense)) {
        mask = mask.allowed(c.view(&YES, shape)?);
    }
    call = call.mask(mask);
    call = match c.below(6) {
        0 => call,
        1 => call.q_start(QueryStart::TopLeft),
        2 => call.q_start(QueryStart::PerSequence(&starts)),
        3 => call.q_start(QueryStart::At(c.position())),
        _ => call.q_start(QueryStart::BottomRight),
    };
    if ragged {
        call = call.ragged(Ragged { q_bounds: &q_bounds, kv_bounds: &kv_bounds });
    }
    call = c.sometimes(|c| call.scale(c.number())).unwrap_or(call);
    call = c.sometimes(|c| call.softcap(c.number())).unwrap_or(call);
    call = c.sometimes(|_| call.alibi(&per_head[0])).unwrap_or(call);
    call = c.sometimes(|_| call.sinks(&per_head[1])).unwrap_or(call);
    if let Some(shape) = c.sometimes(|c| c.broadcast(dense)) {
        call = call.bias(c.view(&NUMBERS, shape)?);
    }

    let rows = batch * q_heads * q_len;
    let (heads, chosen) = (c.sometimes(|c| c.list(2)), c.sometimes(|c| c.list(3)));
    let out = c.shape([batch, q_heads, q_len, v_dim]);
    let lengths = [&heads, &chosen].map(|list| list.as_ref().map(Vec::len));
    let scores = c.shape([batch, lengths[0].unwrap_or(q_heads), lengths[1].unwrap_or(q_len), kv_len]);
    let ask = Ask {
        out,
        out_strides: c.sometimes(|c| c.strides(out)),
        lse: c.sometimes(|c| c.mostly(rows)),
        row_max: c.sometimes(|c| c.mostly(rows)),
        scores: c.sometimes(|c| (scores, c.strides(scores))),
        heads: heads.as_deref(),
        rows: chosen.as_deref(),
    };
    let of = Problem::of(&call);
    let problem = Problem {
        q_heads: c.mostly(of.q_heads),
        kv_heads: c.mostly(of.kv_heads),
        head_dim: c.mostly(of.head_dim),
        v_dim: c.mostly(of.v_dim),
        max_q_len: c.mostly(of.max_q_len),
        max_kv_len: c.mostly(of.max_kv_len),
    };
    let options = PlanOptions {
        level: c.sometimes(|c| c.pick(&Level::ALL)),
        max_threads: Some(c.pick(&[1, 2, 3, 0, MAX, MAX / 2, 1 << 40])),
        bf16_dot: c.sometimes(|_| ()).is_some(),
        max_workspace_bytes: c.sometimes(Choices::size),
        spread_from_microseconds: c.sometimes(|c| c.pick(&[0, 8, u64::MAX])),
    };
    let plan = Plan::with_options(&problem, &options)?;
    // A token repeated without end is legal, but takes as long.
    if call.k().shape()[2] > 1000 {
        return plan.explain(&call).map(|_| false);
    }
    let result = run(&plan, &call, &ask);
    assert!(plan.explain(&call).is_ok() || result.is_err(), "what runs can be explained");
    if q.shape().iter().all(|&size| size < 1000) {
        let _ = attention(&call);
        let _ = reference::attention(&call);
        if let Ok(written) = &result {
            certify_answer(&plan, &call, &ask, written);
        }
    }
    result.map(|_| true)
}

/// The answer to a call that is legal is the right one.
fn certify_answer(plan: &Plan, call: &Inputs<'_, f32, f32>, ask: &Ask<'_>, written: &Written) {
    let view = match ask.out_strides {
        Some(strides) => View::with_strides(&written[0], ask.out, strides),
        None => View::new(&written[0], ask.out),
    };
    let lse = ask.lse.map(|_| &written[1][..]);
    let out = view.expect("it was an output's");
    // The definition may want more memory than there is.
    let Ok(certificate) = certify::check(call, &out, lse, &Bound::of(plan)) else { return };
    certificate.verdict().unwrap_or_else(|wrong| panic!("{wrong}"));
}
