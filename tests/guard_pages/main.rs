//! What calls beside attention read and write, flush against inaccessible pages at either end: merging, caches, elementary
//! functions, layers, linear and LSH attention, top keys, and the lists that masks and options are made of. Attention's own
//! operands and outputs lie so in every case of `tests/exact.rs`, at every size.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;

mod gaps;
mod linear;
mod lsh;
mod top_keys;

use common::cases::*;
use common::guard::announce;
use half::{bf16, f16};
use lucid_attention::module::{
    AttentionConfig, InputDims, ModuleInputs, ModuleOptions, ModuleWeights, MultiHeadAttention, Tensor,
};
use lucid_attention::{
    Element, Inputs, Intervals, KeyPanels, KvCache, Mask, PlanOptions, Problem, QueryStart, Ragged, Span,
    View, ViewMut, math, merge,
};

const PLACES: [Place; 2] = [Place::AtEnd, Place::AtStart];

/// Numbers at a place.
fn numbers<T: Element>(count: usize, seed: u64, place: Place) -> Memory<T> {
    let mut rng = Rng::new(seed);
    Memory::new((0..count).map(|_| T::from_f32(rng.normal())).collect(), place)
}

/// The same bits as on the heap, for every length and from every start in a vector.
#[test]
fn elementary_functions() {
    for level in levels() {
        for (name, function) in [
            ("exp2", math::exp2 as fn(_, &mut [f32]) -> _),
            ("exp", math::exp),
            ("tanh", math::tanh),
            ("erf", math::erf),
        ] {
            for len in 0..=70 {
                let mut expected = numbers::<f32>(len, 3, Place::Heap);
                function(level, &mut expected).expect("an available level");
                for place in PLACES {
                    let _announced = announce(&(level, name, len, place));
                    let mut got = numbers::<f32>(len, 3, place);
                    function(level, &mut got).expect("an available level");
                    assert_same(&got, &expected, &format!("{level}: {name} of {len}, {place:?}"));
                }
            }
        }
    }
}

/// At the detected level; [`merging_at_every_level`] has the others.
#[test]
fn merging() {
    fn merged<Q: Element>() {
        for (dim, rows) in (0..=70).chain([128, 129]).flat_map(|dim| [1, 3].map(|rows| (dim, rows))) {
            let shape = [1, 1, rows, dim];
            let joint = |place| {
                let (mut out, mut lse) = (numbers::<Q>(rows * dim, 1, place), numbers::<f32>(rows, 2, place));
                let (other, other_lse) = (numbers::<Q>(rows * dim, 3, place), numbers::<f32>(rows, 4, place));
                let view = View::new(&other, shape).expect("sized to it");
                merge(ViewMut::new(&mut out, shape).expect("sized to it"), &mut lse, view, &other_lse)
                    .expect("parts that fit");
                (out.to_vec(), lse.to_vec())
            };
            let (out, lse) = joint(Place::Heap);
            for place in PLACES {
                let _announced = announce(&(Q::DTYPE, shape, place));
                let (got, got_lse) = joint(place);
                assert_same(&got, &out, &format!("{shape:?}, {place:?}"));
                assert_same(&got_lse, &lse, &format!("LSE, {shape:?}, {place:?}"));
            }
        }
    }
    merged::<f32>();
    merged::<f16>();
    merged::<bf16>();
}

#[test]
fn merging_at_every_level() {
    common::process::at_every_level(&["merging", "gaps::of_merged_rows"]);
}

/// Every dimension and every number of tokens up to more than a panel, appended at every offset modulo 16.
#[test]
fn caches() {
    fn filled<T: Element>() {
        let sizes = (1..=80).map(|dim| (dim, 7)).chain((1..=130).map(|tokens| (5, tokens)));
        for (dim, tokens) in sizes {
            let shape = [1, 2, tokens, dim];
            let problem =
                Problem { q_heads: 2, kv_heads: 2, head_dim: dim, v_dim: dim, max_q_len: 1, max_kv_len: 300 };
            let count = 2 * tokens * dim;
            for place in PLACES {
                let _announced = announce(&(T::DTYPE, shape, place));
                let (keys, values) = (numbers::<T>(count, 5, place), numbers::<T>(count, 6, place));
                let (keys, values) =
                    (View::new(&keys, shape).expect("it fits"), View::new(&values, shape).expect("it fits"));
                let mut cache = KvCache::<T>::new(1, &problem).expect("memory");
                let lead = tokens % 17;
                let first = numbers::<T>(2 * lead * dim, 7, place);
                let first = View::new(&first, [1, 2, lead, dim]).expect("it fits");
                cache.append(first, first).expect("room");
                cache.append(keys, values).expect("room");
                let panels = KeyPanels::from_rows(keys, tokens).expect("memory");
                for_each_index(shape, |[b, h, t, d]| {
                    let (key, value) = (
                        *keys.get([b, h, t, d]).expect("inside"),
                        *values.get([b, h, t, d]).expect("inside"),
                    );
                    let held = [cache.keys().get([b, h, lead + t, d]), panels.get([b, h, t, d])];
                    assert!(
                        held.iter().all(|held| held.is_some_and(|held| same(held, key))),
                        "key {t} of {shape:?}"
                    );
                    let held = cache.values().get([b, h, lead + t, d]).copied();
                    assert!(held.is_some_and(|held| same(held, value)), "value {t} of {shape:?}");
                });
            }
        }
    }
    filled::<f32>();
    filled::<f16>();
    filled::<bf16>();
}

/// Lists of every kind, each as long as it has to be and no longer.
#[test]
fn lists() {
    for level in levels() {
        for (q_len, kv_len) in [(1, 1), (1, 300), (7, 37), (20, 20), (33, 270)] {
            let case =
                Case { batch: 2, heads: [4, 2], q_len, kv_len, head_dim: 9, v_dim: 11, ..Case::default() };
            let operands = case.operands::<f32, f32>(Place::AtEnd);
            let call = |place: Place, kind: usize| {
                let list = |values: Vec<usize>| Memory::new(values, place);
                let starts = Memory::new(vec![3i64, -2], place);
                let (lens, prefix) = (list(vec![kv_len, kv_len / 2]), list(vec![kv_len / 3, 1]));
                let documents = list(vec![0, kv_len / 2, kv_len + 1]);
                let (slopes, sinks) = (numbers::<f32>(4, 8, place), numbers::<f32>(4, 9, place));
                let spans: Vec<Span> = (0..q_len).map(|i| Span { start: i % kv_len, end: kv_len }).collect();
                let (spans, offsets) = (Memory::new(spans, place), list((0..=q_len).collect()));
                let intervals = Intervals::new([1, 1, q_len], &offsets, &spans).expect("sorted spans");
                let mask = match kind {
                    0 => Mask::NONE.kv_lens(&lens),
                    1 => Mask::prefix_lm(&prefix),
                    2 => Mask::causal().documents(&documents),
                    3 => Mask::NONE.intervals(intervals),
                    _ => Mask::NONE,
                };
                let inputs = Inputs::new(operands.q.view(), operands.k.view(), operands.v.view()).mask(mask);
                let inputs = inputs.q_start(QueryStart::PerSequence(&starts)).alibi(&slopes).sinks(&sinks);
                run(&inputs, &Ask { place, ..Ask::all(level) })
            };
            for kind in 0..5 {
                let expected = call(Place::Heap, kind);
                for place in PLACES {
                    let _announced = announce(&(level, q_len, kv_len, kind, place));
                    assert_equal(&call(place, kind), &expected, &format!("{level}, list {kind}, {place:?}"));
                }
            }
            let alone = Case { batch: 1, ..case }.operands::<f32, f32>(Place::AtEnd);
            for place in PLACES {
                let _announced = announce(&(level, q_len, kv_len, "bounds", place));
                let (q, kv) = (
                    Memory::new(vec![0, q_len / 2, q_len], place),
                    Memory::new(vec![0, kv_len / 3, kv_len], place),
                );
                let inputs = Inputs::new(alone.q.view(), alone.k.view(), alone.v.view());
                run(
                    &inputs.ragged(Ragged { q_bounds: &q, kv_bounds: &kv }),
                    &Ask { place, ..Ask::all(level) },
                );
            }
        }
    }
}

/// Layers of every input dimension, one query and several tokens.
#[test]
fn layers() {
    for level in levels() {
        for dim in (1..=40).chain([64, 65]) {
            let config = AttentionConfig { num_heads: 2, key_dim: 1 + dim % 7, ..AttentionConfig::default() };
            let weights = ModuleWeights::glorot(&config, InputDims::all(dim), 3).expect("a configuration");
            let plan = PlanOptions { level: Some(level), ..PlanOptions::default() };
            let options = ModuleOptions { plan, ..ModuleOptions::default() };
            let module = MultiHeadAttention::with_options(config, &weights, options).expect("valid parts");
            for tokens in [1, 2, 7, 19] {
                let forward = |place| {
                    let data = numbers::<f32>(tokens * dim, 10, place);
                    let tensor = Tensor::new(&data, &[tokens, dim]).expect("sized to it");
                    module.forward(&ModuleInputs::self_attention(tensor)).expect("a valid call")
                };
                let expected = forward(Place::Heap);
                for place in PLACES {
                    let _announced = announce(&(level, dim, tokens, place));
                    assert_same(
                        &forward(place),
                        &expected,
                        &format!("{level}, {dim}, {tokens} tokens, {place:?}"),
                    );
                }
            }
        }
    }
}
