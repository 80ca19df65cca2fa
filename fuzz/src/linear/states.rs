//! Calls whole, in pieces, and by states; states of hostile numbers.

use super::case::{Case, Numbers};
use super::definition::Seen;
use crate::Tally;
use crate::call::refused;
use crate::common::cases::{Rng, levels};
use arbitrary::{Result, Unstructured};
use half::{bf16, f16};
use lucid_attention::linear::{LinearPlan, LinearState, LinearWorkspace};
use lucid_attention::{Element, View, ViewMut};
use std::ops::Range;

/// How a call is made.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Run,
    /// Queries with keys, piece after piece; causal.
    Extend,
    /// Keys piece after piece, then all queries.
    Absorb,
    /// The same, each piece into a state of its own, joined in order.
    Merge,
}

pub(super) fn check(input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
    match input.int_in_range(0..=2)? {
        0 => check_as::<f32>(input, tally),
        1 => check_as::<f16>(input, tally),
        _ => check_as::<bf16>(input, tally),
    }
}

fn check_as<T: Element>(input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
    let case = Case::new(input)?;
    let ways: &[Way] = match case.causal {
        true => &[Way::Run, Way::Extend, Way::Absorb, Way::Merge],
        false => &[Way::Run, Way::Absorb, Way::Merge],
    };
    let way = *input.choose(ways)?;
    let pieces = pieces(input, case.lens[1])?;
    let save = input.arbitrary()?;
    let hostile = if input.ratio(1, 4)? { Some(input.arbitrary()?) } else { None };
    let numbers = case.numbers::<T>();
    let shape = [case.batch, case.heads[0], case.lens[0], case.v_dim];
    let mut answers = Vec::new();
    for level in levels() {
        let plan = case.plan(level);
        let mut workspace = plan.workspace().expect("memory");
        let mut call = Calls { case: &case, numbers: &numbers, plan: &plan, workspace: &mut workspace, save };
        if let Some(out) = call.make(way, &pieces, tally) {
            answers.push((level, out));
        }
        if let Some(seed) = hostile {
            call.restore_hostile(seed, tally);
        }
    }
    let size = case.lens[0] * case.v_dim;
    for at in 0..case.batch * case.heads[0] {
        let (b, h) = (at / case.heads[0], at % case.heads[0]);
        let keys = case.keys_of(b);
        let seen = |i: usize| {
            let attended = matches!(way, Way::Absorb | Way::Merge);
            let at = if attended { keys } else { i.min(keys) };
            let exact = if case.options.exact_window { at / 64 * 64..at / 64 * 64 + 64 } else { 0..0 };
            Seen { keys: if case.causal && !attended { keys.min(i + 1) } else { keys }, exact }
        };
        if answers.is_empty() {
            break;
        }
        let expected = case.expected(&numbers, [b, h], &seen);
        for (level, out) in &answers {
            let own = &out[at * size..][..size];
            for (index, (&got, expected)) in own.iter().zip(expected.iter().flatten()).enumerate() {
                let what = || format!("{level}, {way:?} {pieces:?}: head {at}, number {index} of {case:?}");
                match expected {
                    Some(expected) => tally.bound(got.into(), expected.value, expected.error, &what),
                    None => tally.close += 1,
                }
            }
        }
    }
    assert!(answers.iter().all(|(_, out)| out.len() == shape.iter().product::<usize>()));
    Ok(())
}

/// Where tokens are cut.
fn pieces(input: &mut Unstructured<'_>, len: usize) -> Result<Vec<Range<usize>>> {
    let mut cuts = vec![0, len];
    for _ in 0..input.int_in_range(0..=4)? {
        cuts.push(input.int_in_range(0..=len)?);
    }
    cuts.sort_unstable();
    Ok(cuts.windows(2).map(|pair| pair[0]..pair[1]).collect())
}

struct Calls<'a, T> {
    case: &'a Case,
    numbers: &'a Numbers<T>,
    plan: &'a LinearPlan,
    workspace: &'a mut LinearWorkspace,
    /// Whether states are saved and restored between calls.
    save: bool,
}

/// A state's numbers and lengths.
type Saved = (Vec<f32>, Vec<usize>);

impl<T: Element> Calls<'_, T> {
    /// The output of all rows; `None` where the way is refused.
    fn make(&mut self, way: Way, pieces: &[Range<usize>], tally: &mut Tally) -> Option<Vec<f32>> {
        let &mut Self { case, numbers, plan, .. } = self;
        let [q_len, kv_len] = case.lens;
        let shape = [case.batch, case.heads[0], q_len, case.v_dim];
        let mut out = vec![f32::NAN; shape.iter().product()];
        if way == Way::Run {
            let inputs = case.inputs(numbers, 0..q_len, 0..kv_len, case.kv_lens.as_deref());
            let view = ViewMut::new(&mut out, shape).expect("sized to it");
            plan.run(&inputs, view, self.workspace).expect("operands that fit");
            return Some(out);
        }
        let mut state = plan.state(case.batch).expect("memory");
        for piece in pieces {
            // Of a sequence that has ended there are no more keys.
            let lens: Vec<usize> = (0..case.batch)
                .map(|b| case.keys_of(b).saturating_sub(piece.start).min(piece.len()))
                .collect();
            let lens = case.kv_lens.is_some().then_some(&lens[..]);
            match way {
                Way::Extend => {
                    let inputs = case.inputs(numbers, piece.clone(), piece.clone(), lens);
                    let strides = [shape[1] * q_len * shape[3], q_len * shape[3], shape[3], 1];
                    let part = [shape[0], shape[1], piece.len(), shape[3]];
                    let rows = out.get_mut(piece.start * shape[3]..).unwrap_or(&mut []);
                    let view = ViewMut::with_strides(rows, part, strides).expect("rows of it");
                    plan.extend(&inputs, view, &mut state, self.workspace).expect("operands that fit");
                }
                Way::Merge => {
                    let mut own = plan.state(case.batch).expect("memory");
                    let inputs = case.inputs(numbers, 0..0, piece.clone(), lens);
                    plan.absorb(&inputs, &mut own, self.workspace).expect("operands that fit");
                    if let Err(error) = state.merge(&own) {
                        assert!(case.options.exact_window, "{error}: {case:?}");
                        refused(&error, &["merge"], tally);
                        return None;
                    }
                    assert!(!case.options.exact_window, "the newest tokens would no longer be new");
                }
                _ => {
                    let inputs = case.inputs(numbers, 0..0, piece.clone(), lens);
                    plan.absorb(&inputs, &mut state, self.workspace).expect("operands that fit");
                }
            }
            if self.save {
                state = self.saved_and_restored(&state, tally);
            }
        }
        let lens: Vec<usize> = (0..case.batch).map(|b| case.keys_of(b)).collect();
        assert_eq!(state.lens(), lens, "tokens that were seen");
        if way != Way::Extend {
            let q = View::new(&numbers.q, [case.batch, case.heads[0], q_len, case.head_dim])
                .expect("sized to it");
            let view = ViewMut::new(&mut out, shape).expect("sized to it");
            plan.attend(q, view, &state, self.workspace).expect("operands that fit");
        }
        Some(out)
    }

    fn save(&self, state: &LinearState) -> Saved {
        let (mut numbers, mut lens) = (vec![f32::NAN; state.saved_len()], vec![7; state.batch()]);
        state.save(&mut numbers, &mut lens).expect("sized to it");
        (numbers, lens)
    }

    /// Another state with what one has; saved again it is the same.
    fn saved_and_restored(&self, state: &LinearState, tally: &mut Tally) -> LinearState {
        let (numbers, lens) = self.save(state);
        assert!(numbers.iter().all(|x| !x.is_nan()), "all numbers are written");
        let mut restored = self.plan.state(self.case.batch).expect("memory");
        restored.restore(&numbers, &lens).expect("sized to it");
        let again = self.save(&restored);
        assert_eq!(again.1, lens);
        tally.same(&again.0, &numbers, &|| format!("saved twice, {:?}", self.case));
        restored
    }

    /// A state of any numbers and lengths: no crash, errors where tokens can no longer be counted, and then nothing
    /// written.
    fn restore_hostile(&mut self, seed: u32, tally: &mut Tally) {
        let case = self.case;
        let rng = &mut Rng::new(seed.into());
        let mut state = self.plan.state(case.batch).expect("memory");
        let special =
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, -0.0, 0.0, 1e30];
        let wild = rng.pick(&[0.0, 0.1, 1.0]);
        let number = |rng: &mut Rng| if rng.chance(wild) { rng.pick(&special) } else { 9.0 * rng.normal() };
        let mut numbers: Vec<f32> = (0..state.saved_len()).map(|_| number(rng)).collect();
        let most = usize::MAX;
        let lens: Vec<usize> =
            (0..case.batch).map(|_| rng.pick(&[0, 1, 63, 64, 1000, most, most - 1, most - 70])).collect();
        let before = self.save(&state);
        let longer = [&numbers[..], &[0.0]].concat();
        for wrong in [&numbers[1..], &longer[..]] {
            refused(&state.restore(wrong, &lens).expect_err("another length"), &["numbers"], tally);
        }
        refused(
            &state.restore(&numbers, &[&lens[..], &[1]].concat()).expect_err("another batch"),
            &["lens"],
            tally,
        );
        // The first four say which map they belong to.
        let foreign = state.restore(&numbers, &lens);
        refused(&foreign.expect_err("of no map"), &["numbers"], tally);
        numbers[..4].copy_from_slice(&before.0[..4]);
        let unchanged = self.save(&state);
        tally.same(&unchanged.0, &before.0, &|| "refused numbers leave a state as it was".to_owned());
        state.restore(&numbers, &lens).expect("sized to it");
        assert_eq!(state.lens(), lens);
        let saved = self.save(&state);
        if !case.options.exact_window {
            tally.same(&saved.0, &numbers, &|| format!("restored and saved, {case:?}"));
        }

        let keys = case.lens[1];
        let overflows = (0..case.batch).any(|b| lens[b].checked_add(case.keys_of(b)).is_none());
        let inputs = case.inputs(self.numbers, 0..0, 0..keys, case.kv_lens.as_deref());
        let absorbed = self.plan.absorb(&inputs, &mut state, self.workspace);
        assert_eq!(absorbed.is_err(), overflows, "{absorbed:?} with {lens:?} tokens, {case:?}");
        if let Err(error) = absorbed {
            refused(&error, &["state"], tally);
            let after = self.save(&state);
            assert_eq!(after.1, saved.1, "lengths after {error}");
            tally.same(&after.0, &saved.0, &|| format!("after {error}"));
        }
        let shape = [case.batch, case.heads[0], case.lens[0], case.v_dim];
        let mut out = vec![f32::NAN; shape.iter().product()];
        let q =
            View::new(&self.numbers.q, [shape[0], shape[1], shape[2], case.head_dim]).expect("sized to it");
        let view = ViewMut::new(&mut out, shape).expect("sized to it");
        self.plan.attend(q, view, &state, self.workspace).expect("operands that fit");
        // What can be counted can be joined.
        let mut other = self.plan.state(case.batch).expect("memory");
        other.restore(&numbers, &lens).expect("sized to it");
        if !case.options.exact_window {
            let overflows = state.lens().iter().zip(&lens).any(|(a, b)| a.checked_add(*b).is_none());
            let merged = state.merge(&other);
            assert_eq!(merged.is_err(), overflows, "{merged:?} with {lens:?} tokens");
            merged.err().iter().for_each(|error| refused(error, &["lens"], tally));
        }
    }
}
