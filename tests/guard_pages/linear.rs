//! Linear attention: operands, outputs, decays, lengths and saved states, for every remainder of every size.

use super::PLACES;
use crate::common::cases::*;
use crate::common::guard::announce;
use half::{bf16, f16};
use lucid_attention::linear::{
    FeatureMap, LinearInputs, LinearOptions, LinearPlan, LogDecay, Norms, Projection,
};
use lucid_attention::{Element, Level, Problem, View, ViewMut};

/// What a call is made of.
#[derive(Clone, Copy, Debug)]
struct Size {
    q_len: usize,
    kv_len: usize,
    head_dim: usize,
    v_dim: usize,
    features: usize,
}

const SIZE: Size = Size { q_len: 21, kv_len: 21, head_dim: 6, v_dim: 5, features: 10 };

/// Every remainder by the widths and heights of kernels, and of blocks of 64 tokens, one axis at a time.
fn sizes() -> impl Iterator<Item = Size> {
    let tokens = (0..=70).chain([127, 128, 129]);
    let dims = (1..=36).chain([63, 64, 65]);
    tokens
        .map(|n| Size { q_len: n, kv_len: n, ..SIZE })
        .chain(dims.clone().map(|n| Size { head_dim: n, ..SIZE }))
        .chain((0..=36).chain([63, 64, 65]).map(|n| Size { v_dim: n, ..SIZE }))
        .chain(dims.map(|n| Size { features: n, ..SIZE }))
        .chain((0..=20).map(|n| Size { q_len: n, kv_len: 70, ..SIZE }))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Random features of all keys.
    Positive,
    Causal,
    Window,
    /// No exponential, gates that fade.
    Fading,
    Taylor,
}

const KINDS: [Kind; 5] = [Kind::Positive, Kind::Causal, Kind::Window, Kind::Fading, Kind::Taylor];

/// Everything that a call of a kind, a state and queries of it write.
fn call<T: Element>(level: Level, size: Size, kind: Kind, place: Place) -> Vec<u32> {
    let Size { q_len, kv_len, head_dim, v_dim, features } = size;
    let causal = !matches!(kind, Kind::Positive | Kind::Taylor);
    let q_len = if causal { kv_len } else { q_len };
    let map = match kind {
        Kind::Fading => FeatureMap::Elu,
        Kind::Taylor => FeatureMap::Taylor,
        _ => FeatureMap::Positive(Projection::orthogonal(features, head_dim, Norms::Chi, 1).expect("memory")),
    };
    let problem = Problem { q_heads: 2, kv_heads: 1, head_dim, v_dim, max_q_len: q_len, max_kv_len: kv_len };
    let plain = LinearOptions { level: Some(level), max_threads: Some(1), ..LinearOptions::default() };
    let options = LinearOptions { exact_window: kind == Kind::Window, ..plain };
    let plan = LinearPlan::with_options(&problem, &map, &options).expect("a plan");
    let mut workspace = plan.workspace().expect("memory");
    let mut state = plan.state(1).expect("memory");

    let mut rng = Rng::new(3);
    let mut numbers = |count: usize| -> Memory<T> {
        Memory::new((0..count).map(|_| T::from_f32(rng.normal())).collect(), place)
    };
    let (q, k, v) = (numbers(2 * q_len * head_dim), numbers(kv_len * head_dim), numbers(kv_len * v_dim));
    let decays = Memory::new((0..kv_len).map(|t| -0.01 * (t % 7) as f32).collect(), place);
    let lens = Memory::new(vec![kv_len - kv_len / 3], place);
    let fits = "sized to its shape";
    let shape = [1, 2, q_len, v_dim];
    let q = View::new(&q, [1, 2, q_len, head_dim]).expect(fits);
    let k = View::new(&k, [1, 1, kv_len, head_dim]).expect(fits);
    let v = View::new(&v, [1, 1, kv_len, v_dim]).expect(fits);
    let mut inputs = LinearInputs::new(q, k, v).kv_lens(&lens);
    if causal {
        inputs = inputs.causal();
    }
    if kind == Kind::Fading {
        let decays = View::new(&decays, [1, 1, kv_len, 1]).expect(fits);
        inputs = inputs.log_decay(LogDecay::PerToken(decays));
    }

    let [mut first, mut second, mut third] =
        [(); 3].map(|()| Memory::new(vec![T::from_f32(CANARY); 2 * q_len * v_dim], place));
    let target = ViewMut::new(&mut first, shape).expect(fits);
    plan.run(&inputs, target, &mut workspace).expect("operands that fit");
    if causal {
        let target = ViewMut::new(&mut second, shape).expect(fits);
        plan.extend(&inputs, target, &mut state, &mut workspace).expect("operands that fit");
    } else {
        plan.absorb(&inputs, &mut state, &mut workspace).expect("operands that fit");
    }
    let target = ViewMut::new(&mut third, shape).expect(fits);
    plan.attend(q, target, &state, &mut workspace).expect("operands that fit");
    let mut saved = Memory::new(vec![CANARY; state.saved_len()], place);
    let mut seen = Memory::new(vec![0], place);
    state.save(&mut saved, &mut seen).expect("room");
    let mut other = plan.state(1).expect("memory");
    other.restore(&saved, &seen).expect("its own numbers");

    let outputs = first.iter().chain(&*second).chain(&*third).map(|x| x.to_f32());
    let all = outputs.chain(saved.iter().copied());
    all.map(|x| if x.is_nan() { f32::NAN } else { x }.to_bits()).collect()
}

fn stored_as<T: Element>(kinds: &[Kind]) {
    for level in levels() {
        for (size, &kind) in sizes().flat_map(|size| kinds.iter().map(move |kind| (size, kind))) {
            if kind == Kind::Taylor && size.head_dim > 36 {
                continue; // thousands of features
            }
            let expected = call::<T>(level, size, kind, Place::Heap);
            for place in PLACES {
                let _announced = announce(&(level, T::DTYPE, size, kind, place));
                assert!(call::<T>(level, size, kind, place) == expected, "{level}, {size:?}, {kind:?}");
            }
        }
    }
}

#[test]
fn every_size() {
    stored_as::<f32>(&KINDS);
}

#[test]
fn every_size_in_half_precision() {
    stored_as::<f16>(&KINDS[1..4]);
    stored_as::<bf16>(&KINDS[1..4]);
}
