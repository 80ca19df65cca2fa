//! L2: what a row does not see does not show, and who computes it does not either.

use super::algebra::{in_pieces, singly};
use super::case::{Case, Decay, Operands};
use super::definition::maps;
use super::{bits, levels};
use half::{bf16, f16};
use lucid_attention::linear::{FeatureMap, LinearOptions};
use lucid_attention::{Element, ViewMut};

/// Calls that differ in how they are made.
fn cases() -> impl Iterator<Item = Case> {
    let base = Case { q_len: 200, kv_len: 200, heads: [4, 2], causal: true, v_dim: 20, ..Case::default() };
    let large = Case { sigma: 8.0, ..base.clone() };
    let window = LinearOptions { exact_window: true, ..base.options };
    let window = Case { options: window, ..base.clone() };
    let decayed = Case { map: FeatureMap::Elu, decay: Some(Decay::PerToken), ..base.clone() };
    let of_maps = maps(16, 40).into_iter().map(move |map| Case { map, ..base.clone() });
    of_maps.chain([large, window, decayed])
}

/// Later tokens, whatever they hold, change no bit: not in their block, not by a gauge they raise.
#[test]
fn later_tokens_change_no_bit() {
    later_tokens::<f32>();
    later_tokens::<f16>();
    later_tokens::<bf16>();
}

fn later_tokens<T: Element>() {
    let bits = |list: &[T]| list.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>();
    for case in cases() {
        let operands = case.operands::<T>();
        for level in levels() {
            let expected = case.run(level, &operands);
            for from in [1, 63, 64, 70, 129, 199] {
                for poison in [f32::NAN, f32::INFINITY, -3e37, 0.0, 50.0] {
                    let mut changed = operands.clone();
                    for (list, dim) in [(&mut changed.q, 16), (&mut changed.k, 16), (&mut changed.v, 20)] {
                        for head in list.chunks_exact_mut(200 * dim) {
                            head[from * dim..].fill(T::from_f32(poison));
                        }
                    }
                    let got = case.run(level, &changed);
                    for (got, expected) in got.chunks_exact(200 * 20).zip(expected.chunks_exact(200 * 20)) {
                        let rows = ..from * 20;
                        let same = bits(&got[rows]) == bits(&expected[rows]);
                        assert!(same, "{level}, {}, {from}, {poison}, {case:?}", T::DTYPE);
                    }
                }
            }
        }
    }
}

/// Nor does it whether there are any: a token that is the last of its block by itself, and the only one.
#[test]
fn shorter_calls_are_beginnings() {
    for case in cases().map(|case| Case { heads: [2, 1], ..case }) {
        let operands = case.operands::<f32>();
        for level in levels() {
            let expected = case.run(level, &operands);
            for len in [1, 2, 64, 65, 129, 150] {
                let cut = |list: &[f32], dim: usize| -> Vec<f32> {
                    list.chunks_exact(200 * dim).flat_map(|head| head[..len * dim].to_vec()).collect()
                };
                let short = Operands {
                    q: cut(&operands.q, 16),
                    k: cut(&operands.k, 16),
                    v: cut(&operands.v, 20),
                    per_head: operands.per_head.clone(),
                    per_token: cut(&operands.per_token, 1),
                };
                let case = Case { q_len: len, kv_len: len, ..case.clone() };
                let got = case.run(level, &short);
                assert_eq!(bits(&got), bits(&cut(&expected, 20)), "{level}, {len}, {case:?}");
            }
        }
    }
}

/// A longer prompt is a prompt and what follows.
#[test]
fn prefill_and_decode_are_a_longer_prefill() {
    for case in cases() {
        let operands = case.operands::<f32>();
        for level in levels() {
            let plan = case.plan(level);
            let expected: Vec<f64> = case.run(level, &operands).into_iter().map(f64::from).collect();
            for prompt in [1, 100, 128] {
                let mut pieces: Vec<_> = std::iter::once(0..prompt).collect();
                pieces.extend(singly(200).split_off(prompt));
                let (out, _) = in_pieces(&case, &plan, &operands, &pieces);
                let off = super::difference(&out, &expected);
                assert!(off <= 1e-5, "{level}, {prompt}: off by {off}, {case:?}");
            }
        }
    }
}

/// Keys and values beyond a sequence's length are not read.
#[test]
fn keys_beyond_the_length_change_no_bit() {
    for case in cases().chain(cases().map(|case| Case { causal: false, ..case })) {
        if !case.causal && (case.options.exact_window || case.decay.is_some()) {
            continue;
        }
        for len in [0, 1, 50, 64, 130] {
            let case = Case { kv_lens: Some(vec![len]), ..case.clone() };
            let operands = case.operands::<f32>();
            let mut changed = operands.clone();
            for (list, dim) in [(&mut changed.k, 16), (&mut changed.v, 20)] {
                list.chunks_exact_mut(200 * dim).for_each(|head| head[len * dim..].fill(f32::NAN));
            }
            for level in levels() {
                let [got, expected] = [&changed, &operands].map(|operands| case.run(level, operands));
                assert_eq!(bits(&got), bits(&expected), "{level}, {len}, {case:?}");
                assert!(len > 0 || bits(&got).iter().all(|&x| x == 0), "{level}: no key, +0");
            }
        }
    }
}

/// NaN in a query shows in its row, NaN in a key in the rows that see it, NaN in a value in its column.
#[test]
fn what_is_not_finite_shows_where_it_is_seen() {
    for case in cases() {
        let case = Case { heads: [1, 1], ..case };
        let operands = case.operands::<f32>();
        for level in levels() {
            let clean = case.run(level, &operands);
            let changed = |change: &dyn Fn(&mut Operands<f32>)| {
                let mut operands = operands.clone();
                change(&mut operands);
                case.run(level, &operands)
            };
            let rows = |out: &[f32], rows: std::ops::Range<usize>| bits(&out[rows.start * 20..rows.end * 20]);
            let out = changed(&|operands| operands.q[70 * 16 + 3] = f32::NAN);
            assert!(out[70 * 20..71 * 20].iter().all(|x| x.is_nan()), "{level}: a query, {case:?}");
            assert_eq!(rows(&out, 0..70), rows(&clean, 0..70), "{level}: rows before, {case:?}");
            assert_eq!(rows(&out, 71..200), rows(&clean, 71..200), "{level}: rows after, {case:?}");

            let out = changed(&|operands| operands.k[70 * 16 + 3] = f32::NAN);
            assert!(out[70 * 20..].iter().all(|x| x.is_nan()), "{level}: a key, {case:?}");
            assert_eq!(rows(&out, 0..70), rows(&clean, 0..70), "{level}: rows before, {case:?}");

            let out = changed(&|operands| operands.v[70 * 20 + 3] = f32::NAN);
            for (index, (x, y)) in out.iter().zip(&clean).enumerate() {
                let sees = index / 20 >= 70 && index % 20 == 3;
                assert!(
                    if sees { x.is_nan() } else { x.to_bits() == y.to_bits() },
                    "{level}: {index}, {case:?}"
                );
            }
        }
    }
}

/// One thread or many, many units or few, alone or in company: the same bits.
#[cfg(feature = "rayon")]
#[test]
fn threads_and_neighbours_change_no_bit() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
    let long = |case: Case| Case {
        q_len: 2500,
        kv_len: 2500,
        heads: [2, 1],
        map: super::case::positive(64, 16),
        ..case
    };
    let causal = long(Case { causal: true, ..Case::default() });
    let cross = Case { causal: false, ..causal.clone() };
    let ragged = Case { batch: 2, kv_lens: Some(vec![2100, 900]), ..cross.clone() };
    let causal_ragged = Case { causal: true, ..ragged.clone() };
    let large = Case { sigma: 4.0, ..causal.clone() };
    let fading = Case { map: FeatureMap::Elu, decay: Some(Decay::PerToken), ..causal.clone() };
    let plain = Case { map: FeatureMap::Taylor, q_len: 1000, kv_len: 1000, ..causal.clone() };
    let long = [causal, cross, ragged, causal_ragged, large, fading, plain];
    for case in cases().map(|case| Case { batch: 3, ..case }).chain(long) {
        let operands = case.operands::<f32>();
        for level in levels() {
            let [alone, shared, shared_small] =
                [(1, None), (3, None), (3, Some(0))].map(|(threads, from)| {
                    let options = LinearOptions {
                        max_threads: Some(threads),
                        spread_from_microseconds: from,
                        ..case.options
                    };
                    let case = Case { options, ..case.clone() };
                    bits(&pool.install(|| case.run(level, &operands)))
                });
            assert!(alone == shared, "{level}: threads, {case:?}");
            assert!(alone == shared_small, "{level}: threads for little work, {case:?}");

            let last = case.batch - 1;
            let part = |list: &[f32]| list[list.len() / case.batch * last..].to_vec();
            let mut own = operands.clone();
            (own.q, own.k, own.v) = (part(&own.q), part(&own.k), part(&own.v));
            own.per_token = part(&own.per_token);
            let kv_lens = case.kv_lens.as_ref().map(|lens| vec![lens[last]]);
            let single = Case { batch: 1, kv_lens, ..case.clone() };
            let expected = &alone[alone.len() / case.batch * last..];
            assert!(bits(&single.run(level, &own)) == expected, "{level}: neighbours, {case:?}");
        }
    }
}

/// Nor do threads change a state, or what follows from it: gates that shut within a wave of blocks, keys that raise the gauge.
#[cfg(feature = "rayon")]
#[test]
fn threads_change_no_bit_of_a_state() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
    let base = Case { q_len: 2000, kv_len: 2000, heads: [2, 1], causal: true, sigma: 8.0, ..Case::default() };
    let fading = Case { map: FeatureMap::Elu, decay: Some(Decay::PerToken), ..base.clone() };
    for case in [base, fading] {
        let mut operands = case.operands::<f32>();
        [700, 1300, 1301].into_iter().for_each(|token| operands.per_token[token] = f32::NEG_INFINITY);
        // Of all large keys, the smaller ones raise the gauge.
        [(800, 3.0), (1500, 0.0)].into_iter().for_each(|(token, x)| operands.k[token * 16..][..16].fill(x));
        for level in levels() {
            let [alone, shared] = [1, 3].map(|threads| {
                let options = LinearOptions { max_threads: Some(threads), ..case.options };
                let plan = Case { options, ..case.clone() }.plan(level);
                let (out, state) =
                    pool.install(|| in_pieces(&case, &plan, &operands, &[0..10, 10..900, 900..2000]));
                let mut numbers = vec![0.0; state.saved_len()];
                state.save(&mut numbers, &mut [0]).expect("room");
                (bits(&out), bits(&numbers))
            });
            assert!(alone == shared, "{level}, {case:?}");
        }
    }
}

/// What a workspace or an output held before does not show.
#[test]
fn scratch_and_output_do_not_show() {
    for case in cases() {
        let (large, small) = (case.clone(), Case { q_len: 70, kv_len: 70, seed: 5, ..case });
        for level in levels() {
            let plan = large.plan(level);
            let mut workspace = plan.workspace().expect("memory");
            let mut call = |case: &Case, fill: f32| {
                let operands = case.operands::<f32>();
                let mut out = vec![fill; case.out_shape().iter().product()];
                let view = ViewMut::new(&mut out, case.out_shape()).expect("out fits");
                plan.run(&case.inputs(&operands), view, &mut workspace).expect("a call that fits");
                bits(&out)
            };
            let first = call(&small, 0.0);
            call(&Case { sigma: 1e30, ..large.clone() }, 0.0);
            assert_eq!(call(&small, f32::NAN), first, "{level}, {small:?}");
        }
    }
}
