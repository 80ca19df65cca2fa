//! What a context holds, and that the current step is not in it.

use crate::{Vectors, filled, shape, value};
use lucid_attention::AttentionError;
use lucid_attention::titans::*;

const DIMS: StepDims = StepDims { x: 5, key: 3, value: 4, query: 2, y: 6 };

/// A part of all steps, one after another.
fn side_by_side(steps: &[Vectors], part: fn(&Vectors) -> &Vec<f32>) -> Vec<f32> {
    steps.iter().flat_map(|step| part(step).iter().copied()).collect()
}

fn assert_holds(history: History<'_>, steps: &[Vectors], first: usize) {
    assert_eq!((history.len(), history.is_empty()), (steps.len(), steps.is_empty()));
    assert_eq!(history.xs(), side_by_side(steps, |step| &step.x));
    assert_eq!(history.keys(), side_by_side(steps, |step| &step.key));
    assert_eq!(history.values(), side_by_side(steps, |step| &step.value));
    assert_eq!(history.queries(), side_by_side(steps, |step| &step.query));
    assert_eq!(history.ys(), side_by_side(steps, |step| &step.y));
    let numbers: Vec<usize> = (first..first + steps.len()).collect();
    assert_eq!(history.timestamps(), numbers.iter().map(|&t| t as f64).collect::<Vec<_>>());
    let ids: Vec<String> = numbers.iter().map(|t| format!("memory {t}")).collect();
    assert_eq!(history.ids().collect::<Vec<_>>(), ids);
}

/// Oldest first, however often the ring has gone round; and so are the last few.
#[test]
fn the_last_steps_in_order() {
    for steps in [0, 1, 2, 49, 50, 51, 99, 100, 101, 157] {
        let (context, kept) = filled(DIMS, steps);
        assert_eq!((kept.len(), context.capacity()), (steps.min(50), 50));
        assert_holds(context.history(), &kept, steps - kept.len());
        for count in [0, 1, 7, 49, 50, 60] {
            let last = &kept[kept.len() - kept.len().min(count)..];
            assert_holds(context.history().recent(count), last, steps - last.len());
            let nested = context.history().recent(count + 3).recent(count);
            assert_holds(nested, last, steps - last.len());
        }
    }
    let one = ContextOptions { capacity: 1, ..ContextOptions::default() };
    let mut context = SequenceContext::with_options(DIMS, one).expect("valid sizes");
    for t in 0..3 {
        let vectors = Vectors::new(DIMS, t);
        context
            .begin(vectors.step(t as f64, &format!("memory {t}")))
            .and_then(|step| step.finish(&vectors.y))
            .expect("a valid step");
        assert_holds(context.history(), &[vectors], t as usize);
    }
    context.clear();
    assert_holds(context.history(), &[], 0);
}

/// The first version kept the step before it attended to it, and the engine kept it again, so that the history held half
/// as many steps as it seemed to.
#[test]
fn a_step_is_stored_once_and_after_it_was_read() {
    let (mut context, kept) = filled(DIMS, 3);
    let vectors = Vectors::new(DIMS, 3);
    let current = context.begin(vectors.step(3.0, "memory 3")).expect("a valid step");
    assert_holds(current.history(), &kept, 0);
    assert_eq!(
        (current.step().id, current.step().query, current.dims()),
        ("memory 3", &vectors.query[..], DIMS)
    );
    // Let go of, it leaves no trace.
    assert_holds(context.history(), &kept, 0);
    let current = context.begin(vectors.step(3.0, "memory 3")).expect("a valid step");
    current.finish(&vectors.y).expect("a valid answer");
    assert_holds(context.history(), &[&kept[..], &[vectors]].concat(), 0);
}

#[test]
fn the_newest_answer_is_replaced() {
    for steps in [1, 50, 73] {
        let (mut context, mut kept) = filled(DIMS, steps);
        context.update_last_y(&[0.25; 6]).expect("a step and an answer of its size");
        kept.last_mut().expect("a step").y = vec![0.25; 6];
        assert_holds(context.history(), &kept, steps - kept.len());
    }
    let mut context = SequenceContext::new(DIMS).expect("valid sizes");
    let error = context.update_last_y(&[0.0; 6]);
    assert_eq!(error, Err(value("sequence context", "a step to update", "none")));
}

#[test]
fn what_is_refused_leaves_no_trace() {
    let (mut context, mut kept) = filled(DIMS, 4);
    let good = Vectors::new(DIMS, 9);
    let mut refuse = |change: &dyn Fn(&mut Vectors), id: &str| {
        let mut vectors = good.clone();
        change(&mut vectors);
        context
            .begin(vectors.step(4.0, id))
            .and_then(|step| step.finish(&vectors.y))
            .expect_err("a step that does not fit")
    };
    assert_eq!(refuse(&|v| v.x.push(0.0), ""), shape("x", "dim", 5, 6));
    assert_eq!(refuse(&|v| v.key.clear(), ""), shape("key", "dim", 3, 0));
    assert_eq!(refuse(&|v| v.value.truncate(3), ""), shape("value", "dim", 4, 3));
    assert_eq!(refuse(&|v| v.query.push(0.0), ""), shape("query", "dim", 2, 3));
    assert_eq!(refuse(&|v| v.y.push(0.0), ""), shape("y", "dim", 6, 7));
    for (operand, change) in [
        ("x", (|v| v.x[1] = f32::NAN) as fn(&mut Vectors)),
        ("key", |v| v.key[1] = f32::NAN),
        ("value", |v| v.value[1] = f32::NAN),
        ("query", |v| v.query[1] = f32::NAN),
        ("y", |v| v.y[1] = f32::NAN),
    ] {
        let got = "NaN".to_owned();
        let expected = AttentionError::NotFinite { operand, batch: 0, token: 0, dim: 1, got };
        assert_eq!(refuse(&change, ""), expected);
    }
    let error = refuse(&|_| (), &"a".repeat(65));
    assert_eq!(error, AttentionError::TooLarge { operand: "id", axis: "bytes", limit: 64, got: 65 });
    assert_eq!(context.update_last_y(&[0.0; 5]), Err(shape("y", "dim", 6, 5)));
    let error = context.update_last_y(&[f32::INFINITY; 6]).expect_err("an infinite answer");
    assert!(matches!(error, AttentionError::NotFinite { operand: "y", dim: 0, .. }), "{error}");
    assert_holds(context.history(), &kept, 0);

    let longest = "é".repeat(32);
    context.begin(good.step(4.0, &longest)).and_then(|step| step.finish(&good.y)).expect("an id of 64 bytes");
    assert_eq!(context.history().ids().last(), Some(&longest[..]));
    kept.push(good);
    assert_eq!(context.len(), kept.len());
}

#[test]
fn sizes() {
    let refuse = |dims, options| SequenceContext::with_options(dims, options).expect_err("no such context");
    let options = ContextOptions::default();
    assert_eq!(refuse(StepDims { x: 0, ..DIMS }, options), value("x", "at least 1", "0"));
    assert_eq!(refuse(StepDims { key: 0, ..DIMS }, options), value("key", "at least 1", "0"));
    assert_eq!(refuse(StepDims { value: 0, ..DIMS }, options), value("value", "at least 1", "0"));
    assert_eq!(refuse(StepDims { query: 0, ..DIMS }, options), value("query", "at least 1", "0"));
    assert_eq!(refuse(StepDims { y: 0, ..DIMS }, options), value("y", "at least 1", "0"));
    let none = ContextOptions { capacity: 0, ..options };
    assert_eq!(refuse(DIMS, none), value("capacity", "at least 1", "0"));
    let huge = ContextOptions { capacity: usize::MAX / 2 + 1, ..options };
    assert_eq!(refuse(DIMS, huge), AttentionError::SizeOverflow { operand: "capacity" });
    let huge = ContextOptions { capacity: usize::MAX / 8, ..options };
    assert_eq!(refuse(DIMS, huge), AttentionError::SizeOverflow { operand: "x" });
    assert_eq!(StepDims::all(7), StepDims { x: 7, key: 7, value: 7, query: 7, y: 7 });
}
