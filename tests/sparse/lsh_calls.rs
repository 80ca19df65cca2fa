//! LSH attention: what it finds, what it visits, how it is called.

use crate::common::cases::{Rng, assert_same, levels};
use crate::lsh::Tokens;
use lucid_attention::sparse::{Lsh, Rotations};
use lucid_attention::{Mask, View};

/// R4: later tokens find their planted neighbour, half the sequence before, in 99 of 100 rows. With cosines from 0.95 to 1,
/// evenly, four rounds do. At 0.95 two of such tokens share one of 64 buckets with a probability of 0.63 (whatever the
/// code, as directions are independent), so that four rounds find 1 - 0.37^4 = 98 of 100; five would find 99.3, six 99.7.
#[test]
fn neighbours_meet() {
    assert!(share_found(4, 0.95..1.0) >= 0.99, "four rounds, cosines from 0.95 on");
    assert!(share_found(4, 0.95..0.95) >= 0.97, "four rounds, cosines of 0.95");
    assert!(share_found(6, 0.95..0.95) >= 0.99, "six rounds, cosines of 0.95");
}

/// The share of later tokens that find their neighbours, in 64 buckets; of four draws.
fn share_found(rounds: usize, cosines: std::ops::Range<f32>) -> f64 {
    (0..4).map(|seed| share_found_in(seed, rounds, &cosines)).sum::<f64>() / 4.0
}

fn share_found_in(seed: u64, rounds: usize, cosines: &std::ops::Range<f32>) -> f64 {
    let (count, dim, chunk) = (4096, 64, 64);
    let mut tokens = Tokens::new(9 + seed, [1, 1, count, dim], 1);
    let rng = &mut Rng::new(100 + seed);
    let (first, second) = tokens.qk.split_at_mut(count / 2 * dim);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for (a, b) in first.chunks(dim).zip(second.chunks_mut(dim)) {
        // What is across of b, as long as the angle's tangent asks for.
        let cosine = cosines.start + (cosines.end - cosines.start) * (0.5 + 0.5 * rng.uniform());
        let along = dot(a, b) / dot(a, a);
        b.iter_mut().zip(a).for_each(|(b, a)| *b -= along * a);
        let factor = (dot(a, a) / dot(b, b)).sqrt() * (1.0 - cosine * cosine).sqrt() / cosine;
        b.iter_mut().zip(a).for_each(|(b, a)| *b = a + factor * *b);
    }
    let lsh = Lsh { rounds, buckets: 64, ..Lsh::new(chunk) };
    let rotations = Rotations::seeded(12 + seed, 1, dim, lsh.rounds, lsh.buckets).expect("rotations");
    let buckets = rotations.buckets(tokens.qk()).expect("buckets");
    // A value of its own for each neighbour that a token has to find, and a factor that leaves weight to no other.
    let lsh = Lsh { scale: 1e3, ..lsh };
    let values: Vec<f32> = (0..count).map(|token| (token % (count / 2)) as f32).collect();
    let v = View::new(&values, [1, 1, count, 1]).expect("values");
    let got = lsh.attention(tokens.qk(), v, &buckets, Mask::causal()).expect("operands that fit");
    let found = (count / 2..count).filter(|&token| (got.out[token] - values[token]).abs() < 0.5).count();
    found as f64 / (count / 2) as f64
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

/// All stages are shared out, and nobody sees how: pools of any size, and at most so many tasks, give the same bits.
#[test]
fn any_number_of_threads() {
    // Enough work in each stage for it to be spread: some 72 us of the smallest, of 60 that are asked for.
    let tokens = Tokens::new(6, [2, 3, 1000, 24], 17);
    let dense: Vec<bool> = (0..1000 * 1000).map(|at| at % 7 > 0).collect();
    let allowed = View::new(&dense, [1, 1, 1000, 1000]).expect("a mask");
    for (index, level) in levels().into_iter().cycle().take(4).enumerate() {
        let lsh = Lsh { rounds: 3, buckets: 32, level: Some(level), ..Lsh::new(48) };
        let lsh = Lsh { wrap: index == 1, duplicates: index == 2, across_buckets: index != 3, ..lsh };
        let mask = if index == 0 { Mask::causal().allowed(allowed) } else { Mask::causal() };
        let rotations = Rotations::seeded(3, 3, 24, lsh.rounds, lsh.buckets).expect("rotations");
        let run = |max_threads| {
            let lsh = Lsh { max_threads, ..lsh };
            let buckets = lsh.buckets(&rotations, tokens.qk()).expect("buckets");
            let result = lsh.attention(tokens.qk(), tokens.v(), &buckets, mask).expect("operands that fit");
            (buckets, result)
        };
        let alone = run(Some(1));
        for (size, most) in [(1, None), (2, None), (3, Some(2)), (8, None), (3, Some(100))] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(size).build().expect("a pool");
            let got = pool.install(|| run(most));
            assert_eq!(got.0, alone.0, "{lsh:?}, {most:?} in a pool of {size}: buckets");
            assert_same(&got.1.out, &alone.1.out, &format!("{lsh:?}, {most:?} in a pool of {size}: out"));
            assert_same(&got.1.lse, &alone.1.lse, &format!("{lsh:?}, {most:?} in a pool of {size}: lse"));
        }
    }
}

/// R5, by what it rests on: a query visits at most two chunks in each round, whatever the length, which at 8192 tokens in two
/// rounds is a sixteenth of what a causal query visits on average. (Time: bench `sparse`.)
#[test]
fn queries_visit_few() {
    let (count, chunk, rounds) = (8192, 64, 2);
    let tokens = Tokens::new(3, [1, 1, count, 16], 1);
    // At a scale of 0 each pair adds 1 to the sum of weights.
    let lsh = Lsh { rounds, buckets: 128, duplicates: true, scale: 0.0, ..Lsh::new(chunk) };
    let rotations = Rotations::seeded(2, 1, 16, rounds, lsh.buckets).expect("rotations");
    let buckets = lsh.buckets(&rotations, tokens.qk()).expect("buckets");
    let got = lsh.attention(tokens.qk(), tokens.v(), &buckets, Mask::NONE).expect("operands that fit");
    let pairs = got.lse.iter().map(|lse| f64::from(*lse).exp().round());
    let most = (rounds * (2 * chunk - 1)) as f64;
    assert!(pairs.clone().all(|pairs| pairs <= most), "a query has more than two chunks a round");
    // All chunks but the first of a round look back.
    let expected = (rounds * (count * (2 * chunk - 1) - chunk * chunk)) as f64;
    assert_eq!(pairs.sum::<f64>(), expected);
    assert!(expected * 16.0 < (count * (count + 1) / 2) as f64);
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
    assert_eq!(
        message(Lsh { max_threads: Some(0), ..lsh }, &zeros),
        "max_threads: expected at least 1, got 0"
    );
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
    let mine = rotations(1, 8, 2, 6).expect("rotations");
    let other = lsh.buckets(&mine, tokens.qk()).expect_err("an error").to_string();
    assert_eq!(other, "rotations: expected buckets = 4, got 6");
    let other = Lsh { rounds: 1, buckets: 6, ..lsh }.buckets(&mine, tokens.qk()).expect_err("an error");
    assert_eq!(other.to_string(), "rotations: expected rounds = 1, got 2");
    assert_eq!(
        Lsh { buckets: 6, ..lsh }.buckets(&mine, tokens.qk()).expect("they fit"),
        mine.buckets(tokens.qk()).expect("they fit")
    );
}
