//! Stages of LSH attention, shared out: a stage writes one list or several, each part of the work a piece of each.

use crate::parallel::{MAX_PARTS, Spread};
use std::ops::Range;

/// Workers for a stage that takes one of them about so long, at most `limit`.
pub(super) fn workers(limit: usize, nanoseconds: f64) -> usize {
    Spread::new(Some(limit), None).workers(nanoseconds)
}

/// `0..count` in as many ranges as can be shared out.
pub(super) fn parts(count: usize) -> impl Iterator<Item = Range<usize>> {
    let each = count.div_ceil(MAX_PARTS).max(1);
    (0..count).step_by(each).map(move |first| first..count.min(first + each))
}

/// Takes the next so many off a list.
pub(super) fn piece<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (piece, left) = std::mem::take(rest).split_at_mut(len);
    *rest = left;
    piece
}
