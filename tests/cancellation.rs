//! Calls that are stopped: rows that are said to be complete are, and a call does not go on for long.

mod common;

use common::cases::*;
use lucid_attention::sparse::{BigBird, BlockGrid, BlockLayout, BlockMask};
use lucid_attention::{
    AttentionError, CancelToken, Element, Inputs, Level, Mask, Metrics, MetricsOptions, Outputs, Plan,
    PlanOptions, Problem, QueryStart, ScoreStage, Scores, View, ViewMut, Workspace,
};
use std::time::{Duration, Instant};

/// Calls cut into many blocks, among them short sequences of a ragged batch, and one cut into splits of keys.
fn cases() -> [Case; 4] {
    let prefill = Case { heads: [4, 2], q_len: 300, kv_len: 900, head_dim: 40, v_dim: 48, ..Case::default() };
    [
        Case { batch: 2, rules: Rules::CAUSAL, ..prefill },
        Case { rules: Rules { ragged: true, sinks: true, ..Rules::NONE }, ..prefill },
        Case { rules: Rules { bias: Some(TYPES[0][0]), ..Rules::NONE }, q_len: 40, batch: 5, ..prefill },
        Case { heads: [2, 1], q_len: 1, kv_len: 60_000, head_dim: 64, v_dim: 64, ..prefill },
    ]
    .map(Case::possible)
}

fn plan(inputs: &Inputs<'_, f32, f32>, level: Level, threads: usize) -> Plan {
    let options = PlanOptions { level: Some(level), max_threads: Some(threads), ..PlanOptions::default() };
    Plan::with_options(&Problem::of(inputs), &options).expect("a plan")
}

/// Output and LSE, and what became of the call.
fn attempt(
    plan: &Plan,
    inputs: &Inputs<'_, f32, f32>,
    workspace: &mut Workspace,
) -> (Vec<f32>, Vec<f32>, Result<(), AttentionError>) {
    let shape = inputs.output_shape();
    let mut out = vec![CANARY; shape.iter().product()];
    let mut lse = vec![CANARY; shape[..3].iter().product()];
    let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("contiguous")).lse(&mut lse);
    let result = plan.run(inputs, outputs, workspace);
    (out, lse, result)
}

/// Every row by its name, and its place in the output.
fn rows<Q: Element, T: Element>(operands: &Operands<Q, T>) -> Vec<([usize; 3], usize)> {
    let [batch, heads, q_len, _] = operands.q.shape;
    let mut rows = Vec::new();
    for_each_index([batch, heads, q_len, 1], |[b, h, i, _]| {
        let at = (b * heads + h) * q_len + i;
        let bounds = &operands.q_bounds;
        let name = if operands.rules.ragged {
            let s = bounds.windows(2).position(|pair| (pair[0]..pair[1]).contains(&i)).expect("a sequence");
            [s, h, i - bounds[s]]
        } else {
            [b, h, i]
        };
        rows.push((name, at));
    });
    rows
}

/// Holds one outcome against the whole answer; returns how many rows are complete.
fn check(
    operands: &Operands<f32, f32>,
    (out, lse, result): &(Vec<f32>, Vec<f32>, Result<(), AttentionError>),
    workspace: &Workspace,
    (all, all_lse): (&[f32], &[f32]),
) -> usize {
    let v_dim = operands.v.shape[3];
    let rows = rows(operands);
    let mut complete = 0;
    for &(name, at) in rows.iter().filter(|(name, _)| workspace.is_complete(*name)) {
        let own = at * v_dim..(at + 1) * v_dim;
        assert_same(&out[own.clone()], &all[own], &format!("row {name:?} is complete"));
        assert_same(&[lse[at]], &[all_lse[at]], &format!("LSE of row {name:?} is complete"));
        complete += 1;
    }
    match result {
        Ok(()) => assert_eq!(complete, rows.len(), "a call that succeeds is complete"),
        Err(AttentionError::Cancelled { complete: counted, rows: all }) => {
            assert_eq!((*counted, *all), (complete, rows.len()), "as many as are named");
            assert!(complete < rows.len(), "what is complete is no error");
        }
        Err(error) => panic!("another error: {error}"),
    }
    complete
}

#[test]
fn stopped_before() {
    for level in levels() {
        for case in cases() {
            let operands = case.operands::<f32, f32>(Place::Heap);
            let token = CancelToken::new();
            let clone = token.clone();
            clone.cancel();
            let inputs = operands.inputs().cancel(&token);
            let plan = plan(&inputs, level, 2);
            let mut workspace = plan.workspace().expect("memory");
            let (out, lse, result) = attempt(&plan, &inputs, &mut workspace);
            let all = rows(&operands).len();
            assert_eq!(result, Err(AttentionError::Cancelled { complete: 0, rows: all }), "{level}");
            let untouched = |x: &f32| x.to_bits() == CANARY.to_bits();
            assert!(out.iter().chain(&lse).all(untouched), "{level}: nothing was begun");
            assert!(!rows(&operands).iter().any(|(name, _)| workspace.is_complete(*name)), "{level}");
        }
    }
}

/// At deadlines anywhere in a call: what is complete has its bits, and the workspace serves the next call.
#[test]
fn stopped_anywhere() {
    for (level, threads) in levels().into_iter().flat_map(|level| [(level, 1), (level, 4)]) {
        for case in cases() {
            let operands = case.operands::<f32, f32>(Place::Heap);
            stop_anywhere(&operands, &operands.inputs(), (level, threads));
        }
    }
}

/// Blocks that come in an order of their own, aligned to rows of a block mask or not, are named all the same.
#[test]
fn stopped_under_a_block_mask() {
    let case =
        Case { batch: 2, heads: [4, 2], q_len: 300, kv_len: 900, head_dim: 40, v_dim: 48, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    for (block, start) in [
        (32, QueryStart::At(600)),
        (100, QueryStart::At(613)),
        (250, QueryStart::BottomRight),
        (64, QueryStart::PerSequence(&[600, 110])),
    ] {
        let layout = |seed| BlockLayout::bigbird(BlockGrid::square(920, block), &BigBird::published(seed));
        let layouts = vec![layout(1).expect("a layout"), layout(2).expect("a layout")];
        let blocks = BlockMask::per_head(layouts, vec![0, 1, 1, 0]).expect("a mask");
        let inputs = operands.inputs().mask(Mask::NONE.blocks(&blocks)).q_start(start);
        for (level, threads) in levels().into_iter().flat_map(|level| [(level, 1), (level, 4)]) {
            stop_anywhere(&operands, &inputs, (level, threads));
        }
    }
}

fn stop_anywhere(
    operands: &Operands<f32, f32>,
    inputs: &Inputs<'_, f32, f32>,
    (level, threads): (Level, usize),
) {
    let plan = plan(inputs, level, threads);
    let mut workspace = plan.workspace().expect("memory");
    let mut whole = || {
        let start = Instant::now();
        let (out, lse, result) = attempt(&plan, inputs, &mut workspace);
        result.expect("operands that fit");
        (out, lse, start.elapsed())
    };
    let (all, all_lse, _) = whole();
    let time = (0..3).map(|_| whole().2).min().expect("three");
    let (mut partly, mut attempts) = (0, 0);
    // A single task has no part that is complete, nor do splits of keys before the end.
    let explained = plan.explain(inputs).expect("they fit");
    let in_parts = explained.tasks > 1 && explained.splits == 1;
    while attempts < 40 || in_parts && partly == 0 {
        let token = CancelToken::with_deadline(Instant::now() + time * (attempts % 40) / 40);
        let outcome = attempt(&plan, &inputs.cancel(&token), &mut workspace);
        let complete = check(operands, &outcome, &workspace, (&all, &all_lse));
        partly += usize::from(complete > 0 && outcome.2.is_err());
        attempts += 1;
        assert!(attempts < 4000, "{level}, {threads} threads: never stopped in the middle: {explained}");
    }
    let (out, lse, result) = attempt(&plan, inputs, &mut workspace);
    result.expect("operands that fit");
    assert_same(&out, &all, &format!("{level}: after calls that were stopped"));
    assert_same(&lse, &all_lse, &format!("{level}: LSE after calls that were stopped"));
}

/// A block is left in the middle: one row over tens of millions of keys, which are one key repeated.
#[test]
fn stopped_within_a_block() {
    let (q, kv) = ([0.5f32; 16], [0.25f32; 16]);
    let keys = View::with_strides(&kv, [1, 1, 1 << 25, 16], [0, 0, 0, 1]).expect("a row repeated");
    let inputs = Inputs::new(View::new(&q, [1, 1, 1, 16]).expect("a row"), keys, keys);
    let plan = plan(&inputs, Level::detect().expect("a level"), 1);
    let mut workspace = plan.workspace().expect("memory");
    let start = Instant::now();
    attempt(&plan, &inputs, &mut workspace).2.expect("operands that fit");
    let whole = start.elapsed();
    // The process may be held up at any time; not ten times out of ten.
    let early = (0..10).any(|_| {
        let start = Instant::now();
        let token = CancelToken::with_deadline(start + whole / 20);
        let (.., result) = attempt(&plan, &inputs.cancel(&token), &mut workspace);
        assert_eq!(result, Err(AttentionError::Cancelled { complete: 0, rows: 1 }));
        start.elapsed() < whole / 2
    });
    assert!(early, "stopped no sooner than half of {whole:?} after a deadline of a twentieth");
}

/// By hand, from another thread; and a token that nobody stops changes no bit.
#[test]
fn stopped_by_another_thread() {
    let operands = cases()[0].operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    let plan = plan(&inputs, Level::detect().expect("a level"), 2);
    let mut workspace = plan.workspace().expect("memory");
    let (all, all_lse, _) = attempt(&plan, &inputs, &mut workspace);
    let idle = CancelToken::with_deadline(Instant::now() + Duration::from_secs(1 << 20));
    let outcome = attempt(&plan, &inputs.cancel(&idle), &mut workspace);
    outcome.2.as_ref().expect("nobody stopped it");
    check(&operands, &outcome, &workspace, (&all, &all_lse));
    let stopped = (0..200).any(|attempts| {
        let token = CancelToken::new();
        let outcome = std::thread::scope(|scope| {
            let other = token.clone();
            scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(10 * (attempts % 20)));
                other.cancel();
            });
            attempt(&plan, &inputs.cancel(&token), &mut workspace)
        });
        check(&operands, &outcome, &workspace, (&all, &all_lse));
        outcome.2.is_err()
    });
    assert!(stopped, "200 calls were over before they could be stopped");
}

/// Totals of metrics are as before, and a call stopped while it writes scores has complete rows.
#[test]
fn scores_and_metrics() {
    let operands = cases()[0].operands::<f32, f32>(Place::Heap);
    let inputs = operands.inputs();
    let shape = inputs.output_shape();
    let plan = plan(&inputs, Level::detect().expect("a level"), 2);
    let mut workspace = plan.workspace().expect("memory");
    let (all, ..) = attempt(&plan, &inputs, &mut workspace);
    let score_shape = [shape[0], shape[1], shape[2], operands.k.shape[2]];
    let mut scores = vec![0.0; score_shape.iter().product()];
    let mut metrics =
        Metrics::new(MetricsOptions::SPECIFIED, shape[1], shape[0] * shape[1] * shape[2]).expect("memory");
    let mut run = |token: &CancelToken, metrics: &mut Metrics| {
        let mut out = vec![CANARY; all.len()];
        let scores =
            Scores::new(ScoreStage::Softmax, ViewMut::new(&mut scores, score_shape).expect("it fits"));
        let outputs = Outputs::new(ViewMut::new(&mut out, shape).expect("it fits")).scores(scores);
        let start = Instant::now();
        let result = plan.run(&inputs.cancel(token), outputs.metrics(metrics), &mut workspace);
        (out, result, start.elapsed(), rows(&operands).iter().all(|(name, _)| workspace.is_complete(*name)))
    };
    let (_, result, time, _) = run(&CancelToken::new(), &mut metrics);
    result.expect("nobody stopped it");
    let counted = |metrics: &Metrics| format!("{:?}", metrics.heads());
    let before = counted(&metrics);
    let mut while_writing = 0;
    for attempts in 0..4000 {
        let token = CancelToken::with_deadline(Instant::now() + time * (attempts % 40) / 44);
        let (out, result, _, complete) = run(&token, &mut metrics);
        let Err(error) = result else {
            // It was faster this time, and counted: begin again.
            metrics = Metrics::new(MetricsOptions::SPECIFIED, shape[1], shape[0] * shape[1] * shape[2])
                .expect("memory");
            run(&CancelToken::new(), &mut metrics).1.expect("nobody stopped it");
            continue;
        };
        assert!(matches!(error, AttentionError::Cancelled { .. }), "{error}");
        assert_eq!(counted(&metrics), before, "totals of a call that was stopped");
        if complete {
            assert_same(&out, &all, "rows that are complete");
            while_writing += 1;
            if while_writing > 3 {
                return;
            }
        }
    }
    panic!("never stopped while it wrote scores");
}
