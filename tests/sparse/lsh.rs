//! LSH attention against its definition in f64: sets of pairs, and the rounds of the well-known codes.

use crate::common::cases::Rng;
use lucid_attention::sparse::{Lsh, Rotations};
use lucid_attention::{Mask, View};

/// Tokens and values of some heads, `[batch, heads, tokens, dim]`.
pub(crate) struct Tokens {
    shape: [usize; 4],
    v_dim: usize,
    qk: Vec<f32>,
    v: Vec<f32>,
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

fn check(lsh: &Lsh, tokens: &Tokens, mask: Mask<'_>, allows: &dyn Fn(usize, usize) -> bool, what: &str) {
    let [_, heads, _, dim] = tokens.shape;
    let rotations = Rotations::seeded(3, heads, dim, lsh.rounds, lsh.buckets).expect("rotations");
    let buckets = rotations.buckets(tokens.qk()).expect("buckets");
    check_buckets(lsh, tokens, &buckets, mask, allows, what);
}

/// Holds a call with these buckets against the definition.
pub(crate) fn check_buckets(
    lsh: &Lsh,
    tokens: &Tokens,
    buckets: &[u32],
    mask: Mask<'_>,
    allows: &dyn Fn(usize, usize) -> bool,
    what: &str,
) {
    let [batch, heads, count, _] = tokens.shape;
    let got = lsh.attention(tokens.qk(), tokens.v(), buckets, mask).expect("operands that fit");
    let largest = tokens.v.iter().fold(0.0, |max: f32, v| max.max(v.abs()));
    for head in 0..batch * heads {
        let own = &buckets[head * lsh.rounds * count..][..lsh.rounds * count];
        let expected = definition(lsh, tokens, head, own, allows);
        for (token, (out, lse)) in expected.into_iter().enumerate() {
            let row = head * count + token;
            for (d, out) in out.iter().enumerate() {
                let error = (f64::from(got.out[row * tokens.v_dim + d]) - out).abs();
                let close = error <= 1e-5 * f64::from(largest);
                assert!(close, "{what}, head {head}, token {token}, column {d}: off by {error:e}");
            }
            // A token that sees only itself has the logit of the definition's mask there, or its own.
            if lse > -1e4 {
                let error = (f64::from(got.lse[row]) - lse).abs();
                assert!(
                    error <= 1e-5 * (1.0 + lse.abs()),
                    "{what}, head {head}, token {token}: LSE off by {error:e}"
                );
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
    check(&lsh, &tokens, Mask::NONE.allowed(allowed), &|q, k| dense[q * 70 + k], "a dense mask");
}

/// R3: in one chunk every token sees every other, and the first of a causal sequence itself alone.
#[test]
fn one_chunk_is_dense() {
    let tokens = Tokens::new(5, [1, 1, 50, 16], 8);
    let lsh = Lsh { rounds: 2, buckets: 4, ..Lsh::new(64) };
    let rotations = Rotations::seeded(1, 1, 16, 2, 4).expect("rotations");
    let buckets = rotations.buckets(tokens.qk()).expect("buckets");
    let got = lsh.attention(tokens.qk(), tokens.v(), &buckets, Mask::causal()).expect("operands that fit");
    assert_eq!(got.out[..8], tokens.v[..8], "the first token is its own value");

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
    for (at, (got, expected)) in got.out.iter().zip(dense.expect("operands that fit")).enumerate() {
        assert!((got - expected).abs() < 1e-5, "element {at}: {got}, dense {expected}");
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
        let got = rotations.buckets(tokens.qk()).expect("buckets");
        let mut ties = 0;
        for (at, &bucket) in got.iter().enumerate() {
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
        assert!(ties < 3, "{ties} ties among so few tokens");
    }
    let again = |seed| Rotations::seeded(seed, 1, dim, 1, 64).unwrap().buckets(tokens.qk()).unwrap();
    assert_eq!(again(4), again(4), "the same seed");
    assert_ne!(again(4), again(5), "another seed");
}

/// R4: later tokens find their planted neighbour (cosines from 0.95 to 1, evenly), half the sequence before, in nearly every
/// row. (Where all cosines are about 0.95, 98 of 100 do.)
#[test]
fn neighbours_meet() {
    let (count, dim, chunk) = (4096, 64, 64);
    let mut tokens = Tokens::new(9, [1, 1, count, dim], 1);
    let rng = &mut Rng::new(10);
    let (first, second) = tokens.qk.split_at_mut(count / 2 * dim);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for (a, b) in first.chunks(dim).zip(second.chunks_mut(dim)) {
        // What is across of b, as long as the angle's tangent asks for.
        let cosine = 0.975 + 0.025 * rng.uniform();
        let along = dot(a, b) / dot(a, a);
        b.iter_mut().zip(a).for_each(|(b, a)| *b -= along * a);
        let factor = (dot(a, a) / dot(b, b)).sqrt() * (1.0 - cosine * cosine).sqrt() / cosine;
        b.iter_mut().zip(a).for_each(|(b, a)| *b = a + factor * *b);
    }
    let lsh = Lsh { rounds: 4, buckets: 64, ..Lsh::new(chunk) };
    let rotations = Rotations::seeded(12, 1, dim, lsh.rounds, lsh.buckets).expect("rotations");
    let buckets = rotations.buckets(tokens.qk()).expect("buckets");
    // A value of its own for each neighbour that a token has to find, and a factor that leaves weight to no other.
    let lsh = Lsh { scale: 1e3, ..lsh };
    let values: Vec<f32> = (0..count).map(|token| (token % (count / 2)) as f32).collect();
    let v = View::new(&values, [1, 1, count, 1]).expect("values");
    let got = lsh.attention(tokens.qk(), v, &buckets, Mask::causal()).expect("operands that fit");
    let found = (count / 2..count).filter(|&token| (got.out[token] - values[token]).abs() < 0.5).count();
    assert!(found * 100 >= 99 * (count / 2), "{found} of {} rows find their neighbour", count / 2);
}

/// R6: ties keep their order, so that a head's result is its own: alone, in another batch, beside others.
#[test]
fn a_head_is_its_own() {
    let tokens = Tokens::new(4, [2, 2, 64, 8], 8);
    let lsh = Lsh { rounds: 2, buckets: 4, ..Lsh::new(16) };
    // All tokens in one bucket, or in two.
    for buckets in [vec![1; 4 * 2 * 64], (0..4 * 2 * 64).map(|at| (at % 2) as u32).collect()] {
        let run = |tokens: &Tokens, buckets: &[u32]| {
            lsh.attention(tokens.qk(), tokens.v(), buckets, Mask::causal()).expect("operands that fit")
        };
        let all = run(&tokens, &buckets);
        for head in 0..4 {
            let rows = |data: &[f32]| data[head * 64 * 8..][..64 * 8].to_vec();
            let own = Tokens { shape: [1, 1, 64, 8], v_dim: 8, qk: rows(&tokens.qk), v: rows(&tokens.v) };
            let alone = run(&own, &buckets[head * 128..][..128]);
            assert_eq!(alone.out, rows(&all.out), "head {head}");
        }
    }
}

#[test]
fn refused() {
    let tokens = Tokens::new(4, [1, 2, 20, 8], 8);
    let lsh = Lsh { rounds: 2, buckets: 4, ..Lsh::new(16) };
    let run = |lsh: Lsh, buckets: &[u32], mask| lsh.attention(tokens.qk(), tokens.v(), buckets, mask);
    let message = |lsh, buckets: &[u32]| run(lsh, buckets, Mask::NONE).expect_err("an error").to_string();
    let zeros = [0; 80];
    assert_eq!(message(lsh, &zeros[..79]), "buckets: expected elements = 80, got 79");
    let mut wrong = zeros;
    wrong[33] = 4;
    let expected = "buckets: expected numbers below the number of buckets, got 4 at element 33, of 4";
    assert_eq!(message(lsh, &wrong), expected);
    assert_eq!(message(Lsh { rounds: 0, ..lsh }, &[]), "rounds: expected at least 1, got 0");
    assert_eq!(message(Lsh { chunk: 0, ..lsh }, &zeros), "chunk: expected at least 1, got 0");
    let odd = "buckets: expected an even number, at least 2, got 3";
    assert_eq!(message(Lsh { buckets: 3, ..lsh }, &zeros), odd);
    let epsilon = message(Lsh { norm_epsilon: -1.0, ..lsh }, &zeros);
    assert_eq!(epsilon, "norm_epsilon: expected a number from 0 on, got -1");
    assert!(run(Lsh { scale: f32::NAN, ..lsh }, &zeros, Mask::NONE).is_err());
    assert!(run(lsh, &zeros, Mask::NONE.kv_lens(&[21])).is_err());
    let rotations = |heads, dim, rounds, buckets| Rotations::seeded(1, heads, dim, rounds, buckets);
    assert_eq!(rotations(1, 8, 2, 3).expect_err("an error").to_string(), odd);
    for (heads, dim, rounds) in [(0, 8, 2), (1, 0, 2), (1, 8, 0)] {
        assert!(
            rotations(heads, dim, rounds, 4).is_err(),
            "{heads} heads, {dim} dimensions, {rounds} rounds"
        );
    }
    let import = Rotations::import(1, 8, 2, 4, &[0.0; 31]).expect_err("an error").to_string();
    assert_eq!(import, "rotations: expected elements = 32, got 31");
    let other = rotations(1, 9, 2, 4).expect("rotations").buckets(tokens.qk()).expect_err("an error");
    assert_eq!(other.to_string(), "x: expected head_dim = 9, got 8");
}
