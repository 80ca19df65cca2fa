//! LSH attention against its definition in f64: sets of pairs, and the rounds of the well-known codes.

use crate::common::cases::{Rng, levels};
use half::{bf16, f16};
use lucid_attention::sparse::{Lsh, Rotations};
use lucid_attention::{Element, Mask, View};

/// Tokens and values of some heads, `[batch, heads, tokens, dim]`.
pub(crate) struct Tokens {
    pub(crate) shape: [usize; 4],
    pub(crate) v_dim: usize,
    pub(crate) qk: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Tokens {
    pub(crate) fn new(seed: u64, shape @ [batch, heads, tokens, dim]: [usize; 4], v_dim: usize) -> Self {
        let rng = &mut Rng::new(seed);
        let rows = batch * heads * tokens;
        let qk = (0..rows * dim).map(|_| rng.normal()).collect();
        let v = (0..rows * v_dim).map(|_| rng.normal()).collect();
        Self { shape, v_dim, qk, v }
    }

    pub(crate) fn qk(&self) -> View<'_, f32> {
        View::new(&self.qk, self.shape).expect("tokens")
    }

    pub(crate) fn v(&self) -> View<'_, f32> {
        let [batch, heads, tokens, _] = self.shape;
        View::new(&self.v, [batch, heads, tokens, self.v_dim]).expect("values")
    }

    /// The same numbers as a type stores them, and the stored ones: tokens and values.
    fn stored<T: Element>(&self) -> (Self, [Vec<T>; 2]) {
        let stored = [&self.qk, &self.v].map(|list| list.iter().map(|&x| T::from_f32(x)).collect::<Vec<T>>());
        let [qk, v] = stored.each_ref().map(|list| list.iter().map(|x| x.to_f32()).collect());
        (Self { qk, v, ..*self }, stored)
    }

    /// One row of either.
    fn row(data: &[f32], row: usize, dim: usize) -> Vec<f64> {
        data[row * dim..][..dim].iter().map(|&x| f64::from(x)).collect()
    }
}

/// The slots of every round, one after another, each round's tokens by (bucket, position).
fn slots(lsh: &Lsh, buckets: &[u32], tokens: usize) -> Vec<Option<usize>> {
    let mut slots = Vec::new();
    for buckets in buckets.chunks(tokens) {
        let mut order: Vec<usize> = (0..tokens).collect();
        order.sort_by_key(|&token| (buckets[token], token));
        slots.extend(order.into_iter().map(Some));
        slots.resize(slots.len().next_multiple_of(lsh.chunk), None);
    }
    slots
}

/// The output of one head by the definition, and the LSE of its union of pairs.
fn definition(
    lsh: &Lsh,
    tokens: &Tokens,
    head: usize,
    buckets: &[u32],
    allows: &dyn Fn(usize, usize) -> bool,
) -> Vec<(Vec<f64>, f64)> {
    let [_, _, count, dim] = tokens.shape;
    let slots = slots(lsh, buckets, count);
    let (chunks, per_round) = (slots.len() / lsh.chunk, slots.len() / lsh.chunk / lsh.rounds);
    let logit = |query: usize, key: usize| {
        let q = Tokens::row(&tokens.qk, head * count + query, dim);
        let k = Tokens::row(&tokens.qk, head * count + key, dim);
        let square: f64 = k.iter().map(|x| x * x).sum();
        let norm = (square + dim as f64 * f64::from(lsh.norm_epsilon)).sqrt();
        // A key of zeros stays one.
        let norm = if norm == 0.0 { 1.0 } else { norm };
        f64::from(lsh.scale) * q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / norm
    };
    let of_query = |query: usize| {
        // Each round's logits and keys, itself among them at -5e4.
        let mut rounds: Vec<Vec<(f64, usize)>> = Vec::new();
        for round in 0..lsh.rounds {
            let first = round * per_round * lsh.chunk;
            let own = (first..slots.len()).find(|&slot| slots[slot] == Some(query)).expect("a slot");
            let chunk = own / lsh.chunk;
            let mut seen = vec![chunk];
            if !chunk.is_multiple_of(per_round) || lsh.wrap {
                seen.push((chunk + chunks - 1) % chunks);
            }
            seen.dedup();
            let mut keys = Vec::new();
            for chunk in seen {
                for key in slots[chunk * lsh.chunk..][..lsh.chunk].iter().flatten().copied() {
                    let same = chunk / per_round == round
                        && buckets[round * count + key] == buckets[round * count + query];
                    if allows(query, key) && (lsh.across_buckets || same || key == query) {
                        keys.push((if key == query { -5e4 } else { logit(query, key) }, key));
                    }
                }
            }
            rounds.push(keys);
        }
        if !lsh.duplicates {
            // The set of all pairs; itself only if there is no other.
            let mut keys: Vec<(f64, usize)> = rounds.concat();
            keys.sort_by_key(|&(_, key)| key);
            keys.dedup_by_key(|&mut (_, key)| key);
            if keys.len() > 1 {
                keys.retain(|&(_, key)| key != query);
            }
            rounds = vec![keys];
        }
        let all: Vec<(f64, usize)> = rounds.concat();
        let max = all.iter().map(|&(logit, _)| logit).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = all.iter().map(|&(logit, _)| (logit - max).exp()).sum();
        let mut out = vec![0.0; tokens.v_dim];
        for &(logit, key) in &all {
            let v = Tokens::row(&tokens.v, head * count + key, tokens.v_dim);
            out.iter_mut().zip(&v).for_each(|(out, v)| *out += (logit - max).exp() / sum * v);
        }
        (out, if all.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() })
    };
    (0..count).map(of_query).collect()
}

/// Holds LSH attention against its definition, as every type stores the tokens, on every level.
fn check(lsh: &Lsh, tokens: &Tokens, mask: Mask<'_>, allows: &dyn Fn(usize, usize) -> bool, what: &str) {
    check_stored::<f32>(lsh, tokens, None, (mask, allows), what);
    check_stored::<f16>(lsh, tokens, None, (mask, allows), what);
    check_stored::<bf16>(lsh, tokens, None, (mask, allows), what);
}

/// Holds a call with these buckets against the definition.
#[allow(dead_code, reason = "for the fuzz targets, which share this file")]
pub(crate) fn check_buckets(
    lsh: &Lsh,
    tokens: &Tokens,
    buckets: &[u32],
    mask: Mask<'_>,
    allows: &dyn Fn(usize, usize) -> bool,
    what: &str,
) {
    check_stored::<f32>(lsh, tokens, Some(buckets), (mask, allows), what);
}

fn check_stored<T: Element>(
    lsh: &Lsh,
    tokens: &Tokens,
    buckets: Option<&[u32]>,
    (mask, allows): (Mask<'_>, &dyn Fn(usize, usize) -> bool),
    what: &str,
) {
    let (tokens, [qk, v]) = tokens.stored::<T>();
    let [batch, heads, count, dim] = tokens.shape;
    let qk = View::new(&qk, tokens.shape).expect("tokens");
    let v = View::new(&v, [batch, heads, count, tokens.v_dim]).expect("values");
    let buckets = buckets.map(<[u32]>::to_vec).unwrap_or_else(|| {
        let rotations = Rotations::seeded(3, heads, dim, lsh.rounds, lsh.buckets).expect("rotations");
        rotations.buckets(qk).expect("buckets")
    });
    let largest = tokens.v.iter().fold(0.0, |max: f32, v| max.max(v.abs()));
    let of_head = |head: usize| {
        let own = &buckets[head * lsh.rounds * count..][..lsh.rounds * count];
        definition(lsh, &tokens, head, own, allows)
    };
    let expected: Vec<_> = (0..batch * heads).flat_map(of_head).collect();
    for level in levels() {
        let lsh = Lsh { level: Some(level), ..*lsh };
        let got = lsh.attention(qk, v, &buckets, mask).expect("operands that fit");
        for (row, (out, lse)) in expected.iter().enumerate() {
            let what = format!("{what}, {level}, {}, head {}, token {}", T::DTYPE, row / count, row % count);
            for (d, out) in out.iter().enumerate() {
                let error = (f64::from(got.out[row * tokens.v_dim + d]) - out).abs();
                assert!(error <= 1e-5 * f64::from(largest), "{what}, column {d}: off by {error:e}");
            }
            // A token that sees only itself has the logit of the definition's mask there, or its own.
            if *lse > -1e4 {
                let error = (f64::from(got.lse[row]) - lse).abs();
                assert!(error <= 1e-5 * (1.0 + lse.abs()), "{what}: LSE off by {error:e}");
            }
        }
    }
}

/// R2, and R1's arithmetic: the clean form as a set of pairs, the codes' forms with their duplicates.
#[test]
fn pairs_and_rounds() {
    for (index, shape) in
        [[1, 2, 96, 12], [2, 1, 100, 8], [1, 1, 33, 5], [1, 2, 64, 20]].into_iter().enumerate()
    {
        let tokens = Tokens::new(index as u64, shape, 9);
        for (rounds, chunk) in [(1, 16), (2, 8), (4, 16), (3, 80)] {
            let clean = Lsh { rounds, buckets: 6, ..Lsh::new(chunk) };
            let forms = [
                clean,
                Lsh { wrap: true, ..clean },
                Lsh { duplicates: true, ..clean },
                Lsh { across_buckets: false, ..clean },
                Lsh::reformer_pytorch(chunk, 6, rounds, shape[3]),
                Lsh { across_buckets: false, ..Lsh::reformer_pytorch(chunk, 6, rounds, shape[3]) },
                Lsh::hugging_face(chunk, 6, rounds),
            ];
            for lsh in forms {
                let what = format!("{shape:?}, {lsh:?}");
                check(&lsh, &tokens, Mask::NONE, &|_, _| true, &what);
                check(&lsh, &tokens, Mask::causal(), &|q, k| k <= q, &format!("{what}, causal"));
            }
        }
    }
}

/// Chunks of more than a tile of 256 keys.
#[test]
fn long_chunks() {
    let tokens = Tokens::new(12, [1, 1, 650, 8], 4);
    let clean = Lsh { rounds: 2, buckets: 4, ..Lsh::new(300) };
    for lsh in [clean, Lsh { across_buckets: false, ..clean }, Lsh { wrap: true, ..clean }] {
        check(&lsh, &tokens, Mask::causal(), &|q, k| k <= q, &format!("{lsh:?}"));
    }
}

/// Masks go by the tokens' own positions.
#[test]
fn masks_on_original_positions() {
    let tokens = Tokens::new(11, [1, 2, 70, 8], 6);
    let lsh = Lsh { rounds: 2, buckets: 4, ..Lsh::new(16) };
    let window = Mask::causal().window(Some(12), None);
    check(&lsh, &tokens, window, &|q, k| k <= q && q <= k + 12, "a window");
    let documents = Mask::causal().documents(&[0, 30, 70]);
    check(&lsh, &tokens, documents, &|q, k| k <= q && (q < 30) == (k < 30), "documents");
    check(&lsh, &tokens, Mask::NONE.kv_lens(&[41]), &|_, k| k < 41, "a key length");
    let dense: Vec<bool> = (0..70 * 70).map(|at| (at / 70 + at % 70) % 3 > 0).collect();
    let allowed = View::new(&dense, [1, 1, 70, 70]).expect("a mask");
    let of_dense = |q: usize, k: usize| dense[q * 70 + k];
    check(&lsh, &tokens, Mask::NONE.allowed(allowed), &of_dense, "a dense mask");
    let own = Lsh { across_buckets: false, ..lsh };
    check(&own, &tokens, Mask::NONE.allowed(allowed), &of_dense, "a dense mask, own buckets");
    let wrapped = Lsh { wrap: true, ..lsh };
    let both = Mask::causal().allowed(allowed);
    check(&wrapped, &tokens, both, &|q, k| k <= q && of_dense(q, k), "a dense mask, wrapped");
}

/// R3: in one chunk every token sees every other, and the first of a causal sequence itself alone.
#[test]
fn one_chunk_is_dense() {
    let tokens = Tokens::new(5, [1, 1, 50, 16], 8);
    let lsh = Lsh { rounds: 2, buckets: 4, ..Lsh::new(64) };
    let rotations = Rotations::seeded(1, 1, 16, 2, 4).expect("rotations");
    let buckets = rotations.buckets(tokens.qk()).expect("buckets");

    // Keys normalised by hand, own positions removed.
    let mut k = tokens.qk.clone();
    for key in k.chunks_mut(16) {
        let norm = key.iter().map(|x| x * x).sum::<f32>().sqrt();
        key.iter_mut().for_each(|x| *x /= norm);
    }
    let others: Vec<bool> = (0..50 * 50).map(|at| at / 50 != at % 50 || at == 0).collect();
    let inputs = lucid_attention::Inputs::new(tokens.qk(), View::new(&k, tokens.shape).unwrap(), tokens.v());
    let others = View::new(&others, [1, 1, 50, 50]).expect("a mask");
    let dense = lucid_attention::attention(&inputs.scale(1.0).mask(Mask::causal().allowed(others)));
    let dense = dense.expect("operands that fit");
    // A chunk of just all tokens, and one that would hold many more.
    for (level, chunk) in levels().into_iter().flat_map(|level| [(level, 50), (level, 64), (level, 1 << 40)])
    {
        let lsh = Lsh { level: Some(level), chunk, ..lsh };
        let got = lsh.attention(tokens.qk(), tokens.v(), &buckets, Mask::causal()).expect("they fit");
        assert_eq!(got.out[..8], tokens.v[..8], "{level}: the first token is its own value");
        for (at, (got, expected)) in got.out.iter().zip(&dense).enumerate() {
            assert!((got - expected).abs() < 1e-5, "{level}, element {at}: {got}, dense {expected}");
        }
    }
}

/// Buckets are the argmax of the formula wherever it is not a tie; imported rotations are used as they are.
#[test]
fn buckets_are_the_argmax() {
    let (heads, dim, rounds, buckets) = (2, 12, 3, 10);
    let tokens = Tokens::new(2, [2, heads, 60, dim], 1);
    let rng = &mut Rng::new(8);
    for own in [1, heads] {
        let values: Vec<f32> = (0..own * dim * rounds * buckets / 2).map(|_| rng.normal()).collect();
        let rotations = Rotations::import(own, dim, rounds, buckets, &values).expect("rotations");
        let of_level = |level| {
            let lsh = Lsh { rounds, buckets, level: Some(level), ..Lsh::new(16) };
            lsh.buckets(&rotations, tokens.qk()).expect("buckets")
        };
        let got: Vec<u32> = levels().into_iter().flat_map(of_level).collect();
        let mut ties = 0;
        for (at, &bucket) in got.iter().enumerate() {
            let at = at % (2 * heads * rounds * 60);
            let [unit, round, token] = [at / 60 / rounds, at / 60 % rounds, at % 60];
            let x = Tokens::row(&tokens.qk, unit * 60 + token, dim);
            let head = if own == 1 { 0 } else { unit % heads };
            let score = |index: usize| -> f64 {
                let of = |d: usize| f64::from(values[((head * dim + d) * rounds + round) * 5 + index]);
                x.iter().enumerate().map(|(d, x)| x * of(d)).sum()
            };
            let scores: Vec<f64> = (0..5).map(score).chain((0..5).map(|index| -score(index))).collect();
            let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let gap = best - scores[bucket as usize];
            assert!(gap < 1e-5, "element {at}: bucket {bucket} is {gap:e} below the best");
            ties += usize::from(gap > 0.0);
        }
        assert!(ties < 3 * levels().len(), "{ties} ties among so few tokens");
    }
    let again = |seed| Rotations::seeded(seed, 1, dim, 1, 64).unwrap().buckets(tokens.qk()).unwrap();
    assert_eq!(again(4), again(4), "the same seed");
    assert_ne!(again(4), again(5), "another seed");
}
