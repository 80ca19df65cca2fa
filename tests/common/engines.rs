//! A call of each engine, each on its own operands: what tests of surroundings (stacks, pools, callers side by
//! side, floating-point environments) make.

use super::cases::*;
use half::{bf16, f16};
use lucid_attention::linear::{FeatureMap, LinearInputs, LinearOptions, LinearPlan, Norms, Projection};
use lucid_attention::module::*;
use lucid_attention::sparse::{BigBird, BlockGrid, BlockLayout, BlockMask, Lsh, Rotations};
use lucid_attention::{
    Element, Inputs, KvCache, Level, Mask, Metrics, MetricsOptions, Outputs, Plan, PlanOptions, Problem,
    QueryStart, ScoreStage, TopKey, TopKeys, View, ViewMut, math, merge,
};

/// A call that can be made again, from anywhere; it plans, and finds its own scratch.
pub struct Engine {
    pub name: &'static str,
    pub call: Box<dyn Fn() -> Vec<u32> + Send + Sync>,
}

fn engine(name: &'static str, call: impl Fn() -> Vec<u32> + Send + Sync + 'static) -> Engine {
    Engine { name, call: Box::new(call) }
}

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|x| x.to_f32().to_bits()).collect()
}

fn numbers<T: Element>(count: usize, seed: u64) -> Vec<T> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| T::from_f32(rng.normal())).collect()
}

fn view<T>(data: &[T], shape: [usize; 4]) -> View<'_, T> {
    View::new(data, shape).expect("sized to its shape")
}

fn view_mut<T>(data: &mut [T], shape: [usize; 4]) -> ViewMut<'_, T> {
    ViewMut::new(data, shape).expect("sized to its shape")
}

/// All of them, large enough to be spread over threads where they can be, on at most so many.
pub fn engines(level: Level, max_threads: usize) -> Vec<Engine> {
    let mut all = vec![
        exact::<f32>("prefill in f32", level, max_threads, [150, 300]),
        exact::<f16>("prefill in f16", level, max_threads, [150, 300]),
        exact::<bf16>("prefill in bf16", level, max_threads, [150, 300]),
        exact::<f32>("decoding in f32", level, max_threads, [1, 4000]),
        exact::<f16>("decoding in f16", level, max_threads, [1, 4000]),
        cached(level, max_threads),
        asked_for_more(level, max_threads),
        blocks(level, max_threads),
        lsh(level, max_threads),
        linear("linear attention, causal", level, max_threads, true),
        linear("linear attention, of all keys", level, max_threads, false),
        linear_state(level, max_threads),
        layer(level, max_threads),
        engine("elementary functions", move || {
            let mut x: Vec<f32> = numbers(300, 1);
            for function in [math::exp2, math::exp, math::tanh, math::erf] {
                function(level, &mut x).expect("an available level");
            }
            bits(&x)
        }),
    ];
    // It has the detected level.
    all.push(engine("merging", || {
        let shape = [1, 2, 40, 30];
        let (mut out, other) = (numbers::<f32>(2400, 1), numbers::<f32>(2400, 2));
        let (mut lse, other_lse) = (numbers::<f32>(80, 3), numbers::<f32>(80, 4));
        merge(view_mut(&mut out, shape), &mut lse, view(&other, shape), &other_lse).expect("parts that fit");
        [bits(&out), bits(&lse)].concat()
    }));
    all
}

fn exact<T: Element>(
    name: &'static str,
    level: Level,
    threads: usize,
    [q_len, kv_len]: [usize; 2],
) -> Engine {
    let rules = Rules { sinks: true, softcap: Some(20.0), ..Rules::CAUSAL };
    let case = Case { heads: [4, 2], q_len, kv_len, head_dim: 40, v_dim: 48, rules, ..Case::default() };
    let operands = case.operands::<T, T>(Place::Heap);
    engine(name, move || {
        let got = run(&operands.inputs(), &Ask { threads, ..Ask::all(level).scores(ScoreStage::Softmax) });
        [bits(&got.out), bits(&got.lse), bits(&got.scores)].concat()
    })
}

fn cached(level: Level, max_threads: usize) -> Engine {
    let problem = Problem { kv_heads: 2, ..Problem::new(4, 32, 1, 700) };
    let (q, k, v) = (numbers::<f32>(128, 1), numbers::<f32>(40_000, 2), numbers::<f32>(40_000, 3));
    engine("a cache", move || {
        let mut cache = KvCache::<f32>::new(1, &problem).expect("memory");
        let tokens = [1, 2, 600, 32];
        cache.append(view(&k[..38_400], tokens), view(&v[..38_400], tokens)).expect("room");
        let options =
            PlanOptions { level: Some(level), max_threads: Some(max_threads), ..PlanOptions::default() };
        let plan = Plan::with_options(&problem, &options).expect("a plan");
        let shape = [1, 4, 1, 32];
        let inputs = cache.inputs(view(&q, shape)).mask(Mask::causal()).q_start(QueryStart::BottomRight);
        let mut out = vec![0.0; 128];
        let outputs = Outputs::new(view_mut(&mut out, shape));
        plan.run(&inputs, outputs, &mut plan.workspace().expect("memory")).expect("operands that fit");
        bits(&out)
    })
}

/// Metrics and the most probable keys.
fn asked_for_more(level: Level, max_threads: usize) -> Engine {
    let case = Case { heads: [4, 2], q_len: 70, kv_len: 300, head_dim: 24, v_dim: 24, ..Case::default() };
    let operands = case.possible().operands::<f32, f32>(Place::Heap);
    engine("metrics and top keys", move || {
        let inputs = operands.inputs();
        let options =
            PlanOptions { level: Some(level), max_threads: Some(max_threads), ..PlanOptions::default() };
        let plan = Plan::with_options(&Problem::of(&inputs), &options).expect("a plan");
        let options = MetricsOptions { top_k: Some(3), ..MetricsOptions::SPECIFIED };
        let mut metrics = Metrics::new(options, 4, 4 * 70).expect("memory");
        let (mut out, mut top) = (vec![0.0; 4 * 70 * 24], vec![TopKey::NONE; 4 * 70 * 2]);
        let outputs = Outputs::new(view_mut(&mut out, inputs.output_shape()))
            .metrics(&mut metrics)
            .top_keys(TopKeys::new(view_mut(&mut top, [1, 4, 70, 2])));
        plan.run(&inputs, outputs, &mut plan.workspace().expect("memory")).expect("operands that fit");
        let entropies: Vec<f32> = metrics.rows().iter().map(|row| row.entropy).collect();
        let probabilities: Vec<f32> = top.iter().map(TopKey::probability).collect();
        [bits(&out), bits(&entropies), bits(&probabilities)].concat()
    })
}

fn blocks(level: Level, threads: usize) -> Engine {
    let case = Case { heads: [4, 2], q_len: 300, kv_len: 300, head_dim: 24, v_dim: 24, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    engine("a block mask", move || {
        let layout = BlockLayout::bigbird(BlockGrid::square(300, 16), &BigBird::published(1));
        let blocks = BlockMask::from(layout.expect("a layout"));
        let inputs = operands.inputs().mask(Mask::causal().blocks(&blocks));
        bits(&run(&inputs, &Ask { threads, ..Ask::at(level) }).out)
    })
}

fn lsh(level: Level, max_threads: usize) -> Engine {
    let shape = [1, 2, 500, 24];
    let (qk, v) = (numbers::<f32>(24_000, 1), numbers::<f32>(24_000, 2));
    let (level, max_threads) = (Some(level), Some(max_threads));
    let lsh = Lsh { rounds: 2, buckets: 16, level, max_threads, ..Lsh::new(32) };
    engine("LSH attention", move || {
        let rotations = Rotations::seeded(1, 2, 24, lsh.rounds, lsh.buckets).expect("memory");
        let buckets = lsh.buckets(&rotations, view(&qk, shape)).expect("operands that fit");
        let got = lsh.attention(view(&qk, shape), view(&v, shape), &buckets, Mask::causal());
        let got = got.expect("operands that fit");
        [bits(&got.out), bits(&got.lse)].concat()
    })
}

const LINEAR: [usize; 4] = [1, 2, 500, 16];

fn linear_plan(level: Level, max_threads: usize) -> LinearPlan {
    let map = FeatureMap::Positive(Projection::orthogonal(48, 16, Norms::Chi, 1).expect("memory"));
    let options =
        LinearOptions { level: Some(level), max_threads: Some(max_threads), ..LinearOptions::default() };
    LinearPlan::with_options(&Problem::new(2, 16, 500, 500), &map, &options).expect("a plan")
}

fn linear(name: &'static str, level: Level, max_threads: usize, causal: bool) -> Engine {
    let [q, k, v] = [1, 2, 3].map(|seed| numbers::<f32>(16_000, seed));
    engine(name, move || {
        let plan = linear_plan(level, max_threads);
        let inputs = LinearInputs::new(view(&q, LINEAR), view(&k, LINEAR), view(&v, LINEAR));
        let inputs = if causal { inputs.causal() } else { inputs };
        let mut out = vec![0.0f32; 16_000];
        plan.run(&inputs, view_mut(&mut out, LINEAR), &mut plan.workspace().expect("memory"))
            .expect("operands that fit");
        bits(&out)
    })
}

/// A prompt, keys without queries, queries without keys.
fn linear_state(level: Level, max_threads: usize) -> Engine {
    let [q, k, v] = [1, 2, 3].map(|seed| numbers::<f32>(16_000, seed));
    engine("linear attention, a state", move || {
        let plan = linear_plan(level, max_threads);
        let mut workspace = plan.workspace().expect("memory");
        let mut state = plan.state(1).expect("memory");
        let inputs = LinearInputs::new(view(&q, LINEAR), view(&k, LINEAR), view(&v, LINEAR)).causal();
        let [mut first, mut last] = [(); 2].map(|()| vec![0.0f32; 16_000]);
        plan.extend(&inputs, view_mut(&mut first, LINEAR), &mut state, &mut workspace)
            .expect("operands that fit");
        plan.absorb(&inputs, &mut state, &mut workspace).expect("operands that fit");
        plan.attend(view(&q, LINEAR), view_mut(&mut last, LINEAR), &state, &mut workspace)
            .expect("operands that fit");
        let mut other = plan.state(1).expect("memory");
        let (mut saved, mut lens) = (vec![0.0; state.saved_len()], [0]);
        state.save(&mut saved, &mut lens).expect("room");
        other.restore(&saved, &lens).expect("its own numbers");
        other.merge(&state).expect("states of one plan");
        [bits(&first), bits(&last), bits(&saved)].concat()
    })
}

fn layer(level: Level, max_threads: usize) -> Engine {
    let config = AttentionConfig { num_heads: 4, key_dim: 16, causal: true, ..AttentionConfig::default() };
    let weights = ModuleWeights::glorot(&config, InputDims::all(96), 1).expect("a configuration");
    let plan = PlanOptions { level: Some(level), max_threads: Some(max_threads), ..PlanOptions::default() };
    let options = ModuleOptions { plan, ..ModuleOptions::default() };
    let module = MultiHeadAttention::with_options(config, &weights, options).expect("valid parts");
    let tokens = numbers::<f32>(120 * 96, 2);
    engine("a layer", move || {
        let whole = Tensor::new(&tokens, &[120, 96]).expect("sized to its shape");
        let last = Tensor::new(&tokens[119 * 96..], &[96]).expect("sized to its shape");
        let mut workspace = ModuleWorkspace::new();
        let cache = module.project_kv(whole, whole, 120, &mut workspace).expect("memory");
        let cached = ModuleInputs::cached(last, &cache).q_start(QueryStart::BottomRight);
        let calls = [ModuleInputs::self_attention(whole), cached];
        calls.map(|inputs| bits(&module.forward(&inputs).expect("a valid call"))).concat()
    })
}
