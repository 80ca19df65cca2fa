//! D1 to D3 at once: 250 calls on each number of threads from 1 to 8, sequences in ever other company and in ever other pieces, which
//! blocks of rows and splits of keys follow; in workspaces that served the calls before.

use crate::common::cases::*;
use crate::common::guard::announce;
use lucid_attention::{
    Element, Inputs, KeyPanels, Keys, Level, Mask, Outputs, Plan, PlanOptions, Problem, QueryStart, Ragged,
    ViewMut,
};
use std::collections::BTreeSet;
use std::ops::Range;

const REPEATS: usize = 250;
const HEADS: [usize; 2] = [4, 2];
const HEAD_DIM: usize = 24;
const V_DIM: usize = 20;
/// Queries, which are the last tokens, and keys.
const LENGTHS: [[usize; 2]; 7] = [[1, 1], [1, 2500], [5, 17], [40, 40], [33, 257], [60, 300], [13, 1100]];
const MAX_Q_LEN: usize = 60;
const MAX_KV_LEN: usize = 2500;
const COMPANIES: u64 = 24;
/// How far the next company is; no divisor in common with how many there are.
const STEP: usize = 7;

/// Some queries of a sequence, against all of its keys.
struct Piece {
    sequence: usize,
    queries: Range<usize>,
}

/// Pieces in one call.
struct Company<T: Element> {
    pieces: Vec<Piece>,
    q: Operand<T>,
    k: Operand<T>,
    v: Operand<T>,
    panels: Option<KeyPanels<T>>,
    /// Of a ragged batch; a padded one has lengths instead.
    bounds: Option<[Vec<usize>; 2]>,
    starts: Vec<i64>,
    kv_lens: Vec<usize>,
}

fn bounds(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let ends = lengths.scan(0, |end, len| {
        *end += len;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

impl<T: Element> Company<T> {
    fn new(seed: u64, sequences: &[Operands<T, T>]) -> Self {
        let rng = &mut Rng::new(seed);
        let (ragged, count) = (seed.is_multiple_of(2), rng.pick(&[1, 2, 7, 32]));
        let (mut chosen, mut pairs) = (Vec::new(), 0);
        while chosen.len() < count && pairs < 30_000 {
            let sequence = rng.between(0..=LENGTHS.len() - 1);
            pairs += LENGTHS[sequence][0] * LENGTHS[sequence][1];
            chosen.push(sequence);
        }
        // Rows of a padded batch are as many for all.
        let shortest = chosen.iter().map(|&sequence| LENGTHS[sequence][0]).min().unwrap_or(0);
        let piece = |sequence: usize| {
            let [q_len, _] = LENGTHS[sequence];
            let len = if ragged { rng.between(1..=q_len) } else { shortest };
            let first = rng.between(0..=q_len - len);
            Piece { sequence, queries: first..first + len }
        };
        let pieces: Vec<Piece> = chosen.into_iter().map(piece).collect();
        let kv_lens: Vec<usize> = pieces.iter().map(|piece| LENGTHS[piece.sequence][1]).collect();
        let longest = kv_lens.iter().copied().max().unwrap_or(0);
        let start = |piece: &Piece| {
            let [q_len, kv_len] = LENGTHS[piece.sequence];
            (kv_len - q_len + piece.queries.start) as i64
        };
        let starts = pieces.iter().map(start).collect();
        let q_bounds = bounds(pieces.iter().map(|piece| piece.queries.len()));
        let kv_bounds = bounds(kv_lens.iter().copied());

        // What a batch's index, or a token's place in a ragged batch, stands for; nothing in padding.
        let at = |bounds: &[usize], b: usize, t: usize| {
            let s = if ragged { bounds.partition_point(|&bound| bound <= t) - 1 } else { b };
            (&pieces[s], if ragged { t - bounds[s] } else { t })
        };
        let joined = |heads: usize, dim: usize, bounds: &[usize], padded: usize| {
            let total = bounds[bounds.len() - 1];
            let [batch, tokens] = if ragged { [1, total] } else { [pieces.len(), padded] };
            [batch, heads, tokens, dim]
        };
        let nan = T::from_f32(f32::NAN);
        let q_shape = joined(HEADS[0], HEAD_DIM, &q_bounds, shortest);
        let q = Operand::new(q_shape, contiguous(q_shape), Place::Heap, nan, |[b, h, t, d]| {
            let (piece, t) = at(&q_bounds, b, t);
            sequences[piece.sequence].q.at([0, h, piece.queries.start + t, d])
        });
        let keys = |part: fn(&Operands<T, T>) -> &Operand<T>, dim: usize| {
            let shape = joined(HEADS[1], dim, &kv_bounds, longest);
            Operand::new(shape, contiguous(shape), Place::Heap, nan, |[b, h, t, d]| {
                let (piece, t) = at(&kv_bounds, b, t);
                let own = part(&sequences[piece.sequence]);
                if t < own.shape[2] { own.at([0, h, t, d]) } else { nan }
            })
        };
        let (k, v) = (keys(|all| &all.k, HEAD_DIM), keys(|all| &all.v, V_DIM));
        let panels = (seed % 4 == 1).then(|| KeyPanels::from_rows(k.view(), longest).expect("memory"));
        let bounds = ragged.then_some([q_bounds, kv_bounds]);
        Self { pieces, q, k, v, panels, bounds, starts, kv_lens }
    }

    fn inputs(&self) -> Inputs<'_, T, T> {
        let keys = self.panels.as_ref().map_or(Keys::Rows(self.k.view()), Keys::Panels);
        let inputs = Inputs::new(self.q.view(), keys, self.v.view()).mask(Mask::causal());
        let inputs = inputs.q_start(QueryStart::PerSequence(&self.starts));
        match &self.bounds {
            Some([q_bounds, kv_bounds]) => inputs.ragged(Ragged { q_bounds, kv_bounds }),
            None => inputs.mask(Mask::causal().kv_lens(&self.kv_lens)),
        }
    }

    /// Its output and LSE, out of those of whole sequences.
    fn expected(&self, alone: &[Results<T>]) -> (Vec<T>, Vec<f32>) {
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        let mut take = |piece: &Piece, head: usize| {
            let (own, q_len) = (&alone[piece.sequence], LENGTHS[piece.sequence][0]);
            let rows = head * q_len + piece.queries.start..head * q_len + piece.queries.end;
            out.extend_from_slice(&own.out[rows.start * V_DIM..rows.end * V_DIM]);
            lse.extend_from_slice(&own.lse[rows]);
        };
        if self.bounds.is_some() {
            (0..HEADS[0]).for_each(|head| self.pieces.iter().for_each(|piece| take(piece, head)));
        } else {
            self.pieces.iter().for_each(|piece| (0..HEADS[0]).for_each(|head| take(piece, head)));
        }
        (out, lse)
    }
}

/// All repeats on some threads; what calls were like is added to `ways`.
fn repeat<T: Element>(
    companies: &[Company<T>],
    expected: &[(Vec<T>, Vec<f32>)],
    (level, threads): (Level, usize),
    ways: &mut BTreeSet<[usize; 3]>,
) {
    let problem = Problem {
        q_heads: HEADS[0],
        kv_heads: HEADS[1],
        head_dim: HEAD_DIM,
        v_dim: V_DIM,
        max_q_len: MAX_Q_LEN,
        max_kv_len: MAX_KV_LEN,
    };
    let options = PlanOptions { level: Some(level), max_threads: Some(threads), ..PlanOptions::default() };
    let plan = Plan::with_options(&problem, &options).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    for company in companies {
        let explained = plan.explain(&company.inputs()).expect("operands that fit");
        ways.insert([explained.threads, explained.block_rows, explained.splits]);
    }
    for repeat in 0..REPEATS {
        // Each after another one than before.
        let at = repeat * STEP % companies.len();
        let _announced = announce(&(level, threads, at));
        let inputs = companies[at].inputs();
        let shape = inputs.output_shape();
        let mut out = vec![T::from_f32(CANARY); shape.iter().product()];
        let mut lse = vec![CANARY; shape[..3].iter().product()];
        let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("contiguous")).lse(&mut lse);
        plan.run(&inputs, outputs, &mut workspace).expect("operands that fit");
        let what = format!("{level}, {threads} threads, company {at}, repeat {repeat}");
        assert_same(&out, &expected[at].0, &format!("{what}: out"));
        assert_same(&lse, &expected[at].1, &format!("{what}: lse"));
    }
}

fn stored_as<T: Element>() {
    let sequence = |(seed, [q_len, kv_len]): (usize, [usize; 2])| {
        let dims = Case { head_dim: HEAD_DIM, v_dim: V_DIM, heads: HEADS, ..Case::default() };
        let case = Case { seed: seed as u64 + 1, q_len, kv_len, rules: Rules::CAUSAL, ..dims };
        case.operands::<T, T>(Place::Heap)
    };
    let sequences: Vec<_> = LENGTHS.into_iter().enumerate().map(sequence).collect();
    let companies: Vec<Company<T>> = (0..COMPANIES).map(|seed| Company::new(seed, &sequences)).collect();
    for level in levels() {
        let alone: Vec<_> =
            sequences.iter().map(|operands| run(&operands.inputs(), &Ask::all(level))).collect();
        let expected: Vec<_> = companies.iter().map(|company| company.expected(&alone)).collect();
        let mut ways = BTreeSet::new();
        for threads in 1..=8 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| repeat(&companies, &expected, (level, threads), &mut ways));
        }
        let spread = ways.iter().filter(|[threads, ..]| *threads > 1).count();
        let split = ways.iter().filter(|[.., splits]| *splits > 1).count();
        assert!(spread >= 20 && split >= 5, "{level}: too little of a kind: {ways:?}");
    }
}

#[test]
fn any_company_on_any_number_of_threads() {
    stored_as::<f32>();
    stored_as::<half::f16>();
    stored_as::<half::bf16>();
}
